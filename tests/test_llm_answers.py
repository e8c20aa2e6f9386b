"""Reading a model's answer: only rows become rows, over real HTTP and for any text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth_assets.llm import Answer, ErrorKind, Ledger, Request
from synth_assets.llm.answers import Decoded, decoded, ending_of, replayed
from synth_assets.llm.batch.files import read_results
from synth_assets.llm.formats import (
    Asked,
    Items,
    OutputMode,
    asked_for,
    build_body,
    items_of,
    output_mode,
)
from synth_assets.llm.ledger.rows import StoredAnswer
from synth_assets.llm.plain_list import PlainList, read_plain_list
from synth_assets.llm.salvage import salvage_json_list
from synth_assets.llm.thinking import without_thinking
from synth_assets.tasks.classification import Classification
from tests.llm_support import answers_of, endpoint_of, run
from tests.openai_server import FaultAction, running_server
from tests.openai_server.quirks import JSON, LISTS, LOSING, TOOLS
from tests.openai_server.state import ServerState

ROWS = 5
TASK = Classification("body", "topic")
SCHEMA = TASK.answer_schema(ROWS)
PROMPT = f"""Write {ROWS} new messages about billing.
- my invoice was charged twice since monday
- the last payment is missing from the statement
- a refund shows the wrong amount in euro
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ServerState]:
    with running_server() as state:
        yield state


def answer_in(mode: OutputMode, server: ServerState, path: Path, quirk: str = "") -> Answer:
    action = FaultAction("quirk", message=quirk) if quirk else None
    server.fault = lambda _: action
    body = build_body(
        style="chat",
        mode=mode,
        model="test-model",
        user=PROMPT,
        schema=SCHEMA,
        sampling={"max_tokens": 900},
        seed=1,
    )
    asked, before = Request("chat", "the test server", body), server.request_count
    (answer,) = answers_of([asked], endpoint=endpoint_of(server), path=path)
    assert server.request_count == before + 1, "an answer was bought, and bought once"
    return answer


def rows_of(answer: Answer, mode: OutputMode) -> Items:
    asked = asked_for(answer.request, SCHEMA, ROWS)
    return items_of(answer.text, mode, cut=answer.error is ErrorKind.LENGTH, asked=asked)


def texts(items: list[Any]) -> list[str]:
    """The rows as they would stand in a table."""
    read = [TASK.read_item(item, stratum="billing") for item in items]
    return [row["text"] for row in read if row is not None]


# --- over HTTP ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "quirk"),
    [
        *(("list", f"list: {name}") for name in LISTS),
        *(("json_schema", f"json: {name}") for name in JSON),
        *(("tool", f"tool: {name}") for name in TOOLS),
    ],
)
def test_rows_are_the_same_however_they_are_said(
    server: ServerState, tmp_path: Path, mode: OutputMode, quirk: str
) -> None:
    plain = texts(rows_of(answer_in(mode, server, tmp_path / "plain"), mode).items)
    answer = answer_in(mode, server, tmp_path / "quirk", quirk)
    assert answer.ok
    assert len(plain) == ROWS
    assert texts(rows_of(answer, mode).items) == plain


@pytest.mark.parametrize("quirk", [name for name in LOSING if name.startswith("cut")])
def test_an_answer_that_was_cut_loses_its_last_row_whatever_the_reason_is_called(
    server: ServerState, tmp_path: Path, quirk: str
) -> None:
    plain = texts(rows_of(answer_in("list", server, tmp_path / "plain"), "list").items)
    answer = answer_in("list", server, tmp_path / "quirk", f"losing: {quirk}")
    assert answer.error is ErrorKind.LENGTH
    assert texts(rows_of(answer, "list").items) == plain[:-1]


@pytest.mark.parametrize(
    ("quirk", "error", "problem"),
    [
        ("thinking cut at the limit", ErrorKind.LENGTH, "unclosed_thinking"),
        ("reasoning only", ErrorKind.EMPTY, ""),
        ("a refusal in words", None, "unmarked_answer"),
    ],
)
def test_what_holds_no_row_says_why(
    server: ServerState, tmp_path: Path, quirk: str, error: ErrorKind | None, problem: str
) -> None:
    answer = answer_in("list", server, tmp_path / "l", f"losing: {quirk}")
    read = rows_of(answer, "list")
    assert (read.items, read.problem, answer.error) == ([], problem, error)
    assert answer.raw


