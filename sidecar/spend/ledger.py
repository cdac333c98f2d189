"""The ledger: the spend rows in the database, appended in batches, read a page at a time, summed.

`recorder.py` inserts, the management API and the budgets' seeding read. Rules: nothing is ever updated; inserting a
row again does nothing; a failing database is `UnavailableError`, never "no rows". Sums count every row, corrections
included; a window is `[since, until)`.
"""

from __future__ import annotations

import base64
import logging
import math
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from sidecar.errors import BadRequestError, UnavailableError
from sidecar.spend.rows import COLUMNS, Row, micros, record_of, record_of_columns, row_of, storable
from sidecar.types import SpendRecord

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import AsyncConnection

    from sidecar.db import Database

BATCH_ROWS = 1000
MAX_PAGE = 1000

_INPUT = ("input", "cached_input", "cache_write_5m", "cache_write_1h", "audio_input", "image_input")
_OUTPUT = ("output", "reasoning", "audio_output", "image_output")
_BY = {
    "key_hash": "key_hash", "key_alias": "key_alias", "user_id": "user_id", "team_id": "team_id",
    "organization_id": "organization_id", "end_user_id": "end_user_id", "group": "model_group", "model": "model",
    "provider": "provider", "deployment_id": "deployment_id", "status": "status",
}  # fmt: skip
_SCOPE_COLUMN = {
    "key": "key_hash", "team": "team_id", "user": "user_id", "organization": "organization_id",
    "end_user": "end_user_id",
}  # fmt: skip
GroupBy = Literal[
    "key_hash", "key_alias", "user_id", "team_id", "organization_id", "end_user_id", "group", "model", "provider",
    "deployment_id", "status",
]  # fmt: skip
_encode = msgspec.json.Encoder().encode
_decode_cursor = msgspec.json.Decoder(tuple[int, str, int, int]).decode
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LogPage:
    """Newest first. `next_cursor` goes into the next call; `None` after the last page."""

    records: list[SpendRecord]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Total:
    """What rows of one name (a key's hash, a model, …) add up to. `rows` counts attempts, corrections not."""

    name: str
    cost_nano: int
    rows: int
    input_tokens: int
    output_tokens: int


