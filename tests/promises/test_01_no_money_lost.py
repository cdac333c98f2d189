"""*No money lost.* Several `sidecar serve`, each with several workers, on one PostgreSQL and one Redis. Clients never
stop calling, streamed and not, in both dialects, of a provider that is slow, fails and cuts; meanwhile a random worker
is killed with SIGKILL, again and again (`PROMISE_1_KILLS`). Then: every answer a client saw whole has exactly one row,
every request the provider saw has one – what it cost, or `unknown` at the held cost – and none has two; counters and
daily totals agree with the rows.

The rows of a killed worker are in its journal. Any process that has the same `store.journal_dir` ships them within
seconds: the other workers of the same gateway, and other gateways of the same host if the folder is theirs too.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from tests.faults.provider import COMPLETION_TOKENS, PROMPT_TOKENS, Fault, FaultProvider
from tests.promises.fleet import Fleet, fleet
from tests.promises.sizes import IS_FULL, measured, size
from tests.promises.support import MODELS, body, eventually

pytestmark = pytest.mark.anyio
KILLS = size("PROMISE_1_KILLS", 3, full=50)
CLIENTS = size("PROMISE_1_CLIENTS", 8, full=16)
COST_NANO = 1000 * (PROMPT_TOKENS * 1 + COMPLETION_TOKENS * 2)
FAULTS = (
    *[Fault()] * 6,
    *(Fault(drip_s=step) for step in (0.01, 0.03, 0.1)),
    Fault("status", status=500),
    Fault("status", status=503),
    Fault("cut", after=2),
    Fault("reset", after=3),
)


@dataclass
class Clients:
    """Each calls again and again, over a new connection, until told to stop; `whole` are those answered to the end."""

    fleet: Fleet
    faults: FaultProvider
    key: str
    draw: random.Random
    calls: int = 0
    whole: set[str] = field(default_factory=set)
    is_over: bool = False

    async def run(self) -> None:
        options = httpx2.Limits(max_keepalive_connections=0)
        async with httpx2.AsyncClient(timeout=240, trust_env=False, verify=False, limits=options) as http:
            await asyncio.gather(*(self._go_on(http) for _ in range(CLIENTS)))

    async def _go_on(self, http: httpx2.AsyncClient) -> None:
        while not self.is_over:
            self.calls += 1
            name = f"call-{self.calls}"
            self.faults.script(self.draw.choice(FAULTS))
            with contextlib.suppress(httpx2.TransportError, httpx2.StreamError):  # the worker was killed
                if await self._call(http, name):
                    self.whole.add(name)
            await asyncio.sleep(0.03)  # a new worker needs the processor, too

    async def _call(self, http: httpx2.AsyncClient, name: str) -> bool:
        is_stream = self.draw.random() < 0.5
        url = self.draw.choice(self.fleet.running).url
        messages = [{"role": "user", "content": name}]
        payload = body(self.draw.choice(MODELS), stream=is_stream) | {"messages": messages, "max_tokens": 64}
        headers = {"authorization": f"Bearer {self.key}", "x-request-id": name}
        answer = await http.post(f"{url}/v1/chat/completions", headers=headers, json=payload)
        if answer.status_code != 200:
            assert answer.status_code in (500, 502, 503), answer.text
            return False
        if is_stream:
            return answer.text.endswith("data: [DONE]\n\n")
        assert answer.json()["choices"][0]["finish_reason"] == "stop"
        return True


def asked(faults: FaultProvider) -> Counter[str]:
    """How often the provider saw each call."""
    return Counter(re.findall(rb"call-\d+", seen.body)[0].decode() for seen in faults.requests)


async def test_no_row_is_lost_or_doubled_over_kills(
    tmp_path: Path, postgres_url: str, redis_url: str, faults: FaultProvider
) -> None:
    draw = random.Random(1)
    workers = (2, 2, 2) if IS_FULL else (2, 2)
    top = {"routing": {"retries": 1, "cooldown_s": 0.001}}
    async with fleet(
        tmp_path, faults.base_url, database_url=postgres_url, redis_url=redis_url, workers=workers, shared_journal=2,
        top={**top, "spend": {"flush_s": 0.2}},
    ) as gateways:  # fmt: skip
        key = await gateways.running[0].mint(max_budget=1000)
        clients = Clients(gateways, faults, key, draw)
        load = asyncio.ensure_future(clients.run())
        while gateways.kills < KILLS:
            calls = clients.calls
            await eventually(lambda: clients.calls > calls + CLIENTS or load.done(), 240)  # noqa: B023
            if load.done():
                break
            await asyncio.sleep(draw.random() / 2)
            await gateways.kill_one(draw)
        await gateways.is_whole()
        clients.is_over = True
        await load
        await every_call_has_its_rows(gateways, clients, asked(faults))
        await gateways.agree()


async def every_call_has_its_rows(gateways: Fleet, clients: Clients, seen: Counter[str]) -> None:
    rows: dict[str, list[dict[str, object]]] = {}

    async def are_there() -> bool:
        rows.clear()
        # Not attempt 0: what a silent hold was charged, of no request the provider saw.
        for row in await gateways.query(
            "SELECT * FROM spend WHERE revision = 0 AND attempt > 0 AND request_id IS NOT NULL"
        ):
            rows.setdefault(row["request_id"], []).append(dict(row))
        return all(len(rows.get(name, ())) >= count for name, count in seen.items())

    def missing() -> str:
        return f"rows of {[name for name, count in seen.items() if len(rows.get(name, ())) < count][:10]}"

    await eventually(are_there, 240, missing)
    assert clients.whole <= rows.keys()
    statuses: Counter[str] = Counter()
    for name, found in rows.items():
        good = [row for row in found if row["outcome"] == "ok"]
        # The provider answered each request once: no more rows can tell of an answer than it saw requests. Those of
        # a worker killed between intent and dispatch have no status.
        assert sum(bool(row["http_status"]) for row in found) <= seen[name], found
        assert {row["attempt"] for row in found} == set(range(1, len(found) + 1)), "none of its rows is lost"
        assert len({row["exchange_id"] for row in found}) == 1, found
        if name in clients.whole:
            assert len(good) == 1, found
        for row in found:
            statuses[str(row["status"])] += 1
            if row["status"] == "settled":
                assert row["cost_nano"] == COST_NANO, row
            elif row["status"] == "unknown":
                assert row["cost_nano"] >= COST_NANO, row  # type: ignore[operator]
    assert len(clients.whole) > KILLS * CLIENTS / 2
    requests = sum(seen.values())
    measured(
        1,
        f"{gateways.kills} kills of {sum(gateways.workers)} workers in {len(gateways.running)} gateways, "
        f"{clients.calls} calls: {len(clients.whole)} whole answers and {requests} requests at the provider, "
        f"0 without a row, 0 doubled "
        f"({statuses['settled']} settled, {statuses['unknown']} unknown, {statuses['not_billed']} not billed, "
        f"{statuses['estimated']} estimated)",
    )
