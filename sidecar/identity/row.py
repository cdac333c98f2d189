"""One stored virtual key, and the two things made of it: the `Identity` that calls, and the bytes in the shared cache.

Instants are Unix seconds, money is nano-dollars. Rule: a stored key is never an administrator – `is_admin` belongs to
the master key alone and is no field here, so neither the database nor the shared cache can grant it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from sidecar.types import Budget, Identity, Limits


class KeyRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the `keys` table in Python's words. `models` empty admits all models."""

    key_hash: str
    key_name: str = ""
    key_alias: str | None = None
    models: tuple[str, ...] = ()
    max_budget_nano: int | None = None
    budget_duration: str | None = None
    budget_anchor_at: float = 0.0
    rpm_limit: int | None = None
    tpm_limit: int | None = None
    max_parallel_requests: int | None = None
    user_id: str | None = None
    team_id: str | None = None
    organization_id: str | None = None
    metadata: Mapping[str, Any] = {}
    expires_at: float | None = None
    blocked: bool = False
    created_at: float = 0.0
    updated_at: float = 0.0

    def budgets(self) -> tuple[Budget, ...]:
        if self.max_budget_nano is None:
            return ()
        return (Budget(self.max_budget_nano, self.budget_duration, self.budget_anchor_at),)

    def identity(self) -> Identity:
        """Who calls with this key."""
        return Identity(
            key_hash=self.key_hash,
            key_alias=self.key_alias,
            key_name=self.key_name,
            user_id=self.user_id,
            team_id=self.team_id,
            organization_id=self.organization_id,
            models=self.models,
            limits=Limits(rpm=self.rpm_limit, tpm=self.tpm_limit, concurrency=self.max_parallel_requests),
            budgets=self.budgets(),
            metadata=self.metadata,
            expires_at=self.expires_at,
            is_blocked=self.blocked,
        )


class CachedRow(msgspec.Struct, frozen=True):
    """A row with the instant its reading from the database began: every age is counted from there."""

    loaded_at: float
    row: KeyRow


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(CachedRow)


def dump(cached: CachedRow) -> bytes:
    return _encoder.encode(cached)


def load(data: bytes, *, key_hash: str) -> CachedRow | None:
    """What `dump` wrote, or `None` for anything else, a row of another key included."""
    try:
        cached = _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError):
        return None
    return cached if cached.row.key_hash == key_hash else None
