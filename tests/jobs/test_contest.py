"""Several processes and one lead: killed, frozen and woken, never two at once, and each due instant once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sidecar.db import migrate

pytestmark = pytest.mark.anyio
LEASE_S = 1.5
PLACES = ("advisory", "redis", "row", "sqlite")


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """Database and Redis whose lock is the one named."""
    kind = request.param
    if kind == "sqlite":
        return f"sqlite:///{tmp_path}/jobs.db", ""
    url = request.getfixturevalue("postgres_url")
    if kind == "advisory":
        return url, ""
    # As behind a pooler of transactions.
    return f"{url}?statement_cache_size=0", request.getfixturevalue("redis_url") if kind == "redis" else ""


@pytest.fixture(scope="module")
async def maker(anyio_backend: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Who forks the processes."""
    pipe = asyncio.subprocess.PIPE
    made = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.jobs.contender", stdin=pipe, stdout=pipe)
    yield made
    assert made.stdin is not None
    made.stdin.close()
    await made.wait()


class Contest:
    def __init__(self, maker: asyncio.subprocess.Process, path: Path) -> None:
        self.maker = maker
        self.path = path
        self.alive: set[int] = set()

    async def add(self, place: tuple[str, str]) -> None:
        assert self.maker.stdin is not None
        assert self.maker.stdout is not None
        self.maker.stdin.write(json.dumps([str(self.path), *place, LEASE_S]).encode() + b"\n")
        self.alive.add(int(await self.maker.stdout.readline()))

    async def kill(self, process: int) -> None:
        self.alive.discard(process)
        async with asyncio.timeout(120):
            with contextlib.suppress(ProcessLookupError):
                while True:
                    os.kill(process, signal.SIGKILL)
                    await asyncio.sleep(0.01)

    def lines(self) -> list[tuple[int, str, int, int]]:
        text = self.path.read_text() if self.path.exists() else ""
        found = [line.split() for line in text.splitlines()]
        return sorted(
            ((int(pid), what, int(at), int(second)) for pid, what, at, second in found), key=lambda line: line[2]
        )

    async def until(self, is_so: Callable[[list[tuple[int, str, int, int]]], bool]) -> list[tuple[int, str, int, int]]:
        async with asyncio.timeout(120):
            while not is_so(lines := self.lines()):
                await asyncio.sleep(0.02)
        return lines

    async def kill_in_a_run(self) -> int:
        """Whoever leads, frozen first: a run of its own has begun and surely not ended."""
        while True:
            leader = await self.leader()
            os.kill(leader, signal.SIGSTOP)
            last = self.lines()[-1]
            if last[:2] == (leader, "step"):
                await self.kill(leader)
                return leader
            os.kill(leader, signal.SIGCONT)
            await asyncio.sleep(0.02)

    async def leader(self, *, but: int | None = None) -> int:
        """Who wrote last; `but`: somebody else than this."""
        lines = await self.until(lambda lines: bool(lines) and lines[-1][0] != but)
        return lines[-1][0]


@asynccontextmanager
async def contest(
    maker: asyncio.subprocess.Process, place: tuple[str, str], tmp_path: Path, count: int
) -> AsyncIterator[Contest]:
    await migrate(place[0])
    made = Contest(maker, tmp_path / "lines")
    try:
        for _ in range(count):
            await made.add(place)
        yield made
    finally:
        for process in list(made.alive):
            await made.kill(process)


async def test_a_killed_and_a_frozen_leader_are_replaced_and_two_never_lead_at_once(
    maker: asyncio.subprocess.Process, place: tuple[str, str], tmp_path: Path
) -> None:
    async with contest(maker, place, tmp_path, 3) as found:
        first = await found.leader()
        await found.until(lambda lines: sum(line[1] == "run" for line in lines) >= 3)
        os.kill(first, signal.SIGSTOP)
        before = len(found.lines())
        second = await found.leader(but=first)
        os.kill(first, signal.SIGCONT)  # it wakes up, in the middle of a run or not, and has to notice
        await found.until(lambda lines: sum(line[1] == "run" for line in lines[before:]) >= 3)
        second = await found.kill_in_a_run()
        third = await found.leader(but=second)
        lines = await found.until(lambda lines: sum(line[:2] == (third, "run") for line in lines) >= 3)
    turns = [lines[0][0]]
    for line in lines:
        if line[0] != turns[-1]:
            turns.append(line[0])
            assert line[1] == "run", "who takes over begins a run; a step of an old run is an effect without the lead"
    assert {first, second, third} <= set(turns)
    often = Counter(line[3] for line in lines if line[1] == "done")
    assert max(often.values()) == 1, f"a due instant ran twice: {often}"


async def test_leaders_that_come_and_go_run_each_due_instant_once(
    maker: asyncio.subprocess.Process, place: tuple[str, str], tmp_path: Path
) -> None:
    """A run that died in the middle begins anew; one that ended does not."""
    async with contest(maker, place, tmp_path, 2) as found:
        for _ in range(2):
            leader = await found.kill_in_a_run()
            await found.add(place)
            await found.leader(but=leader)
        lines = await found.until(lambda lines: sum(line[1] == "done" for line in lines) >= 3)
    often = Counter(line[3] for line in lines if line[1] == "done")
    assert max(often.values()) == 1, f"a due instant ran twice: {often}"
    assert len({line[0] for line in lines}) >= 3
