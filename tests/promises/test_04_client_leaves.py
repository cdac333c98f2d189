"""*The client leaves, the spending stops.* Disconnect before headers, before the first token, mid-stream, unstreamed:
the provider sees its socket close within a second, the row holds the tokens so far, the slot and
the hold are free; repeats leak nothing (`PROMISE_4_REPEATS`, 300 by default).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import time
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import psutil
import pytest

from tests.faults.provider import Fault, FaultProvider, Seen
from tests.promises.sizes import measured, size
from tests.promises.support import MODELS, Running, at_best, body, eventually

pytestmark = pytest.mark.anyio
REPEATS = size("PROMISE_4_REPEATS", 300, full=10_000)
BOUND_S = 1.0
"""From the client's leaving to the end of the provider's connection."""


@dataclass(frozen=True)
class Leave:
    """When the client goes: once it has read `read` of the answer (nothing: once the provider has the request)."""

    name: str
    fault: Fault
    is_stream: bool
    read: bytes = b""
    words: int = 0


LEAVES = (
    Leave("before the headers, streamed", Fault("silent"), True),
    Leave("before the headers, unstreamed", Fault("silent"), False),
    Leave("before the first token", Fault("stall", after=1), True),
    Leave("after one token", Fault("stall", after=3), True, b"one", 1),
    Leave("mid-stream, stalled", Fault("stall", after=5), True, b"three", 3),
    Leave("mid-stream, flowing", Fault("endless", drip_s=0.002), True, b'data: {"', 1),
    Leave("before the end event", Fault("stall", after=7), True, b"five", 5),
    Leave("amid an unstreamed body", Fault("stall", after=2), False),
)
HOW = ("close", "reset")


def request(gateway: Running, key: str, payload: dict[str, Any]) -> bytes:
    content = json.dumps(payload).encode()
    head = (
        f"POST {gateway.prefix}/v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def leave(gateway: Running, faults: FaultProvider, key: str, model: str, case: Leave, how: str) -> float:
    """One abandoned call; returns when the client left (monotonic)."""
    reader, writer = await asyncio.open_connection(*gateway.address)
    before = len(faults.requests)
    writer.write(request(gateway, key, body(model, stream=case.is_stream)))
    async with asyncio.timeout(60):
        if case.read:
            await reader.readuntil(case.read)
        else:
            await eventually(lambda: len(faults.requests) > before)
            await asyncio.sleep(0.02)  # whatever the provider says first has arrived
    left_at = time.monotonic()
    if how == "reset":
        writer.transport.abort()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return left_at


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("case", LEAVES, ids=lambda case: case.name)
async def test_the_provider_is_left_and_only_what_came_is_charged(
    gateway: Running, faults: FaultProvider, case: Leave, model: str, how: str
) -> None:
    async def once() -> float:
        faults.reset()
        return await left_and_charged(gateway, faults, case, model, how)

    took_s = await at_best(BOUND_S, once)
    print(f"{case.name}, {model}, {how}: the provider saw it {1000 * took_s:.1f} ms later")


async def left_and_charged(gateway: Running, faults: FaultProvider, case: Leave, model: str, how: str) -> float:
    """Seconds from the client's leaving to the provider's knowing."""
    key = await gateway.mint(max_parallel_requests=1, max_budget=1)
    counted = gateway.counted_nano
    faults.script(case.fault)
    left_at = await leave(gateway, faults, key, model, case, how)
    seen = faults.requests[0]
    await eventually(lambda: seen.closed_at is not None, name=lambda: "the provider's socket to close")
    assert seen.closed_at is not None
    assert seen.closed_how in ("left", "reset")

    (row,) = await gateway.rows(key, at_least=1)
    assert row["outcome"] == "client_left"
    if case.words:
        assert row["status"] == "estimated"
        assert row["prompt_tokens"] >= 11
        assert row["completion_tokens"] >= case.words
        if case.fault.kind != "endless":
            assert row["completion_tokens"] <= seen.events_sent
    else:
        # Nothing or next to nothing came: whether the provider charges is unknown, so it stands at the held cost.
        assert row["status"] in ("unknown", "estimated")
    assert row["spend"] > 0
    assert Decimal(str(await gateway.spend(key))) == Decimal(str(row["spend"]))

    await eventually(lambda: gateway.live_exchanges == gateway.taken_slots == 0, name=lambda: "the slot")
    assert gateway.counted_nano - counted == Decimal(str(row["spend"])) * 10**9, "a hold was left behind"
    await gateway.is_free(key, model=model)
    return seen.closed_at - left_at


@pytest.mark.parametrize("sent", [0, 1, 40])
async def test_leaving_amid_the_request_costs_nothing(gateway: Running, faults: FaultProvider, sent: int) -> None:
    key = await gateway.mint(max_parallel_requests=1, max_budget=1)
    counted = gateway.counted_nano
    whole = request(gateway, key, body())
    _, writer = await asyncio.open_connection(*gateway.address)
    writer.write(whole[: whole.index(b"\r\n\r\n") + 4 + sent])
    await asyncio.sleep(0.05)
    writer.close()
    await writer.wait_closed()
    await eventually(lambda: gateway.gateway is not None and gateway.gateway._in_flight == 0)
    await eventually(lambda: gateway.live_exchanges == gateway.taken_slots == 0, name=lambda: "the slot")
    assert gateway.counted_nano == counted
    await gateway.is_free(key)
    assert len(faults.requests) == 1
    assert len(await gateway.rows(key, at_least=1)) == 1


def _standing() -> tuple[Counter[str], int, int]:
    """Live objects of the package's classes, asyncio tasks, sockets."""
    gc.collect()
    mine: Counter[str] = Counter()
    for thing in gc.get_objects():
        kind = type(thing)
        if str(kind.__module__).startswith("sidecar."):
            mine[f"{kind.__module__}.{kind.__qualname__}"] += 1
    return mine, len(asyncio.all_tasks()), len(psutil.Process().net_connections())


