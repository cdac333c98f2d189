"""Users, organizations, end users, tags and shared budgets: new, update, delete, info, list, block – one class, a
`Kind` for what differs. `teams.py` has what teams and members have besides.

Neighbours: `policy.py` translates the fields, `identity.tree` stores. Rule: what a caller does not reach is answered
like what does not exist.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from sidecar.admin.access import Reach
from sidecar.admin.endpoint import Call
from sidecar.admin.fields import Paged, Strict
from sidecar.admin.keys import KeyAdmin
from sidecar.admin.policy import MONEY_FIELDS, check_whole, policy_changes, shown_policy
from sidecar.admin.requests import GenerateKey, NewUser, UserQuery, given
from sidecar.admin.writes import Writes
from sidecar.errors import BadRequestError, ConflictError, NotFoundError
from sidecar.identity.keys import Keys
from sidecar.identity.row import PrincipalRow
from sidecar.identity.tree import ORGANIZATION_MEMBER, Tree

MAX_BELOW = 1000
"""Keys, members and teams an `info` shows; the lists show all, a page at a time."""
SumOf = Callable[[str, str, float | None, float | None], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class Kind:
    """What differs. `columns`: request fields that stand in a row's column of another name; `ids`: the field that names
    several in a body; `filters`: parameters of the list that are columns, the id's aside."""

    kind: str
    id_field: str
    ids: str
    plural: str
    columns: Mapping[str, str] = field(default_factory=dict)
    filters: Mapping[str, str] = field(default_factory=dict)

    @property
    def noun(self) -> str:
        return self.kind.replace("_", " ")

    def not_found(self, param: str | None = None) -> NotFoundError:
        kind, param = self.kind, param or self.id_field
        return NotFoundError(f"'{param}' names no {self.noun}.", param=param, code=f"{kind}_not_found")


USERS = Kind(
    "user", "user_id", "user_ids", "users",
    {"user_alias": "alias", "user_email": "email", "user_role": "role"},
    {"user_email": "email", "role": "role"},
)  # fmt: skip
ORGANIZATIONS = Kind(
    "organization", "organization_id", "organization_ids", "organizations",
    {"organization_alias": "alias"}, {"organization_alias": "alias"},
)  # fmt: skip
CUSTOMERS = Kind(
    "end_user", "user_id", "user_ids", "customers", {"alias": "alias"}, {"alias": "alias", "blocked": "blocked"}
)
BUDGETS = Kind("budget", "budget_id", "budgets", "budgets")
TAGS = Kind("tag", "name", "names", "tags", {"description": "alias"})


