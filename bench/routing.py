"""`python -m bench.routing`: what each strategy does under load and faults, in virtual time, and what routing costs.

Writes the tables between the marks of docs/routing.md and docs/routing.svg. The simulation is the one the tests use;
the cost is CPU of this process, per request, on top of the same stack without RouteMiddleware.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from sidecar.asgi import Front, candidates_of, close_exchange, open_exchange, read_body, receive_for
from sidecar.middleware.route import RouteMiddleware
from sidecar.routing.catalog import Catalog
from sidecar.routing.hedging import Hedging
from sidecar.routing.router import Router
from sidecar.routing.strategies import STRATEGIES
from sidecar.types import Deployment
from tests.routing.simulate import SCENARIOS, STALLING, Result, simulate

PAGE = Path(__file__).parent.parent / "docs" / "routing.md"
PLOT = PAGE.with_name("routing.svg")
_RAW = json.dumps({"model": "g", "messages": [{"role": "user", "content": "hi"}]}).encode()
_START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
_BODY = {"type": "http.response.body", "body": b"{}", "more_body": False}


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


async def _cost_us(strategy: str, deployments: int, requests: int = 3000, rounds: int = 9) -> float:
    places = [Deployment(f"g#{n}", "g", "openai", "m", "http://127.0.0.1:9") for n in range(deployments)]
    catalog = Catalog(places)
    routed = RouteMiddleware(_below, catalog=catalog, router=Router(strategy=strategy))

    async def bare(scope: Any, receive: Any, send: Any) -> None:
        exchange, _ = open_exchange(scope, receive)
        send = Front(exchange, send)
        await read_body(scope, exchange)
        await exchange.begin_attempt(candidates_of(exchange, catalog)[0])
        await _below(dict(scope), receive_for(exchange), send)
        close_exchange(exchange)

    best: list[float] = []
    for app in (bare, routed):
        times = []
        for _ in range(rounds):
            began = time.process_time()
            for _ in range(requests):
                scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
                await app(scope, _receive, _send)
            times.append((time.process_time() - began) / requests * 1e6)
        best.append(min(times))
    return best[1] - best[0]


def _row(name: str, result: Result) -> str:
    shares = " ".join(f"{result.share(place.name):.0%}" for place in SCENARIOS[name])
    return f"{shares} | {result.quantile(0.5):.2f} | {result.quantile(0.99):.2f} | {result.wasted} | {result.failed}"


def tables(results: dict[str, dict[str, Result]], costs: dict[str, tuple[float, float, float]]) -> str:
    lines: list[str] = []
    for name, by_strategy in results.items():
        lines += [f"**{name}** ({', '.join(place.name for place in SCENARIOS[name])})", ""]
        lines += [
            "| strategy | share of the answers | p50 s | p99 s | wasted attempts | failed |",
            "|---|---|---|---|---|---|",
        ]
        lines += [f"| `{strategy}` | {_row(name, result)} |" for strategy, result in by_strategy.items()]
        lines.append("")
    lines += [
        "CPU that routing adds to a request, in µs:",
        "",
        "| strategy | 1 deployment | 2 | 20 |",
        "|---|---|---|---|",
    ]
    lines += [f"| `{strategy}` | {a:.1f} | {b:.1f} | {c:.1f} |" for strategy, (a, b, c) in costs.items()]
    return "\n".join(lines)


HEDGED = ("weighted", "adaptive")


def hedging_table() -> str:
    """With and without second attempts, after the measured 95th percentile, for a tenth of the requests at most."""
    lines = [
        "| | strategy | p99 s | p99.9 s | hedged: p99 s | p99.9 s | second attempts | of them answered |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, places in STALLING.items():
        for strategy in HEDGED:
            alone, both = simulate(places, strategy), simulate(places, strategy, hedging=Hedging())
            times = [f"{result.quantile(part):.2f}" for result in (alone, both) for part in (0.99, 0.999)]
            share = both.hedged / both.requests
            lines.append(
                f"| {name} | `{strategy}` | {' | '.join(times)} | {share:.1%} | {both.won / both.hedged:.0%} |"
            )
    return "\n".join(lines)


def plot(results: dict[str, dict[str, Result]]) -> str:
    """p99 of the time until content, by scenario and strategy, on a logarithmic scale."""
    from math import log10

    strategies = list(STRATEGIES)
    colours = dict(
        zip(strategies, ("#888888", "#1a7f37", "#0969da", "#bf3989", "#9a6700", "#8250df", "#cf222e"), strict=True)
    )
    width, group, left, top = 860, 20 + 12 * len(strategies), 130, 40
    height = top + group * len(results) + 30

    def x(seconds: float) -> float:
        return left + (log10(max(seconds, 1.0)) / 2) * (width - left - 60)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="14">p99 of the time until content, seconds (logarithmic)</text>',
    ]
    for seconds in (1, 2, 5, 10, 20, 50, 100):
        parts.append(
            f'<line x1="{x(seconds):.0f}" x2="{x(seconds):.0f}" y1="{top - 8}" y2="{height - 20}" stroke="#ddd"/>'
        )
        parts.append(f'<text x="{x(seconds) - 4:.0f}" y="{top - 12}" fill="#666">{seconds}</text>')
    for row, (name, by_strategy) in enumerate(results.items()):
        y = top + row * group
        parts.append(f'<text x="8" y="{y + group / 2:.0f}">{name}</text>')
        for number, (strategy, result) in enumerate(by_strategy.items()):
            end = x(result.quantile(0.99))
            at = y + 12 * number
            parts.append(
                f'<rect x="{left}" y="{at}" width="{max(end - left, 1):.0f}" height="10" fill="{colours[strategy]}"/>'
            )
            parts.append(
                f'<text x="{end + 4:.0f}" y="{at + 9}" fill="#444">{strategy} {result.quantile(0.99):.1f}</text>'
            )
    return "\n".join([*parts, "</svg>", ""])


def fill(page: str, mark: str, text: str) -> str:
    """The page with what stands between its marks replaced."""
    head, _, rest = page.partition(f"<!-- {mark} -->\n")
    _, _, tail = rest.partition("<!-- end -->\n")
    return f"{head}<!-- {mark} -->\n{text}\n<!-- end -->\n{tail}"


def main() -> None:
    results = {n: {s: simulate(places, s) for s in STRATEGIES} for n, places in SCENARIOS.items()}
    costs = {
        s: (asyncio.run(_cost_us(s, 1)), asyncio.run(_cost_us(s, 2)), asyncio.run(_cost_us(s, 20))) for s in STRATEGIES
    }
    text = tables(results, costs)
    print(text)
    hedged = hedging_table()
    print(hedged)
    page = fill(PAGE.read_text("utf-8"), "bench.routing", text)
    PAGE.write_text(fill(page, "bench.routing hedging", hedged), "utf-8")
    PLOT.write_text(plot(results), "utf-8")


if __name__ == "__main__":
    main()
