"""The card of a Hugging Face dataset folder: a YAML header for machines, a text for people.

Descriptions, labels, prompts, licences and sentences are somebody else's text. In the header every
text is one quoted scalar on one line; in the body it is an escaped line, a table cell, or the
inside of a fence longer than any run of backticks in it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import polars as pl
import yaml

from synth_assets.lifecycle import licenses
from synth_assets.lifecycle.release import imports, partition_text
from synth_assets.report.tables import escape_markdown, markdown_table, plain

MAX_TEXT_CHARS = 4_000
MAX_LABEL_ROWS = 200
TASK_CATEGORIES = {"classification": "text-classification"}
# Identifiers of the Hub that say what a common licence text says; any other text is "other".
LICENSES = frozenset(
    {
        *("cc0-1.0", "cc-by-4.0", "cc-by-3.0", "cc-by-sa-4.0", "cc-by-sa-3.0", "cc-by-nc-4.0"),
        *("cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "cc-by-nd-4.0"),
        *("odbl", "odc-by", "pddl"),
        *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "lgpl-3.0"),
        *("agpl-3.0", "mpl-2.0", "unlicense"),
    }
)
_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
)
# Of releases that do not say more.
BY_HASH = (
    "They were put on the training or evaluation side by a hash, before anything else looked at "
    "them;\nnear-copies across sides were set aside."
)
_BARE = re.compile(r"[A-Za-z][A-Za-z0-9_./*-]*")


def header(
    *,
    manifest: Mapping[str, Any],
    kind: str,
    rows: Mapping[str, int],
    features: Sequence[Mapping[str, Any]],
    synthetic: bool,
    by_source: Mapping[str, int] | None = None,
) -> str:
    """The YAML header with its two ``---`` lines. ``rows``: split -> rows, of splits with any.

    ``by_source``: rows by the name of the source they come from.
    """
    fields: dict[str, Any] = {
        "pretty_name": plain(manifest["dataset"]),
        **_license(licenses.shares(sources_of(manifest["declared"]), by_source)),
        "size_categories": [_size(sum(rows.values()))],
    }
    if kind in TASK_CATEGORIES:
        fields["task_categories"] = [TASK_CATEGORIES[kind]]
    if synthetic:
        fields["tags"] = ["synthetic"]
    fields["configs"] = [
        {
            "config_name": "default",
            "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in rows],
        }
    ]
    fields["dataset_info"] = {
        "features": [dict(feature) for feature in features],
        "splits": [{"name": split, "num_examples": count} for split, count in rows.items()],
    }
    text = yaml.dump(fields, Dumper=_OneLine, sort_keys=False, width=float("inf"))
    return f"---\n{text}---\n"


class _OneLine(yaml.SafeDumper):
    """YAML whose texts are bare words, or double-quoted on one line with escapes."""


def _scalar(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Of bare words, some mean true, null or a number: those are quoted too.
    tag = "tag:yaml.org,2002:str"
    resolved = dumper.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    bare = _BARE.fullmatch(text) and resolved == tag
    return dumper.represent_scalar(tag, text, style=None if bare else '"')


_OneLine.add_representer(str, _scalar)


def _license(found: Sequence[licenses.Share]) -> dict[str, str]:
    """One licence as the Hub knows it; of a mix, every licence with its sources and rows."""
    named = [share.license for share in found if share.license]
    text = named[0] if named else ""
    details = {"license_details": plain(licenses.told(found), max_chars=MAX_TEXT_CHARS)}
    if len(named) > 1:
        return {"license": "other", "license_name": "mixed", **details}
    name = licenses.same(text)
    if not name:
        return {"license": "unknown"}
    if name in LICENSES:
        # Of the other sources nothing is known: that is no licence, and is told.
        return {"license": name, **(details if licenses.is_mix(found) else {})}
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].strip("-")
    said = details if licenses.is_mix(found) else {"license_details": plain(text)}
    return {"license": "other", "license_name": slug or "custom", **said}


def _size(rows: int) -> str:
    return next((name for limit, name in _SIZES if rows < limit), "1B<n<10B")


def body(
    *,
    manifest: Mapping[str, Any],
    composition: pl.DataFrame,
    strata: pl.DataFrame,
    contribution: pl.DataFrame,
    empty: Sequence[str] = (),
    by_source: Mapping[str, int] | None = None,
) -> str:
    """The text of the card.

    ``composition``: split, human, synthetic, rows. ``strata``: class number (where rows hold
    numbers), stratum, then a count per split and origin. ``contribution``: the release's table.
    ``empty``: splits left out, without rows. ``by_source``: as in ``header``.
    """
    declared = manifest["declared"]
    left_out = f"\nWithout rows and left out: {', '.join(empty)}.\n" if empty else ""
    return f"""# {escape_markdown(manifest["dataset"])}

{_text(manifest["description"])}

Release `{manifest["version"]}`. {_what(manifest)}

## Composition

{markdown_table(composition)}
{left_out}
{markdown_table(strata, max_rows=MAX_LABEL_ROWS)}

`weight` is what a row counts in training. `source` and `source_row` lead to a human row in its
source; `request_id`, `item`, `seed_ids`, `prompt_version`, `model`, `cell` and `attributes` to the
call that wrote a synthetic one.

## How it was made

Human rows come from {_origins(sources_of(declared, "human"))}.
{partition_text(manifest) or BY_HASH}
{_mix(declared, by_source)}
{_written(manifest)}{_imported(declared)}{_screened(manifest)}

## Measured contribution

{_text(manifest["contribution"]["sentence"])}

{markdown_table(arms(contribution))}