def test_a_model_that_thinks_aloud_has_structured_output_all_the_same(tmp_path: Path) -> None:
    action = FaultAction("quirk", message="json: thinking")
    with running_server(fault=lambda _: action) as server, Ledger.open(tmp_path / "l") as ledger:
        assert run(output_mode(endpoint=endpoint_of(server), ledger=ledger)) == "json_schema"


# --- thinking -------------------------------------------------------------------------------------

THOUGHT = "I vary the wording.\n- a draft that is no row\n"


@pytest.mark.parametrize(
    "marks",
    [
        ("<think>", "</think>"),
        ("<THINK>", "</Think>"),
        ('<think type="deep">', "</think >"),
        ("<thinking>", "</thinking>"),
        ("<think>", "</thinking>"),
        ("<thought>", "</thought>"),
        ("<reasoning>", "</reasoning>"),
        ("<seed:think>", "</seed:think>"),
        ("[THINK]", "[/THINK]"),
        ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|channel>thought\n", "<channel|>"),
        ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
        ("analysisWe need rows. ", "assistantfinal"),
        ("Here is my thought process: ", "Here is my response:"),
        ('<details type="reasoning" done="true">', "</details>"),
    ],
    ids=lambda marks: str(marks[0]),
)
@pytest.mark.parametrize("after", ["\n\n", "\n", ""])
def test_thinking_goes_whatever_its_marks_are(marks: tuple[str, str], after: str) -> None:
    opening, closing = marks
    for answer in ("- a\n- b", '{"rows": ["a", "b"]}'):
        thinking = f"{opening}{THOUGHT}{closing}{after}"
        assert without_thinking(thinking + answer).text.strip() == answer
    # What does not end may be thinking to the end of the answer.
    assert without_thinking(opening + THOUGHT).text.strip() == ""
    assert "- a draft" in without_thinking(opening + THOUGHT).unclosed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Okay, a list.\n- a draft\n</think>\n\n- a\n- b", "- a\n- b"),
        ("Okay, a list.</think>- a\n- b", "- a\n- b"),
        ('Okay. </think> {"rows": []}', '{"rows": []}'),
        ("<think>\n\n</think>\n\n- a", "- a"),
        ("<think>x</think>\n<think>y\n</think>\n- a", "- a"),
        ("- a\n<think>\n- more?\n</think>\n- b", "- a\n\n- b"),
        ("<think><think>x</think>\n- y\n</think>\n- a", "- a"),
        ("Sure! <think>x\n- y\n</think>\n- a", "Sure! \n- a"),
        ("<think>x</think><answer>\n- a\n</answer>", "- a"),
        ("<think>x</think>\n```\n- a\n```<|im_end|>", "```\n- a\n```"),
    ],
)
def test_thinking_goes_wherever_it_stands(text: str, said: str) -> None:
    assert without_thinking(text).text.strip() == said


@pytest.mark.parametrize(
    "text",
    [
        "- why does </think> stand in the answer?\n- it begins with <think> now",
        "- the bot says <think>secret</think> to customers\n- another",
        "- it prints <think>\n- it prints </think>",
        "1. the tag `</think>` is shown\n2. so is '<think>'",
        '{"rows": [{"text": "<think>hm</think> is shown"}, {"text": "and </think>"}]}',
        '{\n "rows": [\n  "it begins with <think>",\n  "and ends with </think>"\n ]\n}',
        '{"rows": ["see <think> here",\n "see </think> here", "cut',
        "- <|channel|>analysis<|message|> is in the log",
    ],
)
def test_rows_about_thinking_stay_as_they_are(text: str) -> None:
    assert without_thinking(text) == (text, "")


def test_thinking_that_was_cut_has_no_rows_and_what_came_before_it_has() -> None:
    read = items_of("- a\n- b\n<think>\n- mo", "list", cut=True, asked=Asked(5))
    assert (read.items, read.problem) == (["a", "b"], "unclosed_thinking")
    assert "- mo" in read.aside
    nothing = items_of("<think>\nall of it\n</think>\n", "list", cut=False, asked=Asked(5))
    assert (nothing.items, nothing.problem) == ([], "no_rows")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<longcat_think>x</longcat_think>\n- a", "- a"),
        ("<|thinking|>x\n- y<|/thinking|>\n- a", "- a"),
        ("<|channel|>analysis<|message|>x<|end|>\n- a", "- a"),
        ("<|channel|>analysis<|message|>x<|end|><|start|>assistant<|message|>- a", "- a"),
        ("assistantfinal- a", "- a"),
        ("Sure!<think>x\n- y\n</think>- a", "Sure!\n- a"),
    ],
)
def test_rarer_marks_of_thinking_go(text: str, said: str) -> None:
    assert without_thinking(text).text.strip() == said


