"""*The ledger is the truth*, also for counters that are lost. Two `sidecar serve`, of two workers each, on one
PostgreSQL and one Redis, with a journal of their own each: rows wait a second there, and nobody else sees them. While
clients call again and again, of a provider that is slow, fails and cuts, Redis loses everything it knows, again and
again (`PROMISE_3_LOSSES`); a worker is killed in the middle. At rest every counter is the sum of its rows to the
nano-dollar. And no budget was overrun by more than what each loss may cost: what was in flight then, and what other
processes had not shipped yet.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis.asyncio import Redis

from tests.faults.provider import Fault, FaultProvider
from tests.promises.fleet import Fleet, fleet
from tests.promises.sizes import measured, size
from tests.promises.support import MODELS, body, eventually

pytestmark = pytest.mark.anyio
LOSSES = size("PROMISE_3_LOSSES", 3, full=25)
FLUSH_S = 1.0
TICK_S = 10.0 / 3
BUDGET_NANO = 2_500_000
"""Some hundred calls: it is spent while Redis goes on forgetting."""
FAULTS = (*[Fault()] * 6, Fault(drip_s=0.02), Fault(drip_s=0.1), Fault("status", status=503), Fault("cut", after=2))


@dataclass
class Clients:
    """Some call with a budget that lasts, some with one that does not."""

    fleet: Fleet
    faults: FaultProvider
    keys: dict[str, str]
    draw: random.Random
    answered: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    slowest_s: float = 0.0
    is_over: bool = False

    async def run(self, count: int) -> None:
        async with httpx2.AsyncClient(timeout=240, trust_env=False, verify=False) as http:
            await asyncio.gather(*(self._go_on(http, ("rich", "poor")[place % 2]) for place in range(count)))

    async def _go_on(self, http: httpx2.AsyncClient, who: str) -> None:
        while not self.is_over:
            await asyncio.sleep(0.02)  # a new worker needs the processor, too
            self.faults.script(self.draw.choice(FAULTS))
            payload = body(self.draw.choice(MODELS), stream=self.draw.random() < 0.5) | {"max_tokens": 16}
            url = self.draw.choice(self.fleet.running).url
            headers = {"authorization": f"Bearer {self.keys[who]}"}
            began = time.monotonic()
            try:
                answer = await http.post(f"{url}/v1/chat/completions", headers=headers, json=payload)
            except (httpx2.TransportError, httpx2.StreamError):
                continue  # the worker was killed
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            if answer.status_code == 200:
                self.answered[who] = self.answered.get(who, 0) + 1
            elif answer.status_code == 429:
                assert answer.json()["error"]["code"] == "budget_exceeded", answer.text
                assert who == "poor", answer.text
                self.refused += 1
                await asyncio.sleep(0.05)
            else:
                assert answer.status_code in (500, 502, 503), answer.text


async def test_counters_that_were_lost_come_back_to_the_nano_dollar(
    tmp_path: Path, postgres_url: str, redis_url: str, faults: FaultProvider
) -> None:
    draw = random.Random(3)
    top = {"routing": {"retries": 1, "cooldown_s": 0.001}, "budget": {"max_usd": 1000, "duration": "1d"}}
    async with fleet(
        tmp_path, faults.base_url, database_url=postgres_url, redis_url=redis_url, workers=(2, 2),
        top={**top, "spend": {"flush_s": FLUSH_S}},
    ) as gateways, Redis.from_url(redis_url) as redis:  # fmt: skip
        first = gateways.running[0]
        keys = {
            "rich": await first.mint(max_budget=1000, budget_duration="30d"),
            "poor": await first.mint(max_budget=BUDGET_NANO / 1e9),
        }
        clients = Clients(gateways, faults, keys, draw)
        load = asyncio.ensure_future(clients.run(8))
        lost_at: list[float] = []
        for number in range(LOSSES):
            await asyncio.sleep(draw.choice((0.05, 0.5, 1.0, 2 * TICK_S / 3)))
            lost_at.append(time.time())
            await redis.flushall()
            if number == LOSSES // 2:
                await gateways.kill_one(draw)
        answered = sum(clients.answered.values())
        await eventually(
            lambda: (clients.refused and sum(clients.answered.values()) > answered + 20) or load.done(), 240
        )
        clients.is_over = True
        await load
        await gateways.is_whole()
        # Each process has found out, and has nothing on its way any more, when it said so to Redis once more.
        await asyncio.sleep(TICK_S + 2 * FLUSH_S)
        output = await gateways.agree()
        assert "counters: 0 of 3 differ" in output, output
        rows = await gateways.query("SELECT at, cost_nano, duration_ms, key_hash FROM spend")
        poor = await first.admin("/key/info", key=keys["poor"])
    hashed = poor["key"] if "key" in poor else poor["info"]["key"]
    mine = [row for row in rows if row["key_hash"] == hashed]
    spent = sum(row["cost_nano"] for row in mine)
    late_s = 1 + clients.slowest_s  # a process that stands still ships later, by at most what its calls took

    def is_at_a_loss(row: Any) -> bool:
        at, took = row["at"] / 1e6, row["duration_ms"] / 1000
        return any(lost - FLUSH_S - late_s - took <= at <= lost + late_s for lost in lost_at)

    bound = sum(row["cost_nano"] for row in mine if is_at_a_loss(row))
    assert clients.refused > 0
    assert spent <= BUDGET_NANO + bound
    measured(
        3,
        f"Redis emptied {LOSSES} times under load, {sum(gateways.workers)} workers, a kill, {len(rows)} rows: at rest "
        f"0 counters differ from the ledger; ${BUDGET_NANO / 1e9:.4f} budget, ${spent / 1e9:.4f} spent "
        f"(stated bound ${(BUDGET_NANO + bound) / 1e9:.4f})",
    )
