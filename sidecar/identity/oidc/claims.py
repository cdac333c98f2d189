"""What the claims of a genuine token mean here: who, in which teams, as what, calling which models.

Pure. Neighbours: `verify.py` and `introspect.py` hand in claims they believe; the control plane resolves `Claims` to
an `Identity`, making user and team if the map says so. Rule: what is configured and missing gives less, never more.

A path is names joined by dots; a dot or backslash inside a name is written with a backslash: `realm_access.roles`,
`kubernetes\\.io.namespace`, `https://example\\.com/teams`. Where a path meets a list it goes on in each element.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from sidecar.errors import AuthenticationError, PermissionDeniedError

Role = Literal["admin", "admin_viewer", "team_admin", "internal_user"]
ROLES: tuple[Role, ...] = ("admin", "admin_viewer", "team_admin", "internal_user")
"""The mightiest first: whose claims map to several has the first of them."""

MAX_TEXT = 256
MAX_VALUES = 512
MAX_SCOPES = 65_536
"""The length of a list of scopes in one text (RFC 8693 §4.2), a token's own limit apart."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """A claim that has to have one of `values`: the text itself, or one with a `*` at its start or end."""

    path: str
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        split_path(self.path)
        if not self.values or "" in self.values:
            raise ValueError(f"'{self.path}' is required, but no value is given")


@dataclass(frozen=True, slots=True)
class ClaimMap:
    """Where in the claims to look. Of several paths for one value the first that is there counts; lists are joined.

    models: paths of lists of models; with paths and nothing there, no model may be called. role_map: a value of
    `roles` → a role of ours; scope_map: a scope → a role. default_role: for a token none of whose values is mapped;
    `None` refuses it. Prefixes keep the ids of one issuer apart from those of another. upsert_*: the control plane may
    make what does not exist yet. raw: claims kept as they are, for metadata and logs.
    """

    user_id: tuple[str, ...] = ("sub",)
    email: tuple[str, ...] = ("email",)
    end_user_id: tuple[str, ...] = ()
    team_ids: tuple[str, ...] = ()
    organization_id: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ("scope", "scp")
    models: tuple[str, ...] = ()
    role_map: Mapping[str, Role] = field(default_factory=dict)
    scope_map: Mapping[str, Role] = field(default_factory=dict)
    default_role: Role | None = "internal_user"
    require: tuple[Requirement, ...] = ()
    raw: tuple[str, ...] = ()
    user_prefix: str = ""
    team_prefix: str = ""
    organization_prefix: str = ""
    upsert_user: bool = False
    upsert_team: bool = False
    upsert_organization: bool = False

    def __post_init__(self) -> None:
        for paths in (self.user_id, self.email, self.end_user_id, self.team_ids, self.organization_id, self.roles,
                      self.scopes, self.models, self.raw):  # fmt: skip
            for path in paths:
                split_path(path)
        wrong = ({*self.role_map.values(), *self.scope_map.values(), self.default_role} - {None}) - set(ROLES)
        if wrong:
            raise ValueError(f"no such role: {', '.join(map(repr, wrong))}; there are {', '.join(ROLES)}")


@dataclass(frozen=True, slots=True)
class Claims:
    """Who a genuine token names, in our words. `issuer` is the configured name.

    models: `None` says nothing, and `()` is no model at all – unlike `Identity.models`, where empty means every one.
    team_ids: in the token's order; which of them a call counts for is the control plane's choice.
    """

    issuer: str
    subject: str
    user_id: str | None = None
    email: str | None = None
    end_user_id: str | None = None
    team_ids: tuple[str, ...] = ()
    organization_id: str | None = None
    role: Role = "internal_user"
    roles: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    models: tuple[str, ...] | None = None
    expires_at: float | None = None
    raw: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    upsert_user: bool = False
    upsert_team: bool = False
    upsert_organization: bool = False
    cache: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """What other layers derived; lives exactly as long as these claims are believed without a new check."""

    @property
    def team_id(self) -> str | None:
        return self.team_ids[0] if self.team_ids else None


