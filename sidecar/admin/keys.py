"""`/key/*`: generate, update, delete, block, unblock, regenerate, info, list. Names are as users of such gateways know
them.

`policy.py` translates, `identity.tree` stores. Rules: a key itself is in the answer of `generate` and `regenerate` and
nowhere else; nobody but an administrator makes or changes a key into more than the calling key and everybody above
admit; after each change `keys.revoke` tells the caches, also when the change may have failed half-way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from sidecar.admin.access import Reach, denied, refuse_fields
from sidecar.admin.endpoint import Call
from sidecar.admin.policy import (
    EVERY_BOUND,
    beyond,
    check_whole,
    exceeds,
    inherited,
    policy_changes,
    shown_at,
    shown_policy,
)
from sidecar.admin.requests import (
    DeleteKeys,
    GenerateKey,
    KeyInfo,
    ListKeys,
    NameKey,
    RegenerateKey,
    UpdateKey,
    given,
)
from sidecar.admin.writes import Writes
from sidecar.errors import AuthenticationError, BadRequestError, ConflictError, NotFoundError
from sidecar.identity.keys import Keys
from sidecar.identity.row import KeyRow, ModelLimit, member_id
from sidecar.identity.tokens import hash_key, mask_key, new_key
from sidecar.identity.tree import Tree, succession
from sidecar.limits.windows import parse_duration

_ADMINS_ONLY = {
    "budget_id": "shared budgets are given by administrators",
    "organization_id": "a key's organization is its team's",
}
_FIXED = _ADMINS_ONLY | {
    "user_id": "whose key it is, is changed by administrators",
    "team_id": "a key is moved by administrators",
}
_MASTER_NAME = "'key' is missing: this call was not made with a virtual key."
SumByKey = Callable[[list[str]], Awaitable[Mapping[str, int]]]


class KeyAdmin:
    """The handlers of `/key/*`. `spent` gives the lifetime nano-dollars of some keys, by hash."""

    def __init__(
        self, *, keys: Keys, tree: Tree, spent: SumByKey, writes: Writes, random_bytes: Callable[[int], bytes]
    ) -> None:
        self._keys = keys
        self._tree = tree
        self._spent = spent
        self._writes = writes
        self._random_bytes = random_bytes

    async def generate(self, call: Call, body: GenerateKey) -> Mapping[str, Any]:
        return await self.make(call, body)

    async def make(self, call: Call, body: GenerateKey) -> dict[str, Any]:
        """A new key, as the answer shows it."""
        now = self._writes.now()
        named = {name: value for name, value in given(body).items() if value is not None}
        changes = _changes(named, now, None)
        if not call.reach.changes_all:
            changes = self._of_caller(call.reach, body, changes, now)
        token = new_key(self._random_bytes)
        row = KeyRow(
            **changes | {"key_hash": hash_key(token), "key_name": mask_key(token), "created_at": now, "updated_at": now}
        )
        check_whole(row)
        check = self._checker(call.reach, frozenset(named))

        async def check_new(connection: AsyncConnection, row: KeyRow) -> None:
            await self._refuse_gone(connection, call.reach)
            await check(connection, row)

        await self._tree.keys.create(row, by=call.actor, check=check_new)
        self._keys.forget(row.key_hash)
        # The key exists; without this answer nobody would ever learn it, so a store that fails is passed over.
        await self._writes.seed_key(row, strict=False)
        return {"key": token, **described(row, 0)}

    def _of_caller(self, reach: Reach, body: GenerateKey, changes: dict[str, Any], now: float) -> dict[str, Any]:
        """What somebody who is no administrator may make: a key of its own or of a team it administers, no wider than
        the key it calls with."""
        identity, named = reach.identity, body.model_fields_set
        refuse_fields(named, _ADMINS_ONLY)
        if "team_id" not in named:
            changes["team_id"] = identity.team_id
        elif body.team_id is None and identity.team_id is not None:
            raise denied("team_id", "the calling key is of a team, so yours are too")
        team_id = changes.get("team_id")
        if "user_id" not in named:
            changes["user_id"] = reach.user_id
        if changes.get("user_id") is None:
            if not reach.administers(team_id):
                raise denied("user_id", "a key that is nobody's is made by administrators of its team")
        elif changes["user_id"] != reach.user_id:
            raise denied("user_id", "a key can be made for yourself, or for nobody")
        if "blocked" in named and not reach.administers(team_id):
            raise denied("blocked", "keys are blocked by administrators of their team")
        kept = inherited(identity, named, now)
        limits: dict[str, ModelLimit] = dict(changes.get("model_limits", {}))
        for model, limit in kept.pop("model_limits", {}).items():
            ours = {name: value for name, value in msgspec.to_builtins(limit).items() if value is not None}
            limits[model] = msgspec.structs.replace(limits.get(model, ModelLimit()), **ours)
        changes |= kept | ({"model_limits": limits} if limits else {})
        changes["tags"] = tuple(dict.fromkeys((*identity.tags, *changes.get("tags", ()))))
        if _is_virtual(reach) and "duration" not in named:
            changes["expires_at"] = identity.expires_at
        return changes

    def _checker(self, reach: Reach, named: frozenset[str]) -> Callable[[AsyncConnection, KeyRow], Awaitable[None]]:
        """What has to hold for a key, as it is about to be written."""

        async def check(connection: AsyncConnection, row: KeyRow) -> None:
            check_whole(row)
            await self._writes.check_budget(connection, row, named)
            if reach.changes_all:
                return
            field = beyond(row, named, reach.identity)
            if field is not None:
                raise denied(field, "the key you call with has less")
            if "duration" in named:
                _refuse_outliving(reach, row)
            if "team_id" in named and row.team_id is not None:
                await self._refuse_team(connection, reach, row.team_id)
            for above, shared in await self._tree.above(connection, row):
                field = exceeds(row, named, above.principal(shared))
                if field is not None:
                    raise denied(field, f"the {above.kind} above has less")

        return check

    async def _refuse_gone(self, connection: AsyncConnection, reach: Reach) -> None:
        """A key made by one that was deleted a moment ago would be left when all below a team or user is gone."""
        if _is_virtual(reach) and not await self._tree.is_there(connection, reach.identity.key_hash):
            raise AuthenticationError("The gateway refused the API key: it was deleted a moment ago.")

    async def _refuse_team(self, connection: AsyncConnection, reach: Reach, team_id: str) -> None:
        """For a team the caller is not in and does not lead (any more)."""
        team = await self._tree.principals.one(connection, "team", team_id)
        if team is not None and reach.leads(team.organization_id):
            return
        user_id = reach.identity.user_id if reach.administers(team_id) else reach.user_id
        if await self._tree.principals.one(connection, "member", member_id(team_id, user_id or "")) is None:
            raise NotFoundError("'team_id' names no team.", param="team_id", code="team_not_found")

    async def update(self, call: Call, body: UpdateKey) -> Mapping[str, Any]:
        now, reach = self._writes.now(), call.reach
        named = given(body, "key")
        if not reach.changes_all:
            refuse_fields(named, _FIXED)

        def changes(row: KeyRow) -> dict[str, Any]:
            if not reach.changes_key(row):
                raise _unknown()
            if "blocked" in named and not reach.administers(row.team_id):
                raise denied("blocked", "keys are blocked by administrators of their team")
            found = _changes(named, now, row) | {"updated_at": now}
            if "tags" in named and not reach.changes_all and not set(row.tags) <= set(found["tags"]):
                raise denied("tags", "tags can be added, not taken away")
            return found

        return await self._change(call, body.key, changes, "update", frozenset(named))

    async def block(self, call: Call, body: NameKey) -> Mapping[str, Any]:
        return await self._set_blocked(call, body, is_blocked=True)

    async def unblock(self, call: Call, body: NameKey) -> Mapping[str, Any]:
        return await self._set_blocked(call, body, is_blocked=False)

    async def _set_blocked(self, call: Call, body: NameKey, *, is_blocked: bool) -> Mapping[str, Any]:
        now = self._writes.now()

        def changes(row: KeyRow) -> dict[str, Any]:
            if not call.reach.administers(row.team_id):
                raise _unknown()
            return {"blocked": is_blocked, "updated_at": now}

        return await self._change(call, body.key, changes, "block" if is_blocked else "unblock", frozenset())

    async def _change(
        self,
        call: Call,
        key_hash: str,
        changes: Callable[[KeyRow], Mapping[str, Any]],
        action: str,
        named: frozenset[str],
    ) -> Mapping[str, Any]:
        told = False
        rows: Sequence[KeyRow] = ()
        try:
            rows = await self._tree.change_key(
                key_hash, changes, by=call.actor, action=action, check=self._checker(call.reach, named)
            )
        finally:
            told = await self._revoke([key_hash, *(row.key_hash for row in rows)])
        if not rows:
            raise _unknown()
        await self._writes.seed_key(rows[0], named=named)
        return {**described(rows[0], await self._spent_by(rows[0])), "is_effective_everywhere": told}

    async def delete(self, call: Call, body: DeleteKeys) -> Mapping[str, Any]:
        if not body.keys and not body.key_aliases:
            raise BadRequestError("'keys' or 'key_aliases' has to name at least one key.", param="keys")
        found = await self._tree.keys.find(hashes=body.keys, aliases=body.key_aliases)
        found = [row for row in found if call.reach.changes_key(row)]
        hashes = {row.key_hash for row in found}
        aliases = {row.key_alias for row in found}
        for field, wanted, known in (("keys", body.keys, hashes), ("key_aliases", body.key_aliases, aliases)):
            for index, name in enumerate(wanted):
                if name not in known:
                    raise NotFoundError(
                        f"'{field}[{index}]' names no key; nothing was deleted.", param=field, code="key_not_found"
                    )
        told = False
        gone: Sequence[KeyRow] = ()
        try:
            gone = await self._tree.delete_keys(found, by=call.actor)
        finally:
            told = await self._revoke([*hashes, *(row.key_hash for row in gone)])
        return {"deleted_keys": sorted(row.key_hash for row in gone), "is_effective_everywhere": told}

    async def regenerate(self, call: Call, body: RegenerateKey) -> Mapping[str, Any]:
        """The new key has everything of the old one, its spend too; the old one ends now, or after `grace_period`."""
        now, reach = self._writes.now(), call.reach
        token = new_key(self._random_bytes)
        named = given(body, "key", "grace_period")

        def new(row: KeyRow) -> tuple[KeyRow, Mapping[str, Any] | None]:
            if not reach.changes_key(row):
                raise _unknown()
            if not reach.takes_over_key(row):
                raise denied("key", "the new key would call as another user")
            if row.successor_hash is not None:
                raise ConflictError("'key' was regenerated before.", param="key", code="key_superseded")
            until = now + parse_duration(body.grace_period) if body.grace_period is not None else now
            after, changes = succession(row, token, now=now, until=until)
            after = msgspec.structs.replace(after, **_changes(named, now, row))
            if not reach.changes_all:
                _refuse_outliving(reach, after)
                _refuse_wider(reach, row)
            return after, None if body.grace_period is None else changes

        # Read first: once the old key is gone, nothing that fails may keep the new one from the caller.
        known = await self._tree.keys.get(body.key)
        spent = await self._spent_by(known) if known is not None else 0
        told = False
        done: tuple[KeyRow, KeyRow] | None = None
        try:
            done = await self._tree.regenerate(body.key, new, by=call.actor)
        finally:
            told = await self._revoke([body.key])
        if done is None:
            raise _unknown()
        before, after = done
        self._keys.forget(after.key_hash)
        return {
            "key": token,
            **described(after, spent),
            "previous_token": before.key_hash,
            "is_effective_everywhere": told,
        }

    async def info(self, call: Call, query: KeyInfo) -> Mapping[str, Any]:
        if query.key is None:
            row = await self._own(call.reach)
        else:
            found = await self._tree.keys.get(query.key)
            if found is None or not call.reach.sees_key(found):
                raise _unknown()
            row = found
        return {"key": row.key_hash, "info": described(row, await self._spent_by(row))}

    async def _own(self, reach: Reach) -> KeyRow:
        row = await self._tree.newest(reach.identity.key_hash)
        if row is None:
            raise BadRequestError(_MASTER_NAME, param="key", code="missing_field")
        return row

    async def page(self, call: Call, query: ListKeys) -> Mapping[str, Any]:
        rows, total = await self._tree.keys.list(
            limit=query.size,
            offset=(query.page - 1) * query.size,
            any_of=call.reach.keys(),
            key_hash=query.key,
            key_alias=query.key_alias,
            user_id=query.user_id,
            team_id=query.team_id,
            organization_id=query.organization_id,
            budget_id=query.budget_id,
            blocked=query.blocked,
        )
        keys: list[Any] = [row.key_hash for row in rows]
        if query.return_full_object:
            keys = await self.described_all(rows)
        return query.page_of("keys", keys, total)

    async def described_all(self, rows: Sequence[KeyRow]) -> list[dict[str, Any]]:
        spent = await self._spent([row.spends_as for row in rows])
        return [described(row, spent.get(row.spends_as, 0)) for row in rows]

    async def _spent_by(self, row: KeyRow) -> int:
        return (await self._spent([row.spends_as])).get(row.spends_as, 0)

    async def _revoke(self, hashes: Sequence[str]) -> bool:
        told = True
        for key_hash in dict.fromkeys(hashes):
            told = await self._keys.revoke(key_hash) and told
        return told


def _is_virtual(reach: Reach) -> bool:
    """False for tokens of identity providers: they last minutes, what they make does not have to."""
    return reach.identity.key_name.startswith("sk-...")


def _refuse_outliving(reach: Reach, row: KeyRow) -> None:
    until = reach.identity.expires_at if _is_virtual(reach) else None
    if until is not None and (row.expires_at is None or row.expires_at > until):
        raise denied("duration", "the key you call with expires before")


def _refuse_wider(reach: Reach, row: KeyRow) -> None:
    """Who calls with a narrow key does not learn the secret of a wide one, though it may be the same user's."""
    caller = reach.identity
    if row.spends_as == caller.key_hash:
        return
    field = beyond(row, EVERY_BOUND, caller)
    if field is None and not set(caller.tags) <= set(row.tags):
        field = "tags"
    if field is None and caller.team_id is not None and row.team_id is None:
        field = "team_id"
    if field is not None:
        raise denied("key", f"the key you call with has less ({field})")


