"""``synth sql``: the views are right, and a query can read them and nothing else."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import orjson
import polars as pl
import pytest
from click.testing import CliRunner, Result

from synth_assets.audit.rows import auditor
from synth_assets.audit.sql_guard import QueryError, checked
from synth_assets.cli import main
from synth_assets.llm.identity import canonical_request
from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.llm.ledger.rows import CallRow
from synth_assets.llm.sync import run_sync
from synth_assets.settings import Home
from synth_assets.terminal import opened_instance
from tests.datasets import DatasetFolder
from tests.openai_server import running_server
from tests.postgres import _started, postgres_url  # noqa: F401
from tests.release_support import KEY, Place
from tests.test_run import Ran, run, synth

FORMULA = "=HYPERLINK(1) is what my invoice said for order 99"
HOSTILE = "\x1b[2J[bold red]locked out of the profile[/] '; drop table x; -- \u2028 again"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One released dataset whose home's path needs quoting."""
    made = Place(tmp_path_factory.mktemp("it's a [h]ome *"))
    for name in ("home", "dagster", "defs"):
        (made.root / name).mkdir()
    (made.root / "dagster" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    folder = DatasetFolder(made.dataset)
    folder.rows += [{"body": FORMULA, "topic": "billing"}, {"body": HOSTILE, "topic": "login"}]
    folder.write()
    with pytest.MonkeyPatch.context() as patch, running_server(api_key=KEY) as server:
        made.enter(patch)
        patch.setenv("OPENAI_BASE_URL", server.base_url)
        patch.setenv("OPENAI_API_KEY", KEY)
        ran = run()
        assert ran.code == 0, ran.errors
        yield made


def ask(query: str, *words: str) -> list[dict[str, object]]:
    ran = printed("tickets", query, "--format", "json", *words)
    assert ran.exit_code == 0, ran.stderr
    rows: list[dict[str, object]] = json.loads(ran.stdout)
    return rows


def printed(*words: str, given: str = "") -> Result:
    return CliRunner().invoke(main, ["sql", *words], input=given, catch_exceptions=False)


def refused(query: str) -> Ran:
    ran = synth("sql", "tickets", query)
    assert ran.code == 2, ran.result.stdout
    assert "Traceback" not in ran.errors
    assert "fix:" in ran.errors
    return ran


def stored(place: Place, stage: str) -> pl.DataFrame:
    return pl.read_parquet(place.table(stage, place.current), glob=False)


# --- views ------------------------------------------------------------------------------------


def test_every_stage_is_a_view_of_its_latest_table(place: Place) -> None:
    listed = json.loads(synth("sql", "--format", "json").result.stdout)
    rows = {one["view"]: one["rows"] for one in listed}
    stages = {p.name for p in (place.home / "store" / "tickets").iterdir() if p.is_dir()}
    assert rows.keys() >= {f"tickets.{stage}" for stage in stages}
    for stage in stages - {"release"}:
        assert rows[f"tickets.{stage}"] == stored(place, stage).height
        columns = [one["column"] for one in listed if one["view"] == f"tickets.{stage}"]
        assert columns == stored(place, stage).columns
    assert rows.keys() >= {"releases", "calls", "call_texts", "lineage"}


def test_a_query_over_all_datasets_names_the_dataset(place: Place) -> None:
    found = synth("sql", "select count(*) n from tickets.train", "--format", "json").result.stdout
    assert json.loads(found) == [{"n": stored(place, "train").height}]


def test_with_a_dataset_its_stages_need_no_name_before_them(place: Place) -> None:
    expected = dict(stored(place, "train").group_by("label").len().iter_rows())
    rows = ask("select label, count(*) n from train group by all")
    assert {row["label"]: row["n"] for row in rows} == expected


def test_releases_has_a_row_per_file(place: Place) -> None:
    rows = {row["file"]: row for row in ask("select * from releases where current")}
    manifest = place.manifest(place.current)
    assert rows.keys() == manifest["files"].keys()
    assert rows["train.parquet"]["split"] == "train"
    assert rows["train.parquet"]["rows"] == stored(place, "train").height
    assert rows["train.parquet"]["data_version"] == place.table("train", place.current).stem
    for name, one in manifest["files"].items():
        assert (rows[name]["sha256"], rows[name]["bytes"]) == (one["sha256"], one["bytes"])


def test_calls_and_their_texts_are_those_of_the_ledger(place: Place) -> None:
    rows = ask("select * from calls join call_texts using (request_id)")
    with Ledger.open(place.home / "ledger" / "ledger.sqlite") as ledger:
        calls = {row["request_id"]: ledger.call(str(row["request_id"])) for row in rows}
        count = ledger.query("SELECT count(*) FROM calls")[0][0]
    assert len(rows) == count
    for row in rows:
        call = calls[row["request_id"]]
        assert call is not None
        assert str(row["response"]).encode() == call.response
        assert row["request"] == call.request.decode()
        assert row["prompt"] == orjson.loads(call.request)["body"]["messages"][0]["content"]
        assert (row["prompt_tokens"], row["outcome"]) == (call.prompt_tokens, call.outcome)
        assert row["latency_ms"] == call.latency_ms
    (moment,) = ask("select epoch(max(started_at)) t from calls")
    assert moment["t"] == pytest.approx(max(c.started_at for c in calls.values() if c), abs=1e-5)


def test_lineage_leads_from_every_training_row_to_where_it_came_from(place: Place) -> None:
    edges = ask("select * from lineage where child_stage = 'train'")
    found = {(e["child_id"], e["kind"], e["parent_stage"], e["parent_id"]) for e in edges}
    expected = set()
    for row in stored(place, "train").iter_rows(named=True):
        if row["origin"] == "human":
            source = f"{row['source']}:{row['source_row']}"
            expected.add((row["record_id"], "source_row", "human_raw", source))
        else:
            expected.add((row["record_id"], "call", "calls", row["request_id"]))
            expected |= {(row["record_id"], "seed", "seeds", one) for one in row["seed_ids"]}
    assert found == expected


def test_lineages_ids_are_those_that_trace_takes(place: Place) -> None:
    per_kind = "select distinct on (child_stage, kind) * from lineage"
    edges = ask(per_kind)
    with opened_instance() as instance, auditor(Home(place.home), instance, "tickets") as audits:
        for edge in edges:
            assert edge["child_stage"] in audits.trace(str(edge["child_id"])).trace.stands
            parent = audits.trace(str(edge["parent_id"])).trace
            assert edge["parent_stage"] in (*parent.stands, "calls")
    assert {edge["kind"] for edge in edges} == {"source_row", "plan", "seed", "call"}


def test_a_dataset_that_was_never_run_has_no_views_and_breaks_none(place: Place) -> None:
    folder = DatasetFolder(place.root / "defs" / "fresh")
    folder.write()
    try:
        assert ask("select count(*) n from train")[0]["n"] == stored(place, "train").height
        assert json.loads(synth("sql", "fresh", "--format", "json").result.stdout)
    finally:
        for path in folder.folder.iterdir():
            path.unlink()
        folder.folder.rmdir()


def test_a_postgres_ledger_is_read_the_same_way(
    place: Place,
    postgres_url: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "from postgres"}]}
    request = canonical_request("chat", "here", body, 0)
    answer = orjson.dumps({"choices": [{"message": {"content": "an answer"}}]})
    call = CallRow(
        "ab" * 32, "tickets", "here", "m", request, answer, 200, "ok", "stop", 3, 4, None, None, 1,
        1_700_000_000.5, 12.0,
    )  # fmt: skip
    with Ledger.open(postgres_url) as ledger:
        run_sync(ledger.put(call))
    monkeypatch.setenv("SYNTH_LEDGER_URL", postgres_url)
    (row,) = ask("select prompt, answer, epoch(started_at) t from calls join call_texts using "
                 "(request_id)")  # fmt: skip
    assert row == {"prompt": "from postgres", "answer": "an answer", "t": 1_700_000_000.5}


