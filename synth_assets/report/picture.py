"""Pictures of a contribution: a tiny one that fits into Markdown, a larger one for files.

Both are hand-made SVG on a white ground, so that they read the same on dark and light pages. The
tiny one has to be: Dagster shows a picture inline only while the whole Markdown stays below 1,000
characters, and no plotting library writes SVG that small.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from synth_assets.lifecycle import verdicts
from synth_assets.lifecycle.contribution import Contribution
from synth_assets.report.tables import plain

INLINE_LIMIT = 1_000
SHORT_NAMES = {"human_upsampled": "upweighted", "human_balanced": "balanced"}
# Mid-tones that hold against white, and apart for the colour-blind (Okabe and Ito).
INK, GRID, F1_COLOUR, ACCURACY_COLOUR, WORSE_COLOUR = (
    "#333",
    "#ddd",
    "#0072b2",
    "#888",
    "#d55e00",
)
MAX_LABELS = 40
MAX_NAME_CHARS = 28


@dataclass(frozen=True)
class _Dot:
    """One estimate with its limits."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, row: Mapping[str, Any], value: str, low: str, high: str) -> _Dot | None:
        parts = row[value], row[low], row[high]
        return None if None in parts else cls(*parts)


# --- the tiny one -----------------------------------------------------------------------------


def contribution_markdown(contribution: Contribution) -> str:
    """The verdict in a line and, as a data URI, every arm's macro-F1 (dot) and accuracy (tick).

    Bars are 95 % intervals of macro-F1. Always below 1,000 characters; holds no text but the
    project's own, labels and sentences of users stay out.
    """
    line = f"**{_headline(contribution)}**"
    gain = contribution.differences.filter(comparison="blend - human", metric="macro_f1")
    dot = _Dot.of(gain.row(0, named=True), "value", "low", "high")
    if dot is not None:
        line += f": macro-F1 {dot.value:+.3f} (95 %: {dot.low:+.3f} to {dot.high:+.3f})"
    picture = _tiny_svg(contribution)
    return f"{line}\n\n![macro-F1 by arm](data:image/svg+xml,{_percent_encoded(picture)})"


def _headline(contribution: Contribution) -> str:
    return verdicts.headline(contribution.verdict, contribution.differences)


def _tiny_svg(contribution: Contribution) -> str:
    # One path for all bars, one for all dots, one for all ticks: a path costs 40 characters.
    left, width, top, step = 99, 180, 18, 17
    bars, dots, ticks, names = "", "", "", ""
    for place, row in enumerate(contribution.arms.iter_rows(named=True)):
        y = top + step * place
        name = SHORT_NAMES.get(row["arm"], row["arm"])
        names += f"<text y='{y + 4}'>{name} {_short(row['rows'])}</text>"
        f1 = _Dot.of(row, "macro_f1", "macro_f1_low", "macro_f1_high")
        if f1 is None:
            continue
        at = [left + round(width * part) for part in (f1.value, f1.low, f1.high, row["accuracy"])]
        bars += f"M{at[1]},{y}H{at[2]}"
        dots += f"M{at[0]},{y}h0"
        ticks += f"M{at[3]},{y - 4}v8"
    bottom = top + step * contribution.arms.height - 8
    axis = f"M{left},8V{bottom}h{width}V8"
    caption = f"● macro-F1 | accuracy, n={_short(contribution.holdout_rows)}"
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='300' viewBox='-4,0,300,{bottom + 17}' "
        "font-family='arial' font-size='11'><path fill='#fff' d='M-4,0h300v200H-4'/>"
        f"<g fill='none' stroke='#888'><path d='{axis}{ticks}'/><path stroke='#07b' "
        f"d='{bars}'/><path stroke='#07b' stroke-width='7' stroke-linecap='round' d='{dots}'/></g>"
        # A list of positions places each character by itself.
        f"{names}<text x='96,276,110' y='{bottom + 13}'>01{caption}</text></svg>"
    )


def _short(count: int) -> str:
    for size, unit in ((10**6, "M"), (10**4, "k")):
        if count >= size:
            return f"{count / (10**6 if unit == 'M' else 10**3):.0f}{unit}"
    return str(count)


def _percent_encoded(svg: str) -> str:
    """Only what ends a link or an address in Markdown: blanks, brackets of both kinds, # and %."""
    return "".join(f"%{ord(one):02X}" if one in ' <>()#%"' else one for one in svg)


