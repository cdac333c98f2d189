"""Whose token is this? Memory first, then the issuer it names, or an introspection endpoint.

    issuers = TokenIssuers([Issuer("corp", "https://idp.example", ("gateway",))], clock=time.time)
    claims = issuers.cached(token) or await issuers.identify(token)   # None: not a token of theirs

Neighbours: `verify.py` and `introspect.py` decide, this file remembers. Rules: the exact `iss` of a token chooses its
issuer, and only that issuer's verifier is believed; an issuer that is down is 503, never 401; what is remembered –
known and refused alike – is bounded, and keyed by the token's SHA-256.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from sidecar.errors import AuthenticationError, PermissionDeniedError, UnavailableError
from sidecar.identity.oidc.claims import Claims
from sidecar.identity.oidc.fetch import Fetcher, FetchError, NewClient, new_client
from sidecar.identity.oidc.flights import ClosedError, Flights
from sidecar.identity.oidc.introspect import Introspector
from sidecar.identity.oidc.issuers import Introspection, Issuer
from sidecar.identity.oidc.jose import MalformedError, is_bearer_token, looks_like_jwt, parse
from sidecar.identity.oidc.jwks import KeySet, VerifyingKey
from sidecar.identity.oidc.verify import Verifier, refusal

NEVER = float("inf")
SPARE_S = 1.0
"""While an endpoint is down it is asked again this often, and nobody whose answer is kept waits for it."""

Refusal = AuthenticationError | PermissionDeniedError


class _Entry:
    """A token that is believed from `kept_at` until `usable_until`, and while its issuer is down until `dead_at`."""

    __slots__ = ("claims", "dead_at", "kept_at", "key", "usable_until", "weight")

    def __init__(
        self, claims: Claims, key: VerifyingKey | None, kept_at: float, usable_until: float, dead_at: float
    ) -> None:
        self.claims = claims
        self.weight = _weight(claims)
        self.key = key
        self.kept_at = kept_at
        self.usable_until = usable_until
        self.dead_at = dead_at


@dataclass(frozen=True, slots=True)
class IssuerStatus:
    """What is known of one issuer's keys; `problem` is why the last fetch failed."""

    name: str
    issuer: str | None
    keys: int
    loaded_at: float | None
    problem: str | None