def map_claims(found: Mapping[str, Any], how: ClaimMap, *, issuer: str, expires_at: float | None) -> Claims:
    """Claims in our words. Raises `AuthenticationError` (a claim that cannot be an id) and `PermissionDeniedError`
    (genuine, but not for here)."""
    # Whoever may write an address they do not own into their profile would be its owner here.
    distrusted = how.email if found.get("email_verified", True) not in (True, "true") else ()
    for needed in how.require:
        texts = () if needed.path in distrusted else _texts(found, needed.path, issuer)
        if not any(_is_one_of(value, needed.values) for value in texts):
            raise _not_permitted(issuer, f"its claim '{needed.path}' is not one that may call")
    user_id = _first(found, [path for path in how.user_id if path not in distrusted], issuer)
    email = None if distrusted else _first(found, how.email, issuer)
    end_user_id = _first(found, how.end_user_id, issuer)
    organization_id = _first(found, how.organization_id, issuer)
    team_ids = _all(found, how.team_ids, issuer)
    if user_id is None and not team_ids and organization_id is None:
        raise _not_permitted(issuer, "it names no user, team or organization")
    listed = _all(found, how.scopes, issuer, limit=MAX_SCOPES)
    scopes = tuple(dict.fromkeys(word for text in listed for word in text.split(" ") if word))
    roles = _all(found, how.roles, issuer)
    subject = _first(found, ("sub", "client_id", "username"), issuer) or user_id or ""
    return Claims(
        issuer=issuer,
        subject=subject,
        user_id=_prefixed(how.user_prefix, user_id),
        email=email,
        end_user_id=end_user_id,
        team_ids=tuple(how.team_prefix + team for team in team_ids),
        organization_id=_prefixed(how.organization_prefix, organization_id),
        role=_role(roles, scopes, how, issuer),
        roles=roles,
        scopes=scopes,
        models=_all(found, how.models, issuer) if how.models else None,
        expires_at=expires_at,
        raw=MappingProxyType({path: kept for path in how.raw if (kept := _kept(found, path)) is not None}),
        upsert_user=how.upsert_user,
        upsert_team=how.upsert_team,
        upsert_organization=how.upsert_organization,
    )


def split_path(path: str) -> tuple[str, ...]:
    """The names of a path. Raises `ValueError` for an empty name or a backslash before anything but `.` and `\\`."""
    names, name, rest = [], "", iter(path)
    for letter in rest:
        if letter == "\\":
            escaped = next(rest, "")
            if escaped not in (".", "\\"):
                raise ValueError(f"path '{path}': a backslash stands only before a dot or another backslash")
            name += escaped
        elif letter == ".":
            names.append(name)
            name = ""
        else:
            name += letter
    names.append(name)
    if not all(names):
        raise ValueError(f"path '{path}' has an empty name")
    return tuple(names)


def values_at(found: Any, path: str) -> Iterator[Any]:
    """Everything at a path that is not `null`; a list at its end gives its elements."""
    return _walk(found, split_path(path))


def _walk(found: Any, names: tuple[str, ...]) -> Iterator[Any]:
    if isinstance(found, list):
        for element in found:
            yield from _walk(element, names)
    elif not names:
        if found is not None:
            yield found
    elif isinstance(found, Mapping) and names[0] in found:
        yield from _walk(found[names[0]], names[1:])


def _texts(found: Mapping[str, Any], path: str, issuer: str, limit: int = MAX_TEXT) -> Iterator[str]:
    for value in values_at(found, path):
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
            yield str(value)
        elif isinstance(value, str) and len(value) <= limit and value.isprintable() and value.strip() == value:
            if value:
                yield value
        elif isinstance(value, bool):
            yield "true" if value else "false"
        else:
            raise AuthenticationError(
                f"The gateway refused the token of '{issuer}': its claim '{path}' is not a short printable text.",
                code="invalid_token",
            )


def _first(found: Mapping[str, Any], paths: tuple[str, ...] | list[str], issuer: str) -> str | None:
    return next((text for path in paths for text in _texts(found, path, issuer)), None)


def _all(found: Mapping[str, Any], paths: tuple[str, ...], issuer: str, limit: int = MAX_TEXT) -> tuple[str, ...]:
    texts = tuple(dict.fromkeys(text for path in paths for text in _texts(found, path, issuer, limit)))
    if len(texts) > MAX_VALUES:
        raise AuthenticationError(
            f"The gateway refused the token of '{issuer}': its claim '{paths[0]}' has more than {MAX_VALUES} values.",
            code="invalid_token",
        )
    return texts


def _role(roles: tuple[str, ...], scopes: tuple[str, ...], how: ClaimMap, issuer: str) -> Role:
    mapped = {how.role_map[name] for name in roles if name in how.role_map}
    mapped |= {how.scope_map[name] for name in scopes if name in how.scope_map}
    role = next((role for role in ROLES if role in mapped), how.default_role)
    if role is None:
        raise _not_permitted(issuer, "none of its roles may call")
    return role


def _kept(found: Mapping[str, Any], path: str) -> Any:
    kept = list(values_at(found, path))
    return kept[0] if len(kept) == 1 else kept or None


def _prefixed(prefix: str, text: str | None) -> str | None:
    return None if text is None else prefix + text


def _is_one_of(text: str, patterns: tuple[str, ...]) -> bool:
    for pattern in patterns:
        if text == pattern or pattern == "*":
            return True
        if pattern.endswith("*") and text.startswith(pattern[:-1]):
            return True
        if pattern.startswith("*") and text.endswith(pattern[1:]):
            return True
    return False


def _not_permitted(issuer: str, why: str) -> PermissionDeniedError:
    return PermissionDeniedError(
        f"The gateway refused the token of '{issuer}': {why}. Ask your administrator.", code="token_not_permitted"
    )
