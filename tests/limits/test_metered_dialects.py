"""A stream longer than the money held for it ends where the hold ends, in every dialect a provider speaks."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from sidecar.admit import METER_SLACK
from tests.faults.provider import PROMPT_TOKENS, Fault, FaultProvider, fault_provider, stream_events
from tests.promises.support import PROVIDER_KEY, Running, body, eventually, served
from tests.translate.dialects import DIALECTS, dialect_of

pytestmark = pytest.mark.anyio
BOUND = 32


@pytest.fixture(scope="module")
async def provider(anyio_backend: str) -> AsyncIterator[FaultProvider]:
    async with fault_provider() as found:
        yield found


@pytest.fixture(scope="module")
async def gateway(provider: FaultProvider, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    models = []
    for name in DIALECTS:
        dialect = dialect_of(name)
        deployment = {
            "provider": name, "model": f"{name}-1", "api_key": PROVIDER_KEY, "price": {"input": 1, "output": 2},
            "base_url": provider.base_url + dialect.base_path, "max_output_tokens": BOUND, **dialect.options,
        }  # fmt: skip
        models.append({"name": name, "deployments": [deployment]})
    async with served(tmp_path_factory.mktemp("metered"), provider.base_url, top={"models": models}) as running:
        yield running


@pytest.mark.parametrize("name", DIALECTS)
async def test_a_stream_that_outgrows_its_hold_is_ended_in_protocol(
    name: str, gateway: Running, provider: FaultProvider
) -> None:
    provider.reset()
    dialect = dialect_of(name)
    word = next(at for at, event in enumerate(stream_events(name, usage=True)) if dialect.says(event, b"one"))
    provider.script(Fault("endless", after=word, drip_s=0.001))
    key = await gateway.mint(max_budget=1, max_parallel_requests=1)
    answer = await gateway.chat(key, body(name, stream=True))
    assert answer.status_code == 200, answer.text
    *passed, last = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data:")]
    assert json.loads(last)["error"]["code"] == "budget_exceeded"
    assert not any(choice["finish_reason"] for event in passed for choice in json.loads(event)["choices"])
    # The input was held as an estimate that is never under, so a few more tokens than the bound are paid for.
    assert BOUND / 2 < len(passed) < BOUND + 4 * PROMPT_TOKENS + METER_SLACK
    (row,) = await gateway.rows(key, at_least=1)
    assert (row["status"], row["outcome"]) == ("estimated", "incomplete")
    assert await gateway.spend(key) == pytest.approx(row["spend"])
    await gateway.is_free(key, model=name)
    # The provider generates for nobody any more.
    await eventually(lambda: provider.requests[0].closed_how == "left", name=lambda: provider.requests[0].closed_how)
