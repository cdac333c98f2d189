"""The tables of keys and of everybody above them: rows in, rows out, on SQLite and PostgreSQL alike.

`row.py` says what a row is; `keys.py` reads through `resolve`, the management API does the rest. Rules: a database that
fails or does not answer is `UnavailableError`, never "no such key"; every write notes its change and its audit row in
the same transaction.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Generic, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from sidecar.db import Database
from sidecar.db.schema import keys, principals
from sidecar.errors import ConflictError, UnavailableError
from sidecar.identity import changes
from sidecar.identity.changes import Event
from sidecar.identity.feed import Change
from sidecar.identity.row import BudgetCap, KeyRow, ModelLimit, Policy, PrincipalRow, StoredKey

Row = TypeVar("Row", bound=Policy)
Check = Callable[[AsyncConnection, Row], Awaitable[None]]
"""Looks at a row that is to be written, in the transaction, and raises if it may not be."""

_INSTANTS = frozenset(
    {
        "budget_anchor_at",
        "temp_budget_expiry_at",
        "expires_at",
        "rotates_at",
        "last_used_at",
        "created_at",
        "updated_at",
    }
)
_JSON: Mapping[str, Any] = {
    "models": tuple[str, ...],
    "tags": tuple[str, ...],
    "budget_windows": tuple[BudgetCap, ...],
    "model_limits": dict[str, ModelLimit],
    "model_aliases": dict[str, str],
    "metadata": dict[str, Any],
}
_decoders = {name: msgspec.json.Decoder(kind) for name, kind in _JSON.items()}
_encode = msgspec.json.Encoder().encode


SLOW = 0.75
"""The part of its time after which a lookup is taken for one that stays unanswered; below the deadlines around it."""


class Store:
    """The database with failures translated. `new_id` names audit rows; `clock` gives Unix seconds."""

    def __init__(
        self,
        database: Database,
        *,
        clock: Callable[[], float] = time.time,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self.database = database
        self._clock = clock
        self._new_id = new_id
        self._told: tuple[int, int] | None = None
        self._failures: tuple[type[Exception], ...] = (SQLAlchemyError, OSError, TimeoutError)
        if database.dialect == "postgresql":
            from asyncpg import InterfaceError, PostgresError  # raised as they are when a connection cannot be made

            self._failures += (PostgresError, InterfaceError)

    @asynccontextmanager
    async def read(self, *, is_lookup: bool = False) -> AsyncIterator[AsyncConnection]:
        """Raises `UnavailableError`: at once while the database is known not to answer. A lookup by key is short: if it
        lasts, the database is taken for one that does not answer."""
        slow_s = self.database.lookup_s * SLOW if is_lookup else None
        with self._translated(), self.database.breaker.watch(slow_s):
            async with self.database.engine.connect() as connection:
                # Each statement stands alone: no BEGIN before and no ROLLBACK after it on the wire.
                yield await connection.execution_options(isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def write(self, conflict: ConflictError | None = None) -> AsyncIterator[AsyncConnection]:
        """One transaction. Raises `UnavailableError`, and `conflict` if what is unique exists."""
        with self._translated(conflict), self.database.breaker.watch():
            async with self.database.engine.begin() as connection:
                await changes.lock_writers(connection)
                yield connection

    async def note(self, connection: AsyncConnection, event: Event) -> None:
        await changes.note(connection, event, at=self._clock(), audit_id=self._new_id())

    async def changes_since(self, seq: int, limit: int) -> tuple[list[Change], int | None]:
        at = self._told[1] if self._told is not None and self._told[0] == seq else None
        async with self.read(is_lookup=True) as connection:
            found, restart = await changes.since(connection, seq, limit, at)
        if restart is not None:
            self._told = restart
        elif found:
            self._told = found[-1][0], found[-1][3]
        return [change[:3] for change in found], None if restart is None else restart[0]

    async def last_change(self) -> int:
        async with self.read(is_lookup=True) as connection:
            self._told = await changes.last(connection)
        return self._told[0]

    @contextmanager
    def _translated(self, conflict: ConflictError | None = None) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:
            raise (conflict or ConflictError("This exists already.", code="already_exists")) from error
        except self._failures as error:
            raise UnavailableError(
                "The gateway's database does not answer. Try again shortly.",
                code="key_store_unavailable",
                retry_after_s=1.0,
            ) from error


class Rows(Generic[Row]):
    """Reads and writes rows of one table. Every method raises `UnavailableError` when the database fails."""

    def __init__(self, store: Store, table: sa.Table, struct: type[Row], keyed_by: tuple[str, ...]) -> None:
        self.store = store
        self._table = table
        self._struct = struct
        self._keyed_by = keyed_by
        self._columns = [table.c[name] for name in struct.__struct_fields__]

    def _event(self, actor: str, action: str, before: Row | None, after: Row | None) -> Event:
        raise NotImplementedError

    def conflict(self) -> ConflictError:
        return ConflictError("Another one has this id. Choose another.", code="already_exists")

    async def create(self, row: Row, *, by: str = "", check: Check[Row] | None = None) -> None:
        """Raises `ConflictError` if it, or its alias, exists."""
        async with self.store.write(self.conflict()) as connection:
            if check is not None:
                await check(connection, row)
            await self.insert(connection, row, by=by)

    async def insert(self, connection: AsyncConnection, row: Row, *, by: str) -> None:
        """Within a transaction of `store.write`."""
        await connection.execute(sa.insert(self._table).values(_to_columns(_fields(row))))
        await self.store.note(connection, self._event(by, "create", None, row))

    async def get(self, *key: str) -> Row | None:
        async with self.store.read() as connection:
            return await self.one(connection, *key)

    async def one(self, connection: AsyncConnection, *key: str) -> Row | None:
        found = (await connection.execute(sa.select(*self._columns).where(*self._is(key)))).mappings().first()
        return None if found is None else self._row(found)

    async def some(self, connection: AsyncConnection, *where: sa.ColumnElement[bool]) -> Sequence[Row]:
        """In the order of their ids."""
        order = (self._table.c[name] for name in self._keyed_by)
        query = sa.select(*self._columns).where(*where).order_by(*order)
        return [self._row(row) for row in (await connection.execute(query)).mappings()]

    async def update(
        self,
        *key: str,
        changes: Mapping[str, Any] | Callable[[Row], Mapping[str, Any]],
        by: str = "",
        action: str = "update",
        check: Check[Row] | None = None,
    ) -> Row | None:
        """Sets the named fields (names and values as in the row; given by a function, from the row as it is); the row
        as it is then, `None` if there is none. Raises `ConflictError` if another has the alias."""
        async with self.store.write(self.conflict()) as connection:
            before = await self.one(connection, *key)
            if before is None:
                return None
            return await self.change(
                connection, before, changes if isinstance(changes, Mapping) else changes(before), by, action, check
            )

    async def change(
        self,
        connection: AsyncConnection,
        before: Row,
        changes: Mapping[str, Any],
        by: str,
        action: str = "update",
        check: Check[Row] | None = None,
    ) -> Row:
        """Within a transaction of `store.write`."""
        if not changes:
            return before
        after = msgspec.structs.replace(before, **changes)
        if check is not None:
            await check(connection, after)
        key = tuple(getattr(before, name) for name in self._keyed_by)
        await connection.execute(sa.update(self._table).where(*self._is(key)).values(_to_columns(changes)))
        await self.store.note(connection, self._event(by, action, before, after))
        return after

    async def remove(self, connection: AsyncConnection, row: Row, *, by: str) -> None:
        """Within a transaction of `store.write`."""
        key = tuple(getattr(row, name) for name in self._keyed_by)
        await connection.execute(sa.delete(self._table).where(*self._is(key)))
        await self.store.note(connection, self._event(by, "delete", row, None))

    async def delete(self, wanted: Sequence[tuple[str, ...]], *, by: str = "") -> Sequence[Row]:
        """Deletes all of these, or none if one of them is missing. The rows deleted."""
        gone: list[Row] = []
        async with self.store.write() as connection:
            for key in sorted(set(wanted)):
                row = await self.one(connection, *key)
                if row is None:
                    await connection.rollback()
                    return []
                await self.remove(connection, row, by=by)
                gone.append(row)
        return gone

    async def list(
        self, *, limit: int, offset: int = 0, any_of: Mapping[str, Sequence[str]] | None = None, **equal: Any
    ) -> tuple[Sequence[Row], int]:
        """A page, newest first, and how many rows match in all: equality with each value that is not `None`, and at
        least one column of `any_of` with one of its values."""
        table = self._table
        where = [table.c[name] == value for name, value in equal.items() if value is not None]
        if any_of is not None:
            where.append(sa.or_(sa.false(), *(table.c[name].in_(list(some)) for name, some in any_of.items())))
        async with self.store.read() as connection:
            count = sa.select(sa.func.count()).select_from(table).where(*where)
            total = (await connection.execute(count)).scalar_one()
            order = (table.c.created_at.desc(), *(table.c[name] for name in self._keyed_by))
            query = sa.select(*self._columns).where(*where).order_by(*order).limit(limit).offset(offset)
            return [self._row(row) for row in (await connection.execute(query)).mappings()], int(total)

    def _is(self, key: tuple[str, ...]) -> Sequence[sa.ColumnElement[bool]]:
        return [self._table.c[name] == value for name, value in zip(self._keyed_by, key, strict=True)]

    def _row(self, found: Mapping[Any, Any]) -> Row:
        return self._struct(**{name: _from_column(name, found[name]) for name in self._struct.__struct_fields__})


class KeyTable(Rows[KeyRow]):
    """Virtual keys, by hash."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, keys, KeyRow, ("key_hash",))

    def _event(self, actor: str, action: str, before: KeyRow | None, after: KeyRow | None) -> Event:
        subject = after or before
        assert subject is not None
        return Event(actor, action, "key", subject.key_hash, _shown(before), _shown(after))

    def conflict(self) -> ConflictError:
        return ConflictError(
            "Another key has this alias. Choose another 'key_alias'.", param="key_alias", code="key_alias_exists"
        )

    async def set_blocked(self, key_hash: str, is_blocked: bool, *, at: float, by: str = "") -> KeyRow | None:
        """Blocks or unblocks; the row as it is then, `None` if there is none."""
        action = "block" if is_blocked else "unblock"
        return await self.update(key_hash, changes={"blocked": is_blocked, "updated_at": at}, by=by, action=action)

    async def find(self, *, hashes: Sequence[str] = (), aliases: Sequence[str] = ()) -> Sequence[KeyRow]:
        """The rows with one of these hashes or aliases."""
        named = sa.or_(keys.c.key_hash.in_(list(hashes)), keys.c.key_alias.in_(list(aliases)))
        async with self.store.read() as connection:
            query = sa.select(*self._columns).where(named).order_by(keys.c.key_hash)
            return [self._row(row) for row in (await connection.execute(query)).mappings()]

    async def touch(self, used: Mapping[str, float]) -> None:
        """When keys were last used; no change, no audit."""
        if used:
            async with self.store.read() as connection:
                await connection.execute(
                    sa.update(keys)
                    .where(
                        sa.or_(keys.c.key_hash == sa.bindparam("hash"), keys.c.key_id == sa.bindparam("hash")),
                        keys.c.successor_hash.is_(None),
                    )
                    .values(last_used_at=sa.bindparam("at")),
                    [{"hash": name, "at": round(used[name] * 1_000_000)} for name in sorted(used)],
                )
                await connection.commit()

    async def resolve(self, key_hash: str) -> StoredKey | None:
        """A key with everybody above it, in one query."""
        async with self.store.read(is_lookup=True) as connection:
            found = (await connection.execute(_RESOLVE, {"key_hash": key_hash})).mappings().all()
        if not found:
            return None
        row = self._row({name: found[0][f"k_{name}"] for name in KeyRow.__struct_fields__})
        above: list[PrincipalRow] = []
        budgets: dict[str, PrincipalRow] = {}
        for joined in found:
            for prefix in ("p", "b", "kb"):
                if joined[f"{prefix}_kind"] is None:
                    continue
                names = PrincipalRow.__struct_fields__
                other = PrincipalRow(**{name: _from_column(name, joined[f"{prefix}_{name}"]) for name in names})
                if prefix == "p":
                    above.append(other)
                else:
                    budgets[other.principal_id] = other
        above.sort(key=lambda p: _ORDER.index(p.kind))
        return StoredKey(row, tuple(above), budgets)