# --- the larger one ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Panel:
    """A dot-and-bar chart: named rows, one horizontal scale."""

    title: str
    low: float
    high: float
    left: int = 230
    width: int = 420
    row_height: int = 22

    def x(self, value: float) -> float:
        held = min(max(value, self.low), self.high)
        return round(self.left + self.width * (held - self.low) / (self.high - self.low), 1)

    def frame(self, rows: int) -> Iterator[str]:
        """Title, grid and scale around ``rows`` rows; the origin is the panel's upper left."""
        bottom = 34 + rows * self.row_height
        yield _text(0, 14, self.title, weight="bold")
        for step in range(5):
            value = self.low + (self.high - self.low) * step / 4
            yield f'<path d="M{self.x(value)},26V{bottom}" stroke="{GRID}"/>'
            yield _text(self.x(value), bottom + 14, f"{value:g}", anchor="middle", size=11)

    def dot(self, row: float, dot: _Dot, colour: str) -> str:
        y = 34 + (row + 0.5) * self.row_height
        return (
            f'<path d="M{self.x(dot.low)},{y}H{self.x(dot.high)}" stroke="{colour}" '
            f'stroke-width="2"/><circle cx="{self.x(dot.value)}" cy="{y}" r="4" fill="{colour}"/>'
        )

    def label(self, row: int, name: str, *, end: str = "") -> Iterator[str]:
        y = 34 + (row + 0.5) * self.row_height + 4
        yield _text(self.left - 10, y, plain(name, max_chars=MAX_NAME_CHARS), anchor="end")
        if end:
            yield _text(self.left + self.width + 12, y, end, size=11)

    def height(self, rows: int) -> int:
        return 34 + rows * self.row_height + 44


def contribution_svg(contribution: Contribution) -> str:
    """A standalone SVG: scores by arm, then change of F1 by label, blend - human, 95 % intervals.

    Labels run from the greatest loss to the greatest gain; of more than 40, the middle is left
    out and counted. Text of users is XML-escaped, cut, and free of control characters.
    """
    arms, labels = _arms_panel(contribution), _labels_panel(contribution)
    parts, y = [], 20
    for height, drawn in (arms, labels):
        parts.append(f'<g transform="translate(20,{y})">{"".join(drawn)}</g>')
        y += height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 {y}" width="860" height="{y}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="12" fill="{INK}">'
        f"<title>{escape(_headline(contribution))}</title>"
        f'<rect width="860" height="{y}" fill="#fff"/>{"".join(parts)}</svg>'
    )


def _arms_panel(contribution: Contribution) -> tuple[int, list[str]]:
    rows = list(contribution.arms.iter_rows(named=True))
    title = f"{_headline(contribution)}: scores on {contribution.holdout_rows:,} held-out"
    panel = _Panel(f"{title} human rows", 0.0, 1.0, row_height=34)
    drawn = list(panel.frame(len(rows)))
    for place, row in enumerate(rows):
        f1 = _Dot.of(row, "macro_f1", "macro_f1_low", "macro_f1_high")
        accuracy = _Dot.of(row, "accuracy", "accuracy_low", "accuracy_high")
        end = f"F1 {f1.value:.3f}, acc. {accuracy.value:.3f}" if f1 and accuracy else "no score"
        name = SHORT_NAMES.get(row["arm"], row["arm"])
        drawn += panel.label(place, f"{name}, {row['rows']:,} rows", end=end)
        if f1 and accuracy:
            drawn.append(panel.dot(place - 0.13, f1, F1_COLOUR))
            drawn.append(panel.dot(place + 0.13, accuracy, ACCURACY_COLOUR))
    key = _text(440, 14, "● macro-F1", fill=F1_COLOUR) + _text(
        530, 14, "● accuracy", fill=ACCURACY_COLOUR
    )
    note = _text(620, 14, "bars: 95 % intervals", size=11)
    return panel.height(len(rows)), [*drawn, key, note]


def _labels_panel(contribution: Contribution) -> tuple[int, list[str]]:
    scored = contribution.labels.drop_nulls("delta").sort("delta", "label")
    if scored.is_empty():
        return 0, []
    chosen = list(scored.iter_rows(named=True))
    hidden = max(0, len(chosen) - MAX_LABELS)
    if hidden:
        chosen = chosen[: MAX_LABELS // 2] + chosen[-MAX_LABELS // 2 :]
    title = "Change of F1 by label, blend − human (rows: human + synthetic, held out)"
    panel = _Panel(title, *_scale(chosen))
    drawn = list(panel.frame(len(chosen)))
    zero = panel.x(0.0)
    drawn.append(f'<path d="M{zero},26V{34 + len(chosen) * panel.row_height}" stroke="{INK}"/>')
    for place, row in enumerate(chosen):
        dot = _Dot(row["delta"], row["delta_low"], row["delta_high"])
        colour = WORSE_COLOUR if dot.high < 0 else F1_COLOUR if dot.low > 0 else ACCURACY_COLOUR
        support = f"{row['human_rows']:,} + {row['synthetic_rows']:,}, {row['holdout_rows']:,}"
        drawn += panel.label(place, row["label"], end=support)
        drawn.append(panel.dot(place, dot, colour))
    below = panel.height(len(chosen))
    if hidden:
        drawn.append(_text(0, below - 14, f"{hidden:,} labels in the middle not shown", size=11))
    return below, drawn


def _scale(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Symmetric limits in quarters, so that a small effect looks small and 0 is in the middle."""
    reach = max(max(-row["delta_low"], row["delta_high"]) for row in rows)
    limit = next(step for step in (0.1, 0.25, 0.5, 1.0) if reach <= step or step == 1.0)
    return -limit, limit


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    size: int = 12,
    weight: str = "normal",
    fill: str = INK,
) -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
        f'fill="{fill}">{escape(text)}</text>'
    )
