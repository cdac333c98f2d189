"""The transports under one contract. A case a transport cannot keep stands in `support.DECLINES` with its reason."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from sidecar.upstream.base import Transport
from sidecar.upstream.httptools_transport import HttptoolsTransport
from sidecar.upstream.httpx2_transport import Httpx2Transport
from sidecar.upstream.parsers import H11Parser, HttptoolsParser
from tests.upstream.support import DECLINES, settled, sockets_open

KINDS = ["httptools", "httptools-uvloop", "h11", "httpx2"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    transport = kind.removesuffix("-uvloop")
    case = getattr(request.node, "originalname", request.node.name)
    if (transport, case) in DECLINES:
        pytest.skip(f"{transport} declines: {DECLINES[transport, case]}")
    return kind


@pytest.fixture
def anyio_backend(kind: str) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": kind.endswith("uvloop")}


@pytest.fixture
async def make(kind: str) -> AsyncIterator[Callable[..., Transport]]:
    """`make(**options)` builds the transport; after the test it is closed and has left no task and no socket."""
    sockets = sockets_open()
    made: list[Transport] = []

    def build(**options: Any) -> Transport:
        if kind == "httpx2":
            made.append(Httpx2Transport(**options))
        else:
            parser = H11Parser if kind == "h11" else HttptoolsParser
            made.append(HttptoolsTransport(parser=parser, **options))
        return made[-1]

    yield build
    for transport in made:
        await transport.aclose()
    await settled()
    left = [t for t in asyncio.all_tasks() if not t.get_coro().__qualname__.startswith("TestRunner.")]
    assert not left, f"tasks left: {left}"
    assert sockets_open() <= sockets, "sockets left open"


@pytest.fixture
def transport(make: Callable[..., Transport]) -> Transport:
    return make()