# --- locked down ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "select * from read_text('/etc/passwd')",
        "select * from read_csv('/etc/passwd')",
        "select * from '/etc/passwd'",
        "select * from glob('/etc/*')",
        "select * from parquet_metadata('/etc/passwd')",
        "select * from read_parquet('https://127.0.0.1:9/x.parquet')",
        "select * from read_csv('s3://bucket/x.csv')",
        "copy (select 1) to '{out}'",
        "copy train to '{out}' (format parquet)",
        "export database '{out}'",
        "attach '{out}' as other",
        "attach '{home}/landing/tickets/landed.duckdb' as other",
        "install httpfs",
        "load sqlite",
        "set memory_limit = '1GB'",
        "set enable_external_access = true",
        "reset lock_configuration",
        "pragma enable_profiling",
        "create table x as select 1",
        "drop view tickets.train",
        "create secret (type s3)",
        "call enable_logging('QueryLog', storage = 'file', storage_path = '{out}')",
        "select * from enable_logging('QueryLog', storage = 'file', storage_path = '{out}')",
        "select * from duckdb_secrets()",
        "select * from python_map_function(1)",
        "select * from arrow_scan(1, 2, 3)",
        "select 1; select 2",
        "explain analyze copy (select 1) to '{out}'",
        "prepare q as select 1",
        "with a as (copy (select 1) to '{out}') select * from a",
        "with a as (copy (select 1) to '{table}' (use_tmp_file false)) select * from a",
        "select * from query('with a as (copy (select 1) to ''{out}'') select 1')",
    ],
)
def test_a_query_can_do_nothing_but_read_the_views(
    place: Place, tmp_path: Path, query: str
) -> None:
    out, table = tmp_path / "out", place.table("train", place.current)
    before = table.read_bytes()
    errors = refused(query.format(out=out, home=place.home, table=table)).errors
    assert "root:" not in errors
    assert not out.exists()
    assert table.read_bytes() == before


