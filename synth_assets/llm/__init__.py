"""Asking language models: every paid answer is kept, and none is paid for twice.

The nouns: ``Request`` (what is asked, and its identity), ``Endpoint`` (where), ``Ledger`` (what
was paid for), ``Limits`` and ``Budget`` (how much), ``ask`` (does it), ``Answer`` (what came of
it). ``run_sync`` runs it from ordinary code.
"""

from __future__ import annotations

from synth_assets.llm.answers import Answer, Tallies
from synth_assets.llm.attempts import Event
from synth_assets.llm.budget import Budget, Caps, Prices
from synth_assets.llm.endpoint import Endpoint
from synth_assets.llm.engine import ask
from synth_assets.llm.errors import ErrorKind
from synth_assets.llm.formats import build_body, items_of, kind_of, output_mode
from synth_assets.llm.identity import Request
from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.llm.ledger.rows import LedgerError, Spent
from synth_assets.llm.scheduler import Limits
from synth_assets.llm.sync import run_sync

__all__ = [
    "Answer",
    "Budget",
    "Caps",
    "Endpoint",
    "ErrorKind",
    "Event",
    "Ledger",
    "LedgerError",
    "Limits",
    "Prices",
    "Request",
    "Spent",
    "Tallies",
    "ask",
    "build_body",
    "items_of",
    "kind_of",
    "output_mode",
    "run_sync",
]
