"""A request cancelled at any await leaves nothing held: no slot, no hold, no place in a line, no intent without row."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from sidecar import (
    AuthMiddleware,
    BudgetMiddleware,
    RateLimitMiddleware,
    RouteMiddleware,
    SpendMiddleware,
    WaitingRoom,
)  # fmt: skip
from sidecar.admit import AdmissionPolicy, admit, extend
from sidecar.asgi import Inbox
from sidecar.exchange import Attempt, Exchange
from sidecar.limits.admission import Admission
from sidecar.limits.store import open_store
from sidecar.routing.catalog import Catalog
from sidecar.types import Budget, Identity, Limits
from tests.asgi import call
from tests.middleware.stack import BODY, DEPLOYMENT, Keys, Rows, Speaker

pytestmark = pytest.mark.anyio
GOOD = {"authorization": "Bearer sk-good"}
TURNS = 40


@pytest.mark.parametrize("is_routed", [False, True])
@pytest.mark.parametrize("is_waiting", [False, True])
async def test_a_request_cancelled_after_any_number_of_turns_leaves_nothing(
    is_routed: bool, is_waiting: bool, store_uri: str
) -> None:
    async def nothing_spent(windows: object) -> dict[str, int]:
        return {}

    admission = Admission(open_store(store_uri, deadline_s=30.0), seed=nothing_spent)
    policy = AdmissionPolicy(admission, Catalog([DEPLOYMENT]))
    caller = Identity("k" * 64, limits=Limits(rpm=100_000, concurrency=1), budgets=(Budget(10**12),))
    rows, room = Rows(), WaitingRoom(size=5, max_wait_s=60.0)
    if is_routed:
        spend = SpendMiddleware(RouteMiddleware(Speaker(), catalog=Catalog([DEPLOYMENT])), recorder=rows)
    else:
        spend = SpendMiddleware(Speaker(), recorder=rows, deployment=DEPLOYMENT)
    app = RateLimitMiddleware(BudgetMiddleware(spend, policy=policy), policy=policy, room=room)
    stack = AuthMiddleware(app, keys=Keys(caller))
    body = {**BODY, "stream": True}
    assert (await call(stack, body, headers=GOOD)).status == 200
    for turns in range(TURNS):
        before = None
        if is_waiting:
            before = await admission.acquire(f"before-{turns}", caller, "gpt", tokens=1, hold_nano=1)
        task = asyncio.ensure_future(call(stack, body, headers=GOOD))
        for _ in range(turns // 2):
            await asyncio.sleep(0)
        if before is not None:
            await admission.settle(before, tokens=0, cost_nano=0)
            room.freed(room.lines.names)
        for _ in range(turns - turns // 2):
            await asyncio.sleep(0 if turns % 2 else 0.0005)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert not room.lines.count, f"after {turns} turns somebody stands in line"
        assert not admission._live, f"after {turns} turns something is held"
        async with asyncio.timeout(60):
            assert (await call(stack, body, headers=GOOD)).status == 200, f"after {turns} turns the slot is gone"
    await admission.tick()
    begun, told = ([(row.exchange_id, row.attempt) for row in found] for found in (rows.intents, rows.records))
    assert set(begun) <= set(told)
    assert len(set(told)) == len(told)
    ours = sum(row.cost_nano for row in rows.records)
    assert set((await admission.spent(caller)).values()) == {ours}
    await admission.aclose()


async def test_attempts_that_begin_at_once_have_numbers_and_holds_of_their_own() -> None:
    async def never() -> Any:
        raise AssertionError("nobody reads")

    async def nothing_spent(windows: object) -> dict[str, int]:
        return {}

    written = asyncio.Event()

    async def held(exchange: Exchange, attempt: Attempt) -> None:
        await extend(exchange, attempt, policy)

    async def slow_journal(exchange: Exchange, attempt: Attempt) -> None:
        await written.wait()

    policy = AdmissionPolicy(Admission(open_store("memory://"), seed=nothing_spent), Catalog([DEPLOYMENT]))
    policy.parts.add("budgets")
    exchange = Exchange("x", 0.0, Inbox(never))
    exchange.identity = Identity("k" * 64, budgets=(Budget(10**12),))
    exchange.payload, exchange.raw, exchange.model = dict(BODY), b"x" * 50, "gpt"
    await admit({}, exchange, policy)
    assert exchange.grant is not None
    hold_nano = exchange.grant.hold_nano
    exchange.before_attempt += [held, slow_journal]
    both = [asyncio.ensure_future(exchange.begin_attempt(DEPLOYMENT)) for _ in range(2)]
    for _ in range(5):
        await asyncio.sleep(0)
    written.set()
    assert [attempt.number for attempt in await asyncio.gather(*both)] == [1, 2]
    assert len(exchange.attempts) == 2
    assert exchange.grant.hold_nano == 2 * hold_nano > 0
