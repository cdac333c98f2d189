"""*No row, no upstream byte.* Fuzzed combinations of host, path, encoding, method, mount, headers and bodies without or
with bad credentials, over raw sockets: the provider never sees a connection (`PROMISE_7_REQUESTS`, 2,000 by default).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from sidecar.asgi import ASGIApp, Receive, Scope, Send
from sidecar.gateway import Gateway
from tests.faults.provider import FaultProvider
from tests.promises.sizes import measured, size
from tests.promises.support import PROVIDER_KEY, Running, body, raw, served

pytestmark = pytest.mark.anyio
REQUESTS = size("PROMISE_7_REQUESTS", 2000, full=10_000)


class RootPath:
    """A server that was told a `root_path`, as behind a stripping proxy."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "root_path": "/llm", "path": "/llm" + scope["path"]}
        await self.app(scope, receive, send)


def mounted(gateway: Gateway) -> ASGIApp:
    return Starlette(routes=[Mount("/llm", app=gateway)])


def mounted_twice(gateway: Gateway) -> ASGIApp:
    return Starlette(routes=[Mount("/a", app=Starlette(routes=[Mount("/b", app=gateway)])), Mount("/llm", app=gateway)])


MOUNTS: dict[str, Callable[[Gateway], ASGIApp]] = {
    "served": lambda gateway: gateway,
    "mounted": mounted,
    "mounted twice": mounted_twice,
    "root_path": RootPath,
}
PATHS = (
    "/v1/chat/completions", "/chat/completions", "/v1/responses", "/responses", "/v1/responses/resp_1",
    "/v1/responses/resp_1/cancel", "/v1/models", "/models", "/v1/messages", "/v1/embeddings", "/v1/completions",
    "/key/generate", "/key/info", "/key/list", "/spend/logs", "/spend/keys",
    "/healthz", "/metrics", "/readyz", "/", "*", "", "/v1", "/openai/v1/chat/completions", "/anthropic/v1/messages",
    "/engines/gpt/chat/completions", "/openai/deployments/gpt/chat/completions",
)  # fmt: skip
DOORS = 4
"""The first ones of them are what calls models."""
METHODS = (
    "POST", "POST", "POST", "POST", "GET", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "post",
    "Post", "PROPFIND", "SEARCH", "QUERY", "FOO",
)  # fmt: skip
HOSTS = (
    "gateway", "127.0.0.1", "localhost", "api.openai.com", "", "a@b", "gateway:99999", "[::1]", "../x", "xn--0",
    "127.0.0.1, x",
)  # fmt: skip
INSERTS = (
    "/", "//", "/./", "/../", "/%2e%2e/", "/%2E/", ";", ";x=1", "%00", "%0a", "%0d%0a", "%c0%af", "%ff", "\\", "%5c",
    "%2f", "/v1/..", "\xe9", "..;/", "/healthz/../", "/metrics/..",
)  # fmt: skip
QUERIES = ("?", "?key=1", "?api_key={key}", "?a=b&a=c", "?%00", "?/v1/chat/completions", "#x")
CREDENTIAL_HEADERS = (
    "authorization", "Authorization", "AUTHORIZATION", "x-api-key", "api-key", "x-goog-api-key", "cookie",
    "proxy-authorization", "x-sidecar-key", "x-litellm-api-key",
)  # fmt: skip
UPGRADES: tuple[list[tuple[str, str]], ...] = (
    [
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ],
    [("upgrade", "h2c"), ("connection", "Upgrade, HTTP2-Settings"), ("http2-settings", "AAMAAABkAAQCAAAAAAIAAAAA")],
)
MISLEADING = [
    ("x-original-url", "/v1/chat/completions"),
    ("x-rewrite-url", "/chat/completions"),
    ("x-forwarded-prefix", "/llm"),
    ("x-http-method-override", "POST"),
    ("x-forwarded-host", "api.openai.com"),
    ("x-forwarded-for", "127.0.0.1"),
    ("forwarded", "for=127.0.0.1"),
    ("x-script-name", "/llm"),
    ("x-user-id", "admin"),
    ("x-authenticated-user", "admin"),
    ("host", "second"),
    ("content-length", "0"),
    ("transfer-encoding", "identity"),
    ("te", "trailers"),
]
OPEN = frozenset(
    f"{prefix}{path}"
    for prefix in ("", "/llm", "/a/b")
    for path in ("/healthz", "/readyz", "/health/liveliness", "/health/liveness", "/health/readiness", "/metrics")
)


