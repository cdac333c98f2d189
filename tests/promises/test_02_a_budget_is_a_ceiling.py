"""*A budget is a ceiling.* A key has $1.00. 500 calls at once, spread over four processes (two `sidecar serve` of two
workers) on one PostgreSQL and one Redis, ask for about twice as much, of a provider that bills the worst case: every
byte of the prompt and all the output it was allowed, whole or cut, but for what it answered with an error. Half are
streams. What it bills is at most $1.00, and nearly that; then every process refuses. In a second round half of the
calls name no bound, the provider fails and cuts, calls are tried again, and in the middle of it a process is killed
with SIGKILL: the bill is at most $1.00 again, and the ledger, which counts what the killed process had begun at what
was held for it, is at most $1.00 too, and nearly that. `PROMISE_2_ROUNDS` does it more often.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from tests.faults.provider import Fault, FaultProvider, Seen, chat_body, chat_events, message_body, message_events
from tests.promises.fleet import Fleet, fleet
from tests.promises.sizes import measured, size
from tests.promises.support import MODELS, body, eventually, is_busy

pytestmark = pytest.mark.anyio
ROUNDS = size("PROMISE_2_ROUNDS", 1, full=5)
CALLS = 500
BUDGET_NANO = 10**9
INPUT_NANO, OUTPUT_NANO = 1_000, 10_000
MAX_TOKENS = 400
CALL_NANO = MAX_TOKENS * OUTPUT_NANO
TROUBLE = (*[Fault()] * 4, Fault("status", status=503), Fault("status", status=500), Fault("cut", after=2),
           Fault("reset", after=3), Fault(drip_s=0.02))  # fmt: skip


def usage_of(seen: Seen) -> tuple[int, int]:
    """The most the provider may bill: a token per byte of the prompt, all the output it was allowed."""
    payload = json.loads(seen.body)
    (content,) = [message["content"] for message in payload["messages"]]
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    return len(text.encode()), int(payload.get("max_completion_tokens") or payload["max_tokens"])


def bill_nano(seen: Seen) -> int:
    if seen.fault.kind == "status":
        return 0  # it refused, or failed and said so
    read, written = usage_of(seen)
    return read * INPUT_NANO + written * OUTPUT_NANO


class Greedy(FaultProvider):
    """Says that it used all of it."""

    async def _answer(self, seen: Seen, fault: Fault, writer: asyncio.StreamWriter) -> str:
        if fault.kind == "status":
            return await super()._answer(seen, fault, writer)
        read, written = usage_of(seen)

        def greedy(data: bytes) -> bytes:
            for names, count in (("prompt|input", read), ("completion|output", written), ("total", read + written)):
                data = re.sub(rb'("(?:%b)_tokens": ?)\d+' % names.encode(), rb"\g<1>%d" % count, data)
            return data

        is_messages = "/messages" in seen.target
        if json.loads(seen.body).get("stream"):
            events = message_events(usage=True) if is_messages else chat_events(usage=True, forced_usage=True)
            return await self._stream(seen, fault, writer, [greedy(event) for event in events])
        return await self._pieces(fault, writer, greedy((message_body if is_messages else chat_body)(usage=True)))


@pytest.fixture
async def greedy() -> AsyncIterator[Greedy]:
    provider = Greedy()
    await provider.start()
    yield provider
    await provider.aclose()


class Calls:
    """500 at once; what came of them."""

    def __init__(self, gateways: Fleet, key: str, draw: random.Random, *, is_calm: bool) -> None:
        self.statuses: Counter[int] = Counter()
        self.codes: Counter[str] = Counter()
        self._gateways = gateways
        self._key = key
        self._draw = draw
        self._is_calm = is_calm

    async def run(self) -> None:
        options = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx2.AsyncClient(timeout=240, trust_env=False, verify=False, limits=options) as http:
            urls = itertools.cycle([running.url for running in self._gateways.running])
            await asyncio.gather(*(self.one(http, url) for url, _ in zip(urls, range(CALLS), strict=False)))

    async def one(self, http: httpx2.AsyncClient, url: str) -> None:
        bound = {"max_tokens": MAX_TOKENS} if self._is_calm or self._draw.random() < 0.5 else {}
        payload = body(self._draw.choice(MODELS), stream=self._draw.random() < 0.5, **bound)
        headers = {"authorization": f"Bearer {self._key}"}
        try:
            while is_busy(answer := await http.post(f"{url}/v1/chat/completions", headers=headers, json=payload)):
                await asyncio.sleep(1)
        except (httpx2.TransportError, httpx2.StreamError):
            self.statuses[0] += 1
            return
        self.statuses[answer.status_code] += 1
        if answer.status_code != 200:
            self.codes[str(answer.json()["error"]["code"])] += 1

    async def until_all_refuse(self) -> None:
        """One after the other, until as many in a row were refused as find every process."""
        async with httpx2.AsyncClient(timeout=240, trust_env=False, verify=False) as http:
            for _ in range(CALLS):
                before = self.statuses[429]
                for running in self._gateways.running * 4:
                    await self.one(http, running.url)
                if self.statuses[429] - before == 4 * len(self._gateways.running):
                    return
        raise AssertionError(f"still admitted: {self.statuses}")


async def test_500_calls_at_once_over_four_processes_cost_at_most_the_budget(
    tmp_path: Path, postgres_url: str, redis_url: str, greedy: Greedy
) -> None:
    prices = {"input": INPUT_NANO / 1000, "output": OUTPUT_NANO / 1000}
    async with fleet(
        tmp_path, greedy.base_url, database_url=postgres_url, redis_url=redis_url, workers=(2, 2), shared_journal=2,
        top={"routing": {"retries": 2, "cooldown_s": 0.001}, "spend": {"flush_s": 0.2}},
        deployment={"price": prices, "max_output_tokens": MAX_TOKENS},
    ) as gateways:  # fmt: skip
        bills: dict[str, list[int]] = {"calm": [], "in trouble": []}
        for number in range(ROUNDS):
            bills["calm"].append(await calm(gateways, greedy, random.Random(number)))
            bills["in trouble"].append(await in_trouble(gateways, greedy, random.Random(number)))
        await gateways.agree()
    most = max(itertools.chain(*bills.values()))
    figures = ", ".join(f"{kind} ${min(nano) / 1e9:.4f} to ${max(nano) / 1e9:.4f}" for kind, nano in bills.items())
    measured(
        2,
        f"$1.00, {CALLS} calls at once over 4 processes, {ROUNDS} times: billed {figures}; "
        f"overspend ${max(0, most - BUDGET_NANO) / 1e9:.2f}; {gateways.kills} processes killed",
    )


async def calm(gateways: Fleet, greedy: Greedy, draw: random.Random) -> int:
    """Every call is as large as it may be and succeeds: as many pass as the money covers."""
    greedy.reset()
    key = await gateways.running[0].mint(max_budget=1.0)
    calls = Calls(gateways, key, draw, is_calm=True)
    await calls.run()
    assert set(calls.statuses) == {200, 429}, calls.statuses
    assert set(calls.codes) == {"budget_exceeded"}
    assert calls.statuses[200] == len(greedy.requests)
    await calls.until_all_refuse()
    bill = await billed(gateways, greedy, key)
    assert bill >= 0.9 * BUDGET_NANO
    return bill


async def in_trouble(gateways: Fleet, greedy: Greedy, draw: random.Random) -> int:
    greedy.reset()
    greedy.script(*draw.choices(TROUBLE, k=3 * CALLS))
    key = await gateways.running[0].mint(max_budget=1.0)
    calls = Calls(gateways, key, draw, is_calm=False)
    running = asyncio.ensure_future(calls.run())
    await eventually(lambda: len(greedy.requests) > 30 or running.done(), 240)
    await gateways.kill_one(draw)
    await running
    await gateways.is_whole()
    greedy.script(*draw.choices(TROUBLE, k=CALLS))
    await calls.until_all_refuse()
    return await billed(gateways, greedy, key)


async def billed(gateways: Fleet, greedy: Greedy, key: str) -> int:
    """What the provider bills, once the rows of it are in the ledger."""
    bill = sum(map(bill_nano, greedy.requests))
    assert bill <= BUDGET_NANO
    spent = 0

    async def are_there() -> bool:
        nonlocal spent
        spent = round(float((await gateways.running[0].admin("/key/info", key=key))["info"]["spend"]) * 1e9)
        return spent >= max(bill, 0.9 * BUDGET_NANO)

    await eventually(are_there, 240, lambda: f"rows of {bill}, there are {spent}")
    assert spent <= BUDGET_NANO
    return bill
