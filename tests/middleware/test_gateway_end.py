"""The end of a gateway: everything is closed, whatever one part says to that, and if nobody ends it but the loop."""

from __future__ import annotations

import asyncio
import gc

import anyio.to_thread
import httpx2
import pytest

from sidecar.asgi import Receive, Scope, Send
from sidecar.gateway import Gateway
from sidecar.inprocess import InProcess

pytestmark = pytest.mark.anyio


async def nothing(scope: Scope, receive: Receive, send: Send) -> None: ...


async def test_a_part_that_fails_to_close_keeps_no_other_open() -> None:
    closed: list[str] = []

    async def database() -> None:
        closed.append("database")

    async def journal() -> None:
        closed.append("journal")

    async def cache() -> None:
        raise OSError("the socket is gone")

    gateway = Gateway(nothing, [], render_metrics=bytes, closers=[database, journal, cache])
    with pytest.raises(OSError, match="the socket is gone"):
        async with gateway.lifespan():
            pass
    assert closed == ["journal", "database"]


class Parts:
    """What a gateway is composed of; tells what becomes of it."""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def open(self) -> None:
        self.told.append("opened")

    async def aclose(self) -> None:
        await asyncio.sleep(0.01)  # the loop still turns
        self.told.append("closed")


class Composing:
    """Gateways, each of parts of its own."""

    def __init__(self) -> None:
        self.made: list[Parts] = []

    def __call__(self) -> Gateway:
        parts = Parts()
        self.made.append(parts)
        return Gateway(nothing, [], render_metrics=bytes, starters=[parts.open], closers=[parts.aclose], again=self)


def test_a_gateway_that_nobody_ends_ends_with_the_loop_and_starts_anew_on_the_next() -> None:
    composing = Composing()
    gateway = composing()
    for _ in range(3):
        asyncio.run(gateway.start())
    assert [parts.told for parts in composing.made] == [["opened", "closed"]] * 3


def test_a_loop_that_is_closed_with_all_its_tasks_pending_is_left_behind() -> None:
    composing = Composing()
    gateway = composing()
    for _ in range(2):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(gateway.start())
        loop.close()
    asyncio.run(gateway.start())
    gc.collect()
    assert [parts.told for parts in composing.made] == [["opened"], ["opened"], ["opened", "closed"]]


async def test_one_that_was_ended_starts_anew_on_the_same_loop() -> None:
    composing = Composing()
    gateway = composing()
    for _ in range(2):
        async with gateway.lifespan():
            pass
    assert [parts.told for parts in composing.made] == [["opened", "closed"]] * 2


def test_one_that_was_ended_is_not_ended_again_with_the_loop() -> None:
    async def host() -> None:
        async with gateway.lifespan():
            pass

    composing = Composing()
    gateway = composing()
    asyncio.run(host())
    assert [parts.told for parts in composing.made] == [["opened", "closed"]]


def test_one_whose_start_is_cut_off_by_the_loops_end_is_closed() -> None:
    async def host() -> None:
        starting = asyncio.create_task(gateway.start())
        await asyncio.sleep(0.01)
        assert not starting.done()

    async def never() -> None:
        await asyncio.Event().wait()

    parts = Parts()
    gateway = Gateway(nothing, [], render_metrics=bytes, starters=[parts.open, never], closers=[parts.aclose])
    asyncio.run(host())
    assert parts.told == ["opened", "closed"]


async def test_while_it_serves_a_running_loop_others_are_refused() -> None:
    def other() -> httpx2.Response:
        async def call() -> httpx2.Response:
            async with httpx2.AsyncClient(transport=InProcess(gateway), base_url="http://127.0.0.1") as client:
                return await client.post("/v1/chat/completions")

        return asyncio.run(call())

    composing = Composing()
    gateway = composing()
    async with gateway.lifespan():
        refused = await anyio.to_thread.run_sync(other)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "another_event_loop")
        assert len(composing.made) == 1
