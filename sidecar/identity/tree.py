"""What concerns several rows at once, each in one transaction: whoever stands above a key, and all that goes with a row
that is deleted, a key that is changed or regenerated.

`table.py` has the single rows; the management API decides who may. Rule: everything happens, audited, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from sidecar.db.schema import keys as k
from sidecar.db.schema import principals as p
from sidecar.errors import ConflictError, NotFoundError
from sidecar.identity.row import KeyRow, Policy, PrincipalRow, member_id
from sidecar.identity.table import Check, KeyTable, PrincipalTable
from sidecar.identity.tokens import hash_key, mask_key
from sidecar.limits.windows import parse_duration

ORGANIZATION_MEMBER = "organization_member"
"""A user in an organization: says who may manage it, and stands above no key."""
_OF_ONE = frozenset({"key_alias", "expires_at", "rotation_interval", "rotates_at"})
"""What a key in its grace period does not share with its successor."""


def succession(row: KeyRow, token: str, *, now: float, until: float) -> tuple[KeyRow, Mapping[str, Any]]:
    """The key that takes this one's place, and what changes on this one, which works until `until` at most."""
    rotates_at = None if row.rotation_interval is None else now + parse_duration(row.rotation_interval)
    after = msgspec.structs.replace(
        row,
        key_hash=hash_key(token),
        key_name=mask_key(token),
        key_id=row.spends_as,
        last_used_at=None,
        rotates_at=rotates_at,
        created_at=now,
        updated_at=now,
    )
    return after, {
        "successor_hash": after.key_hash,
        "expires_at": until if row.expires_at is None else min(until, row.expires_at),
        "key_id": row.spends_as,
        "key_alias": None,
        "rotates_at": None,
        "updated_at": now,
    }


@dataclass(frozen=True, slots=True)
class Gone:
    principals: tuple[PrincipalRow, ...]
    keys: tuple[KeyRow, ...]


