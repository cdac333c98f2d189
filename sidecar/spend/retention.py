"""Old rows go, their daily totals stay.

`Ledger.maintain` calls it now and then; several processes may at once. PostgreSQL drops whole months, waiting for no
reader longer than `LOCK_S`; SQLite, and what no month took, are deleted in small bites. Rule: `rows_since` is written
first, so that nobody sums rows that are about to go.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sidecar.db.partitions import bound
from sidecar.spend.rows import micros

if TYPE_CHECKING:
    from sidecar.db import Database

BITE_ROWS = 1000
LOCK_S = 2
_SLACK_S = 86_400.0
"""A month goes a day later than its last instant: a row's instant is a little after the one in its id."""
_log = logging.getLogger(__name__)


async def forget_rows(database: Database, *, now: float, days: int) -> int:
    """Rows (SQLite) or months (PostgreSQL) dropped that are older than `days`."""
    cutoff = now - days * 86_400
    await _announce(database, micros(cutoff))
    if database.dialect == "sqlite":
        return await _delete(database, "spend", "rowid", micros(cutoff))
    dropped = 0
    for table in await _months_before(database, cutoff - _SLACK_S):
        dropped += await _drop(database, table)
    await _delete(database, "spend_default", "ctid", micros(cutoff))
    return dropped


async def _announce(database: Database, at: int) -> None:
    import sqlalchemy as sa

    query = (
        "INSERT INTO spend_state (name, value) VALUES ('rows_since', :at)"
        " ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE spend_state.value < excluded.value"
    )
    async with database.engine.begin() as connection:
        await connection.execute(sa.text(query), {"at": at})


async def _months_before(database: Database, cutoff: float) -> list[str]:
    """The partitions of months that ended before `cutoff`, by their names."""
    query = (
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = 'spend'::regclass AND c.relname ~ '^spend_[0-9]{6}$' ORDER BY 1"
    )
    async with database.engine.connect() as connection:
        names = (await connection.exec_driver_sql(query)).scalars().all()
    limit = bound(datetime.fromtimestamp(cutoff, UTC))
    return [name for name in names if _end(name) <= limit]


def _end(table: str) -> str:
    month = int(table[6:10]) * 12 + int(table[10:12])
    return bound(datetime(month // 12, month % 12 + 1, 1, tzinfo=UTC))


async def _drop(database: Database, table: str) -> int:
    """0 if somebody reads the ledger for too long: next time."""
    from sqlalchemy.exc import DBAPIError

    try:
        async with database.engine.begin() as connection:
            await connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_S}s'")
            await connection.exec_driver_sql(f"DROP TABLE IF EXISTS {table}")
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != "55P03":  # lock_not_available
            raise
        _log.warning("the ledger is being read; %s is dropped later", table)
        return 0
    _log.info("dropped %s: older than the ledger's retention", table)
    return 1


async def _delete(database: Database, table: str, row: str, before: int) -> int:
    import sqlalchemy as sa

    query = sa.text(
        f"DELETE FROM {table} WHERE {row} IN"  # noqa: S608 - both are ours
        f" (SELECT {row} FROM {table} WHERE at < :before LIMIT {BITE_ROWS})"
    )
    deleted = 0
    while True:
        async with database.engine.begin() as connection:
            count = (await connection.execute(query, {"before": before})).rowcount
        deleted += count
        if count < BITE_ROWS:
            return deleted
        await asyncio.sleep(0.01)  # others may write
