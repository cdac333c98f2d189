"""Prices of known models from the list inside `genai-prices`, turned into our `Price` when the configuration loads.

Neighbours: `cost.py` (the rate card), `config` (the caller). Rules: nothing of the library runs for a request – its
caches would grow with names clients choose –; what the list does not know, or charges by something we do not count,
is `unpriced`, never $0; no error of the list fails a start or a request.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping
from decimal import ROUND_UP, Decimal
from functools import cache
from typing import TYPE_CHECKING, Any

from sidecar.spend.cost import UNPRICED, Price, Rates, Tier

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, Provider

_log = logging.getLogger(__name__)

_LIST_NAMES = {"azure_openai": "azure", "bedrock": "aws", "bedrock-invoke": "aws", "gemini": "google",
               "vertex": "google", "xai": "x-ai", "moonshot": "moonshotai"}  # fmt: skip
"""Our provider → the list's id, where they differ. The list's own fuzzy matching of provider names is not used: it
takes `openai_compatible`, which is anybody's server, for OpenAI."""

_CLASSES = {
    "input": "input_mtok",
    "output": "output_mtok",
    "cache_read": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
    "cache_write_1h": "cache_write_1h_mtok",
    "reasoning": "output_reasoning_mtok",
    "audio_input": "input_audio_mtok",
    "audio_output": "output_audio_mtok",
    "image_input": "input_image_mtok",
    "image_output": "output_image_mtok",
}
_PER_REQUEST = ("requests_kcount", "input_mchars", "input_text_messages_kcount", "output_citation_mtok")
"""Charged on every chat request, and not by the classes we count: such a model is unpriced rather than too cheap."""

_AUDIO = "audio"
"""In the name of models that speak; where the list has the price of their text alone, audio would be far too cheap."""

_ATTO = Decimal("1e-12")
_DATED = re.compile(r"^(.+?)[-@](20\d{6}|20\d\d-\d\d-\d\d|latest)$")
_MAX_DATED = 1000


def load_price(provider: str, model: str, *, at: float | None = None) -> Price:
    """The list's price of a configured model at an instant (now); `UNPRICED` if it has none. Prices that depend on
    the time of day are taken at their dearest."""
    try:
        listed = _provider(provider)
        found = listed.find_model(model, all_providers=_providers()) if listed is not None else None
        return _price(found, at) if found is not None else UNPRICED
    except Exception as error:  # noqa: BLE001 - a faulty price list must not stop the gateway
        _log.warning("no price for %s/%s: %s", provider, model, error)
        return UNPRICED


def known_models(provider: str, *, at: float | None = None) -> Mapping[str, Price]:
    """Every name the list spells out for a provider's models, for wildcard groups: `known_models("anthropic")
    ["claude-haiku-4-5"]`. A dated name (`…-20251001`, `…-2025-10-01`, `…-latest`) of a known one is known too. Empty
    if the list does not know the provider. Memory is bounded whatever is asked."""
    try:
        listed = _provider(provider)
        return KnownModels(provider, _names(listed), at) if listed is not None else {}
    except Exception as error:  # noqa: BLE001
        _log.warning("no prices for %s: %s", provider, error)
        return {}


class KnownModels(Mapping[str, Price]):
    """Name → price, resolved when first asked and kept."""

    def __init__(self, provider: str, names: frozenset[str], at: float | None) -> None:
        self._provider = provider
        self._names = names
        self._at = time.time() if at is None else at
        self._prices: dict[str, Price] = {}
        self._dated = 0

    def __getitem__(self, model: str) -> Price:
        price = self._prices.get(model)
        if price is not None:
            return price
        if model not in self._names:
            dated = _DATED.match(model) if len(model) < 200 else None
            if dated is None or dated[1] not in self._names:
                raise KeyError(model)
            price = load_price(self._provider, model, at=self._at)
            if self._dated >= _MAX_DATED:
                return price
            self._dated += 1
        else:
            price = load_price(self._provider, model, at=self._at)
        self._prices[model] = price
        return price

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._names))

    def __len__(self) -> int:
        return len(self._names)


@cache
def _providers() -> list[Provider]:
    """The list in the wheel, without the library's lookup caches around it."""
    from genai_prices.data import providers

    return providers


def _provider(name: str) -> Provider | None:
    wanted = _LIST_NAMES.get(name, name)
    return next((provider for provider in _providers() if provider.id == wanted), None)


