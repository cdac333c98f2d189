"""The whole gateway as one ASGI app: dispatch (default-deny), start-up once however it is mounted, orderly end.

Neighbours: `app.build_app` composes one from a configuration; tests and host apps may compose their own. Rules: it
works without lifespan (mounted apps get none) – it starts with the first request and ends with the event loop – and
touches neither logging nor signal handlers; what it is composed of serves one event loop and is not started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from starlette.responses import Response
from starlette.routing import BaseRoute, Route, Router

from sidecar.asgi import ASGIApp, Message, Receive, Scope, Send, header, is_call, route_path
from sidecar.errors import (
    MethodNotAllowedError,
    NotFoundError,
    PermissionDeniedError,
    SidecarError,
    UnavailableError,
)
from sidecar.tasks import AGAIN_S
from sidecar.translate.dialects import AT

_OPEN_PATHS = frozenset(
    {"/healthz", "/readyz", "/health/liveliness", "/health/liveness", "/health/readiness", "/metrics"}
)
_READY_PATHS = frozenset({"/readyz", "/health/readiness"})


def error_response(error: SidecarError) -> Response:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in error.headers}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, int(-(-error.retry_after_s // 1))))
    return Response(error.body_bytes(), error.status, headers, media_type="application/json")


class OwnRoute(Route):
    """Refuses other methods as everything is refused here, not in Starlette's plain text."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        methods = self.methods or set()
        if not methods or scope["method"] in methods:
            await super().handle(scope, receive, send)
            return
        allowed = ", ".join(sorted(methods))
        refusal = MethodNotAllowedError(
            f"The gateway refused the request: {self.path} takes {allowed}, not {scope['method'][:16]}.",
            headers=((b"allow", allowed.encode("ascii")),),
        )
        await error_response(refusal)(scope, receive, send)