class SubjectAdmin:
    """The handlers of one kind."""

    def __init__(self, kind: Kind, *, keys: Keys, tree: Tree, sum_of: SumOf, writes: Writes) -> None:
        self.kind = kind
        self._keys = keys
        self._tree = tree
        self._rows = tree.principals
        self._sum_of = sum_of
        self._writes = writes

    async def new(self, call: Call, body: Strict) -> Mapping[str, Any]:
        return await self._make(call, body)

    async def _make(self, call: Call, body: Strict, **more: Any) -> dict[str, Any]:
        now = self._writes.now()
        named = {name: value for name, value in self._given(body).items() if value is not None} | more
        row = PrincipalRow(
            kind=self.kind.kind,
            principal_id=getattr(body, self.kind.id_field) or uuid.uuid4().hex,
            created_at=now,
            updated_at=now,
            **self._changes(named, now, None),
        )
        try:
            await self._rows.create(row, by=call.actor, check=self._checker(call.reach, frozenset(named)))
        except ConflictError:
            raise ConflictError(
                f"'{self.kind.id_field}': there is such a {self.kind.noun} already.",
                param=self.kind.id_field,
                code="already_exists",
            ) from None
        await self._done(row, frozenset(named))
        return self.described(row, 0)

    def _given(self, body: Strict) -> dict[str, Any]:
        return given(body, self.kind.id_field)

    def _changes(self, named: Mapping[str, Any], now: float, before: PrincipalRow | None) -> dict[str, Any]:
        renamed = {column: named[name] for name, column in self.kind.columns.items() if name in named}
        rest = {name: value for name, value in named.items() if name not in self.kind.columns}
        return renamed | policy_changes(rest, now, before)

    def _checker(
        self, reach: Reach, named: frozenset[str]
    ) -> Callable[[AsyncConnection, PrincipalRow], Awaitable[None]]:
        async def check(connection: AsyncConnection, row: PrincipalRow) -> None:
            check_whole(row)
            await self._writes.check_budget(connection, row, named)
            await self._check(connection, row, reach, named)

        return check

    async def _check(self, connection: AsyncConnection, row: PrincipalRow, reach: Reach, named: frozenset[str]) -> None:
        """What else has to hold for a row that is about to be written."""

    async def _done(self, row: PrincipalRow, named: frozenset[str]) -> None:
        await self._writes.told()
        if not named & {*MONEY_FIELDS, "budget_id"}:
            return
        if row.kind != "budget":
            await self._writes.seed_principal(row)
            return
        for sharer in (await self._tree.users_of_budget(row.principal_id))[:MAX_BELOW]:
            if isinstance(sharer, PrincipalRow):
                await self._writes.seed_principal(sharer)
            else:
                await self._writes.seed_key(sharer, strict=False, named=named)

    def _refuse_change(self, reach: Reach, row: PrincipalRow, named: frozenset[str]) -> None:
        """Raises for a row this caller may not change, or not so. Administrators only come here unless a table line
        lets others."""
        if not reach.changes_all:
            raise self.kind.not_found()

    async def update(self, call: Call, body: Strict) -> Mapping[str, Any]:
        named = self._given(body)
        return await self._change(call, getattr(body, self.kind.id_field), named, "update")

    async def _change(self, call: Call, name: str, named: Mapping[str, Any], action: str) -> dict[str, Any]:
        now, names = self._writes.now(), frozenset(named)

        def changes(row: PrincipalRow) -> dict[str, Any]:
            self._refuse_change(call.reach, row, names)
            return self._changes(named, now, row) | {"updated_at": now}

        row = await self._rows.update(
            self.kind.kind, name, changes=changes, by=call.actor, action=action, check=self._checker(call.reach, names)
        )
        if row is None:
            raise self.kind.not_found()
        await self._done(row, names)
        return self.described(row, await self.spent(row))

    async def block(self, call: Call, body: Strict) -> Mapping[str, Any]:
        return await self._set_blocked(call, body, is_blocked=True)

    async def unblock(self, call: Call, body: Strict) -> Mapping[str, Any]:
        return await self._set_blocked(call, body, is_blocked=False)

    async def _set_blocked(self, call: Call, body: Strict, *, is_blocked: bool) -> Mapping[str, Any]:
        action = "block" if is_blocked else "unblock"
        if hasattr(body, self.kind.id_field):
            return await self._change(call, getattr(body, self.kind.id_field), {"blocked": is_blocked}, action)
        now, rows = self._writes.now(), []
        async with self._rows.store.write() as connection:
            for name in dict.fromkeys(getattr(body, self.kind.ids)):
                row = await self._rows.one(connection, self.kind.kind, name)
                if row is None:
                    raise self.kind.not_found(self.kind.ids)
                changes = {"blocked": is_blocked, "updated_at": now}
                rows.append(await self._rows.change(connection, row, changes, call.actor, action))
        await self._writes.told()
        return {f"{action}ed_{self.kind.plural}": [self.described(row, None) for row in rows]}

    async def delete(self, call: Call, body: Strict) -> Mapping[str, Any]:
        """All it names or nothing, with all that is below."""
        param = next(iter(type(body).model_fields))
        wanted = getattr(body, param)
        names = [wanted] if isinstance(wanted, str) else wanted
        gone = await self._tree.delete(self.kind.kind, names, by=call.actor, param=param)
        await self._writes.told()
        told = True
        for key in gone.keys:
            told = await self._keys.revoke(key.key_hash) and told
        return {
            f"deleted_{self.kind.plural}": list(dict.fromkeys(names)),
            "deleted_keys": [key.key_hash for key in gone.keys],
            "is_effective_everywhere": told,
        }

    async def info(self, call: Call, query: Any) -> Mapping[str, Any]:
        param = next(iter(type(query).model_fields))
        row = await self._known(getattr(query, param), param)
        return self.described(row, await self.spent(row))

    async def infos(self, call: Call, body: Any) -> Mapping[str, Any]:
        """Several at once."""
        names = getattr(body, self.kind.ids)
        rows = [await self._known(name, self.kind.ids) for name in dict.fromkeys(names)]
        return {self.kind.plural: [self.described(row, await self.spent(row)) for row in rows]}

    async def _known(self, name: str, param: str) -> PrincipalRow:
        row = await self._rows.get(self.kind.kind, name)
        if row is None:
            raise self.kind.not_found(param)
        return row

    async def page(self, call: Call, query: Any) -> Mapping[str, Any]:
        return await self._list(query, None)

    async def _list(self, query: Paged, any_of: Mapping[str, Sequence[str]] | None, **more: Any) -> dict[str, Any]:
        equal = {column: getattr(query, name) for name, column in self.kind.filters.items()}
        rows, total = await self._rows.list(
            limit=query.size,
            offset=(query.page - 1) * query.size,
            any_of=any_of,
            kind=self.kind.kind,
            principal_id=getattr(query, self.kind.id_field),
            **equal,
            **more,
        )
        return query.page_of(self.kind.plural, [self.described(row, None) for row in rows], total)

    async def spent(self, row: PrincipalRow) -> int | None:
        return None if row.kind == "budget" else await self._sum_of(row.kind, row.principal_id, None, None)

    def described(self, row: PrincipalRow, spent_nano: int | None) -> dict[str, Any]:
        """As answers show it; lists leave out what was spent."""
        shown: dict[str, Any] = {self.kind.id_field: row.principal_id}
        shown |= {name: getattr(row, column) for name, column in self.kind.columns.items()}
        shown |= shown_policy(row, None if row.kind == "budget" else spent_nano)
        return shown if row.kind == "budget" else shown | {"budget_id": row.budget_id, "blocked": row.blocked}


