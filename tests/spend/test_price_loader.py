"""The bundled price list becomes our rate cards: tiers, dated prices, hours of the day, what it does not know.

The list's own calculator is the oracle, so these tests do not break when a vendor changes a price.
"""

from __future__ import annotations

import random
import warnings
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from genai_prices.data import providers
from genai_prices.types import ModelInfo, ModelPrice, TieredPrices, TimeOfDateConstraint
from genai_prices.types import Usage as ListUsage

from sidecar.spend.cost import UNPRICED, Rates, cost_nano, worst_case_nano
from sidecar.spend.price_loader import _dearest, known_models, load_price
from sidecar.types import Usage, usd_to_nano

AT = datetime(2026, 11, 21, 12, tzinfo=UTC)
_OURS = {"google": "gemini", "aws": "bedrock", "x-ai": "xai", "moonshotai": "moonshot"}
_NOT_COUNTED = {"cache_audio_read_mtok", "cache_image_read_mtok", "input_video_mtok", "output_video_mtok"}


def list_cost(model: ModelInfo, usage: Usage) -> int:
    """What the list's own calculator says, in nano-dollars. Its classes contain each other; ours are disjoint."""
    theirs = ListUsage(
        input_tokens=usage.total_input,
        cache_read_tokens=usage.cached_input or 0,
        cache_write_tokens=(usage.cache_write_5m or 0) + (usage.cache_write_1h or 0),
        cache_write_1h_tokens=usage.cache_write_1h or 0,
        input_audio_tokens=usage.audio_input or 0,
        input_image_tokens=usage.image_input or 0,
        output_tokens=usage.total_output,
        output_reasoning_tokens=usage.reasoning or 0,
        output_audio_tokens=usage.audio_output or 0,
        output_image_tokens=usage.image_output or 0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return usd_to_nano(model.get_prices(AT).calc_price(theirs)["total_price"])


def is_noisy(price: ModelPrice) -> bool:
    """A rate with float noise past our 12 decimals of a dollar per million tokens (0.04166666666666665)."""
    bases = (getattr(value, "base", value) for value in price.__dict__.values() if value is not None)
    return any(Decimal(rate) != Decimal(rate).quantize(Decimal("1e-12")) for rate in bases)


def fixed_models() -> list[tuple[str, ModelInfo]]:
    """Every listed model with one price all day, under our provider's name."""
    found = []
    for provider in providers:
        name = _OURS.get(provider.id, provider.id)
        for model in provider.models:
            prices = model.prices
            by_hour = not isinstance(prices, ModelPrice) and any(
                isinstance(conditional.constraint, TimeOfDateConstraint) for conditional in prices
            )
            if provider.find_model(model.id) is model and not by_hour:
                found.append((name, model))
    return found


def test_every_priced_model_costs_what_the_list_calculates() -> None:
    rng = random.Random(7)
    priced = 0
    for provider, model in fixed_models():
        price = load_price(provider, model.id, at=AT.timestamp())
        if price.status != "priced" or any(key in model.get_prices(AT).__dict__ for key in _NOT_COUNTED):
            continue
        priced += 1
        for most in (2_000, 600_000):
            usage = Usage(
                input=rng.randrange(most), cached_input=rng.randrange(most), cache_write_5m=rng.randrange(most),
                cache_write_1h=rng.randrange(most), output=rng.randrange(most), reasoning=rng.randrange(most),
                audio_input=rng.randrange(9), audio_output=rng.randrange(9), image_input=rng.randrange(9),
            )  # fmt: skip
            slack = 1 if is_noisy(model.get_prices(AT)) else 0
            assert abs(cost_nano(price, usage) - list_cost(model, usage)) <= slack, (provider, model.id, usage)
            assert worst_case_nano(price, usage.total_input, usage.total_output) >= cost_nano(price, usage)
    assert priced > 1000


def test_the_tier_begins_one_token_past_its_start() -> None:
    tiered = [
        (provider, model)
        for provider, model in fixed_models()
        if isinstance(model.get_prices(AT).input_mtok, TieredPrices)
    ]
    assert tiered
    for provider, model in tiered:
        input_price = model.get_prices(AT).input_mtok
        assert isinstance(input_price, TieredPrices)
        price = load_price(provider, model.id, at=AT.timestamp())
        for tier in input_price.tiers:
            for tokens in (tier.start, tier.start + 1):
                assert cost_nano(price, Usage(input=tokens)) == list_cost(model, Usage(input=tokens)), model.id


def test_a_price_that_depends_on_the_hour_is_taken_at_its_dearest() -> None:
    price = load_price("deepseek", "deepseek-chat", at=AT.timestamp())
    deepseek = next(p for p in providers if p.id == "deepseek")
    model = deepseek.find_model("deepseek-chat")
    assert model is not None
    for hour in range(24):
        theirs = model.get_prices(AT.replace(hour=hour, minute=45)).calc_price(
            ListUsage(input_tokens=10**6, output_tokens=10**6)
        )
        assert cost_nano(price, Usage(input=10**6, output=10**6)) >= usd_to_nano(theirs["total_price"])


def test_a_dated_price_is_the_one_of_the_instant() -> None:
    before = load_price("anthropic", "claude-sonnet-4-6", at=datetime(2026, 3, 12, 23, 59, tzinfo=UTC).timestamp())
    after = load_price("anthropic", "claude-sonnet-4-6", at=datetime(2026, 3, 13, tzinfo=UTC).timestamp())
    assert before.tiers
    assert not after.tiers


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "a-model-nobody-knows"),
        ("no-such-provider", "gpt-4o"),
        ("openai_compatible", "gpt-4o"),  # anybody's server behind a base URL
        ("ollama", "llama3"),
        ("openai", "whisper-1"),  # by the hour of audio
        ("perplexity", "sonar"),  # a fee per request besides the tokens
        ("openai", ""),
        ("openai", "\x00\ud800" * 50),
    ],
)
def test_what_is_not_known_is_unpriced_not_free(provider: str, model: str) -> None:
    assert load_price(provider, model).status == "unpriced"


