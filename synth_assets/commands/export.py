"""``synth export``: a release in the file formats that training tools read."""

from __future__ import annotations

import json
from pathlib import Path

import click

from synth_assets.terminal import as_json, clean_errors

# The same as in `exports`, which is not imported to show a help text.
FORMATS = ("parquet", "csv", "jsonl", "openai_chat", "alpaca", "hf", "spacy")
SPLITS = ("train", "validation", "eval")


@click.command()
@click.argument("dataset")
@click.option(
    "--release",
    "which",
    default="current",
    show_default=True,
    metavar="VERSION",
    help="A version, current, or latest-stored.",
)
@click.option(
    "--format",
    "formats",
    type=click.Choice(FORMATS),
    multiple=True,
    default=("parquet",),
    show_default=True,
    help="May be given several times.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write to, one folder per format in it.  [default: exports/DATASET/VERSION in "
    "SYNTH_HOME]",
)
@click.option(
    "--split",
    "splits",
    type=click.Choice(SPLITS),
    multiple=True,
    default=SPLITS,
    help="May be given several times.  [default: all]",
)
@click.option("--csv-verbatim", is_flag=True, help="Leave cells as they are, formulas too.")
@click.option("--system", metavar="TEXT", help="A system message for openai_chat.")
@as_json
@clean_errors
def export(
    *,
    dataset: str,
    which: str,
    formats: tuple[str, ...],
    out: Path | None,
    splits: tuple[str, ...],
    csv_verbatim: bool,
    system: str | None,
    as_json: bool,
) -> None:
    """Write a release as files for training tools.

    parquet, csv and jsonl have every column; openai_chat and alpaca are for tuning language
    models; hf is a Hugging Face dataset folder with its card; spacy needs spaCy.

    Example: synth export work_orders --format csv --format hf
    """
    from synth_assets.exports.formats import Options
    from synth_assets.exports.source import NothingReleased, open_release
    from synth_assets.exports.write import export as write
    from synth_assets.settings import defs_roots, home
    from synth_assets.spec.load import dataset_named

    try:
        release = open_release(home().releases, dataset, which)
    except NothingReleased:
        # A name that is no dataset's is the likelier mistake. A release outlives its YAML.
        dataset_named(dataset, defs_roots())
        raise
    folder = out or home().root / "exports" / release.dataset / release.version
    wanted = tuple(split for split in SPLITS if split in splits)
    made = []
    for name in dict.fromkeys(formats):
        options = Options(csv_verbatim=csv_verbatim, system=system)
        found = write(release, name, folder, splits=wanted, options=options)
        made.append({**found.record, "folder": str(found.folder)})
        if not as_json:
            rows = ", ".join(f"{split} {count:,}" for split, count in found.record["rows"].items())
            click.echo(f"{name}: {found.folder} ({rows} rows)")
        for note in found.record["notes"]:
            click.echo(f"{name}: {note}", err=True)
    if as_json:
        click.echo(json.dumps({"dataset": dataset, "release": release.version, "exports": made}))
