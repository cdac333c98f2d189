"""Keeps what was asked and answered, for operators who turned `spend.store_prompts` on. Without it this is not mounted.

Neighbours: `spend.prompts` (the queue and the table); Auth above says whose key it is. Rules: only calls that went to a
provider are kept; a key, team, user or organization whose metadata says `"store_prompts": false` is left out.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from sidecar.asgi import (
    Applies,
    ASGIApp,
    Front,
    Message,
    Receive,
    Scope,
    Send,
    close_exchange,
    is_call,
    open_exchange,
    receive_for,
)
from sidecar.exchange import Exchange
from sidecar.spend.prompts import Prompt, prompt_of
from sidecar.types import Identity


class Store(Protocol):
    """What this needs of `spend.prompts.Prompts`."""

    max_bytes: int

    def offer(self, prompt: Prompt) -> None: ...


class PromptsMiddleware:
    def __init__(self, app: ASGIApp, *, store: Store, applies: Applies = is_call) -> None:
        self.app = app
        self.store = store
        self.applies = applies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.applies(scope):
            await self.app(scope, receive, send)
            return
        exchange, is_mine = open_exchange(scope, receive)
        if is_mine:
            send = Front(exchange, send)
        seen = _Answer(send, self.store.max_bytes)
        try:
            await self.app(scope, receive_for(exchange), seen)
        finally:
            self._keep(exchange, bytes(seen.body))
            if is_mine:
                close_exchange(exchange)

    def _keep(self, exchange: Exchange, answer: bytes) -> None:
        caller = exchange.caller
        if exchange.attempts and exchange.raw is not None and may_keep(caller):
            self.store.offer(
                prompt_of(
                    exchange.exchange_id,
                    exchange.started_at,
                    caller.key_hash,
                    exchange.raw,
                    answer,
                    self.store.max_bytes,
                )
            )


def may_keep(caller: Identity) -> bool:
    return caller.metadata.get("store_prompts") is not False and all(p.stores_prompts for p in caller.principals)


class _Answer:
    """The answer's first bytes, and one piece more, on their way to the client."""

    __slots__ = ("_left", "_send", "body")

    def __init__(self, send: Send, max_bytes: int) -> None:
        self.body = bytearray()
        self._left = max_bytes + 1
        self._send = send

    def __call__(self, message: Message) -> Awaitable[None]:
        if self._left > 0 and message["type"] == "http.response.body":
            piece = message.get("body", b"")[: self._left]
            self.body += piece
            self._left -= len(piece)
        return self._send(message)
