"""How one of several equal deployments is chosen: pure functions of the board, each `(deployments, board, now, draw)`.

Neighbours: `plan` asks once per attempt, with those of one level that are healthy and have room. `draw` gives numbers
in [0, 1). What they do under load and faults: docs/routing.md, made by `python -m bench.routing`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from types import MappingProxyType

from sidecar.routing.board import Board, Live
from sidecar.types import Deployment

Draw = Callable[[], float]
Strategy = Callable[[Sequence[Deployment], Board, float, Draw], Deployment]

BUFFER = 0.15
"""Deployments that are slower than the best by no more than this share of it count as equally good."""
FORGET_S = 60.0
"""A measurement older than this no longer keeps a deployment from being tried."""
_UNKNOWN_S = 1.0
_NEVER = float("inf")


def weighted(deployments: Sequence[Deployment], board: Board, now: float, draw: Draw) -> Deployment:
    """By weight alone."""
    if len(deployments) == 1:
        return deployments[0]
    point = draw() * sum([d.weight for d in deployments])
    for deployment in deployments:
        point -= deployment.weight
        if point < 0:
            return deployment
    return deployments[-1]


def least_busy(deployments: Sequence[Deployment], board: Board, now: float, draw: Draw) -> Deployment:
    """The fewest calls in flight for its weight; equals by weight."""
    return weighted(
        _lowest(
            deployments,
            [live.in_flight / d.weight for d, live in zip(deployments, board.all_of(deployments), strict=True)],
        ),
        board,
        now,
        draw,
    )


def latency(deployments: Sequence[Deployment], board: Board, now: float, draw: Draw) -> Deployment:
    """The shortest average time until content begins, within a buffer; one unknown or long not asked is tried once."""
    lives = board.all_of(deployments)
    return _quickest(deployments, lives, [live.wait_s for live in lives], board, now, draw)


def throughput(deployments: Sequence[Deployment], board: Board, now: float, draw: Draw) -> Deployment:
    """The least average time per output token, within the same buffer."""
    lives = board.all_of(deployments)
    return _quickest(deployments, lives, [live.token_s for live in lives], board, now, draw)


def usage(deployments: Sequence[Deployment], board: Board, now: float, draw: Draw) -> Deployment:
    """The most headroom in the deployments' own rpm, tpm and concurrency; without limits the fewest calls this minute
    for its weight."""
    least = fewest = _NEVER
    good: list[Deployment] = []
    for deployment, live in zip(deployments, board.all_of(deployments), strict=True):
        if live.turns_at <= now:
            live.turn(now)
        limits = deployment.limits
        requests = live.requests
        share = 0.0
        if limits.rpm:
            share = requests / limits.rpm
        if limits.tpm:
            share = max(share, live.tokens / limits.tpm)
        if limits.concurrency:
            share = max(share, live.in_flight / limits.concurrency)
        if share > least:
            continue
        calls = requests / deployment.weight
        if share < least or calls < fewest:
            least, fewest, good = share, calls, [deployment]
        elif calls == fewest:
            good.append(deployment)
    return weighted(good, board, now, draw)


def cost(deployments: Sequence[Deployment], board: Board, now: float, draw: Draw) -> Deployment:
    """The lowest price of three input tokens and an output token; a price nobody knows comes last."""
    return weighted(
        _lowest(deployments, [_price(d, live) for d, live in zip(deployments, board.all_of(deployments), strict=True)]),
        board,
        now,
        draw,
    )


def adaptive(deployments: Sequence[Deployment], board: Board, now: float, draw: Draw) -> Deployment:
    """Two drawn by weight, then the one that promises less waiting: its peak waiting time, calls in flight, failures.
    Looks at two, not at all, so processes that know the same do not all run to the same one."""
    count = len(deployments)
    if count == 1:
        return deployments[0]
    one = weighted(deployments, board, now, draw)
    if count == 2:
        other = deployments[deployments[0] is one]
    else:
        other = weighted([d for d in deployments if d is not one], board, now, draw)
    return one if _load(board.of(one), now) <= _load(board.of(other), now) else other


STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {
        "weighted": weighted,
        "adaptive": adaptive,
        "least_busy": least_busy,
        "latency": latency,
        "throughput": throughput,
        "usage": usage,
        "cost": cost,
    }
)


def _lowest(deployments: Sequence[Deployment], scores: Sequence[float]) -> Sequence[Deployment]:
    best = min(scores)
    return [d for d, score in zip(deployments, scores, strict=True) if score == best]


def _quickest(
    deployments: Sequence[Deployment],
    lives: Sequence[Live],
    times: Sequence[float | None],
    board: Board,
    now: float,
    draw: Draw,
) -> Deployment:
    limit = min([seconds for seconds in times if seconds is not None], default=_UNKNOWN_S) * (1 + BUFFER)
    old = now - FORGET_S
    good: list[Deployment] = []
    for deployment, live, seconds in zip(deployments, lives, times, strict=True):
        if seconds is None or live.measured_at < old:
            if not live.in_flight:
                return deployment  # nobody knows: this call finds out, the others meanwhile go by what is known
        elif seconds <= limit and seconds * (1 + 4 * live.errors) <= limit:
            good.append(deployment)
    return weighted(good or deployments, board, now, draw)


def _price(deployment: Deployment, live: Live) -> float:
    price = deployment.price
    if live.priced is not price:
        status = getattr(price, "status", "unpriced")
        if status == "priced":
            live.price = 3 * float(price.rates.input) + float(price.rates.output)
        else:
            live.price = 0.0 if status == "free" else _NEVER
        live.priced = price
    return live.price if price is not None else _NEVER


def _load(live: Live, now: float) -> float:
    """Waiting time by the root of the queue: a provider serves many calls at once, so twice as many in flight are not
    twice the wait, and long streams do not outweigh a slow start."""
    wait = live.peak_s(now)
    if live.wait_s is not None and live.wait_s > wait and now - live.measured_at < FORGET_S:
        wait = live.wait_s
    if live.in_flight and wait < 0.001:
        wait = _UNKNOWN_S  # its first call is still out
    return wait * sqrt(live.in_flight + 1) * (1 + 10 * live.errors)
