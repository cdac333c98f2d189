"""Parts for middleware tests: an app that speaks OpenAI's dialect, a foreign middleware, ready collaborators."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from sidecar.admit import AdmissionPolicy
from sidecar.asgi import ASGIApp, Message, Receive, Scope, Send
from sidecar.limits.admission import Admission
from sidecar.limits.store import open_store
from sidecar.metrics import Metrics
from sidecar.routing.catalog import Catalog
from sidecar.spend.prices import price_from_config
from sidecar.types import NANO, Budget, Deployment, Identity, Limits, SpendRecord

PRICE = price_from_config({"input": Decimal(10), "output": Decimal(20)})
DEPLOYMENT = Deployment(
    deployment_id="d1",
    group="gpt",
    provider="openai",
    model="gpt-4o-mini",
    base_url="http://127.0.0.1:9",
    price=PRICE,
    max_output_tokens=100,
)
CALLER = Identity(
    key_hash="a" * 64,
    key_alias="test",
    limits=Limits(rpm=1000, tpm=10_000_000, concurrency=50),
    budgets=(Budget(max_nano=NANO),),
)
BODY = {"model": "gpt", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 50}
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
COST_NANO = 7 * 10_000 + 5 * 20_000


class Speaker:
    """The end of a stack: answers in OpenAI's dialect, unstreamed or streamed, and notes what it was asked."""

    def __init__(self, *, gap: asyncio.Event | None = None) -> None:
        self.bodies: list[bytes] = []
        self.disconnects = 0
        self.gap = gap

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.bodies.append(body)
        payload = json.loads(body)
        if not payload.get("stream"):
            if self.gap is not None:
                await self._left(receive)
                return
            answer = {
                "id": "c1", "object": "chat.completion", "created": 1, "model": "m", "usage": USAGE,
                "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}],
            }  # fmt: skip
            raw = json.dumps(answer).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": raw})
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for text in ("h", "i"):
            await send({"type": "http.response.body", "body": chunk({"content": text}), "more_body": True})
        if self.gap is not None:
            await self._left(receive)
            return
        last = chunk({}, finish="stop") + event({**_BASE, "choices": [], "usage": USAGE}) + b"data: [DONE]\n\n"
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _left(self, receive: Receive) -> None:
        if (await receive())["type"] == "http.disconnect":
            self.disconnects += 1


_BASE: dict[str, Any] = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    return event({**_BASE, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


class Foreign:
    """Somebody else's middleware: copies the scope, wraps receive and send."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def wrapped_receive() -> Message:
            return await receive()

        async def wrapped_send(message: Message) -> None:
            await send(message)

        await self.app({**scope, "state": {}}, wrapped_receive, wrapped_send)


class Keys:
    """One key, known beforehand."""

    def __init__(self, identity: Identity = CALLER) -> None:
        self.identity = identity

    def cached(self, token: str) -> Identity | None:
        return self.identity if token == "sk-good" else None

    async def lookup(self, token: str) -> Identity:
        from sidecar.errors import AuthenticationError

        raise AuthenticationError("The gateway does not know this key.")


class Rows:
    """A recorder that keeps its rows in lists."""

    def __init__(self) -> None:
        self.intents: list[SpendRecord] = []
        self.records: list[SpendRecord] = []

    async def intent(self, record: SpendRecord) -> None:
        await asyncio.sleep(0)
        self.intents.append(record)

    async def record(self, record: SpendRecord) -> None:
        await asyncio.sleep(0)
        self.records.append(record)


def make_policy(
    catalog: Catalog | None = None, *, clock: Callable[[], float] = time.time, **options: Any
) -> AdmissionPolicy:
    admission = Admission(open_store("memory://", clock=clock), clock=clock, seed=_nothing_spent, **options)
    return AdmissionPolicy(admission, catalog if catalog is not None else Catalog([DEPLOYMENT]))


async def _nothing_spent(windows: Any) -> dict[str, int]:
    return {window.key: 0 for window in windows}


def metrics() -> Metrics:
    return Metrics()


Wrap = Callable[[ASGIApp], ASGIApp]
