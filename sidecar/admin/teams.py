"""`/team/*`, and who is in a team or an organization.

Neighbours: `subjects.py` (what teams have in common with others), `access.py`. Rules: an administrator of an
organization makes and changes teams in it; one of a team its name and its members, within what the team has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from sidecar.admin.access import Reach, denied, refuse_fields
from sidecar.admin.endpoint import Call
from sidecar.admin.fields import Strict
from sidecar.admin.keys import KeyAdmin
from sidecar.admin.policy import check_whole, exceeds, policy_changes, shown_policy
from sidecar.admin.requests import (
    AddMembers,
    AddOrganizationMembers,
    NameMember,
    NameOrganizationMember,
    TeamFields,
    UpdateMember,
    UpdateOrganizationMember,
    given,
)
from sidecar.admin.subjects import MAX_BELOW, Kind, SubjectAdmin
from sidecar.admin.writes import Writes
from sidecar.errors import BadRequestError, ConflictError, NotFoundError
from sidecar.identity.row import PrincipalRow, member_id
from sidecar.identity.tree import ORGANIZATION_MEMBER, Tree

TEAMS = Kind(
    "team", "team_id", "team_ids", "teams", {"team_alias": "alias"},
    {"team_alias": "alias", "organization_id": "organization_id"},
)  # fmt: skip
_TEAM_ADMINS_SET = frozenset({"team_alias", "metadata", "soft_budget"})
_BY_ADMINISTRATORS = {"budget_id": "shared budgets are given by administrators"}


class TeamAdmin(SubjectAdmin):
    """The handlers of `/team/*`."""

    def __init__(self, key_admin: KeyAdmin, **parts: Any) -> None:
        super().__init__(TEAMS, **parts)
        self._key_admin = key_admin

    async def new(self, call: Call, body: Strict) -> Mapping[str, Any]:
        assert isinstance(body, TeamFields)
        reach, more = call.reach, {}
        if not reach.changes_all:
            refuse_fields(body.model_fields_set, _BY_ADMINISTRATORS)
            if body.organization_id is None and len(reach.organizations) == 1:
                more["organization_id"] = next(iter(reach.organizations))
            elif not reach.leads(body.organization_id):
                raise _no_organization()
        return await self._make(call, body, **more)

    def _refuse_change(self, reach: Reach, row: PrincipalRow, named: frozenset[str]) -> None:
        if reach.changes_all:
            return
        if not reach.administers(row.principal_id):
            raise self.kind.not_found()
        if reach.leads(row.organization_id):
            refuse_fields(named, _BY_ADMINISTRATORS | {"organization_id": "teams are moved by administrators"})
        else:
            why = "a team's limits are set by those above it"
            refuse_fields(named, dict.fromkeys(named - _TEAM_ADMINS_SET, why))

    async def _check(self, connection: AsyncConnection, row: PrincipalRow, reach: Reach, named: frozenset[str]) -> None:
        above = None
        if row.organization_id is not None:
            above = await self._rows.one(connection, "organization", row.organization_id)
            if above is None and "organization_id" in named:
                raise _no_organization()
        if above is not None and not reach.changes_all:
            field = exceeds(row, named, above.principal(await self._tree.shared(connection, above)))
            if field is not None:
                raise denied(field, "the organization above has less")

    async def info(self, call: Call, query: Any) -> Mapping[str, Any]:
        if not call.reach.sees_all and not call.reach.administers(query.team_id):
            raise self.kind.not_found()
        row = await self._known(query.team_id, "team_id")
        keys, _ = await self._tree.keys.list(limit=MAX_BELOW, team_id=row.principal_id)
        members, _ = await self._rows.list(limit=MAX_BELOW, kind="member", team_id=row.principal_id)
        shown = self.described(row, await self.spent(row))
        shown["members_with_roles"] = [{"user_id": member.user_id, "role": member.role} for member in members]
        return {
            "team_id": row.principal_id,
            "team_info": shown,
            "keys": await self._key_admin.described_all(keys),
            "team_memberships": [described_member(member) for member in members],
        }

    async def page(self, call: Call, query: Any) -> Mapping[str, Any]:
        reach = call.reach
        return await self._list(query, None if reach.sees_all else {"principal_id": sorted(reach.teams)})

    def described(self, row: PrincipalRow, spent_nano: int | None) -> dict[str, Any]:
        more = {"organization_id": row.organization_id, "model_aliases": row.model_aliases}
        return super().described(row, spent_nano) | more

    # who is in it

    async def add_members(self, call: Call, body: AddMembers) -> Mapping[str, Any]:
        """All of them or none."""
        now = self._writes.now()
        named = _member_fields({n: v for n, v in given(body, "team_id", "member").items() if v is not None})
        rows = []
        taken = ConflictError("'member': somebody is in the team already.", param="member", code="already_exists")
        async with self._rows.store.write(taken) as connection:
            for member in body.member:
                row = PrincipalRow(
                    kind="member",
                    principal_id=member_id(body.team_id, member.user_id),
                    team_id=body.team_id,
                    user_id=member.user_id,
                    role=member.role,
                    created_at=now,
                    updated_at=now,
                    **policy_changes(named, now),
                )
                await self._check_member(connection, row, call.reach, frozenset(named))
                await self._rows.insert(connection, row, by=call.actor)
                rows.append(row)
        await self._members_done(rows)
        return {"team_id": body.team_id, "team_memberships": [described_member(row) for row in rows]}

    async def update_member(self, call: Call, body: UpdateMember) -> Mapping[str, Any]:
        now = self._writes.now()
        named = _member_fields(given(body, "team_id", "user_id"))
        if "role" in named and named["role"] is None:
            del named["role"]
        names = frozenset(named)

        async def check(connection: AsyncConnection, row: PrincipalRow) -> None:
            await self._check_member(connection, row, call.reach, names)

        row = await self._rows.update(
            "member",
            member_id(body.team_id, body.user_id),
            changes=lambda row: policy_changes(named, now, row) | {"updated_at": now},
            by=call.actor,
            check=check,
        )
        if row is None:
            await self._refuse_team(call.reach, body.team_id)
            raise _no_member()
        await self._members_done([row])
        return described_member(row)

    async def _check_member(
        self, connection: AsyncConnection, row: PrincipalRow, reach: Reach, named: frozenset[str]
    ) -> None:
        team = await self._rows.one(connection, "team", row.team_id or "")
        if team is None or not reach.administers(row.team_id):
            raise self.kind.not_found()
        if not reach.changes_all:
            refuse_fields(named, _BY_ADMINISTRATORS)
        check_whole(row)
        await self._writes.check_budget(connection, row, named)
        if reach.changes_all:
            return
        if named and row.user_id == reach.identity.user_id and not reach.leads(team.organization_id):
            raise denied(min(named), "your own membership is changed by somebody else")
        field = exceeds(row, named, team.principal(await self._tree.shared(connection, team)))
        if field is not None:
            raise denied(field, "the team has less")

    async def delete_member(self, call: Call, body: NameMember) -> Mapping[str, Any]:
        """With the keys the user has in the team."""
        await self._refuse_team(call.reach, body.team_id)
        try:
            name = member_id(body.team_id, body.user_id)
            gone = await self._tree.delete("member", [name], by=call.actor, param="user_id")
        except NotFoundError:
            raise _no_member() from None
        await self._writes.told()
        told = True
        for key in gone.keys:
            told = await self._keys.revoke(key.key_hash) and told
        return {
            "team_id": body.team_id,
            "user_id": body.user_id,
            "deleted_keys": [key.key_hash for key in gone.keys],
            "is_effective_everywhere": told,
        }

    async def _refuse_team(self, reach: Reach, team_id: str) -> None:
        if not reach.administers(team_id) or await self._rows.get("team", team_id) is None:
            raise self.kind.not_found()

    async def _members_done(self, rows: list[PrincipalRow]) -> None:
        await self._writes.told()
        for row in rows:
            await self._writes.seed_principal(row)


class OrganizationMembers:
    """`/organization/member_*`: who may manage an organization. For administrators."""

    def __init__(self, tree: Tree, writes: Writes) -> None:
        self._tree = tree
        self._rows = tree.principals
        self._writes = writes

    async def add(self, call: Call, body: AddOrganizationMembers) -> Mapping[str, Any]:
        now, rows = self._writes.now(), []
        taken = ConflictError("'member': somebody is in it already.", param="member", code="already_exists")
        async with self._rows.store.write(taken) as connection:
            if await self._rows.one(connection, "organization", body.organization_id) is None:
                raise _no_organization()
            for member in body.member:
                row = PrincipalRow(
                    kind=ORGANIZATION_MEMBER,
                    principal_id=member_id(body.organization_id, member.user_id),
                    organization_id=body.organization_id,
                    user_id=member.user_id,
                    role=member.role,
                    created_at=now,
                    updated_at=now,
                )
                await self._rows.insert(connection, row, by=call.actor)
                rows.append(row)
        await self._writes.told()
        return {"organization_id": body.organization_id, "members": [_shown(row) for row in rows]}

    async def update(self, call: Call, body: UpdateOrganizationMember) -> Mapping[str, Any]:
        changes = {"role": body.role, "updated_at": self._writes.now()}
        name = member_id(body.organization_id, body.user_id)
        row = await self._rows.update(ORGANIZATION_MEMBER, name, changes=changes, by=call.actor)
        if row is None:
            raise _no_member()
        await self._writes.told()
        return {"organization_id": body.organization_id, **_shown(row)}

    async def delete(self, call: Call, body: NameOrganizationMember) -> Mapping[str, Any]:
        name = member_id(body.organization_id, body.user_id)
        try:
            await self._tree.delete(ORGANIZATION_MEMBER, [name], by=call.actor, param="user_id")
        except NotFoundError:
            raise _no_member() from None
        await self._writes.told()
        return {"organization_id": body.organization_id, "user_id": body.user_id}


def _no_organization() -> NotFoundError:
    return NotFoundError(
        "'organization_id' names no organization.", param="organization_id", code="organization_not_found"
    )


def _no_member() -> NotFoundError:
    return NotFoundError("'user_id' names no member.", param="user_id", code="member_not_found")


def _member_fields(named: dict[str, Any]) -> dict[str, Any]:
    if "max_budget_in_team" in named:
        if "max_budget" in named:
            raise BadRequestError(
                "Give 'max_budget_in_team' or 'max_budget', not both.", param="max_budget", code="invalid_field"
            )
        named["max_budget"] = named.pop("max_budget_in_team")
    return named


def described_member(row: PrincipalRow) -> dict[str, Any]:
    """As answers show it."""
    return {
        "team_id": row.team_id,
        "user_id": row.user_id,
        "role": row.role,
        **shown_policy(row, None),
        "budget_id": row.budget_id,
        "blocked": row.blocked,
    }


def _shown(row: PrincipalRow) -> dict[str, Any]:
    return {"user_id": row.user_id, "user_role": row.role}
