"""An audit as a tree for a terminal. Every text in it is untrusted and made harmless."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.tree import Tree

from synth_assets.audit.calls import Call
from synth_assets.audit.rows import Audit
from synth_assets.lifecycle.lineage import Row
from synth_assets.terminal import plain

MOST = 10
SHORT = 12
MOST_CHARS = 200
# Told elsewhere in the tree, or too long to be told beside a stage.
_ELSEWHERE = frozenset(
    {"record_id", "seed_ids", "prompt", "system", "request_id", "reason", "detail", "group"}
)


def audit_tree(audit: Audit) -> Tree:
    """Where it stands, why it was rejected, what it was made from and what came of it."""
    found = audit.trace
    head = f"[bold]{found.reference.kind} {plain(found.reference.id)}[/] of {plain(audit.dataset)}"
    tree = Tree(f"{head} [dim]({plain(audit.found_in)})[/]", guide_style="dim")
    _stands(tree, audit)
    _reasons(tree, audit)
    for call in audit.calls[:MOST]:
        _call(tree, call)
    _cut(tree, audit.calls, "calls")
    _plan(tree, found.behind.plan)
    _seeds(tree, audit)
    own = _source_rows(audit, found.stands)
    if own:
        branch = tree.add("[bold]source rows[/]")
        for row in own:
            branch.add(_raw_line(row))
    _written(tree, audit)
    _releases(tree, audit)
    for note in audit.notes:
        tree.add(f"[yellow]{plain(note)}[/]")
    return tree


def _stands(tree: Tree, audit: Audit) -> None:
    branch = tree.add("[bold]stands in[/]")
    several = max(map(len, audit.trace.stands.values()), default=0) > 1
    told: set[tuple[str, str]] = set()  # of one row, what an earlier stage has told already
    for stage, rows in audit.trace.stands.items():
        version = audit.versions[stage][:SHORT]
        for row in rows[:MOST]:
            new = {k: v for k, v in row.items() if several or (k, str(v)) not in told}
            told |= {(k, str(v)) for k, v in row.items()}
            branch.add(f"[cyan]{plain(stage)}[/] [dim]{version}[/] {_cells(new)}")
        _cut(branch, rows, f"rows of {plain(stage)}")


def _reasons(tree: Tree, audit: Audit) -> None:
    for stage, rows in audit.trace.stands.items():
        for row in [one for one in rows if one.get("reason")][:MOST]:
            why = plain(row["reason"])
            told = f": {plain(row['detail'])}" if row.get("detail") else ""
            branch = tree.add(f"[bold red]not used[/] ({plain(stage)}): {why}{told}")
            for name, by_stage in audit.trace.behind.named.items():
                if str(row.get("detail") or "").endswith(name):
                    where = ", ".join(map(plain, by_stage))
                    branch.add(f"{name[:SHORT]} ({where}) {_quoted(_text_of(by_stage))}")


def _call(tree: Tree, call: Call) -> None:
    branch = tree.add(
        f"[bold]call[/] {plain(call.request_id)}: {plain(call.model)} at {plain(call.endpoint)}"
    )
    took = "" if call.latency_ms is None else f", took {call.latency_ms:,.0f} ms"
    cost = "no price" if call.cost_usd is None else f"{call.cost_usd:.6f} USD"
    tokens = f"{_known(call.prompt_tokens)} tokens in, {_known(call.completion_tokens)} out"
    when = call.started_at[:19].replace("T", " ")
    branch.add(
        f"{when} UTC{took}, attempts: {call.attempts}; {plain(call.outcome)}, finish reason "
        f"{plain(call.finish_reason or '?')}; {tokens}, {cost}"
    )
    for message in call.messages:
        branch.add(f"[bold]{plain(message['role'])}[/]\n{_lines(message['text'])}")
    text = call.answer if call.answer is not None else call.response
    branch.add(f"[bold]answer[/] {'' if call.answer is not None else '(body)'}\n{_lines(text)}")


def _plan(tree: Tree, entries: Sequence[Row]) -> None:
    for entry in entries[:MOST]:
        tree.add(
            f"[bold]plan[/] {plain(entry['cell'])}/{entry['ordinal']}: {entry['rows']} rows asked, "
            f"sample {entry['sample']}, attributes {plain(entry['attributes'])}, "
            f"prompt {plain(entry['prompt_version'])}"
        )
    _cut(tree, entries, "entries of the plan")


def _seeds(tree: Tree, audit: Audit) -> None:
    parents = audit.trace.behind.parents
    if not parents:
        return
    branch = tree.add("[bold]seeds[/] (what its prompt showed)")
    for name, by_stage in list(parents.items())[:MOST]:
        first = next((row for rows in by_stage.values() for row in rows), {})
        origin = plain(first.get("origin") or "not found")
        line = branch.add(f"{plain(name[:SHORT])} [dim]{origin}[/] {_quoted(_text_of(by_stage))}")
        for row in _source_rows(audit, by_stage):
            line.add(_raw_line(row))
    _cut(branch, list(parents), "seeds")


def _written(tree: Tree, audit: Audit) -> None:
    written = audit.trace.written
    if not written.plan and not written.rows:
        return
    counts = ", ".join(f"{len(rows):,} in {plain(stage)}" for stage, rows in written.rows.items())
    branch = tree.add(
        f"[bold]written from prompts that showed it[/]: {len(written.plan):,} planned calls"
        f"{'; rows: ' + counts if counts else ''}"
    )
    for stage, rows in written.rows.items():
        if "record_id" not in rows[0]:
            continue
        for row in rows[:MOST]:
            branch.add(f"{row['record_id'][:SHORT]} [dim]{plain(stage)}[/] {_quoted(_texts(row))}")
        _cut(branch, rows, f"rows of {plain(stage)}")


def _releases(tree: Tree, audit: Audit) -> None:
    if not audit.releases:
        tree.add("[bold]releases[/]: none holds it")
        return
    branch = tree.add("[bold]releases[/]")
    for one in audit.releases:
        current = " (current)" if one.current else ""
        splits = ", ".join(one.splits) or "not itself"
        rows = f"; {len(one.descendants):,} rows written from it" if one.descendants else ""
        branch.add(f"{one.version}{current}: {splits}{rows}")


# --- texts ----------------------------------------------------------------------------------


def _cells(row: Row) -> str:
    known = {
        name: value
        for name, value in row.items()
        if value is not None and name not in _ELSEWHERE and not isinstance(value, list)
    }
    return ", ".join(f"[dim]{plain(name)}[/] {_short(value)}" for name, value in known.items())


def _raw_line(row: Row) -> str:
    cells = {name: value for name, value in row.items() if name not in ("_source", "_row")}
    cells = {"load id": cells.pop("_load_id", None)} | cells
    return f"{plain(row['_source'])}:{row['_row']} {_cells(cells)}"


def _source_rows(audit: Audit, by_stage: Mapping[str, Sequence[Row]]) -> list[Row]:
    wanted = {
        (row.get("source"), row.get("source_row")) for rows in by_stage.values() for row in rows
    }
    wanted |= {(row.get("_source"), row.get("_row")) for row in by_stage.get("human_raw", ())}
    return [row for row in audit.trace.behind.sources if (row["_source"], row["_row"]) in wanted]


def _text_of(by_stage: Mapping[str, Sequence[Row]]) -> str:
    return next((_texts(row) for rows in by_stage.values() for row in rows), "")


def _texts(row: Row) -> str:
    """The longest text of a row that is no id: what a person knows it by."""
    texts = (v for k, v in row.items() if isinstance(v, str) and k not in {*_ELSEWHERE, "raw"})
    return max(texts, key=len, default="")


def _quoted(text: str) -> str:
    return f'"{_short(text)}"'


def _short(value: object) -> str:
    text = str(value)
    return plain(text if len(text) <= MOST_CHARS else text[: MOST_CHARS - 1] + "…")


def _lines(text: str) -> str:
    return "\n".join(map(plain, text.splitlines()))


def _known(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def _cut(branch: Tree, items: Sequence[Any], what: str) -> None:
    if len(items) > MOST:
        branch.add(f"[dim]... and {len(items) - MOST:,} more {what}: --json has all[/]")