@pytest.mark.parametrize(
    "turn",
    [
        "<|im_end|>\n<|im_start|>user\n- more",
        "</s>[INST] - more",
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n- more",
        "<end_of_turn>\n<start_of_turn>user\n- more",
        "<|endoftext|>Human: - more",
    ],
)
def test_what_a_model_makes_up_of_the_next_turn_is_no_part_of_its_answer(turn: str) -> None:
    read = items_of(f"- a\n- b{turn}", "list", cut=False, asked=Asked(2))
    assert (read.items, read.aside) == (["a", "b"], "")


# --- plain lists ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mark",
    [
        "- ", "* ", "+ ", "\u2022 ", "\u2022", "\u2013 ", "\u2014 ", "{n}. ", "{n}) ", "({n}) ",
        "{n}: ", "{n} - ", "[{n}] ", "#{n} ", "{n}.) ", "{n}\\. ", "**{n}.** ", "__{n})__ ",
        "### {n}. ", "Row {n}: ", "Ticket #{n}: ", "**Work order {n}:** ", "**Row {n}**: ",
        "**Row {n}**\n", "### Row {n}\n\n", "Row {n}:\n", "- [ ] ", "- [x] ", "- {n}. ",
        "{n}/5: ", "{n}\u3001", "{n}\ufe0f\u20e3 ", "> - ", "   {n}. ", "\t- ", "{c}) ", "{c}. ",
        "({c}) ", "{r}. ",
    ],
)  # fmt: skip
@pytest.mark.parametrize("between", ["\n", "\n\n"])
def test_list_marks_of_every_kind_go(mark: str, between: str) -> None:
    items = ["My pump leaks", "-5 degrees inside", "2 valves, loose", "Oil (old) found", "no."]
    signs = zip("abcde", ("i", "ii", "iii", "iv", "v"), items, strict=True)
    lines = [mark.format(n=n, c=c, r=r) + item for n, (c, r, item) in enumerate(signs, 1)]
    quoted = between.replace("\n\n", "\n>\n") if mark.startswith(">") else between
    assert read_plain_list(quoted.join(lines), cut=False, rows=5).rows == items


@pytest.mark.parametrize(
    ("text", "rows", "aside"),
    [
        ("Here are two:\n- a\n- b\nLet me know!", ["a", "b"], ["Here are two:", "Let me know!"]),
        ("- a\n## More\n- b", ["a", "b"], ["## More"]),
        ("- a\nAnother one follows.\n- b", ["a", "b"], ["Another one follows."]),
        ("- a\n\n---\n\n- b", ["a", "b"], ["---"]),
        ("**Notes**\n1. a\n2. b\n\nNote: c", ["a", "b"], ["**Notes**", "Note: c"]),
        ("- one line,\n  and Another\n- b", ["one line, and Another", "b"], []),
        ("- it goes on\nhere\n- b", ["it goes on here", "b"], []),
        ("1. **A title**\n   Its text.\n2. b", ["A title Its text.", "b"], []),
        ("1. **A title**\nIts text.\n2. **B**\nText.", ["A title Its text.", "B Text."], []),
        ("- a\n\n  A paragraph of it\n- b", ["a A paragraph of it", "b"], []),
        ("1. a\n   - tone: angry\n2. b\n   - tone: calm", ["a", "b"],
         ["- tone: angry", "- tone: calm"]),
        ("Angry:\n  - a\nCalm:\n  - b", ["a", "b"], ["Angry:", "Calm:"]),
        ("1. Angry:\n   - a\n2. Calm:\n   - b", ["a", "b"], ["1. Angry:", "2. Calm:"]),
        ("| a |\n|---|\n| b c |\n| d \\| e |", ["b c", "d | e"], ["| a |", "|---|"]),
        ("Text | Kind\n--- | ---\nb c | x\nd e | y", ["b c", "d e"], ["Text | Kind", "--- | ---"]),
        ("<ol>\n<li>a</li>\n<li>b</li>\n</ol>", ["a", "b"], ["<ol>", "</ol>"]),
    ],
)  # fmt: skip
def test_lines_without_a_mark_are_no_rows_and_items_of_two_lines_are_one(
    text: str, rows: list[str], aside: list[str]
) -> None:
    for answer in (text, f"```\n{text}\n```", text.replace("\n", "\r\n")):
        assert read_plain_list(answer, cut=False, rows=2) == PlainList(rows, aside, True)


