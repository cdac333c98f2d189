"""The tables of one database, written as another process would write them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import sqlalchemy as sa

from sidecar.db import Database, migrate
from sidecar.identity.keys import hash_key
from sidecar.identity.row import KeyRow, PrincipalRow, StoredKey, member_id
from sidecar.identity.table import KeyTable, PrincipalTable, Store


class Tree:
    """Keys and everybody above them."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.store = Store(database)
        self.keys = KeyTable(self.store)
        self.principals = PrincipalTable(self.store)

    async def add(self, kind: str, name: str, **values: object) -> PrincipalRow:
        row = PrincipalRow(kind=kind, principal_id=name, **values)  # type: ignore[arg-type]
        await self.principals.create(row)
        return row

    async def member(self, team: str, user: str, **values: object) -> PrincipalRow:
        return await self.add("member", member_id(team, user), team_id=team, user_id=user, **values)

    async def key(self, name: str, **values: object) -> KeyRow:
        row = KeyRow(key_hash=hash_key(name), **values)  # type: ignore[arg-type]
        await self.keys.create(row)
        return row

    async def change(self, kind: str, name: str, **changes: object) -> None:
        assert await self.principals.update(kind, name, changes=changes) is not None

    async def resolve(self, row: KeyRow) -> StoredKey:
        found = await self.keys.resolve(row.key_hash)
        assert found is not None
        return found

    @contextmanager
    def counted(self) -> Iterator[list[str]]:
        """The statements the database is sent meanwhile."""
        with counted(self.database) as seen:
            yield seen


@contextmanager
def counted(database: Database) -> Iterator[list[str]]:
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    engine = database.engine.sync_engine
    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


@asynccontextmanager
async def opened(url: str, *, migrated: bool = True) -> AsyncIterator[Tree]:
    if migrated:
        await migrate(url)
    database = Database(url)
    try:
        yield Tree(database)
    finally:
        await database.aclose()