`low` and `high` are the ends of 95 % intervals. The student is
{escape_markdown(str(declared["measure"]["student"]))}; another model may gain more or less.

## Checks

{_checks(manifest["checks"])}

## Limitations

{_of_synthetic(manifest)}- Human labels are as good as their source. Evaluation rows are of that
  source too and say nothing about data from elsewhere.
- The sources' licences are for the rows that come from them.{_providers(manifest)}
"""


def _none(manifest: Mapping[str, Any]) -> bool:
    """Whether the dataset is declared to have human rows only."""
    return manifest["model"].get("name") is None and not imports(manifest["declared"])


def _what(manifest: Mapping[str, Any]) -> str:
    if _none(manifest):
        return "Human rows only: nothing was generated or imported."
    return (
        "Human rows and rows written by a language model for the same task;\n"
        "`origin` tells the two apart in every row, and evaluation rows are human only."
    )


def _written(manifest: Mapping[str, Any]) -> str:
    """A paragraph about the rows that were generated; nothing where none were."""
    model = manifest["model"]
    if model.get("name") is None:
        return ""
    sampling = ", ".join(f"{k} {v}" for k, v in model.items() if k not in ("name", "endpoint"))
    return (
        f"Synthetic rows were written by {escape_markdown(model['name'])} "
        f"({escape_markdown(sampling)}), with\n"
        "this prompt template; the examples in it were hand-written or human rows of the training "
        f"side:\n\n{fenced(manifest['prompt'])}\n\n"
    )


def _screened(manifest: Mapping[str, Any]) -> str:
    if _none(manifest):
        return "No synthetic row was added."
    return (
        "Synthetic rows were then screened for length, repetition and closeness to\n"
        "evaluation and validation rows."
    )


def _of_synthetic(manifest: Mapping[str, Any]) -> str:
    """Limitations of synthetic rows; nothing where there are none."""
    if _none(manifest):
        return ""
    if manifest["model"].get("name") is None:
        habits = "the habits of the models that wrote them"
    else:
        habits = "the habits of one model and one prompt"
    return (
        "- A synthetic row has the label its model was asked for; no person has confirmed it.\n"
        f"- Synthetic rows share {habits}: their variety, their facts and what\n"
        "  they leave out are not those of real data.\n"
    )


def _providers(manifest: Mapping[str, Any]) -> str:
    if _none(manifest):
        return ""
    return (
        " What a model's provider allows to be done with its\n  output has to be looked up there."
    )


def sources_of(declared: Mapping[str, Any], role: str = "") -> list[Mapping[str, Any]]:
    """The declared sources of one role, or of any; releases of old say no role."""
    single = declared.get("source")
    found = [single] if single else list(declared.get("sources") or [])
    return [source for source in found if role in ("", source.get("role") or "human")]


def origin(source: Mapping[str, Any]) -> str:
    """What may be said of a source in public: a package or a file's name, no address or folder."""
    if source.get("package"):
        return str(source["package"])
    if source.get("path"):
        return PurePath(str(source["path"]).replace("\\", "/")).name
    return f"a {source['kind']} source"


def arms(contribution: pl.DataFrame) -> pl.DataFrame:
    """The overall scores of a contribution table: arm, metric, value, low, high, n."""
    return contribution.filter(
        (pl.col("scope") == "overall")
        & pl.col("value").is_not_null()
        & ~pl.col("metric").is_in(["verdict", "rows"])
    ).select("arm", "metric", "value", "low", "high", "n")


def fenced(text: str) -> str:
    """``text`` as a code block that nothing in it can end; control characters become blanks."""
    text = "".join(c if _shows(c) else " " for c in re.sub(r"\r\n?", "\n", text)).rstrip()
    runs = re.findall(r"`+", text)
    fence = "`" * max(3, 1 + max(map(len, runs), default=0))
    return f"{fence}jinja\n{text}\n{fence}"


def _shows(one: str) -> bool:
    return one in "\t\n" or unicodedata.category(one) not in {"Cc", "Cf", "Zl", "Zp"}


def _text(text: str) -> str:
    return escape_markdown(text, max_chars=MAX_TEXT_CHARS)


def _mix(declared: Mapping[str, Any], by_source: Mapping[str, int] | None) -> str:
    """A paragraph about licences that differ; nothing where there is one."""
    found = licenses.shares(sources_of(declared), by_source)
    if not licenses.is_mix(found):
        return ""
    return (
        f"\nThe licences are mixed: {_text(licenses.told(found))}.\n"
        "`source` says of every row where it comes from, and so which of them it is under.\n"
    )


def _origins(sources: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{escape_markdown(origin(source))} ({_license_text(source)})" for source in sources
    )


def _imported(declared: Mapping[str, Any]) -> str:
    """A paragraph about rows that no call of ours wrote; nothing where there are none."""
    sources = sources_of(declared, "synthetic")
    if not sources:
        return ""
    return (
        "Synthetic rows whose `request_id` begins with `import:` existed before. They come from\n"
        f"{_origins(sources)}; `source` and `source_row` lead to them,\n"
        "`model` and `seed_ids` say who wrote them and from which rows, as far as it is known.\n\n"
    )


def _license_text(source: Mapping[str, Any]) -> str:
    text = str(source.get("license") or "")
    return f"licence: {escape_markdown(text)}" if text else "no licence declared"


def _checks(checks: Mapping[str, bool]) -> str:
    said = {True: "passed", False: "NOT PASSED"}
    lines = [f"- {said[bool(ok)]}: {escape_markdown(name)}" for name, ok in checks.items()]
    return "\n".join(lines) or "None were recorded."