class TokenIssuers:
    """The issuers and introspection endpoints of one gateway.

    hard_age_s: a verified JWT is believed this long (or until its `exp`) before it is verified again. refused_s: how
    long a refused token is refused without another look. max_entries: bound of the known tokens, and of the refused.
    max_weight: bound of the known tokens in bytes, roughly; an ordinary one weighs about 1.3 KB.
    """

    def __init__(
        self,
        issuers: Sequence[Issuer],
        introspections: Sequence[Introspection] = (),
        *,
        clock: Callable[[], float],
        new_client: NewClient = new_client,
        hard_age_s: float = 300.0,
        refused_s: float = 5.0,
        max_entries: int = 10_000,
        max_weight: int = 32 * 1024 * 1024,
        max_token_length: int = 16_384,
    ) -> None:
        names = [issuer.name for issuer in issuers] + [endpoint.name for endpoint in introspections]
        given = [issuer.issuer for issuer in issuers if issuer.issuer is not None]
        if len(set(names)) < len(names) or len(set(given)) < len(given):
            raise ValueError("two issuers have the same name or the same 'issuer'")
        self._clock = clock
        self._hard_age_s = hard_age_s
        self._refused_s = refused_s
        self._max_entries = max(1, max_entries)
        self._max_weight = max_weight
        self._max_length = max_token_length
        self._fetchers: list[Fetcher] = []
        self._verifiers: list[Verifier] = []
        self._introspectors: list[Introspector] = []
        for issuer in issuers:
            keys = KeySet(issuer, self._fetcher(new_client, issuer), clock=clock)
            self._verifiers.append(Verifier(issuer, keys, clock=clock))
        for endpoint in introspections:
            self._introspectors.append(Introspector(endpoint, self._fetcher(new_client, endpoint), clock=clock))
        self._known: dict[bytes, _Entry] = {}
        self._weight = 0
        self._failed_at: float | None = None
        self._refused: dict[bytes, tuple[type[Refusal], str, str, float, float]] = {}
        self._flights: Flights[Claims | None] = Flights()

    def cached(self, token: str) -> Claims | None:
        """Whose token it is, if that is in memory and may be used; `None` means: `await identify(token)`."""
        if len(token) > self._max_length:
            return None
        entry = self._known.get(sha256(token.encode("utf-8", "surrogatepass")).digest())
        # A clock set back makes `kept_at` lie ahead: then nothing is believed.
        if entry is None or not entry.kept_at <= self._clock() < entry.usable_until:
            return None
        return entry.claims if entry.key is None or not entry.key.is_gone else None

    async def identify(self, token: str) -> Claims | None:
        """Whose token it is; `None`: no configured issuer's. Raises `AuthenticationError` (malformed, forged, expired,
        for another audience, not active), `PermissionDeniedError` (genuine, but may not call here) or
        `UnavailableError` when its issuer cannot be asked."""
        claims = self.cached(token)
        if claims is not None:
            return claims
        if len(token) > self._max_length:
            raise AuthenticationError(
                f"The gateway refused the token: it is longer than {self._max_length} characters.", code="invalid_token"
            )
        digest = sha256(token.encode("utf-8", "surrogatepass")).digest()
        refused = self._refused.get(digest)
        if refused is not None and refused[3] <= self._clock() < refused[4]:
            raise refused[0](refused[1], code=refused[2])
        began_at = self._clock()
        try:
            return await self._judge(token, digest)
        except (AuthenticationError, PermissionDeniedError) as error:
            self._forget(digest)
            self._refuse(digest, error, began_at)
            raise

    async def warm(self) -> None:
        """Fetches every issuer's keys ahead of the first token. Never fails: see `status`."""
        await asyncio.gather(*(one.keys.ready() for one in self._verifiers), return_exceptions=True)

    @property
    def remembered(self) -> int:
        """How many tokens are kept, known and refused."""
        return len(self._known) + len(self._refused)

    def status(self) -> list[IssuerStatus]:
        keys = [one.keys for one in self._verifiers]
        return [IssuerStatus(one.config.name, one.issuer, len(one), one.loaded_at, one.problem) for one in keys]

    async def aclose(self) -> None:
        """Ends fetches in progress and closes connections."""
        await self._flights.aclose()
        for verifier in self._verifiers:
            await verifier.keys.aclose()
        for fetcher in self._fetchers:
            await fetcher.aclose()

    async def _judge(self, token: str, digest: bytes) -> Claims | None:
        is_jwt = looks_like_jwt(token)
        if is_jwt and self._verifiers:
            try:
                parsed = parse(token)
            except MalformedError as error:
                raise AuthenticationError(f"The gateway refused the token: {error}.", code="invalid_token") from None
            verifier = await self._verifier(parsed.claims.get("iss"))
            if verifier is not None:
                began_at = self._clock()
                try:
                    claims, key = await verifier.verify(parsed)
                except FetchError as error:
                    raise _unavailable(verifier.config.name, "key set", error) from None
                until = began_at + self._hard_age_s
                return self._keep(digest, claims, key, began_at, until, until)
        asked = [one for one in self._introspectors if one.wants(token, is_jwt=is_jwt)]
        if not asked or not is_bearer_token(token):
            return None
        spare = self._spare(digest)
        try:
            if spare is not None and self._failed_at is not None:
                if not self._failed_at <= self._clock() < self._failed_at + SPARE_S:
                    self._flights.launch(digest, lambda: self._introspect(token, digest, asked))
                return spare
            return await self._flights.join(digest, lambda: self._introspect(token, digest, asked))
        except ClosedError:
            raise UnavailableError("The gateway is stopping. Try again shortly.", retry_after_s=1.0) from None

    async def _verifier(self, iss: Any) -> Verifier | None:
        """The verifier of an issuer, by its exact name; issuers that discovery has yet to name are asked first."""
        if not isinstance(iss, str):
            return None
        failed: UnavailableError | None = None
        found = self._named(iss)
        for verifier in self._verifiers if found is None else ():
            if verifier.keys.issuer is None:
                try:
                    await verifier.keys.ready()
                except FetchError as error:
                    failed = _unavailable(verifier.config.name, "key set", error)
        found = found or self._named(iss)
        if found is None and failed is not None:
            raise failed
        return found

    def _named(self, iss: str) -> Verifier | None:
        return next((verifier for verifier in self._verifiers if verifier.keys.issuer == iss), None)

    async def _introspect(self, token: str, digest: bytes, asked: list[Introspector]) -> Claims:
        try:
            return await self._ask(token, digest, asked)
        except (AuthenticationError, PermissionDeniedError):
            self._forget(digest)  # here, since all who asked may have left
            raise

    async def _ask(self, token: str, digest: bytes, asked: list[Introspector]) -> Claims:
        began_at = self._clock()
        failed: UnavailableError | None = None
        for one in asked:
            try:
                claims = await one.ask(token)
            except FetchError as error:
                failed = failed or _unavailable(one.config.name, "introspection endpoint", error)
                self._failed_at = self._clock()
                continue
            self._failed_at = None
            if claims is not None:
                config = one.config
                usable_until, dead_at = began_at + config.fresh_s, began_at + max(config.fresh_s, config.hard_age_s)
                return self._keep(digest, claims, None, began_at, usable_until, dead_at)
        if failed is None:
            raise refusal(asked[0].config.name, "it is not active")
        spare = self._spare(digest)
        if spare is None:
            raise failed
        return spare

    def _spare(self, digest: bytes) -> Claims | None:
        """An opaque token's last answer, no longer fresh but neither expired nor past its hard age."""
        entry = self._known.get(digest)
        return entry.claims if entry is not None and entry.kept_at <= self._clock() < entry.dead_at else None

    def _keep(
        self, digest: bytes, claims: Claims, key: VerifyingKey | None, now: float, usable_until: float, dead_at: float
    ) -> Claims:
        expires_at = NEVER if claims.expires_at is None else claims.expires_at
        before = self._forget(digest)
        if before is not None and before.claims == claims:
            claims = before.claims  # unchanged: what others derived from it stays valid
        self._refused.pop(digest, None)
        entry = _Entry(claims, key, now, min(usable_until, expires_at), min(dead_at, expires_at))
        while self._known and (len(self._known) >= self._max_entries or self._weight + entry.weight > self._max_weight):
            self._forget(next(iter(self._known)))  # the one longest not renewed
        self._known[digest] = entry
        self._weight += entry.weight
        return claims

    def _forget(self, digest: bytes) -> _Entry | None:
        entry = self._known.pop(digest, None)
        if entry is not None:
            self._weight -= entry.weight
        return entry

    def _refuse(self, digest: bytes, error: Refusal, now: float) -> None:
        for_s = self._refused_s if error.retry_after_s is None else min(self._refused_s, error.retry_after_s)
        self._refused.pop(digest, None)
        while len(self._refused) >= self._max_entries:
            del self._refused[next(iter(self._refused))]
        self._refused[digest] = (type(error), error.message, error.code, now, now + for_s)

    def _fetcher(self, new_client: NewClient, config: Issuer | Introspection) -> Fetcher:
        fetcher = Fetcher(new_client, config.ca_file, deadline_s=config.deadline_s)
        self._fetchers.append(fetcher)
        return fetcher


def _weight(claims: Claims) -> int:
    """About how many bytes a token's entry takes: the values themselves, and 60 for each of a list."""
    lists = (claims.team_ids, claims.roles, claims.scopes, claims.models or ())
    return 1000 + 2 * len(repr(dict(claims.raw))) + sum(60 + len(text) for texts in lists for text in texts)


def _unavailable(name: str, what: str, error: FetchError) -> UnavailableError:
    return UnavailableError(
        f"The gateway cannot check tokens of '{name}' now: its {what} {error}. Try again shortly.",
        code="token_issuer_unavailable",
        retry_after_s=1.0,
    )
