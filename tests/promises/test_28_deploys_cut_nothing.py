"""*Deploys cut nothing.* SIGTERM with live streams: readiness drops at once, connections are still taken for a while,
no stream is cut within the grace, every row is settled, exit code 0; one process or several workers. A rolling restart
under streams loses no request of a client that honours readiness. Idle probes make no provider call.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.faults.provider import Fault, FaultProvider
from tests.promises.sizes import measured, size
from tests.promises.support import MASTER, Running, at_best, body, eventually, process

pytestmark = pytest.mark.anyio

STREAMS = size("PROMISE_28_STREAMS", 40, full=200)
ROLLING = size("PROMISE_28_ROLLING", 20, full=100)
DRAIN_S = 8
"""Long enough for the slowest machine to see that a gateway leaves, before it takes no connections any more."""
AT_ONCE_S = 1.0
"""From the signal to the first probe that finds it not ready."""
DONE = b"data: [DONE]\n\n"
HEADERS = {"authorization": f"Bearer {MASTER}"}


@pytest.fixture
def faults(provider_of_file: FaultProvider) -> FaultProvider:
    provider_of_file.reset()
    return provider_of_file


def one_by_one() -> httpx2.AsyncClient:
    """Each request on a connection of its own, as probes and new callers come."""
    return httpx2.AsyncClient(
        timeout=60, trust_env=False, verify=False, limits=httpx2.Limits(max_keepalive_connections=0)
    )


async def stream(http: httpx2.AsyncClient, url: str, begun: asyncio.Semaphore | None = None) -> bytes:
    """A whole streamed answer. `begun` counts those that have content."""
    answer = b""
    path = f"{url}/v1/chat/completions"
    async with http.stream("POST", path, headers=HEADERS, json=body(stream=True)) as response:
        assert response.status_code == 200, await response.aread()
        async for piece in response.aiter_bytes():
            answer += piece
            if begun is not None and b'"content":"one"' in answer:
                begun.release()
                begun = None
    return answer


async def is_taken(http: httpx2.AsyncClient, url: str) -> int | None:
    """The status `/readyz` answers with, or `None` where nobody takes the connection."""
    try:
        return (await http.get(f"{url}/readyz")).status_code
    except httpx2.TransportError:
        return None


def rows_of(folder: Path) -> list[tuple[str, str]]:
    """Status and outcome of every spend row, as they stand in the file of a gateway that has ended."""
    with contextlib.closing(sqlite3.connect(f"file:{folder}/sidecar.db?mode=ro", uri=True)) as database:
        return list(database.execute("SELECT status, outcome FROM spend"))


async def ended(running: Running, timeout_s: float = 60) -> int:
    assert running.process is not None
    return await asyncio.to_thread(running.process.wait, timeout_s)


@pytest.mark.parametrize("workers", [1, 3])
async def test_live_streams_end_whole_and_are_settled(tmp_path: Path, faults: FaultProvider, workers: int) -> None:
    server = {"workers": workers, "drain_s": DRAIN_S, "grace_s": 60}
    faults.script(*[Fault("held", drip_s=0.5)] * STREAMS)
    begun = asyncio.Semaphore(0)
    async with process(tmp_path, faults.base_url, top={"server": server}) as running, one_by_one() as http:
        assert running.process is not None
        await eventually(lambda: _is_ready(http, running.url), 60)
        streams = [asyncio.create_task(stream(http, running.url, begun)) for _ in range(STREAMS)]
        for _ in streams:
            await asyncio.wait_for(begun.acquire(), 60)
        told_at = time.monotonic()
        late_s = await told_to_end(http, running)
        # Whoever has not seen that yet is served, on a connection for this answer only.
        answer = await http.post(f"{running.url}/v1/chat/completions", headers=HEADERS, json=body())
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert (await http.get(f"{running.url}/healthz")).status_code == 200
        while await is_taken(http, running.url) is not None:
            assert time.monotonic() - told_at < 60
            await asyncio.sleep(0.1)
        taken_s = time.monotonic() - told_at
        assert taken_s >= DRAIN_S * 0.9
        assert not any(task.done() for task in streams)
        faults.release()
        answers = await asyncio.gather(*streams)
        assert [a for a in answers if not a.endswith(DONE)] == []
        assert await ended(running) == 0
    rows = rows_of(tmp_path)
    assert len(rows) == STREAMS + 1
    assert {outcome for _, outcome in rows} == {"ok"}
    assert "unknown" not in {status for status, _ in rows}
    tries = itertools.count()

    async def once() -> float:
        folder = tmp_path / f"try-{next(tries)}"
        folder.mkdir()
        server["drain_s"] = 600
        its = process(folder, faults.base_url, top={"server": server}, stop=signal.SIGINT)
        async with its as running, one_by_one() as http:
            await eventually(lambda: _is_ready(http, running.url), 60)
            return await told_to_end(http, running)

    late_s = await at_best(AT_ONCE_S, once, late_s)
    measured(
        28, f"{STREAMS} streams, {workers} workers: not ready after {1000 * late_s:.0f} ms, none cut, all rows settled"
    )


async def told_to_end(http: httpx2.AsyncClient, running: Running) -> float:
    """Seconds from the signal until a probe finds that the gateway is not ready."""
    assert running.process is not None
    running.process.send_signal(signal.SIGTERM)
    told_at = time.monotonic()
    while (status := await is_taken(http, running.url)) == 200:
        assert time.monotonic() - told_at < 60
        await asyncio.sleep(0.01)
    assert status == 503
    return time.monotonic() - told_at


async def _is_ready(http: httpx2.AsyncClient, url: str) -> bool:
    return await is_taken(http, url) == 200


async def test_slots_and_holds_are_free_for_the_successor(
    tmp_path: Path, faults: FaultProvider, redis_url: str
) -> None:
    """Leases would hold them for ten seconds more."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    store = {"database_url": f"sqlite:///{tmp_path}/shared.db", "redis_url": redis_url, "deadline_s": 20}
    config = {"store": store, "server": {"grace_s": 60}}
    faults.script(Fault("held", drip_s=0.1))
    async with process(first, faults.base_url, top=config) as running:
        assert running.process is not None
        key = await running.mint(max_parallel_requests=1, max_budget=0.001)
        going = asyncio.create_task(running.chat(key, body(stream=True)))
        await eventually(lambda: faults.requests and faults.requests[0].events_sent > 2)
        running.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        faults.release()
        assert (await going).content.endswith(DONE)
        assert await ended(running) == 0
    async with process(second, faults.base_url, top=config) as running:
        answer = await running.chat(key, body())
        assert answer.status_code == 200, answer.text


