"""Who may call what, and whose rows a caller reaches. Default-deny: an endpoint is for administrators unless its line
in the table says otherwise.

`endpoint.py` asks `judge` before a byte of the body is read; the handlers ask the `Reach`. Rule: what is not below a
caller does not exist for it – the answer is the one for an unknown id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sidecar.errors import PermissionDeniedError
from sidecar.identity.row import KeyRow, team_of_member
from sidecar.identity.table import PrincipalTable
from sidecar.identity.tree import ORGANIZATION_MEMBER
from sidecar.types import Identity

ADMIN, VIEWER = "proxy_admin", "proxy_admin_viewer"
USER, USER_VIEWER = "internal_user", "internal_user_viewer"
TEAM_ADMIN, ORG_ADMIN = "team_admin", "org_admin"
ANY_KEY = "any key"

NOBODY: frozenset[str] = frozenset()
TEAMS = frozenset({TEAM_ADMIN, ORG_ADMIN})
OWN = TEAMS | {USER}
READ = OWN | {USER_VIEWER}
MAX_ORGANIZATIONS = 100
MAX_TEAMS = 10_000


@dataclass(frozen=True, slots=True)
class Reach:
    """Whose rows a caller reads and changes. `teams` are those it administers."""

    hats: frozenset[str]
    identity: Identity
    sees_all: bool = False
    changes_all: bool = False
    teams: frozenset[str] = frozenset()
    organizations: frozenset[str] = frozenset()

    @property
    def user_id(self) -> str | None:
        """The user whose keys are the caller's own; `None` for one without rights of its own."""
        return self.identity.user_id if self.hats & {USER, USER_VIEWER} else None

    def administers(self, team_id: str | None) -> bool:
        return self.changes_all or (team_id is not None and team_id in self.teams)

    def leads(self, organization_id: str | None) -> bool:
        """True for administrators of this organization."""
        return self.changes_all or (organization_id is not None and organization_id in self.organizations)

    def sees_key(self, row: KeyRow) -> bool:
        if self.sees_all or self._owns(row) or row.spends_as == self.identity.key_hash:
            return True
        return row.team_id is not None and row.team_id in self.teams

    def changes_key(self, row: KeyRow) -> bool:
        return self.administers(row.team_id) or (USER in self.hats and self._owns(row))

    def takes_over_key(self, row: KeyRow) -> bool:
        """True if the caller may learn the secret of this key: it would then call as whose key it is."""
        return self.changes_all or (self.changes_key(row) and row.user_id in (None, self.identity.user_id))

    def _owns(self, row: KeyRow) -> bool:
        return row.user_id is not None and row.user_id == self.user_id

    def keys(self) -> dict[str, Sequence[str]] | None:
        """What a list of keys is cut down to, as `any_of` of `Rows.list`."""
        if self.sees_all:
            return None
        return {"user_id": [self.user_id] if self.user_id is not None else [], "team_id": sorted(self.teams)}


def hats_of(identity: Identity) -> frozenset[str]:
    """What a caller is: its role, and team admin if it is one in the team it calls for."""
    hats = {ANY_KEY} | ({str(identity.role)} if identity.role is not None else set())
    if _led_teams(identity):
        hats.add(TEAM_ADMIN)
    return frozenset(hats)


def _led_teams(identity: Identity) -> set[str]:
    """A viewer leads nothing, whatever a team says."""
    if identity.role in (VIEWER, USER_VIEWER):
        return set()
    return {team_of_member(p.principal_id) for p in identity.principals if p.kind == "member" and p.role == "admin"}


async def reach_of(identity: Identity, principals: PrincipalTable) -> Reach:
    """Raises `UnavailableError`."""
    hats = hats_of(identity)
    if ADMIN in hats:
        return Reach(hats, identity, sees_all=True, changes_all=True)
    teams = _led_teams(identity)
    organizations: set[str] = set()
    if identity.user_id is not None and USER in hats:
        led, _ = await principals.list(kind="member", user_id=identity.user_id, role="admin", limit=MAX_TEAMS)
        teams |= {row.team_id for row in led if row.team_id is not None and not row.blocked}
        found, _ = await principals.list(
            kind=ORGANIZATION_MEMBER, user_id=identity.user_id, role=ORG_ADMIN, limit=MAX_ORGANIZATIONS
        )
        organizations = {row.organization_id for row in found if row.organization_id is not None}
        if organizations:
            below, _ = await principals.list(
                kind="team", any_of={"organization_id": sorted(organizations)}, limit=MAX_TEAMS
            )
            teams |= {row.principal_id for row in below}
            hats |= {ORG_ADMIN}
        if teams:
            hats |= {TEAM_ADMIN}
    return Reach(
        hats, identity, sees_all=VIEWER in hats, teams=frozenset(teams), organizations=frozenset(organizations)
    )


def callers_of(method: str, others: frozenset[str]) -> list[str]:
    """Who may call an endpoint: administrators, for reading their viewers, and whom its line names."""
    return [ADMIN, *([VIEWER] if method == "GET" and VIEWER not in others else []), *sorted(others)]


def judge(reach: Reach, method: str, path: str, others: frozenset[str]) -> None:
    """`path` as declared, so `/key/{key}/regenerate`. Raises `PermissionDeniedError`."""
    allowed = callers_of(method, others)
    if not reach.hats.intersection(allowed):
        raise PermissionDeniedError(
            f"The gateway refused the call: {method} {path} takes the master key or a caller that is one of: "
            f"{', '.join(allowed)}.",
            code="role_not_allowed",
        )


def refuse_fields(named: Iterable[str], forbidden: Mapping[str, str]) -> None:
    """Raises `PermissionDeniedError` for the first field a caller may not set; `forbidden` says why."""
    for name in sorted(named):
        if name in forbidden:
            raise denied(name, forbidden[name])


def denied(param: str, why: str) -> PermissionDeniedError:
    return PermissionDeniedError(f"'{param}' is not yours to set so: {why}.", param=param, code="field_not_allowed")