@pytest.mark.parametrize(
    ("item", "row"),
    [
        ('"a b"', "a b"),
        ("'don't'", "don't"),
        ("\u201ca\u201d", "a"),
        ("\u201ea\u201c", "a"),
        ("\u00aba\u00bb", "a"),
        ("\u00bba\u00ab", "a"),
        ("\u300ca\u300d", "a"),
        ("\u2018a\u2019", "a"),
        ('"a",', "a"),
        (r'"a \"b\" c"', 'a "b" c'),
        ('"my "new" phone"', 'my "new" phone'),
        ("**a**", "a"),
        ("__a__", "a"),
        ("*a*", "a"),
        ("`a`", "a"),
        ('**"a"**', "a"),
        ('"a" and "b"', '"a" and "b"'),
        ("\u201ca\u201d and \u201cb\u201d", "\u201ca\u201d and \u201cb\u201d"),
        ("**a** and **b**", "**a** and **b**"),
        ("**a:** b", "**a:** b"),
        ('the "red" one', 'the "red" one'),
        ("1. FC K\u00f6ln", "1. FC K\u00f6ln"),
        ("-3.5 degrees", "-3.5 degrees"),
        ("5' pipe, 3\" wide", "5' pipe, 3\" wide"),
        ("snake_case_name", "snake_case_name"),
    ],
)
def test_quotes_and_bold_around_a_whole_item_go_and_those_inside_stay(item: str, row: str) -> None:
    assert read_plain_list(f"- {item}\n- other", cut=False, rows=2).rows == [row, "other"]


@pytest.mark.parametrize(
    ("text", "rows", "found"),
    [
        ("one\ntwo\nthree", 3, ["one", "two", "three"]),
        ("one\n\ntwo\n\nthree", 3, ["one", "two", "three"]),
        ("1. FC Ulm won\nBayern lost\nHertha", 3, ["1. FC Ulm won", "Bayern lost", "Hertha"]),
        ("- 5 degrees\nThe pump\nA bolt", 3, ["- 5 degrees", "The pump", "A bolt"]),
        ("Pump 3: leaks\nPump 7: is loud", 2, ["Pump 3: leaks", "Pump 7: is loud"]),
        ("one\ntwo", 3, []),
        ("Here they are:\none\ntwo", 3, []),
        ("Here they are:\none\ntwo", 2, []),
        ("I'm sorry, but I can't help with that.", 8, []),
        ("1. My parcel is late", 1, ["My parcel is late"]),
        ("My parcel is late", 1, ["My parcel is late"]),
    ],
)  # fmt: skip
def test_lines_without_any_mark_count_when_they_are_as_many_as_were_asked_for(
    text: str, rows: int, found: list[str]
) -> None:
    assert read_plain_list(text, cut=False, rows=rows).rows == found
    read = items_of(text, "list", cut=False, asked=Asked(rows))
    assert read.items == found
    assert found or (read.problem == "unmarked_answer" and read.aside == text)


@pytest.mark.parametrize(
    "refusal",
    [
        "I'm sorry, but I can't help with creating such messages.",
        "I am unable to assist with that request.",
        "Sorry, I cannot provide this.",
        "As an AI, I can't write that.",
    ],
)
def test_a_refusal_is_no_row_where_one_row_was_asked_for(refusal: str) -> None:
    read = items_of(refusal, "list", cut=False, asked=Asked(1))
    assert (read.items, read.problem, read.aside) == ([], "refused", refusal)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("- a\n- b c\n  d", ["a"]),
        ("- a\n- b\n  c\n", ["a", "b c"]),
        ("- a\n- b\n\nLet me kn", ["a", "b"]),
        ("1. a\n2. b\n3", ["a", "b"]),
        ("one\ntwo\nthr", []),
    ],
)
def test_a_cut_item_goes_with_all_of_its_lines(text: str, rows: list[str]) -> None:
    assert read_plain_list(text, cut=True, rows=3).rows == rows


