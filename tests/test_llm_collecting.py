"""The garbage collector is left as it was found, whoever asks at the same time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from synth_assets.llm.collecting import YOUNGEST, fewer_collections
from tests.llm_support import answers_of, endpoint_of, requests
from tests.openai_server import running_server


@pytest.fixture
def threshold() -> Iterator[tuple[int, int, int]]:
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield gc.get_threshold()
    gc.set_threshold(*before)


def test_the_last_who_leaves_puts_it_back(threshold: tuple[int, int, int]) -> None:
    first, second = fewer_collections(), fewer_collections()
    with first:
        second.__enter__()
        assert gc.get_threshold() == (YOUNGEST, *threshold[1:])
    assert gc.get_threshold() == (YOUNGEST, *threshold[1:])
    second.__exit__(None, None, None)
    assert gc.get_threshold() == threshold


@pytest.mark.parametrize("chosen", [0, YOUNGEST * 2])
def test_who_collects_never_or_more_rarely_is_left_alone(
    threshold: tuple[int, int, int], chosen: int
) -> None:
    gc.set_threshold(chosen, *threshold[1:])
    with fewer_collections():
        assert gc.get_threshold()[0] == chosen
    assert gc.get_threshold()[0] == chosen


def test_asking_puts_it_back(threshold: tuple[int, int, int], tmp_path: Path) -> None:
    seen = []
    with running_server() as server:
        answers = answers_of(
            requests(5),
            endpoint=endpoint_of(server),
            path=tmp_path / "l",
            on_event=lambda event: seen.append(gc.get_threshold()[0]),
        )
    assert all(answer.ok for answer in answers)
    assert set(seen) == {YOUNGEST}
    assert gc.get_threshold() == threshold
