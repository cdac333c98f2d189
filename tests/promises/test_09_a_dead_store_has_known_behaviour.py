"""*A dead store has known behaviour.* Two `sidecar serve` on one PostgreSQL and one Redis, under load, with streams in
flight. First Redis is frozen with SIGSTOP, then PostgreSQL, each for `PROMISE_9_SECONDS`.

While Redis is frozen: 503 `limit_store_unavailable` by the policy `closed`, or answers by the policy `open`; never 401.
While PostgreSQL is frozen: known keys are served (for `auth.key_cache_s`), unknown ones and the management API get 503.
In both: after the first deadline refusals come at once, streams that run end whole, liveness and readiness answer.
Afterwards everything works unaided, every whole answer has exactly one row, and counters agree with the rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import psutil
import pytest

from tests.faults.provider import Fault, FaultProvider
from tests.promises.fleet import Fleet, fleet
from tests.promises.sizes import measured, size
from tests.promises.support import MASTER, Running, at_best, body, eventually
from tests.servers.redis import LocalServer

pytestmark = pytest.mark.anyio
SECONDS = size("PROMISE_9_SECONDS", 3, full=60)
DEADLINE_S = 1.5
"""Three times the default: what is shown is that nothing waits for ever, not that a busy machine is quick."""
PATIENCE_S = 45.0
"""Far above every deadline, below a frozen minute: an answer that takes longer is taken for one that hung."""
WITHOUT_REDIS_S = 2 * DEADLINE_S
WITHOUT_POSTGRES_S = 4.0
"""Twice what a lookup may last. No call is to take longer while the store is frozen."""
PROBE_S = DEADLINE_S / 3
REFUSED = (503, "limit_store_unavailable")


@contextlib.contextmanager
def frozen_redis(server: LocalServer) -> Iterator[None]:
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


@contextlib.asynccontextmanager
async def frozen_postgres(url: str) -> AsyncIterator[None]:
    """All of its processes: the one that listens first, so that no new one begins."""
    connection = await asyncpg.connect(url, timeout=120)
    main = psutil.Process(await connection.fetchval("SELECT pg_backend_pid()")).parent()
    assert main is not None
    assert "postgres" in main.name()
    await connection.close()
    stopped: list[psutil.Process] = [main]
    main.send_signal(signal.SIGSTOP)
    try:
        for child in main.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(signal.SIGSTOP)
                stopped.append(child)
        yield
    finally:
        for one in reversed(stopped):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGCONT)


@dataclass
class Load:
    """Calls of one key at all gateways, some streamed, until told to stop; what came of them, and how long it took."""

    fleet: Fleet
    key: str
    whole: set[str] = field(default_factory=set)
    statuses: Counter[tuple[int, str]] = field(default_factory=Counter)
    took: list[tuple[float, float]] = field(default_factory=list)
    """When each began, and how long it took."""
    under_way: dict[str, float] = field(default_factory=dict)
    is_over: bool = False
    number: int = 0

    async def run(self, clients: int) -> None:
        async with httpx2.AsyncClient(timeout=PATIENCE_S, trust_env=False, verify=False) as http:
            await asyncio.gather(*(self._go_on(http, i) for i in range(clients)))

    async def _go_on(self, http: httpx2.AsyncClient, place: int) -> None:
        while not self.is_over:
            self.number += 1
            await self.call(http, f"call-{self.number}", self.fleet.running[place % len(self.fleet.running)])
            await asyncio.sleep(0.04)

    async def call(self, http: httpx2.AsyncClient, name: str, gateway: Running, key: str | None = None) -> None:
        is_stream = self.number % 2 == 0
        headers = {"authorization": f"Bearer {key or self.key}", "x-request-id": name}
        payload = body(stream=is_stream) | {"max_tokens": 64}
        began = self.under_way[name] = time.monotonic()
        answer = await http.post(f"{gateway.url}/v1/chat/completions", headers=headers, json=payload)
        self.took.append((began, time.monotonic() - began))
        del self.under_way[name]
        code = "" if answer.status_code == 200 else answer.json()["error"]["code"]
        self.statuses[answer.status_code, code] += 1
        if answer.status_code == 200 and (not is_stream or answer.text.endswith("data: [DONE]\n\n")):
            self.whole.add(name)
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1

    async def slowest(self, since: float) -> float:
        """Seconds of the slowest call begun since then, once those of the first second are over."""
        await asyncio.sleep(since + 1 - time.monotonic())
        await eventually(
            lambda: not any(since <= began < since + 1 for began in self.under_way.values()), name=lambda: "the first"
        )
        return max(took for began, took in self.took if began >= since)


@dataclass
class Probe:
    """Asks liveness and readiness of every gateway all the time, on connections of their own."""

    fleet: Fleet
    took: list[tuple[str, float, float]] = field(default_factory=list)
    is_over: bool = False

    async def run(self) -> None:
        async with httpx2.AsyncClient(timeout=PATIENCE_S, trust_env=False, verify=False) as http:
            while not self.is_over:
                for gateway in self.fleet.running:
                    for path in ("/healthz", "/readyz", "/metrics"):
                        began = time.monotonic()
                        answer = await http.get(gateway.url + path)
                        assert answer.status_code == 200, (path, answer.text)
                        self.took.append((path, began, time.monotonic() - began))
                await asyncio.sleep(0.05)

    def usual(self, since: float) -> float:
        """Seconds half of those since then took at most; of the slowest path."""
        paths: dict[str, list[float]] = {}
        for path, began, took in self.took:
            if began >= since:
                paths.setdefault(path, []).append(took)
        assert len(paths) == 3
        return max(map(statistics.median, paths.values()))


@dataclass
class Stream:
    """One that runs through an outage: begun before, ended by `release` within or after it."""

    task: asyncio.Task[str]
    has_begun: asyncio.Event


def stream(gateway: Running, key: str, name: str) -> Stream:
    has_begun = asyncio.Event()

    async def read() -> str:
        headers = {"authorization": f"Bearer {key}", "x-request-id": name}
        async with (
            httpx2.AsyncClient(timeout=SECONDS + 240, trust_env=False, verify=False) as http,
            http.stream(
                "POST", f"{gateway.url}/v1/chat/completions", headers=headers,
                json=body(stream=True) | {"max_tokens": 100_000},
            ) as answer,
        ):  # fmt: skip
            assert answer.status_code == 200
            text = ""
            async for piece in answer.aiter_text():
                text += piece
                has_begun.set()
            return text

    return Stream(asyncio.ensure_future(read()), has_begun)


@contextlib.asynccontextmanager
async def two_gateways(
    tmp_path: Path, faults: FaultProvider, postgres_url: str, redis: LocalServer, *, on_failure: str, **top: Any
) -> AsyncIterator[Fleet]:
    store = {"on_failure": on_failure, "deadline_s": DEADLINE_S}
    auth = {"master_key": MASTER, "key_cache_s": 3600}
    async with fleet(
        tmp_path, faults.base_url, database_url=postgres_url, redis_url=redis.url, workers=(1, 1),
        top={"spend": {"flush_s": 0.2}, "auth": auth, **top}, store=store,
    ) as gateways:  # fmt: skip
        yield gateways


async def works_again(gateways: Fleet, key: str) -> float:
    """Seconds until every gateway has answered 200."""
    began = time.monotonic()
    for gateway in gateways.running:

        async def works(gateway: Running = gateway) -> bool:
            return (await gateway.chat(key, body())).status_code == 200

        await eventually(works, 120, lambda: "a gateway that serves again")
    return time.monotonic() - began


async def every_whole_answer_has_one_row(gateways: Fleet, whole: set[str]) -> None:
    rows: Counter[str] = Counter()

    async def are_there() -> bool:
        found = await gateways.query("SELECT request_id, outcome FROM spend WHERE request_id IS NOT NULL")
        rows.clear()
        rows.update(row["request_id"] for row in found if row["outcome"] == "ok")
        return whole <= rows.keys()

    await eventually(are_there, 240, lambda: f"rows of {sorted(whole - rows.keys())[:10]}")
    assert {name: count for name, count in rows.items() if count != 1} == {}


async def test_redis_frozen_then_postgres_frozen(
    tmp_path: Path, postgres_url: str, start_redis: Callable[..., LocalServer], faults: FaultProvider
) -> None:
    redis = start_redis()
    async with two_gateways(tmp_path, faults, postgres_url, redis, on_failure="closed") as gateways:
        one = gateways.running[0]
        key = await one.mint(max_budget=1000, rpm_limit=1_000_000)
        stranger = await one.mint(max_budget=1)
        await works_again(gateways, key)
        load, probe = Load(gateways, key), Probe(gateways)
        faults.script(Fault("held"), Fault("held"))
        streams = {
            name: stream(gateway, key, name) for name, gateway in zip(("s-0", "s-1"), gateways.running, strict=True)
        }
        for running in streams.values():
            await asyncio.wait_for(running.has_begun.wait(), 60)
        tasks = [asyncio.ensure_future(load.run(8)), asyncio.ensure_future(probe.run())]
        await eventually(lambda: len(load.whole) > 20 or any(task.done() for task in tasks))

        with frozen_redis(redis):
            began = time.monotonic()
            await asyncio.sleep(SECONDS)
            await eventually(lambda: load.statuses[REFUSED] > 2 * 8, name=lambda: f"refusals: {load.statuses}")
            redis_slowest = await load.slowest(began)
            usual = probe.usual(began)
        seen_redis = dict(load.statuses)
        redis_back = await works_again(gateways, key)

        async def without_redis() -> float:
            await works_again(gateways, key)
            with frozen_redis(redis):
                return await load.slowest(time.monotonic())

        redis_slowest = await at_best(WITHOUT_REDIS_S, without_redis, redis_slowest)
        await works_again(gateways, key)

        await asyncio.sleep(2 * DEADLINE_S)  # who waited for Redis to the last has been told
        load.statuses.clear()
        async with frozen_postgres(postgres_url):
            began = time.monotonic()
            await asyncio.sleep(3)  # the first deadline
            quick = await at_best(DEADLINE_S, lambda: nobody_hangs_on_the_database(gateways, key, stranger))
            faults.release()  # the streams end now: their rows wait in the journals
            for name, running in streams.items():
                text = await asyncio.wait_for(running.task, PATIENCE_S)
                assert text.endswith("data: [DONE]\n\n")
                load.whole.add(name)
            await asyncio.sleep(max(0.0, SECONDS - (time.monotonic() - began)))
            postgres_slowest = await load.slowest(began)
            usual = max(usual, probe.usual(began))
        seen_postgres = dict(load.statuses)
        postgres_back = await works_again(gateways, stranger)

        async def without_postgres() -> float:
            await works_again(gateways, stranger)
            async with frozen_postgres(postgres_url):
                return await load.slowest(time.monotonic())

        postgres_slowest = await at_best(WITHOUT_POSTGRES_S, without_postgres, postgres_slowest)

        load.is_over = probe.is_over = True
        await asyncio.gather(*tasks)
        await every_whole_answer_has_one_row(gateways, load.whole)
        await gateways.agree()

    # Whoever was refused was told why and when to come again; nobody was taken for a stranger.
    assert set(seen_redis) <= {(200, ""), REFUSED}
    assert seen_redis[REFUSED] > 2 * 8, "the breaker refuses at once, so many were refused"
    # On a busy machine Redis, too, may miss its deadline now and then.
    assert set(seen_postgres) - {REFUSED} == {(200, "")}, f"what is known is served without it: {seen_postgres}"
    assert seen_postgres[200, ""] > seen_postgres.get(REFUSED, 0)
    assert usual < PROBE_S, "nobody who asks for liveness or readiness waits for a store"
    refused, served, late = seen_redis[REFUSED], seen_postgres[200, ""], seen_postgres.get(REFUSED, 0)
    measured(
        9,
        f"2 processes, each store frozen for {SECONDS} s under load: slowest call {redis_slowest:.2f} s without Redis "
        f"({refused} refused with 503), {postgres_slowest:.2f} s without PostgreSQL ({served} served, {late} refused "
        f"with 503; unknown keys and management calls refused within {quick:.2f} s); half the answers to liveness and "
        f"readiness within {usual * 1000:.0f} ms, all within {max(took for *_, took in probe.took) * 1000:.0f} ms; "
        f"served again {redis_back:.1f} s and {postgres_back:.1f} s after; "
        f"{len(load.whole)} whole answers, 0 without a row, 0 doubled",
    )


async def nobody_hangs_on_the_database(gateways: Fleet, key: str, stranger: str) -> float:
    """A key this process has not met, one that does not exist, and the management API: 503, and soon. Returns the
    slowest."""
    slowest = 0.0
    for gateway in gateways.running:
        for bearer in (stranger, "sk-nobody-has-this-key-0123456789abcdef"):
            began = time.monotonic()
            answer = await gateway.chat(bearer, body())
            slowest = max(slowest, time.monotonic() - began)
            assert answer.status_code == 503, answer.text
        for path in ("/key/list", "/spend/logs", "/spend/report?by=model", "/key/info?key=" + key):
            began = time.monotonic()
            answer = await gateway.http.get(gateway.url + path, headers={"authorization": f"Bearer {MASTER}"})
            slowest = max(slowest, time.monotonic() - began)
            assert answer.status_code == 503, (path, answer.text)
            assert int(answer.headers["retry-after"]) >= 1
    return slowest


async def test_by_the_policy_open_each_process_admits_its_stated_bound_and_no_more(
    tmp_path: Path, postgres_url: str, start_redis: Callable[..., LocalServer], faults: FaultProvider
) -> None:
    redis = start_redis()
    limits = {"rpm": 1000}
    async with two_gateways(tmp_path, faults, postgres_url, redis, on_failure="open", limits=limits) as gateways:
        for gateway in gateways.running:
            assert gateway.output is not None
            told = gateway.output.read_text()
            assert "store.on_failure is open" in told
            assert "1000 requests a minute per process" in told
        key = await gateways.running[0].mint(rpm_limit=5, max_budget=1)
        for gateway in gateways.running:
            assert (await gateway.chat(key, body())).status_code == 200
        with frozen_redis(redis):
            for gateway in gateways.running:
                answers = [await gateway.chat(key, body()) for _ in range(8)]
                assert [a.status_code for a in answers] == [200] * 5 + [429] * 3
        await gateways.running[0].rows(key, at_least=12)
        await gateways.agree()
