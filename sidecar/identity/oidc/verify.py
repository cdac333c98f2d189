"""Is this JWT genuine, meant for us, and in force? One verifier for each issuer.

Neighbours: `jose.py` parsed the token, `jwks.py` has the keys, PyJWT's algorithms check signatures (the times are
checked here, against the clock that is an argument). Rules: the algorithm is one of those configured and one the key is
for, never simply what the token says; what needs no key is checked first, so an expired token costs no fetch.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from sidecar.errors import AuthenticationError
from sidecar.identity.oidc.claims import Claims, map_claims, values_at
from sidecar.identity.oidc.issuers import Issuer
from sidecar.identity.oidc.jose import Parsed
from sidecar.identity.oidc.jwks import KeySet, VerifyingKey

_DEAR = ("ES384", "ES512")
"""About 0.5 ms each (and so are RSA keys above 4096 bits); the others take 0.02 to 0.1 ms, a thread's hop 0.06."""


class _Checked(Protocol):
    """What `check_claims` needs of an `Issuer` or `Introspection`."""

    @property
    def name(self) -> str: ...
    @property
    def audiences(self) -> tuple[str, ...]: ...
    @property
    def audience_claim(self) -> str: ...
    @property
    def required_claims(self) -> tuple[str, ...]: ...
    @property
    def leeway_s(self) -> float: ...


class Verifier:
    """Verifies the tokens of one issuer."""

    def __init__(self, config: Issuer, keys: KeySet, *, clock: Callable[[], float]) -> None:
        import jwt

        self.config = config
        self.keys = keys
        self._clock = clock
        self._types = frozenset(_kind(name) for name in config.types)
        self._algorithms = {name: jwt.get_algorithm_by_name(name) for name in config.algorithms}

    async def verify(self, token: Parsed) -> tuple[Claims, VerifyingKey]:
        """Who the token names, and the key that says so. Raises `AuthenticationError`, `PermissionDeniedError`, and
        `FetchError` when the issuer's keys cannot be had."""
        name = self.config.name
        if token.algorithm not in self._algorithms:
            raise refusal(name, "its algorithm is not one this issuer may use")
        if token.type is None and self.config.is_type_required:
            raise refusal(name, "its header has no 'typ'")
        if token.type is not None and _kind(token.type) not in self._types:
            raise refusal(name, "its 'typ' is not that of an access token")
        expires_at = check_claims(token.claims, self.config, now=self._clock())
        if expires_at is None:
            raise refusal(name, "it has no 'exp'")
        key = await self._signer(token)
        return map_claims(token.claims, self.config.claims, issuer=name, expires_at=expires_at), key

    async def _signer(self, token: Parsed) -> VerifyingKey:
        keys = await self.keys.find(token.key_id, token.algorithm)
        if not keys:
            raise refusal(self.config.name, "it is signed with a key its issuer does not publish")
        key = await self._first_of(keys, token)
        if key is None and keys[0].key_id is None and await self.keys.refetch():
            # Keys without ids: a new one cannot be told from an old one but by trying.
            key = await self._first_of(await self.keys.find(token.key_id, token.algorithm), token)
        if key is None:
            raise refusal(self.config.name, "its signature is wrong")
        return key

    async def _first_of(self, keys: list[VerifyingKey], token: Parsed) -> VerifyingKey | None:
        algorithm = self._algorithms[token.algorithm]
        for key in keys:
            if token.algorithm in _DEAR or getattr(key.public, "key_size", 0) > 4096:
                is_right = await asyncio.to_thread(algorithm.verify, token.signed, key.public, token.signature)
            else:
                is_right = algorithm.verify(token.signed, key.public, token.signature)
            if is_right and not key.is_gone:
                return key
        return None


def check_claims(claims: Mapping[str, Any], config: _Checked, *, now: float) -> float | None:
    """Times, audience and required claims; when the token expires (`None`: it does not say). Raises
    `AuthenticationError`; its `retry_after_s` says when a token that is not yet valid will be."""
    name = config.name
    expires_at, issued_at, begins_at = (_instant(claims, word, name) for word in ("exp", "iat", "nbf"))
    if expires_at is not None and expires_at + config.leeway_s <= now:
        raise refusal(name, "it has expired", code="expired_token")
    latest = max(issued_at or 0.0, begins_at or 0.0)
    if latest > now + config.leeway_s:
        raise refusal(name, "it is not valid yet", retry_after_s=latest - config.leeway_s - now)
    if config.audiences:
        meant = list(values_at(claims, config.audience_claim))
        if not all(isinstance(one, str) for one in meant) or not set(meant) & set(config.audiences):
            raise refusal(name, "it was made for another audience")
    for path in config.required_claims:
        if not any(True for _ in values_at(claims, path)):
            raise refusal(name, f"it has no claim '{path}'")
    return expires_at


def refusal(
    issuer: str, why: str, *, code: str = "invalid_token", retry_after_s: float | None = None
) -> AuthenticationError:
    return AuthenticationError(
        f"The gateway refused the token of '{issuer}': {why}.", code=code, retry_after_s=retry_after_s
    )


def _instant(claims: Mapping[str, Any], name: str, issuer: str) -> float | None:
    value = claims.get(name)
    if value is None and name not in claims:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise refusal(issuer, f"its '{name}' is not an instant")
    return min(float(value), 2.0**53) if value < 2**1000 else 2.0**53


def _kind(name: str) -> str:
    """A media type without the prefix RFC 7515 §4.1.9 lets one leave out."""
    return name.lower().removeprefix("application/")