def test_sql_that_hides_in_json_is_not_run(place: Place) -> None:
    import duckdb

    table = place.table("train", place.current)
    before = table.read_bytes()
    write = f"with a as (copy (select 1) to '{table}' (use_tmp_file false)) select 1"
    hidden = duckdb.execute("select json_serialize_sql(?)", [write.replace("'", "'")]).fetchone()
    assert hidden is not None
    quoted = str(hidden[0]).replace("'", "''")
    refused(f"select * from json_execute_serialized_sql('{quoted}')")  # noqa: S608
    refused(f"from main.JSON_EXECUTE_SERIALIZED_SQL('{quoted}')")
    assert table.read_bytes() == before


def test_settings_hold_even_if_a_query_gets_past_the_check(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synth_assets.audit.warehouse.checked", lambda query: query)
    for query in (
        "select * from read_text('/etc/passwd')",
        f"copy (select 1) to '{tmp_path}/out'",
        f"attach '{tmp_path}/out'",
        "install httpfs",
        "set threads = 1",
        "select * from place",
    ):
        ran = synth("sql", "tickets", query)
        assert ran.code == 2, query
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "query",
    [
        "from train",
        "describe train",
        "summarize train",
        "show all tables",
        "values (1, 'x')",
        "with recursive t as (select 1 a union all select a + 1 from t where a < 5) from t",
        "select * from (select 1 a union all select 2) where a in (select unnest([1, 2]))",
        "select label, rank() over (order by count(*)) from train group by label",
        "select * from range(3), generate_series(1, 2)",
        "pivot train on label in ('billing') using count(*) group by origin",
        "select key from json_each('{\"a\": 1}')",
        "select seed_ids, cast(1 as hugeint), interval 1 day, map {'a': 1}, null, 'x'::blob from "
        "synthetic limit 1",
        "select 1 as a, 2 as a",
        "/* a remark */ select 1 -- and another",
    ],
)
def test_whatever_only_reads_may_be_asked(place: Place, query: str) -> None:
    assert ask(query)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("selec 1", "syntax error"),
        ("select nope from train", "nope"),
        ("select * from nope", "nope"),
        ("select 1 / 'x'", "x"),
        ("   ", "empty"),
        ("/* only a remark */", "nothing"),
        ("select 'unended", ""),
    ],
)
def test_a_mistake_is_one_clear_error(place: Place, query: str, words: str) -> None:
    assert words in refused(query).errors


