"""The simulated provider as an ASGI app: deterministic answers in OpenAI's and Anthropic's dialects, for the demo, for
tests and for users' CI. Model names trigger its behaviours (see `translate.simulate`).

    uvicorn sidecar.simulated:app        # then: {provider: simulated, base_url: http://127.0.0.1:8000/v1}
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Literal

from sidecar.asgi import Message, Receive, Scope, Send
from sidecar.translate.simulate import simulate

_DIALECTS: dict[str, Literal["openai", "anthropic"]] = {
    "/v1/chat/completions": "openai",
    "/chat/completions": "openai",
    "/v1/messages": "anthropic",
}
Seen = Callable[[str, list[tuple[bytes, bytes]], bytes], None]


class SimulatedProvider:
    """`on_request(path, headers, body)` is called with what arrived, so that a demo can show it."""

    def __init__(self, on_request: Seen | None = None) -> None:
        self.on_request = on_request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message: Message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        if self.on_request is not None:
            self.on_request(scope["path"], scope["headers"], body)
        dialect = _DIALECTS.get(scope["path"])
        if dialect is None or scope["method"] != "POST":
            answer = b'{"error":{"message":"not found","type":"invalid_request_error","param":null,"code":null}}'
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
            await send({"type": "http.response.start", "status": 404, "headers": headers})
            await send({"type": "http.response.body", "body": answer})
            return
        simulated = simulate(dialect, body)
        await send({"type": "http.response.start", "status": simulated.status, "headers": simulated.headers})
        for delay_s, piece in simulated.pieces:
            if delay_s:
                await asyncio.sleep(delay_s)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        if simulated.is_cut:
            raise ConnectionAbortedError("cut, as the model name asked for")
        await send({"type": "http.response.body", "body": b"", "more_body": False})


app = SimulatedProvider()


@contextlib.asynccontextmanager
async def serve(asgi_app: object, *, port: int = 0) -> AsyncIterator[str]:
    """Serve an ASGI app on loopback within this process; gives its base URL."""
    import uvicorn

    config = uvicorn.Config(
        asgi_app,  # type: ignore[arg-type]
        host="127.0.0.1",
        port=port,
        log_level="critical",
        lifespan="auto",
        ws="none",
        timeout_keep_alive=75,  # longer than clients keep an idle connection: none is closed as it is used again
        timeout_graceful_shutdown=10,  # a client that neither reads nor leaves does not hold the program
    )
    server = uvicorn.Server(config)
    # The embedding program keeps its own signal handlers.
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    task = asyncio.create_task(server.serve())
    try:
        while not server.started:
            if task.done():
                await task
                raise RuntimeError("the server did not start")
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