async def test_what_outlives_the_grace_is_cut_and_its_row_says_so(tmp_path: Path, faults: FaultProvider) -> None:
    faults.script(Fault("held", drip_s=0.1))
    begun = asyncio.Semaphore(0)
    server = {"grace_s": 1}
    async with process(tmp_path, faults.base_url, top={"server": server}) as running, one_by_one() as http:
        assert running.process is not None
        going = asyncio.create_task(stream(http, running.url, begun))
        await asyncio.wait_for(begun.acquire(), 60)
        running.process.send_signal(signal.SIGTERM)
        with pytest.raises(httpx2.TransportError):
            await going
        assert await ended(running) == 0
    ((_, outcome),) = rows_of(tmp_path)
    assert outcome != "ok"


async def test_an_interrupt_does_not_wait_for_load_balancers(tmp_path: Path, faults: FaultProvider) -> None:
    server = {"drain_s": 600, "grace_s": 5}
    async with process(tmp_path, faults.base_url, top={"server": server}) as running:
        assert running.process is not None
        await running.mint()
        running.process.send_signal(signal.SIGINT)
        assert await ended(running) == 0


async def test_a_connection_is_idle_for_longer_than_clients_keep_one(tmp_path: Path, faults: FaultProvider) -> None:
    """Stock clients keep it for five seconds: closed then, it would be closed just as its next request comes."""
    async with process(tmp_path, faults.base_url) as running:
        reader, writer = await asyncio.open_connection(*running.address)
        async with asyncio.timeout(60):
            for pause_s in (6, 0):
                writer.write(b"GET /healthz HTTP/1.1\r\nhost: gateway\r\n\r\n")
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
                await reader.readuntil(b"\n")
                await asyncio.sleep(pause_s)
        assert not reader.at_eof()
        writer.close()


async def test_idle_probes_make_no_provider_call(tmp_path: Path, faults: FaultProvider) -> None:
    before = faults.connections
    paths = ("/healthz", "/readyz", "/health/liveliness", "/health/liveness", "/health/readiness", "/metrics")
    async with process(tmp_path, faults.base_url) as running:
        for path in paths * 50:
            assert (await running.http.get(running.url + path)).status_code == 200
        assert await running.rows() == []
    assert (faults.requests, faults.connections) == ([], before)


