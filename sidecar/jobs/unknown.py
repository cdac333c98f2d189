"""Attempts a provider may have billed and nobody knows for how much: resolved by hand, or written off after a while.

`sidecar spend resolve` and the job `write_off_unknown` use it. Rules: rows are appended, never changed – one that takes
the held cost back (`unknown`, negative) and is written last, one with the real cost; counters that stood before follow
between the two, once, and one that is seeded later reads the new rows anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import tzinfo
from typing import Literal

from sidecar.errors import ConflictError, NotFoundError, UnavailableError
from sidecar.identity.row import member_id
from sidecar.jobs.ticker import sums_of
from sidecar.limits.claims import Claims
from sidecar.limits.store.base import LimitStore, StoreDownError
from sidecar.limits.windows import BudgetWindow, window_named
from sidecar.spend.ledger import Ledger
from sidecar.types import SpendRecord, Usage

BATCH = 500
_DAYS = "SELECT DISTINCT day_at FROM spend_daily WHERE dimension = 'all' AND unknown_nano <> 0 AND day_at < :before"
_OPEN = (
    "SELECT exchange_id FROM spend WHERE at >= :since AND at < :until AND status = 'unknown'"
    " GROUP BY exchange_id, attempt HAVING sum(cost_nano) <> 0 ORDER BY exchange_id LIMIT :limit"
)
_DAY = 86_400_000_000


class Unknown:
    """`store` is where budgets are counted; `None` if that is in the memory of others. `tell` hears of each correction
    made here."""

    def __init__(
        self,
        ledger: Ledger,
        store: LimitStore | None,
        *,
        zone: tzinfo,
        tell: Callable[[SpendRecord], object] = lambda row: None,
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._zone = zone
        self._tell = tell
        self._turn = asyncio.Lock()
        self._charged: set[str] = set()  # of what is begun: a store in memory would count it twice

    async def resolve(self, exchange_id: str, cost_nano: int, *, attempt: int | None = None) -> list[SpendRecord]:
        """What one attempt really cost, found out by a human. The corrections. Raises `NotFoundError`,
        `ConflictError` (several attempts are unknown: name one), `UnavailableError`."""
        rows = await self._ledger.rows_of(exchange_id)
        unknown = sorted({row.attempt for row in rows if attempt in (None, row.attempt)} & _unknown(rows).keys())
        if not unknown:
            raise NotFoundError(f"Exchange {exchange_id} has no attempt of unknown cost.")
        if len(unknown) > 1:
            numbers = ", ".join(map(str, unknown))
            raise ConflictError(f"Exchange {exchange_id} has several attempts of unknown cost: name one of {numbers}.")
        return await self._correct(rows, unknown, cost_nano, "settled")

    async def write_off(self, before_at: float, *, check: Callable[[], object] = lambda: None) -> int:
        """Every unknown cost of attempts before `before_at` becomes $0, estimated. How many exchanges."""
        import sqlalchemy as sa

        before, done = int(before_at * 1_000_000), 0
        async with self._ledger.connection() as connection:
            days = [int(day) for (day,) in await connection.execute(sa.text(_DAYS), {"before": before})]
        seen: set[str] = set()
        for day in sorted(days):
            while True:
                values = {"since": day, "until": min(day + _DAY, before), "limit": BATCH}
                async with self._ledger.connection() as connection:
                    names = [name for (name,) in await connection.execute(sa.text(_OPEN), values)]
                fresh = [name for name in dict.fromkeys(names) if name not in seen]
                seen.update(fresh)
                for name in fresh:
                    check()
                    rows = await self._ledger.rows_of(name)
                    await self._correct(rows, sorted(_unknown(rows)), 0, "estimated")
                    done += 1
                if len(names) < BATCH or not fresh:
                    break
        return done

    async def _correct(
        self,
        rows: Sequence[SpendRecord],
        attempts: Sequence[int],
        cost_nano: int,
        status: Literal["settled", "estimated"],
    ) -> list[SpendRecord]:
        async with self._turn:
            windows = await self._windows(rows[0]) if rows else ()
            backs: list[SpendRecord] = []
            finals: list[SpendRecord] = []
            is_again = False
            unknown = _unknown(rows)
            for number in attempts:
                last = max((row for row in rows if row.attempt == number), key=lambda row: row.revision)
                revision = _cut_off_at(rows, number)
                is_again = is_again or revision is not None
                if revision is None:
                    revision = last.revision + 1
                back = replace(last, revision=revision, status="unknown", cost_nano=-unknown[number], usage=Usage())
                backs.append(back)
                finals.append(replace(back, revision=revision + 1, status=status, cost_nano=cost_nano))
            if not backs:
                return []  # somebody else was faster
            # What is taken back comes last, once the counters know: whoever is cut off leaves the cost unknown, and the
            # next one ends what was begun. Somebody else may have been faster, with another figure: what stands counts.
            await self._ledger.insert(finals)
            standing = [*backs, *await self._standing(finals)]
            names = {f"{row.exchange_id}.{row.attempt}.{row.revision}": row for row in standing}
            charged = [await self._charge(name, windows, row) for name, row in names.items()]
            await self._ledger.insert(backs)
            standing = await self._standing(backs + finals)
            for row in standing:
                if row in backs or row in finals:
                    self._tell(row)
            now = await self._windows(rows[0])
            if is_again or not all(charged) or set(now) - set(windows):
                await self._read_again(now)
            self._charged.difference_update(names)
            return standing

    async def uncorrect(self, row: SpendRecord, nano: int) -> None:
        """The row of a silent owner's hold was corrected, counters followed, and then the owner settled after all: from
        its hold, of which nothing was left. `nano` is what the correction took away. Once a day; raises
        `UnavailableError`: then call it again."""
        try:
            windows = await self._windows(row)
            if self._store is not None and windows:
                name = f"{row.exchange_id}.{row.attempt}.heard"
                await self._store.charge(name, Claims((), (), (), windows), nano, row.at)
        except StoreDownError as error:
            raise UnavailableError(
                "The counters could not be told.", code="limit_store_unavailable", retry_after_s=1.0
            ) from error

    async def _standing(self, wanted: Sequence[SpendRecord]) -> list[SpendRecord]:
        found = {(row.attempt, row.revision) for row in wanted}
        rows = await self._ledger.rows_of(wanted[0].exchange_id)
        return [row for row in rows if (row.attempt, row.revision) in found]

    async def _charge(self, name: str, windows: tuple[BudgetWindow, ...], row: SpendRecord) -> bool:
        """Once. False if some counter knows of this row's time by the ledger alone and has to be read from it again."""
        if self._store is None or not windows or name in self._charged:
            return True
        is_done = await self._store.charge(name, Claims((), (), (), windows), row.cost_nano, row.at)
        self._charged.add(name)
        return is_done

    async def _read_again(self, windows: tuple[BudgetWindow, ...]) -> None:
        if self._store is None or not windows:
            return
        reading = await self._store.begin(windows)
        if reading is not None:
            since = reading.since
            asked = [replace(w, end_at=min(w.end_at, since[w.key])) for w in windows if w.key in since]
            await self._store.seed(await sums_of(self._ledger, asked), windows, reading=reading)

    async def _windows(self, row: SpendRecord) -> tuple[BudgetWindow, ...]:
        """The counters that count this row, of those that stand now: later ones are seeded with its corrections."""
        if self._store is None:
            return ()
        found = (window_named(key, self._zone) for key in await self._store.counters())
        whose = _scopes(row)
        return tuple(w for w in found if (w.kind, w.scope_id) in whose and w.start_at <= row.at < w.end_at)


def _unknown(rows: Sequence[SpendRecord]) -> dict[int, int]:
    """Nano-dollars still unknown, by attempt."""
    found: dict[int, int] = {}
    for row in rows:
        if row.status == "unknown":
            found[row.attempt] = found.get(row.attempt, 0) + row.cost_nano
    return {number: nano for number, nano in found.items() if nano}


def _cut_off_at(rows: Sequence[SpendRecord], attempt: int) -> int | None:
    """The revision that is left out: whoever corrected this attempt was cut off before the cost was taken back."""
    known = {row.revision for row in rows if row.attempt == attempt}
    return next((number for number in range(max(known)) if number not in known), None)


def _scopes(row: SpendRecord) -> set[tuple[str, str]]:
    named = {
        "key": row.key_hash,
        "user": row.user_id,
        "team": row.team_id,
        "organization": row.organization_id,
        "end_user": row.end_user_id,
        "member": member_id(row.team_id, row.user_id) if row.team_id and row.user_id else None,
    }
    found = {(kind, name) for kind, name in named.items() if name}
    return found | {("tag", name) for name in row.tags} | {("global", "")}