def _unknown() -> NotFoundError:
    return NotFoundError("'key' names no key of this gateway.", param="key", code="key_not_found")


def _changes(named: Mapping[str, Any], now: float, before: KeyRow | None) -> dict[str, Any]:
    """The named fields in `KeyRow`'s words; null becomes the value of a key that was never given one."""
    rest = dict(named)
    changes: dict[str, Any] = {}
    if "duration" in rest:
        duration = rest.pop("duration")
        changes["expires_at"] = None if duration is None else now + parse_duration(duration)
    if "auto_rotate" in rest or "rotation_interval" in rest:
        known = before.rotation_interval if before is not None else None
        interval = rest.pop("rotation_interval", known)
        if rest.pop("auto_rotate", interval is not None) is not True:
            interval = None
        elif interval is None:
            raise BadRequestError(
                "'auto_rotate' needs a 'rotation_interval'.", param="rotation_interval", code="missing_field"
            )
        changes["rotation_interval"] = interval
        if interval != known:
            changes["rotates_at"] = None if interval is None else now + parse_duration(interval)
    return changes | policy_changes(rest, now, before)


def described(row: KeyRow, spent_nano: int) -> dict[str, Any]:
    """A key as the answers show it: everything but the key itself. USD are exact JSON numbers, instants ISO 8601."""
    return {
        "token": row.key_hash,
        "token_id": row.key_hash,
        "spend_id": row.spends_as,
        "key_name": row.key_name,
        "key_alias": row.key_alias,
        "user_id": row.user_id,
        "team_id": row.team_id,
        "organization_id": row.organization_id,
        **shown_policy(row, spent_nano),
        "budget_id": row.budget_id,
        "blocked": row.blocked,
        "tags": list(row.tags),
        "aliases": row.model_aliases,
        "expires": shown_at(row.expires_at),
        "successor_token": row.successor_hash,
        "auto_rotate": row.rotation_interval is not None,
        "rotation_interval": row.rotation_interval,
        "key_rotation_at": shown_at(row.rotates_at),
        "last_active": shown_at(row.last_used_at),
    }