class PrincipalTable(Rows[PrincipalRow]):
    """Organizations, teams, members, users, end users, tags and budgets, by kind and id."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, principals, PrincipalRow, ("kind", "principal_id"))

    def _event(self, actor: str, action: str, before: PrincipalRow | None, after: PrincipalRow | None) -> Event:
        subject = after or before
        assert subject is not None
        return Event(actor, action, subject.kind, subject.principal_id, _shown(before), _shown(after))

    async def find(self, wanted: Sequence[tuple[str, str]]) -> Sequence[PrincipalRow]:
        """The rows with these kinds and ids, and the budgets they name."""
        if not wanted:
            return []
        table = principals.alias()
        pairs = [sa.and_(principals.c.kind == kind, principals.c.principal_id == name) for kind, name in wanted]
        named = sa.select(principals.c.budget_id).where(sa.or_(*pairs), principals.c.budget_id.is_not(None))
        same = [sa.and_(table.c.kind == kind, table.c.principal_id == name) for kind, name in wanted]
        shared = sa.and_(table.c.kind == "budget", table.c.principal_id.in_(named))
        query = sa.select(*(table.c[name] for name in PrincipalRow.__struct_fields__)).where(sa.or_(*same, shared))
        async with self.store.read(is_lookup=True) as connection:
            return [self._row(row) for row in (await connection.execute(query)).mappings()]


_ORDER = ("team", "member", "user", "organization")


def _resolving() -> sa.Select[Any]:
    k, t, p = keys.alias("k"), principals.alias("t"), principals.alias("p")
    b, kb = principals.alias("b"), principals.alias("kb")
    is_above = sa.or_(
        sa.and_(p.c.kind == "team", p.c.principal_id == k.c.team_id),
        sa.and_(p.c.kind == "user", p.c.principal_id == k.c.user_id),
        sa.and_(p.c.kind == "member", p.c.team_id == k.c.team_id, p.c.user_id == k.c.user_id),
        sa.and_(
            p.c.kind == "organization",
            p.c.principal_id == sa.func.coalesce(k.c.organization_id, t.c.organization_id),
        ),
    )
    joined = (
        k.outerjoin(t, sa.and_(t.c.kind == "team", t.c.principal_id == k.c.team_id))
        .outerjoin(p, is_above)
        .outerjoin(b, sa.and_(b.c.kind == "budget", b.c.principal_id == p.c.budget_id))
        .outerjoin(kb, sa.and_(kb.c.kind == "budget", kb.c.principal_id == k.c.budget_id))
    )
    columns = [k.c[name].label(f"k_{name}") for name in KeyRow.__struct_fields__]
    for prefix, table in (("p", p), ("b", b), ("kb", kb)):
        columns += [table.c[name].label(f"{prefix}_{name}") for name in PrincipalRow.__struct_fields__]
    return sa.select(*columns).select_from(joined).where(k.c.key_hash == sa.bindparam("key_hash"))


_RESOLVE = _resolving()


def _shown(row: Policy | None) -> dict[str, Any] | None:
    """For the audit log: what is set."""
    if row is None:
        return None
    plain: dict[str, Any] = msgspec.to_builtins(row)
    return {name: value for name, value in plain.items() if value not in (None, [], {}, ())}


def _fields(row: Policy) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__struct_fields__}


def _to_columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """Python's words → the database's: instants as microseconds, lists and objects as JSON text."""
    return {name: _to_column(name, value) for name, value in values.items()}


def _to_column(name: str, value: Any) -> Any:
    if name in _INSTANTS:
        return None if value is None else round(value * 1_000_000)
    if name in _JSON:
        return _encode(value).decode()
    return value


def _from_column(name: str, value: Any) -> Any:
    if name in _INSTANTS:
        return None if value is None else value / 1_000_000
    if name in _JSON:
        return _decoders[name].decode(value)
    if name == "blocked":
        return bool(value)
    return value
