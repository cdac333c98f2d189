"""An issuer's public keys, kept and renewed: discovery, a fixed address, a file, or given (RFC 7517).

Neighbours: `fetch.py` brings documents, `verify.py` asks for the keys a token may be signed with. Rules: keys in hand
go on working while the issuer is down, up to `max_stale_s`; nobody waits for a renewal while there are keys in hand;
an unknown `kid` costs the issuer one fetch per `min_refetch_s`, whoever and however many ask.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from sidecar.identity.oidc.fetch import Fetcher, FetchError, read_file
from sidecar.identity.oidc.flights import ClosedError, Flights
from sidecar.identity.oidc.issuers import ALGORITHMS, Issuer, host_of, url_fault
from sidecar.identity.oidc.jose import MAX_NAME, MalformedError, strict_object

MAX_KEYS = 100
MAX_TRIED = 4
DISCOVERY_S = 3600.0
RETRY_S = 1.0
"""After a failed renewal the issuer is left alone this long (or `min_refetch_s`, if that is shorter)."""

_RENEWAL = "renewal"

_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}
_PRIVATE = ("d", "p", "q", "k")

_log = logging.getLogger(__name__)


class VerifyingKey:
    """One public key of a set. `is_gone`: the issuer no longer publishes it, so nothing it signed is believed."""

    __slots__ = ("algorithms", "is_gone", "jwk", "key_id", "public")

    def __init__(self, jwk: Mapping[str, Any], public: Any, algorithms: frozenset[str]) -> None:
        self.jwk = jwk
        self.key_id: str | None = jwk.get("kid")
        self.public = public
        self.algorithms = algorithms
        self.is_gone = False


class KeySet:
    """The keys of one issuer. `issuer` is its `iss`: as configured, or as discovery said."""

    def __init__(self, config: Issuer, fetcher: Fetcher, *, clock: Callable[[], float]) -> None:
        self.config = config
        self.issuer = config.issuer
        self.problem: str | None = None
        self.loaded_at: float | None = None
        self._fetcher = fetcher
        self._clock = clock
        self._keys: list[VerifyingKey] = []
        self._tried_at: float | None = None
        self._jwks_uri: str | None = config.jwks_uri
        self._discovered_at: float | None = None
        self._flights: Flights[None] = Flights()

    def __len__(self) -> int:
        return len(self._keys)

    async def find(self, key_id: str | None, algorithm: str) -> list[VerifyingKey]:
        """The keys that may have signed: those with this `kid`, else those without any; at most four. Empty: the issuer
        has no such key. Raises `FetchError` when that cannot be told."""
        await self.ready()
        found = self._known(key_id, algorithm)
        if found:
            return found
        await self.refetch()
        return self._known(key_id, algorithm)

    async def ready(self) -> None:
        """Returns once there are keys that may be used; starts their renewal if they are due. Raises `FetchError`."""
        now = self._clock()
        age = None if self.loaded_at is None else now - self.loaded_at
        if age is not None and 0 <= age < self.config.ttl_s:
            return
        if age is not None and 0 <= age < self.config.max_stale_s:
            if not self._is_resting(now, RETRY_S):
                self._start()
            return
        if self._is_resting(now, RETRY_S) and self.problem is not None and _RENEWAL not in self._flights:
            raise FetchError(self.problem)
        await self._join()
        if self.loaded_at is None:
            raise FetchError(self.problem or "is not there")

    async def refetch(self) -> bool:
        """Fetches unless that was just done; false if it was. Raises `FetchError` if the issuer does not answer, also
        if that was just so: what it would have said is not known."""
        if _RENEWAL not in self._flights and self._is_resting(self._clock(), self.config.min_refetch_s):
            if self.problem is not None:
                raise FetchError(self.problem)
            return False
        await self._join()
        return True

    async def aclose(self) -> None:
        await self._flights.aclose()

    def _start(self) -> None:
        try:
            self._flights.launch(_RENEWAL, self._renew)
        except ClosedError:
            pass

    async def _join(self) -> None:
        try:
            await self._flights.join(_RENEWAL, self._renew)
        except ClosedError:
            raise FetchError("is no longer asked: the gateway is stopping") from None

    def _is_resting(self, now: float, seconds: float) -> bool:
        return self._tried_at is not None and 0 <= now - self._tried_at < min(seconds, self.config.min_refetch_s)

    def _known(self, key_id: str | None, algorithm: str) -> list[VerifyingKey]:
        usable = [key for key in self._keys if algorithm in key.algorithms]
        if key_id is not None:
            usable = [k for k in usable if k.key_id == key_id] or [k for k in usable if k.key_id is None]
        return usable[:MAX_TRIED]

    async def _renew(self) -> None:
        began_at = self._tried_at = self._clock()
        try:
            keys = read_keys(await self._load(), before=self._keys)
        except FetchError as error:
            if self.problem is None:
                _log.warning("the key set of issuer '%s' %s", self.config.name, error)
            self.problem, self._tried_at = str(error), self._clock()
            self._discovered_at = None
            raise
        for key in self._keys:
            key.is_gone = key not in keys
        self._keys, self.loaded_at, self.problem = keys, began_at, None
        self._tried_at = self._clock()

    async def _load(self) -> Mapping[str, Any]:
        config = self.config
        if config.document_url is not None:
            await self._discover(config.document_url)
        if config.jwks is not None:
            return config.jwks
        if config.jwks_file is not None:
            try:
                return strict_object(await asyncio.to_thread(read_file, config.jwks_file), "its file")
            except MalformedError:
                raise FetchError("is a file that is not a JSON object") from None
        assert self._jwks_uri is not None
        trusted = config.jwks_uri or config.document_url or ""
        return await self._get(self._jwks_uri, with_bearer=host_of(self._jwks_uri) == host_of(trusted))

    async def _discover(self, url: str) -> None:
        now = self._clock()
        if self._discovered_at is not None and 0 <= now - self._discovered_at < DISCOVERY_S:
            return
        document = await self._get(url, with_bearer=True)
        said = document.get("issuer")
        if not isinstance(said, str) or not said or len(said) > 2048:
            raise FetchError("is described by a discovery document without an issuer")
        if self.config.issuer is not None and said != self.config.issuer:
            raise FetchError("is described by a discovery document of another issuer")
        if self.config.jwks_uri is None:
            self._jwks_uri = self._checked(document.get("jwks_uri"), url)
        self.issuer, self._discovered_at = said, now

    def _checked(self, uri: object, document_url: str) -> str:
        """Rule: a document may only name a host that is configured."""
        if not isinstance(uri, str) or url_fault(uri) is not None:
            raise FetchError("has no usable address in the discovery document")
        allowed = {host_of(document_url), *(host_of(f"https://{host}") for host in self.config.hosts)}
        if host_of(uri) not in allowed:
            raise FetchError("is at a host that is not configured ('hosts')")
        return uri

    async def _get(self, url: str, *, with_bearer: bool) -> dict[str, Any]:
        bearer = None
        if with_bearer and self.config.bearer_file is not None:
            data = await asyncio.to_thread(read_file, self.config.bearer_file)
            bearer = data.decode("ascii", "replace").strip()
            if not bearer.isascii() or not bearer.isprintable():
                raise FetchError("could not be asked for: the token file holds no token")
        return await self._fetcher.get(url, bearer=bearer)


def read_keys(document: Mapping[str, Any], *, before: list[VerifyingKey]) -> list[VerifyingKey]:
    """The usable keys of a set; a key that was there before stays the same object. A key we cannot use is left out
    (RFC 7517 §5); a set without any usable one raises `FetchError`."""
    listed = document.get("keys")
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise FetchError(f"is not a list of at most {MAX_KEYS} keys")
    known = {repr(key.jwk): key for key in before}
    found = [key for jwk in listed if (key := known.get(repr(jwk)) or _read_key(jwk)) is not None]
    if not found:
        raise FetchError("has no key that can be used")
    return found


def _read_key(jwk: Any) -> VerifyingKey | None:
    import jwt

    if not isinstance(jwk, dict) or any(name in jwk for name in _PRIVATE):
        return None
    key_id, use, operations, named = jwk.get("kid"), jwk.get("use"), jwk.get("key_ops"), jwk.get("alg")
    if not (key_id is None or (isinstance(key_id, str) and 0 < len(key_id) <= MAX_NAME)):
        return None
    if use not in (None, "sig") or not (
        operations is None or (isinstance(operations, list) and "verify" in operations)
    ):
        return None
    kind, curve = jwk.get("kty"), jwk.get("crv")
    if kind == "RSA":
        possible = [name for name in ALGORITHMS if name[:2] in ("RS", "PS")]
    elif kind == "EC":
        possible = [name for name, needed in _CURVES.items() if needed == curve]
    else:
        possible = ["EdDSA"] if kind == "OKP" and curve == "Ed25519" else []
    algorithms = frozenset(name for name in possible if named in (None, name, "Ed25519" if name == "EdDSA" else name))
    if not algorithms:
        return None
    try:
        public = jwt.get_algorithm_by_name(min(algorithms)).from_jwk(jwk)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None
    if kind == "RSA" and not (2048 <= public.key_size <= 8192 and public.public_numbers().e < 2**32):
        return None
    return VerifyingKey(jwk, public, algorithms)
