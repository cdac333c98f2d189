"""A client that stays and reads nothing: its request ends with the attempt's time, and what it held is free."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest

from tests.faults.provider import Fault, FaultProvider
from tests.promises.support import body, eventually, served

pytestmark = pytest.mark.anyio


async def test_a_client_that_reads_nothing_holds_nothing_for_longer_than_the_attempt_may_last(
    tmp_path: Path, faults: FaultProvider
) -> None:
    top = {"server": {"heartbeat_s": 0.4}}
    async with served(tmp_path, faults.base_url, top=top, deployment={"timeouts": {"total_s": 6}}) as gateway:
        key = await gateway.mint(max_parallel_requests=1, max_budget=1000)
        faults.script(Fault("endless"))
        host, _, port = gateway.url.removeprefix("http://").partition(":")
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, (host, int(port)))
            asked = json.dumps(body("gpt", stream=True) | {"max_tokens": 10_000_000}).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
            head += f"content-type: application/json\r\ncontent-length: {len(asked)}\r\n\r\n"
            await asyncio.get_running_loop().sock_sendall(client, head.encode() + asked)
            await eventually(lambda: bool(faults.requests))
            await gateway.is_free(key)
            await eventually(lambda: gateway.live_exchanges == 0)
        rows = await gateway.rows(key, at_least=2)
        (row,) = [row for row in rows if row["outcome"] != "ok"]
        assert row["outcome"] == "client_left"
        assert float(row["spend"]) > 0
