"""One loop in every process that tries to lead; whoever leads runs the jobs that are due, one after the other.

`leader.py` says who leads, `state.py` keeps when a job is due, `build.py` lists the jobs. Rules: a due instant is
claimed before its run and moved on after it; a failed run is due again after the job's pause; a run that loses the lead
is cancelled and begins anew elsewhere – so a job's own effects have to bear that.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from sidecar.errors import SidecarError
from sidecar.jobs.leader import Leader, LostLeadershipError
from sidecar.jobs.schedule import Schedule
from sidecar.jobs.state import JobState, JobTable
from sidecar.metrics import JobMetrics
from sidecar.tasks import end

_log = logging.getLogger(__name__)


class JobError(Exception):
    """A run did not do all it had to. The message is shown to administrators."""


@dataclass(frozen=True, slots=True)
class Job:
    """`run` gets the leader, to `check` or `confirm` before each effect. `limit_s`: a run that takes longer is broken
    off. `first_now`: at its first start it is due at once. `off`: why it does not run (its webhook is missing)."""

    name: str
    says: str
    schedule: Schedule
    run: Callable[[Leader], Awaitable[None]]
    limit_s: float = 600.0
    retry_s: float = 300.0
    first_now: bool = True
    off: str | None = None


class Runner:
    """`clock` gives Unix seconds, `tick_s` is how often due instants are looked at, `first_s` a pause before all."""

    def __init__(
        self,
        jobs: Sequence[Job],
        leader: Leader,
        table: JobTable,
        metrics: JobMetrics,
        *,
        holder: str,
        clock: Callable[[], float],
        tick_s: float = 5.0,
        first_s: float = 2.0,
    ) -> None:
        self.jobs = tuple(jobs)
        self.leader = leader
        self.table = table
        self.holder = holder
        self._metrics = metrics
        self._clock = clock
        self._tick_s = tick_s
        self._first_s = first_s
        self._task: asyncio.Task[None] | None = None
        self._ended: dict[str, tuple[int, int, int, str | None]] = {}

    async def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def aclose(self) -> None:
        task, self._task = self._task, None
        await end([task])
        await self.leader.aclose()

    async def _run(self) -> None:
        await asyncio.sleep(self._first_s)
        while True:
            if await self.leader.take():
                _log.info("this process runs the background jobs now")
                await self._lead()
                _log.info("this process runs the background jobs no longer")
            await asyncio.sleep(self.leader.renew_s * random.uniform(0.75, 1.0))

    async def _lead(self) -> None:
        """Work in one task and renew beside it, as long as both go well."""
        work = asyncio.create_task(self._work())
        try:
            while not work.done() and await self.leader.take():
                await asyncio.wait({work}, timeout=self.leader.renew_s)
        finally:
            await end([work])
            self._metrics.lost_lead()
        error = None if work.cancelled() else work.exception()
        if error is not None and not isinstance(error, LostLeadershipError):
            _log.error("the background jobs stopped: %s", _said(error))

    async def _work(self) -> None:
        since = self._micros(self._clock())
        noted_at = float("-inf")
        is_new = True
        failures = 0
        while True:
            try:
                self.leader.check()
                now = self._clock()
                if not 0 <= now - noted_at < self.leader.renew_s:
                    await self.table.note_leader(self.holder, since, self._micros(now + 3 * self.leader.renew_s))
                    noted_at = now
                await self.pass_over(is_new=is_new)
                is_new = False
                failures = 0
            except SidecarError as error:
                failures += 1
                if failures == 1:
                    _log.warning("background jobs wait: %s", _said(error))
            await asyncio.sleep(self._tick_s)

    async def pass_over(self, *, is_new: bool = False) -> None:
        """Everything that is due, once. `is_new`: what an earlier leader left half done is due again. Raises
        `LostLeadershipError`, `UnavailableError`."""
        await self._note_ended()
        states = await self.table.all()
        for job in self.jobs:
            if job.off is not None:
                continue
            self.leader.check()
            state = await self._due_state(job, states.get(job.name), is_new=is_new)
            if state is not None and state.next_at <= self._micros(self._clock()):
                await self._once(job, state)

    async def _due_state(self, job: Job, state: JobState | None, *, is_new: bool) -> JobState | None:
        """Its row, made if it is missing, its instant no later than the schedule has it."""
        now = self._clock()
        latest = self._micros(job.schedule(now))
        if state is None:
            await self.table.add(job.name, self._micros(now) if job.first_now else latest)
            return (await self.table.all()).get(job.name)
        wanted = state.next_at
        if is_new:
            self._metrics.ran(job.name, state.ended_at / 1e6 if state.ended_at is not None else None)
        if state.running_by is not None:
            if is_new and state.running_by != self.holder:
                wanted = self._micros(now)
        else:
            wanted = min(wanted, latest)  # the interval became shorter, or the clock was set back
        if wanted != state.next_at:
            await self.table.move(state, wanted)
            return (await self.table.all()).get(job.name)
        return state

    async def _once(self, job: Job, state: JobState) -> None:
        started = self._clock()
        claim = self._micros(started + job.limit_s + 3 * self.leader.renew_s)
        self.leader.check()
        if not await self.table.move(state, claim, by=self.holder, at=self._micros(started)):
            return
        error: str | None = None
        try:
            async with asyncio.timeout(job.limit_s):
                await job.run(self.leader)
        except LostLeadershipError:
            raise
        except asyncio.CancelledError:
            await self._put_back(job, claim)
            raise
        except TimeoutError:
            error = f"took longer than {job.limit_s:g} seconds"
        except Exception as caught:  # noqa: BLE001 - one job's failure is not the others'
            error = _said(caught)
            if not isinstance(caught, JobError | SidecarError):
                _log.exception("the job %s failed", job.name)
        ended = self._clock()
        following = job.schedule(ended)
        if error is not None:
            following = min(following, ended + job.retry_s)
            _log.warning("the job %s failed: %s", job.name, error)
        self._metrics.ended(job.name, ended, is_failure=error is not None)
        self._ended[job.name] = claim, self._micros(following), self._micros(ended), error
        await self._note_ended()

    async def _note_ended(self) -> None:
        """A run that the database did not hear the end of would be taken for one that hangs, and done again."""
        for name, (claim, next_at, at, error) in list(self._ended.items()):
            await self.table.end(name, claim, next_at=next_at, at=at, error=error)
            del self._ended[name]

    async def _put_back(self, job: Job, claim: int) -> None:
        """Stopped in the middle: while we still lead, the next leader is told that it may begin at once."""
        if not self.leader.leads:
            return
        try:
            async with asyncio.timeout(2.0):
                state = (await self.table.all()).get(job.name)
                if state is not None and state.next_at == claim:
                    await self.table.move(state, self._micros(self._clock()))
        except (SidecarError, TimeoutError):
            _log.debug("the job %s could not be put back; the next leader finds it", job.name)

    @staticmethod
    def _micros(instant: float) -> int:
        return round(instant * 1_000_000)


def _said(error: BaseException) -> str:
    """What administrators may read: our own words, of others the kind alone – a message may hold a credential."""
    if isinstance(error, JobError | SidecarError):
        return str(error)
    return type(error).__name__
