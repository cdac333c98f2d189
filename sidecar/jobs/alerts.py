"""Soft budgets: who passed one is told to a Slack-compatible webhook, once in each budget window.

Spend is read from the ledger (`spend/reports.py`, the dearest first, so reading ends where nobody else can be over);
what was told stands in the `alerts` table. Rule: told again in the same window only after the spend was below 90 % of
the soft budget – it was raised, or rows were corrected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any

import sqlalchemy as sa

from sidecar.db.schema import alerts as a
from sidecar.db.schema import keys as k
from sidecar.db.schema import principals as p
from sidecar.identity.row import Policy
from sidecar.identity.table import Store
from sidecar.jobs.leader import Leader
from sidecar.jobs.post import Slack, dollars, iso, plain
from sidecar.limits.windows import bounds
from sidecar.spend.ledger import Ledger
from sidecar.spend.reports import ENTITIES, report
from sidecar.types import Budget

REARM = 0.9
PAGE = 1000
LINES = 20
"""Alerts in one message."""

Subject = tuple[str, str]
"""Kind and id, as the ledger has them."""


@dataclass(frozen=True, slots=True)
class Watch:
    """A soft budget: of whom, in which window. `name` is for people."""

    subject: Subject
    name: str
    soft_nano: int
    start_at: float
    end_at: float
    duration: str | None


@dataclass(frozen=True, slots=True)
class Alert:
    watch: Watch
    spent_nano: int


class SoftBudgets:
    def __init__(self, *, store: Store, ledger: Ledger, slack: Slack, zone: tzinfo, clock: Callable[[], float]) -> None:
        self._store = store
        self._ledger = ledger
        self._slack = slack
        self._zone = zone
        self._clock = clock

    async def run(self, leader: Leader) -> None:
        """Raises `JobError` if the webhook did not take an alert, `UnavailableError`."""
        watches = await self._watches()
        spent = await self._spent(watches)
        told = await self._told()
        over: list[Alert] = []
        for watch in watches:
            has = spent.get(watch.subject, 0)
            is_told = told.get(watch.subject) == _micros(watch.start_at)
            if is_told and has >= REARM * watch.soft_nano:
                del told[watch.subject]
            elif has >= watch.soft_nano:
                told.pop(watch.subject, None)
                over.append(Alert(watch, has))
        await self._forget(leader, told)
        for start in range(0, len(over), LINES):
            some = over[start : start + LINES]
            await leader.confirm()
            await self._slack.say("\n".join(line_of(alert) for alert in some))
            await self._note(some)

    async def _watches(self) -> list[Watch]:
        """Everybody who has a soft budget, of their own or by `budget_id`."""
        shared = p.alias()
        found: list[Watch] = []
        now = self._clock()
        spends_as, named = sa.func.coalesce(k.c.key_id, k.c.key_hash), sa.func.coalesce(k.c.key_alias, k.c.key_name)
        tables: tuple[tuple[sa.Table, Any, Any, Any, Any], ...] = (
            (k, sa.literal("key"), spends_as, named, k.c.successor_hash.is_(None)),
            (p, p.c.kind, p.c.principal_id, sa.func.coalesce(p.c.alias, p.c.principal_id), p.c.kind.in_(ENTITIES)),
        )
        for table, kind, name, shown, where in tables:
            columns = [*_columns(table, "own"), *_columns(shared, "shared")]
            is_its = sa.and_(shared.c.kind == "budget", shared.c.principal_id == table.c.budget_id)
            has_one = sa.or_(table.c.soft_budget_nano.is_not(None), shared.c.soft_budget_nano.is_not(None))
            query = sa.select(kind.label("kind"), name.label("name"), shown.label("shown"), *columns)
            query = query.select_from(table.outerjoin(shared, is_its)).where(where, has_one)
            async with self._store.read() as connection:
                found += [_watch(row, now, self._zone) for row in (await connection.execute(query)).mappings()]
        return found

    async def _spent(self, watches: Iterable[Watch]) -> dict[Subject, int]:
        """Of those that may be near their soft budget, by subject."""
        groups: dict[tuple[str, float, float], list[Watch]] = {}
        for watch in watches:
            groups.setdefault((watch.subject[0], watch.start_at, watch.end_at), []).append(watch)
        spent: dict[Subject, int] = {}
        for (kind, start_at, end_at), some in groups.items():
            lowest = REARM * min(watch.soft_nano for watch in some)
            wanted = {watch.subject[1] for watch in some}
            offset: int | None = 0
            while offset is not None:
                page = await report(
                    self._ledger,
                    by=[kind],
                    since_at=start_at or None,
                    until_at=None if end_at == float("inf") else end_at,
                    limit=PAGE,
                    offset=offset,
                )
                for line in page.lines:
                    if line.names[0] in wanted:
                        spent[kind, line.names[0]] = line.sums.cost_nano
                offset = page.next_offset
                if page.lines and page.lines[-1].sums.cost_nano < lowest:
                    break
        return spent

    async def _told(self) -> dict[Subject, int]:
        """In which window each was told last."""
        async with self._store.read() as connection:
            rows = await connection.execute(sa.select(a.c.kind, a.c.subject_id, a.c.window_start_at))
            return {(row[0], row[1]): row[2] for row in rows}

    async def _forget(self, leader: Leader, subjects: Iterable[Subject]) -> None:
        """Their window is over, or they are well below again."""
        for kind, name in subjects:
            leader.check()
            async with self._store.read() as connection:
                await connection.execute(sa.delete(a).where(a.c.kind == kind, a.c.subject_id == name))

    async def _note(self, told: Sequence[Alert]) -> None:
        now = _micros(self._clock())
        for alert in told:
            kind, name = alert.watch.subject
            values = {"window_start_at": _micros(alert.watch.start_at), "told_at": now}
            async with self._store.read() as connection:
                mine = (a.c.kind == kind, a.c.subject_id == name)
                done = await connection.execute(sa.update(a).where(*mine).values(values))
                if done.rowcount == 0:
                    await connection.execute(sa.insert(a).values(kind=kind, subject_id=name, **values))


def line_of(alert: Alert) -> str:
    """What people read."""
    watch = alert.watch
    kind = watch.subject[0].replace("_", " ")
    window = f"in the window from {iso(watch.start_at)}" if watch.duration is not None else "in all"
    return (
        f":warning: {kind} *{plain(watch.name)}* has spent {dollars(alert.spent_nano)} {window}: "
        f"its soft budget is {dollars(watch.soft_nano)}"
    )


_NAMES = ("soft_budget_nano", "max_budget_nano", "budget_duration", "budget_anchor_at")


def _columns(table: Any, prefix: str) -> list[Any]:
    return [table.c[name].label(f"{prefix}_{name}") for name in _NAMES]


def _watch(row: Mapping[Any, Any], now: float, zone: tzinfo) -> Watch:
    own, shared = (_policy(row, prefix) for prefix in ("own", "shared"))
    soft = own if own.soft_budget_nano is not None else shared
    # Whose window: the budget's that counts, so that hard and soft budget speak of the same sum.
    timed = own if own.max_budget_nano is not None or own.budget_duration is not None else shared
    budget = Budget(soft.soft_budget_nano or 0, timed.budget_duration, timed.budget_anchor_at)
    start_at, end_at = bounds(budget, now, zone)
    name = row["shown"]
    return Watch((row["kind"], row["name"]), name, soft.soft_budget_nano or 0, start_at, end_at, timed.budget_duration)


def _policy(row: Mapping[Any, Any], prefix: str) -> Policy:
    values = {name: row[f"{prefix}_{name}"] for name in _NAMES}
    return Policy(**values | {"budget_anchor_at": (values["budget_anchor_at"] or 0) / 1_000_000})


def _micros(instant: float) -> int:
    return round(instant * 1_000_000)
