"""A plain ASGI reverse proxy, the end of the stack. It takes its target only from the attempt's deployment, sends the
path bytes as they stand, and authorises last, on the final bytes.

Neighbours: `upstream.base.Transport` (the wire). Without Route and Translate above it renders its own errors.
"""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from sidecar.asgi import (
    MAX_BODY_BYTES,
    ClientDisconnectedError,
    Front,
    Receive,
    Scope,
    Send,
    close_exchange,
    is_event_stream,
    open_exchange,
    refuse,
)
from sidecar.errors import BodyTooLargeError, RefusedError, UpstreamError
from sidecar.exchange import Attempt, Exchange, attempt_in
from sidecar.heartbeat import Heartbeat
from sidecar.translate.registry import get_provider
from sidecar.types import Deployment, Headers
from sidecar.upstream.auth import auth_of, make_authorizer, static_headers
from sidecar.upstream.base import FixedHeaders, HttpAnswer, HttpRequest, Transport, named_by_connection

TURN_BYTES = 8_192
"""Of a stream handed on before others get their turn: some fifty events, a millisecond. A fast provider fills a
quarter of a megabyte meanwhile."""

_NEVER_FORWARDED = frozenset(
    {
        b"authorization",
        b"x-api-key",
        b"api-key",
        b"x-goog-api-key",
        b"x-amz-date",
        b"x-amz-security-token",
        b"x-amz-content-sha256",
        b"cookie",
        b"host",
        b"content-length",
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"expect",
        b"openai-organization",
        b"openai-project",
        b"x-request-id",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"forwarded",
        b"x-real-ip",
    }
)


def _is_same_place(one: Deployment, other: Deployment) -> bool:
    return _place(one) == _place(other)


def _place(deployment: Deployment) -> tuple[object, ...]:
    return (
        deployment.base_url,
        deployment.api_key,
        deployment.headers,
        deployment.provider,
        deployment.options,
        deployment.credentials,
    )


class _Target:
    """What of a deployment's base URL and credential goes on the wire, computed once."""

    __slots__ = ("authorizer", "fixed", "host", "port", "prefix", "scheme")

    def __init__(self, deployment: Deployment) -> None:
        url = urlsplit(deployment.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"base_url of deployment {deployment.deployment_id} is not an http(s) URL")
        self.scheme = url.scheme
        self.host = url.hostname
        self.port = url.port or (443 if url.scheme == "https" else 80)
        self.prefix = url.path.rstrip("/").encode("ascii")
        provider = get_provider(deployment.provider)
        key = static_headers(auth_of(deployment, provider), deployment.api_key)
        self.fixed = FixedHeaders([*deployment.headers, *key])
        self.authorizer = make_authorizer(deployment, provider)


