"""A streaming ASGI driver: calls an app as a server would, gives each message as it is sent, can leave at any point."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from sidecar.asgi import ASGIApp, Message


@dataclass
class Answer:
    messages: list[Message] = field(default_factory=list)
    receives: int = 0

    @property
    def status(self) -> int:
        return next(m["status"] for m in self.messages if m["type"] == "http.response.start")

    @property
    def headers(self) -> dict[str, str]:
        start = next(m for m in self.messages if m["type"] == "http.response.start")
        return {k.decode().lower(): v.decode("latin-1") for k, v in start["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.messages if m["type"] == "http.response.body")

    @property
    def is_ended(self) -> bool:
        return any(m["type"] == "http.response.body" and not m.get("more_body") for m in self.messages)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return self.json()["error"]


def http_scope(
    path: str = "/v1/chat/completions",
    *,
    method: str = "POST",
    headers: dict[str, str] | None = None,
    root_path: str = "",
    query: bytes = b"",
) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": root_path + path,
        "raw_path": (root_path + path).encode("utf-8"),
        "query_string": query,
        "root_path": root_path,
        "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in (headers or {}).items()],
        "server": ("127.0.0.1", 4000),
        "client": ("127.0.0.1", 50000),
        "state": {},
    }


async def call(
    app: ASGIApp,
    body: Any = None,
    *,
    scope: dict[str, Any] | None = None,
    pieces: int = 1,
    leave_after: int | None = None,
    timeout_s: float = 60.0,
    **scope_args: Any,
) -> Answer:
    """One request. `pieces` splits the body; `leave_after=n` disconnects once n messages were sent (0: right after the
    body)."""
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    scope = scope if scope is not None else http_scope(**scope_args)
    size = max(1, -(-len(raw) // pieces))
    parts = [raw[i : i + size] for i in range(0, len(raw), size)] or [b""]
    answer = Answer()
    left = asyncio.Event()

    async def receive() -> Message:
        if parts:
            answer.receives += 1
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}
        if leave_after == 0:
            left.set()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if left.is_set():
            return  # as uvicorn does
        answer.messages.append(message)
        if leave_after is not None and len(answer.messages) >= leave_after:
            left.set()
        if message["type"] == "http.response.body" and not message.get("more_body"):
            left.set()
        await asyncio.sleep(0)

    async with asyncio.timeout(timeout_s):
        await app(scope, receive, send)
    return answer
