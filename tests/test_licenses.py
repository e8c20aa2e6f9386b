"""Several sources, several licences: a release says which rows are under which."""

from __future__ import annotations

from typing import Any

import pytest

from synth_assets.lifecycle.licenses import Share, is_mix, shares, told
from synth_assets.lifecycle.release import card
from tests.releases import CONTRIBUTION


def declared(*licences: str) -> list[dict[str, Any]]:
    return [
        {"kind": "files", "name": f"s{place}", "path": "a.csv", "license": licence}
        for place, licence in enumerate(licences)
    ]


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["MIT", "CC0"], [Share("MIT", ("s0",), 2), Share("CC0", ("s1",), 3)]),
        (["MIT", "mit "], [Share("MIT", ("s0", "s1"), 5)]),
        (["CC BY 4.0", "cc-by-4.0"], [Share("CC BY 4.0", ("s0", "s1"), 5)]),
        (["MIT", "the MIT License"], [Share("MIT", ("s0", "s1"), 5)]),
        (["Apache-2.0", "Apache License, Version 2.0"], [Share("Apache-2.0", ("s0", "s1"), 5)]),
        (["apache2.0", "Apache v2"], [Share("apache2.0", ("s0", "s1"), 5)]),
        (["GPL-3.0", "GPL-3.0+"], [Share("GPL-3.0", ("s0",), 2), Share("GPL-3.0+", ("s1",), 3)]),
        (
            ["CC BY 4.0", "CC BY 3.0"],
            [Share("CC BY 4.0", ("s0",), 2), Share("CC BY 3.0", ("s1",), 3)],
        ),
        (
            ["cc-by-4.0", "cc_by_sa_4.0"],
            [Share("cc-by-4.0", ("s0",), 2), Share("cc_by_sa_4.0", ("s1",), 3)],
        ),
        (
            ["License", "\u8bb8\u53ef"],
            [Share("License", ("s0",), 2), Share("\u8bb8\u53ef", ("s1",), 3)],
        ),
        (["", ""], [Share("", ("s0", "s1"), 5)]),
        (["MIT", "", "MIT"], [Share("MIT", ("s0", "s2"), 6), Share("", ("s1",), 3)]),
    ],
)
def test_sources_are_told_by_licence(licences: list[str], expected: list[Share]) -> None:
    found = shares(declared(*licences), {"s0": 2, "s1": 3, "s2": 4})
    assert found == expected
    assert is_mix(found) == (len(expected) > 1)


@pytest.mark.parametrize("licences", [("MIT", "CC0"), ("MIT", ""), ("MIT", "MIT"), ("MIT",)])
def test_the_readme_of_a_release_tells_of_a_mix(licences: tuple[str, ...]) -> None:
    sources = declared(*licences)
    single: dict[str, Any] = {"source": sources[0]}
    made = {
        "dataset": "tickets",
        "description": "",
        "declared": {"sources": sources} if len(sources) > 1 else single,
        "model": {"name": "m"},
        "checks": {},
        "counts": {"sources": {"s0": 2, "s1": 3}},
        "contribution": {"sentence": "", "verdict": ""},
        "stages": {s: {"rows": 1, "data_version": "0"} for s in ("train", "validation", "eval")},
    }
    readme = card(made, CONTRIBUTION)
    if len(set(licences)) > 1:
        assert f"The licences are mixed: {told(shares(sources, {'s0': 2, 's1': 3}))}." in readme
        assert "MIT: s0, 2 rows" in readme
    else:
        assert "mixed" not in readme
