"""Several `sidecar serve`, each with several workers, on one PostgreSQL and one Redis; their workers can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import psutil

from tests.promises.support import Running, eventually, migrated, process


@dataclass
class Fleet:
    running: list[Running]
    workers: Sequence[int]
    database_url: str
    kills: int = 0
    wanted: list[int] = field(default_factory=list)
    """How often a worker of each has to have started."""

    def workers_of(self, running: Running) -> list[psutil.Process]:
        assert running.process is not None
        found = psutil.Process(running.process.pid).children()
        return [child for child in found if "multiprocessing.spawn" in _command(child)]

    async def kill_one(self, draw: random.Random) -> None:
        """`kill -9` of any worker of any gateway whose workers all serve. Its supervisor starts another."""
        await eventually(lambda: any(map(self._serves, range(len(self.running)))), 240, self._state)
        number = draw.choice([number for number in range(len(self.running)) if self._serves(number)])
        running = self.running[number]
        victim = draw.choice(self.workers_of(running))
        self.wanted[number] = started(running) + 1
        victim.kill()
        self.kills += 1

    async def is_whole(self) -> None:
        """Who was killed has a successor that serves."""
        await eventually(lambda: all(map(self._serves, range(len(self.running)))), 240, self._state)

    def _serves(self, number: int) -> bool:
        return started(self.running[number]) >= self.wanted[number]

    def _state(self) -> str:
        pids = [[worker.pid for worker in self.workers_of(one)] for one in self.running]
        tails = [one.output.read_text(errors="replace")[-2000:] for one in self.running if one.output]
        return f"workers: {self.wanted} starts wanted; {pids}\n" + "\n---\n".join(tails)

    async def query(self, text: str, *values: Any) -> list[Any]:
        connection = await asyncpg.connect(self.database_url, timeout=120)
        try:
            return list(await connection.fetch(text, *values))
        finally:
            await connection.close()

    async def verify(self) -> tuple[int, str]:
        """`sidecar spend verify`: its exit code and what it printed."""
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "sidecar", "spend", "verify", "--config",
            str(self.running[0].folder / "sidecar.yaml"),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await asyncio.wait_for(child.communicate(), 240)
        return child.returncode or 0, output.decode(errors="replace")

    async def agree(self) -> str:
        """Waits until counters and rows do; what `verify` said of it. On a busy machine some are still on their way."""
        said = (1, "")

        async def verified() -> bool:
            nonlocal said
            said = await self.verify()
            return said[0] == 0

        await eventually(verified, 120, lambda: said[1])
        return said[1]


def _command(child: psutil.Process) -> str:
    try:
        return " ".join(child.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def started(running: Running) -> int:
    assert running.output is not None
    return running.output.read_text(errors="replace").count("Application startup complete")


@contextlib.asynccontextmanager
async def fleet(
    folder: Path,
    provider_url: str,
    *,
    database_url: str,
    redis_url: str,
    workers: Sequence[int],
    shared_journal: int = 0,
    top: dict[str, Any] | None = None,
    deployment: dict[str, Any] | None = None,
    store: dict[str, Any] | None = None,
) -> AsyncIterator[Fleet]:
    """The first `shared_journal` gateways have one journal folder, as replicas on one host may; each other its own."""
    await asyncio.to_thread(migrated, database_url)
    async with contextlib.AsyncExitStack() as stack:

        async def start(number: int) -> Running:
            own = folder / str(number)
            own.mkdir()
            journal = folder / "journal" if number < shared_journal else own / "journal"
            stores = {
                "database_url": database_url, "redis_url": redis_url, "deadline_s": 30, "journal_dir": str(journal),
            }  # fmt: skip
            server = {"workers": workers[number], "grace_s": 5}
            config = {"store": stores | (store or {}), "server": server, **(top or {})}
            return await stack.enter_async_context(process(own, provider_url, top=config, deployment=deployment))

        running = list(await asyncio.gather(*(start(number) for number in range(len(workers)))))
        made = Fleet(running, workers, database_url, wanted=list(workers))
        await made.is_whole()
        try:
            yield made
        finally:
            for one in running:  # all at once; each is waited for after that
                if one.process is not None and one.process.poll() is None:
                    one.process.terminate()
