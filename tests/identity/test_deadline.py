"""A deadline holds against calls that do not let themselves be cancelled."""

from __future__ import annotations

import asyncio
import time

import pytest

from sidecar.identity.deadline import Deadline

pytestmark = pytest.mark.anyio


async def test_results_and_errors_pass_through() -> None:
    async def give() -> int:
        return 1

    async def fail() -> int:
        raise KeyError("x")

    deadline = Deadline(5.0)
    assert await deadline.run(give()) == 1
    with pytest.raises(KeyError):
        await deadline.run(fail())


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
    began = time.perf_counter()
    with pytest.raises(TimeoutError):
        await deadline.run(stubborn())
    assert time.perf_counter() - began < 1.0
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

    task = asyncio.create_task(Deadline(5.0).run(wait()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(cancelled.wait(), 1)
