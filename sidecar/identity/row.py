"""What is stored of a key and of everybody above it, and the two things made of it: the `Identity` that calls, and the
bytes in the shared cache.

Instants are Unix seconds, money is nano-dollars. Rule: a stored key is never an administrator by itself – its role is
its user's, and only the master key is `proxy_admin` without one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast, get_args

import msgspec

from sidecar.types import Budget, Identity, Limits, Principal, Role

ROLES: frozenset[str] = frozenset(get_args(Role))


class BudgetCap(msgspec.Struct, frozen=True, kw_only=True):
    """One further budget window."""

    max_budget_nano: int
    budget_duration: str | None = None
    budget_anchor_at: float = 0.0


class ModelLimit(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one model on one key or principal."""

    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What a key and every principal may carry. `models` empty admits all; what is `None` here and set in the budget
    named by `budget_id` counts from there."""

    models: tuple[str, ...] = ()
    max_budget_nano: int | None = None
    budget_duration: str | None = None
    budget_anchor_at: float = 0.0
    budget_windows: tuple[BudgetCap, ...] = ()
    soft_budget_nano: int | None = None
    temp_budget_increase_nano: int | None = None
    temp_budget_expiry_at: float | None = None
    rpm_limit: int | None = None
    tpm_limit: int | None = None
    max_parallel_requests: int | None = None
    model_limits: Mapping[str, ModelLimit] = {}
    model_aliases: Mapping[str, str] = {}
    budget_id: str | None = None
    metadata: Mapping[str, Any] = {}
    blocked: bool = False
    created_at: float = 0.0
    updated_at: float = 0.0

    def budgets(self, shared: Policy | None = None) -> tuple[Budget, ...]:
        """All windows, an increase for a time on each of them."""
        source = shared if self.max_budget_nano is None and shared is not None else self
        raised = self if self.temp_budget_increase_nano is not None or shared is None else shared
        extra = raised.temp_budget_increase_nano or 0
        until = raised.temp_budget_expiry_at or 0.0
        found = []
        if source.max_budget_nano is not None:
            found.append(Budget(source.max_budget_nano, source.budget_duration, source.budget_anchor_at, extra, until))
        windows = self.budget_windows or (shared.budget_windows if shared is not None else ())
        found += [Budget(w.max_budget_nano, w.budget_duration, w.budget_anchor_at, extra, until) for w in windows]
        return tuple(found)

    def limits(self, shared: Policy | None = None) -> Limits:
        if shared is None:
            return Limits(rpm=self.rpm_limit, tpm=self.tpm_limit, concurrency=self.max_parallel_requests)
        return Limits(
            rpm=_first(self.rpm_limit, shared.rpm_limit),
            tpm=_first(self.tpm_limit, shared.tpm_limit),
            concurrency=_first(self.max_parallel_requests, shared.max_parallel_requests),
        )

    def limits_by_model(self, shared: Policy | None = None) -> dict[str, Limits]:
        limits = {**(shared.model_limits if shared is not None else {}), **self.model_limits}
        return {name: Limits(rpm=m.rpm, tpm=m.tpm, concurrency=m.concurrency) for name, m in limits.items()}


def _first(own: int | None, shared: int | None) -> int | None:
    return shared if own is None else own


class PrincipalRow(Policy, frozen=True, kw_only=True):
    """A row of the `principals` table. A member's id is `member_id(team, user)`; `role` is a user's `Role`, or a
    member's `admin` or `user`. Of kind `budget`: limits and budgets that others name by `budget_id`."""

    kind: str
    principal_id: str
    alias: str | None = None
    email: str | None = None
    role: str | None = None
    organization_id: str | None = None
    team_id: str | None = None
    user_id: str | None = None

    def principal(self, shared: Policy | None = None) -> Principal:
        return Principal(
            kind=self.kind,
            principal_id=self.principal_id,
            models=self.models or (shared.models if shared is not None else ()),
            limits=self.limits(shared),
            model_limits=self.limits_by_model(shared),
            budgets=self.budgets(shared),
            is_blocked=self.blocked,
            role=self.role,
            aliases=self.model_aliases,
            stores_prompts=self.metadata.get("store_prompts") is not False,
        )


