"""Money arithmetic: golden costs, rounding once, fallbacks, tiers, and holds that are never under."""

from __future__ import annotations

import pickle
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.spend.cost import (
    FREE,
    UNBOUNDED,
    UNPRICED,
    Price,
    Rates,
    Tier,
    affordable_output,
    cost_nano,
    worst_case_nano,
)
from sidecar.spend.prices import price_from_config
from sidecar.types import Usage

D = Decimal
SONNET = price_from_config(
    {"input": D(3), "output": D(15), "cache_read": D("0.3"), "cache_write": D("3.75"), "cache_write_1h": D(6)}
)
MINI = price_from_config({"input": D("0.15"), "output": D("0.6")})
TIERED = Price(
    "priced",
    Rates(input=D("1.25"), output=D(10), cache_read=D("0.125")),
    (Tier(200_000, Rates(input=D("2.5"), output=D(15), cache_read=D("0.25"))),),
)
FINE = price_from_config({"input": D("0.0005"), "output": D("0.0015")})


@pytest.mark.parametrize(
    ("price", "usage", "nano"),
    [
        (SONNET, Usage(input=2743, output=4), 8_289_000),
        (SONNET, Usage(input=1, cached_input=1000, cache_write_5m=100, cache_write_1h=10, output=2), 768_000),
        (MINI, Usage(input=7, output=5), 1_050 + 3_000),
        (MINI, Usage(input=7, cached_input=3, audio_input=2, image_input=1, output=5, reasoning=4), 13 * 150 + 9 * 600),
        (MINI, Usage(), 0),
        (MINI, Usage(input=-5, output=5), 3_000),
        (TIERED, Usage(input=200_000, output=1), 250_010_000),
        (TIERED, Usage(input=200_001, output=1), 500_017_500),
        (TIERED, Usage(input=1, cached_input=200_000, output=1), 2_500 + 50_000_000 + 15_000),
        (FINE, Usage(input=1), 0),  # 0.5 nano → even
        (FINE, Usage(input=3), 2),  # 1.5 → 2
        (FINE, Usage(input=5), 2),  # 2.5 → 2
        (FINE, Usage(input=1, output=1), 2),  # 0.5 + 1.5, rounded once
        (price_from_config({"input": D("0.0833333333333333"), "output": D("1E+1")}), Usage(input=12, output=1), 11_000),
        (FREE, Usage(input=1000, output=1000), 0),
        (UNPRICED, Usage(input=1000, output=1000), 0),
    ],
)
def test_a_usage_costs_exactly_this(price: Price, usage: Usage, nano: int) -> None:
    assert cost_nano(price, usage) == nano


counts = st.integers(0, 3_000_000)


@given(counts, counts, st.sampled_from([SONNET, MINI, TIERED, FINE]), st.data())
def test_the_worst_case_is_never_under_the_cost(inputs: int, outputs: int, price: Price, data: st.DataObject) -> None:
    cached = data.draw(st.integers(0, inputs))
    written = data.draw(st.integers(0, inputs - cached))
    reasoning = data.draw(st.integers(0, outputs))
    usage = Usage(
        input=inputs - cached - written,
        cached_input=cached,
        cache_write_1h=written,
        output=outputs - reasoning,
        reasoning=reasoning,
    )
    assert worst_case_nano(price, inputs, outputs) >= cost_nano(price, usage)


@given(counts, st.integers(0, 10**12), st.sampled_from([SONNET, MINI, TIERED, FINE]))
def test_affordable_output_is_the_most_that_fits(inputs: int, nano: int, price: Price) -> None:
    most = affordable_output(price, inputs, nano)
    if most or worst_case_nano(price, inputs, 0) <= nano:
        assert worst_case_nano(price, inputs, most) <= nano
    assert worst_case_nano(price, inputs, most + 1) > nano


def test_output_that_costs_nothing_is_unbounded() -> None:
    assert affordable_output(FREE, 10, 0) == UNBOUNDED
    assert affordable_output(price_from_config({"input": D(1), "output": D(0)}), 10, 10**9) == UNBOUNDED


def test_holds_round_up() -> None:
    assert worst_case_nano(FINE, 1, 0) == 1


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"input": D(1), "output": D(1), "cached": D(1)}, "no key 'cached'"),
        ({"input": D(1)}, "needs 'output'"),
        ({"input": D(-1), "output": D(1)}, "0 or more"),
        ({"input": D("nan"), "output": D(1)}, "0 or more"),
        ({"input": 0.1, "output": D(1)}, "not float"),
        ({"input": D("1e-21"), "output": D(1)}, "20 decimals"),
        ({"input": D("1e7"), "output": D(1)}, "a number of USD"),
        ("gratis", "'free' or a mapping"),
    ],
)
def test_a_price_that_is_not_understood_is_an_error_that_says_why(value: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        price_from_config(value)  # type: ignore[arg-type]


def test_free_is_declared_and_a_price_survives_pickling() -> None:
    assert price_from_config("free") is FREE
    copy = pickle.loads(pickle.dumps(TIERED))
    assert copy == TIERED
    assert cost_nano(copy, Usage(input=1)) == cost_nano(TIERED, Usage(input=1))
