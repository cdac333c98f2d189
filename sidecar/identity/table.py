"""The `keys` table: rows in, rows out, on SQLite and PostgreSQL alike.

`row.py` says what a row is; `keys.py` reads through `get`, the management API does the rest. Rule: a database that
fails or does not answer is `UnavailableError`, never "no such key".
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from sidecar.db import Database
from sidecar.db.schema import keys
from sidecar.errors import ConflictError, UnavailableError
from sidecar.identity.row import KeyRow

_INSTANTS = {"budget_anchor_at", "expires_at", "created_at", "updated_at"}
_JSON = {"models", "metadata"}
_COLUMNS = [keys.c[name] for name in KeyRow.__struct_fields__]


@dataclass(frozen=True, slots=True)
class KeyFilter:
    """Equality with each field that is not `None`."""

    key_hash: str | None = None
    key_alias: str | None = None
    user_id: str | None = None
    team_id: str | None = None
    organization_id: str | None = None
    blocked: bool | None = None


class KeyTable:
    """Reads and writes key rows. Every method raises `UnavailableError` when the database fails."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._failures: tuple[type[Exception], ...] = (SQLAlchemyError, OSError, TimeoutError)
        if database.dialect == "postgresql":
            from asyncpg import InterfaceError, PostgresError  # raised as they are when a connection cannot be made

            self._failures += (PostgresError, InterfaceError)

    async def create(self, row: KeyRow) -> None:
        """Raises `ConflictError` if the key or its alias exists."""
        async with self._write() as connection:
            await connection.execute(sa.insert(keys).values(_to_columns(_fields(row))))

    async def get(self, key_hash: str) -> KeyRow | None:
        async with self._read() as connection:
            found = (await connection.execute(sa.select(*_COLUMNS).where(keys.c.key_hash == key_hash))).mappings()
            return _row(found.first())

    async def update(self, key_hash: str, changes: Mapping[str, Any]) -> KeyRow | None:
        """Sets the named fields (names and values as in `KeyRow`); the row as it is then, `None` if there is none.
        Raises `ConflictError` if another key has the alias."""
        async with self._write() as connection:
            await connection.execute(sa.update(keys).where(keys.c.key_hash == key_hash).values(_to_columns(changes)))
            found = (await connection.execute(sa.select(*_COLUMNS).where(keys.c.key_hash == key_hash))).mappings()
            return _row(found.first())

    async def set_blocked(self, key_hash: str, is_blocked: bool, *, at: float) -> KeyRow | None:
        """Blocks or unblocks; the row as it is then, `None` if there is none."""
        return await self.update(key_hash, {"blocked": is_blocked, "updated_at": at})

    async def find(self, *, hashes: Sequence[str] = (), aliases: Sequence[str] = ()) -> list[KeyRow]:
        """The rows with one of these hashes or aliases."""
        async with self._read() as connection:
            query = sa.select(*_COLUMNS).where(_named(hashes, aliases)).order_by(keys.c.key_hash)
            return [_known(row) for row in (await connection.execute(query)).mappings()]

    async def delete(self, *, hashes: Sequence[str]) -> list[str]:
        """Deletes all of these keys, or none if one of them is missing. The hashes deleted."""
        wanted = sorted(set(hashes))
        async with self._write() as connection:
            gone = await connection.execute(sa.delete(keys).where(keys.c.key_hash.in_(wanted)))
            if gone.rowcount != len(wanted):
                await connection.rollback()
                return []
        return wanted

    async def list(self, where: KeyFilter, *, limit: int, offset: int = 0) -> tuple[list[KeyRow], int]:
        """A page, newest first, and how many rows match in all."""
        clauses = [
            keys.c[field.name] == value for field in fields(where) if (value := getattr(where, field.name)) is not None
        ]
        async with self._read() as connection:
            total = (
                await connection.execute(sa.select(sa.func.count()).select_from(keys).where(*clauses))
            ).scalar_one()
            page = sa.select(*_COLUMNS).where(*clauses).order_by(keys.c.created_at.desc(), keys.c.key_hash)
            found = (await connection.execute(page.limit(limit).offset(offset))).mappings()
            return [_known(row) for row in found], int(total)

    @asynccontextmanager
    async def _read(self) -> AsyncIterator[AsyncConnection]:
        with self._translated():
            async with self._database.engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def _write(self) -> AsyncIterator[AsyncConnection]:
        with self._translated():
            async with self._database.engine.begin() as connection:
                yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:
            raise ConflictError(
                "Another key has this alias. Choose another 'key_alias'.", param="key_alias", code="key_alias_exists"
            ) from error
        except self._failures as error:
            raise UnavailableError(
                "The gateway's database does not answer. Try again shortly.",
                code="key_store_unavailable",
                retry_after_s=1.0,
            ) from error


def _named(hashes: Sequence[str], aliases: Sequence[str]) -> sa.ColumnElement[bool]:
    return sa.or_(keys.c.key_hash.in_(list(hashes)), keys.c.key_alias.in_(list(aliases)))


def _fields(row: KeyRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in KeyRow.__struct_fields__}


def _to_columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """Python's words → the database's: instants as microseconds, lists and objects as JSON text."""
    return {name: _to_column(name, value) for name, value in values.items()}


def _to_column(name: str, value: Any) -> Any:
    if name in _INSTANTS:
        return None if value is None else round(value * 1_000_000)
    if name in _JSON:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return value


def _known(found: Mapping[Any, Any]) -> KeyRow:
    values = {name: _from_column(name, found[name]) for name in KeyRow.__struct_fields__}
    return KeyRow(**values)


def _row(found: Mapping[Any, Any] | None) -> KeyRow | None:
    return None if found is None else _known(found)


def _from_column(name: str, value: Any) -> Any:
    if name in _INSTANTS:
        return None if value is None else value / 1_000_000
    if name in _JSON:
        value = json.loads(value) if isinstance(value, str) else value
        return tuple(value or ()) if name == "models" else value or {}
    if name == "blocked":
        return bool(value)
    return value
