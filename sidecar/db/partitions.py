"""Monthly partitions of the ledger on PostgreSQL, by the time inside the UUIDv7 that begins every key.

Called by `database.py` under its advisory lock. Rule: a row always has a place – what no month takes (ids that are no
UUIDv7, clocks far off) goes to the default partition.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

MONTHS_AHEAD = 3


def bound(at: datetime) -> str:
    """The least UUIDv7 text of an instant: its first 48 bits are milliseconds."""
    digits = f"{int(at.timestamp() * 1000):012x}"
    return f"{digits[:8]}-{digits[8:]}"


def months(now: float, ahead: int = MONTHS_AHEAD) -> list[tuple[str, str, str]]:
    """(table, from, to) of the month `now` is in and of the next ones."""
    today = datetime.fromtimestamp(now, UTC)
    first = today.year * 12 + today.month - 1
    found = []
    for month in range(first, first + ahead + 1):
        start, end = (datetime(m // 12, m % 12 + 1, 1, tzinfo=UTC) for m in (month, month + 1))
        found.append((f"spend_{start:%Y%m}", bound(start), bound(end)))
    return found


async def missing_partitions(connection: AsyncConnection, now: float) -> list[tuple[str, str, str]]:
    """Those of `months` that do not exist."""
    query = (
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = 'spend'::regclass"
    )
    existing = set((await connection.exec_driver_sql(query)).scalars())
    return [month for month in months(now) if month[0] not in existing]


async def make_partitions(connection: AsyncConnection, now: float) -> None:
    """Idempotent. Rows of the month that the default partition holds already move into the new one. Flushers wait
    meanwhile: in the order in which they lock the tables, so that nobody deadlocks."""
    await connection.exec_driver_sql("LOCK TABLE spend IN SHARE UPDATE EXCLUSIVE MODE")
    await connection.exec_driver_sql("LOCK TABLE spend_default IN ACCESS EXCLUSIVE MODE")
    for table, start, end in await missing_partitions(connection, now):
        await connection.exec_driver_sql(f"CREATE TABLE {table} (LIKE spend INCLUDING DEFAULTS INCLUDING CONSTRAINTS)")
        where = f"exchange_id >= '{start}' AND exchange_id < '{end}'"
        taken = f"DELETE FROM spend_default WHERE {where} RETURNING *"  # noqa: S608 - all three are ours
        await connection.exec_driver_sql(f"WITH moved AS ({taken}) INSERT INTO {table} SELECT * FROM moved")  # noqa: S608
        await connection.exec_driver_sql(
            f"ALTER TABLE spend ATTACH PARTITION {table} FOR VALUES FROM ('{start}') TO ('{end}')"
        )
