"""A prompt is a function of its variables, is tried before anything runs, and comes to an end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from synth_assets.assets.planning import plan_calls
from synth_assets.errors import SpecError, SpecProblem
from synth_assets.spec.load import load_dataset
from synth_assets.spec.prompt import PromptError, PromptTemplate, Trial
from synth_assets.tasks.classification import Classification
from tests.datasets import DatasetFolder
from tests.test_run import synth

TONES = {"tone": ["calm", "cross"]}
LABELS = {"billing": "money", "login": "access", "c_d": ""}


def problems(template: str, *, seeds: int = 4, labels: dict[str, str] | None = None) -> list[Any]:
    task = Classification("body", "topic", labels=labels or LABELS)
    trials = task.trials(rows=5, seeds_per_call=seeds, attributes=TONES)
    made = PromptTemplate(Path("prompt.md.j2"), template)
    return list(made.problems(Trial(*trial) for trial in trials))


def only(template: str, **more: Any) -> SpecProblem:
    [problem] = problems(template, **more)
    assert problem.file == "prompt.md.j2"
    assert problem.fix
    return problem  # type: ignore[no-any-return]


def rendered(template: str, examples: int = 2) -> str:
    variables = {
        "label": "login",
        "label_description": "access",
        "labels": ["billing", "login"],
        "examples": [f"text {n}" for n in range(examples)],
        "rows": 5,
        "attributes": {"tone": "calm"},
    }
    return PromptTemplate(Path("p"), template).render(Trial("label 'login'", variables))


# --- what is not a function of the variables ------------------------------------------------------


@pytest.mark.parametrize(
    "template",
    [
        "{{ examples|random }}",
        "{{ range(9)|random }}",
        "{% if false %}{{ labels|random }}{% endif %}x",
        "{% filter random %}x{% endfilter %}",
        "{{ labels|map('random')|list }}",
        "{{ lipsum() }}",
        "{{ lipsum }}",
        "{{ now() }}",
        "{{ self }}",
        "{{ self|string }}",
        "{{ label is sameas label }}",
        "{{ label is filter }}",
        "{{ label|attr('upper') }}",
        "{{ label is callable }}",
    ],
)
def test_what_does_not_follow_from_the_declaration_is_not_there(template: str) -> None:
    assert only(template).line == 1


@pytest.mark.parametrize("function", ["label.upper", "labels.index", "range", "dict", "joiner"])
@pytest.mark.parametrize(
    "written",
    [
        "{{ F }}",
        "{{ F|string }}",
        "{{ 'a' ~ F }}",
        "{{ '%s' % F }}",
        "{{ '{}'.format(F) }}",
        "{{ '{0}'|format(F) }}{{ '%r'|format(F) }}",
        "{{ [F] }}",
        "{{ {'a': F}|string }}",
        "{{ [F]|join }}",
        "{{ F|pprint }}",
        "{{ F|tojson }}",
        "{{ F|upper }}",
        "{{ (F, 1)|replace('a', 'b') }}",
    ],
)
def test_no_function_becomes_text(function: str, written: str) -> None:
    # its text would hold the address of an object
    only(written.replace("F", function))


@pytest.mark.parametrize(
    "template",
    [
        "{{ cycler('a')|string }}",
        "{{ joiner('a') }}",
        "{{ namespace(a=1)|string }}",
        "{{ [namespace(a=1)]|pprint }}",
        "{% macro m() %}{% endmacro %}{{ m }}",
        "{% for a in labels %}{{ loop }}{% endfor %}",
        "{{ range(3) }}",
        "{{ label.encode() }}",
        "{{ none }}",
        "{{ attributes.get('nothing') }}",
        "{{ [attributes.nothing] }}",
    ],
)
def test_what_is_no_data_is_not_written(template: str) -> None:
    assert "cannot be rendered" in only(template).problem


def test_what_yields_values_is_written_as_a_list() -> None:
    assert rendered("{{ labels|map('upper') }}") == "['BILLING', 'LOGIN']"
    assert rendered("{{ attributes.items() }}") == "[('tone', 'calm')]"
    assert rendered("{{ labels|reverse }}") == "['login', 'billing']"


def test_ordinary_templates_render_as_jinja_renders_them() -> None:
    import jinja2

    plain = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)  # noqa: S701
    for template in (
        "{{ label|upper }} {{ labels|join(', ') }} {{ attributes.tone }} {{ attributes }}",
        "{% for e in examples %}{{ loop.index }}. {{ e }}{{ ',' if not loop.last }}{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for e in examples %}{% set ns.n = ns.n + 1 %}{% endfor %}"
        "{{ ns.n }}",
        "{% macro m(x, y=2) %}{{ x }}-{{ y }}{% endmacro %}{{ m(1) }}{{ m(label, y=3) }}",
        "{% macro q() %}<{{ caller() }}>{% endmacro %}{% call q() %}hi{% endcall %}",
        "{{ '%s of %d' % (label, rows) }} {{ '{:>6}|'.format(label) }} {{ '%5s'|format(label) }}",
        "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{% set j = joiner('|') %}"
        "{% for e in labels %}{{ j() }}{{ e }}{% endfor %}",
        "{{ examples|batch(2)|list }} {{ attributes.nothing|default('q') }} {{ label in labels }}",
        "{% for x in [1, [2, [3]]] recursive %}{% if x is iterable %}{{ loop(x) }}{% else %}"
        "{{ x }}{% endif %}{% endfor %}",
        "{% for k, v in attributes|dictsort %}{{ k }}={{ v }}{% endfor %} {{ label ~ rows }} "
        "{{ 2 ** 10 }} {{ 7 % 2 }} {{ 'ab' * 2 }} {{ 1 < rows <= 9 }} {{ labels[1:]|first }}",
        "{% filter upper %}abc{% endfilter %}{% set t %}a{{ label }}{% endset %}{{ t }}",
    ):
        variables = {
            "label": "login",
            "labels": ["billing", "login"],
            "examples": ["text 0", "text 1"],
            "rows": 5,
            "attributes": {"tone": "calm"},
        }
        expected = plain.from_string(template).render(variables)
        made = PromptTemplate(Path("p"), template).render(Trial("", variables))
        assert made == expected, template


# --- tried with every label and number of examples ------------------------------------------------


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("a\n{{ examples[0] }}", "label 'billing' with 0 examples"),
        ("a\n{{ examples[1] if examples }}", "label 'billing' with 1 example"),
        (
            "a\n{% if examples|length > 1 %}{{ 1 // 0 }}{% endif %}",
            "label 'billing' with 4 examples",
        ),
        ("a\n{% if label == 'login' %}{{ 1 / 0 }}{% endif %}", "label 'login' with 0 examples"),
        ("a\n{{ label.split('_')[1] if label == 'login' }}", "label 'login'"),
        ("a\n{% if attributes.tone == 'cross' %}{{ 1 / 0 }}{% endif %}", "tone 'cross'"),
        ("a\n{{ label + 1 }}", "label 'billing'"),
        ("a\n{{ rows|join }}", "label 'billing'"),
    ],
)
def test_a_template_that_fails_somewhere_says_where_and_for_what(template: str, told: str) -> None:
    problem = only(template)
    assert (problem.line, "cannot be rendered" in problem.problem) == (2, True)
    assert told in problem.problem


def test_a_guarded_template_is_fine_and_a_call_without_examples_tries_none() -> None:
    assert problems("x{% if examples %}{{ examples[0] }}{% endif %}") == []
    assert problems("x{% if examples %}{{ 1 / 0 }}{% endif %}", seeds=0) == []


def test_an_attribute_that_is_not_declared_is_named_with_those_that_are() -> None:
    problem = only("one\n{{ attributes.tine }}")
    assert (problem.line, "tine" in problem.problem, "tone" in problem.fix) == (2, True, True)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("", "label 'billing' with 0 examples"),
        (" \n\t", "label 'billing'"),
        ("\ufeff\u200b\u00ad", "label 'billing'"),
        ("\u3164\u2800\x00", "label 'billing'"),
        ("{# nothing #}", "label 'billing'"),
        ("{% for e in examples %}{{ e }}{% endfor %}", "with 0 examples"),
        ("{% if examples|length != 1 %}x{% endif %}", "with 1 example"),
        ("{% if label != 'c_d' %}x{% endif %}", "label 'c_d'"),
        ("{{ label_description }}", "label 'c_d'"),
    ],
)
def test_an_empty_prompt_is_refused(template: str, told: str) -> None:
    problem = only(template)
    assert "is empty" in problem.problem
    assert told in problem.problem


@pytest.mark.parametrize(
    "template",
    ["{% include 'x' %}", "{% import 'x' as x %}", "{% from 'x' import y %}", "{% extends 'x' %}"],
)
def test_a_prompt_is_one_file(template: str) -> None:
    problem = only("a\n" + template)
    assert (problem.line, "one file" in problem.problem) == (2, True)


@pytest.mark.parametrize("template", ["{{ label|nosuch }}", "{{ 1 if label is nosuch }}"])
def test_an_unknown_filter_or_test_is_named_with_its_line(template: str) -> None:
    problem = only("a\n" + template)
    assert (problem.line, problem.key) == (2, "nosuch")
    assert "use one of" in problem.fix


def test_text_that_has_no_bytes_is_refused() -> None:
    assert "cannot be rendered" in only(r"{{ '\ud800' }}").problem


# --- bounded --------------------------------------------------------------------------------------

DOUBLED = "{% set ns = namespace(x=FIRST) %}{% for i in range(60) %}STEP{% endfor %}{{ ns.x }}"
ENDLESS = [
    "{{ 'a' * 10 ** 10 }}",
    "{{ [1] * 10 ** 10 }}",
    "{{ 10 ** 10000000 }}",
    "{% for a in range(10 ** 9) %}x{% endfor %}",
    "{{ range(10 ** 30)|list }}",
    "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "{{ 'a'|center(10 ** 9) }}",
    "{{ 'a'.ljust(10 ** 9) }}",
    "{{ 'a'.zfill(10 ** 9) }}",
    "{{ 'a'|indent(10 ** 9, true) }}",
    "{{ labels|batch(10 ** 9, 'x')|list }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10 ** 9, 1) }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 10 ** 9) }}",
    "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "{{ label|tojson(indent=10 ** 9) }}",
    "{{ ('ab ' * 100000)|wordwrap(1, wrapstring='a' * 100000) }}",
    *(
        DOUBLED.replace("FIRST", first).replace("STEP", step)
        for first, step in [
            ("'ab'", "{% set ns.x = ns.x ~ ns.x %}"),
            ("'ab'", "{% set ns.x = ns.x + ns.x %}"),
            ("'ab'", "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"),
            ("'ab'", "{% set ns.x = '%s%s' % (ns.x, ns.x) %}"),
            ("'ab'", "{% set ns.x = '{0}{0}'.format(ns.x) %}"),
            ("'ab'", "{% set ns.x = ns.x|replace('a', 'aaaaaaaa') %}"),
            ("'ab'", "{% set ns.x = ns.x.replace('a', ns.x) %}"),
            ("'ab'", "{% set ns.x = [ns.x, ns.x]|join(ns.x) %}"),
            ("'ab'", "{% set ns.x = ns.x.join([ns.x, ns.x]) %}"),
            ("[1]", "{% set ns.x = [ns.x, ns.x] %}"),
            ("[1]", "{% set ns.x = (ns.x, ns.x) %}"),
            ("[1]", "{% set ns.x = {1: ns.x, 2: ns.x} %}"),
            ("[1]", "{% set ns.x = ns.x + ns.x %}"),
        ]
    ),
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(n) %}{% if n > 0 %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% for x in [[1, 2]] recursive %}{{ loop([[1, 2], [3, 4]]) }}{% endfor %}",
    "{% set b = range(100000)|list %}{% for a in b %}{% if 'x' in b %}{% endif %}{% endfor %}",
    "{% set b = range(100000)|list %}{% for a in b %}{% if b == b[:] %}{% endif %}{% endfor %}",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{% if label %}" * 150 + "x" + "{% endif %}" * 150,
    "x" * 1_000_001,
]


def test_a_template_without_end_is_refused_within_bounds(tmp_path: Path) -> None:
    # In a process of its own: without the bounds this would take the machine with it.
    script = tmp_path / "endless.py"
    script.write_text(
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (100, 100))\n"
        "from tests.test_prompts import ENDLESS, only\n"
        "for template in ENDLESS:\n"
        "    print(only(template).problem, '<-', template[:70])\n"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=root,
        env={"PYTHONPATH": str(root), "POLARS_MAX_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == len(ENDLESS)
    assert "MemoryError" not in done.stdout


def test_a_long_prompt_is_no_endless_one() -> None:
    each = "{% for e in examples %}{{ n }}. {{ e }}\n{% endfor %}"
    lines = "{% for n in range(2000) %}" + each + "{% endfor %}"
    assert len(rendered("x" * 50_000 + lines, examples=4)) > 100_000


# --- while planning -------------------------------------------------------------------------------


def test_an_error_while_planning_names_file_line_label_and_fix(tickets: DatasetFolder) -> None:
    # Labels are found in the data here, so the check cannot know them.
    del tickets.attributes["task"]["labels"]
    tickets.edit("generate.attributes", TONES)
    tickets.write_prompt("Write.\n{% if label == 'login' %}{{ 1 / 0 }}{% endif %}\n")
    assert synth("check", "tickets").code == 0
    ran = synth("plan", "tickets", "--json")
    assert ran.code == 2
    assert f"{tickets.folder / 'prompt.md.j2'}:2" in ran.errors
    for word in ("label 'login' with 4 examples", "division by zero", "fix:"):
        assert word in ran.errors
    assert "Traceback" not in ran.errors


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (
            "{{ label if label != 'login' }}",
            "the prompt for label 'login' with 0 examples is empty",
        ),
        ("a\n{{ label|int + label if label == 'login' else 1 }}", "label 'login' with 0 examples"),
    ],
)
def test_no_call_is_planned_that_a_prompt_cannot_be_made_for(
    tmp_path: Path, prompt: str, said: str
) -> None:
    import polars as pl

    folder = DatasetFolder(tmp_path / "tickets", prompt=prompt)
    del folder.attributes["task"]["labels"]
    folder.write()
    dataset = load_dataset(folder.folder)
    assert dataset is not None
    seeds = pl.DataFrame(
        schema={
            "record_id": pl.String,
            "text": pl.String,
            "label": pl.String,
            "seed_rank": pl.Int32,
        }
    )
    assert plan_calls(dataset, seeds, {"billing": 3}).height
    with pytest.raises(SpecError) as caught:
        plan_calls(dataset, seeds, {"billing": 3, "login": 3})
    [problem] = caught.value.problems
    assert said in problem.problem
    assert problem.file == str(folder.folder / "prompt.md.j2")
    assert problem.fix


def test_a_render_error_names_its_line() -> None:
    with pytest.raises(PromptError) as caught:
        rendered("a\nb\n{{ examples[5] }}")
    assert caught.value.problem.line == 3
