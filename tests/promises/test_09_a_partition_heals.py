"""*A dead store has known behaviour*, when it is the network that is dead. Of two `sidecar serve` on one PostgreSQL and
one Redis one runs in a network of its own. In the midst of calls and of a stream all packets between it and both stores
are dropped – no connection is refused, none is closed – until its leases have run out (`PROMISE_9_SECONDS` at least).

Cut off, it refuses calls under limits or a budget with 503, never 401, answers liveness and readiness, serves a known
key that has neither, and lets the stream end whole; nothing waits for the network longer than a deadline. The other
goes on. It takes the silent one for dead: what it held is charged. Healed, everything works unaided, what was charged
is corrected, every whole answer has exactly one row, and counters agree with the rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.faults.provider import Fault, FaultProvider
from tests.promises.fleet import Fleet
from tests.promises.netns import Island, door, island
from tests.promises.sizes import measured, size
from tests.promises.support import MASTER, Running, at_best, body, config_file, eventually, process
from tests.promises.test_09_a_dead_store_has_known_behaviour import (
    PATIENCE_S,
    every_whole_answer_has_one_row,
    stream,
    works_again,
)
from tests.servers.redis import LocalServer

pytestmark = pytest.mark.anyio
SECONDS = size("PROMISE_9_SECONDS", 3, full=60)
CUT_OFF_S = 4.0
"""Twice the longest deadline, that of a lookup: no call is to take longer."""


@contextlib.asynccontextmanager
async def gateway_inside(
    place: Island, folder: Path, provider_url: str, top: dict[str, object]
) -> AsyncIterator[Running]:
    file = config_file(folder, provider_url, top=top)
    output = folder / "output.log"
    with output.open("wb") as sink:
        running = subprocess.Popen(  # noqa: ASYNC220 - quick, and waited for in a thread
            [*place.command, sys.executable, "-m", "sidecar", "serve", "--config", str(file), "--host", place.inside,
             "--port", "8123"],
            stdout=sink, stderr=subprocess.STDOUT, cwd=folder,
        )  # fmt: skip
    try:
        async with httpx2.AsyncClient(timeout=120, trust_env=False, verify=False) as http:
            made = Running(f"http://{place.inside}:8123", http, process=running, output=output, folder=folder)
            await eventually(
                lambda: "Application startup complete" in output.read_text(errors="replace"), 240,
                lambda: output.read_text(errors="replace"),
            )  # fmt: skip
            yield made
    finally:
        running.terminate()
        try:
            await asyncio.to_thread(running.wait, 120)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
            raise


class Calls:
    """Of one key at one gateway, until told to stop; what came of them."""

    def __init__(self, gateway: Running, key: str, name: str) -> None:
        self.gateway, self.key, self.name = gateway, key, name
        self.statuses: Counter[tuple[int, str]] = Counter()
        self.whole: set[str] = set()
        self.took: list[tuple[float, float]] = []
        self.number = 0
        self.is_over = False

    async def run(self) -> None:
        while not self.is_over:
            self.number += 1
            name = f"{self.name}-{self.number}"
            began = time.monotonic()
            answer = await self.gateway.chat(self.key, body(), headers={"x-request-id": name}, timeout=PATIENCE_S)
            self.took.append((began, time.monotonic() - began))
            self.statuses[answer.status_code, answer.json().get("error", {}).get("code", "")] += 1
            if answer.status_code == 200:
                self.whole.add(name)
            await asyncio.sleep(0.05)

    async def slowest(self, since: float) -> float:
        """Seconds of the slowest call begun since then, once the first is over."""
        await eventually(lambda: self.took[-1][0] >= since)
        return max(took for began, took in self.took if began >= since)


async def test_cut_off_from_both_stores_and_healed(
    tmp_path: Path, postgres_url: str, start_redis: Callable[..., LocalServer], faults: FaultProvider
) -> None:
    redis = start_redis()
    database = urlsplit(postgres_url)
    async with contextlib.AsyncExitStack() as stack:
        place = stack.enter_context(island())
        ports = [await stack.enter_async_context(door(place.far, port or 0)) for port in (database.port, redis.port)]
        provider_port = await stack.enter_async_context(door(place.near, urlsplit(faults.base_url).port or 0))
        stores = [
            {
                "database_url": database._replace(netloc=f"{database.username}@{place.far}:{ports[0]}").geturl(),
                "redis_url": f"redis://{place.far}:{ports[1]}/0",
                "deadline_s": 1.0,
            },
            {"database_url": postgres_url, "redis_url": redis.url},
        ]
        folders = [tmp_path / "inside", tmp_path / "outside"]
        tops: list[dict[str, object]] = []
        for folder, reached in zip(folders, stores, strict=True):
            folder.mkdir()
            store = {"journal_dir": str(folder / "journal")} | reached
            auth = {"master_key": MASTER, "key_cache_s": 3600}
            tops.append({"store": store, "auth": auth, "spend": {"flush_s": 0.2}, "server": {"grace_s": 5}})
        outside = await stack.enter_async_context(process(folders[1], faults.base_url, top=tops[1]))
        inside = await stack.enter_async_context(
            gateway_inside(place, folders[0], f"http://{place.near}:{provider_port}", tops[0])
        )
        gateways = Fleet([inside, outside], (1, 1), postgres_url)
        poor, free = await outside.mint(max_budget=1000), await outside.mint()
        stranger = await outside.mint()
        for key in (poor, free):
            await works_again(gateways, key)
        calls = [Calls(inside, poor, "in"), Calls(outside, poor, "out"), Calls(inside, free, "free")]
        faults.script(Fault("held"))
        running = stream(inside, poor, "stream")
        await asyncio.wait_for(running.has_begun.wait(), 60)
        tasks = [asyncio.ensure_future(one.run()) for one in calls]
        await eventually(lambda: all(len(one.whole) > 5 for one in calls) or any(t.done() for t in tasks))

        place.cut()
        began = time.monotonic()
        calls[0].statuses.clear()
        probes: dict[str, list[float]] = {}
        refusals: list[float] = []
        while time.monotonic() - began < SECONDS or len(refusals) < 3:
            for path in ("/healthz", "/readyz", "/metrics"):
                asked = time.monotonic()
                assert (await inside.http.get(inside.url + path)).status_code == 200, path
                probes.setdefault(path, []).append(time.monotonic() - asked)
            refusals.append(await all_refused(inside, stranger))
            await asyncio.sleep(0.5)
        refused_s = await at_best(CUT_OFF_S, lambda: all_refused(inside, stranger), *refusals, tries=len(refusals) + 5)

        async def is_charged() -> bool:
            return bool(await gateways.query("SELECT 1 FROM spend WHERE attempt = 0 AND cost_nano > 0"))

        await eventually(is_charged, 120, lambda: "what the silent one held, charged")
        await eventually(lambda: calls[0].statuses[503, "limit_store_unavailable"] > 10)
        faults.release()
        text = await asyncio.wait_for(running.task, PATIENCE_S)
        assert text.endswith("data: [DONE]\n\n")
        cut_off = dict(calls[0].statuses)
        slowest = max([await one.slowest(began) for one in calls])

        gone = time.monotonic() - began
        place.heal()
        back = await works_again(gateways, stranger) + await works_again(gateways, poor)

        async def once() -> float:
            place.cut()
            cut_at = time.monotonic()
            took_s = max([await one.slowest(cut_at) for one in calls])
            place.heal()
            await works_again(gateways, poor)
            return took_s

        slowest = await at_best(CUT_OFF_S, once, slowest)
        for one in calls:
            one.is_over = True
        await asyncio.gather(*tasks)
        whole = {"stream"}.union(*(one.whole for one in calls))
        await every_whole_answer_has_one_row(gateways, whole)

        async def is_taken_back() -> bool:
            (row,) = await gateways.query("SELECT coalesce(sum(cost_nano), 0) AS nano FROM spend WHERE attempt = 0")
            return bool(row["nano"] == 0)

        await eventually(is_taken_back, 120, lambda: "what was charged taken back")
        await gateways.agree()

    assert set(cut_off) <= {(200, ""), (503, "limit_store_unavailable")}, cut_off
    assert cut_off[503, "limit_store_unavailable"] > 10
    assert set(calls[1].statuses) == {(200, "")}, "the other one goes on"
    assert set(calls[2].statuses) == {(200, "")}, "no limit, no budget: nothing has to be asked"
    usual = max(map(statistics.median, probes.values()))
    assert usual < CUT_OFF_S / 4, "nobody who asks for liveness or readiness waits for a store"
    measured(
        9,
        f"cut off from both stores for {gone:.0f} s (packets dropped): {cut_off[503, 'limit_store_unavailable']} calls "
        f"refused with 503, {len(calls[2].whole)} without limits served, slowest call "
        f"{slowest:.1f} s, unknown keys and management calls refused within {refused_s:.1f} s, half the answers to "
        f"liveness and readiness within {usual * 1000:.0f} ms, all within "
        f"{max(map(max, probes.values())) * 1000:.0f} ms; "
        f"serves again {back:.1f} s after; {len(whole)} whole answers, 0 without a row, 0 doubled; counters agree",
    )


async def all_refused(gateway: Running, stranger: str) -> float:
    """Keys this process does not know, and the management API: 503. Seconds the slowest took."""
    took = []
    for bearer in (stranger, "sk-nobody-has-this-key-0123456789abcdef", ""):
        began = time.monotonic()
        if bearer:
            answer = await gateway.chat(bearer, body())
        else:
            answer = await gateway.http.get(gateway.url + "/key/list", headers={"authorization": f"Bearer {MASTER}"})
        took.append(time.monotonic() - began)
        assert answer.status_code == 503, answer.text
    return max(took)
