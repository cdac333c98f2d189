"""Rows into SQLite: into a temporary table, from there those that are new into the ledger and onto the daily totals.

Rule: one transaction a batch that holds the write lock from its beginning, so that nobody inserts between looking and
writing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sidecar.errors import UnavailableError
from sidecar.spend.rollups import upsert
from sidecar.spend.rows import COLUMNS, Row
from sidecar.spend.writing import translated

if TYPE_CHECKING:
    from sidecar.db import Database

_log = logging.getLogger(__name__)
_NAMES = ", ".join(COLUMNS)
_KEY = ("exchange_id", "attempt", "revision")
_STAGE = f"CREATE TEMPORARY TABLE IF NOT EXISTS staging ({_NAMES}, PRIMARY KEY ({', '.join(_KEY)}))"
_FILL = f"INSERT OR IGNORE INTO temp.staging ({_NAMES}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608 - all of it is ours
_STEPS = (
    "DELETE FROM temp.staging AS s WHERE EXISTS (SELECT 1 FROM spend AS k WHERE "  # noqa: S608
    + " AND ".join(f"k.{name} = s.{name}" for name in _KEY)
    + ")",
    f"INSERT INTO spend ({_NAMES}) SELECT {_NAMES} FROM temp.staging",  # noqa: S608
    upsert("temp.staging", dialect="sqlite"),
    upsert("temp.staging", dialect="sqlite", is_whole=True),
    "DELETE FROM temp.staging",
)


class SqliteWriter:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(self, rows: Sequence[Row]) -> bool:
        """Durable when it returns True; False if the rows, not the database, are at fault. Else `UnavailableError`."""
        try:
            async with translated(), self._database.engine.connect() as connection:
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                await connection.exec_driver_sql(_STAGE)
                await connection.exec_driver_sql("BEGIN IMMEDIATE")
                try:
                    await connection.exec_driver_sql(_FILL, list(rows))
                    for step in _STEPS:
                        await connection.exec_driver_sql(step)
                except Exception:
                    await connection.exec_driver_sql("ROLLBACK")
                    raise
                # After a cancellation SQLAlchemy closes the connection, which rolls back; to ask for it would fail, and
                # the failure would hide the cancellation.
                await connection.exec_driver_sql("COMMIT")
        except (UnavailableError, OverflowError, UnicodeEncodeError) as error:
            cause = error.__cause__ if isinstance(error, UnavailableError) else error
            if not _is_about_data(cause):
                raise
            _log.error("the database refused %d spend rows: %s", len(rows), type(cause).__name__)
            return False
        return True


def _is_about_data(error: BaseException | None) -> bool:
    from sqlalchemy.exc import DataError, IntegrityError, OperationalError

    if isinstance(error, (DataError, IntegrityError, OverflowError, UnicodeEncodeError)):
        return True
    return isinstance(error, OperationalError) and "integer overflow" in str(error.orig)