def test_a_wildcard_knows_names_and_their_dated_forms_only() -> None:
    known = known_models("anthropic", at=AT.timestamp())
    assert known["claude-haiku-4-5"].rates.input == Decimal(1)
    assert known["claude-haiku-4-5-20251001"] == known["claude-haiku-4-5"]
    assert known.get("claude-haiku-4-5-my-own") is None
    assert known.get("x" * 100_000) is None
    assert len(known) == len(list(known)) > 20
    assert all(known[name].status == "priced" for name in known)
    assert dict(known_models("vllm")) == {}


def test_a_dated_name_with_a_price_of_its_own_keeps_it() -> None:
    known = known_models("openai", at=AT.timestamp())
    assert known["gpt-4o-2024-05-13"].rates.input == Decimal(5)
    assert known["gpt-4o"].rates.input == Decimal("2.5")


def test_made_up_dated_names_do_not_grow_memory() -> None:
    known = known_models("anthropic", at=AT.timestamp())
    for i in range(1500):
        known.get(f"claude-haiku-4-5-20{i:06d}")
    assert len(vars(known)["_prices"]) <= 1000 + len(known)


def test_the_dearest_of_several_cards_counts_what_a_class_falls_back_to() -> None:
    cards = [Rates(Decimal(4), Decimal(1)), Rates(Decimal(2), Decimal(9), cache_read=Decimal("0.2"))]
    assert _dearest(cards) == Rates(Decimal(4), Decimal(9), cache_read=Decimal(4))


def test_claude_costs_the_same_through_both_of_bedrocks_apis() -> None:
    model = "eu.anthropic.claude-haiku-4-5-20251001-v1:0"
    assert load_price("bedrock-invoke", model) == load_price("bedrock", model) != UNPRICED
