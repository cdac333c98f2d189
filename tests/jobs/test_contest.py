"""Several processes and one lead: killed, frozen and woken, never two at once, and each due instant once."""

from __future__ import annotations

import asyncio
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


class Contest:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.processes: dict[int, asyncio.subprocess.Process] = {}

    async def add(self, place: tuple[str, str]) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.jobs.contender", str(self.path), *place, str(LEASE_S)
        )
        self.processes[process.pid] = process

    def lines(self) -> list[tuple[int, str, int, int]]:
        text = self.path.read_text() if self.path.exists() else ""
        found = [line.split() for line in text.splitlines()]
        return sorted(
            ((int(pid), what, int(at), int(second)) for pid, what, at, second in found), key=lambda line: line[2]
        )

    async def until(self, is_so: Callable[[list[tuple[int, str, int, int]]], bool]) -> list[tuple[int, str, int, int]]:
        async with asyncio.timeout(60):
            while not is_so(lines := self.lines()):
                await asyncio.sleep(0.02)
        return lines

    async def leader(self, *, but: int | None = None) -> int:
        """Who wrote last; `but`: somebody else than this."""
        lines = await self.until(lambda lines: bool(lines) and lines[-1][0] != but)
        return lines[-1][0]


@asynccontextmanager
async def contest(place: tuple[str, str], tmp_path: Path, count: int) -> AsyncIterator[Contest]:
    await migrate(place[0])
    made = Contest(tmp_path / "lines")
    try:
        for _ in range(count):
            await made.add(place)
        yield made
    finally:
        for process in made.processes.values():
            if process.returncode is None:
                process.kill()
            await process.wait()


async def test_a_killed_and_a_frozen_leader_are_replaced_and_two_never_lead_at_once(
    place: tuple[str, str], tmp_path: Path
) -> None:
    async with contest(place, tmp_path, 3) as found:
        first = await found.leader()
        await found.until(lambda lines: sum(line[1] == "run" for line in lines) >= 3)
        os.kill(first, signal.SIGSTOP)
        before = len(found.lines())
        second = await found.leader(but=first)
        os.kill(first, signal.SIGCONT)  # it wakes up, in the middle of a run or not, and has to notice
        await found.until(lambda lines: sum(line[1] == "run" for line in lines[before:]) >= 3)
        found.processes[second].kill()
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


async def test_leaders_that_come_and_go_run_each_due_instant_once(place: tuple[str, str], tmp_path: Path) -> None:
    """A run that died in the middle begins anew; one that ended does not."""
    async with contest(place, tmp_path, 2) as found:
        for _ in range(3):
            leader = await found.leader()
            await found.until(lambda lines: [line[1] for line in lines[-2:]] == ["step", "step"])
            found.processes[leader].kill()
            await found.add(place)
            await found.leader(but=leader)
        lines = await found.until(lambda lines: sum(line[1] == "done" for line in lines) >= 3)
    often = Counter(line[3] for line in lines if line[1] == "done")
    assert max(often.values()) == 1, f"a due instant ran twice: {often}"
    assert len({line[0] for line in lines}) >= 3
