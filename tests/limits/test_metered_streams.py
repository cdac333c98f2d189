"""A stream longer than the money held for it ends where the hold ends: an error event, and a row of what was used."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar.admit import METER_SLACK
from tests.faults.provider import COMPLETION_TOKENS, PROMPT_TOKENS, Fault, FaultProvider, fault_provider
from tests.promises.support import MODELS, Running, body, eventually, served

pytestmark = pytest.mark.anyio
OUTPUT = 64
CALL_USD = (PROMPT_TOKENS * 1 + COMPLETION_TOKENS * 2) / 1e6


@pytest.fixture(scope="module")
async def provider(anyio_backend: str) -> AsyncIterator[FaultProvider]:
    async with fault_provider() as found:
        yield found


@pytest.fixture(scope="module")
async def gateway(provider: FaultProvider, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with served(tmp_path_factory.mktemp("metered"), provider.base_url) as running:
        yield running


def events(text: str) -> list[str]:
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data:")]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("asked", [None, 20])
async def test_a_provider_that_ignores_the_cap_is_cut_where_the_hold_ends(
    gateway: Running, provider: FaultProvider, model: str, asked: int | None
) -> None:
    provider.reset()
    key = await gateway.mint(max_budget=1, max_parallel_requests=1)
    bound = OUTPUT if asked is None else asked
    provider.script(Fault("endless", drip_s=0.001))
    answer = await gateway.chat(key, body(model, stream=True) | ({"max_tokens": asked} if asked else {}))
    assert answer.status_code == 200
    *passed, last = events(answer.text)
    error = json.loads(last)["error"]
    assert (error["code"], error["type"]) == ("budget_exceeded", "budget_exceeded")
    assert "[DONE]" not in answer.text
    assert not any(choice["finish_reason"] for event in passed for choice in json.loads(event)["choices"])
    # The input was held as an estimate that is never under, so a few more tokens than the bound are paid for.
    assert bound / 2 < len(passed) < bound + 4 * PROMPT_TOKENS + METER_SLACK
    sent = provider.requests[0].json()
    assert sent.get("max_tokens", sent.get("max_completion_tokens")) == bound
    (row,) = await gateway.rows(key, at_least=1)
    assert (row["status"], row["outcome"]) == ("estimated", "incomplete")
    held_usd = (row["prompt_tokens"] + row["completion_tokens"] * 2) / 1e6
    assert row["spend"] == pytest.approx(held_usd)
    assert len(passed) - METER_SLACK - 1 <= row["completion_tokens"] <= len(passed)
    assert await gateway.spend(key) == pytest.approx(row["spend"])
    await gateway.is_free(key, model=model)  # the slot is free, and the rest of the budget
    # The provider generates for nobody any more.
    await eventually(lambda: provider.requests[0].closed_how == "left", name=lambda: provider.requests[0].closed_how)


@pytest.mark.parametrize("model", MODELS)
async def test_an_honest_stream_that_uses_its_whole_cap_is_not_cut(
    gateway: Running, provider: FaultProvider, model: str
) -> None:
    provider.reset()
    key = await gateway.mint(max_budget=1)
    answer = await gateway.chat(key, body(model, stream=True) | {"max_tokens": COMPLETION_TOKENS})
    assert answer.text.endswith("data: [DONE]\n\n")
    (row,) = await gateway.rows(key, at_least=1)
    assert (row["status"], row["outcome"], row["spend"]) == ("settled", "ok", pytest.approx(CALL_USD))


@pytest.mark.parametrize("model", MODELS)
async def test_without_a_budget_nothing_is_metered(gateway: Running, provider: FaultProvider, model: str) -> None:
    provider.reset()
    key = await gateway.mint()
    provider.script(Fault("held", drip_s=0.0001))
    async with gateway.http.stream(
        "POST", f"{gateway.url}/v1/chat/completions", headers={"authorization": f"Bearer {key}"},
        json=body(model, stream=True) | {"max_tokens": 3},
    ) as answer:  # fmt: skip
        seen = ""
        async for text in answer.aiter_text():
            seen += text
            if seen.count("data:") > 50:
                provider.release()
    assert seen.endswith("data: [DONE]\n\n")


async def test_the_rest_of_a_budget_is_the_cap_and_below_sixteen_tokens_nothing_goes_out(
    provider: FaultProvider, tmp_path: Path
) -> None:
    provider.reset()
    price = {"price": {"input": 0, "output": 2}}
    async with served(tmp_path, provider.base_url, deployment=price) as gateway:
        key = await gateway.mint(max_budget=0.00005)  # 25 tokens
        provider.script(Fault("endless", drip_s=0.001))
        answer = await gateway.chat(key, body(stream=True))
        sent = provider.requests[0].json()
        assert sent.get("max_tokens", sent.get("max_completion_tokens")) == 25
        assert json.loads(events(answer.text)[-1])["error"]["code"] == "budget_exceeded"
        (row,) = await gateway.rows(key, at_least=1)
        assert row["spend"] == pytest.approx(0.00005)
        refused = await gateway.chat(key, body(stream=True))
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "budget_exceeded")
        assert len(provider.requests) == 1


async def test_the_refuse_policy_wants_max_tokens_under_a_budget_and_only_there(
    provider: FaultProvider, tmp_path: Path
) -> None:
    provider.reset()
    async with served(tmp_path, provider.base_url, top={"budget": {"no_max_tokens": "refuse"}}) as gateway:
        key = await gateway.mint(max_budget=1)
        refused = await gateway.chat(key, body())
        error = refused.json()["error"]
        assert (refused.status_code, error["code"], error["param"]) == (429, "max_tokens_required", "max_tokens")
        assert provider.requests == []
        assert (await gateway.chat(key, body() | {"max_tokens": 9})).status_code == 200
        assert provider.requests[0].json()["max_tokens"] == 9
        assert (await gateway.chat(await gateway.mint(), body())).status_code == 200