@pytest.mark.parametrize(
    ("prompt", "text", "rows"),
    [
        ("- x\n-", " a\n- b\n- c", ["a", "b", "c"]),
        ("- x\n- ", "a\n- b", ["a", "b"]),
        ("- x\n-", " a", ["a"]),
        ("- x\n-", "\n- a\n- b", ["a", "b"]),
        ("- x\n-", " a\nSystem: pumps\n- b", ["a", "b"]),
        ("1. x\n2.", " a\n3. b", ["a", "b"]),
        ("x\ny\n", "a\nb\nc", ["a", "b", "c"]),
        ("- x\n-", " <think> is shown\n- b", ["<think> is shown", "b"]),
    ],
)
def test_a_base_model_goes_on_with_the_mark_of_the_prompt(
    prompt: str, text: str, rows: list[str]
) -> None:
    request = Request("completion", "", {"model": "m", "prompt": prompt})
    assert items_of(text, "list", cut=False, asked=asked_for(request, SCHEMA, 9)).items == rows


item_texts = st.from_regex(r"[A-Z][a-z]{1,9}( [a-z0-9]{1,9}){1,6}[.!?]?", fullmatch=True)


@given(
    st.lists(item_texts, min_size=2, max_size=9),
    st.sampled_from(["- {}", "* {}", "\u2022 {}", "{n}. {}", "{n}) {}", "**{n}.** {}",
                     "{n}. **{}**", '- "{}"', "- {}\n  Second line", "Row {n}: {}"]),
    st.sampled_from(["\n", "\n\n"]),
    st.sampled_from(["", "<think>\n- a\n1. b\n</think>\n", "[THINK]x[/THINK]",
                     "Hm.\n</think>\n\n"]),
    st.sampled_from(["", "Sure! Here are they:\n", "## Rows\n\n", "Okay.\n\n---\n"]),
    st.sampled_from(["", "\n\nLet me know if you need more!", "\n---\nDone.", "\n\n**Note:** x"]),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_what_stands_around_a_list_never_changes_its_items(
    items: list[str], shape: str, between: str, thinking: str, before: str, after: str
) -> None:
    listed = between.join(shape.format(item, n=n) for n, item in enumerate(items, 1))
    read = items_of(thinking + before + listed + after, "list", cut=False, asked=Asked(len(items)))
    second = " Second line" if "Second" in shape else ""
    assert read.items == [item + second for item in items]
    assert (read.problem, bool(read.aside)) == ("unmarked_lines" if read.aside else "", bool(
        before or after))  # fmt: skip


fragments = st.sampled_from(
    ["<think>", "</think>", "[THINK]", "<|channel|>final<|message|>", "- ", "1. ", "2) ", "a b",
     "\n", "\n\n", "  ", "|", "---", "```", '"', "**", "*", "\u201c", "{", '"rows": [', "}", "]",
     "Row 1:", "\u2460", "\udce6", "x", ",", "<answer>"]
)  # fmt: skip


@given(st.lists(fragments, max_size=40).map("".join), st.integers(0, 4), st.booleans())
@settings(max_examples=500, deadline=None)
def test_no_text_is_too_odd_and_no_row_is_made_up(text: str, rows: int, cut: bool) -> None:
    for mode in ("list", "json_schema"):
        read = items_of(text, mode, cut=cut, asked=Asked(rows, "rows", frozenset({"text"})))
        for item in read.items if mode == "list" else ():
            words = item.split() if isinstance(item, str) else []
            assert all(word in text or word.strip("\\*_") in text for word in words)
    for mark in ("", "-", "3."):
        assert all(row.strip() for row in read_plain_list(text, cut=cut, continued=mark).rows)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("**Ticket 1**\nSubject: P\nBody: it leaks\n\n**Ticket 2**\nSubject: V\nBody: stuck",
         ["Subject: P Body: it leaks", "Subject: V Body: stuck"]),
        ("**Row 1**\n\nHi,\n\nIt leaks.\n\n**Row 2**\n\nHello,\n\nStuck.\n\nLet me know!",
         ["Hi, It leaks.", "Hello, Stuck."]),
        ("1. Hi.\nIt leaks.\n2. Hello.\nStuck.\n\nEnjoy!", ["Hi. It leaks.", "Hello. Stuck."]),
        ("1. it leaks\nLabel: pump\n2. stuck\nLabel: valve", ["it leaks", "stuck"]),
        ("- it leaks\n  *Tone: cross*\n- stuck\n  *Tone: calm*", ["it leaks", "stuck"]),
        ("1. Customer: hi\n   Agent: yes\n2. Customer: oh\n   Agent: no",
         ["Customer: hi Agent: yes", "Customer: oh Agent: no"]),
        ("- it leaks\n(cross)\n- stuck\n(calm)", ["it leaks", "stuck"]),
        ("- it leaks\n- stuck\nlet me know if you need more", ["it leaks", "stuck"]),
        ("\u2212 it leaks\n\u2212 stuck", ["it leaks", "stuck"]),
        ("\u30fb\u6f0f\u308c\n\u30fb\u97f3", ["\u6f0f\u308c", "\u97f3"]),
        ("Here:\n\u2705 it leaks\n\u2705 stuck", ["it leaks", "stuck"]),
        ("\u2192 it leaks\n\u2192 stuck", ["it leaks", "stuck"]),
        ("\u2705 it works\n\u274c it fails", ["\u2705 it works", "\u274c it fails"]),
        ("J. Smith called\nK. Jones wrote", ["J. Smith called", "K. Jones wrote"]),
        ("2023: it leaked\n2024: stuck", ["2023: it leaked", "2024: stuck"]),
        ('Here are two:\n\n"it leaks"\n\n"stuck"\n\nEnjoy!', ["it leaks", "stuck"]),
        ("<rows>\n<row>it leaks</row>\n<row>stuck</row>\n</rows>", ["it leaks", "stuck"]),
        ("<b>it</b> leaks\n<b>is</b> stuck", ["<b>it</b> leaks", "<b>is</b> stuck"]),
        ("* it leaks\n* stuck\n\n**Could you tell me:**\n\n* What tone?\n* Which line?",
         ["it leaks", "stuck"]),
        ("* it leaks\n* stuck\n\nMore of them:\n* loud", ["it leaks", "stuck", "loud"]),
        ("Here:\n```\nit leaks\nstuck\n```\nEnjoy!", ["it leaks", "stuck"]),
        ('Here:\n```json\n["it leaks", "stuck"]\n```\nEnjoy!', ["it leaks", "stuck"]),
        ('Here you are: ["it leaks", "stuck"]. Enjoy!', ["it leaks", "stuck"]),
        ("I can't create an account on it\nstuck", ["I can't create an account on it", "stuck"]),
    ],
)  # fmt: skip
def test_a_row_is_all_of_its_text_and_nothing_but_it(text: str, rows: list[str]) -> None:
    assert items_of(text, "list", cut=False, asked=Asked(2)).items == rows


