"""Credential to identity. The header is judged first: a bad one never reads the body.

Neighbours: `identity.keys.Keys` (or anything with `cached` and `lookup`). Works alone in front of any ASGI app.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
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
    header,
    is_call,
    open_exchange,
    read_body,
    receive_for,
    refuse,
)
from sidecar.errors import AuthenticationError, BadRequestError, PermissionDeniedError, RefusedError
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
            "The gateway refused the request: no API key given. Send it as 'Authorization: Bearer sk-…'.",
            code="missing_api_key",
        )
    return fallback.decode("latin-1")


class CallerLookup(Protocol):
    """What Auth needs of `identity.callers.Callers`."""

    async def of(self, identity: Identity, end_user_id: str | None, tags: tuple[str, ...]) -> Identity: ...


Identify = Callable[[Scope], "Identity | Awaitable[Identity | None] | None"]
AccessGroups = Callable[[str], frozenset[str]]
MAX_TAGS = 20
_NAME_LENGTH = 256


class AuthMiddleware:
    """`keys` answers who calls. `identify` is a host app's own answer, asked first: with an identity no key is needed,
    `None` leaves it to `keys` (without `keys`: 401). A caller that may not call the model it asks for gets 403.

    `callers` puts the end user (the identity's own, else the body's `user`, else `end_user_header`) and the tags of the
    request (`x-sidecar-tags: a,b`) above the caller. `access_groups` tells the groups a model is in,
    which lists of allowed models may name."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: KeyLookup | None = None,
        identify: Identify | None = None,
        callers: CallerLookup | None = None,
        end_user_header: str | None = None,
        access_groups: AccessGroups | None = None,
        applies: Applies = is_call,
    ) -> None:
        if keys is None and identify is None:
            raise ValueError("AuthMiddleware needs keys=, identify= or both")
        self.app = app
        self.keys = keys
        self.identify = identify
        self.callers = callers
        self.end_user_header = end_user_header.lower().encode("latin-1") if end_user_header else None
        self.access_groups = access_groups
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
                identity = await self._identity(scope)
                exchange.identify(identity)
                payload = await read_body(scope, exchange)
                user = payload.get("user")
                if identity.end_user_id is not None:
                    exchange.end_user_id = identity.end_user_id  # proved, where the request only says so
                elif type(user) is str or self.end_user_header is not None:
                    exchange.end_user_id = self._end_user(scope, user)
                tags = header(scope, b"x-sidecar-tags")
                if tags is not None:
                    exchange.tags = tuple(dict.fromkeys((*identity.tags, *_tags(tags))))
                if self.callers is not None and (exchange.end_user_id or exchange.tags or identity.tags):
                    identity = await self.callers.of(identity, exchange.end_user_id, exchange.tags)
                    exchange.identity = identity
                if identity.aliases and (meant := identity.aliases.get(exchange.model)) is not None:
                    exchange.asked_model, exchange.model = exchange.model, meant
                groups = self.access_groups(exchange.model) if self.access_groups is not None else frozenset()
                if not identity.may_call(exchange.model, groups):
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

    async def _identity(self, scope: Scope) -> Identity:
        if self.identify is not None:
            found = self.identify(scope)
            if isinstance(found, Awaitable):
                found = await found
            if found is not None:
                return found
            if self.keys is None:
                raise AuthenticationError("The gateway refused the request: the application does not know the caller.")
        assert self.keys is not None
        token = bearer_token(scope)
        return self.keys.cached(token) or await self.keys.lookup(token)

    def _end_user(self, scope: Scope, user: object) -> str | None:
        if type(user) is not str and self.end_user_header is not None:
            value = header(scope, self.end_user_header)
            user = value.decode("latin-1") if value is not None else None
        return user[:_NAME_LENGTH] if type(user) is str and user else None


def _tags(value: bytes) -> list[str]:
    """`a, b`: names of the request's tags. Raises BadRequestError."""
    names = [name for part in value.decode("latin-1").split(",") if (name := part.strip())]
    if len(names) > MAX_TAGS or any(len(name) > _NAME_LENGTH for name in names):
        raise BadRequestError(
            f"The gateway refused the request: x-sidecar-tags holds at most {MAX_TAGS} names of {_NAME_LENGTH} "
            "characters.",
            param="x-sidecar-tags",
        )
    return names
