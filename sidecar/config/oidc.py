"""Identity providers in sidecar.yaml: `auth.issuers` and `auth.introspection`, turned into `identity.oidc` values.

The values check themselves; what they refuse becomes an error of the file. Nothing of `identity.oidc` is imported where
no provider is configured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from sidecar.config.fields import FilePath, Name, Seconds, SecretField, Strict, number

if TYPE_CHECKING:
    from sidecar.identity.oidc.tokens import TokenIssuers

_Role = Literal["admin", "admin_viewer", "team_admin", "internal_user"]


class ClaimSettings(Strict):
    user_id: list[str] | str | None = None
    email: list[str] | str | None = None
    end_user_id: list[str] | str | None = None
    team_ids: list[str] | str | None = None
    organization_id: list[str] | str | None = None
    roles: list[str] | str | None = None
    scopes: list[str] | str | None = None
    models: list[str] | str | None = None
    raw: list[str] | str | None = None
    role_map: dict[str, _Role] = {}
    scope_map: dict[str, _Role] = {}
    default_role: _Role | None = "internal_user"
    require: dict[str, list[str]] = {}
    user_prefix: str = ""
    team_prefix: str = ""
    organization_prefix: str = ""
    upsert_user: bool = False
    upsert_team: bool = False
    upsert_organization: bool = False


class KubernetesSettings(Strict):
    audiences: list[Name] = Field(min_length=1)
    issuer: str | None = None
    claims: ClaimSettings | None = None

    @model_validator(mode="after")
    def _check(self) -> KubernetesSettings:
        _kubernetes(self)
        return self


class IssuerSettings(Strict):
    name: Name | None = None
    kubernetes: KubernetesSettings | None = None
    issuer: str | None = None
    audiences: list[Name] = []
    algorithms: list[Name] | None = None
    claims: ClaimSettings | None = None
    discovery_url: str | None = None
    jwks_uri: str | None = None
    jwks_file: FilePath | None = None
    jwks: dict[str, Any] | None = None
    hosts: list[Name] | None = None
    ca_file: FilePath | None = None
    bearer_file: FilePath | None = None
    audience_claim: Name | None = None
    required_claims: list[str] | None = None
    types: list[Name] | None = None
    is_type_required: bool | None = None
    leeway_s: float | None = None
    ttl_s: Seconds | None = None
    max_stale_s: float | None = None
    min_refetch_s: Seconds | None = None
    deadline_s: Seconds | None = None

    @model_validator(mode="after")
    def _check(self) -> IssuerSettings:
        if self.kubernetes is not None:
            others = sorted(self.model_fields_set - {"kubernetes", "name"})
            if others:
                raise ValueError(f"'kubernetes' stands alone; move {', '.join(others)} to an issuer of its own")
        elif self.name is None:
            raise ValueError("an issuer needs a 'name'")
        _issuer(self)
        return self


class IntrospectionSettings(Strict):
    name: Name
    url: str
    client_id: str = ""
    client_secret: SecretField
    auth: Literal["basic", "post", "bearer"] = "basic"
    issuer: str | None = None
    audiences: list[Name] | None = None
    audience_claim: Name | None = None
    claims: ClaimSettings | None = None
    prefixes: list[Name] | None = None
    required_claims: list[str] | None = None
    ca_file: FilePath | None = None
    leeway_s: float | None = None
    fresh_s: Seconds | None = None
    hard_age_s: Seconds | None = None
    deadline_s: Seconds | None = None
    max_parallel: Annotated[int, Field(ge=1, le=1000), BeforeValidator(number)] | None = None
    parameters: dict[str, str] | None = None

    @model_validator(mode="after")
    def _check(self) -> IntrospectionSettings:
        _introspection(self)
        return self


def build_issuers(
    issuers: list[IssuerSettings], introspection: list[IntrospectionSettings], *, clock: Callable[[], float]
) -> TokenIssuers | None:
    """`None` where no identity provider is configured."""
    if not issuers and not introspection:
        return None
    from sidecar.identity.oidc.tokens import TokenIssuers

    return TokenIssuers([_issuer(i) for i in issuers], [_introspection(i) for i in introspection], clock=clock)


def _claims(settings: ClaimSettings | None, base: Any = None) -> Any:
    from dataclasses import replace

    from sidecar.identity.oidc.claims import ClaimMap, Requirement

    base = ClaimMap() if base is None else base
    if settings is None:
        return base
    changes: dict[str, Any] = {}
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if name == "require":
            value = tuple(Requirement(path, tuple(values)) for path, values in value.items())
        elif isinstance(value, list):
            value = tuple(value)
        elif isinstance(value, str) and name in _PATHS:
            value = (value,)
        elif value is None and name in _PATHS:
            value = ()
        changes[name] = value
    return replace(base, **changes)


_PATHS = frozenset(
    {"user_id", "email", "end_user_id", "team_ids", "organization_id", "roles", "scopes", "models", "raw"}
)


def _given(settings: Strict, leave_out: frozenset[str]) -> Mapping[str, Any]:
    found = {name: getattr(settings, name) for name in settings.model_fields_set - leave_out}
    return {n: tuple(v) if isinstance(v, list) else v for n, v in found.items() if v is not None}


def _issuer(settings: IssuerSettings) -> Any:
    from sidecar.identity.oidc.issuers import Issuer

    if settings.kubernetes is not None:
        return _kubernetes(settings.kubernetes, settings.name or "kubernetes")
    given = dict(_given(settings, frozenset({"claims", "kubernetes"})))
    given.setdefault("issuer", None)
    given.setdefault("audiences", ())
    return Issuer(claims=_claims(settings.claims), **given)


def _kubernetes(settings: KubernetesSettings, name: str = "kubernetes") -> Any:
    from sidecar.identity.oidc.issuers import KUBERNETES_CLAIMS, kubernetes

    return kubernetes(
        name=name,
        audiences=tuple(settings.audiences),
        issuer=settings.issuer,
        claims=_claims(settings.claims, KUBERNETES_CLAIMS),
    )


def _introspection(settings: IntrospectionSettings) -> Any:
    from sidecar.identity.oidc.issuers import Introspection

    return Introspection(claims=_claims(settings.claims), **_given(settings, frozenset({"claims"})))