class UserAdmin(SubjectAdmin):
    """`/user/*`: a new user may get a key at once; info shows keys and teams, and is for the user too."""

    def __init__(self, key_admin: KeyAdmin, **parts: Any) -> None:
        super().__init__(USERS, **parts)
        self._key_admin = key_admin

    async def new(self, call: Call, body: Strict) -> Mapping[str, Any]:
        assert isinstance(body, NewUser)
        if body.user_role is None:
            made = await self._make(call, body, user_role="internal_user")
        else:
            made = await self._make(call, body)
        if not body.auto_create_key:
            return made
        key = await self._key_admin.make(call, GenerateKey(user_id=made["user_id"]))
        return made | {"key": key["key"], "token": key["token"], "key_name": key["key_name"]}

    def _given(self, body: Strict) -> dict[str, Any]:
        return given(body, "user_id", "auto_create_key")

    async def info(self, call: Call, query: UserQuery) -> Mapping[str, Any]:
        reach = call.reach
        name = query.user_id or reach.identity.user_id
        if name is None:
            raise BadRequestError("'user_id' is missing.", param="user_id", code="missing_field")
        if not reach.sees_all and name != reach.user_id:
            raise self.kind.not_found()
        row = await self._known(name, "user_id")
        keys, _ = await self._tree.keys.list(limit=MAX_BELOW, user_id=name)
        teams, _ = await self._rows.list(limit=MAX_BELOW, kind="member", user_id=name)
        return {
            "user_id": name,
            "user_info": self.described(row, await self.spent(row)),
            "keys": await self._key_admin.described_all(keys),
            "teams": [{"team_id": member.team_id, "role": member.role} for member in teams],
        }

    async def roles(self, call: Call, query: Any) -> Mapping[str, Any]:
        """What `user_role` can be, in words."""
        return {name: {"description": text} for name, text in ROLES.items()}


ROLES = {
    "proxy_admin": "Everything.",
    "proxy_admin_viewer": "Reads everything, changes nothing.",
    "internal_user": "Makes, changes and deletes keys of its own; administers the teams and organizations it is made "
    "administrator of.",
    "internal_user_viewer": "Reads what concerns itself.",
}


class OrganizationAdmin(SubjectAdmin):
    """`/organization/*`; info shows teams and members."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(ORGANIZATIONS, **parts)

    async def info(self, call: Call, query: Any) -> Mapping[str, Any]:
        if not call.reach.sees_all and not call.reach.leads(query.organization_id):
            raise self.kind.not_found()
        row = await self._known(query.organization_id, "organization_id")
        name = row.principal_id
        teams, _ = await self._rows.list(limit=MAX_BELOW, kind="team", organization_id=name)
        members, _ = await self._rows.list(limit=MAX_BELOW, kind=ORGANIZATION_MEMBER, organization_id=name)
        return self.described(row, await self.spent(row)) | {
            "teams": [{"team_id": team.principal_id, "team_alias": team.alias} for team in teams],
            "members": [{"user_id": member.user_id, "user_role": member.role} for member in members],
        }

    async def page(self, call: Call, query: Any) -> Mapping[str, Any]:
        reach = call.reach
        return await self._list(query, None if reach.sees_all else {"principal_id": sorted(reach.organizations)})
