"""The ledger: the spend rows in the database, appended in batches, read a page at a time, summed.

`recorder.py` inserts (through `ledger_postgres` or `ledger_sqlite`), the management API and the budgets' seeding read;
sums come from the daily totals of `rollups`. Rules: no row is ever updated; inserting a row again does nothing; a
failing database is `UnavailableError`, never "no rows". Sums count every row, corrections included; a window is
`[since, until)`.
"""

from __future__ import annotations

import base64
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from sidecar.errors import BadRequestError
from sidecar.spend.ledger_postgres import PostgresWriter
from sidecar.spend.ledger_sqlite import SqliteWriter
from sidecar.spend.retention import forget_prompts, forget_rows
from sidecar.spend.rollups import DAY, Span, span, summed, totals_of
from sidecar.spend.rows import Row, fitting, micros, record_of, record_of_columns, row_of, storable
from sidecar.spend.writing import translated
from sidecar.types import SpendRecord

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import AsyncConnection

    from sidecar.db import Database

BATCH_ROWS = {"sqlite": 1000, "postgresql": 3000}
"""Of a transaction. Larger ones add more rows to a total at once, but keep others waiting: SQLite has one writer."""
MAX_PAGE = 1000
SCAN_ROWS = 20_000
"""How many rows a page looks through at most for filters without an index."""
_INDEXED = ("exchange_id", "request_id", "key_hash", "user_id", "end_user_id", "team_id")

_INPUT = ("input", "cached_input", "cache_write_5m", "cache_write_1h", "audio_input", "image_input")
_OUTPUT = ("output", "reasoning", "audio_output", "image_output")
_BY = {
    "key_hash": ("key", "name"), "user_id": ("user", "name"), "team_id": ("team", "name"),
    "organization_id": ("organization", "name"), "end_user_id": ("end_user", "name"), "group": ("group", "name"),
    "model": ("all", "model"), "provider": ("all", "provider"),
}  # fmt: skip
"""Dimension and column of the daily totals."""
GroupBy = Literal[
    "key_hash", "user_id", "team_id", "organization_id", "end_user_id", "group", "model", "provider",
]  # fmt: skip
_encode = msgspec.json.Encoder().encode
_decode_cursor = msgspec.json.Decoder(tuple[int, str, int, int]).decode


