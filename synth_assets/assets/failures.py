"""A user's mistake inside a step becomes one clear message in the run, not a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from synth_assets.errors import SynthError

EXIT_CODE = "exit_code"


@contextmanager
def shown_to_user() -> Iterator[None]:
    """Turn a :class:`SynthError` into a ``dagster.Failure`` that is not retried."""
    try:
        yield
    except SynthError as error:
        raise dg.Failure(
            description=str(error), metadata={EXIT_CODE: error.exit_code}, allow_retries=False
        ) from None
