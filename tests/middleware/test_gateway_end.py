"""The end of a gateway: everything is closed, whatever one part says to that."""

from __future__ import annotations

import pytest

from sidecar.asgi import Receive, Scope, Send
from sidecar.gateway import Gateway

pytestmark = pytest.mark.anyio


async def nothing(scope: Scope, receive: Receive, send: Send) -> None: ...


async def test_a_part_that_fails_to_close_keeps_no_other_open() -> None:
    closed: list[str] = []

    async def database() -> None:
        closed.append("database")

    async def journal() -> None:
        closed.append("journal")

    async def cache() -> None:
        raise OSError("the socket is gone")

    gateway = Gateway(nothing, [], render_metrics=bytes, closers=[database, journal, cache])
    with pytest.raises(OSError, match="the socket is gone"):
        async with gateway.lifespan():
            pass
    assert closed == ["journal", "database"]
