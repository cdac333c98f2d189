"""A TCP relay in front of a real server: it can stand still, as a network that loses everything, or hang up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit


class Relay:
    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._flows = asyncio.Event()
        self._flows.set()
        self.stands_still = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_down = False
        self._left: int | None = None
        self.server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        assert self.server is not None
        port: int = self.server.sockets[0].getsockname()[1]
        return port

    def freeze(self) -> None:
        self._flows.clear()
        self.stands_still.set()

    def freeze_after(self, pieces: int) -> None:
        """Once so many more pieces of data have passed, to either side."""
        self._left = pieces

    async def holds_up(self, task: asyncio.Future[Any]) -> bool:
        """Whether it comes to stand still before the task is over."""
        standing = asyncio.ensure_future(self.stands_still.wait())
        await asyncio.wait({task, standing}, return_when=asyncio.FIRST_COMPLETED)
        standing.cancel()
        return not task.done()

    def thaw(self) -> None:
        self._left = None
        self.stands_still.clear()
        self._flows.set()

    def move_on(self) -> None:
        """What stands still does so for ever, as a connection whose other end is gone; new ones flow."""
        self._left = None
        self.stands_still.clear()
        self._flows = asyncio.Event()
        self._flows.set()

    def hang_up(self) -> None:
        """All connections end, new ones at once too, until `come_back`."""
        self._is_down = True
        for writer in list(self._writers):
            writer.transport.abort()

    def come_back(self) -> None:
        self._is_down = False

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            if self._is_down:
                return
            await self._flows.wait()
            there_reader, there = await asyncio.open_connection(*self._target)
            self._writers.add(there)
            try:
                ways = [asyncio.ensure_future(self._copy(*way)) for way in ((reader, there), (there_reader, writer))]
                _, pending = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in pending:
                    way.cancel()
                await asyncio.wait(ways)
            finally:
                self._writers.discard(there)
                there.close()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self._left is not None:
                    if self._left == 0:
                        self.freeze()
                    self._left = max(0, self._left - 1)
                await self._flows.wait()
                writer.write(data)
                await writer.drain()

    async def aclose(self) -> None:
        assert self.server is not None
        self.server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))


@contextlib.asynccontextmanager
async def relayed(url: str) -> AsyncIterator[tuple[Relay, str]]:
    """The relay, and `url` by way of it."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    relay = Relay(parts.hostname, parts.port)
    relay.server = await asyncio.start_server(relay.accept, "127.0.0.1", 0)
    user = f"{parts.username}@" if parts.username else ""
    try:
        yield relay, parts._replace(netloc=f"{user}127.0.0.1:{relay.port}").geturl()
    finally:
        await relay.aclose()
