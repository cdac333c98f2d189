"""The database behind keys and ledger: URL → async engine, schema check, migration.

Neighbours: `schema.py` (tables), `partitions.py`, `migrations/`. Rules: nothing here runs on the path of a request;
SQLAlchemy is imported when the engine is first used, Alembic only if the schema is not current.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidecar.db.breaker import Breaker
from sidecar.errors import UnavailableError

if TYPE_CHECKING:
    import aiosqlite
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
    from sqlalchemy.pool import ConnectionPoolEntry

BUSY_TIMEOUT_S = 10.0
LENT_S = 2.0
LOCK_S = 2.0
_ADVISORY_LOCK = 0x51DECA5
_MIGRATING = threading.Lock()
_log = logging.getLogger(__name__)


class Database:
    """`url` as users write it: `sqlite:///relative`, `sqlite:////absolute`, `postgresql://user:password@host/name`
    (also `postgres://`; its options: `postgres.connect_arguments`). At most `pool_size` connections. Raises
    `ValueError` for any other URL, naming the fix."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time, pool_size: int = 5) -> None:
        scheme = url.partition("://")[0].partition("+")[0].lower()
        if scheme not in ("sqlite", "postgresql", "postgres") or "://" not in url:
            raise ValueError("the database URL has to begin with sqlite:/// or postgresql://")
        self.dialect = "sqlite" if scheme == "sqlite" else "postgresql"
        self._url = url
        self._clock = clock
        self._pool_size = pool_size
        self._engine: AsyncEngine | None = None
        self._lent: set[ConnectionPoolEntry] = set()
        self._files: set[aiosqlite.Connection] = set()
        self.breaker = Breaker()

    def __repr__(self) -> str:
        return f"Database({self.dialect})"

    @property
    def engine(self) -> AsyncEngine:
        if self._engine is None:
            self._engine = self._make_engine()
            _follow(self._engine, self._lent)
        return self._engine

    async def connect(self) -> None:
        """Raises `UnavailableError` if the database does not answer."""
        from sqlalchemy.exc import SQLAlchemyError

        try:
            async with self.engine.connect() as connection:
                await connection.exec_driver_sql("SELECT 1")
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            raise UnavailableError(
                "The gateway's database does not answer.", code="database_unavailable", retry_after_s=1.0
            ) from error

    async def schema_is_current(self) -> bool:
        """True if the newest migration is applied. One cheap query."""
        from sidecar.db.schema import HEAD

        async with self.engine.connect() as connection:
            return await _version(connection) == HEAD

    async def migrate(self, *, in_child: bool = False) -> None:
        """Bring the schema up to date; any number of processes may do so at once. Also makes the next
        partitions. `in_child=True` runs Alembic in a process of its own. Raises `UnavailableError` if that fails."""
        if not await self.schema_is_current():
            if in_child:
                await self._migrate_in_child()
            elif self.dialect == "sqlite":
                await self._migrate_sqlite()
            else:
                await self._migrate_postgresql()
        await self.make_partitions()

    async def make_partitions(self) -> None:
        """The partitions of this month and day and of the next ones, where the database has partitions. Those that
        somebody's long reading is in the way of are made later: until then their rows are in the default one."""
        if self.dialect != "postgresql":
            return
        from sqlalchemy.exc import DBAPIError

        from sidecar.db.partitions import make_partitions, missing_partitions

        now = self._clock()
        try:
            async with self.engine.begin() as connection:
                if not await missing_partitions(connection, now):
                    return
                await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
                # Whoever reads after us waits behind us.
                await connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_S:g}s'")
                await make_partitions(connection, now)
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != "55P03":  # lock_not_available
                raise
            _log.warning("the next partitions are made later: somebody reads the tables for too long")

    @property
    def lookup_s(self) -> float:
        """How long a lookup by key may last. A server that takes longer is given up; a file is only busy."""
        return 2.0 if self.dialect == "postgresql" else BUSY_TIMEOUT_S

    @property
    def has_sessions(self) -> bool:
        """PostgreSQL without a pooler of transactions between: what a session holds, it holds until it ends."""
        from sidecar.db.postgres import is_pooled

        return self.dialect == "postgresql" and not is_pooled(_known_scheme(self._url))

    async def session(self, timeout_s: float = BUSY_TIMEOUT_S) -> Any:
        """A connection of its own to PostgreSQL, beside the pool (asyncpg's); whoever asks closes it."""
        from sidecar.db.postgres import connect_arguments

        return await connect_arguments(_known_scheme(self._url), timeout_s=timeout_s)["async_creator_fn"]()

    def now(self) -> float:
        return self._clock()

    async def aclose(self) -> None:
        """Whoever was cancelled a moment ago still gives its connection back; later ones nobody would close."""
        engine, self._engine = self._engine, None
        if engine is None:
            return
        loop = asyncio.get_running_loop()
        until = loop.time() + LENT_S
        # The pool tells nobody; when no other task is left, nobody gives one back.
        while self._are_lent() and len(asyncio.all_tasks()) > 1 and loop.time() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        # SQLAlchemy gives one back in a task, which the loop's end cancels.
        for entry in self._are_lent():
            entry.invalidate()
        self._lent.clear()
        with contextlib.suppress(TimeoutError):  # a server that stands still: the driver waits for its goodbye
            async with asyncio.timeout(LENT_S if self.dialect == "postgresql" else None):
                await engine.dispose()
        await self._end_threads()

    def _are_lent(self) -> list[ConnectionPoolEntry]:
        """Without those that the garbage collector gave back, which tells nobody."""
        return [entry for entry in self._lent if entry.in_use]

    def _connect_sqlite(self, *args: Any, **options: Any) -> aiosqlite.Connection:
        import aiosqlite

        connection = aiosqlite.connect(*args, **options)
        connection._thread.daemon = True  # as SQLAlchemy does it
        self._files = {connection, *(file for file in self._files if file._thread.is_alive())}
        return connection

    async def _end_threads(self) -> None:
        """Each SQLite connection is a thread; one that outlives the event loop fails loudly."""
        for file in self._files:
            if file._thread.is_alive():
                file.stop()  # also if its opening was cancelled
        until = time.monotonic() + LENT_S
        while any(file._thread.is_alive() for file in self._files) and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        self._files.clear()

    async def _migrate_in_child(self) -> None:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "sidecar.db", stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        _, errors = await child.communicate(self._url.encode())
        if child.returncode != 0:
            last = errors.decode(errors="replace").strip().rpartition("\n")[2].replace(self._url, "***")
            raise UnavailableError(f"The gateway's database could not be migrated: {last[:300]}", code="schema_version")

    async def _migrate_sqlite(self) -> None:
        async with self.engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await _set_wal(connection)
            await connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                async with _alone():
                    await connection.run_sync(_upgrade)
            except BaseException:
                await connection.exec_driver_sql("ROLLBACK")
                raise
            await connection.exec_driver_sql("COMMIT")

    async def _migrate_postgresql(self) -> None:
        async with self.engine.begin() as connection:
            await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
            async with _alone():
                await connection.run_sync(_upgrade)

    def _make_engine(self) -> AsyncEngine:
        import sqlalchemy as sa
        from sqlalchemy.ext.asyncio import create_async_engine

        from sidecar.db.postgres import connect_arguments

        if self.dialect == "postgresql":
            return create_async_engine(
                "postgresql+asyncpg://",
                pool_size=1,  # kept open; the others are closed after use, so that many workers share a small server
                max_overflow=self._pool_size - 1,
                pool_pre_ping=True,
                pool_timeout=BUSY_TIMEOUT_S,
                connect_args=connect_arguments(_known_scheme(self._url), timeout_s=BUSY_TIMEOUT_S),
            )
        url = sa.make_url(_known_scheme(self._url)).set(drivername="sqlite+aiosqlite")
        if url.database and url.database != ":memory:":
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        connecting = {"timeout": BUSY_TIMEOUT_S, "async_creator_fn": self._connect_sqlite}
        engine = create_async_engine(url, connect_args=connecting)
        sa.event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        sa.event.listen(engine.sync_engine, "invalidate", _roll_back_sqlite)
        return engine


