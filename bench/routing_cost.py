"""`python -m bench.routing_cost`: CPU and Python instructions that routing adds to a request, by strategy.

What is measured is a stack of RouteMiddleware alone against the same one without it. Short slices with and without take
turns, and the median of their differences counts, so a machine that is slower for a while is so for both. Beside it
stand executed Python instructions, which are nearly the same everywhere, and what a fixed loop took meanwhile: compare
times of two runs only by that. The deployments have calls in flight, as in a gateway that is busy, so few are equal.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.steps import Steps
from sidecar.admit import estimate_of
from sidecar.asgi import Front, candidates_of, close_exchange, open_exchange, read_body, receive_for
from sidecar.middleware.route import RouteMiddleware
from sidecar.routing.catalog import Catalog
from sidecar.routing.router import Router
from sidecar.routing.strategies import STRATEGIES
from sidecar.types import Deployment, Limits

SIZES = (1, 2, 20)
UNLIMITED = Limits()
LIMITED = Limits(rpm=10**7, tpm=10**9, concurrency=1000)
ROWS = (*STRATEGIES, "weighted with affinity", "usage with limits of their own")
"""Strategies; one of them with conversations that keep to their homes, one with limits that have to be asked."""
ROUNDS = 60
SLICE = 50
COUNTED = 20
_LOOP = 1000
_RAW = json.dumps({"model": "g", "messages": [{"role": "user", "content": "hi"}]}).encode()
_START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
_BODY = {"type": "http.response.body", "body": b"{}", "more_body": False}


@dataclass(frozen=True, slots=True)
class Costs:
    """By row and number of deployments. `loop_us`: what a thousand rounds of an empty loop took."""

    us: dict[tuple[str, int], float]
    instructions: dict[tuple[str, int], float]
    loop_us: float

    def table(self) -> list[str]:
        lines = [
            f"CPU that routing adds to a request, in µs, and Python instructions (while {_LOOP} rounds of an empty "
            f"loop took {self.loop_us:.1f} µs):",
            "",
            "| strategy | " + " | ".join(f"{n} deployment{'s' * (n > 1)}" for n in SIZES) + " |",
            "|---" * (len(SIZES) + 1) + "|",
        ]
        for name in dict.fromkeys(row for row, _ in self.us):
            cells = [f"{self.us[name, n]:.1f} ({self.instructions[name, n]:.0f})" for n in SIZES]
            strategy, _, more = name.partition(" ")
            lines.append(f"| `{strategy}`{', ' * bool(more)}{more} | {' | '.join(cells)} |")
        return lines


async def _below(scope: Any, receive: Any, send: Any) -> None:
    """An app that answers at once, as Translate and the proxy would note it."""
    exchange = scope["sidecar"]
    attempt = exchange.attempt
    exchange.is_translated = True
    attempt.status, attempt.first_byte_at = 200, exchange.now()
    attempt.content_started = attempt.is_complete = True
    attempt.ended_at = exchange.now()
    await send(_START)
    await send(_BODY)


async def _receive() -> Any:
    return {"type": "http.request", "body": _RAW, "more_body": False}


async def _send(message: Any) -> None:
    return None


def _catalog(size: int, limits: Limits = UNLIMITED) -> Catalog:
    return Catalog([Deployment(f"g#{n}", "g", "openai", "m", "http://127.0.0.1:9", limits=limits) for n in range(size)])


def _without(catalog: Catalog) -> Any:
    async def bare(scope: Any, receive: Any, send: Any) -> None:
        exchange, _ = open_exchange(scope, receive)
        send = Front(exchange, send)
        await read_body(scope, exchange)
        first = candidates_of(exchange, catalog)[0]
        if not first.limits.is_empty:
            estimate_of(exchange)  # whoever counts the caller's limits has asked
        await exchange.begin_attempt(first)
        await _below(dict(scope), receive_for(exchange), send)
        close_exchange(exchange)

    return bare


def _with(row: str, size: int) -> Any:
    strategy, _, more = row.partition(" ")
    catalog = _catalog(size, LIMITED if "limits" in more else UNLIMITED)
    router, choose = Router(strategy=strategy, affinity="affinity" in more), random.Random(size)
    for deployment in catalog.deployments:
        for _ in range(choose.randrange(4)):
            router.board.started(deployment, time.time())
    return RouteMiddleware(_below, catalog=catalog, router=router)


async def _run(app: Any, requests: int) -> float:
    """CPU per request, in µs. Before, the loop has its turn (it watches who left), and afterwards the collector of
    garbage, which has nothing to do with routing."""
    await asyncio.sleep(0)
    scopes = [
        {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []} for _ in range(requests)
    ]
    gc.disable()
    began = time.process_time_ns()
    for scope in scopes:
        await app(scope, _receive, _send)
    took = time.process_time_ns() - began
    gc.enable()
    return took / requests / 1000


def _loop() -> float:
    began = time.process_time_ns()
    for _ in range(_LOOP):
        pass
    return (time.process_time_ns() - began) / 1000


async def _counted(app: Any) -> float:
    """The least of three: what the loop does later for earlier requests (watching who left) is none of these."""
    await _run(app, 100)
    found = []
    for _ in range(3):
        steps = Steps()
        with steps:
            await asyncio.create_task(_run(app, COUNTED))
        found.append(sum(steps.instructions.values()) / COUNTED)
    return min(found)


async def count(rows: Sequence[str], sizes: Sequence[int] = SIZES) -> dict[tuple[str, int], float]:
    """Instructions by row and number of deployments."""
    least = {has: await _counted(_without(_catalog(1, LIMITED if has else UNLIMITED))) for has in (False, True)}
    return {
        (name, size): await _counted(_with(name, size)) - least["limits" in name] for name in rows for size in sizes
    }


async def measure(rows: Sequence[str] = ROWS, sizes: Sequence[int] = SIZES, rounds: int = ROUNDS) -> Costs:
    bares = {more: _without(_catalog(1, LIMITED if more else UNLIMITED)) for more in (False, True)}
    apps = {(name, size): _with(name, size) for name in rows for size in sizes}
    for app in (*bares.values(), *apps.values()):
        await _run(app, 200)
    more: dict[tuple[str, int], list[float]] = {key: [] for key in apps}
    loops = []
    for _ in range(rounds):
        loops.append(_loop())
        for key, app in apps.items():
            bare = bares["limits" in key[0]]
            before = await _run(bare, SLICE)
            took = await _run(app, SLICE)
            more[key].append(took - (before + await _run(bare, SLICE)) / 2)
    return Costs(
        {key: median(found) for key, found in more.items()},
        await count(rows, sizes),
        median(loops),
    )


if __name__ == "__main__":
    print("\n".join(asyncio.run(measure()).table()))