def test_a_list_of_words_inside_the_one_row_is_part_of_it() -> None:
    text = 'the log says ["x"] again'
    assert items_of(text, "list", cut=False, asked=Asked(1)).items == [text]


def test_a_refusal_is_no_row_either_with_a_list_mark() -> None:
    text = "- I'm sorry, but I can't help with that."
    assert items_of(text, "list", cut=False, asked=Asked(5)).problem == "refused"
    assert items_of(text, "list", cut=False, asked=Asked(1)).items == [text[2:]]


# --- JSON -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "items", "complete"),
    [
        ('{"notes": ["n"], "rows": [{"text": "a"}]}', [{"text": "a"}], True),
        ('{"notes": ["n"], "ROWS": [{"text": "a"}]}', [{"text": "a"}], True),
        ('{"notes": ["n", "m"], "rows": [{"text": "a"}, {"te', [{"text": "a"}], False),
        ('{"notes": ["n", "m"', [], False),
        ('{"notes": ["n"], "tickets": [{"text": "a"}]}', [{"text": "a"}], True),
        ('{"tickets": [{"text": "a"}, {"text', [{"text": "a"}], False),
        ('{"tickets": ["a"]}', ["a"], True),
        ('{"name": "rows", "arguments": {"rows": ["a"]}}', ["a"], True),
        ('I need ["several"], so {"rows": ["a"]}', ["a"], True),
        ('Like {"notes": ["n", cut', [], False),
        ('{"text": "a"}', [{"text": "a"}], True),
        ('{"text": "a"}\n{"text": "b"}', [{"text": "a"}, {"text": "b"}], True),
        ('{"rows": {"text": "a"}}', [{"text": "a"}], True),
        ('{"result": {"status": "ok", "value": [1]}}', [], False),
        ('{"rows": ["a"]}\n{"rows": ["b"]}', ["a", "b"], True),
        ('```json\n{"rows": ["a"]}\n```\nand\n```json\n{"rows": ["b", "c', ["a", "b"], False),
        ('<tool_call>{"name": "rows", "arguments": {"rows": ["a"]}}</tool_call>\n'
         '<tool_call>{"name": "rows", "arguments": {"rows": ["b"]}}</tool_call>', ["a", "b"], True),
        ('[TOOL_CALLS] [{"name": "rows", "arguments": {"rows": ["a"]}}]', ["a"], True),
        ('[TOOL_CALLS]rows{"rows": ["a"]}', ["a"], True),
        ('[{"rows": ["a"]}, {"rows": ["b"]}]', ["a", "b"], True),
        ('{"rows": "[\\"a\\", \\"b\\"]"}', ["a", "b"], True),
        ('{"name": "rows", "arguments": "{\\"rows\\": [\\"a\\"]}"}', ["a"], True),
        ('"{\\"rows\\": [\\"a\\"]}"', ["a"], True),
        ('{"rows": ["it\\\'s", "b \\\\"]}', ["it's", "b \\"], True),
        ('{"type": "object", "properties": {"rows": {}}, "required": ["rows"]}', [], False),
    ],
)  # fmt: skip
def test_the_list_that_was_asked_for_wins(text: str, items: list[Any], complete: bool) -> None:
    assert salvage_json_list(text, key="rows", fields={"text"}) == (items, complete)


