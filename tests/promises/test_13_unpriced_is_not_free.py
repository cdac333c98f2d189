"""*Unpriced is not free.* A model without a price is refused under a budget, or flagged if the policy says so, and
never costs $0; one declared free works over an exhausted budget. The row tells the three apart.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.provider import COMPLETION_TOKENS, PROMPT_TOKENS, FaultProvider
from tests.promises.support import PROVIDER_KEY, Running, body, served

pytestmark = pytest.mark.anyio

CALL_USD = (PROMPT_TOKENS * 1 + COMPLETION_TOKENS * 2) / 1e6
HELD_USD = 0.001
"""Covers any one call's hold."""


def models(provider_url: str) -> list[dict[str, Any]]:
    """The same provider under three prices, in both dialects, and by wildcard."""
    prices: dict[str, dict[str, Any]] = {
        "priced": {"price": {"input": 1, "output": 2}}, "free": {"price": "free"}, "mystery": {}, "zero": {
            "price": {"input": 0, "output": 0}}
    }  # fmt: skip
    made = [
        {
            "name": f"{name}-{provider}",
            "deployments": [
                {"provider": provider, "model": f"{name}-1", "api_key": PROVIDER_KEY, "base_url": url,
                 "max_output_tokens": 64, **price}
            ],
        }
        for name, price in prices.items()
        for provider, url in (("openai", f"{provider_url}/v1"), ("anthropic", provider_url))
    ]  # fmt: skip
    wildcard = {"provider": "openai", "model": "*", "api_key": PROVIDER_KEY, "base_url": f"{provider_url}/v1"}
    return [*made, {"name": "any/*", "deployments": [wildcard]}]


UNPRICED = ("mystery-openai", "mystery-anthropic", "any/gpt-never-heard-of")
FREE = ("free-openai", "free-anthropic", "zero-openai")


@pytest.fixture(scope="module")
async def refusing(provider_of_file: FaultProvider, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """The default policy."""
    url = provider_of_file.base_url
    async with served(tmp_path_factory.mktemp("refusing"), url, top={"models": models(url)}) as running:
        yield running


@pytest.fixture(scope="module")
async def flagging(provider_of_file: FaultProvider, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    url = provider_of_file.base_url
    top = {"models": models(url), "budget": {"unpriced": "flag"}}
    async with served(tmp_path_factory.mktemp("flagging"), url, top=top) as running:
        yield running


async def check_row(gateway: Running, key: str, status: str, spend: float | None) -> None:
    (row,) = await gateway.rows(key, at_least=1)
    assert (row["status"], row["spend"]) == (status, pytest.approx(spend) if spend else spend)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (PROMPT_TOKENS, COMPLETION_TOKENS)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", UNPRICED)
async def test_under_a_budget_an_unpriced_model_is_refused_before_anything_is_spent(
    refusing: Running, faults: FaultProvider, model: str, stream: bool
) -> None:
    key = await refusing.mint(max_budget=1)
    answer = await refusing.chat(key, body(model, stream=stream))
    assert answer.status_code == 403
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("model_unpriced", "model")
    assert model in error["message"]
    assert faults.requests == []
    priced = await refusing.chat(key, body("priced-openai"))
    assert priced.headers["x-sidecar-cost-usd"] == f"{CALL_USD:.6f}"
    await check_row(refusing, key, "settled", CALL_USD)  # the refusal has no row and held nothing


async def test_the_gateways_own_budget_counts_as_one(provider_of_file: FaultProvider, tmp_path: Path) -> None:
    provider_of_file.reset()
    url = provider_of_file.base_url
    async with served(tmp_path, url, top={"models": models(url), "budget": {"max_usd": 1}}) as gateway:
        key = await gateway.mint()
        for model in UNPRICED:
            answer = await gateway.chat(key, body(model))
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "model_unpriced")
        assert provider_of_file.requests == []
        assert (await gateway.chat(key, body("free-openai"))).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", UNPRICED)
async def test_without_a_budget_it_is_served_and_its_cost_is_unknown_not_zero(
    refusing: Running, faults: FaultProvider, model: str, stream: bool
) -> None:
    key = await refusing.mint()
    answer = await refusing.chat(key, body(model, stream=stream), headers={"x-sidecar-cost": "trailer"})
    assert answer.status_code == 200
    assert "x-sidecar-cost-usd" not in answer.headers
    assert "cost" not in answer.text
    await check_row(refusing, key, "unpriced", None)


@pytest.mark.parametrize("model", UNPRICED)
async def test_the_flag_policy_serves_it_under_a_budget_and_the_row_says_so(
    flagging: Running, faults: FaultProvider, model: str
) -> None:
    key = await flagging.mint(max_budget=1)
    answer = await flagging.chat(key, body(model))
    assert answer.status_code == 200
    assert "x-sidecar-cost-usd" not in answer.headers
    await check_row(flagging, key, "unpriced", None)
    assert await flagging.spend(key) == 0
    sent = faults.requests[0].json()
    assert sent.get("max_tokens", sent.get("max_completion_tokens")), "the output is bounded all the same"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", FREE)
async def test_a_model_declared_free_works_over_an_exhausted_budget(
    refusing: Running, faults: FaultProvider, model: str, stream: bool
) -> None:
    key = await refusing.mint(max_budget=HELD_USD)
    assert (await refusing.chat(key, body("priced-openai"))).status_code == 200
    await refusing.rows(key, at_least=1)
    # Below what is spent already: exhausted beyond doubt.
    await refusing.admin("/key/update", {"key": key, "max_budget": CALL_USD / 2})
    refused = await refusing.chat(key, body("priced-openai"))
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "budget_exceeded"
    unpriced = await refusing.chat(key, body("mystery-openai"))
    assert (unpriced.status_code, unpriced.json()["error"]["code"]) == (403, "model_unpriced")
    for _ in range(3):
        answer = await refusing.chat(key, body(model, stream=stream))
        assert answer.status_code == 200, answer.text
    if not stream:
        assert answer.headers["x-sidecar-cost-usd"] == "0"
    rows = await refusing.rows(key, at_least=4)
    expected = "free" if model.startswith("free") else "settled"
    assert [(row["status"], row["spend"]) for row in rows[1:]] == [(expected, 0)] * 3
    assert await refusing.spend(key) == pytest.approx(CALL_USD)
    assert len(faults.requests) == 4


async def test_the_record_tells_priced_free_and_unpriced_apart(flagging: Running, faults: FaultProvider) -> None:
    key = await flagging.mint()
    for model in ("priced-anthropic", "free-anthropic", "mystery-anthropic"):
        assert (await flagging.chat(key, body(model))).status_code == 200
    rows = await flagging.rows(key, at_least=3)
    assert [row["status"] for row in rows] == ["settled", "free", "unpriced"]
    assert [row["spend"] for row in rows] == [pytest.approx(CALL_USD), 0, None]
