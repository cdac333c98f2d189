"""Reads the id of the response a request goes on from, before anything is dispatched: whose it is and where it is kept.

Neighbours: `response_ids` (the ids), Auth above (who calls), Route (goes there and nowhere else), Translate (the
provider's id on its side, ours on the client's). Works alone in front of any ASGI app with the Responses API.
"""

from __future__ import annotations

from sidecar.asgi import (
    Applies,
    ASGIApp,
    ClientDisconnectedError,
    Front,
    Receive,
    Scope,
    Send,
    close_exchange,
    open_exchange,
    paths,
    read_body,
    receive_for,
    refuse,
)
from sidecar.errors import RefusedError
from sidecar.response_ids import RequestIds, ResponseIds, owner_of
from sidecar.translate.dialects import CHAT, RESPONSES
from sidecar.translate.dialects.responses_native import not_found

_CHAT_PATHS = frozenset(CHAT.paths)
_is_responses = paths(*RESPONSES.paths)


class ResponseIdsMiddleware:
    """Without it a `previous_response_id` is refused, and responses go out under the provider's own ids."""

    def __init__(self, app: ASGIApp, *, ids: ResponseIds, applies: Applies = _is_responses) -> None:
        self.app = app
        self.ids = ids
        self.applies = applies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _CHAT_PATHS or not self.applies(scope):
            await self.app(scope, receive, send)
            return
        exchange, is_mine = open_exchange(scope, receive)
        if is_mine:
            send = Front(exchange, send)
        try:
            try:
                payload = await read_body(scope, exchange)
                previous = payload.get("previous_response_id")
                kept = None
                if previous is not None:
                    kept = self.ids.read(previous, exchange.caller)
                    if kept is None:
                        raise not_found(previous)
                    exchange.carried_tokens = kept.tokens
                exchange.ids = RequestIds(self.ids, owner_of(exchange.caller), kept)
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
