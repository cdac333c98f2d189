"""Idempotency-Key over the wire: the stock SDK, several processes on one Redis, a process killed in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from openai import AsyncOpenAI

from tests.e2e.conftest import IN_PROCESS, running_as
from tests.faults.provider import Fault, FaultProvider, fault_provider
from tests.promises.fleet import Fleet, fleet
from tests.promises.support import Running, body, eventually

pytestmark = pytest.mark.anyio
KEY = {"idempotency-key": "one and only"}


@pytest.fixture(scope="module", params=["serve", "mounted", "in-process"])
async def gateway_of_file(
    request: pytest.FixtureRequest, provider_of_file: FaultProvider, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    async with running_as(request.param, tmp_path_factory.mktemp("gateway"), provider_of_file.base_url) as running:
        yield running


@pytest.mark.parametrize("model", ["gpt", "claude"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_the_same_call_twice_is_one_provider_call_and_one_row(
    gateway: Running, faults: FaultProvider, model: str, stream: bool
) -> None:
    key = await gateway.mint()
    payload = body(model, stream=stream)
    first = await gateway.chat(key, payload, headers=KEY)
    again = await gateway.chat(key, payload, headers=KEY)
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.content == first.content
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["x-sidecar-replay-of"] == first.headers["x-request-id"]
    assert len(faults.requests) == 1
    (row,) = await gateway.rows(key, at_least=1)
    assert row["exchange_id"] == first.headers["x-request-id"]
    other = await gateway.mint()
    assert "idempotent-replayed" not in (await gateway.chat(other, payload, headers=KEY)).headers
    assert len(faults.requests) == 2


async def test_the_stock_sdk_gets_the_same_answer_again(gateway: Running, faults: FaultProvider) -> None:
    if gateway.url == IN_PROCESS:
        pytest.skip("the SDK over the wire")
    key = await gateway.mint()
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as client:
        said = []
        for _ in range(2):
            stream = await client.chat.completions.create(
                model="gpt", messages=[{"role": "user", "content": "hi"}], stream=True, extra_headers=KEY
            )
            said.append([chunk.model_dump() async for chunk in stream])
    assert said[0] == said[1]
    assert len(said[0]) > 3
    assert len(faults.requests) == 1


@pytest.mark.parametrize("fault", [Fault("status", status=500), Fault("cut", after=3)], ids=lambda f: f.kind)
async def test_a_failed_or_broken_answer_is_not_replayed(gateway: Running, faults: FaultProvider, fault: Fault) -> None:
    key = await gateway.mint()
    faults.script(fault)
    broken = await gateway.chat(key, body(stream=True), headers=KEY)
    assert broken.status_code == 500 or b"[DONE]" not in broken.content
    whole = await gateway.chat(key, body(stream=True), headers=KEY)
    assert whole.content.endswith(b"data: [DONE]\n\n")
    assert "idempotent-replayed" not in whole.headers
    assert len(faults.requests) == 2


@pytest.fixture
async def provider() -> AsyncIterator[FaultProvider]:
    async with fault_provider() as provider:
        yield provider


async def test_over_processes_a_call_is_made_once_whoever_leaves_or_dies(
    provider: FaultProvider, tmp_path: Path, redis_url: str, postgres_url: str
) -> None:
    """One start of the processes, several questions."""
    async with fleet(
        tmp_path, provider.base_url, database_url=postgres_url, redis_url=redis_url, workers=[2, 1]
    ) as gateways:
        for question in (
            a_hundred_at_once_over_three_processes_are_one_provider_call_and_one_row,
            the_first_caller_leaves_and_one_who_waits_elsewhere_runs_it,
            a_process_killed_in_the_middle_leaves_its_call_to_whoever_waits,
        ):
            provider.reset()
            await question(gateways, provider)


async def a_hundred_at_once_over_three_processes_are_one_provider_call_and_one_row(
    gateways: Fleet, provider: FaultProvider
) -> None:
    first, second = gateways.running
    key = await first.mint()
    provider.script(Fault(drip_s=0.2))
    both = [first, second] * 50
    answers = await asyncio.gather(*(one.chat(key, body(stream=True), headers=KEY, timeout=90) for one in both))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == 99
    assert len(provider.requests) == 1
    assert len(await first.rows(key, at_least=1)) == 1
    refused = await second.chat(key, body(stream=False), headers=KEY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "idempotency_key_reused")


async def a_process_killed_in_the_middle_leaves_its_call_to_whoever_waits(
    gateways: Fleet, provider: FaultProvider
) -> None:
    first, second = gateways.running
    key = await first.mint()
    provider.script(Fault("silent"))
    dies = asyncio.create_task(first.chat(key, body(), headers=KEY, timeout=90))
    await eventually(lambda: len(provider.requests) == 1)
    waits = [asyncio.create_task(second.chat(key, body(), headers=KEY, timeout=90)) for _ in range(5)]
    await asyncio.sleep(0.5)
    for worker in gateways.workers_of(first):
        worker.kill()
    with pytest.raises(httpx2.HTTPError):
        await dies
    answers = await asyncio.gather(*waits)
    assert {answer.status_code for answer in answers} == {200}
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == 4
    assert len(provider.requests) == 2


async def the_first_caller_leaves_and_one_who_waits_elsewhere_runs_it(gateways: Fleet, provider: FaultProvider) -> None:
    first, second = gateways.running
    key = await first.mint()
    provider.script(Fault("silent"))
    leaves = asyncio.create_task(first.chat(key, body(stream=True), headers=KEY, timeout=90))
    await eventually(lambda: len(provider.requests) == 1)
    waits = [asyncio.create_task(second.chat(key, body(stream=True), headers=KEY, timeout=90)) for _ in range(5)]
    await asyncio.sleep(0.3)
    leaves.cancel()
    answers = await asyncio.gather(*waits)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert len(provider.requests) == 2
    rows = await first.rows(key, at_least=2)
    assert sorted(row["outcome"] for row in rows) == ["client_left", "ok"]