def test_a_query_that_is_no_text_is_refused() -> None:
    with pytest.raises(QueryError):
        checked("select '\ud800'")


# --- in and out -------------------------------------------------------------------------------


def test_a_query_comes_from_a_file_or_from_standard_input(place: Place, tmp_path: Path) -> None:
    (tmp_path / "q.sql").write_text("select 41 + 1 as n")
    ran = printed("tickets", "-f", str(tmp_path / "q.sql"), "--format", "csv")
    assert ran.stdout == '"n"\n42\n'
    for words in (["-"], ["-f", "-"], ["tickets", "-"]):
        ran = printed(*words, "--format", "csv", given="select 7 as n")
        assert ran.stdout == '"n"\n7\n'


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl", "parquet"])
def test_an_output_file_holds_the_whole_result(place: Place, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"out.{ending}"
    query = "select record_id, source_row, seed_ids from train order by record_id"
    ran = synth("sql", "tickets", query, "--output", str(path))
    assert ran.code == 0, ran.errors
    read = {
        "csv": lambda: pl.read_csv(path).with_columns(
            pl.col("seed_ids").str.json_decode(pl.List(pl.String))
        ),
        "json": lambda: pl.DataFrame(json.loads(path.read_text()), infer_schema_length=None),
        "jsonl": lambda: pl.read_ndjson(path, infer_schema_length=None),
        "parquet": lambda: pl.read_parquet(path),
    }[ending]()
    expected = stored(place, "train").sort("record_id")
    for column in ("record_id", "source_row", "seed_ids"):
        assert read[column].to_list() == expected[column].to_list()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_failed_query_leaves_the_earlier_output_as_it_was(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("earlier")
    query = "select cast(text as integer) from train"
    assert synth("sql", "tickets", query, "--output", str(path)).code == 2
    assert path.read_text() == "earlier"


def test_no_formula_reaches_a_spreadsheet(place: Place) -> None:
    query = f"select text from human where text like '{FORMULA[:9]}%'"  # noqa: S608
    (_, (cell,)) = csv.reader(
        io.StringIO(synth("sql", "tickets", query, "--format", "csv").result.stdout)
    )
    assert cell == f"'{FORMULA}"
    assert ask(query) == [{"text": FORMULA}]


def test_hostile_text_stays_text_in_every_output(place: Place) -> None:
    query = "select text from human where text like '%locked out of the profile%'"
    shown = synth("sql", "tickets", query).result.stdout
    assert "\x1b" not in shown
    assert "[bold red]locked" in shown
    assert ask(query) == [{"text": HOSTILE}]
    lines = printed("tickets", query, "--format", "jsonl").stdout_bytes.splitlines()
    assert [json.loads(line) for line in lines] == [{"text": HOSTILE}]


def test_a_terminal_is_shown_some_rows_and_told_that_there_are_more(place: Place) -> None:
    ran = synth("sql", "tickets", "select record_id from train", "--rows", "5")
    assert len(ran.result.stdout.splitlines()) == 6
    assert "there are more" in ran.errors
    assert "there are more" not in synth("sql", "tickets", "select 1").errors


def test_nothing_is_left_behind(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ask("select count(*) from call_texts")
    refused("select nope from call_texts")
    assert list(tmp_path.iterdir()) == []


def test_names_that_sql_cannot_tell_apart_are_an_error(place: Place) -> None:
    other = place.home / "store" / "Tickets"
    other.mkdir()
    try:
        ran = synth("sql", "select 1 as n")
        assert ran.code == 2
        assert "cannot tell" in ran.errors
        assert ask("select 1 as n") == [{"n": 1}]
    finally:
        other.rmdir()


@pytest.mark.parametrize("name", ["temp", "system", "main", "order"])
def test_a_dataset_may_be_called_as_something_of_sql(place: Place, name: str) -> None:
    store = place.home / "store"
    (store / "tickets").rename(store / name)
    try:
        listed = json.loads(printed(name, "--format", "json").stdout)
    finally:
        (store / name).rename(store / "tickets")
    assert {"releases", "calls"} <= {one["view"] for one in listed}
