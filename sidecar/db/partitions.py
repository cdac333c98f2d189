"""Partitions on PostgreSQL, by the time inside the UUIDv7 that begins every key: a month of the ledger each, a day of
the prompts.

Called by `database.py` under its advisory lock; `spend.retention` drops them. Rule: a row always has a place – what no
partition takes (ids that are no UUIDv7, clocks far off) goes to the default one.
"""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

MONTHS_AHEAD = 3
DAYS_AHEAD = 7
_DAY = timedelta(days=1)
_FORMS = {"spend": "%Y%m", "prompts": "%Y%m%d"}
"""How a partition of each table is called after its first day."""


def bound(at: datetime) -> str:
    """The least UUIDv7 text of an instant: its first 48 bits are milliseconds."""
    digits = f"{int(at.timestamp() * 1000):012x}"
    return f"{digits[:8]}-{digits[8:]}"


def months(now: float, ahead: int = MONTHS_AHEAD) -> list[tuple[str, str, str]]:
    """(table, from, to) of the ledger's month `now` is in and of the next ones."""
    today = datetime.fromtimestamp(now, UTC)
    first = today.year * 12 + today.month - 1
    firsts = [datetime(m // 12, m % 12 + 1, 1, tzinfo=UTC) for m in range(first, first + ahead + 2)]
    return _named("spend", firsts)


def days(now: float, ahead: int = DAYS_AHEAD) -> list[tuple[str, str, str]]:
    """(table, from, to) of the prompts' day `now` is in and of the next ones."""
    today = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return _named("prompts", [today + _DAY * number for number in range(ahead + 2)])


def _named(parent: str, firsts: list[datetime]) -> list[tuple[str, str, str]]:
    return [
        (f"{parent}_{start:{_FORMS[parent]}}", bound(start), bound(end)) for start, end in itertools.pairwise(firsts)
    ]


async def ended_partitions(connection: AsyncConnection, parent: str, at: float) -> list[str]:
    """Those of which all ids are of before `at`, the oldest first."""
    limit = bound(datetime.fromtimestamp(at, UTC))
    names = sorted(await _partitions(connection, parent))
    return [name for name in names if (end := _end(parent, name)) is not None and end <= limit]


def _end(parent: str, table: str) -> str | None:
    """`None`: none of ours."""
    try:
        start = datetime.strptime(table.removeprefix(f"{parent}_"), _FORMS[parent]).replace(tzinfo=UTC)
    except ValueError:
        return None
    return bound(start + _DAY if parent == "prompts" else (start + 31 * _DAY).replace(day=1))


async def missing_partitions(connection: AsyncConnection, now: float) -> list[tuple[str, str, str, str]]:
    """Those of `months` and `days` that do not exist, the table they are of before them."""
    found = []
    for parent, wanted in (("spend", months(now)), ("prompts", days(now))):
        existing = await _partitions(connection, parent)
        found += [(parent, *one) for one in wanted if one[0] not in existing]
    return found


async def _partitions(connection: AsyncConnection, parent: str) -> set[str]:
    query = (
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"  # noqa: S608 - ours
        f" WHERE i.inhparent = '{parent}'::regclass"
    )
    return set((await connection.exec_driver_sql(query)).scalars())


async def make_partitions(connection: AsyncConnection, now: float) -> None:
    """Idempotent. Rows that the default partition holds already move into the new one. Flushers wait meanwhile: in the
    order in which they lock the tables, so that nobody deadlocks."""
    missing = await missing_partitions(connection, now)
    for parent in sorted({one[0] for one in missing}):
        await connection.exec_driver_sql(f"LOCK TABLE {parent} IN SHARE UPDATE EXCLUSIVE MODE")
        await connection.exec_driver_sql(f"LOCK TABLE {parent}_default IN ACCESS EXCLUSIVE MODE")
    for parent, table, start, end in await missing_partitions(connection, now):
        await connection.exec_driver_sql(
            f"CREATE TABLE {table} (LIKE {parent} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)"
        )
        where = f"exchange_id >= '{start}' AND exchange_id < '{end}'"
        taken = f"DELETE FROM {parent}_default WHERE {where} RETURNING *"  # noqa: S608 - all three are ours
        await connection.exec_driver_sql(f"WITH moved AS ({taken}) INSERT INTO {table} SELECT * FROM moved")  # noqa: S608
        await connection.exec_driver_sql(
            f"ALTER TABLE {parent} ATTACH PARTITION {table} FOR VALUES FROM ('{start}') TO ('{end}')"
        )
