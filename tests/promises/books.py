"""For promise 3: a model of what budgets should say, obvious rather than fast, and processes that freeze and die."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sidecar.jobs.ticker import LedgerSeed, silent_record
from sidecar.limits.admission import Admission, Grant
from sidecar.limits.store.base import LimitStore
from sidecar.limits.store.redis import RedisStore
from sidecar.limits.windows import BudgetWindow
from sidecar.spend.journal import Journal
from sidecar.spend.ledger import Ledger
from sidecar.spend.recorder import Recorder
from sidecar.types import Budget, Identity

LEASE_S = 10.0


@dataclass
class Clock:
    now: float

    def __call__(self) -> float:
        return self.now


class TimedRedisStore(RedisStore):
    """The store by the test's clock instead of the server's."""

    def __init__(self, url: str, clock: Clock) -> None:
        super().__init__(url, deadline_s=30)
        self.url = url
        self._clock = clock

    async def acquire(self, *args: Any, **more: Any) -> Any:
        return await super().acquire(*args, **more | {"now": self._clock()})

    async def settle(self, *args: Any, **more: Any) -> Any:
        return await super().settle(*args, **more | {"now": self._clock()})

    async def begin(self, windows: Sequence[BudgetWindow], now: Any = None) -> Any:
        return await super().begin(windows, self._clock())

    async def seed(
        self, values: Mapping[str, int], windows: Sequence[BudgetWindow] = (), now: Any = None, reading: Any = None
    ) -> None:
        await super().seed(values, windows, self._clock(), reading)

    async def renew(self, exchange_ids: Sequence[str], lease_s: float, now: Any = None) -> list[str]:
        return await super().renew(exchange_ids, lease_s, self._clock())

    async def reap(self, now: Any = None) -> Any:
        return await super().reap(self._clock())


@dataclass
class Attempt:
    held: int
    cost: int | None = None
    """`None`: in flight."""
    is_unknown: bool = False


@dataclass(eq=False)
class Exchange:
    """`amount` is what the counters of `windows` have for it: its hold, then what it cost."""

    name: str
    identity: Identity
    grant: Grant
    windows: tuple[BudgetWindow, ...]
    amount: int = 0
    attempts: list[Attempt] = field(default_factory=list)
    is_journalled: bool = False
    """Its process's journal tells of it, should the process die now."""
    corrections: int = 0

    @property
    def cost(self) -> int:
        """By its rows: what is in flight may cost what is held for it."""
        return sum(a.held if a.cost is None else a.cost for a in self.attempts)


class Books:
    """Every window's counter as it should be."""

    def __init__(self) -> None:
        self.counters: dict[str, int] = {}
        self.windows: dict[str, BudgetWindow] = {}

    def fits(self, windows: Sequence[BudgetWindow], hold: int, minimum: int) -> int | None:
        """What is granted of `hold`; `None`: refused."""
        granted = min([hold, *(w.max_nano - self.counters.get(w.key, 0) for w in windows)])
        return granted if hold == 0 or granted >= max(1, minimum) else None

    def put(self, exchange: Exchange, amount: int) -> None:
        for window in exchange.windows:
            self.windows[window.key] = window
            self.counters[window.key] = self.counters.get(window.key, 0) + amount - exchange.amount
        exchange.amount = amount


@dataclass(eq=False)
class Process:
    """A gateway's part that counts money. What it would do by itself now and then it does when it is told to."""

    admission: Admission
    recorder: Recorder
    journal: Journal
    live: list[Exchange] = field(default_factory=list)
    is_frozen: bool = False
    silent: set[str] = field(default_factory=set)
    """Those of its exchanges that others took for dead."""

    async def die(self) -> None:
        """As a kill leaves it: what was written is written, locks and connections are gone."""
        task, self.recorder._task = self.recorder._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        for descriptor in (self.journal._fd, self.journal._lock):
            if descriptor >= 0:
                os.close(descriptor)
        for adopted in self.recorder._adopted.values():
            adopted.release()
        await self.admission.store.aclose()


