"""Due instants in the database: what a restart, a failure, a stop in the middle and a shorter interval do to them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sidecar.errors import UnavailableError
from sidecar.jobs.leader import Leader, LostLeadershipError
from sidecar.jobs.locks import RowLock
from sidecar.jobs.runner import Job, JobError, Runner
from sidecar.jobs.schedule import every
from sidecar.jobs.state import JobState, JobTable
from tests.jobs.conftest import NOW, World

pytestmark = pytest.mark.anyio


def runner(world: World, run: Callable[[Leader], Awaitable[None]], *, holder: str = "test", **more: Any) -> Runner:
    job = Job("job", "does", more.pop("schedule", every(100)), run, **more)
    return Runner(
        [job], world.leader, JobTable(world.store), world.metrics.jobs, holder=holder, clock=world.clock, tick_s=0.01,
        first_s=0.0,
    )  # fmt: skip


async def state(world: World) -> JobState:
    return (await JobTable(world.store).all())["job"]


class Runs:
    def __init__(self, *errors: Exception | None) -> None:
        self.at: list[int] = []
        self.errors = list(errors)

    async def __call__(self, leader: Leader) -> None:
        self.at.append(len(self.at))
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error


async def test_a_restart_repeats_nothing_and_the_next_instant_runs_once(world: World) -> None:
    runs = Runs()
    await runner(world, runs).pass_over()
    for _ in range(3):
        await runner(world, runs).pass_over(is_new=True)
    assert len(runs.at) == 1
    world.clock.now += 99.9
    await runner(world, runs).pass_over(is_new=True)
    assert len(runs.at) == 1
    world.clock.now += 0.2
    both = [runner(world, runs) for _ in range(2)]
    await asyncio.gather(*(one.pass_over() for one in both))
    assert len(runs.at) == 2, "two that believe to lead run it once"
    assert (await state(world)).runs == 2


async def test_a_job_of_the_calendar_does_not_run_at_its_first_start(world: World) -> None:
    runs = Runs()
    await runner(world, runs, first_now=False).pass_over()
    assert runs.at == []
    world.clock.now += 101
    await runner(world, runs, first_now=False).pass_over()
    assert len(runs.at) == 1


async def test_a_failed_run_is_told_and_tried_again_after_its_pause(world: World) -> None:
    runs = Runs(JobError("the webhook said 500"), ValueError("sk-secret in a foreign message"), None)
    job = runner(world, runs, retry_s=10.0)
    value = world.metrics.registry.get_sample_value
    await job.pass_over()
    assert (await state(world)).error == "the webhook said 500"
    world.clock.now += 9
    await job.pass_over()
    assert len(runs.at) == 1
    world.clock.now += 2
    await job.pass_over()
    found = await state(world)
    assert (found.error, found.failures, found.ok_at) == ("ValueError", 2, None)
    assert value("sidecar_job_failures_total", {"job": "job"}) == 2
    world.clock.now += 11
    await job.pass_over()
    found = await state(world)
    assert (found.error, found.failures, found.runs) == (None, 2, 3)
    assert found.next_at == round((world.clock() + 100) * 1e6)
    assert value("sidecar_job_last_run_timestamp_seconds", {"job": "job"}) == world.clock()


async def test_a_run_past_its_limit_is_broken_off(world: World) -> None:
    async def stands(leader: Leader) -> None:
        await asyncio.Event().wait()

    await runner(world, stands, limit_s=0.05).pass_over()
    assert (await state(world)).error == "took longer than 0.05 seconds"


async def test_a_shorter_interval_counts_at_once(world: World) -> None:
    runs = Runs()
    await runner(world, runs, schedule=every(10_000)).pass_over()
    world.clock.now += 50
    job = runner(world, runs, schedule=every(20))
    await job.pass_over(is_new=True)
    world.clock.now += 21
    await job.pass_over()
    assert len(runs.at) == 2


async def test_what_a_dead_leader_left_begins_anew_at_once(world: World) -> None:
    async def dies(leader: Leader) -> None:
        raise LostLeadershipError

    with pytest.raises(LostLeadershipError):
        await runner(world, dies, holder="dead").pass_over()
    assert (await state(world)).running_by == "dead"
    runs = Runs()
    await runner(world, runs, holder="dead").pass_over(is_new=True)
    assert runs.at == [], "its own name: still running, for all it knows"
    await runner(world, runs, holder="next").pass_over(is_new=True)
    assert len(runs.at) == 1


async def test_a_run_whose_end_the_database_did_not_hear_of_is_not_done_again(world: World) -> None:
    """A report would come twice."""
    runs = Runs()

    async def rename(old: str, new: str) -> None:
        async with world.store.database.engine.begin() as connection:
            await connection.exec_driver_sql(f"ALTER TABLE {old} RENAME TO {new}")

    async def breaks(leader: Leader) -> None:
        await runs(leader)
        await rename("jobs", "elsewhere")

    job = runner(world, breaks, limit_s=100.0, schedule=every(10_000))
    with pytest.raises(UnavailableError):
        await job.pass_over()
    await rename("elsewhere", "jobs")
    await job.pass_over()
    world.clock.now += 3 * world.leader.renew_s + 100.5  # past the claim of a run that hangs
    await job.pass_over()
    assert len(runs.at) == 1
    found = await state(world)
    assert (found.runs, found.failures, found.running_by) == (1, 0, None)


async def test_an_orderly_stop_in_the_middle_leaves_it_due(world: World) -> None:
    begun = asyncio.Event()

    async def stands(leader: Leader) -> None:
        begun.set()
        await asyncio.Event().wait()

    job = runner(world, stands)
    await job.start()
    await asyncio.wait_for(begun.wait(), 60)
    await job.aclose()
    found = await state(world)
    assert (found.running_by, found.next_at, found.runs) == (None, round(NOW * 1e6), 0)


async def test_the_lead_is_lost_by_the_clock_though_no_answer_comes(world: World) -> None:
    """A leader whose lock cannot be reached stops in time; its job is cancelled."""

    class Silent(RowLock):
        is_silent = False

        async def hold(self) -> bool:
            if self.is_silent:
                await asyncio.Event().wait()
            return await super().hold()

    await world.leader.aclose()
    lock = Silent(world.store, holder="x", lease_s=0.6, clock=world.clock)
    leader = Leader(lock, lease_s=0.6)
    begun, ended = asyncio.Event(), asyncio.Event()

    async def stands(leader: Leader) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            assert not leader.leads
            ended.set()

    made = Runner(
        [Job("job", "does", every(1), stands)], leader, JobTable(world.store), world.metrics.jobs, holder="x",
        clock=world.clock, tick_s=0.01, first_s=0.0,
    )  # fmt: skip
    await made.start()
    await asyncio.wait_for(begun.wait(), 60)
    lock.is_silent = True
    await asyncio.wait_for(ended.wait(), 60)
    await made.aclose()
