"""The breaker before the database: who is let through, what opens and what closes it."""

from __future__ import annotations

import asyncio
import time

import pytest

from sidecar.db.breaker import Breaker, KnownDownError
from sidecar.errors import ConflictError, UnavailableError

pytestmark = pytest.mark.anyio


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(clock=clock)
    with pytest.raises(ConnectionRefusedError), breaker.watch():
        raise ConnectionRefusedError
    return breaker


async def test_after_a_failure_nobody_is_let_through_but_one_after_each_pause() -> None:
    clock = Clock()
    breaker = opened(clock)
    assert breaker.is_open
    with pytest.raises(KnownDownError), breaker.watch():
        pass
    clock.now += 1
    with breaker.watch():
        with pytest.raises(KnownDownError), breaker.watch():
            pass
        assert breaker.is_open
    assert not breaker.is_open
    with breaker.watch(), breaker.watch():
        pass


@pytest.mark.parametrize("error", [TimeoutError(), OSError("reset"), UnavailableError("no")])
async def test_a_probe_that_fails_keeps_it_open(error: Exception) -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 1
    with pytest.raises(type(error)), breaker.watch():
        raise error
    clock.now += 0.9
    with pytest.raises(KnownDownError), breaker.watch():
        pass


async def test_an_answer_that_refuses_is_an_answer() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 1
    with pytest.raises(ConflictError), breaker.watch():
        raise ConflictError("exists")
    assert not breaker.is_open


async def test_a_slow_use_opens_it_while_it_waits_and_closes_it_when_it_is_answered_after_all() -> None:
    breaker = Breaker(clock=Clock())
    with breaker.watch(0.01):
        while not breaker.is_open:
            await asyncio.sleep(0.005)
        with pytest.raises(KnownDownError), breaker.watch(0.01):
            pass
    assert not breaker.is_open


async def test_a_cancelled_use_says_nothing_of_the_database() -> None:
    breaker = Breaker()
    with pytest.raises(asyncio.CancelledError), breaker.watch():
        raise asyncio.CancelledError
    assert not breaker.is_open


async def test_a_loop_that_stood_still_says_nothing_of_the_database() -> None:
    breaker = Breaker()
    with breaker.watch(0.5):
        await asyncio.sleep(0)
        time.sleep(0.8)  # noqa: ASYNC251 – the process gets no CPU; the answer comes meanwhile and lies unread
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not breaker.is_open
        while not breaker.is_open:  # a loop that turns: now it is the database
            await asyncio.sleep(0.01)
