"""Who calls with a token of an identity provider: its claims, and the rows of user, team and organization they name.

Neighbours: `oidc.tokens` (believes tokens), `table.PrincipalTable` (the rows), `keys` (virtual keys, which come first).
Rules: what the token and the rows say is joined to the narrower – except roles, of which the mightier counts; rows that
do not exist restrict nothing, and are made only if the issuer's map says so; a database that does not answer is 503.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Protocol, cast

from sidecar.errors import AuthenticationError, ConflictError, PermissionDeniedError, UnavailableError
from sidecar.identity.deadline import Deadline
from sidecar.identity.row import ROLES, PrincipalRow, aliases_of, member_id
from sidecar.identity.tokens import is_plausible
from sidecar.types import NO_MODELS, Identity, Principal, Role

if TYPE_CHECKING:
    from sidecar.identity.keys import Keys
    from sidecar.identity.oidc.claims import Claims
    from sidecar.identity.oidc.tokens import TokenIssuers

_ROLE: Mapping[str, Role] = {
    "admin": "proxy_admin",
    "admin_viewer": "proxy_admin_viewer",
    "team_admin": "internal_user",
    "internal_user": "internal_user",
}
_MIGHT: tuple[Role, ...] = ("proxy_admin", "proxy_admin_viewer", "internal_user", "internal_user_viewer")


class PrincipalStore(Protocol):
    """What this needs of `table.PrincipalTable`; raises `UnavailableError`, `create` also `ConflictError`."""

    async def find(self, wanted: Sequence[tuple[str, str]]) -> Sequence[PrincipalRow]: ...

    async def create(self, row: PrincipalRow, *, by: str = "") -> None: ...


class Credentials:
    """Virtual keys first, then tokens of identity providers. What `AuthMiddleware` and the management API ask."""

    def __init__(self, keys: Keys, subjects: Subjects | None = None) -> None:
        self._keys = keys
        self._subjects = subjects

    def cached(self, token: str) -> Identity | None:
        found = self._keys.cached(token)
        if found is None and self._subjects is not None:
            found = self._subjects.cached(token)
        return found

    async def lookup(self, token: str) -> Identity:
        """Raises `AuthenticationError`, `PermissionDeniedError`, `UnavailableError`."""
        found = self._keys.cached(token)
        if found is not None:
            return found
        if self._subjects is not None and token and not is_plausible(token):
            subject = await self._subjects.lookup(token)
            if subject is not None:
                return subject
        return await self._keys.lookup(token)


class _Made:
    __slots__ = ("epoch", "identity", "made_at")

    def __init__(self, identity: Identity, epoch: int, made_at: float) -> None:
        self.identity = identity
        self.epoch = epoch
        self.made_at = made_at


class Subjects:
    """Identities of tokens. A `feed.Follower`: kept with the claims they come from as long as no row changes."""

    def __init__(
        self,
        issuers: TokenIssuers,
        store: PrincipalStore,
        *,
        clock: Callable[[], float],
        fresh_s: float = 1.0,
        hard_age_s: float = 30.0,
        deadline_s: float = 2.0,
    ) -> None:
        self._issuers = issuers
        self._store = store
        self._clock = clock
        self._fresh_s = fresh_s
        self._hard_age_s = hard_age_s
        self._deadline = Deadline(deadline_s)
        self._epoch = 0
        self._fed_until = 0.0

    def cached(self, token: str) -> Identity | None:
        claims = self._issuers.cached(token)
        return None if claims is None else self._fresh(claims)

    async def lookup(self, token: str) -> Identity | None:
        """`None`: no token of a configured issuer."""
        claims = self._issuers.cached(token) or await self._issuers.identify(token)
        if claims is None:
            return None
        found = self._fresh(claims)
        if found is not None:
            return found
        epoch, now = self._epoch, self._clock()
        try:
            identity = await self._deadline.run(self._resolve(claims))
        except (UnavailableError, TimeoutError) as error:
            made: _Made | None = claims.cache.get(self)
            if made is not None and made.epoch == self._epoch and now < made.made_at + self._hard_age_s:
                return made.identity
            raise UnavailableError(
                "The gateway cannot look up who the token names: its database does not answer. Try again shortly.",
                code="key_store_unavailable",
                retry_after_s=1.0,
            ) from error
        before: _Made | None = claims.cache.get(self)
        if before is not None and before.identity == identity:
            identity = before.identity  # unchanged: what others derived from it stays valid
        claims.cache[self] = _Made(identity, epoch, now)
        return identity

    def _fresh(self, claims: Claims) -> Identity | None:
        made: _Made | None = claims.cache.get(self)
        if made is None or made.epoch != self._epoch:
            return None
        now = self._clock()
        if not made.made_at <= now < made.made_at + self._hard_age_s:
            return None
        return made.identity if now < made.made_at + self._fresh_s or now < self._fed_until else None

    async def _resolve(self, claims: Claims) -> Identity:
        wanted = _named(claims)
        rows = {(row.kind, row.principal_id): row for row in await self._store.find(wanted)}
        await self._make_missing(claims, rows)
        # The first of its teams that exists; else the first it names, which then restricts nothing.
        team = next((t for t in claims.team_ids if ("team", t) in rows), claims.team_id)
        organization = claims.organization_id
        if organization is None and team is not None and ("team", team) in rows:
            organization = rows["team", team].organization_id
            if organization is not None and ("organization", organization) not in rows:
                rows |= {(r.kind, r.principal_id): r for r in await self._store.find([("organization", organization)])}
        above: list[Principal] = []
        names = [("team", team), ("user", claims.user_id), ("organization", organization)]
        if team is not None and claims.user_id is not None:
            names.insert(1, ("member", member_id(team, claims.user_id)))
        for kind, name in names:
            row = rows.get((kind, name)) if name is not None else None
            if row is None:
                continue
            if row.blocked:
                raise PermissionDeniedError(
                    f"The gateway refused the request: the {kind} of this token is blocked. Ask your administrator.",
                    code=f"{kind}_blocked",
                )
            shared = rows.get(("budget", row.budget_id)) if row.budget_id is not None else None
            above.append(row.principal(shared))
        return Identity(
            key_hash=sha256(f"token\0{claims.issuer}\0{claims.subject}".encode()).hexdigest(),
            key_alias=claims.subject,
            key_name=f"{claims.issuer}:{claims.subject}",
            user_id=claims.user_id,
            team_id=team,
            organization_id=organization,
            end_user_id=claims.end_user_id,
            models=() if claims.models is None else claims.models or (NO_MODELS,),
            principals=tuple(_administering(p, claims, team) for p in above),
            metadata=dict(claims.raw),
            expires_at=claims.expires_at,
            aliases=aliases_of({}, above),
            role=_mightier(_ROLE[claims.role], next((p.role for p in above if p.kind == "user"), None)),
        )

    async def _make_missing(self, claims: Claims, rows: dict[tuple[str, str], PrincipalRow]) -> None:
        now = self._clock()
        wanted = (
            ("organization", claims.organization_id, claims.upsert_organization),
            ("team", claims.team_id, claims.upsert_team and not any(("team", t) in rows for t in claims.team_ids)),
            ("user", claims.user_id, claims.upsert_user),
        )
        for kind, name, is_made in wanted:
            if name is None or not is_made or (kind, name) in rows:
                continue
            row = PrincipalRow(
                kind=kind,
                principal_id=name,
                email=claims.email if kind == "user" else None,
                role=_ROLE["internal_user"] if kind == "user" else None,
                organization_id=claims.organization_id if kind == "team" else None,
                budget_anchor_at=now,
                created_at=now,
                updated_at=now,
            )
            try:
                await self._store.create(row, by=f"issuer {claims.issuer}")
                rows[kind, name] = row
            except ConflictError:  # made by somebody else meanwhile
                rows |= {(r.kind, r.principal_id): r for r in await self._store.find([(kind, name)])}

    # feed.Follower

    def changed(self, seq: int, kind: str, subject_id: str) -> None:
        if kind not in ("key", "model", "end_user", "tag"):
            self._epoch += 1

    def forget_all(self, seq: int) -> None:
        self._epoch += 1

    def confirm(self, at: float) -> None:
        self._fed_until = at + self._fresh_s

    async def aclose(self) -> None:
        await self._issuers.aclose()


def _named(claims: Claims) -> list[tuple[str, str]]:
    wanted = [("team", team) for team in claims.team_ids]
    if claims.user_id is not None:
        wanted.append(("user", claims.user_id))
        wanted += [("member", member_id(team, claims.user_id)) for team in claims.team_ids]
    if claims.organization_id is not None:
        wanted.append(("organization", claims.organization_id))
    if not wanted:
        raise AuthenticationError("The gateway refused the token: it names nobody.", code="invalid_token")
    return wanted


def _administering(principal: Principal, claims: Claims, team: str | None) -> Principal:
    """A token's `team_admin` administers the team it calls for."""
    if claims.role != "team_admin" or principal.kind != "member" or principal.role == "admin" or team is None:
        return principal
    from dataclasses import replace

    return replace(principal, role="admin")


def _mightier(token: Role, stored: str | None) -> Role:
    if stored not in ROLES:
        return token
    return min(token, cast(Role, stored), key=_MIGHT.index)
