"""The list of background jobs from the configuration, and the runner that runs them in one of all processes.

`app.py` starts and ends it. A new job is a `Job` in `_jobs`, and a row in docs/jobs.md.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from datetime import tzinfo

from sidecar.config.models import Config
from sidecar.identity.keys import Keys
from sidecar.identity.table import Store
from sidecar.identity.tree import Tree
from sidecar.jobs.alerts import SoftBudgets
from sidecar.jobs.digest import Digest, Period
from sidecar.jobs.leader import LEASE_S, Leader, holder_name
from sidecar.jobs.locks import open_lock
from sidecar.jobs.post import Events, Slack
from sidecar.jobs.probes import LIMIT_S, Probes
from sidecar.jobs.rotation import Rotation
from sidecar.jobs.runner import Job, Runner
from sidecar.jobs.schedule import Schedule, every, monthly, weekly
from sidecar.jobs.state import JobTable
from sidecar.jobs.unknown import Unknown
from sidecar.limits.store import LimitStore
from sidecar.limits.windows import parse_duration
from sidecar.metrics import Metrics
from sidecar.spend.ledger import Ledger
from sidecar.spend.recorder import MAINTAIN_EVERY_S
from sidecar.types import Secret, SpendRecord

WRITE_OFF_EVERY_S = 600.0
NO_WEBHOOK = "no webhook is configured"


class Jobs:
    """The runner and what its jobs keep open."""

    def __init__(self, runner: Runner, posts: Sequence[Events | Slack], unknown: Unknown, *, is_enabled: bool) -> None:
        self.runner = runner
        self.unknown = unknown
        self.is_enabled = is_enabled
        self._posts = posts

    async def start(self) -> None:
        if self.is_enabled:
            await self.runner.start()

    async def aclose(self) -> None:
        await self.runner.aclose()
        for post in self._posts:
            await post.aclose()


def build_jobs(
    config: Config,
    *,
    store: Store,
    ledger: Ledger,
    tree: Tree,
    keys: Keys | None,
    metrics: Metrics,
    redis_url: str | None,
    zone: tzinfo,
    limit_store: LimitStore,
    probes: Probes | None,
    clock: Callable[[], float],
    lease_s: float = LEASE_S,
    tell: Callable[[SpendRecord], object] = lambda row: None,
) -> Jobs:
    """`tell` hears of corrections that jobs make."""
    settings, holder = config.jobs, holder_name()
    lock = open_lock(store, redis_url=redis_url, holder=holder, lease_s=lease_s, clock=clock)
    posts: list[Events | Slack] = []
    says = "makes the ledger's partitions, drops rows past the retention"
    jobs = [Job("retention", says, every(MAINTAIN_EVERY_S), _maintain(ledger), limit_s=3600.0)]
    hours = config.spend.write_off_unknown_h
    says = "what nobody knows the cost of counts as $0 after spend.write_off_unknown_h"
    unknown = Unknown(ledger, limit_store, zone=zone, tell=tell)
    write_off = _write_off(unknown, hours or 0.0, clock)
    off = "spend.write_off_unknown_h is not set" if hours is None else None
    jobs.append(Job("write_off_unknown", says, every(WRITE_OFF_EVERY_S), write_off, limit_s=3600.0, off=off))
    if keys is not None:
        webhook = settings.rotation.webhook
        events = Events(webhook.url, webhook.secret, clock=clock) if webhook is not None else None
        posts += [events] if events is not None else []
        rotation = Rotation(
            tree=tree,
            keys=keys,
            events=events,
            metrics=metrics.jobs,
            grace_s=parse_duration(settings.rotation.grace),
            clock=clock,
            random_bytes=secrets.token_bytes,
        )
        says = "rotates keys that are due" if events is not None else "counts keys that are due: there is no webhook"
        jobs.append(Job("key_rotation", says, every(settings.rotation.every_s), rotation.run))
    slack = _slack(settings.alerts.webhook, posts)
    off = NO_WEBHOOK if slack is None else None
    alerts = SoftBudgets(store=store, ledger=ledger, slack=slack, zone=zone, clock=clock) if slack is not None else None
    jobs.append(
        Job("soft_budgets", "tells who passed a soft budget", every(settings.alerts.every_s), _run(alerts), off=off)
    )
    slack = _slack(settings.reports.webhook, posts)
    periods: tuple[tuple[Period, Schedule, bool], ...] = (
        ("week", weekly(zone), settings.reports.weekly),
        ("month", monthly(zone), settings.reports.monthly),
    )
    for period, schedule, is_on in periods:
        off = NO_WEBHOOK if slack is None else None if is_on else "switched off"
        digest = Digest(period, ledger=ledger, slack=slack, zone=zone, clock=clock) if slack is not None else None
        says = f"tells what the {period} before cost"
        jobs.append(Job(f"{period}ly_report", says, schedule, _run(digest), first_now=False, off=off))
    off = "jobs.probes.every_s is not set" if probes is None else None
    pause_s = settings.probes.every_s or WRITE_OFF_EVERY_S
    says = "asks each deployment for a small answer, which costs money"
    jobs.append(
        Job("health_probes", says, every(pause_s), _run(probes), limit_s=10 * LIMIT_S, retry_s=pause_s, off=off)
    )
    leader = Leader(lock, lease_s=lease_s)
    runner = Runner(jobs, leader, JobTable(store), metrics.jobs, holder=holder, clock=clock)
    return Jobs(runner, posts, unknown, is_enabled=settings.enabled)


def _slack(url: Secret | None, posts: list[Events | Slack]) -> Slack | None:
    if url is None:
        return None
    made = Slack(url)
    posts.append(made)
    return made


def _maintain(ledger: Ledger) -> Callable[[Leader], Awaitable[None]]:
    async def run(leader: Leader) -> None:
        leader.check()
        await ledger.maintain()

    return run


def _write_off(unknown: Unknown, hours: float, clock: Callable[[], float]) -> Callable[[Leader], Awaitable[None]]:
    async def run(leader: Leader) -> None:
        leader.check()
        await unknown.write_off(clock() - hours * 3600, check=leader.check)

    return run


def _run(job: SoftBudgets | Digest | Probes | None) -> Callable[[Leader], Awaitable[None]]:
    async def run(leader: Leader) -> None:
        if job is not None:
            await job.run(leader)

    return run