@dataclass(frozen=True, slots=True)
class LogPage:
    """Newest first. `next_cursor` goes into the next call; `None` after the last page. Before it a page may hold fewer
    records than asked for, or none."""

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

    def __init__(
        self, database: Database, *, retention_days: int | None = None, prompt_days: int | None = None
    ) -> None:
        self.database = database
        self._prompt_days = prompt_days
        self._retention_days = retention_days
        self._writer = SqliteWriter(database) if database.dialect == "sqlite" else PostgresWriter(database)

    async def insert(self, records: Sequence[SpendRecord]) -> list[SpendRecord]:
        """Append records; see `insert_rows`."""
        return [record_of(row) for row in await self.insert_rows([_row(record) for record in records])]

    async def insert_rows(self, rows: Sequence[Row]) -> list[Row]:
        """Append rows and add the new ones to the daily totals, all durable when it returns; those that exist already
        stay as they are. Returns what the database refused to hold (normally nothing). Raises `UnavailableError`; then
        any part may be inserted."""
        refused: list[Row] = []
        size = BATCH_ROWS[self.database.dialect]
        for start in range(0, len(rows), size):
            refused += await self._insert(rows[start : start + size])
        return refused

    async def _insert(self, rows: Sequence[Row]) -> list[Row]:
        """A batch with something in it that the database does not hold is halved until that is alone: clients choose
        text, and a vendor may claim any count."""
        if await self._writer.insert(rows):
            return []
        if len(rows) == 1:
            return [] if await self._writer.insert([row_of(fitting(record_of(rows[0])))]) else list(rows)
        half = len(rows) // 2
        return await self._insert(rows[:half]) + await self._insert(rows[half:])

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
        outcome: str | None = None,
        user_id: str | None = None,
        team_id: str | None = None,
        organization_id: str | None = None,
        end_user_id: str | None = None,
        model: str | None = None,
        provider: str | None = None,
        deployment_id: str | None = None,
        tag: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> LogPage:
        """The rows that match all given filters, of `SCAN_ROWS` looked through. Raises `BadRequestError` for a cursor
        that is not ours."""
        import sqlalchemy as sa

        from sidecar.db.schema import spend

        limit = max(1, min(limit, MAX_PAGE))
        equal = {
            "key_hash": key_hash, "exchange_id": exchange_id, "request_id": request_id, "model_group": group,
            "status": status, "outcome": outcome, "user_id": user_id, "team_id": team_id,
            "organization_id": organization_id, "end_user_id": end_user_id, "model": model, "provider": provider,
            "deployment_id": deployment_id,
        }  # fmt: skip
        # Rows come by the index of one filter, or by their instants; for all others they are looked through.
        given = {name: stored_text(value) for name, value in equal.items() if value is not None}
        by = next((name for name in _INDEXED if name in given), None)
        where = [spend.c[by] == given.pop(by)] if by is not None else []
        where += _window(since_at, until_at)
        if cursor is not None:
            where.append(sa.tuple_(*_order(spend)) < sa.tuple_(*_read_cursor(cursor)))
        is_scan = (tag is not None or bool(given)) and by not in ("exchange_id", "request_id")
        named = {"organization": organization_id, "tag": tag, "group": group}
        async with self.connection() as connection:
            if model is not None or provider is not None or any(named.values()):
                days = await self._days(connection, named, model, provider)
                if days is None:
                    return LogPage([], None)
                where += [spend.c.at >= days[0], spend.c.at < days[1] + DAY]
            source = _newest(sa.select(spend).where(*where), spend).limit(SCAN_ROWS).subquery() if is_scan else spend
            others = [source.c[name] == value for name, value in given.items()]
            if tag is not None:
                others.append(self._has_tag(source.c.tags, stored_text(tag)))
            query = sa.select(source).where(*([] if is_scan else where), *others)
            found: Sequence[Any] = (await connection.execute(_newest(query, source).limit(limit + 1))).mappings().all()
            last = None
            if is_scan and len(found) <= limit:
                places = _newest(sa.select(*_order(spend)).where(*where), spend)
                last = (await connection.execute(places.limit(1).offset(SCAN_ROWS - 1))).mappings().first()
        if last is not None:
            # Rows that came between the two queries move the last place up; what is below it comes again.
            found = [row for row in found if _place(row) >= _place(last)]
        records = [record_of_columns(row) for row in found[:limit]]
        if len(found) > limit:
            last = found[limit - 1]
        return LogPage(records, None if last is None else _write_cursor(last))

    async def _days(
        self, connection: AsyncConnection, named: Mapping[str, str | None], model: str | None, provider: str | None
    ) -> tuple[int, int] | None:
        """The first and the last day that has such rows, by the totals: names that are seldom or wrong cost no
        reading of all rows. `None`: no day has."""
        import sqlalchemy as sa

        from sidecar.db.schema import spend_daily as daily

        dimension, name = next(((kind, value) for kind, value in named.items() if value is not None), ("all", ""))
        equal = {"dimension": dimension, "name": name, "model": model, "provider": provider}
        where = [daily.c[column] == stored_text(value) for column, value in equal.items() if value is not None]
        query = sa.select(sa.func.min(daily.c.day_at), sa.func.max(daily.c.day_at)).where(*where)
        first, last = (await connection.execute(query)).one()
        return None if first is None else (int(first), int(last))

    def _has_tag(self, tags: sa.ColumnElement[str], name: str) -> sa.ColumnElement[bool]:
        """Most rows are told apart as text; what looks like the tag there may be a piece of another one."""
        import sqlalchemy as sa

        looks_so = tags.contains(_encode(name).decode(), autoescape=True)
        if self.database.dialect == "sqlite":
            items = sa.func.json_each(tags).table_valued("value")
            return sa.and_(
                looks_so, sa.exists(sa.select(sa.literal(1)).select_from(items).where(items.c.value == name))
            )
        from sqlalchemy.dialects.postgresql import JSONB

        return sa.and_(looks_so, sa.cast(tags, JSONB).contains([name]))

    async def rows_of(self, exchange_id: str) -> list[SpendRecord]:
        """Every row of one exchange, in order."""
        return (await self.logs(exchange_id=exchange_id, limit=MAX_PAGE)).records[::-1]

    async def costs_of(self, exchange_ids: Sequence[str]) -> dict[str, int]:
        """Nano-dollars of these exchanges by their attempts' rows, without what was charged because an owner was silent
        (attempt 0)."""
        import sqlalchemy as sa

        from sidecar.db.schema import spend

        found: dict[str, int] = {}
        async with self.connection() as connection:
            for start in range(0, len(exchange_ids), 500):
                names = [stored_text(name) for name in exchange_ids[start : start + 500]]
                total: Any = sa.literal_column(summed("cost_nano", self.database.dialect))
                query = sa.select(spend.c.exchange_id, total)
                query = query.where(spend.c.exchange_id.in_(names), spend.c.attempt > 0).group_by(spend.c.exchange_id)
                found |= {name: int(nano) for name, nano in await connection.execute(query)}
        return found

    async def sum_nano(self, key_hash: str, since_at: float | None = None, until_at: float | None = None) -> int:
        """Nano-dollars of one key."""
        return (await self.sum_by_keys([key_hash], since_at, until_at)).get(key_hash, 0)

    async def sum_by_keys(
        self, key_hashes: Sequence[str], since_at: float | None = None, until_at: float | None = None
    ) -> dict[str, int]:
        """Nano-dollars of these keys, by hash; a key without rows is missing."""
        found: dict[str, int] = {}
        for start in range(0, len(key_hashes), 500):
            found |= await self._sums(
                "key", [stored_text(name) for name in key_hashes[start : start + 500]], since_at, until_at
            )
        return found

    async def sum_of(self, kind: str, subject_id: str, since_at: float | None, until_at: float | None) -> int:
        """Nano-dollars of one key, team, member, user, organization, end user or tag – or `global`: of all."""
        dimension, name = ("all", "") if kind == "global" else (kind, stored_text(subject_id))
        return (await self._sums(dimension, [name], since_at, until_at)).get(name, 0)

    async def sum_before(
        self, kind: str, subject_id: str, since_at: float | None, until_at: float | None
    ) -> int | None:
        """As `sum_of`, for an end amid a day that is under way: the day's totals less its rows from then on, which are
        few. `None` if that day's rows may be gone."""
        if until_at is None or until_at == math.inf:
            return await self.sum_of(kind, subject_id, since_at, until_at)
        import sqlalchemy as sa

        dimension, name = ("all", "") if kind == "global" else (kind, stored_text(subject_id))
        until = micros(until_at)
        midnight = until + -until % DAY
        if since_at is not None and micros(since_at) > midnight - DAY:
            return await self.sum_of(kind, subject_id, since_at, until_at)
        dialect = self.database.dialect
        async with self.connection() as connection:
            whole = await window_of(connection, since_at, midnight / 1_000_000)
            rest = await window_of(connection, until_at, midnight / 1_000_000)
            if until != midnight and rest.first is not None and rest.parts != ((until, midnight),):
                return None
            query, values = totals_of(dimension, whole, dialect=dialect, is_named=True, is_split=False)
            minus, more = totals_of(dimension, rest, dialect=dialect, is_named=True, is_split=False, prefix="rest_")
            text = sa.text(
                f"SELECT {summed('cost_nano', dialect)} FROM (SELECT cost_nano FROM ({query}) AS totals"  # noqa: S608 - ours
                f" UNION ALL SELECT -cost_nano FROM ({minus}) AS minus) AS both_parts"
            ).bindparams(sa.bindparam("names", expanding=True))
            found = await connection.execute(text, {**values, **more, "names": [name]})
            return int(found.scalar() or 0)

    async def sum_all(self, since_at: float | None = None, until_at: float | None = None) -> int:
        """Nano-dollars of all rows."""
        return await self.sum_of("global", "", since_at, until_at)

    async def _sums(
        self, dimension: str, names: Sequence[str], since_at: float | None, until_at: float | None
    ) -> dict[str, int]:
        import sqlalchemy as sa

        async with self.connection() as connection:
            window = await window_of(connection, since_at, until_at)
            dialect = self.database.dialect
            query, values = totals_of(dimension, window, dialect=dialect, is_named=True, is_split=False)
            total = summed("cost_nano", dialect)
            text = sa.text(f"SELECT name, {total} FROM ({query}) AS totals GROUP BY name")  # noqa: S608 - ours
            text = text.bindparams(sa.bindparam("names", expanding=True))
            found = await connection.execute(text, {**values, "names": list(names)})
            return {name: int(nano) for name, nano in found}

    async def totals(
        self,
        *,
        by: GroupBy = "key_hash",
        since_at: float | None = None,
        until_at: float | None = None,
        key_hash: str | None = None,
        limit: int = 1000,
    ) -> list[Total]:
        """Sums by a name, the dearest first; rows without one are under "". `key_hash`: of this key alone, by key,
        model or provider."""
        import sqlalchemy as sa

        dimension, column = _BY[by] if key_hash is None else ("key", _BY[by][1])
        dialect = self.database.dialect
        tokens = (" + ".join(summed(f"{name}_tokens", dialect) for name in names) for names in (_INPUT, _OUTPUT))
        cost = summed("cost_nano", dialect)
        async with self.connection() as connection:
            window = await window_of(connection, since_at, until_at)
            query, values = totals_of(
                dimension,
                window,
                dialect=dialect,
                is_named=key_hash is not None,
                is_split=column != "name",
            )
            text = sa.text(
                f"SELECT {column}, {cost}, sum(attempts), {', '.join(tokens)} FROM ({query}) AS totals"  # noqa: S608 - ours
                f" GROUP BY {column} ORDER BY 2 DESC, 1 LIMIT :limit"
            )
            if key_hash is not None:
                text = text.bindparams(sa.bindparam("names", expanding=True))
                values["names"] = [stored_text(key_hash)]
            found = (await connection.execute(text, {**values, "limit": limit})).all()
        return [Total(row[0], int(row[1]), int(row[2]), int(row[3]), int(row[4])) for row in found]

    async def maintain(self) -> None:
        """Now and then: make the next partitions, drop rows and prompts past their retention. Raises
        `UnavailableError`."""
        async with translated():
            await self.database.make_partitions()
            if self._retention_days is not None:
                await forget_rows(self.database, now=self.database.now(), days=self._retention_days)
            if self._prompt_days is not None:
                await forget_prompts(self.database, now=self.database.now(), days=self._prompt_days)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """To read with. Raises `UnavailableError`: at once while the database is known not to answer."""
        async with translated():
            with self.database.breaker.watch():
                async with self.database.engine.connect() as connection:
                    yield connection