def _names(provider: Provider) -> frozenset[str]:
    """The ids of a provider's models (and of those it resells) and every literal in their matching rules."""
    resold = provider.fallback_model_providers or []
    listed = [provider, *(other for other in _providers() if other.id in resold)]
    found: set[str] = set()
    for model in (model for source in listed for model in source.models):
        found.add(model.id)
        found.update(_literals(model.match))
    return frozenset(found)


def _literals(rule: Any) -> Iterator[str]:
    for name in ("equals", "starts_with"):
        literal = getattr(rule, name, None)
        if isinstance(literal, str) and not literal.endswith(("-", "@", ":", ".", "/")):
            yield literal
    for nested in getattr(rule, "or_", ()):
        yield from _literals(nested)


def _price(model: ModelInfo, at: float | None) -> Price:
    rates = [r for r in map(_rate_card, _applicable(model, time.time() if at is None else at)) if r is not None]
    if not rates or (_AUDIO in model.id and any(card.audio_output is None for card, _ in rates)):
        return UNPRICED
    if len(rates) == 1:
        return Price("priced", rates[0][0], rates[0][1])
    starts = sorted({tier.above_input_tokens for _, tiers in rates for tier in tiers})
    return Price(
        "priced",
        _dearest([base for base, _ in rates]),
        tuple(Tier(start, _dearest([_at_start(card, start) for card in rates])) for start in starts),
    )


def _applicable(model: ModelInfo, at: float) -> list[ModelPrice]:
    """The price in force and, after it, those for times of the day (the list's later entries take precedence)."""
    from datetime import UTC, datetime

    from genai_prices.types import ModelPrice, TimeOfDateConstraint

    if isinstance(model.prices, ModelPrice):
        return [model.prices]
    by_hour: list[ModelPrice] = []
    now = datetime.fromtimestamp(at, UTC)
    for conditional in reversed(model.prices):
        if isinstance(conditional.constraint, TimeOfDateConstraint):
            by_hour.append(conditional.prices)
        elif conditional.constraint is None or conditional.constraint.active(now):
            return [conditional.prices, *by_hour]
    return [model.prices[0].prices, *by_hour]


def _rate_card(price: ModelPrice) -> tuple[Rates, tuple[Tier, ...]] | None:
    from genai_prices.types import TieredPrices

    values = {name: value for name, key in _CLASSES.items() if (value := getattr(price, key)) is not None}
    if "input" not in values or any(getattr(price, key) for key in _PER_REQUEST):
        return None
    starts = sorted(
        {tier.start for value in values.values() if isinstance(value, TieredPrices) for tier in value.tiers}
    )

    def rates(input_tokens: int) -> Rates:
        return Rates(**{name: _rounded(_tier_price(value, input_tokens)) for name, value in values.items()})

    return rates(0), tuple(Tier(start, rates(start + 1)) for start in starts)


def _tier_price(value: Any, input_tokens: int) -> Decimal:
    found = getattr(value, "base", value)
    for tier in getattr(value, "tiers", ()):
        if input_tokens > tier.start:
            found = tier.price
    assert isinstance(found, Decimal)
    return found


def _rounded(rate: Decimal) -> Decimal:
    """Some list prices carry float noise (0.30000000000000004)."""
    rounded = rate.quantize(_ATTO)
    if abs(rounded - rate) > Decimal("1e-13") * max(rate, Decimal(1)):
        rounded = rate.quantize(_ATTO, rounding=ROUND_UP)
    return rounded.normalize()


def _at_start(card: tuple[Rates, tuple[Tier, ...]], start: int) -> Rates:
    reached = [tier for tier in card[1] if tier.above_input_tokens <= start]
    return max(reached, key=lambda tier: tier.above_input_tokens).rates if reached else card[0]


_FALLS_BACK_TO = {"cache_write_1h": "cache_write", "reasoning": "output", "audio_output": "output",
                  "image_output": "output"}  # fmt: skip


def _dearest(cards: list[Rates]) -> Rates:
    """The highest rate of each class; a class without a rate of its own in one card counts at what it falls back to."""
    found: dict[str, Decimal | None] = {}
    for name in _CLASSES:
        has_own = any(getattr(card, name) is not None for card in cards)
        found[name] = max(_effective(card, name) for card in cards) if has_own else None
    return Rates(**found)  # type: ignore[arg-type]


def _effective(card: Rates, name: str) -> Decimal:
    while (rate := getattr(card, name)) is None:
        name = _FALLS_BACK_TO.get(name, "input")
    assert isinstance(rate, Decimal)
    return rate
