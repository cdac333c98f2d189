"""`POST /utils/transform_request`: the provider request a chat call would become, for whoever may make that call.

Neighbours: `explanation` (what is shown), AuthMiddleware before it (who may; the same checks as for the call itself).
Takes the body of a chat call, or `{"call_type": "completion", "request_body": {…}}` as users of such gateways know it.
Nothing is sent, held or written. Rule: only administrators and their viewers read the operator's own hosts.
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.routing import Route

from sidecar.asgi import (
    MAX_BODY_BYTES,
    ASGIApp,
    ClientDisconnectedError,
    Front,
    Message,
    Receive,
    Scope,
    Send,
    aside,
    close_exchange,
    open_exchange,
    read_body,
    refuse,
)
from sidecar.errors import BadRequestError, RefusedError
from sidecar.explanation import Explainer
from sidecar.gateway import OwnRoute
from sidecar.middleware.auth import AccessGroups, AuthMiddleware, CallerLookup, KeyLookup
from sidecar.translate.pieces import BIG_BYTES
from sidecar.translate.usage import NOT_JSON
from sidecar.types import Identity

PATH = "/utils/transform_request"
_READERS = frozenset({"proxy_admin", "proxy_admin_viewer"})


class TransformRequest:
    """The end of its own little stack: above it stand AuthMiddleware, where there is one, and `Unwrapped`.
    `is_open`: there are no keys, so everybody on this machine is the operator."""

    def __init__(self, explainer: Explainer, *, is_open: bool = False) -> None:
        self._explainer = explainer
        self._is_open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange, is_mine = open_exchange(scope, receive)
        if is_mine:
            send = Front(exchange, send)
        try:
            payload = await read_body(scope, exchange)
            caller = exchange.caller
            raw = exchange.raw or b""
            asked = (payload, raw, caller, exchange.tags or caller.tags)
            body = await aside(self._shown, *asked) if len(raw) >= BIG_BYTES else self._shown(*asked)
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"cache-control", b"no-store"),
            ]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body, "more_body": False})
        except RefusedError as error:
            await refuse(exchange, error, send)
        except ClientDisconnectedError:
            exchange.outcome = "client_left"
        finally:
            if is_mine:
                close_exchange(exchange)

    def _shown(self, payload: dict[str, Any], raw: bytes, caller: Identity, tags: tuple[str, ...]) -> bytes:
        sees = self._is_open or caller.role in _READERS
        try:
            return msgspec.json.encode(self._explainer.explain(payload, raw, caller, tags=tags, shows_places=sees))
        except RecursionError:
            raise BadRequestError(
                "The gateway refused the request: its JSON is nested too deeply to be shown."
            ) from None


def transform_route(
    explainer: Explainer,
    *,
    keys: KeyLookup | None,
    callers: CallerLookup | None,
    end_user_header: str | None,
    access_groups: AccessGroups,
) -> Route:
    """Without `keys` everybody is the operator."""
    app: ASGIApp = TransformRequest(explainer, is_open=keys is None)
    if keys is not None:
        app = AuthMiddleware(
            app,
            keys=keys,
            callers=callers,
            end_user_header=end_user_header,
            access_groups=access_groups,
            applies=lambda scope: True,  # the route has chosen; nothing may pass unjudged
        )
    return OwnRoute(PATH, Unwrapped(app), methods=["POST"])


class Unwrapped:
    """Takes the other form's wrapping off the body, once somebody below reads it: after the key was judged."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_read = False

        async def unwrapped() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()
            body = bytearray()
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return message
                body += message.get("body", b"")
                if not message.get("more_body", False) or len(body) > MAX_BODY_BYTES:
                    break
            is_read = True
            return {"type": "http.request", "body": _inner(bytes(body)), "more_body": False}

        await self.app(scope, unwrapped, send)


def _inner(body: bytes) -> bytes:
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        if "request_body" in fields and "messages" not in fields:
            return bytes(fields["request_body"])
    except (*NOT_JSON, TypeError):
        pass  # who reads it says what is wrong
    return body
