"""Do the sums still agree? The daily totals with the rows they were made of, the budgets' counters with the ledger.

`sidecar spend verify` prints what this finds. Rule: a difference is a fact about one snapshot; what is still on its way
(rows in a journal, an exchange in flight) is looked at again before it is called one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

from sidecar.db.schema import TOTALS
from sidecar.spend.ledger import Ledger
from sidecar.spend.rollups import DAY, KEY, WHOLE, added_up, summed

ALL_MODELS = "*"
"""Stands as provider and model of a total of `spend_daily_whole`."""


@dataclass(frozen=True, slots=True)
class TotalDifference:
    """`by` is what the totals have beyond their rows (negative: less), without what agrees."""

    dimension: str
    day_at: float
    name: str
    provider: str
    model: str
    by: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Counter:
    """A budget's counter: its window, what it stands at and how much of that is held by exchanges in flight."""

    key: str
    kind: str
    scope_id: str
    start_at: float
    end_at: float
    nano: int
    held_nano: int = 0


@dataclass(frozen=True, slots=True)
class CounterDifference:
    counter: Counter
    ledger_nano: int

    @property
    def nano(self) -> int:
        """What the counter has beyond the ledger."""
        return self.counter.nano - self.counter.held_nano - self.ledger_nano


async def totals_that_differ(ledger: Ledger, *, limit: int = 1000) -> list[TotalDifference]:
    """Days whose rows may be gone are left out. One snapshot; it reads every row."""
    import sqlalchemy as sa

    dialect = ledger.database.dialect
    columns = ", ".join(KEY)
    ours = ", ".join((*KEY, *TOTALS))
    negative = ", ".join(f"-{name} AS {name}" for name in TOTALS)
    sums = ", ".join(f"{summed(name, dialect)} AS {name}" for name in TOTALS)
    differs = " OR ".join(f"{summed(name, dialect)} <> 0" for name in TOTALS)
    rows = added_up("spend", dialect=dialect, where="s.at >= :since")
    whole = added_up("spend", dialect=dialect, where="s.at >= :since", dimensions=WHOLE, is_whole=True)
    whole_ours = ours.replace("provider, model", f"'{ALL_MODELS}', '{ALL_MODELS}'")
    whole_columns = columns.replace("provider, model", f"'{ALL_MODELS}', '{ALL_MODELS}'")
    query = (
        f"SELECT {columns}, {sums} FROM (SELECT {ours} FROM spend_daily WHERE day_at >= :since"  # noqa: S608 - ours
        f" UNION ALL SELECT {columns}, {negative} FROM ({rows}) AS found"
        f" UNION ALL SELECT {whole_ours} FROM spend_daily_whole WHERE day_at >= :since"
        f" UNION ALL SELECT {whole_columns}, {negative} FROM ({whole}) AS found_whole) AS both_sides"
        f" GROUP BY {columns} HAVING {differs} ORDER BY {columns} LIMIT :limit"
    )
    async with ledger.connection() as connection:
        state = await connection.exec_driver_sql("SELECT value FROM spend_state WHERE name = 'rows_since'")
        since = state.scalar()
        values = {"since": -(2**62) if since is None else since + -since % DAY, "limit": limit}
        found = (await connection.execute(sa.text(query), values)).mappings().all()
    return [
        TotalDifference(
            row["dimension"],
            row["day_at"] / 1_000_000,
            row["name"],
            row["provider"],
            row["model"],
            {name: int(row[name]) for name in TOTALS if row[name]},
        )
        for row in found
    ]


async def counters_that_differ(
    ledger: Ledger,
    read: Callable[[], Awaitable[Iterable[Counter]]],
    wait: Callable[[], Awaitable[bool]],
) -> list[CounterDifference]:
    """Counters that disagree with the ledger every time they are looked at; `wait` returns False when it is time to
    stop looking."""
    first = True
    keys: set[str] = set()
    while True:
        found = [
            CounterDifference(counter, await _spent(ledger, counter))
            for counter in await read()
            if first or counter.key in keys
        ]
        found = [difference for difference in found if difference.nano]
        keys, first = {difference.counter.key for difference in found}, False
        if not found or not await wait():
            return found


async def _spent(ledger: Ledger, counter: Counter) -> int:
    return await ledger.sum_of(counter.kind, counter.scope_id, counter.start_at, counter.end_at)