def aliases_of(own: Mapping[str, str], above: Iterable[Principal]) -> Mapping[str, str]:
    """A caller's names of models: its own before those of who stands above it."""
    found: dict[str, str] = {}
    for principal in above:
        if principal.aliases:
            found = {**principal.aliases, **found}
    return {**found, **own} if found else own


def member_id(team_id: str, user_id: str) -> str:
    """No other pair is written like this."""
    return f"{len(team_id)}:{team_id}:{user_id}"


def team_of_member(principal_id: str) -> str:
    """The team in a `member_id`."""
    length, _, rest = principal_id.partition(":")
    return rest[: int(length)]


class KeyRow(Policy, frozen=True, kw_only=True):
    """A row of the `keys` table in Python's words. `successor_hash`: regenerated; until `expires_at` both work.
    `key_id` stays when a key is regenerated (`None`: it never was, so it is the hash): spend stands under it."""

    key_hash: str
    key_id: str | None = None
    key_name: str = ""
    key_alias: str | None = None
    user_id: str | None = None
    team_id: str | None = None
    organization_id: str | None = None
    tags: tuple[str, ...] = ()
    expires_at: float | None = None
    successor_hash: str | None = None
    rotation_interval: str | None = None
    rotates_at: float | None = None
    last_used_at: float | None = None

    @property
    def spends_as(self) -> str:
        """The hash under which spend rows and counters know it."""
        return self.key_id or self.key_hash

    def identity(
        self, above: tuple[Principal, ...] = (), shared: Policy | None = None, organization_id: str | None = None
    ) -> Identity:
        """Who calls with this key. `above` are its principals, `shared` the budget it names, `organization_id` its
        team's organization."""
        role = next((p.role for p in above if p.kind == "user"), None)
        return Identity(
            key_hash=self.spends_as,
            key_alias=self.key_alias,
            key_name=self.key_name,
            user_id=self.user_id,
            team_id=self.team_id,
            organization_id=organization_id if self.organization_id is None else self.organization_id,
            models=self.models or (shared.models if shared is not None else ()),
            limits=self.limits(shared),
            model_limits=self.limits_by_model(shared),
            budgets=self.budgets(shared),
            principals=above,
            tags=self.tags,
            metadata=self.metadata,
            expires_at=self.expires_at,
            is_blocked=self.blocked,
            role=cast(Role, role) if role in ROLES else None,
            aliases=aliases_of(self.model_aliases, above),
        )


class StoredKey(msgspec.Struct, frozen=True):
    """A key with the rows above it (team, member, user, organization) and the budgets they or it name, by id."""

    row: KeyRow
    above: tuple[PrincipalRow, ...] = ()
    budgets: Mapping[str, PrincipalRow] = {}

    def principals(self) -> tuple[Principal, ...]:
        return tuple(row.principal(self._shared(row)) for row in self.above)

    def identity(self, above: tuple[Principal, ...]) -> Identity:
        return self.row.identity(above, self._shared(self.row), self._teams_organization)

    def named(self) -> tuple[tuple[str, str], ...]:
        """Kind and id of everybody a change of whom may change this, rows that do not exist (yet) included."""
        row = self.row
        found = [("budget", of.budget_id) for of in (row, *self.above) if of.budget_id is not None]
        if row.team_id is not None:
            found.append(("team", row.team_id))
            if row.user_id is not None:
                found.append(("member", member_id(row.team_id, row.user_id)))
        if row.user_id is not None:
            found.append(("user", row.user_id))
        organization_id = self._teams_organization if row.organization_id is None else row.organization_id
        if organization_id is not None:
            found.append(("organization", organization_id))
        return tuple(dict.fromkeys(found))

    @property
    def _teams_organization(self) -> str | None:
        return next((p.organization_id for p in self.above if p.kind == "team"), None)

    def _shared(self, row: Policy) -> PrincipalRow | None:
        return self.budgets.get(row.budget_id) if row.budget_id is not None else None


class CachedRow(msgspec.Struct, frozen=True):
    """A key with the instant its reading from the database began – every age is counted from there – and the last
    change its reader knew of."""

    loaded_at: float
    seq: int
    stored: StoredKey


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
    return cached if cached.stored.row.key_hash == key_hash else None
