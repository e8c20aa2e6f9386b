"""What synthetic rows are worth: students trained with and without them, judged on human rows.

Five arms of one dataset train the same student and are scored on the same held-out human rows:
``human``, ``synthetic``, ``blend`` and two controls that need no synthetic row:

- ``human_upsampled``: human rows with their weights scaled to the blend's total. Without it a gain
  may be volume alone: for a weighted student, more weight is less regularisation.
- ``human_balanced``: human rows, each label's total weight as in the blend. Without it a gain may
  be class balance alone: a target that fills rare labels changes how often each is expected, and
  weights on the human rows give that for nothing.

Neither controls for what *more human rows* would have brought.

The estimate comes from one fit of the whole arm. Intervals cover both samples: training rows
(refits on rows drawn again as they were drawn, see ``draws``) and held-out rows (weighted scores,
see ``resample``), paired across arms. Rows of one call, one parent or one declared group are drawn
together. For labels with a handful of held-out rows intervals are too narrow. The generator is
held fixed: rows of another generation run would add to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl
from threadpoolctl import threadpool_limits

from synth_assets.errors import UsageError, shown
from synth_assets.lifecycle import students, verdicts
from synth_assets.lifecycle.contribution import ARMS, METRICS, ArmName, Contribution
from synth_assets.lifecycle.draws import TrainingDraws, training_draws
from synth_assets.lifecycle.resample import (
    Codes,
    FitScores,
    Floats,
    Interval,
    fit_scores,
    interval,
    keys_of,
)

__all__ = ["Contribution", "measure"]

PAIRS: tuple[tuple[ArmName, ArmName], ...] = (
    ("blend", "human"),
    ("blend", "human_upsampled"),
    ("blend", "human_balanced"),
    ("synthetic", "human"),
)
HOLDOUT_DRAWS = 400
DECIMALS = 6


def measure(
    human: pl.DataFrame,
    synthetic: pl.DataFrame,
    blend: pl.DataFrame,
    holdout: pl.DataFrame,
    *,
    text: str,
    label: str,
    student: str,
    repeats: int,
    seed: int,
    first_of_each: int = 0,
    cautions: Sequence[str] = (),
) -> Contribution:
    """Trains every arm ``1 + repeats`` times and compares them on ``holdout``.

    Frames hold at least record_id (String), ``text`` (String), ``label`` (String) and weight
    (Float64): ``human`` and ``synthetic`` are the blend's training rows by origin, each with the
    weight it has on its own, ``blend`` is both. Rows that came together have one value in the
    column ``cluster`` (String; left out: each row stands alone). Rows without id, text or label, or
    with a weight that is not finite and positive, are left out and counted in the arm's note.
    Held-out rows all count the same, whatever their weight. Macro-F1 averages over the labels of
    ``holdout``; other predictions are errors. The order of rows does not matter.
    ``first_of_each``: human rows that were taken of every label on purpose, before the rest.
    ``cautions`` are whole sentences that the caller knows to weaken the verdict; they stand at the
    end of its sentence.

    Raises ``UsageError`` for an unknown ``student`` or fewer than 2 ``repeats``.
    """
    kind = students.student(student)
    if repeats < 2:
        fix = "use at least 2; 20 gives steady intervals"
        raise UsageError(f"{shown(repeats)} repeats say nothing about uncertainty", fix=fix)
    held = _rows(holdout.with_columns(weight=pl.lit(1.0)), text, label)
    trained: dict[ArmName, _Rows] = {
        "human": _rows(human, text, label),
        "synthetic": _rows(synthetic, text, label),
        "blend": _rows(blend, text, label),
    }
    trained["human_upsampled"] = _upsampled(trained["human"], to=trained["blend"])
    trained["human_balanced"] = _balanced(trained["human"], to=trained["blend"])
    draws = _draws(trained, held, repeats=repeats, seed=seed, first_of_each=first_of_each)
    with threadpool_limits(limits=1):  # the order of a threaded sum would show in the last digit
        exam = _Exam.of(held, trained, kind=kind, draws=draws, repeats=repeats, seed=seed)
        results = {arm: exam.result(trained[arm]) for arm in ARMS}
    return _contribution(results, trained, exam, cautions)


# --- rows of an arm ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    ids: list[str]
    clusters: list[str]
    texts: list[str]
    labels: list[str]
    weights: Floats
    note: str

    def cluster_counts(self) -> pl.DataFrame:
        """label, clusters."""
        return (
            pl.DataFrame(
                {"label": self.labels, "cluster": self.clusters},
                schema={"label": pl.String, "cluster": pl.String},
            )
            .group_by("label")
            .agg(pl.col("cluster").n_unique().cast(pl.Int64))
        )

    def counts(self) -> pl.DataFrame:
        return (
            pl.DataFrame({"label": self.labels}, schema={"label": pl.String})
            .group_by("label")
            .agg(pl.len().cast(pl.Int64).alias("rows"))
        )


def _rows(frame: pl.DataFrame, text: str, label: str) -> _Rows:
    own = pl.col("record_id").cast(pl.String)
    together = pl.col("cluster").cast(pl.String) if "cluster" in frame.columns else pl.lit(None)
    chosen = frame.select(
        record_id=own,
        cluster=pl.coalesce(together, own),
        text=pl.col(text).cast(pl.String),
        label=pl.col(label).cast(pl.String),
        weight=pl.col("weight").cast(pl.Float64),
    )
    usable = (
        chosen.drop_nulls()
        .filter(pl.col("weight").is_finite() & (pl.col("weight") > 0))
        .sort("record_id", "text", "label", "weight")
    )
    left_out = chosen.height - usable.height
    note = f"{left_out:,} rows without id, text, label or positive weight left out"
    return _Rows(
        ids=usable["record_id"].to_list(),
        clusters=usable["cluster"].to_list(),
        texts=usable["text"].to_list(),
        labels=usable["label"].to_list(),
        weights=usable["weight"].to_numpy().astype(np.float64),
        note=note if left_out else "",
    )


def _upsampled(human: _Rows, *, to: _Rows) -> _Rows:
    if not human.ids or not to.ids:
        return human
    factor = float(to.weights.sum() / human.weights.sum())
    note = f"human rows at {factor:.3g} times their weight"
    return replace(human, weights=human.weights * factor, note=_joined(human.note, note))


def _balanced(human: _Rows, *, to: _Rows) -> _Rows:
    """Human rows, each label's total weight as in ``to``; labels that ``to`` lacks stay as is."""
    if not human.ids or not to.ids:
        return human
    own, wanted = _label_weights(human), _label_weights(to)
    factors = {name: wanted.get(name, total) / total for name, total in own.items()}
    weights = human.weights * np.array([factors[name] for name in human.labels])
    note = f"labels weighted as in the blend, by {min(factors.values()):.3g} to "
    note += f"{max(factors.values()):.3g}"
    without = len(wanted.keys() - own.keys())
    missing = f"{without:,} labels of the blend have no human row" if without else ""
    return replace(human, weights=weights, note=_joined(human.note, note, missing))