class Ledger:
    """Rows in, pages and sums out, on SQLite and PostgreSQL alike. Instants are Unix seconds."""

    def __init__(self, database: Database) -> None:
        self._database = database
        names = ", ".join(COLUMNS)
        places = (
            ["?"] * len(COLUMNS)
            if database.dialect == "sqlite"
            else [f"${number}" for number in range(1, len(COLUMNS) + 1)]
        )
        self._insert = f"INSERT INTO spend ({names}) VALUES ({', '.join(places)}) ON CONFLICT DO NOTHING"  # noqa: S608

    async def insert(self, records: Sequence[SpendRecord]) -> list[SpendRecord]:
        """Append records; see `insert_rows`."""
        return [record_of(row) for row in await self.insert_rows([_row(record) for record in records])]

    async def insert_rows(self, rows: Sequence[Row]) -> list[Row]:
        """Append rows, all durable when it returns; those that exist already stay as they are. Returns what the
        database refused to hold (normally nothing). Raises `UnavailableError`; then any part may be inserted."""
        refused: list[Row] = []
        for start in range(0, len(rows), BATCH_ROWS):
            # In the key's order: two processes that insert the same rows wait for each other instead of deadlocking.
            batch = sorted(rows[start : start + BATCH_ROWS], key=_key)
            if not await self._try_insert(batch):
                for row in batch:
                    # Text that clients choose may hold what a database does not take, a vendor may claim any count.
                    if not await self._try_insert([row]) and not await self._try_insert(
                        [row_of(storable(record_of(row)))]
                    ):
                        refused.append(row)
        return refused

    async def _insert_one(self, row: Row) -> bool:
        """Text that clients choose may hold what a database does not take, and a vendor may claim any count."""
        return await self._try_insert([row]) or await self._try_insert([row_of(storable(record_of(row)))])

    async def _try_insert(self, rows: Sequence[Row]) -> bool:
        """False if the data, not the database, is at fault."""
        try:
            async with self._connection() as connection:
                await connection.exec_driver_sql(self._insert, rows)
                await connection.commit()
        except (UnavailableError, OverflowError, UnicodeEncodeError) as error:
            cause = error.__cause__ if isinstance(error, UnavailableError) else error
            if not _is_about_data(cause):
                raise
            _log.error("the database refused %d spend rows: %s", len(rows), type(cause).__name__)
            return False
        return True

    async def logs(
        self,
        *,
        key_hash: str | None = None,
        since_at: float | None = None,
        until_at: float | None = None,
        exchange_id: str | None = None,
        request_id: str | None = None,
        group: str | None = None,
        status: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> LogPage:
        """The rows that match all given filters. Raises `BadRequestError` for a cursor that is not ours."""
        import sqlalchemy as sa

        from sidecar.db.schema import spend

        limit = max(1, min(limit, MAX_PAGE))
        order = (spend.c.at, spend.c.exchange_id, spend.c.attempt, spend.c.revision)
        equal = {
            "key_hash": key_hash,
            "exchange_id": exchange_id,
            "request_id": request_id,
            "model_group": group,
            "status": status,
        }
        where = [spend.c[name] == _text(value) for name, value in equal.items() if value is not None]
        where += _window(since_at, until_at)
        if cursor is not None:
            where.append(sa.tuple_(*order) < sa.tuple_(*_read_cursor(cursor)))
        query = sa.select(spend).where(*where).order_by(*(column.desc() for column in order)).limit(limit + 1)
        async with self._connection() as connection:
            found = (await connection.execute(query)).mappings().all()
        records = [record_of_columns(row) for row in found[:limit]]
        return LogPage(records, _write_cursor(found[limit - 1]) if len(found) > limit else None)

    async def rows_of(self, exchange_id: str) -> list[SpendRecord]:
        """Every row of one exchange, in order."""
        return (await self.logs(exchange_id=exchange_id, limit=MAX_PAGE)).records[::-1]

    async def sum_nano(self, key_hash: str, since_at: float | None = None, until_at: float | None = None) -> int:
        """Nano-dollars of one key."""
        return (await self.sum_by_keys([key_hash], since_at, until_at)).get(key_hash, 0)

    async def sum_by_keys(
        self, key_hashes: Sequence[str], since_at: float | None = None, until_at: float | None = None
    ) -> dict[str, int]:
        """Nano-dollars of these keys, by hash; a key without rows is missing."""
        import sqlalchemy as sa

        from sidecar.db.schema import spend

        found: dict[str, int] = {}
        async with self._connection() as connection:
            for start in range(0, len(key_hashes), 500):
                some = [_text(name) for name in key_hashes[start : start + 500]]
                query = (
                    sa.select(spend.c.key_hash, sa.func.sum(spend.c.cost_nano))
                    .where(spend.c.key_hash.in_(some), *_window(since_at, until_at))
                    .group_by(spend.c.key_hash)
                )
                found.update((name, int(total)) for name, total in await connection.execute(query))
        return found

    async def sum_of(self, kind: str, subject_id: str, since_at: float | None, until_at: float | None) -> int:
        """Nano-dollars of one key, team, member, user, organization, end user or tag – or `global`: of all."""
        import sqlalchemy as sa

        from sidecar.db.schema import spend

        where = _window(since_at, until_at)
        if kind == "member":  # `identity.row.member_id`
            length, _, rest = subject_id.partition(":")
            team, user = rest[: int(length)], rest[int(length) + 1 :]
            where += [spend.c.team_id == _text(team), spend.c.user_id == _text(user)]
        elif kind == "tag":
            where.append(self._has_tag(_text(subject_id)))
        elif kind != "global":
            where.append(spend.c[_SCOPE_COLUMN[kind]] == _text(subject_id))
        async with self._connection() as connection:
            return int(
                (await connection.execute(sa.select(sa.func.sum(spend.c.cost_nano)).where(*where))).scalar() or 0
            )

    def _has_tag(self, name: str) -> sa.ColumnElement[bool]:
        """Most rows are told apart as text; what looks like the tag there may be a piece of another one."""
        import sqlalchemy as sa

        from sidecar.db.schema import spend

        looks_so = spend.c.tags.contains(_encode(name).decode(), autoescape=True)
        if self._database.dialect == "sqlite":
            items = sa.func.json_each(spend.c.tags).table_valued("value")
            return sa.and_(
                looks_so, sa.exists(sa.select(sa.literal(1)).select_from(items).where(items.c.value == name))
            )
        from sqlalchemy.dialects.postgresql import JSONB

        return sa.and_(looks_so, sa.cast(spend.c.tags, JSONB).contains([name]))

    async def sum_all(self, since_at: float | None = None, until_at: float | None = None) -> int:
        """Nano-dollars of all rows."""
        import sqlalchemy as sa

        from sidecar.db.schema import spend

        query = sa.select(sa.func.sum(spend.c.cost_nano)).where(*_window(since_at, until_at))
        async with self._connection() as connection:
            return int((await connection.execute(query)).scalar() or 0)

    async def totals(
        self,
        *,
        by: GroupBy = "key_hash",
        since_at: float | None = None,
        until_at: float | None = None,
        key_hash: str | None = None,
        limit: int = 1000,
    ) -> list[Total]:
        """Sums by a name, the dearest first; rows without one are under ""."""
        import sqlalchemy as sa

        from sidecar.db.schema import spend

        column = spend.c[_BY[by]]

        def tokens(classes: tuple[str, ...]) -> sa.ColumnElement[Any]:
            return sum((sa.func.sum(sa.func.coalesce(spend.c[f"{n}_tokens"], 0)) for n in classes), sa.literal(0))

        cost = sa.func.sum(spend.c.cost_nano)
        rows = sa.func.sum(sa.case((spend.c.revision == 0, 1), else_=0))
        where = _window(since_at, until_at)
        if key_hash is not None:
            where.append(spend.c.key_hash == _text(key_hash))
        query = (
            sa.select(column, cost, rows, tokens(_INPUT), tokens(_OUTPUT))
            .where(*where)
            .group_by(column)
            .order_by(cost.desc(), column)
            .limit(limit)
        )
        async with self._connection() as connection:
            found = (await connection.execute(query)).all()
        return [Total(row[0] or "", int(row[1]), int(row[2]), int(row[3]), int(row[4])) for row in found]

    async def maintain(self) -> None:
        """Now and then: make the next partitions. Raises `UnavailableError`."""
        async with _translated():
            await self._database.make_partitions()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection]:
        async with _translated(), self._database.engine.connect() as connection:
            yield connection


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        raise UnavailableError(
            "The gateway's ledger does not answer. Try again shortly.", code="ledger_unavailable", retry_after_s=1.0
        ) from error


