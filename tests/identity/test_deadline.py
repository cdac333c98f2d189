"""A deadline holds against calls that do not let themselves be cancelled."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.identity.deadline import Deadline
from tests.clock import LoopClock

pytestmark = pytest.mark.anyio


async def test_results_and_errors_pass_through() -> None:
    async def give() -> int:
        return 1

    async def fail() -> int:
        raise KeyError("x")

    deadline = Deadline(60.0)
    assert await deadline.run(give()) == 1
    with pytest.raises(KeyError):
        await deadline.run(fail())


@pytest.mark.parametrize("seconds", [30, 60], ids=["as long as the deadline", "longer"])
async def test_an_answer_that_came_while_the_process_stood_still_is_taken(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    async def answered() -> int:
        await asyncio.sleep(10)
        for _ in range(10):  # several turns of the loop, as database clients take them
            await asyncio.sleep(0)
        return 1

    clock = LoopClock(monkeypatch)
    waiting = asyncio.ensure_future(Deadline(30).run(answered()))
    await clock.forward(0)
    assert not waiting.done()
    await clock.forward(seconds)  # both timers ring now, late
    assert await waiting == 1


async def test_a_process_that_always_stands_still_waits_twice_as_long_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = LoopClock(monkeypatch)
    waiting = asyncio.ensure_future(Deadline(4).run(asyncio.Event().wait()))
    await clock.forward(0)
    for _ in range(8):
        assert not waiting.done()
        await clock.forward(10)
    with pytest.raises(TimeoutError):
        await waiting


async def test_a_call_that_resists_cancellation_is_left_to_itself() -> None:
    release = asyncio.Event()
    ended = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await release.wait()
            ended.set()

    deadline = Deadline(0.02)
    with pytest.raises(TimeoutError):
        await deadline.run(stubborn())
    assert not release.is_set()
    assert len(deadline._leaving) == 1
    release.set()
    await ended.wait()
    await asyncio.sleep(0)
    assert not deadline._leaving


async def test_a_cancelled_caller_takes_the_call_along() -> None:
    cancelled = asyncio.Event()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    task = asyncio.create_task(Deadline(60.0).run(wait()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(cancelled.wait(), 60)