class Tree:
    """Every method raises `UnavailableError` when the database fails."""

    def __init__(self, keys: KeyTable, principals: PrincipalTable) -> None:
        self.keys = keys
        self.principals = principals
        self._store = principals.store

    async def above(
        self, connection: AsyncConnection, row: KeyRow | PrincipalRow
    ) -> Sequence[tuple[PrincipalRow, PrincipalRow | None]]:
        """Team, member, user and organization it names, each with the budget it shares."""
        wanted = [("team", row.team_id), ("user", row.user_id), ("organization", row.organization_id)]
        if row.team_id is not None and row.user_id is not None:
            wanted.append(("member", member_id(row.team_id, row.user_id)))
        found = [one for kind, name in wanted if name is not None and (one := await self._one(connection, kind, name))]
        team = next((one for one in found if one.kind == "team"), None)
        if team is not None and team.organization_id is not None and row.organization_id is None:
            organization = await self._one(connection, "organization", team.organization_id)
            found += [organization] if organization is not None else []
        return [(one, await self.shared(connection, one)) for one in found]

    async def shared(self, connection: AsyncConnection, row: Policy) -> PrincipalRow | None:
        """The budget it names."""
        return await self._one(connection, "budget", row.budget_id) if row.budget_id is not None else None

    async def _one(self, connection: AsyncConnection, kind: str, name: str) -> PrincipalRow | None:
        return await self.principals.one(connection, kind, name)

    async def delete(self, kind: str, ids: Sequence[str], *, by: str, param: str) -> Gone:
        """These rows, with members, keys and whatever else only they had. Raises `NotFoundError` if one is missing,
        `ConflictError` if one is used by what is not deleted with it; `param` is the field that named them."""
        rows: list[PrincipalRow] = []
        keys: dict[str, KeyRow] = {}
        async with self._store.write() as connection:
            for index, name in enumerate(dict.fromkeys(ids)):
                row = await self._one(connection, kind, name)
                if row is None:
                    raise NotFoundError(
                        f"'{param}[{index}]' names no {kind.replace('_', ' ')}; nothing was deleted.",
                        param=param,
                        code=f"{kind}_not_found",
                    )
                await self._refuse_used(connection, row, param)
                for below in (row, *await self._below(connection, row)):
                    await self.principals.remove(connection, below, by=by)
                    rows.append(below)
                if (owned := _owned(row)) is not None:
                    for key in await self.keys.some(connection, owned):
                        await self.keys.remove(connection, key, by=by)
                        keys[key.key_hash] = key
        return Gone(tuple(rows), tuple(keys.values()))

    async def _refuse_used(self, connection: AsyncConnection, row: PrincipalRow, param: str) -> None:
        columns = {"budget": "budget_id", "organization": "organization_id"}
        if row.kind not in columns:
            return
        column = columns[row.kind]
        others = sa.select(p.c.kind, sa.func.count()).where(
            p.c[column] == row.principal_id, p.c.kind != ORGANIZATION_MEMBER
        )
        counts = {kind: int(count) for kind, count in await connection.execute(others.group_by(p.c.kind))}
        query = sa.select(sa.func.count()).select_from(k).where(k.c[column] == row.principal_id)
        counts["key"] = int((await connection.execute(query)).scalar_one())
        users = ", ".join(f"{count} {kind.replace('_', ' ')}(s)" for kind, count in sorted(counts.items()) if count)
        if users:
            raise ConflictError(
                f"The {row.kind} '{row.principal_id}' is used by {users}; nothing was deleted.",
                param=param,
                code=f"{row.kind}_in_use",
            )

    async def _below(self, connection: AsyncConnection, row: PrincipalRow) -> Sequence[PrincipalRow]:
        kinds = {
            "team": (("member",), p.c.team_id),
            "user": (("member", ORGANIZATION_MEMBER), p.c.user_id),
            "organization": ((ORGANIZATION_MEMBER,), p.c.organization_id),
        }
        if row.kind not in kinds:
            return ()
        below, column = kinds[row.kind]
        return await self.principals.some(connection, p.c.kind.in_(below), column == row.principal_id)

    async def line_of(self, connection: AsyncConnection, row: KeyRow) -> Sequence[KeyRow]:
        """A key and, if it is the newest of its line, those it succeeds that still work."""
        if row.successor_hash is not None:
            return [row]
        name = row.spends_as
        rows = await self.keys.some(connection, sa.or_(k.c.key_hash == name, k.c.key_id == name))
        return [row, *(one for one in rows if one.key_hash != row.key_hash)]

    async def change_key(
        self,
        key_hash: str,
        changes: Callable[[KeyRow], Mapping[str, Any]],
        *,
        by: str,
        action: str = "update",
        check: Check[KeyRow] | None = None,
    ) -> Sequence[KeyRow]:
        """The key as it is then, and those in their grace period that changed with it; none if there is no such key."""
        async with self._store.write(self.keys.conflict()) as connection:
            row = await self.keys.one(connection, key_hash)
            if row is None:
                return []
            wanted = changes(row)
            first, *others = await self.line_of(connection, row)
            done = [await self.keys.change(connection, first, wanted, by, action, check)]
            alike = {name: value for name, value in wanted.items() if name not in _OF_ONE}
            return done + [await self.keys.change(connection, other, alike, by, action) for other in others]

    async def regenerate(
        self,
        key_hash: str,
        new: Callable[[KeyRow], tuple[KeyRow, Mapping[str, Any] | None]],
        *,
        by: str,
    ) -> tuple[KeyRow, KeyRow] | None:
        """`new` gives, from a key's row, its successor and what changes on it (`None`: it is deleted). The old row as
        it was and the new one."""
        async with self._store.write(self.keys.conflict()) as connection:
            before = await self.keys.one(connection, key_hash)
            if before is None:
                return None
            after, changes = new(before)
            if changes is None:
                await self.keys.remove(connection, before, by=by)
            else:
                await self.keys.change(connection, before, changes, by, "regenerate")
            await self.keys.insert(connection, after, by=by)
            return before, after

    async def delete_keys(self, rows: Sequence[KeyRow], *, by: str) -> Sequence[KeyRow]:
        """These, with those in their grace period that they succeed. What is gone meanwhile is passed over."""
        gone: dict[str, KeyRow] = {}
        async with self._store.write() as connection:
            for row in rows:
                for one in await self.line_of(connection, row):
                    now = await self.keys.one(connection, one.key_hash)
                    if now is not None:
                        await self.keys.remove(connection, now, by=by)
                        gone[one.key_hash] = now
        return list(gone.values())

    async def is_there(self, connection: AsyncConnection, spends_as: str) -> bool:
        """Whether a key spends under this hash."""
        query = sa.select(k.c.key_hash).where(sa.or_(k.c.key_hash == spends_as, k.c.key_id == spends_as)).limit(1)
        return (await connection.execute(query)).first() is not None

    async def newest(self, spends_as: str) -> KeyRow | None:
        """The key that spends under this hash and has no successor."""
        async with self._store.read() as connection:
            is_it = sa.or_(k.c.key_hash == spends_as, k.c.key_id == spends_as)
            rows = await self.keys.some(connection, is_it, k.c.successor_hash.is_(None))
            return rows[0] if rows else None

    async def spenders(self, names: Sequence[str]) -> dict[str, KeyRow]:
        """The newest keys that spend under these hashes, by hash."""
        async with self._store.read() as connection:
            is_one = sa.or_(k.c.key_hash.in_(list(names)), k.c.key_id.in_(list(names)))
            rows = await self.keys.some(connection, is_one, k.c.successor_hash.is_(None))
            return {row.spends_as: row for row in rows}

    async def users_of_budget(self, budget_id: str) -> Sequence[KeyRow | PrincipalRow]:
        """Everybody who shares it."""
        async with self._store.read() as connection:
            rows = await self.principals.some(connection, p.c.budget_id == budget_id)
            return [*rows, *await self.keys.some(connection, k.c.budget_id == budget_id)]

    async def budgets(self, row: Policy) -> PrincipalRow | None:
        """As `shared`, outside a transaction."""
        async with self._store.read() as connection:
            return await self.shared(connection, row)


def _owned(row: PrincipalRow) -> sa.ColumnElement[bool] | None:
    """The keys that go with it."""
    if row.kind == "team":
        return k.c.team_id == row.principal_id
    if row.kind == "user":
        return k.c.user_id == row.principal_id
    if row.kind == "member":
        return sa.and_(k.c.team_id == row.team_id, k.c.user_id == row.user_id)
    return None
