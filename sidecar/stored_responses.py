"""What the Responses API offers of responses a provider keeps: get, delete, cancel, list input items.

Neighbours: `response_ids` (whose an id is, and where), UpstreamProxy (the way there). Calls no model, so it costs
nothing and writes no row; it counts on the caller's request limits. A path upstream is made of a checked id only.
https://platform.openai.com/docs/api-reference/responses/get
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlencode

import msgspec
from starlette.routing import Route

from sidecar.asgi import (
    MAX_BODY_BYTES,
    ASGIApp,
    Front,
    Message,
    Receive,
    Replay,
    Scope,
    Send,
    close_exchange,
    open_exchange,
    refuse,
)
from sidecar.errors import (
    BadRequestError,
    MethodNotAllowedError,
    NotFoundError,
    RefusedError,
    UpstreamBrokenError,
    UpstreamError,
    UpstreamStaleError,
)
from sidecar.exchange import ATTEMPT_KEY, Attempt, Exchange
from sidecar.limits.admission import Admission
from sidecar.middleware.auth import KeyLookup, bearer_token
from sidecar.response_ids import Kept, ResponseIds, owner_of
from sidecar.translate.dialects import RESPONSES
from sidecar.translate.dialects.responses_native import native
from sidecar.translate.provider import Call, Head, Provider
from sidecar.translate.registry import get_provider
from sidecar.translate.usage import NOT_JSON
from sidecar.upstream.conceal import conceal

METHODS = {"": ("GET", "DELETE"), "/cancel": ("POST",), "/input_items": ("GET",)}
"""Of each path below a response's."""
_QUERY = frozenset(("include", "include[]", "after", "before", "limit", "order", "include_obfuscation"))
_VALUE = re.compile(r"[A-Za-z0-9_.-]{1,200}")
_KEPT_HEADERS = frozenset((b"openai-processing-ms", b"openai-version"))


