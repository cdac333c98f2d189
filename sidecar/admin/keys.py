"""`/key/*`: generate, update, delete, block, unblock, info, list. Names and fields as users of such gateways know them.

`bodies.py` validates, `identity.table` stores. Rules: the key itself is in the answer of `generate` and nowhere else;
after each change `keys.revoke` tells the caches, also when the change may have failed half-way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Protocol

from sidecar.admin.bodies import DeleteKeys, GenerateKey, KeyFields, ListKeys, NameKey, UpdateKey, validated
from sidecar.admin.endpoint import Call
from sidecar.errors import BadRequestError, NotFoundError, UnavailableError
from sidecar.identity.keys import Keys
from sidecar.identity.row import KeyRow
from sidecar.identity.table import KeyTable
from sidecar.identity.tokens import hash_key, mask_key, new_key
from sidecar.limits.windows import parse_duration
from sidecar.types import Identity, format_usd, usd_to_nano


class Seeder(Protocol):
    """What this API needs of `limits.admission.Admission`."""

    async def seed_identity(self, identity: Identity) -> None: ...


SumByKey = Callable[[list[str]], Awaitable[Mapping[str, int]]]


class KeyAdmin:
    """The handlers of `/key/*`. `spent` gives the lifetime nano-dollars of some keys, by hash."""

    def __init__(
        self,
        *,
        keys: Keys,
        table: KeyTable,
        spent: SumByKey,
        admission: Seeder | None,
        clock: Callable[[], float],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._keys = keys
        self._table = table
        self._spent = spent
        self._admission = admission
        self._clock = clock
        self._random_bytes = random_bytes

    async def generate(self, call: Call) -> Mapping[str, Any]:
        body = validated(GenerateKey, call.body)
        now = self._now()
        token = new_key(self._random_bytes)
        given = {name: value for name, value in _changes(body, now).items() if value is not None}
        row = KeyRow(
            **{
                "budget_anchor_at": now,
                **given,
                "key_hash": hash_key(token),
                "key_name": mask_key(token),
                "created_at": now,
                "updated_at": now,
            }
        )
        await self._table.create(row, by=call.actor)
        self._keys.forget(row.key_hash)
        try:
            await self._seed(row)
        except UnavailableError:
            # The key exists and has spent nothing; without this answer nobody would ever learn it.
            pass
        return {"key": token, **described(row, 0)}

    async def update(self, call: Call) -> Mapping[str, Any]:
        body = validated(UpdateKey, call.body)
        now = self._now()
        changes = _changes(body, now)
        if "budget_duration" in changes:
            changes["budget_anchor_at"] = now
        return await self._change(call, body.key, changes | {"updated_at": now})

    async def block(self, call: Call) -> Mapping[str, Any]:
        return await self._set_blocked(call, is_blocked=True)

    async def unblock(self, call: Call) -> Mapping[str, Any]:
        return await self._set_blocked(call, is_blocked=False)

    async def delete(self, call: Call) -> Mapping[str, Any]:
        body = validated(DeleteKeys, call.body)
        if not body.keys and not body.key_aliases:
            raise BadRequestError("'keys' or 'key_aliases' has to name at least one key.", param="keys")
        found = await self._table.find(hashes=body.keys, aliases=body.key_aliases)
        hashes = {row.key_hash for row in found}
        aliases = {row.key_alias for row in found}
        for field, wanted, known in (("keys", body.keys, hashes), ("key_aliases", body.key_aliases, aliases)):
            for index, name in enumerate(wanted):
                if name not in known:
                    raise NotFoundError(
                        f"'{field}[{index}]' names no key; nothing was deleted.", param=field, code="key_not_found"
                    )
        told = True
        try:
            gone = await self._table.delete([(key_hash,) for key_hash in hashes], by=call.actor)
        finally:
            for key_hash in hashes:
                told = await self._keys.revoke(key_hash) and told
        if not gone:
            raise NotFoundError("A key was deleted meanwhile; nothing was deleted.", param="keys", code="key_not_found")
        return {"deleted_keys": [row.key_hash for row in gone], "is_effective_everywhere": told}

    async def info(self, call: Call) -> Mapping[str, Any]:
        query = validated(NameKey, call.query)
        row = await self._table.get(query.key)
        if row is None:
            raise _unknown()
        spent = await self._spent([row.key_hash])
        return {"key": row.key_hash, "info": described(row, spent.get(row.key_hash, 0))}

    async def list(self, call: Call) -> Mapping[str, Any]:
        query = validated(ListKeys, call.query)
        rows, total = await self._table.list(
            limit=query.size,
            offset=(query.page - 1) * query.size,
            key_hash=query.key,
            key_alias=query.key_alias,
            user_id=query.user_id,
            team_id=query.team_id,
            organization_id=query.organization_id,
            blocked=query.blocked,
        )
        keys: list[Any] = [row.key_hash for row in rows]
        if query.return_full_object:
            spent = await self._spent(keys)
            keys = [described(row, spent.get(row.key_hash, 0)) for row in rows]
        return {
            "keys": keys,
            "total_count": total,
            "current_page": query.page,
            "total_pages": -(-total // query.size),
        }

    async def _set_blocked(self, call: Call, *, is_blocked: bool) -> Mapping[str, Any]:
        body = validated(NameKey, call.body)
        return await self._change(
            call,
            body.key,
            {"blocked": is_blocked, "updated_at": self._now()},
            action="block" if is_blocked else "unblock",
        )

    async def _change(
        self, call: Call, key_hash: str, changes: Mapping[str, Any], action: str = "update"
    ) -> Mapping[str, Any]:
        told = False
        try:
            row = await self._table.update(key_hash, changes=changes, by=call.actor, action=action)
        finally:
            told = await self._keys.revoke(key_hash)
        if row is None:
            raise _unknown()
        await self._seed(row)
        spent = await self._spent([row.key_hash])
        return {**described(row, spent.get(row.key_hash, 0)), "is_effective_everywhere": told}

    def _now(self) -> float:
        # As the database keeps it: an anchor that changed by a fraction would be another budget window.
        return round(self._clock() * 1_000_000) / 1_000_000

    async def _seed(self, row: KeyRow) -> None:
        if self._admission is not None and row.max_budget_nano is not None:
            await self._admission.seed_identity(row.identity())


def _unknown() -> NotFoundError:
    return NotFoundError("'key' names no key of this gateway.", param="key", code="key_not_found")


def _changes(body: KeyFields, now: float) -> dict[str, Any]:
    """The named fields in `KeyRow`'s words; null becomes the value of a key that was never given one."""
    changes: dict[str, Any] = body.model_dump(include=body.model_fields_set - {"key"})
    if "max_budget" in changes:
        amount: Decimal | None = changes.pop("max_budget")
        changes["max_budget_nano"] = None if amount is None else usd_to_nano(amount)
    if "duration" in changes:
        duration: str | None = changes.pop("duration")
        changes["expires_at"] = None if duration is None else now + parse_duration(duration)
    if "models" in changes:
        changes["models"] = tuple(changes["models"] or ())
    if "metadata" in changes:
        changes["metadata"] = changes["metadata"] or {}
    if "blocked" in changes:
        changes["blocked"] = bool(changes["blocked"])
    return changes


def described(row: KeyRow, spent_nano: int) -> dict[str, Any]:
    """A key as the answers show it: everything but the key itself. USD are exact JSON numbers, instants ISO 8601."""
    return {
        "token": row.key_hash,
        "token_id": row.key_hash,
        "key_name": row.key_name,
        "key_alias": row.key_alias,
        "models": list(row.models),
        "spend": usd(spent_nano),
        "max_budget": None if row.max_budget_nano is None else usd(row.max_budget_nano),
        "budget_duration": row.budget_duration,
        "rpm_limit": row.rpm_limit,
        "tpm_limit": row.tpm_limit,
        "max_parallel_requests": row.max_parallel_requests,
        "user_id": row.user_id,
        "team_id": row.team_id,
        "organization_id": row.organization_id,
        "metadata": row.metadata,
        "blocked": row.blocked,
        "expires": _shown_at(row.expires_at),
        "created_at": _shown_at(row.created_at),
        "updated_at": _shown_at(row.updated_at),
    }


def usd(nano: int) -> Decimal:
    """Exact, and without an exponent when written as JSON."""
    return Decimal(format_usd(nano))


def _shown_at(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
