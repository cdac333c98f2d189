"""Rows into PostgreSQL: COPY into a temporary table, then one statement that inserts what is new and adds it to the
daily totals.

Rules: one transaction a batch, so a flusher killed anywhere leaves all of it or nothing; rows and then totals are
locked in one order by everybody, so that no two flushers deadlock. https://www.postgresql.org/docs/current/sql-copy.html
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sidecar.db.schema import HEAD
from sidecar.spend.rollups import upsert
from sidecar.spend.rows import COLUMNS, Row
from sidecar.spend.writing import translated, unavailable

if TYPE_CHECKING:
    from sidecar.db import Database

_log = logging.getLogger(__name__)
# With the schema's version in its name: behind PgBouncer a server connection outlives this process.
STAGING = f"sidecar_staging_{HEAD}"
_STAGE = f"CREATE TEMPORARY TABLE IF NOT EXISTS {STAGING} (LIKE spend) ON COMMIT DELETE ROWS"
_NAMES = ", ".join(COLUMNS)
INSERT = (
    f"WITH fresh AS (INSERT INTO spend ({_NAMES}) SELECT {_NAMES} FROM pg_temp.{STAGING}"  # noqa: S608 - all of it is ours
    " ORDER BY exchange_id, attempt, revision ON CONFLICT DO NOTHING RETURNING *) "
    + upsert("fresh", dialect="postgresql")
)


class PostgresWriter:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(self, rows: Sequence[Row]) -> bool:
        """Durable when it returns True; False if the rows, not the database, are at fault. Else `UnavailableError`."""
        import asyncpg

        async with translated(), self._database.engine.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            try:
                async with driver.transaction():
                    await driver.execute(_STAGE)
                    await driver.copy_records_to_table(STAGING, schema_name="pg_temp", records=rows, columns=COLUMNS)
                    await driver.execute(INSERT)
            except (
                asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, ValueError,
                TypeError, OverflowError,
            ) as error:  # fmt: skip
                if not _is_about_data(error):
                    await connection.invalidate()  # the pool has not seen what the driver said
                    raise unavailable() from error
                _log.error("the database refused %d spend rows: %s", len(rows), type(error).__name__)
                return False
        return True


def _is_about_data(error: BaseException) -> bool:
    """SQLSTATE classes 22 and 23, or what the driver refuses before sending it."""
    return isinstance(error, (ValueError, TypeError, OverflowError)) or str(getattr(error, "sqlstate", ""))[:2] in (
        "22",
        "23",
    )