def _is_about_data(error: BaseException | None) -> bool:
    """True if the rows, not the database, are at fault: SQLSTATE classes 22 and 23, or an argument that the driver
    refuses before sending it (asyncpg: a `ValueError` below a plain `DBAPIError`)."""
    from sqlalchemy.exc import DataError, IntegrityError

    if isinstance(error, (DataError, IntegrityError, OverflowError, UnicodeEncodeError)):
        return True
    cause = getattr(getattr(error, "orig", None), "__cause__", None)
    return isinstance(cause, ValueError) or str(getattr(cause, "sqlstate", None))[:2] in ("22", "23")


def _window(since_at: float | None, until_at: float | None) -> list[Any]:
    """`None` and infinity (a lifetime budget's end) are no bound."""
    from sidecar.db.schema import spend

    if since_at != since_at or until_at != until_at:  # not a number
        raise BadRequestError("An instant has to be a number of seconds since 1970.")
    where: list[Any] = []
    if since_at is not None and since_at != -math.inf:
        where.append(spend.c.at >= micros(since_at))
    if until_at is not None and until_at != math.inf:
        where.append(spend.c.at < micros(until_at))
    return where


_key = itemgetter(0, 1, 2)


def _row(record: SpendRecord) -> Row:
    try:
        return row_of(record)
    except UnicodeEncodeError:
        return row_of(storable(record))


def _text(value: str) -> str:
    """A filter's value as rows hold it; what no row can hold matches none."""
    return value.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def _write_cursor(row: Mapping[Any, Any]) -> str:
    place: Iterable[Any] = (row["at"], row["exchange_id"], row["attempt"], row["revision"])
    return base64.urlsafe_b64encode(_encode(tuple(place))).decode().rstrip("=")


def _read_cursor(cursor: str) -> tuple[int, str, int, int]:
    try:
        raw = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        at, exchange_id, attempt, revision = _decode_cursor(raw)
    except (ValueError, msgspec.MsgspecError):
        raise BadRequestError("'cursor' is not one this gateway gave.", param="cursor", code="invalid_cursor") from None
    if not (-(2**63) < at < 2**63 and -(2**31) < attempt < 2**31 and -(2**31) < revision < 2**31):
        raise BadRequestError("'cursor' is not one this gateway gave.", param="cursor", code="invalid_cursor")
    return at, _text(exchange_id), attempt, revision