@dataclass
class Fuzz:
    """Half of the requests are plain but for their credentials, so that they come as far as the key check."""

    draw: random.Random
    valid_key: str
    prefix: str

    def target(self) -> str:
        draw = self.draw
        path = draw.choice(("", "", "/llm", "/a/b", "/llm/llm", "//llm"))
        path += draw.choice(PATHS[:DOORS] if draw.random() < 0.6 else PATHS)
        for _ in range(draw.choice((0, 0, 1, 1, 2, 3))):
            path = draw.choice(self.mutations())(path)
        if draw.random() < 0.1:
            path = draw.choice(("http://gateway", "http://api.openai.com", "https://127.0.0.1:1", "//evil")) + path
        if draw.random() < 0.3:
            path += draw.choice(QUERIES).format(key=self.valid_key)
        return path

    def mutations(self) -> list[Callable[[str], str]]:
        draw = self.draw

        def encode(path: str) -> str:
            place = draw.randrange(max(1, len(path)))
            return f"{path[:place]}%{ord(path[place]):02{draw.choice('xX')}}{path[place + 1 :]}" if path else path

        def insert(path: str) -> str:
            place = draw.randrange(len(path) + 1)
            return path[:place] + draw.choice(INSERTS) + path[place:]

        return [
            encode, lambda p: encode(p).replace("%", "%25"), insert, insert, str.upper, str.title, lambda p: p + "/",
            lambda p: "/" + p, lambda p: p + ".json", lambda p: "/healthz/.." + p, lambda p: "/metrics" + p,
            lambda p: p[1:], lambda p: p.replace("/", "%2f"),
        ]  # fmt: skip

    def credentials(self) -> list[tuple[str, str]]:
        draw, key = self.draw, self.valid_key
        digest = hashlib.sha256(key.encode()).hexdigest()
        secret = draw.choice((
            "", "sk-wrong", "null", "undefined", PROVIDER_KEY, key[:-1], key + "x", key.upper(), digest, "*",
            "sk-" + "0" * 64, "sk-" + key[:8] + "..." + key[-4:], "Bearer Bearer " + key, "' OR 1=1 --",
            "sk-" + "a" * 5000, key.replace("sk-", ""), "sidecar-master", "master",
        ))  # fmt: skip
        name = draw.choice(CREDENTIAL_HEADERS)
        found = [(name, draw.choice(("Bearer ", "bearer ", "Basic ", "", "Token ", "Bearer  ", "Bearer\t")) + secret)]
        if draw.random() < 0.15:
            found.append((name, draw.choice(("Bearer ", "")) + draw.choice(("sk-wrong", digest, PROVIDER_KEY))))
        return [] if draw.random() < 0.25 else found

    def request(self) -> tuple[str, str, bytes]:
        draw = self.draw
        is_plain = draw.random() < 0.5
        method, target = ("POST", self.prefix + draw.choice(PATHS[:DOORS])) if is_plain else self.line()
        payload: Any = body(
            draw.choice(("gpt", "claude", "openai/gpt-4o", "nothing")), stream=draw.random() < 0.3, input="hi"
        )
        if draw.random() < 0.2:
            payload |= {"api_key": self.valid_key, "user": "x", "authorization": f"Bearer {self.valid_key}"}
        content = draw.choice((json.dumps(payload).encode(),) * 4 + (b"", b"{", b"\xff" * 9))
        headers = [*self.credentials(), ("content-type", "application/json")]
        headers.append(("host", "gateway" if is_plain else draw.choice(HOSTS)))
        version = "HTTP/1.1"
        if not is_plain:
            if draw.random() < 0.1:
                headers += draw.choice(UPGRADES)
            if draw.random() < 0.3:
                headers += draw.sample(MISLEADING, 2)
            version = draw.choice(("HTTP/1.1",) * 8 + ("HTTP/1.0", "HTTP/1.2", "HTTP/2.0"))
        elif draw.random() < 0.3:
            headers += draw.sample(MISLEADING[:10], 2)
        if draw.random() < 0.15 and content:
            coding = "chunked" if is_plain else draw.choice(("chunked", "Chunked", " chunked", "chunked, chunked"))
            headers.append(("transfer-encoding", coding))
            content = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
        else:
            headers.append(("content-length", str(len(content))))
        draw.shuffle(headers)
        lines = [f"{method} {target} {version}", *(f"{n}: {v}" for n, v in headers), "connection: close"]
        return method, target, "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + content

    def line(self) -> tuple[str, str]:
        return self.draw.choice(METHODS), self.target()


@pytest.fixture(params=MOUNTS)
async def gateway(request: pytest.FixtureRequest, faults: FaultProvider, tmp_path: Any) -> AsyncIterator[Running]:
    async with served(tmp_path, faults.base_url, mount=MOUNTS[request.param]) as running:
        yield running


async def test_no_request_without_a_good_key_reaches_the_provider(
    gateway: Running, faults: FaultProvider, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.params["gateway"]
    prefix = "/llm" if name in ("mounted", "mounted twice") else ""
    gateway.url += prefix
    key = await gateway.mint()
    fuzz = Fuzz(random.Random(f"7 {name}"), key, prefix)
    turns = asyncio.Semaphore(24)
    statuses: Counter[int] = Counter()
    connections = faults.connections

    async def one(method: str, target: str, data: bytes) -> None:
        async with turns:
            answer = await raw(gateway.address, data)
        assert faults.connections == connections, f"the provider was called by {data[:2000]!r}"
        status = int(answer[9:12]) if answer.startswith(b"HTTP/1.") else 0
        statuses[status] += 1
        assert status < 500, f"{data[:500]!r} got {answer!r}"
        if status == 200:
            plain = target.partition("?")[0].partition("#")[0]
            assert method in ("GET", "HEAD"), f"{data[:500]!r} got {answer[:500]!r}"
            assert any(plain.endswith(path) for path in OPEN) or "%" in plain, f"{data[:500]!r} got {answer[:500]!r}"

    async with asyncio.TaskGroup() as group:
        for _ in range(REQUESTS // len(MOUNTS)):
            group.create_task(one(*fuzz.request()))
    assert not faults.requests
    assert await gateway.rows() == []
    assert gateway.live_exchanges == 0
    measured(7, f"{name}: {sum(statuses.values())} requests, none arrived")
    # The same doors open with the key: the fuzzing knocked at the right house.
    assert statuses[401] > REQUESTS // len(MOUNTS) // 3
    assert (await gateway.chat(key, body())).status_code == 200
    assert len(faults.requests) == 1
