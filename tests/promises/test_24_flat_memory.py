"""*Flat memory, bounded metrics.* Requests with ever new models, keys, users, tags and ids (`PROMISE_24_REQUESTS`):
memory is flat after warm-up, the number of series does not change, counters never go back over several workers; a
finished request leaves nothing for the garbage collector to find.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import re
import secrets
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.faults.provider import Fault, FaultProvider
from tests.promises.sizes import measured, size
from tests.promises.support import MODELS, Running, body, eventually, process

pytestmark = pytest.mark.anyio
REQUESTS = size("PROMISE_24_REQUESTS", 3_000, full=10_000)
CONNECTIONS = 16
GROWTH_BYTES = 16_000_000
"""What a process may grow after its warm-up, the same for any number of requests: the bounded memories of keys and
users (10,000 each) fill, the allocator rounds up."""


async def finished(gateway: Running, key: str, model: str) -> None:
    """One of each way a request ends."""
    ask = body(model)
    assert (await gateway.chat(key, ask)).status_code == 200
    assert (await gateway.chat(key, body(model, stream=True))).status_code == 200
    assert (await gateway.chat(None, ask)).status_code == 401
    assert (await gateway.chat("sk-" + secrets.token_urlsafe(32), ask)).status_code == 401
    assert (await gateway.chat(key, body(f"junk-{secrets.token_hex(4)}"))).status_code == 404
    assert (await gateway.chat(key, {"model": model, "messages": 7})).status_code == 400
    assert (await gateway.http.get(gateway.url + "/healthz")).status_code == 200


def ours() -> Counter[str]:
    kinds = (type(thing) for thing in gc.get_objects())
    return Counter(kind.__qualname__ for kind in kinds if str(kind.__module__).startswith(("sidecar.", "uvicorn.")))


def most(counts: Counter[str]) -> int:
    return max(counts.values(), default=0)


@pytest.mark.parametrize("model", MODELS)
async def test_a_finished_request_leaves_nothing_to_collect(
    gateway: Running, faults: FaultProvider, model: str
) -> None:
    key = await gateway.mint()
    await finished(gateway, key, model)
    gc.collect()
    before = ours()
    gc.disable()
    try:
        for _ in range(10):
            await finished(gateway, key, model)
            faults.script(Fault("status", status=500), Fault("cut", after=3))
            assert (await gateway.chat(key, body(model))).status_code == 500
            assert (await gateway.chat(key, body(model, stream=True))).status_code == 200
        await eventually(lambda: most(ours() - before) < 10, 60, lambda: f"none for each request: {ours() - before}")
    finally:
        gc.enable()


class Flood:
    """Junk over kept connections: what a stranger or a careless script can make new in a request."""

    def __init__(self, gateway: Running, keys: list[str]) -> None:
        self._gateway = gateway
        self._keys = keys
        self.chats = 0
        self.answers: Counter[int] = Counter()

    async def run(self, count: int) -> None:
        numbers = iter(range(count))
        await asyncio.gather(*(self._connection(numbers) for _ in range(CONNECTIONS)))

    async def _connection(self, numbers: Iterator[int]) -> None:
        reader, writer = await asyncio.open_connection(*self._gateway.address)
        try:
            for number in numbers:
                writer.write(self._request(number))
                head = await reader.readuntil(b"\r\n\r\n")
                self.answers[int(head[9:12])] += 1
                length = re.search(rb"content-length: (\d+)", head)
                assert length is not None, head
                await reader.readexactly(int(length[1]))
        finally:
            writer.close()
            await writer.wait_closed()

    def _request(self, number: int) -> bytes:
        junk = secrets.token_hex(24)
        kind = number % 16
        model = f"junk/{junk}" if kind < 4 else MODELS[kind % 2]
        key = {4: f"sk-{junk}", 5: junk}.get(kind, self._keys[number % len(self._keys)])
        fields: dict[str, Any] = {"user": f"user-{junk}"} if kind in (6, 7) else {}
        path = f"/v1/{junk}" if kind == 8 else "/v1/chat/completions"
        self.chats += kind != 8
        content = json.dumps(body(model, **fields)).encode()
        return (
            f"POST {path} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key}\r\nx-request-id: {junk}\r\n"
            f"x-sidecar-tags: {junk}\r\nx-{junk}: 1\r\ncontent-length: {len(content)}\r\n\r\n"
        ).encode() + content


async def scrape(gateway: Running) -> dict[str, float]:
    text = (await gateway.http.get(gateway.url + "/metrics")).text
    samples = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def is_counter(name: str) -> bool:
    return name.partition("{")[0].endswith(("_total", "_count", "_bucket", "_sum"))


async def is_ready(gateway: Running) -> bool:
    try:
        return (await gateway.http.get(gateway.url + "/readyz")).status_code == 200
    except httpx2.TransportError:
        return False


async def test_memory_and_the_number_of_series_stay(provider_of_file: FaultProvider, tmp_path: Path) -> None:
    async with process(tmp_path, provider_of_file.base_url) as gateway:
        assert gateway.process is not None
        memory = psutil.Process(gateway.process.pid).memory_info
        flood = Flood(gateway, [await gateway.mint(key_alias=f"key-{n}") for n in range(8)])
        await flood.run(REQUESTS // 2)
        warm, series = memory().rss, await scrape(gateway)
        await flood.run(REQUESTS // 2)
        grown = memory().rss - warm
        assert (await scrape(gateway)).keys() == series.keys()
        assert {200, 401, 404} <= flood.answers.keys() <= {200, 401, 403, 404, 503}
        assert flood.answers[503] <= REQUESTS // 100  # on a crowded machine a look-up of a key may take too long
        measured(24, f"{flood.answers.total()} requests: {grown / 1e6:+.1f} MB over the second half on "
                 f"{warm / 1e6:.0f} MB, {len(series)} series before and after")  # fmt: skip
        assert grown < GROWTH_BYTES
        assert provider_of_file.requests
    provider_of_file.requests.clear()


async def test_counters_only_grow_and_are_exact_over_workers(provider_of_file: FaultProvider, tmp_path: Path) -> None:
    async with process(tmp_path, provider_of_file.base_url, top={"server": {"workers": 2}}) as gateway:
        await eventually(lambda: is_ready(gateway), 60, lambda: "the workers")
        flood = Flood(gateway, [await gateway.mint() for _ in range(2)])
        seen = [await scrape(gateway)]

        async def requests() -> float:
            seen.append(await scrape(gateway))
            return sum(value for name, value in seen[-1].items() if name.startswith("sidecar_requests_total"))

        for _ in range(4):
            await flood.run(160)
            await requests()

        async def is_exact() -> bool:
            return await requests() == flood.chats

        await eventually(is_exact, 60, lambda: f"{flood.chats} requests counted, not {seen[-1]}")
        falls = [
            (name, earlier[name], later.get(name))
            for earlier, later in itertools.pairwise(seen)
            for name in earlier
            if is_counter(name) and later.get(name, 0) < earlier[name]
        ]
        assert falls == []
    provider_of_file.requests.clear()