def test_a_text_under_another_name_is_a_text_when_it_is_the_only_one() -> None:
    assert texts([{"id": 1, "ticket": "a"}, {"a": "x", "b": "y"}, {"text": None, "b": "y"}]) == [
        "a"
    ]


# --- bodies ---------------------------------------------------------------------------------------


def body_of(message: dict[str, Any], finish: object = "stop", **usage: Any) -> bytes:
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


def read_body(body: bytes, **asked: Any) -> Decoded:
    parts = decoded("chat", body, asked)
    assert parts is not None
    return parts


@pytest.mark.parametrize(
    ("reason", "ending"),
    [
        *((name, ErrorKind.LENGTH) for name in (
            "length", "LENGTH", "max_tokens", "MAX_TOKENS", "model_length", "max_output_tokens",
            "FINISH_REASON_MAX_TOKENS", "FinishReason.MAX_TOKENS", "maxTokens", "token_limit",
            "max-tokens", " length ", "model_context_window_exceeded", "length_limit",
            "max_tokens_exceeded", "output_limit", "ResponseTruncated", "num_predict")),
        ("content_filter", ErrorKind.CONTENT_FILTER),
        ("SAFETY", ErrorKind.CONTENT_FILTER),
        *((name, "whole") for name in ("stop", "STOP", "eos", "end_turn", "tool_calls", "new")),
        *((name, None) for name in ("", "null", None)),
    ],
)  # fmt: skip
def test_a_finish_reason_is_known_by_all_of_its_names(reason: str | None, ending: object) -> None:
    assert ending_of(reason) == ending


@pytest.mark.parametrize("finish", [None, "", "unknown"])
@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_without_a_reason_an_answer_as_long_as_allowed_is_cut(finish: object, limit: str) -> None:
    message = {"role": "assistant", "content": "- a\n- b"}
    full = body_of(message, finish, prompt_tokens="?", completion_tokens=8)
    assert read_body(full, **{limit: 8}).error is ErrorKind.LENGTH
    assert read_body(full, **{limit: 9}).error is None
    assert read_body(full).error is None
    assert read_body(body_of(message, "stop", completion_tokens=8), **{limit: 8}).error is None


FORCED = {"tool_choice": {"type": "function", "function": {"name": "rows"}}}


def call(name: str | None, arguments: object) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("message", "rows"),
    [
        ({"content": "I will.", "tool_calls": [call("rows", '{"rows": ["a"]}')]}, ["a"]),
        (
            {"content": None, "tool_calls": [call("rows", '{"rows": ["a"]}'), call("x", "{}"),
                                             call("functions.rows:1", {"rows": ["b"]})]},
            ["a", "b"],
        ),
        ({"tool_calls": [call(None, '{"rows": ["a"]}')]}, ["a"]),
        ({"tool_calls": [call("rows", '{"text": "a"}'), call("rows", '{"text": "b"}')]},
         [{"text": "a"}, {"text": "b"}]),
        ({"tool_calls": [call("rows", '{"rows": ["a", "x'), call("rows", '{"rows": ["b"]}')]},
         ["a", "b"]),
        ({"content": "x", "tool_calls": [{"name": "rows", "arguments": '{"rows": ["a"]}'}]}, ["a"]),
        ({"tool_calls": [{"function": {"name": "rows", "parameters": {"rows": ["a"]}}}]}, ["a"]),
        ({"function_call": {"name": "rows", "arguments": '{"rows": ["a"]}'}}, ["a"]),
        ({"content": '{"rows": ["a"]}', "tool_calls": [call("search", '{"rows": ["z"]}')]}, ["a"]),
        ({"content": '{"rows": ["a"]}', "tool_calls": None}, ["a"]),
    ],
)  # fmt: skip
def test_all_calls_of_the_function_count_and_prose_beside_them_does_not(
    message: dict[str, Any], rows: list[Any]
) -> None:
    parts = read_body(body_of({"role": "assistant", **message}), **FORCED)
    asked = Asked(2, "rows", frozenset({"text"}))
    assert items_of(parts.text, "tool", cut=False, asked=asked).items == rows


