"""Rows into PostgreSQL: COPY into a temporary table, from there into the ledger and onto the daily totals.

Rows are nearly always new, so they are first inserted as such. Only if one is there already (another flusher was killed
after its commit, or is slow), or a number is beyond what the quick sums hold, the batch is done again in the way that
asks for each row and holds every number. Rules: one transaction a batch, so a flusher killed anywhere leaves all of it
or nothing; rows, totals and whole totals are locked in one order by everybody, so that no two flushers deadlock.
https://www.postgresql.org/docs/current/sql-copy.html
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sidecar.db.schema import HEAD
from sidecar.spend.rollups import upsert
from sidecar.spend.rollups_postgres import add_all
from sidecar.spend.rows import COLUMNS, Row
from sidecar.spend.writing import translated, unavailable

if TYPE_CHECKING:
    from sidecar.db import Database

_log = logging.getLogger(__name__)
# With the schema's version in its name: behind PgBouncer a server connection outlives this process.
STAGING = f"sidecar_staging_{HEAD}"
_STAGE = (
    f"CREATE TEMPORARY TABLE IF NOT EXISTS {STAGING} (LIKE spend) ON COMMIT DELETE ROWS;"
    # The totals of a batch are few, in memory and the same each time: hashed, nothing compiled.
    " SET LOCAL enable_sort = off; SET LOCAL work_mem = '32MB'; SET LOCAL jit = off;"
    # Whoever is cut off before COMMIT has the totals locked: for no longer than this.
    " SET LOCAL idle_in_transaction_session_timeout = '10s'"
)
_NAMES = ", ".join(COLUMNS)
_INSERT = f"INSERT INTO spend ({_NAMES}) SELECT {_NAMES} FROM pg_temp.{STAGING} ORDER BY exchange_id, attempt, revision"  # noqa: S608 - all of it is ours
QUICKLY = (_INSERT, add_all(f"pg_temp.{STAGING}"))
CAREFULLY = (
    f"WITH fresh AS ({_INSERT} ON CONFLICT DO NOTHING RETURNING *),"  # noqa: S608
    f" daily AS ({upsert('fresh', dialect='postgresql')} RETURNING 1) "
    + upsert("fresh", dialect="postgresql", is_whole=True, after="(SELECT count(*) FROM daily) >= 0"),
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
                try:
                    await _insert(driver, rows, QUICKLY)
                except (asyncpg.UniqueViolationError, asyncpg.NumericValueOutOfRangeError):
                    await _insert(driver, rows, CAREFULLY)
            except (
                asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, ValueError,
                TypeError, OverflowError,
            ) as error:  # fmt: skip
                if not _is_about_data(error):
                    await connection.invalidate()  # the pool has not seen what the driver said
                    raise unavailable() from error
                _log.error("the database refused %d spend rows: %s", len(rows), type(error).__name__)
                return False
            except BaseException:
                # Cancelled, maybe amid BEGIN: what the driver thinks is open may not be what the server thinks, and
                # later batches would be savepoints of a transaction nobody commits.
                driver.terminate()
                raise
        return True


async def _insert(driver: Any, rows: Sequence[Row], steps: Sequence[str]) -> None:
    async with driver.transaction():
        await driver.execute(_STAGE)
        await driver.copy_records_to_table(STAGING, schema_name="pg_temp", records=rows, columns=COLUMNS)
        for step in steps:
            await driver.fetch(step)  # unlike `execute`, planned once a connection


def _is_about_data(error: BaseException) -> bool:
    """SQLSTATE classes 22, 23 and 54 (a text too long for an index), or what the driver refuses before sending it."""
    state = str(getattr(error, "sqlstate", ""))[:2]
    return isinstance(error, (ValueError, TypeError, OverflowError)) or state in ("22", "23", "54")