class UpstreamProxy:
    """`deployment` is needed only when nothing above announces an attempt. Its `base_url` is put before the path.
    `heartbeat`: how streams are kept alive while the provider is silent."""

    def __init__(
        self, *, transport: Transport, deployment: Deployment | None = None, heartbeat: Heartbeat | None = None
    ) -> None:
        self.transport = transport
        self.deployment = deployment
        self.heartbeat = heartbeat if heartbeat is not None else Heartbeat()
        self._targets: dict[str, tuple[Deployment, _Target]] = {}

    def _target(self, deployment: Deployment) -> _Target:
        # Keyed by configured ids only, so bounded; wildcard groups share one id and one target.
        found = self._targets.get(deployment.deployment_id)
        if found is None or (found[0] is not deployment and not _is_same_place(found[0], deployment)):
            found = self._targets[deployment.deployment_id] = (deployment, _Target(deployment))
        return found[1]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"UpstreamProxy serves HTTP only, not {scope['type']}")
        exchange, is_mine = open_exchange(scope, receive)
        if is_mine:
            send = Front(exchange, send)
        attempt: Attempt | None = None
        try:
            try:
                body = await self._body(exchange, receive)
                attempt = attempt_in(scope, exchange)
                if attempt is None or attempt.first_byte_at is not None:
                    if self.deployment is None:
                        raise ValueError("UpstreamProxy without RouteMiddleware above needs deployment=")
                    attempt = await exchange.begin_attempt(self.deployment)
                await self._forward(scope, exchange, attempt, body, send)
            except (UpstreamError, RefusedError) as error:
                if isinstance(error, UpstreamError) and attempt is not None:
                    attempt.error = error
                if exchange.is_routed or exchange.is_translated:
                    raise
                if exchange.answer_started and not exchange.answer_ended:
                    # We do not know this dialect, so the only honest end is a cut connection.
                    exchange.outcome = "incomplete"
                    raise
                await refuse(exchange, error, send)
            except ClientDisconnectedError:
                exchange.outcome = "client_left"
        finally:
            if is_mine:
                close_exchange(exchange)

    async def _body(self, exchange: Exchange, receive: Receive) -> bytes:
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            body: bytes = message.get("body", b"")
        else:
            parts: list[bytes] = []
            size = 0
            while message["type"] == "http.request":
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > MAX_BODY_BYTES:
                    raise BodyTooLargeError(
                        f"The gateway refused the request: its body is over {MAX_BODY_BYTES} bytes."
                    )
                if not message.get("more_body", False):
                    break
                message = await receive()
            else:
                raise ClientDisconnectedError
            body = b"".join(parts)
        exchange.inbox.watch()
        return body

    def _headers(self, scope: Scope, exchange: Exchange, target: _Target) -> Headers:
        """What goes upstream besides the target's own."""
        headers: Headers = scope["headers"]
        if exchange.is_translated:
            return headers  # written by the translator: nothing of the client's is among them
        named = named_by_connection(headers)
        own = target.fixed.names
        return [
            (name, value)
            for name, value in headers
            if name not in _NEVER_FORWARDED
            and name not in named
            and name not in own
            and not name.startswith(b"x-sidecar-")
        ]

    async def _forward(self, scope: Scope, exchange: Exchange, attempt: Attempt, body: bytes, send: Send) -> None:
        deployment = attempt.deployment
        target = self._target(deployment)
        path: bytes = scope.get("raw_path") or scope["path"].encode("latin-1")
        root: str = scope.get("root_path", "")
        if root and path.startswith(root.encode("latin-1")):
            path = path[len(root) :]
        query: bytes = scope.get("query_string", b"")
        request = HttpRequest(
            method=scope["method"],
            scheme=target.scheme,
            host=target.host,
            port=target.port,
            target=target.prefix + path + (b"?" + query if query else b""),
            headers=self._headers(scope, exchange, target),
            body=body,
            timeouts=deployment.timeouts,
            is_stream=exchange.is_stream,
            fixed=target.fixed,
        )
        has_left = exchange.client_left
        if has_left:  # while its body was translated: nothing went out
            attempt.is_sent = False
            attempt.ended_at = exchange.now()
            exchange.outcome = "client_left"
            return
        guard = _LeaveGuard()
        exchange.inbox.on_left(guard.left)
        answer: HttpAnswer | None = None
        front = exchange.front if exchange.is_stream and self.heartbeat.every_s else None
        silent = None
        if front is not None and (self.heartbeat.is_early or exchange.answer_started):
            silent = self.heartbeat.watch(front, guard, deployment.timeouts.total_s)
        try:
            try:
                guard.is_waiting = True
                if target.authorizer is not None:
                    request.headers = [*request.headers, *await target.authorizer.headers(request)]
                answer = await self.transport.send(request)
                guard.is_waiting = False
                attempt.status = answer.status
                attempt.first_byte_at = exchange.now()
                if front is not None:
                    if silent is None and answer.status < 300 and _is_stream(exchange, answer):
                        silent = self.heartbeat.watch(front, guard, deployment.timeouts.total_s)
                    if front.beating is not None:
                        await front.quiet()
                await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
                while True:
                    guard.is_waiting = True
                    piece = await answer.read()
                    guard.is_waiting = False
                    if front is not None and front.beating is not None:
                        await front.quiet()
                    is_last = answer.is_complete or not piece
                    if is_last:
                        if not exchange.is_translated:
                            attempt.is_complete = True
                        attempt.ended_at = exchange.now()
                    if len(piece) > TURN_BYTES and exchange.is_stream:
                        piece = await _all_but_the_end(piece, send)
                    await send({"type": "http.response.body", "body": piece, "more_body": not is_last})
                    if is_last:
                        return
                    if exchange.client_left:
                        break
            except UpstreamError as error:
                guard.is_waiting = False
                attempt.is_sent = error.may_be_billed
                if not exchange.client_left:
                    raise
            except RefusedError:
                attempt.is_sent = False
                raise
            except asyncio.CancelledError:
                if not guard.was_used(asyncio.current_task()):
                    raise
                exchange.inbox.leave()
            exchange.outcome = "client_left"
            attempt.ended_at = exchange.now()
        finally:
            exchange.inbox.not_on_left(guard.left)
            if answer is not None and not answer.is_complete:
                answer.abort()
            if silent is not None and front is not None:
                self.heartbeat.forget(silent)
                if front.beating is not None:
                    await front.quiet()


def _is_stream(exchange: Exchange, answer: HttpAnswer) -> bool:
    """To the client: a translator makes one of whatever form the provider's has."""
    return exchange.is_translated or is_event_stream(answer.headers)


async def _all_but_the_end(piece: bytes, send: Send) -> bytes:
    for at in range(0, len(piece) - TURN_BYTES, TURN_BYTES):
        await send({"type": "http.response.body", "body": piece[at : at + TURN_BYTES], "more_body": True})
        await asyncio.sleep(0)
    return piece[at + TURN_BYTES :]


class _LeaveGuard:
    """Interrupts the wait for the provider, and only that, when the client leaves."""

    __slots__ = ("_has_cancelled", "_task", "is_waiting")

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._has_cancelled = False
        self.is_waiting = False

    def left(self) -> None:
        if self.is_waiting:
            self.stuck()

    def stuck(self) -> None:
        """Whatever it waits for: by now that is the client."""
        if self._task is not None and not self._has_cancelled:
            self._has_cancelled = True
            self._task.cancel("the client left")

    def was_used(self, task: asyncio.Task[object] | None) -> bool:
        """True if the cancellation was ours alone; it is taken back."""
        return self._has_cancelled and task is not None and task.uncancel() == 0
