"""What is trusted: issuers of JWTs and introspection endpoints, as frozen values that refuse to be unsafe.

Neighbours: `claims.ClaimMap` says what their tokens mean. Every value checks itself when made and raises `ValueError`
in words for whoever wrote the configuration. Rules: asymmetric algorithms only, at least one audience, HTTPS except on
this host, and no fetch to a host that is not named here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

from sidecar.identity.oidc.claims import ClaimMap
from sidecar.types import Secret

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""All that may be configured. A shared secret (HS*) would let everyone who can check a token also make one."""

DEFAULT_ALGORITHMS = ("RS256", "ES256")

CLUSTER_URL = "https://kubernetes.default.svc"
ACCOUNT_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where a pod finds the cluster's CA and its own token:
https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/#directly-accessing-the-rest-api"""

KUBERNETES_CLAIMS = ClaimMap(
    user_id=("sub",),
    email=(),
    team_ids=(r"kubernetes\.io.namespace",),
    raw=("kubernetes\\.io.serviceaccount.name", "kubernetes\\.io.namespace", "kubernetes\\.io.pod.name"),
)
"""`sub` is `system:serviceaccount:NAMESPACE:NAME`; the namespace is the team. The other claims of a bound token:
https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#schema-for-service-account-private-claims"""


@dataclass(frozen=True, slots=True)
class Issuer:
    """One issuer of JWTs. `name` is ours: it stands in messages, logs and `Claims.issuer`.

    issuer: the exact `iss`; `None`: what the document at `discovery_url` says (for a cluster we trust by its CA).
    Keys come from exactly one of `jwks` (a key set as given), `jwks_file`, `jwks_uri`, or discovery (OpenID Connect
    Discovery 1.0 §4), at `discovery_url` or below the issuer. `hosts` are further hosts (`host` or `host:port`) that a
    discovery document may name for its keys. `bearer_file` is sent along with fetches, read anew for each.
    """

    name: str
    issuer: str | None
    audiences: tuple[str, ...]
    algorithms: tuple[str, ...] = DEFAULT_ALGORITHMS
    claims: ClaimMap = ClaimMap()
    discovery_url: str | None = None
    jwks_uri: str | None = None
    jwks_file: str | None = None
    jwks: Mapping[str, Any] | None = None
    hosts: tuple[str, ...] = ()
    ca_file: str | None = None
    bearer_file: str | None = None
    audience_claim: str = "aud"
    required_claims: tuple[str, ...] = ()
    types: tuple[str, ...] = ("JWT", "at+jwt")
    is_type_required: bool = False
    leeway_s: float = 30.0
    ttl_s: float = 600.0
    max_stale_s: float = 86_400.0
    min_refetch_s: float = 5.0
    deadline_s: float = 5.0

    def __post_init__(self) -> None:
        here = f"issuer '{self.name}'"
        if self.issuer is not None and not self.issuer:
            raise ValueError(f"{here}: 'issuer' is empty")
        if not self.audiences or not all(self.audiences):
            raise ValueError(f"{here}: name an audience; without it a token made for any other service is taken")
        wrong = [name for name in self.algorithms if name not in ALGORITHMS]
        if wrong or not self.algorithms:
            raise ValueError(f"{here}: algorithms {wrong or 'none given'}; possible are {', '.join(ALGORITHMS)}")
        sources = [s for s in ("jwks", "jwks_file", "jwks_uri", "discovery_url") if getattr(self, s) is not None]
        if len(sources) > 1 and not (sources == ["jwks_uri", "discovery_url"] and self.issuer is None):
            raise ValueError(f"{here}: keys come from one place, not from {' and '.join(sources)}")
        if self.issuer is None and self.discovery_url is None:
            raise ValueError(f"{here}: give 'issuer', or a 'discovery_url' that says it")
        for url in (self.discovery_url, self.jwks_uri, self.issuer if not sources else None):
            if url is not None:
                _check_url(here, url)
        for host in self.hosts:
            if "/" in host or url_fault(f"https://{host}") is not None:
                raise ValueError(f"{here}: '{host}' is not a host or host:port")
        for name in ("ttl_s", "max_stale_s", "min_refetch_s", "deadline_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{here}: '{name}' has to be more than 0")
        if not 0 <= self.leeway_s <= 600:
            raise ValueError(f"{here}: 'leeway_s' has to be from 0 to 600")

    @property
    def document_url(self) -> str | None:
        """Where discovery is, if keys or the issuer come from discovery."""
        if self.discovery_url is not None:
            return self.discovery_url
        if self.jwks is not None or self.jwks_file is not None or self.jwks_uri is not None or self.issuer is None:
            return None
        return self.issuer.removesuffix("/") + "/.well-known/openid-configuration"