def test_prose_is_the_answer_where_no_function_was_asked_for() -> None:
    message = {"content": "- a", "tool_calls": [call("rows", '{"rows": ["b"]}')]}
    assert read_body(body_of(message)).text == "- a"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
          {"type": "text", "text": "- a"}], "- a"),
        ([{"type": "reasoning", "text": "hm"}, {"text": "- a"}], "- a"),
        ([{"text": "hm", "thought": True}, {"type": "output_text", "text": "- a"}], "- a"),
        (["- a", {"type": "text", "text": {"value": "\n- b"}}], "- a\n- b"),
        ({"type": "text", "text": "- a"}, "- a"),
    ],
)  # fmt: skip
def test_thinking_in_a_part_of_the_content_is_no_text(content: Any, text: str) -> None:
    assert read_body(body_of({"content": content, "reasoning": "hm"})).text == text


@pytest.mark.parametrize(
    ("written", "text", "error"),
    [
        (rb"- a \ud83d- \"b\" \\ud83d", '- a - "b" \\ud83d', None),
        (rb"- a \ude00", "- a ", None),
        (rb"- a \ud83d\ude00", "- a \N{GRINNING FACE}", None),
        (b"- a \xf0\x9f\x98", "- a ", None),
        (b"- a \xed\xa0\xbd", "- a ", None),
        (b"- ni\xf1o", "- ni\N{REPLACEMENT CHARACTER}o", ErrorKind.MALFORMED),
        (b"- a \xff", "- a \N{REPLACEMENT CHARACTER}", ErrorKind.MALFORMED),
    ],
)
def test_half_an_emoji_is_mended_and_a_lost_letter_is_told(
    written: bytes, text: str, error: ErrorKind | None
) -> None:
    body = body_of({"content": "@"}).replace(b"@", written)
    parts = read_body(body)
    assert (parts.text, parts.error) == (text, error)


@pytest.mark.parametrize("half", [rb"\ud83d", rb"\udce6"])
@pytest.mark.parametrize("letter", [b"a", b"\xff"])
def test_half_an_emoji_in_a_batch_loses_no_answer(
    half: bytes, letter: bytes, tmp_path: Path
) -> None:
    body = body_of({"content": "@"}).replace(b"@", b"- " + letter + b" " + rb"\ud83d")
    line = b'{"custom_id": "1", "response": {"status_code": 200, "body": %b}}\n'
    path = tmp_path / "results.jsonl"
    path.write_bytes(line % body.replace(rb"\ud83d", half if letter == b"a" else rb"\ud83d"))
    (result,) = read_results(path)
    assert result is not None
    parts = read_body(result.body)
    assert parts.text == ("- a " if letter == b"a" else "- \N{REPLACEMENT CHARACTER} ")
    assert parts.error is (None if letter == b"a" else ErrorKind.MALFORMED)


@given(st.binary(max_size=80), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_body_is_survived(noise: bytes, inside: bool) -> None:
    body = body_of({"content": "@"}).replace(b"@", noise) if inside else noise
    parts = decoded("chat", body, FORCED | {"max_tokens": 3})
    assert parts is None or parts.text is None or parts.text.encode() is not None


def test_an_answer_of_before_is_read_by_the_rules_of_today_and_stays_an_error_if_it_was_one(
    server: ServerState, tmp_path: Path
) -> None:
    answer = answer_in("list", server, tmp_path / "l", "losing: cut: MAX_TOKENS")
    kept = StoredAnswer(
        answer.request_id, answer.raw, 200, "ok", "MAX_TOKENS", 1, 1, None, 1, 1.0, b""
    )
    again = replayed(answer.request, kept)
    assert again is not None
    assert again.error is ErrorKind.LENGTH
    refused = replayed(answer.request, kept._replace(outcome="refused"))
    assert refused is not None
    assert refused.error is ErrorKind.REFUSED