def _label_weights(rows: _Rows) -> dict[str, float]:
    """Total weight per label."""
    totals: dict[str, float] = {}
    for name, weight in zip(rows.labels, rows.weights.tolist(), strict=True):
        totals[name] = totals.get(name, 0.0) + weight
    return totals


def _draws(
    trained: dict[ArmName, _Rows],
    held: _Rows,
    *,
    repeats: int,
    seed: int,
    first_of_each: int,
) -> TrainingDraws:
    parts = [
        pl.DataFrame(
            {"cluster": rows.clusters, "label": rows.labels},
            schema={"cluster": pl.String, "label": pl.String},
        ).with_columns(human=pl.lit(arm == "human"))
        for arm, rows in trained.items()
        if arm in ("human", "synthetic", "blend")
    ]
    return training_draws(
        pl.concat(parts),
        draws=repeats,
        seed=seed,
        first_of_each=first_of_each,
        elsewhere=dict(held.counts().iter_rows()),
    )


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


# --- training and scoring ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Result:
    """An arm after the exam; ``right`` (n,) says which held-out rows the full fit gets right."""

    rows: int
    note: str
    scores: FitScores | None = None
    right: np.ndarray[tuple[int], np.dtype[np.bool_]] | None = None


@dataclass(frozen=True)
class _Exam:
    held: _Rows
    code_of: dict[str, int]  # the holdout's labels first, in order, then those of training only
    labels: list[str]  # the holdout's
    kind: students.Student
    draws: TrainingDraws
    repeats: int
    seed: int
    # Arms of the same rows under other weights share their features.
    known: dict[tuple[str, ...], tuple[students.PreparedStudent, students.Features]] = field(
        default_factory=dict
    )

    @classmethod
    def of(
        cls,
        held: _Rows,
        trained: dict[ArmName, _Rows],
        *,
        kind: students.Student,
        draws: TrainingDraws,
        repeats: int,
        seed: int,
    ) -> _Exam:
        labels = sorted(set(held.labels))
        others = {name for rows in trained.values() for name in rows.labels} - set(labels)
        code_of = {name: code for code, name in enumerate([*labels, *sorted(others)])}
        return cls(held, code_of, labels, kind, draws, repeats, seed)

    def codes(self, labels: Sequence[str]) -> Codes:
        return np.array([self.code_of[name] for name in labels], dtype=np.int64)

    def result(self, rows: _Rows) -> _Result:
        count = len(rows.ids)
        if not self.held.ids:
            return _Result(count, _joined(rows.note, "no held-out rows to score on"))
        if not count:
            return _Result(0, _joined(rows.note, "no training rows"))
        try:
            predicted, note = self._predictions(rows)
        except students.UnusableTexts as problem:
            return _Result(count, _joined(rows.note, str(problem)))
        predicted = np.where(predicted < len(self.labels), predicted, -1)
        truth = self.codes(self.held.labels)
        scores = fit_scores(
            truth,
            predicted,
            keys_of(self.held.clusters, seed=self.seed, stream="holdout"),
            sizes=self._sizes(rows),
            draws=HOLDOUT_DRAWS,
        )
        return _Result(count, _joined(rows.note, note), scores, predicted[0] == truth)

    def _sizes(self, rows: _Rows) -> Codes:
        """(K,): clusters of ``rows`` per label of the holdout."""
        counted = dict(rows.cluster_counts().iter_rows())
        return np.array([counted.get(name, 0) for name in self.labels], dtype=np.int64)

    def _prepared(
        self, rows: _Rows, codes: Codes
    ) -> tuple[students.PreparedStudent, students.Features]:
        """The student bound to an arm, and the held-out texts in its features."""
        name = (*rows.ids, *rows.texts)
        if name in self.known:
            like, features = self.known[name]
            return self.kind.prepare(rows.texts, codes, rows.weights, like=like), features
        prepared = self.kind.prepare(rows.texts, codes, rows.weights)
        self.known[name] = prepared, prepared.encode(self.held.texts)
        return self.known[name]

    def _predictions(self, rows: _Rows) -> tuple[Codes, str]:
        """Codes (1 + repeats, held-out rows), the full fit first."""
        codes = self.codes(rows.labels)
        shape = (1 + self.repeats, len(self.held.ids))
        if len(set(rows.labels)) == 1:
            return np.full(shape, codes[0]), "a single label, predicted for every row"
        prepared, features = self._prepared(rows, codes)
        predicted, notes = np.empty(shape, dtype=np.int64), set()
        for fit, draw in enumerate((None, *self.draws.factors(rows.clusters))):
            fitted = prepared.fit(draw)
            predicted[fit] = fitted.predict(features)
            notes.add(fitted.note)
        return predicted, _joined(*sorted(notes))


