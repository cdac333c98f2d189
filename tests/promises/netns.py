"""A network of its own for one process, whose packets can be dropped on the way to the stores: a partition, in which
nothing is refused and nothing arrives.

Linux, root and `ip` are needed; without them tests that use this are skipped, and say so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import pytest

HOW = "a partition needs network namespaces: Linux, root (`sudo make promises`, or a container with CAP_SYS_ADMIN)"
NOWHERE = "02:00:00:00:00:99"
"""Nobody's address: the kernel of the other side throws such frames away without a word."""


def ip(*words: str) -> str:
    return subprocess.run(("ip", *words), check=True, capture_output=True, text=True, timeout=20).stdout


@dataclass
class Island:
    """`inside` reaches the host at `near` over one cable and at `far` over the other; `far` is the one that is cut."""

    name: str
    net: str
    addresses: dict[str, str] = field(default_factory=dict)

    @property
    def near(self) -> str:
        return f"{self.net}.1"

    @property
    def inside(self) -> str:
        return f"{self.net}.2"

    @property
    def far(self) -> str:
        return f"{self.net}.17"

    @property
    def command(self) -> tuple[str, ...]:
        """Before the command that is to run inside."""
        return ("ip", "netns", "exec", self.name)

    def cut(self) -> None:
        """Packets between the inside and `far` are lost, both ways, from now on."""
        self._neighbours(NOWHERE, NOWHERE)

    def heal(self) -> None:
        self._neighbours(self.addresses["outside"], self.addresses["inside"])

    def _neighbours(self, outside: str, inside: str) -> None:
        for where, address, lladdr, device in (
            (("-n", self.name), self.far, outside, "far1"),
            ((), f"{self.net}.18", inside, f"{self.name}f"),
        ):
            ip(*where, "neigh", "replace", address, "lladdr", lladdr, "dev", device, "nud", "permanent")


@contextlib.contextmanager
def island() -> Iterator[Island]:
    """Skips the test where there can be none."""
    if os.name != "posix" or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip(HOW)
    number = os.getpid() % 16_000
    made = Island(f"sc{os.getpid()}", f"10.{192 + number // 250}.{number % 250}")
    try:
        ip("netns", "add", made.name)
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"{HOW}: {getattr(error, 'stderr', error)}")
    try:
        ip("-n", made.name, "link", "set", "lo", "up")
        for letter, first in (("n", 1), ("f", 17)):
            outside, inside = f"{made.name}{letter}", {"n": "near1", "f": "far1"}[letter]
            ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", made.name)
            ip("addr", "add", f"{made.net}.{first}/28", "dev", outside)
            ip("link", "set", outside, "up")
            ip("-n", made.name, "addr", "add", f"{made.net}.{first + 1}/28", "dev", inside)
            ip("-n", made.name, "link", "set", inside, "up")
        made.addresses["outside"] = ip("-br", "link", "show", f"{made.name}f").split()[2]
        made.addresses["inside"] = ip("-n", made.name, "-br", "link", "show", "far1").split()[2]
        yield made
    finally:
        subprocess.run(("ip", "netns", "del", made.name), check=False, capture_output=True, timeout=20)
        for letter in "nf":
            subprocess.run(("ip", "link", "del", f"{made.name}{letter}"), check=False, capture_output=True, timeout=20)


@contextlib.asynccontextmanager
async def door(address: str, port: int) -> AsyncIterator[int]:
    """A port at `address` behind which is this host's own `port`: servers of the tests listen on loopback alone."""
    tasks: set[asyncio.Task[None]] = set()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(65536):
                writer.write(piece)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        ends = [writer]
        try:
            with contextlib.suppress(OSError):
                there, back = await asyncio.open_connection("127.0.0.1", port)
                ends.append(back)
                await asyncio.gather(pass_on(reader, back), pass_on(there, writer))
        finally:
            for end in ends:
                end.transport.abort()
            tasks.discard(task)

    server = await asyncio.start_server(serve, address, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=10)