class Gateway:
    """`stack` serves the dialects; `routes` are our own endpoints; `starters` run once before the first request
    (in order), `closers` at the end (in reverse). `again` makes another one like it, for the next start: test
    clients have an event loop for each request. Without it the same parts are started again."""

    def __init__(
        self,
        stack: ASGIApp,
        routes: Sequence[BaseRoute],
        *,
        render_metrics: Callable[[], bytes],
        starters: Sequence[Callable[[], Awaitable[None]]] = (),
        closers: Sequence[Callable[[], Awaitable[None]]] = (),
        is_ready: Callable[[], bool] = lambda: True,
        allowed_hosts: frozenset[str] | None = None,
        grace_s: float = 30.0,
        again: Callable[[], Gateway] | None = None,
    ) -> None:
        self.stack = stack
        self._router = Router(list(routes), redirect_slashes=False, default=_not_found)
        self._render_metrics = render_metrics
        self._starters = starters
        self._closers = closers
        self._is_ready = is_ready
        self._allowed_hosts = allowed_hosts
        self._grace_s = grace_s
        self._again = again
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Task[None] | None = None
        self._starting: asyncio.Future[None] | None = None
        self._retry_start_at = 0.0
        self._is_started = False
        self._is_leaving = False
        self._is_ended = False
        self._in_flight = 0
        self._idle: asyncio.Event | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            self._in_flight += 1
            try:
                await self._http(scope, receive, send)
            finally:
                self._in_flight -= 1
                if self._idle is not None and not self._in_flight:
                    self._idle.set()
        elif kind == "lifespan":
            await self._lifespan(receive, send)
        elif kind == "websocket":
            await send({"type": "websocket.close", "code": 1000})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = route_path(scope)
        if self._is_leaving and scope.get("http_version", "1.1")[:1] == "1":
            send = _last_of_connection(send)
        if path in _OPEN_PATHS:
            await self._open(path, scope, receive, send)
            return
        if self._allowed_hosts is not None and (refusal := self._foreign(scope)) is not None:
            await error_response(refusal)(scope, receive, send)
            return
        if not self._is_started or self._loop is not asyncio.get_running_loop():
            try:
                await self.start()
            except Exception as error:  # noqa: BLE001 - whatever a store raises, the client gets one clear 503
                await error_response(_not_started(error))(scope, receive, send)
                return
        if is_call(scope):
            await self.stack(scope, receive, send)
        elif path in AT:
            refusal = MethodNotAllowedError(
                f"The gateway refused the request: {path} takes POST, not {scope['method'][:16]}.",
                headers=((b"allow", b"POST"),),
            )
            await error_response(refusal)(scope, receive, send)
        else:
            await self._router(scope, receive, send)

    async def _open(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            response = error_response(MethodNotAllowedError(f"{path} takes GET.", headers=((b"allow", b"GET"),)))
        elif path == "/metrics":
            response = Response(self._render_metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")
        elif path in _READY_PATHS:
            ready = self._is_started and not self._is_leaving and self._is_ready()
            response = Response("ready\n" if ready else "not ready\n", 200 if ready else 503, media_type="text/plain")
        else:
            response = Response("alive\n", media_type="text/plain")
        await response(scope, receive, send)

    def _foreign(self, scope: Scope) -> SidecarError | None:
        """Without authentication only loopback callers that name us are served (DNS rebinding, cross-site pages)."""
        host = (header(scope, b"host") or b"").decode("latin-1").lower()
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        assert self._allowed_hosts is not None
        origin = header(scope, b"origin")
        if name in self._allowed_hosts and origin is None:
            return None
        return PermissionDeniedError(
            "The gateway refused the request: it runs without authentication and serves only local programs "
            "(Host must be loopback, no Origin).",
            code="host_not_allowed",
        )

    async def start(self) -> None:
        """Run the starters once; concurrent callers share the run. A failed start is tried again a second later."""
        if self._loop is not (loop := asyncio.get_running_loop()) or self._is_ended:
            self._compose(loop)
        if self._is_started:
            return
        if self._starting is None:
            if time.monotonic() < self._retry_start_at:
                raise UnavailableError("the last start failed")
            self._starting = asyncio.ensure_future(self._start())
        await asyncio.shield(self._starting)

    def _compose(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop not in (None, loop) and self._loop.is_running():
            raise UnavailableError(
                "The gateway serves another event loop of this process. Give each its own: build_app(config).",
                code="another_event_loop",
            )
        if self._loop is not None or self._is_ended:
            if self._again is not None:
                other = self._again()
                self.stack, self._router, self._render_metrics = other.stack, other._router, other._render_metrics
                self._starters, self._closers, self._is_ready = other._starters, other._closers, other._is_ready
            self._starting, self._ending, self._retry_start_at = None, None, 0.0
            self._is_started = self._is_leaving = self._is_ended = False
        self._loop = loop

    async def _start(self) -> None:
        if self._ending is None or self._ending.done():
            self._ending = asyncio.create_task(self._end_with_loop(), name="sidecar: end with the event loop")
        try:
            for starter in self._starters:
                await starter()
            self._is_started = True
        except BaseException:
            self._retry_start_at = time.monotonic() + 1.0
            raise
        finally:
            self._starting = None

    async def _end_with_loop(self) -> None:
        """Whoever ends an event loop (`asyncio.run`, servers, test clients) cancels its tasks and waits for them. Ours
        come to their end first: cancelled a second time, a database's driver leaves its connection open."""
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            if self._ending is (myself := asyncio.current_task()):
                if others := asyncio.all_tasks() - {myself}:
                    await asyncio.wait(others, timeout=AGAIN_S)
                await self.aclose()
            raise

    def leave(self) -> None:
        """Not ready from now on, and each connection is for one answer; all else goes on until `aclose`. For whoever
        is told to stop while load balancers still send."""
        self._is_leaving = True

    async def aclose(self) -> None:
        """Not ready at once; wait for the requests in flight (bounded), then close in reverse order: all, also if one
        fails, which is raised then."""
        self.leave()
        ending, self._ending = self._ending, None
        if ending is not None and ending is not asyncio.current_task():
            ending.cancel()
        if self._in_flight:
            self._idle = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), self._grace_s)
        try:
            async with contextlib.AsyncExitStack() as stack:
                for closer in self._closers:
                    stack.push_async_callback(closer)
        finally:
            self._is_started = False
            self._is_ended = True

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Any = None) -> AsyncIterator[None]:
        """For a host app's own lifespan: `async with gateway.lifespan(app): yield`."""
        await self.start()
        try:
            yield
        finally:
            await self.aclose()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self.start()
                except Exception as error:  # noqa: BLE001 - reported to the server, which stops
                    await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
                    return
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                try:
                    await self.aclose()
                except Exception as error:  # noqa: BLE001
                    await send({"type": "lifespan.shutdown.failed", "message": f"{type(error).__name__}: {error}"})
                    return
                await send({"type": "lifespan.shutdown.complete"})
                return


def _last_of_connection(send: Send) -> Send:
    """A kept connection would be closed under the client's next request."""

    def closing(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        return send(message)

    return closing


def _not_started(error: Exception) -> UnavailableError:
    if isinstance(error, UnavailableError):
        return error
    return UnavailableError(
        "The gateway is not ready: its database could not be opened or has another schema version. "
        "See its log; run `sidecar serve`, or pass migrate=True where you mount it.",
        code="not_ready",
        retry_after_s=1.0,
    )


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    refusal = NotFoundError(
        "The gateway does not serve this path. Chat completions are at /v1/chat/completions, responses at "
        "/v1/responses.",
        code="unknown_path",
    )
    await error_response(refusal)(scope, receive, send)