# --- tables -----------------------------------------------------------------------------------


def _contribution(
    results: dict[ArmName, _Result],
    trained: dict[ArmName, _Rows],
    exam: _Exam,
    cautions: Sequence[str],
) -> Contribution:
    differences = _differences(results)
    labels = _labels(results, trained, exam)
    human, blend = results["human"], results["blend"]
    discordant = None
    if human.right is not None and blend.right is not None:
        discordant = int((human.right != blend.right).sum())
    unable = {arm: results[arm].note for arm in ("human", "blend") if results[arm].scores is None}
    arms = _arms(results)
    verdict = verdicts.verdict(differences, discordant=discordant)
    sentence = verdicts.sentence(
        verdict,
        arms=arms,
        differences=differences,
        labels=labels,
        discordant=discordant,
        unable=unable,
        holdout_rows=len(exam.held.ids),
        cautions=cautions,
    )
    return Contribution(arms, differences, labels, verdict, sentence, len(exam.held.ids))


def _limits(found: Interval | None, names: Sequence[str]) -> dict[str, object]:
    parts = (found.value, found.low, found.high) if found else (None, None, None)
    # + 0.0 turns -0.0, which would be other bytes, into 0.0
    values = [None if part is None else round(part, DECIMALS) + 0.0 for part in parts]
    return dict(zip(names, values, strict=True))


