"""`python -m bench.routing`: what each strategy does under load and faults, in virtual time, and what routing costs.

Writes the tables between the marks of docs/routing.md and docs/routing.svg. The simulation is the one the tests use;
what routing costs is measured by `bench.routing_cost`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from bench.routing_cost import Costs, measure
from sidecar.routing.hedging import Hedging
from sidecar.routing.strategies import STRATEGIES
from tests.routing.simulate import SCENARIOS, STALLING, Result, simulate

PAGE = Path(__file__).parent.parent / "docs" / "routing.md"
PLOT = PAGE.with_name("routing.svg")


def _row(name: str, result: Result) -> str:
    shares = " ".join(f"{result.share(place.name):.0%}" for place in SCENARIOS[name])
    return f"{shares} | {result.quantile(0.5):.2f} | {result.quantile(0.99):.2f} | {result.wasted} | {result.failed}"


def tables(results: dict[str, dict[str, Result]], costs: Costs) -> str:
    lines: list[str] = []
    for name, by_strategy in results.items():
        lines += [f"**{name}** ({', '.join(place.name for place in SCENARIOS[name])})", ""]
        lines += [
            "| strategy | share of the answers | p50 s | p99 s | wasted attempts | failed |",
            "|---|---|---|---|---|---|",
        ]
        lines += [f"| `{strategy}` | {_row(name, result)} |" for strategy, result in by_strategy.items()]
        lines.append("")
    lines += costs.table()
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
    costs = asyncio.run(measure())
    text = tables(results, costs)
    print(text)
    hedged = hedging_table()
    print(hedged)
    page = fill(PAGE.read_text("utf-8"), "bench.routing", text)
    PAGE.write_text(fill(page, "bench.routing hedging", hedged), "utf-8")
    PLOT.write_text(plot(results), "utf-8")


if __name__ == "__main__":
    main()
