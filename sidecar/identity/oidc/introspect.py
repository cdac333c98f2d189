"""Opaque tokens: the issuer is asked whether a token is active and whose it is (RFC 7662).

Neighbours: `tokens.py` remembers the answers and lets one question per token be under way. Rule: an endpoint that fails
or refuses *us* says nothing about the token.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Callable
from typing import Any
from urllib.parse import quote_plus

from sidecar.identity.oidc.claims import Claims, map_claims
from sidecar.identity.oidc.fetch import Fetcher, FetchError
from sidecar.identity.oidc.issuers import Introspection
from sidecar.identity.oidc.verify import check_claims, refusal


class Introspector:
    """Asks one endpoint; at most `max_parallel` questions at a time."""

    def __init__(self, config: Introspection, fetcher: Fetcher, *, clock: Callable[[], float]) -> None:
        self.config = config
        self._fetcher = fetcher
        self._clock = clock
        self._slots = asyncio.Semaphore(config.max_parallel)

    def wants(self, token: str, *, is_jwt: bool) -> bool:
        """Virtual keys are not sent out, nor are JWTs, unless a prefix says so."""
        if self.config.prefixes:
            return token.startswith(self.config.prefixes)
        return not is_jwt and not token.startswith("sk-")

    async def ask(self, token: str) -> Claims | None:
        """Whose token it is; `None`: it is not active. Raises `AuthenticationError` and `PermissionDeniedError`
        (active, but not for us), `FetchError` when that cannot be told."""
        config = self.config
        try:
            async with asyncio.timeout(config.deadline_s):
                await self._slots.acquire()
        except TimeoutError:
            raise FetchError("is being asked about too many tokens at once") from None
        try:
            found = await self._post(token)
        finally:
            self._slots.release()
        is_active = found.get("active")
        if not isinstance(is_active, bool):
            raise FetchError("does not say whether the token is active")
        if not is_active:
            return None
        if config.issuer is not None and found.get("iss", config.issuer) != config.issuer:
            raise refusal(config.name, "it is of another issuer")
        expires_at = check_claims(found, config, now=self._clock())
        return map_claims(found, config.claims, issuer=config.name, expires_at=expires_at)

    async def _post(self, token: str) -> dict[str, Any]:
        config = self.config
        form = {**config.parameters, "token": token}
        headers: dict[str, str] = {}
        secret = config.client_secret.reveal()
        if config.auth == "basic":  # RFC 6749 §2.3.1: both are form-encoded first
            pair = f"{quote_plus(config.client_id)}:{quote_plus(secret)}"
            headers["authorization"] = "Basic " + b64encode(pair.encode()).decode()
        elif config.auth == "bearer":
            headers["authorization"] = f"Bearer {secret}"
        else:
            form |= {"client_id": config.client_id, "client_secret": secret}
        return await self._fetcher.post(config.url, form, headers)
