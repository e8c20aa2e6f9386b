"""What the intervals and verdicts of a contribution are worth, by simulation.

    python -m benchmarks.contribution                      # coverage, width, false "helps", power
    python -m benchmarks.contribution --trials 400 --student tfidf_logreg --sizes 100 300
    python -m benchmarks.contribution zero-information     # copies that bring nothing, 30 salts

A population is known: 2,094 work orders of mining excavators (NIST, public domain; fetched once as
the default dataset fetches them), half of them to train on and half to be judged by. Samples are
drawn from it with replacement, as often as wanted, so the truth is known, too: the mean difference
over fresh samples and its spread. Every trial calls the project's own ``measure``.

Worlds: ``natural`` draws labels as frequent as they are, ``balanced`` as many of each.
Arms: ``nested`` (blend = human + others), ``disjoint`` (blend = others only, no row shared).
Others: ``nothing`` (nested: misspelt copies of the human rows; disjoint: as many rows of the same
population: the true difference is about 0), ``gain`` (twice as many rows of the population).

Printed per world: half width of the 95 % interval of blend - human over the spread of fresh samples
(1.96 is right), coverage of the true difference, how often the interval lies above and below 0
(two and a half of 100 each are right when nothing is to be found), how often the verdict is
*helps*, and the power of a test that knows the spread.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import norm

from synth_assets.lifecycle.measure import measure
from synth_assets.sources.artifacts import PackageArtifact, extract_member

PACKAGE = "nist-nestor==0.4.4"
SHA256 = "63fd73ae2f5bbcc72fb43d2ab4f56c826c6fb42166557c5ff6ecce18ac80e1fa"
MEMBER = "nestor/datasets/excavators-cleaned.csv"

Rows = pl.DataFrame


@dataclass(frozen=True)
class Population:
    """Work orders (text, label) to train on and to be judged by, apart from each other."""

    training: Rows
    judging: Rows

    def draw(self, rows: int, how: str, generator: np.random.Generator, name: str) -> Rows:
        """``rows`` training rows; ``balanced``: as many of each label."""
        return _drawn(self.training, rows, how == "balanced", generator, name)

    def judges(self, rows: int, how: str, generator: np.random.Generator) -> Rows:
        return _drawn(self.judging, rows, how == "balanced", generator, "held")


def population(cache: Path) -> Population:
    """The work orders, split by a fixed draw; labels with 40 rows or more."""
    artifact = PackageArtifact(PACKAGE, SHA256)
    file = extract_member(artifact, MEMBER, cache_dir=cache)
    single = ~pl.col("label").str.contains("_") & (pl.col("label") != "NA")
    rows = (
        pl.read_csv(file, infer_schema=False)
        .select(text="OriginalShorttext", label="MajorSystem")
        .drop_nulls()
        .filter(single)
        .unique("text", maintain_order=True)
        .filter(pl.len().over("label") >= 40)
        .sort("text")
        .sample(fraction=1.0, shuffle=True, seed=1)
    )
    return Population(rows[: rows.height // 2], rows[rows.height // 2 :])


def _drawn(
    pool: Rows, rows: int, balanced: bool, generator: np.random.Generator, name: str
) -> Rows:
    if balanced:
        parts = sorted(pool.with_row_index().partition_by("label"), key=lambda p: p["label"][0])
        each = max(1, rows // len(parts))
        places = np.concatenate(
            [part["index"].to_numpy()[generator.integers(0, part.height, each)] for part in parts]
        )
    else:
        places = generator.integers(0, pool.height, rows)
    return (
        pool[places]
        .select(
            pl.Series("record_id", [f"{name}{place}" for place in range(len(places))]),
            "text",
            "label",
            weight=pl.lit(1.0),
        )
        .with_columns(cluster="record_id")
    )


def misspelt(rows: Rows, copies: int, generator: np.random.Generator) -> Rows:
    """``copies`` of each row, two characters swapped in each; a copy descends from its row."""
    parts = []
    for copy in range(copies):
        texts = [_swapped(text, generator) for text in rows["text"]]
        parts.append(
            rows.with_columns(
                pl.Series("text", texts),
                record_id=pl.format("copy{}-{}", pl.lit(copy), "record_id"),
                cluster="record_id",
            )
        )
    return pl.concat(parts)


def _swapped(text: str, generator: np.random.Generator) -> str:
    if len(text) < 4:
        return text + text[-1]
    place = int(generator.integers(1, len(text) - 2))
    return text[:place] + text[place + 1] + text[place] + text[place + 2 :]


@dataclass(frozen=True)
class World:
    """One row of the table: how samples are drawn, and what the arms are."""

    labels: str  # natural | balanced
    arms: str  # nested | disjoint
    others: str  # nothing | gain
    rows: int
    student: str

    def trial(self, people: Population, number: int, held: int) -> dict[str, float]:
        """One fresh sample, measured."""
        generator = np.random.default_rng([number, self.rows])
        human = people.draw(self.rows, self.labels, generator, "human")
        others = self._others(people, human, generator)
        blend = pl.concat([human, others]) if self.arms == "nested" else others
        found = measure(
            human,
            others,
            blend,
            people.judges(held, "natural", generator),
            text="text",
            label="label",
            student=self.student,
            repeats=20,
            seed=number,
        )
        of = found.differences.filter(comparison="blend - human", metric="macro_f1")
        value, low, high = of.select("value", "low", "high").row(0)
        return {"value": value, "low": low, "high": high, "helps": found.verdict == "helps"}

    def _others(self, people: Population, human: Rows, generator: np.random.Generator) -> Rows:
        if self.others == "gain":
            return people.draw(2 * self.rows, self.labels, generator, "more")
        if self.arms == "nested":
            return misspelt(human, 1, generator)
        return people.draw(self.rows, self.labels, generator, "other")


def _trial(job: tuple[World, Population, int, int]) -> dict[str, float]:
    world, people, number, held = job
    return world.trial(people, number, held)


def simulate(worlds: Sequence[World], people: Population, *, trials: int, held: int) -> None:
    """Prints a row per world as it is done."""
    head = ("labels", "arms", "others", "student", "rows", "truth", "spread", "half/spread")
    print(" | ".join([*head, "covered", "above 0", "below 0", "helps", "power of a known spread"]))
    # A forked process would inherit locks that threads of polars hold.
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as workers:
        for world in worlds:
            jobs = [(world, people, number, held) for number in range(trials)]
            found = pl.DataFrame(list(workers.map(_trial, jobs, chunksize=4)))
            print(_line(world, found), flush=True)


def _line(world: World, found: Rows) -> str:
    truth, spread = _number(found["value"].mean()), _number(found["value"].std())
    half = _number(((found["high"] - found["low"]) / 2).mean())
    covered = found.select(pl.lit(truth).is_between("low", "high").mean()).item()
    power = float(norm.sf(norm.ppf(0.975) - truth / spread))
    shares = [(found["low"] > 0).mean(), (found["high"] < 0).mean(), found["helps"].mean(), power]
    cells = [world.labels, world.arms, world.others, world.student.removeprefix("tfidf_")]
    cells += [f"{world.rows:,}", f"{truth:+.4f}", f"{spread:.4f}", f"{half / spread:.2f}"]
    cells += [f"{covered:.3f}", *(f"{_number(share):.3f}" for share in shares)]
    return " | ".join(cells)


def _number(value: Any) -> float:
    return float(value)


def zero_information(people: Population, *, salts: int, held: int, student: str) -> None:
    """Copies of the team's own rare rows, up to 30 a label: what is said of them.

    160 human rows at natural frequencies; rows of a label below 30 are copied, each with two
    characters swapped, until it has 30. Nothing is learnt from them but another class balance.
    """
    verdicts: dict[str, int] = {}
    gains: list[float] = []
    controlled: list[float] = []
    for salt in range(salts):
        generator = np.random.default_rng([salt, 160])
        human = people.draw(160, "natural", generator, "human")
        made = pl.concat(list(_to_thirty(human, generator)))
        blend = pl.concat([human, made])
        held_out = people.judges(held, "natural", generator)
        found = measure(
            human,
            made,
            blend,
            held_out,
            text="text",
            label="label",
            student=student,
            repeats=20,
            seed=salt,
        )
        value = {
            row["comparison"]: row["value"]
            for row in found.differences.filter(metric="macro_f1").iter_rows(named=True)
        }
        gains.append(value["blend - human"])
        controlled.append(value["blend - human_balanced"])
        low = found.differences.filter(comparison="blend - human", metric="macro_f1")["low"][0]
        told = (
            found.verdict
            if found.verdict != "no_measurable_difference"
            else ("explained by a control" if low > 0 else found.verdict)
        )
        verdicts[told] = verdicts.get(told, 0) + 1
    print(f"{salts} salts, student {student}: {verdicts}")
    print(f"blend - human {np.mean(gains):+.3f} on average")
    print(f"blend - human balanced {np.mean(controlled):+.3f} on average")


def _to_thirty(human: Rows, generator: np.random.Generator) -> Iterator[Rows]:
    for part in sorted(human.partition_by("label"), key=lambda part: part["label"][0]):
        missing = 30 - part.height
        if missing > 0:
            copies = misspelt(part, -(-missing // part.height), generator)
            yield copies[:missing]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", nargs="?", choices=("simulation", "zero-information"))
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--salts", type=int, default=30)
    parser.add_argument("--held", type=int, default=700, help="held-out rows")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 300, 1000, 2000])
    parser.add_argument("--labels", nargs="+", default=["natural", "balanced"])
    parser.add_argument("--student", default="tfidf_nb")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "synth-cache")
    options = parser.parse_args()
    people = population(options.cache)
    if options.study == "zero-information":
        zero_information(people, salts=options.salts, held=options.held, student=options.student)
        return
    worlds = [
        World(labels, arms, others, rows, options.student)
        for labels in options.labels
        for arms in ("nested", "disjoint")
        for others in ("nothing", "gain")
        for rows in options.sizes
    ]
    simulate(worlds, people, trials=options.trials, held=options.held)


if __name__ == "__main__":
    main()
