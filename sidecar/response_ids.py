"""Ids of responses a provider keeps, as the gateway's clients know them: the provider's id and a suffix that says where
it is kept and whose it is. Nothing is stored: every process with the same secret reads what another wrote.

Neighbours: `middleware.response_ids` (reads the id a request names), Translate (gives new ones out),
`stored_responses` (get, delete, cancel). Rule: all clients share the provider's account, so an id without a suffix made
for its caller is the id of nothing.

    resp_68af…_g  xxxxxxxx     xxx                   xxxxxxxxxxxxxxxx
                  deployment   length in 64 tokens   HMAC over id, deployment, length and owner
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from sidecar.admit import estimate_of
from sidecar.exchange import Exchange
from sidecar.routing.candidates import Candidates
from sidecar.routing.catalog import Catalog
from sidecar.translate.dialects.responses import CONTEXT_TOKENS
from sidecar.translate.dialects.responses_native import not_found
from sidecar.types import Deployment, Identity

_DIGITS = "abcdefghijklmnopqrstuvwxyz234567"
_CLIENT_ID = re.compile(r"([A-Za-z0-9_-]{1,200})_g([a-z2-7]{8})([a-z2-7]{3})([a-z2-7]{16})")
_PROVIDER_ID = re.compile(r"[A-Za-z0-9_-]{1,200}")
_UNIT = 64
OUTPUT_TOKENS = 128_000
"""Taken for the length of an answer nothing bounds; no model writes more."""


def owner_of(caller: Identity) -> str:
    """Who shares responses: the team, else the user, else the key alone. A new key of the same owner keeps them."""
    if caller.team_id is not None:
        return f"team:{caller.team_id}"
    return f"user:{caller.user_id}" if caller.user_id is not None else f"key:{caller.key_hash}"


@lru_cache(2048)
def mark_of(deployment_id: str, provider: str, base_url: str) -> str:
    text = "\0".join((deployment_id, provider, base_url))
    return _base32(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=5).digest())


def account_of(deployment: Deployment) -> tuple[object, ...]:
    """Deployments with the same know the same ids."""
    return (deployment.provider, deployment.base_url, deployment.api_key, deployment.headers, deployment.credentials)


@dataclass(frozen=True, slots=True)
class Kept:
    """What an id of ours stands for. `tokens`: an upper bound of what it brings along as input."""

    client_id: str
    provider_id: str
    deployment: Deployment
    tokens: int


class ResponseIds:
    """`secret`, if it is a function, is called once, when the first id is made or read."""

    def __init__(self, secret: bytes | Callable[[], bytes], catalog: Catalog) -> None:
        self._secret = secret
        self._key: bytes | None = None
        self._catalog = catalog
        self._version = -1
        self._marks: dict[str, Deployment] = {}

    def outward(self, provider_id: str, deployment: Deployment, owner: str, tokens: int) -> str:
        """An id of another form stays as it is; nobody can come back to it."""
        if _PROVIDER_ID.fullmatch(provider_id) is None:
            return provider_id
        mark = mark_of(deployment.deployment_id, deployment.provider, deployment.base_url)
        units = min(-(-tokens // _UNIT), 32**3 - 1)
        length = _DIGITS[units >> 10] + _DIGITS[units >> 5 & 31] + _DIGITS[units & 31]
        return f"{provider_id}_g{mark}{length}{self._mac(provider_id, mark, length, owner)}"

    def read(self, client_id: str, caller: Identity) -> Kept | None:
        """`None`: no id of this caller's, or its deployment is gone or not for this caller."""
        found = _CLIENT_ID.fullmatch(client_id)
        if found is None:
            return None
        provider_id, mark, length, mac = found.groups()
        if not hmac.compare_digest(mac, self._mac(provider_id, mark, length, owner_of(caller))):
            return None
        deployment = self._deployment(mark)
        if deployment is None:
            return None
        group = deployment.group
        if not group.endswith("*") and not caller.may_call(group, self._catalog.access_groups(group)):
            return None
        first, second, third = map(_DIGITS.index, length)
        return Kept(client_id, provider_id, deployment, ((first << 10) + (second << 5) + third) * _UNIT)

    def _deployment(self, mark: str) -> Deployment | None:
        catalog = self._catalog
        if self._version != catalog.version:
            self._version = catalog.version
            self._marks = {mark_of(d.deployment_id, d.provider, d.base_url): d for d in catalog.deployments}
        return self._marks.get(mark)

    def _mac(self, *parts: str) -> str:
        if self._key is None:
            secret = self._secret if isinstance(self._secret, bytes) else self._secret()
            self._key = hmac.digest(secret, b"sidecar response ids 1", "sha256")
        text = "\0".join(parts).encode("utf-8", "surrogatepass")
        return _base32(hmac.digest(self._key, text, "sha256")[:10])


class RequestIds:
    """One request's: `kept` is the response it goes on from, if any."""

    __slots__ = ("_of", "kept", "owner")

    def __init__(self, of: ResponseIds, owner: str, kept: Kept | None) -> None:
        self._of = of
        self.owner = owner
        self.kept = kept

    def known_to(self, candidates: Candidates) -> Candidates:
        """Those that know the response it goes on from: the deployment it came from, else those of its account.
        Raises NotFoundError."""
        if self.kept is None:
            return candidates
        wanted = self.kept.deployment
        found = candidates.only(lambda d: d.deployment_id == wanted.deployment_id and _is_same_place(d, wanted))
        if not found:
            found = candidates.only(lambda d: _is_same_place(d, wanted))
        if not found:
            raise not_found(self.kept.client_id)
        return found

    def at(self, exchange: Exchange, deployment: Deployment) -> AttemptIds:
        return AttemptIds(self._of, self, exchange, deployment)


def _is_same_place(one: Deployment, other: Deployment) -> bool:
    return account_of(one) == account_of(other)


class AttemptIds:
    """What Translate needs at one deployment (`translate.provider.WireIds`)."""

    __slots__ = ("_deployment", "_exchange", "_made", "_of", "_request", "previous")

    def __init__(self, of: ResponseIds, request: RequestIds, exchange: Exchange, deployment: Deployment) -> None:
        kept = request.kept
        self._of = of
        self._request = request
        self._exchange = exchange
        self._deployment = deployment
        self._made: tuple[str, str] | None = None
        self.previous = (kept.client_id, kept.provider_id) if kept is not None else None

    def outward(self, provider_id: str, tokens: int | None) -> str:
        if self._made is None or self._made[0] != provider_id:
            length = min(self._bound() if tokens is None else tokens, CONTEXT_TOKENS)
            self._made = provider_id, self._of.outward(provider_id, self._deployment, self._request.owner, length)
        return self._made[1]

    def _bound(self) -> int:
        """A stream tells its id before its length."""
        exchange = self._exchange
        tokens_in, tokens_out = estimate_of(exchange)
        if tokens_out is None:
            tokens_out = exchange.edits.get("output_cap") or self._deployment.max_output_tokens or OUTPUT_TOKENS
        return tokens_in + tokens_out


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode("ascii").lower()
