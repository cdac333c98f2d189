"""Background tasks end, also those whose cancellation somebody lost on the way."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.tasks import end, stood_still

pytestmark = pytest.mark.anyio


async def test_a_cancellation_lost_beside_a_result_is_repeated() -> None:
    result: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    lost: list[asyncio.CancelledError] = []

    async def listens() -> None:
        try:
            await result
        except asyncio.CancelledError as error:  # as `asyncio.wait_for` before Python 3.12 when the result is there
            lost.append(error)
        await asyncio.Event().wait()

    task = asyncio.create_task(listens())
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await end([task, None], again_s=0.01)
    assert lost
    assert task.cancelled()


async def test_who_cleans_up_is_given_time_and_what_failed_keeps_its_error() -> None:
    cleaned = asyncio.Event()

    async def cleans() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            cleaned.set()

    async def fails() -> None:
        raise KeyError("x")

    tasks = [asyncio.create_task(cleans()), asyncio.create_task(fails())]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await end(tasks, again_s=60)
    assert cleaned.is_set()
    assert isinstance(tasks[1].exception(), KeyError)


async def test_whoever_waits_may_be_cancelled() -> None:
    async def stubborn() -> None:
        while True:
            try:
                await release.wait()
                return
            except asyncio.CancelledError:
                pass

    release = asyncio.Event()
    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await end([task], again_s=0.01)
    release.set()
    await task


async def test_a_timer_in_time_is_no_standstill_and_one_far_too_late_is() -> None:
    now = asyncio.get_running_loop().time()
    assert not stood_still(now + 1, 10)
    assert not stood_still(now - 0.5, 10)
    assert stood_still(now - 2, 10)