async def window_of(connection: AsyncConnection, since_at: float | None, until_at: float | None) -> Span:
    """How a window is read. Raises `BadRequestError`."""
    if since_at != since_at or until_at != until_at:  # not a number
        raise BadRequestError("An instant has to be a number of seconds since 1970.")
    window = span(since_at, until_at)
    if window.parts:
        found = await connection.exec_driver_sql("SELECT value FROM spend_state WHERE name = 'rows_since'")
        window = span(since_at, until_at, found.scalar() or 0)
    return window


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


def _row(record: SpendRecord) -> Row:
    try:
        return row_of(record)
    except UnicodeEncodeError:
        return row_of(storable(record))


def stored_text(value: str) -> str:
    """A filter's value as rows hold it; what no row can hold matches none."""
    return value.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def _order(table: sa.FromClause) -> tuple[sa.ColumnElement[Any], ...]:
    return table.c.at, table.c.exchange_id, table.c.attempt, table.c.revision


def _newest(query: sa.Select[Any], table: sa.FromClause) -> sa.Select[Any]:
    return query.order_by(*(column.desc() for column in _order(table)))


def _place(row: Mapping[Any, Any]) -> tuple[int, str, int, int]:
    return row["at"], row["exchange_id"], row["attempt"], row["revision"]


def _write_cursor(row: Mapping[Any, Any]) -> str:
    return base64.urlsafe_b64encode(_encode(_place(row))).decode().rstrip("=")


def _read_cursor(cursor: str) -> tuple[int, str, int, int]:
    try:
        raw = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        at, exchange_id, attempt, revision = _decode_cursor(raw)
    except (ValueError, msgspec.MsgspecError):
        raise BadRequestError("'cursor' is not one this gateway gave.", param="cursor", code="invalid_cursor") from None
    if not (-(2**63) < at < 2**63 and -(2**31) < attempt < 2**31 and -(2**31) < revision < 2**31):
        raise BadRequestError("'cursor' is not one this gateway gave.", param="cursor", code="invalid_cursor")
    return at, stored_text(exchange_id), attempt, revision
