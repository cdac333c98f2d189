"""Credential to identity. The header is judged first: a bad one never reads the body.

Neighbours: `identity.keys.Keys` (or anything with `cached` and `lookup`). Works alone in front of any ASGI app.
"""

from __future__ import annotations

from typing import Protocol

from sidecar.asgi import (
    Applies,
    ASGIApp,
    ClientDisconnectedError,
    Front,
    Receive,
    Scope,
    Send,
    close_exchange,
    is_chat,
    open_exchange,
    read_body,
    receive_for,
    refuse,
)
from sidecar.errors import AuthenticationError, PermissionDeniedError, RefusedError
from sidecar.types import Identity


class KeyLookup(Protocol):
    """What Auth needs of `identity.keys.Keys`."""

    def cached(self, token: str) -> Identity | None: ...

    async def lookup(self, token: str) -> Identity: ...


def bearer_token(scope: Scope) -> str:
    """The credential: `Authorization: Bearer …`, else `x-api-key`, else `api-key`. Raises AuthenticationError."""
    fallback: bytes | None = None
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            if scheme.lower() != b"bearer":
                raise AuthenticationError(
                    "The gateway refused the request: send the key as 'Authorization: Bearer sk-…'."
                )
            return str(token.strip(), "latin-1")
        if name in (b"x-api-key", b"api-key"):
            fallback = value
    if fallback is None:
        raise AuthenticationError(
            "The gateway refused the request: no API key given. Send it as 'Authorization: Bearer sk-…'."
        )
    return fallback.decode("latin-1")


class AuthMiddleware:
    """`keys` answers who calls. A key that may not call the model it asks for gets 403."""

    def __init__(self, app: ASGIApp, *, keys: KeyLookup, applies: Applies = is_chat) -> None:
        self.app = app
        self.keys = keys
        self.applies = applies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.applies(scope):
            await self.app(scope, receive, send)
            return
        exchange, is_mine = open_exchange(scope, receive)
        if is_mine:
            send = Front(exchange, send)
        try:
            try:
                token = bearer_token(scope)
                identity = self.keys.cached(token)
                if identity is None:
                    identity = await self.keys.lookup(token)
                exchange.identify(identity)
                await read_body(scope, exchange)
                if not identity.may_call(exchange.model):
                    raise PermissionDeniedError(
                        f"The gateway refused the request: this key may not call the model '{exchange.model[:128]}'. "
                        "Ask for one that GET /v1/models lists, or have the key changed.",
                        code="model_access_denied",
                        param="model",
                    )
            except RefusedError as error:
                await refuse(exchange, error, send)
                return
            except ClientDisconnectedError:
                exchange.outcome = "client_left"
                return
            await self.app(scope, receive_for(exchange), send)
        finally:
            if is_mine:
                close_exchange(exchange)
