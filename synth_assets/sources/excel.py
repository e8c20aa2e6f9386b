"""Records out of a workbook (xlsx, xlsm, xlsb, xls, ods), through the package ``fastexcel``.

The first sheet is read, its first row is the header, and every cell is its text. A workbook cannot
be streamed: a sheet is held whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from synth_assets.errors import SourceError, shown
from synth_assets.sources.records import FileFormat, Needed, escaped, raw_frame

_FIX = "save the sheet as CSV"


def excel_frames(
    name: str, path: Path, _: FileFormat, needed: Needed, size: int
) -> Iterator[pl.DataFrame]:
    header, rows = _sheet(name, path, needed)
    if not header:
        return
    places = needed.landed(header, f"{name}:1")
    kept = rows.select(rows.columns[place] for place in places)
    kept.columns = [header[place] for place in places]
    for start in range(0, kept.height, size):
        frame = kept.slice(start, size)
        bad: dict[int, tuple[str, str]] = {}
        texts = []
        for text in frame.iter_columns():
            nul = text.str.contains("\0", literal=True).fill_null(False)
            if nul.any() and needed.reads(text.name):
                for place in nul.arg_true():
                    bad[place] = ("nul_character", escaped(str(frame.row(place))))
            elif nul.any():
                needed.remarks.cells[text.name, "nul_character"] += int(nul.sum())
                text = text.set(nul, None)
            texts.append(text)
        texts = [text.scatter(sorted(bad), None) for text in texts] if bad else texts
        yield raw_frame(texts, name, start + 1, bad, frame.height)


def _sheet(name: str, path: Path, needed: Needed) -> tuple[list[str], pl.DataFrame]:
    """The header of the first sheet, and its other rows, blank ones left out."""
    try:
        import fastexcel
    except ImportError:
        raise SourceError(
            "a workbook is read with a package that is not installed",
            where=name,
            fix=f"pip install 'synth_assets[excel]' (it brings fastexcel), or {_FIX}",
        ) from None
    try:
        book = fastexcel.read_excel(path.read_bytes())
        names = book.sheet_names
        sheet = book.load_sheet(0, header_row=None, dtypes="string").to_polars()
        others = [other for other in names[1:] if _filled(book, other)]
    except fastexcel.FastExcelError as error:
        raise SourceError(
            f"not a workbook that can be read: {shown(str(error).splitlines()[0])}",
            where=name,
            fix=_FIX,
        ) from None
    if others:
        told = ", ".join(map(shown, others))
        needed.remarks.notes[
            f"{name}: only the first sheet, {shown(names[0])}, is read; not: {told}"
        ] = None
    filled = sheet.filter(pl.any_horizontal(pl.all().is_not_null())) if sheet.width else sheet
    if filled.is_empty():
        return [], filled
    return [cell or "" for cell in filled.row(0)], filled.slice(1)


def _filled(book: object, name: str) -> bool:
    sheet = book.load_sheet(name, header_row=None, dtypes="string", n_rows=1)  # type: ignore[attr-defined]
    return bool(sheet.to_polars().height)