async def test_repeats_leak_no_task_no_socket_and_no_exchange(gateway: Running, faults: FaultProvider) -> None:
    key = await gateway.mint(max_parallel_requests=64, max_budget=1000)
    counted = gateway.counted_nano
    draw = random.Random(4)
    turns = asyncio.Semaphore(16)
    delays: list[float] = []

    async def one() -> None:
        case, model, how = draw.choice(LEAVES), draw.choice(MODELS), draw.choice(HOW)
        async with turns:
            # The script is used in order of arrival, so any of these may get any fault: leave after a moment.
            faults.script(case.fault)
            _, writer = await asyncio.open_connection(*gateway.address)
            writer.write(request(gateway, key, body(model, stream=case.is_stream)))
            await asyncio.sleep(draw.choice((0, 0.001, 0.01, 0.08)))
            if how == "reset":
                writer.transport.abort()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def unanswered() -> list[Seen]:
        return [seen for seen in faults.open_requests if not seen.is_answered]

    async def run(count: int) -> None:
        await asyncio.gather(*(one() for _ in range(count)))
        left_at = time.monotonic()
        await eventually(lambda: not unanswered(), name=lambda: f"{len(unanswered())} sockets to close")
        await eventually(lambda: gateway.live_exchanges == 0, name=lambda: "the last exchange to settle")
        delays.append(time.monotonic() - left_at)
        faults.reset()

    async def settled() -> bool:
        """Every row is written, and they are all that was counted: under load the journal is read some time later."""
        rows = await gateway.rows(key)
        return sum(round(Decimal(str(row["spend"])) * 10**9) for row in rows) == gateway.counted_nano - counted

    async def rest() -> None:
        await gateway.is_free(key)  # what clients sent and left is read before what comes now
        await eventually(lambda: gateway.live_exchanges == gateway.taken_slots == 0, name=lambda: "the last slot")
        await eventually(settled, name=lambda: "rows that add up to what was counted")

    await run(50)
    await rest()
    before = _standing()
    for _ in range(max(1, REPEATS // 50)):
        await run(min(REPEATS, 50))
    await rest()
    left: list[str] = []

    def is_clean() -> bool:
        objects, tasks, sockets = _standing()
        left[:] = [f"{n} {name}" for name, n in objects.items() if n > before[0][name] + 5]
        if tasks > before[1] + 3:
            left.extend(str(task.get_coro()) for task in asyncio.all_tasks())
        if sockets > before[2] + 3:
            left.append(f"{sockets} sockets, not {before[2]}")
        return not left

    await eventually(is_clean, name=lambda: f"nothing left behind: {left}")
    assert min(delays) <= BOUND_S, delays
    measured(
        4,
        f"{REPEATS} abandoned calls leak no task, socket or slot; of fifty at a time the "
        f"provider's last socket closed {1000 * min(delays):.0f} to {1000 * max(delays):.0f} ms after the last",
    )
