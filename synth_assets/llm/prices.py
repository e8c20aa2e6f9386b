"""What a model costs: declared prices first, then a maintained table that comes with the program.

The table is the snapshot inside the package ``genai-prices``: looking a price up asks nobody. It is
as old as the installed version, which every price names as its source.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final
from urllib.parse import urlsplit

from synth_assets.errors import UsageError, shown
from synth_assets.llm.budget import Prices, PriceTier

# A model on this machine's own cores: what it costs is not counted in tokens.
EMBEDDED: Final = Prices(0.0, 0.0, source="embedded model")

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_CALLS_PER_UNIT = 1000


def prices_of(
    declared: Prices | None, *, address: str, model: str, embedded: bool, at: datetime
) -> Prices | None:
    """The prices that hold for a dataset's calls; None when nobody here knows any.

    ``declared`` ones win; the embedded model costs nothing; else ``prices_for``.
    """
    if declared is not None:
        return declared
    return EMBEDDED if embedded else prices_for(address, model, at)


def prices_for(address: str, model: str, at: datetime | None = None) -> Prices | None:
    """The table's prices of ``model`` at an API ``address`` (a URL, or a bare host), at a time.

    The address decides whose price list it is, so a gateway, a server of one's own and this
    machine have none: None. Prices that change with the hour of the day are those of ``at``.
    """
    url = address if "://" in address else f"https://{address}"
    if _host(url) in _LOOPBACK:
        return None
    # Imported late: it takes a tenth of a second, and most commands need no price.
    import genai_prices

    try:
        found = genai_prices.calc_price(
            genai_prices.Usage(input_tokens=1, output_tokens=1),
            model,
            provider_api_url=url,
            genai_request_timestamp=at or datetime.now(UTC),
        )
    except LookupError:
        return None
    if _another_host(found.provider.api_pattern, url):
        return None
    return _from_table(found.model_price, source=f"genai-prices {genai_prices.__version__}")


def require_prices(prices: Prices | None, *, model: str) -> Prices:
    """``prices``, for a budget in US dollars. Raises UsageError when there are none."""
    if prices is None:
        raise UsageError(
            f"a budget in US dollars needs a price, and none is known for model {shown(model)}",
            where="budget.usd",
            fix="declare generate.prices (input_per_million, output_per_million), or cap tokens or "
            "calls instead",
        )
    return prices


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _another_host(pattern: str, url: str) -> bool:
    """Whether the pattern ended in the middle of a host name: api.example.com.elsewhere.net."""
    match = re.match(pattern, url)
    return match is not None and url[match.end() :].startswith((".", "-"))


def _from_table(row: Any, *, source: str) -> Prices | None:
    """Prices for text in and text out; None for a model that is not sold by such tokens."""
    reading, writing = row.input_mtok, row.output_mtok
    if reading is None or writing is None:
        return None
    starts = sorted({tier.start for price in (reading, writing) for tier in _tiers(price)})
    return Prices(
        _rate(reading, 0),
        _rate(writing, 0),
        source=source,
        tiers=tuple(
            PriceTier(start, _rate(reading, start + 1), _rate(writing, start + 1))
            for start in starts
        ),
        per_call=float(row.requests_kcount or 0) / _CALLS_PER_UNIT,
    )


def _tiers(price: Any) -> list[Any]:
    return [] if isinstance(price, Decimal) else list(price.tiers)


def _rate(price: Any, prompt_tokens: int) -> float:
    """US dollars per million tokens in the tier of a prompt of this size."""
    if isinstance(price, Decimal):
        return float(price)
    reached = [tier.price for tier in _tiers(price) if prompt_tokens > tier.start]
    return float(reached[-1] if reached else price.base)