class StoredResponses:
    """One path below `/v1/responses/{response_id}`. `keys`: `None` without authentication."""

    def __init__(
        self, rest: str, *, ids: ResponseIds, proxy: ASGIApp, admission: Admission, keys: KeyLookup | None
    ) -> None:
        self._rest = rest
        self._ids = ids
        self._proxy = proxy
        self._admission = admission
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange, is_mine = open_exchange(scope, receive)
        if is_mine:
            send = Front(exchange, send)
        try:
            await self._answer(scope, exchange, send)
        except (RefusedError, UpstreamError) as error:
            await refuse(exchange, error, send)
        finally:
            if is_mine:
                close_exchange(exchange)

    async def _answer(self, scope: Scope, exchange: Exchange, send: Send) -> None:
        method: str = scope["method"]
        if self._keys is not None:
            token = bearer_token(scope)
            exchange.identify(self._keys.cached(token) or await self._keys.lookup(token))
        if method not in METHODS[self._rest]:
            allowed = ", ".join(METHODS[self._rest])
            raise MethodNotAllowedError(
                f"The gateway refused the request: this path takes {allowed}, not {method[:16]}.",
                headers=((b"allow", allowed.encode()),),
            )
        query = _query(scope.get("query_string", b""))
        client_id: str = scope["path_params"]["response_id"]
        kept = self._ids.read(client_id, exchange.caller)
        if kept is None:
            raise _not_found(client_id)
        model = exchange.model = kept.deployment.group
        grant = await self._admission.acquire(
            exchange.exchange_id, exchange.caller, model, tokens=0, hold_nano=0, budgets=False
        )
        exchange.grant = grant
        try:
            answer, body = await self._ask(scope, exchange, kept, method, query)
        finally:
            await self._admission.settle(grant, tokens=0, cost_nano=0)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", exchange.exchange_id.encode()),
            (b"x-sidecar-deployment", kept.deployment.deployment_id.encode("latin-1", "replace")),
            *(pair for pair in answer.head.headers if pair[0] in _KEPT_HEADERS),
            *grant.headers,
        ]
        await send({"type": "http.response.start", "status": answer.head.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _ask(self, scope: Scope, exchange: Exchange, kept: Kept, method: str, query: str) -> tuple[_Whole, bytes]:
        """Raises UpstreamError."""
        provider = native(get_provider(kept.deployment.provider))
        exchange.is_translated = True  # the headers below are all that goes out
        path, own = provider.responses_at(kept.deployment.options)
        below = dict(scope)
        below["path"] = f"{path}/{kept.provider_id}{self._rest}"
        below["raw_path"] = below["path"].encode("ascii")
        below["query_string"] = "&".join(part for part in (own, query) if part).encode("ascii")
        below["root_path"] = ""
        below["headers"] = [(b"content-length", b"0")] if method == "POST" else []
        for again in (True, False):
            answer = _Whole(provider)
            attempt = below[ATTEMPT_KEY] = await exchange.begin_attempt(kept.deployment)
            attempt.cost_nano, attempt.cost_status = 0, "not_billed"
            try:
                await self._proxy(below, Replay(exchange.inbox, b""), answer)
                return answer, self._translated(exchange, attempt, kept, provider, answer)
            except UpstreamStaleError as error:
                attempt.error = error
                if not again:
                    raise
            except UpstreamError as error:
                error.message = error.message.replace(kept.provider_id, kept.client_id)
                conceal(error, kept.deployment)
                attempt.error = error
                raise
        raise AssertionError("unreachable")

    def _translated(
        self, exchange: Exchange, attempt: Attempt, kept: Kept, provider: Provider, answer: _Whole
    ) -> bytes:
        body = b"".join(answer.parts)
        if answer.head.status >= 300:
            call = Call(payload={}, raw=b"", model=kept.deployment.model, now=exchange.started_at)
            raise provider.error(call, answer.head, body)
        try:
            fields: dict[str, msgspec.Raw] = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
            named = ("id", "previous_response_id") if self._rest != "/input_items" else ()
            changed = {name: self._ours(exchange, kept, fields[name]) for name in named if name in fields}
        except NOT_JSON as error:
            raise UpstreamBrokenError(
                f"Provider {provider.name} answered with a body that is no JSON object."
            ) from error
        attempt.is_complete = True
        return msgspec.json.encode({**fields, **changed})

    def _ours(self, exchange: Exchange, kept: Kept, raw: msgspec.Raw) -> Any:
        found = msgspec.json.decode(raw)
        if found == kept.provider_id:
            return kept.client_id
        if not isinstance(found, str):
            return found
        # What it went on from is its owner's too, and not longer.
        return self._ids.outward(found, kept.deployment, owner_of(exchange.caller), kept.tokens)


class _Whole:
    """An answer, kept until it is whole."""

    __slots__ = ("_name", "_size", "head", "parts")

    def __init__(self, provider: Provider) -> None:
        self._name = provider.name
        self._size = 0
        self.head = Head(502)
        self.parts: list[bytes] = []

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.head = Head(message["status"], message["headers"])
        elif message["type"] == "http.response.body":
            self.parts.append(message.get("body", b""))
            self._size += len(self.parts[-1])
            if self._size > MAX_BODY_BYTES:
                raise UpstreamBrokenError(f"Provider {self._name} sent an answer over {MAX_BODY_BYTES} bytes.")


def _query(given: bytes) -> str:
    """The query as it goes upstream. Raises BadRequestError."""
    pairs: list[tuple[str, str]] = []
    try:
        found = parse_qsl(given.decode("latin-1"), keep_blank_values=True, max_num_fields=100)
    except ValueError:
        raise BadRequestError("The gateway refused the request: its query is not one.") from None
    for name, value in found:
        if name == "stream":
            if value.lower() in ("false", "0", ""):
                continue
            raise BadRequestError(
                "The gateway refused the request: it does not stream a response again. Get it without 'stream'.",
                code="stream_not_supported",
                param="stream",
            )
        if name not in _QUERY or _VALUE.fullmatch(value) is None:
            raise BadRequestError(
                f"The gateway refused the request: it does not know the query '{name[:64]}', or its value.",
                param=name[:64],
            )
        pairs.append((name, value))
    return urlencode(pairs)


def _not_found(response_id: str) -> NotFoundError:
    """In OpenAI's words."""
    return NotFoundError(f"Response with id '{response_id[:256]}' not found.", code="response_not_found")


def stored_response_routes(
    *,
    ids: ResponseIds,
    proxy: ASGIApp,
    admission: Admission,
    keys: KeyLookup | None,
    observed: Callable[[ASGIApp], ASGIApp],
) -> list[Route]:
    return [
        Route(
            path + "/{response_id}" + rest,
            observed(StoredResponses(rest, ids=ids, proxy=proxy, admission=admission, keys=keys)),
        )
        for path in RESPONSES.paths
        for rest in METHODS
    ]