def kubernetes(
    *,
    audiences: tuple[str, ...],
    name: str = "kubernetes",
    url: str = CLUSTER_URL,
    issuer: str | None = None,
    claims: ClaimMap = KUBERNETES_CLAIMS,
    folder: str = ACCOUNT_FOLDER,
    **options: Any,
) -> Issuer:
    """The cluster this pod runs in: service-account tokens projected for one of `audiences`. Issuer and keys come from
    the API server, whose document may name the keys by an address no pod reaches: the path is fixed, so it is asked
    for at `url` – https://kubernetes.io/docs/tasks/configure-pod-container/configure-service-account/#service-account-issuer-discovery"""
    return Issuer(
        name,
        issuer,
        audiences,
        claims=claims,
        discovery_url=f"{url}/.well-known/openid-configuration" if issuer is None else None,
        jwks_uri=f"{url}/openid/v1/jwks",
        ca_file=f"{folder}/ca.crt",
        bearer_file=f"{folder}/token",
        required_claims=(r"kubernetes\.io.serviceaccount.name", r"kubernetes\.io.namespace"),
        **options,
    )


@dataclass(frozen=True, slots=True)
class Introspection:
    """One RFC 7662 endpoint that is asked about tokens that are not JWTs.

    prefixes: ask only about tokens that begin so; empty: about all. auth: how the client proves itself (RFC 6749
    §2.3.1), or `bearer`: `client_secret` is a token. A token is used `fresh_s` without asking again and, while the
    endpoint does not answer, up to `hard_age_s`; never past its `exp`.
    """

    name: str
    url: str
    client_id: str
    client_secret: Secret
    auth: Literal["basic", "post", "bearer"] = "basic"
    issuer: str | None = None
    audiences: tuple[str, ...] = ()
    audience_claim: str = "aud"
    claims: ClaimMap = ClaimMap()
    prefixes: tuple[str, ...] = ()
    required_claims: tuple[str, ...] = ()
    ca_file: str | None = None
    leeway_s: float = 30.0
    fresh_s: float = 30.0
    hard_age_s: float = 300.0
    deadline_s: float = 5.0
    max_parallel: int = 32
    parameters: Mapping[str, str] = field(default_factory=lambda: {"token_type_hint": "access_token"})

    def __post_init__(self) -> None:
        here = f"introspection '{self.name}'"
        _check_url(here, self.url)
        if not self.client_secret or (self.auth != "bearer" and not self.client_id):
            raise ValueError(f"{here}: give 'client_id' and 'client_secret'")
        if not all(self.prefixes):
            raise ValueError(f"{here}: a prefix is empty")
        for name in ("fresh_s", "hard_age_s", "deadline_s", "max_parallel"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{here}: '{name}' has to be more than 0")


def host_of(url: str) -> str:
    """`host:port` of a URL, in lower case, the port always given: what two URLs are compared by."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def url_fault(url: str) -> str | None:
    """Why a URL may not be fetched from, in words; `None` if it may."""
    try:
        parts: SplitResult = urlsplit(url)
        port = parts.port
    except ValueError:
        return "is not a URL"
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url or not parts.hostname or port == 0:
        return "is not a URL"
    if parts.username is not None or parts.password is not None or parts.fragment:
        return "holds a user, a password or a fragment"
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")):
        return None
    return "is not https"


def _check_url(here: str, url: str) -> None:
    fault = url_fault(url)
    if fault is not None:
        raise ValueError(f"{here}: '{url}' {fault}")
