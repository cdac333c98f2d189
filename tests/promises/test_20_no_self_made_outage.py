"""*No self-made outage.* A lone deployment is asked however often it failed: what comes first once it healed is served.
Of several, a healed one is served again one pause later at most, by one trial, not by a crowd. A client's own mistakes
pause nothing. What one process found out the others know.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.provider import Fault, FaultProvider, fault_provider
from tests.promises.sizes import measured, size
from tests.promises.support import PROVIDER_KEY, Running, at_best, body, eventually, process, served

pytestmark = pytest.mark.anyio
SECONDS = size("PROMISE_20_SECONDS", 2, full=30)
"""How long the only deployment fails."""
PAUSE_S = 1.0
DOWN = Fault("status", status=500)
TIMEOUTS = {"connect_s": 60, "first_byte_s": 60, "gap_s": 60, "total_s": 120}


def place(dialect: str, provider: FaultProvider, **more: Any) -> dict[str, Any]:
    return {
        "provider": dialect, "model": "m", "api_key": PROVIDER_KEY, "price": {"input": 1, "output": 2},
        "base_url": f"{provider.base_url}/v1" if dialect == "openai" else provider.base_url,
        "max_output_tokens": 64, "timeouts": TIMEOUTS, **more,
    }  # fmt: skip


def top(first: FaultProvider, second: FaultProvider, *groups: str, **routing: Any) -> dict[str, Any]:
    """Groups of two: the first provider, and the second while the first cannot. `lone` has the first only."""
    both = [place("openai", first), place("anthropic", second, order=2)]
    models = [{"name": group, "deployments": both} for group in groups]
    return {
        "models": [{"name": "lone", "deployments": [place("openai", first)]}, *models],
        "routing": {"retries": 1, "cooldown_s": PAUSE_S, **routing},
    }


@pytest.fixture
async def pair() -> AsyncIterator[tuple[FaultProvider, FaultProvider]]:
    async with fault_provider() as first, fault_provider() as second:
        yield first, second


async def test_the_only_deployment_is_served_the_moment_it_heals(
    tmp_path: Path, pair: tuple[FaultProvider, FaultProvider]
) -> None:
    first, second = pair
    async with process(tmp_path, first.base_url, top=top(first, second)) as running:
        key = await running.mint()
        first.script(*[DOWN] * 100_000)
        until = time.monotonic() + SECONDS
        failed = 0
        while time.monotonic() < until:
            answers = await asyncio.gather(*(running.chat(key, body("lone", stream=n % 2 == 0)) for n in range(4)))
            assert {answer.status_code for answer in answers} == {500}, "the provider's own, never a refusal of ours"
            failed += len(answers)
        asked = len(first.requests)
        assert asked == 2 * failed, "each was asked, and once more"
        first.reset()
        answers = await asyncio.gather(*(running.chat(key, body("lone", stream=n % 2 == 0)) for n in range(8)))
        assert [answer.status_code for answer in answers] == [200] * 8
        measured(20, f"{failed} calls failed over {SECONDS} s; the first 8 after it, at once, were served")


async def asks(running: Running, key: str, model: str) -> str:
    answer = await running.chat(key, body(model))
    assert answer.status_code == 200, answer.text
    return str(answer.headers["x-sidecar-deployment"])


async def test_one_of_two_is_served_again_one_pause_after_it_healed(
    tmp_path: Path, pair: tuple[FaultProvider, FaultProvider]
) -> None:
    first, second = pair
    groups = [f"two-{number}" for number in range(5)]
    untried = iter(groups)
    async with served(tmp_path, first.base_url, top=top(first, second, *groups)) as running:
        key = await running.mint()

        async def once() -> float:
            group = next(untried)
            first.reset()
            first.script(*[DOWN] * 3)
            for _ in range(3):
                assert await asks(running, key, group) == f"{group}#1:anthropic", "the client sees nothing of it"
            assert len(first.requests) == 3
            paused_at = first.requests[-1].at

            async def is_back() -> bool:
                return await asks(running, key, group) == f"{group}#0:openai"

            await eventually(is_back)
            assert len(first.requests) == 4
            again_s = first.requests[-1].at - paused_at
            assert again_s >= 0.9 * PAUSE_S, "it is left alone"
            for _ in range(10):
                assert await is_back()
            return again_s

        again_s = await at_best(1.5 * PAUSE_S, once, tries=len(groups))
        measured(20, f"served again {again_s:.2f} s after it failed, with pauses of {PAUSE_S} s")


@pytest.mark.parametrize("is_stream", [True, False])
async def test_so_it_is_where_a_trial_before_hangs(
    tmp_path: Path, pair: tuple[FaultProvider, FaultProvider], is_stream: bool
) -> None:
    first, second = pair
    async with served(tmp_path, first.base_url, top=top(first, second, "two")) as running:
        key = await running.mint()
        first.script(*[DOWN] * 3)
        for _ in range(3):
            await asks(running, key, "two")
        await asyncio.sleep(1.1 * PAUSE_S)
        first.script(Fault("silent"))
        trial = asyncio.create_task(running.chat(key, body("two", stream=is_stream)))
        await eventually(lambda: len(first.requests) == 4)
        while await asks(running, key, "two") != "two#0:openai":
            assert not trial.done(), "nobody waits for what was swallowed"
            await asyncio.sleep(0.01)
        assert (trial.done(), len(first.requests)) == (False, 5)
        for _ in range(10):
            assert await asks(running, key, "two") == "two#0:openai"
        trial.cancel()
        await asyncio.wait({trial})


async def test_a_trial_is_one_request_however_many_come(
    tmp_path: Path, pair: tuple[FaultProvider, FaultProvider]
) -> None:
    first, second = pair
    async with served(tmp_path, first.base_url, top=top(first, second, "two")) as running:
        key = await running.mint()
        first.script(*[DOWN] * 3)
        for _ in range(3):
            await asks(running, key, "two")
        await asyncio.sleep(1.1 * PAUSE_S)
        first.reset()
        first.script(*[Fault("silent")] * 40)
        began_at = time.monotonic()
        crowd = [asyncio.create_task(asks(running, key, "two")) for _ in range(40)]
        await eventually(lambda: sum(task.done() for task in crowd) == 40 - len(first.requests) < 40, 50)
        trials_at = [seen.at - began_at for seen in first.requests]
        assert len(trials_at) <= 1 + trials_at[-1] / PAUSE_S, "only the trial waits for it, one in each pause"
        await first.aclose()
        assert await asyncio.gather(*crowd) == ["two#1:anthropic"] * 40, "and it, too, is served by the other"


MISTAKES = [
    (400, {"message": "no", "type": "invalid_request_error"}),
    (400, {"message": "too long", "type": "invalid_request_error", "code": "context_length_exceeded"}),
    (400, {"message": "filtered", "type": "invalid_request_error", "code": "content_filter"}),
    (403, {"message": "not yours", "type": "permission_error"}),
    (404, {"message": "no such model", "type": "invalid_request_error", "code": "model_not_found"}),
    (413, {"message": "too much", "type": "invalid_request_error"}),
    (422, {"message": "odd", "type": "invalid_request_error"}),
]


async def test_a_clients_own_mistakes_pause_nothing(tmp_path: Path, pair: tuple[FaultProvider, FaultProvider]) -> None:
    first, second = pair
    async with served(tmp_path, first.base_url, top=top(first, second, "two")) as running:
        bad, good = await running.mint(), await running.mint()
        for status, error in MISTAKES:
            first.script(*[Fault("status", status=status, body=json.dumps({"error": error}).encode())] * 30)
            second.script(*[Fault("status", status=status, body=json.dumps({"error": error}).encode())] * 30)
            answers = await asyncio.gather(*(running.chat(bad, body("two", stream=n % 2 == 0)) for n in range(30)))
            assert {answer.status_code for answer in answers} == {status}, answers[0].text
            first.reset(), second.reset()
            assert await asks(running, good, "two") == "two#0:openai", status
            assert second.requests == []


async def test_what_one_process_found_out_the_others_know(
    tmp_path: Path, pair: tuple[FaultProvider, FaultProvider], redis_url: str
) -> None:
    first, second = pair
    config = top(first, second, "two", cooldown_s=600) | {"store": {"redis_url": redis_url, "deadline_s": 20}}
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
    async with (
        process(folders[0], first.base_url, top=config) as one,
        process(folders[1], first.base_url, top=config) as other,
    ):
        mine, its = await one.mint(), await other.mint()
        assert await asks(other, its, "two") == "two#0:openai"
        first.reset()
        first.script(*[DOWN] * 3)
        for _ in range(3):
            await asks(one, mine, "two")
        assert len(first.requests) == 3

        async def knows() -> bool:
            return await asks(other, its, "two") == "two#1:anthropic"

        await eventually(knows, 60, lambda: "the other process to know")
        count = len(first.requests)
        for _ in range(10):
            assert await knows()
        assert len(first.requests) == count, "it is left alone by both"
