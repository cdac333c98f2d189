"""An answer whose client left is charged for thinking that no event told of: else leaving in time makes it free."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from sidecar.admit import THOUGHTS_A_SECOND, charge
from sidecar.asgi import Inbox
from sidecar.exchange import Attempt, Exchange
from sidecar.spend.cost import Price, Rates
from sidecar.types import Deployment, Usage

HOLD_NANO = 100_000_000
THINKING = {"reasoning_effort": "high"}


async def never() -> Any:
    raise AssertionError("nobody reads")


def left(model: str = "m", seconds: float = 20.0, usage: Usage = Usage(), **fields: Any) -> Attempt:  # noqa: B008 - frozen
    """An attempt at a stream whose client left after three events."""
    payload = {"model": "m", "max_tokens": 20_000, "messages": [{"role": "user", "content": "x"}], **fields}
    exchange = Exchange("x", 100.0, Inbox(never), now=lambda: 100.0 + seconds)
    exchange.raw, exchange.payload = json.dumps(payload).encode(), payload
    price = Price("priced", Rates(Decimal(1), Decimal(4)))
    deployment = Deployment("d", "g", "openai", model, "http://127.0.0.1", price=price)
    attempt = Attempt(1, deployment, 100.0, hold_nano=HOLD_NANO, usage=usage, events_seen=3, is_lost=True)
    exchange.attempts.append(attempt)
    charge(exchange, attempt)
    return attempt


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("gpt-5.1-mini", {}),
        ("openai/o4-mini", {}),
        ("grok-4-fast", {}),
        ("m", THINKING),
        ("m", {"thinking": {"type": "enabled", "budget_tokens": 9_000}}),
        ("m", {"reasoning": {"effort": "low"}}),
    ],
)
def test_thinking_nobody_saw_is_charged_by_the_time_it_took(model: str, fields: dict[str, Any]) -> None:
    attempt = left(model, **fields)
    assert attempt.usage.reasoning == 20 * THOUGHTS_A_SECOND
    assert attempt.usage.output == 3
    assert attempt.cost_nano is not None
    assert 16_000_000 < attempt.cost_nano < HOLD_NANO
    assert attempt.cost_status == "estimated"


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("m", {}),
        ("gpt-4o", {}),
        ("gpt-5-chat-latest", {}),
        ("gpt-oss-120b", {}),
        ("grok-4-fast-non-reasoning", {}),
        ("gpt-5.1", {"reasoning_effort": "none"}),
        ("m", {"thinking": {"type": "disabled"}}),
    ],
)
def test_who_does_not_think_is_charged_for_what_came(model: str, fields: dict[str, Any]) -> None:
    attempt = left(model, **fields)
    assert attempt.usage.reasoning is None
    assert attempt.usage.output == 3


def test_no_thinking_costs_more_than_is_held_for_it() -> None:
    attempt = left(seconds=3_600.0, **THINKING)
    assert attempt.cost_nano is not None
    assert HOLD_NANO - 10_000 < attempt.cost_nano <= HOLD_NANO


def test_what_the_vendor_tells_of_its_thinking_counts_as_it_says() -> None:
    attempt = left(usage=Usage(input=5, output=7, reasoning=11), **THINKING)
    assert (attempt.usage.output, attempt.usage.reasoning) == (7, 11)