class World:
    """Processes on one store and one ledger, and the books kept beside."""

    def __init__(self, folder: Path, ledger: Ledger, make_store: Callable[[], LimitStore], clock: Clock) -> None:
        self.books = Books()
        self.clock = clock
        self.ledger = ledger
        self.processes: list[Process] = []
        self.dead: list[Exchange] = []
        self.global_budgets: tuple[Budget, ...] = ()
        self._folder = folder
        self._make_store = make_store

    async def start(self) -> Process:
        self.clock.now += 0.25  # no process starts in the very instant in which another died
        store = self._make_store()
        journal = Journal(self._folder)
        recorder = Recorder(journal, self.ledger, interval_s=1e6, adopt_s=1e6)
        seed = LedgerSeed(recorder, self.ledger)
        process: Process

        async def seeded(windows: Sequence[BudgetWindow]) -> Mapping[str, int]:
            found = await seed(windows)
            self.shipped(process)
            return found

        admission = Admission(store, global_budgets=self.global_budgets, seed=seeded, clock=self.clock, lease_s=LEASE_S)
        recorder.settle_dead = admission.settle_dead
        process = Process(admission, recorder, journal)
        await recorder.start()
        await asyncio.sleep(0)
        await self.flush(process)
        self.processes.append(process)
        return process

    async def flush(self, process: Process) -> None:
        await process.recorder.flush()
        self.shipped(process)

    def shipped(self, process: Process) -> None:
        """Its rows are in the ledger, and those of the dead: their holds are settled at what their rows say."""
        for exchange in process.live:
            exchange.is_journalled = any(attempt.cost is None for attempt in exchange.attempts)
        for exchange in self.dead:
            self.books.put(exchange, exchange.cost)
        self.dead.clear()

    async def tick(self, process: Process) -> None:
        for hold in await process.admission.tick():
            record = silent_record(hold)
            if hold.is_over:
                await process.recorder.heard(record)
                await process.admission.written(hold)
                continue
            for other in self.processes:
                other.silent.update(e.name for e in other.live if e.name == hold.exchange_id)
            await process.recorder.silent(record)
            await process.admission.written(hold)
            self.shipped(process)

    async def sleep(self, seconds: float) -> None:
        while seconds > 0:
            step = min(seconds, LEASE_S / 3)
            seconds -= step
            self.clock.now += step
            for process in self.processes:
                if not process.is_frozen:
                    await self.tick(process)

    async def suspend(self, seconds: float) -> None:
        """Nobody ran for so long."""
        self.clock.now += seconds
        for process in self.processes:
            if not process.is_frozen:
                await self.tick(process)

    async def kill(self, process: Process) -> None:
        self.processes.remove(process)
        await process.die()
        for exchange in process.live:
            if not process.admission.store.is_shared:
                # The counters died too; they are summed anew from the rows.
                self.books.put(exchange, exchange.cost)
            elif exchange.is_journalled:
                self.dead.append(exchange)
            # Else nobody knows more than the store: its hold stays charged, whatever earlier attempts cost.

    async def differences(self) -> list[tuple[str, int, int]]:
        """Counters that are not what the books say: (key, counter, books)."""
        store = self.processes[0].admission.store
        keys = [key for key in self.books.counters if store.is_shared or key in store._counters]  # type: ignore[attr-defined]
        if store.is_shared:  # one that is not there is summed when somebody asks for it
            keys = sorted(set(keys) & set(await store.counters()))
        found: dict[str, int] = {}
        for start in range(0, len(keys), 1000):
            found |= await store.spent(keys[start : start + 1000])
        return [(k, found[k], self.books.counters[k]) for k in keys if found[k] != self.books.counters[k]]

    async def ledger_differences(self, *, since_at: float = 0) -> list[tuple[str, int, int]]:
        """Windows whose rows do not add up to what the books say: (key, rows, books). Of those over by `since_at` the
        end of a test asks, once."""
        wrong = []
        for key, window in self.books.windows.items():
            if window.end_at <= since_at:
                continue
            until_at = None if window.end_at == float("inf") else window.end_at
            total = await self.ledger.sum_of(window.kind, window.scope_id, window.start_at, until_at)
            if total != self.books.counters[key]:
                wrong.append((key, total, self.books.counters[key]))
        return wrong

    async def aclose(self) -> None:
        for process in self.processes:
            with contextlib.suppress(OSError):
                await process.recorder.aclose()
            await process.admission.aclose()