async def migrate(url: str) -> None:
    """`Database(url).migrate()`, closed again."""
    database = Database(url)
    try:
        await database.migrate()
    finally:
        await database.aclose()


def _known_scheme(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{'sqlite' if scheme.lower().startswith('sqlite') else 'postgresql'}://{rest}"


def _follow(engine: AsyncEngine, lent: set[ConnectionPoolEntry]) -> None:
    import sqlalchemy as sa

    sa.event.listen(engine.sync_engine, "checkout", lambda _, entry, __: lent.add(entry))
    sa.event.listen(engine.sync_engine, "checkin", lambda _, entry: lent.discard(entry))


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
    cursor.execute("PRAGMA synchronous = FULL")  # a shipped journal segment is deleted: the commit has to be on disk
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _roll_back_sqlite(connection: Any, _record: Any, _error: Any) -> None:
    """Of a call that was cancelled amid a transaction. A connection that is closed keeps its locks as long as one of
    its cursors lives, in the traceback for instance: https://sqlite.org/c3ref/close.html"""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # nobody was cancelled: the garbage collector closes
        return
    rolling_back = loop.create_task(connection.driver_connection.rollback())  # the closing is queued behind it
    rolling_back.add_done_callback(lambda done: done.cancelled() or done.exception())


async def _set_wal(connection: AsyncConnection) -> None:
    """WAL is a property of the file. Switching takes a lock that does not wait, so several starters try in turn."""
    from sqlalchemy.exc import OperationalError

    for attempt in range(100):
        try:
            await connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            return
        except OperationalError:
            if attempt == 99:
                raise
            await asyncio.sleep(0.05)


async def _version(connection: AsyncConnection) -> str | None:
    """The applied migration, `None` on an empty database."""
    if connection.dialect.name == "sqlite":
        query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"
    else:
        query = "SELECT to_regclass('alembic_version')::text"
    if (await connection.exec_driver_sql(query)).scalar() is None:
        return None
    found = (await connection.exec_driver_sql("SELECT version_num FROM alembic_version")).scalar()
    return None if found is None else str(found)


@contextlib.asynccontextmanager
async def _alone() -> AsyncIterator[None]:
    """Alembic keeps what it works on in globals of the process: one migration at a time, over all loops and threads."""
    while not _MIGRATING.acquire(blocking=False):  # noqa: ASYNC110 - it is shared with other loops
        await asyncio.sleep(0.01)
    try:
        yield
    finally:
        _MIGRATING.release()


def _upgrade(connection: Any) -> None:
    """Run under the lock: whoever comes second finds nothing left to do."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