@dataclass
class Fleet:
    """What a Service and its endpoints do: requests go round to those whose readiness probe passed last."""

    http: httpx2.AsyncClient
    ready: dict[str, bool] = field(default_factory=dict)
    _turn: Any = field(default_factory=itertools.count)

    async def probe(self, every_s: float = 0.1) -> None:
        async with one_by_one() as http:
            while True:
                for url in list(self.ready):
                    self.ready[url] = await is_taken(http, url) == 200
                await asyncio.sleep(every_s)

    def has_no(self, url: str) -> Callable[[], bool]:
        return lambda: not self.ready[url]

    def next(self) -> str:
        ready = [url for url, is_ready in self.ready.items() if is_ready]
        return ready[next(self._turn) % len(ready)]


@contextlib.asynccontextmanager
async def fleet() -> AsyncIterator[Fleet]:
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=200, keepalive_expiry=1)
    async with httpx2.AsyncClient(timeout=60, trust_env=False, verify=False, limits=limits) as http:
        made = Fleet(http)
        probing = asyncio.create_task(made.probe())
        try:
            yield made
        finally:
            probing.cancel()


async def test_a_rolling_restart_of_three_under_streams_loses_no_request(tmp_path: Path, faults: FaultProvider) -> None:
    numbers = itertools.count()
    config = {"server": {"drain_s": 600, "grace_s": 60}}
    whole = 0
    is_over = False
    slow = Fault(drip_s=0.1)

    async with fleet() as service, contextlib.AsyncExitStack() as stack:

        async def start() -> Running:
            folder = tmp_path / str(next(numbers))
            folder.mkdir()
            its = process(folder, faults.base_url, top=config, stop=signal.SIGINT)
            running = await stack.enter_async_context(its)
            service.ready[running.url] = False
            await eventually(lambda: service.ready[running.url], 60)
            return running

        async def caller() -> None:
            nonlocal whole
            while not is_over:
                faults.script(slow)
                answer = await stream(service.http, service.next())
                assert answer.endswith(DONE)
                whole += 1

        old = await asyncio.gather(*(start() for _ in range(3)))
        callers = [asyncio.create_task(caller()) for _ in range(ROLLING)]
        for leaving in old:
            await start()
            assert leaving.process is not None
            before = whole
            leaving.process.send_signal(signal.SIGTERM)
            # As if `drain_s` were just as long as whoever looks after readiness needs.
            await eventually(service.has_no(leaving.url), 60)
            leaving.process.send_signal(signal.SIGINT)
            assert await ended(leaving) == 0
            del service.ready[leaving.url]
            assert whole > before
            assert not any(task.done() for task in callers), [t.exception() for t in callers if t.done()]
        is_over = True
        await asyncio.gather(*callers)
    assert whole >= ROLLING * 3
    measured(28, f"3 processes replaced under {ROLLING} streams at a time: {whole} whole answers, 0 lost")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads the workers' pids from /proc")
async def test_a_worker_that_takes_anothers_place_meanwhile_is_never_ready(
    tmp_path: Path, faults: FaultProvider
) -> None:
    top = {"server": {"workers": 2, "drain_s": 600, "grace_s": 5}}
    its = process(tmp_path, faults.base_url, top=top, stop=signal.SIGINT)
    async with its as running, one_by_one() as http:
        assert running.process is not None
        await eventually(lambda: _started(running) == 2, 60)
        running.process.send_signal(signal.SIGTERM)
        await eventually(lambda: _has_left(http, running.url), 60)
        for worker in _workers_of(running.process.pid):
            os.kill(worker, signal.SIGKILL)
        seen = set()
        while _started(running) < 4:  # the parent replaces them one after the other
            seen.add(await is_taken(http, running.url))
            assert seen <= {None, 503}
        assert await _has_left(http, running.url)
        running.process.send_signal(signal.SIGINT)
        assert await ended(running) == 0


def _started(running: Running) -> int:
    """How many workers have come up so far."""
    assert running.output is not None
    return running.output.read_text(errors="replace").count("Application startup complete")


async def _has_left(http: httpx2.AsyncClient, url: str) -> bool:
    """Ten probes in a row, so of all workers there are."""
    return [await is_taken(http, url) for _ in range(10)] == [503] * 10


def _workers_of(parent: int) -> list[int]:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [pid for pid in map(int, children) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
