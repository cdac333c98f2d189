"""Old rows go, their daily totals stay; old prompts go.

`Ledger.maintain` calls it now and then; several processes may at once. PostgreSQL drops whole partitions, waiting for
no reader longer than `LOCK_S`; SQLite, and what no partition took, are deleted in small bites. Rule: `rows_since` is
written first, so that nobody sums rows that are about to go.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from sidecar.db.partitions import ended_partitions
from sidecar.spend.rows import micros

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from sidecar.db import Database

BITE_ROWS = 1000
BITE_PROMPTS = 100
"""They may have a hundred kilobytes each."""
LOCK_S = 2
_SLACK_S = 86_400.0
"""A month goes a day later than its last instant: a row's instant is a little after the one in its id."""
_log = logging.getLogger(__name__)


async def forget_rows(database: Database, *, now: float, days: int) -> int:
    """Rows (SQLite) or months (PostgreSQL) dropped that are older than `days`."""
    cutoff = now - days * 86_400
    await _announce(database, micros(cutoff))
    if database.dialect == "sqlite":
        return await _delete(database, "spend", "rowid", micros(cutoff), BITE_ROWS)
    dropped = await _drop_ended(database, "spend", cutoff - _SLACK_S)
    await _delete(database, "spend_default", "ctid", micros(cutoff), BITE_ROWS)
    return dropped


async def forget_prompts(database: Database, *, now: float, days: int) -> int:
    """Prompts (SQLite) or days of them (PostgreSQL) dropped that are older than `days`."""
    cutoff = now - days * 86_400
    if database.dialect == "sqlite":
        return await _delete(database, "prompts", "rowid", micros(cutoff), BITE_PROMPTS)
    dropped = await _drop_ended(database, "prompts", cutoff)
    await _delete(database, "prompts_default", "ctid", micros(cutoff), BITE_PROMPTS)
    return dropped


async def _announce(database: Database, at: int) -> None:
    import sqlalchemy as sa

    query = (
        "INSERT INTO spend_state (name, value) VALUES ('rows_since', :at)"
        " ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE spend_state.value < excluded.value"
    )
    async with database.engine.begin() as connection:
        await connection.execute(sa.text(query), {"at": at})


async def _drop_ended(database: Database, parent: str, cutoff: float) -> int:
    dropped = 0
    async with database.engine.connect() as connection:  # one for all: others wait for connections, too
        async with connection.begin():
            names = await ended_partitions(connection, parent, cutoff)
        for name in names:
            dropped += await _drop(connection, name)
    return dropped


async def _drop(connection: AsyncConnection, table: str) -> int:
    """0 if somebody reads the ledger for too long: next time."""
    from sqlalchemy.exc import DBAPIError

    try:
        async with connection.begin():
            await connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_S}s'")
            await connection.exec_driver_sql(f"DROP TABLE IF EXISTS {table}")
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != "55P03":  # lock_not_available
            raise
        _log.warning("%s is being read and dropped later", table)
        return 0
    _log.info("dropped %s: older than its retention", table)
    return 1


async def _delete(database: Database, table: str, row: str, before: int, bite: int) -> int:
    import sqlalchemy as sa

    query = sa.text(
        f"DELETE FROM {table} WHERE {row} IN"  # noqa: S608 - both are ours
        f" (SELECT {row} FROM {table} WHERE at < :before LIMIT {bite})"
    )
    deleted = 0
    while True:
        async with database.engine.begin() as connection:
            count = (await connection.execute(query, {"before": before})).rowcount
        deleted += count
        if count < bite:
            return deleted
        await asyncio.sleep(0.01)  # others may write