def _columns(metric: str) -> tuple[str, str, str]:
    return metric, f"{metric}_low", f"{metric}_high"


def _schema(strings: Sequence[str], floats: Sequence[str]) -> pl.Schema:
    kinds = dict.fromkeys(strings, pl.String()) | dict.fromkeys(floats, pl.Float64())
    return pl.Schema(kinds)


def _arms(results: dict[ArmName, _Result]) -> pl.DataFrame:
    rows: list[dict[str, object]] = []
    for arm in ARMS:
        row: dict[str, object] = {"arm": arm, "rows": results[arm].rows}
        scores = results[arm].scores
        for metric in METRICS:
            found = interval(scores.of(metric), lowest=0.0) if scores else None
            row |= _limits(found, _columns(metric))
        rows.append(row | {"note": results[arm].note})
    floats = [name for metric in METRICS for name in _columns(metric)]
    frame = pl.DataFrame(rows, schema=_schema(["arm", "note"], ["rows", *floats]))
    return frame.select("arm", pl.col("rows").cast(pl.Int64), *floats, "note")


def _differences(results: dict[ArmName, _Result]) -> pl.DataFrame:
    rows: list[dict[str, object]] = []
    for arm, base in PAIRS:
        ours, theirs = results[arm].scores, results[base].scores
        for metric in METRICS:
            found = None
            if ours and theirs:
                found = interval(ours.minus(theirs, metric), lowest=-1.0, difference=True)
            name: dict[str, object] = {"comparison": f"{arm} - {base}", "metric": metric}
            rows.append(name | _limits(found, ("value", "low", "high")))
    return pl.DataFrame(rows, schema=_schema(["comparison", "metric"], ["value", "low", "high"]))


def _labels(
    results: dict[ArmName, _Result], trained: dict[ArmName, _Rows], exam: _Exam
) -> pl.DataFrame:
    human, blend = results["human"].scores, results["blend"].scores
    rows: list[dict[str, object]] = []
    for code, name in enumerate(exam.labels):
        row: dict[str, object] = {"label": name}
        for arm in ARMS:
            scores = results[arm].scores
            row[f"f1_{arm}"] = round(float(scores.f1(code).drawn[0]), DECIMALS) if scores else None
        found = None
        if human and blend:
            found = interval(blend.f1_minus(human, code), lowest=-1.0, difference=True)
        rows.append(row | _limits(found, _columns("delta")))
    floats = [*(f"f1_{arm}" for arm in ARMS), *_columns("delta")]
    scored = pl.DataFrame(rows, schema=_schema(["label"], floats))
    every = pl.DataFrame({"label": sorted(exam.code_of)}, schema={"label": pl.String})
    supports = {"human": trained["human"], "synthetic": trained["synthetic"], "holdout": exam.held}
    for which, held in supports.items():
        counted = held.counts().rename({"rows": f"{which}_rows"})
        every = every.join(counted, on="label", how="left")
    every = every.with_columns(pl.col(f"{which}_rows").fill_null(0) for which in supports)
    return every.join(scored, on="label", how="left").sort("label")
