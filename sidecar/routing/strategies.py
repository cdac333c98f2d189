"""How one of several equal deployments is chosen: pure functions of the board, each `(deployments, board, now, draw)`.

Neighbours: `plan` asks once per attempt, with those of one level that are healthy and have room. `draw` gives numbers
in [0, 1). What they do under load and faults: docs/routing.md, made by `python -m bench.routing`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    return weighted(_lowest(deployments, [board.of(d).in_flight / d.weight for d in deployments]), board, now, draw)


def latency(deployments: Sequence[Deployment], board: Board, now: float, draw: Draw) -> Deployment:
    """The shortest average time until content begins, within a buffer; one unknown or long not asked is tried once."""
    return _quickest(deployments, board, now, draw, [board.of(d).wait_s for d in deployments])


def throughput(deployments: Sequence[Deployment], board: Board, now: float, draw: Draw) -> Deployment:
    """The least average time per output token, within the same buffer."""
    return _quickest(deployments, board, now, draw, [board.of(d).token_s for d in deployments])


def usage(deployments: Sequence[Deployment], board: Board, now: float, draw: Draw) -> Deployment:
    """The most headroom in the deployments' own rpm, tpm and concurrency; without limits the fewest calls this minute
    for its weight."""
    scores = [_used(d, board.of(d), now) for d in deployments]
    return weighted(_lowest(deployments, scores), board, now, draw)


def cost(deployments: Sequence[Deployment], board: Board, now: float, draw: Draw) -> Deployment:
    """The lowest price of three input tokens and an output token; a price nobody knows comes last."""
    return weighted(_lowest(deployments, [_price(d) for d in deployments]), board, now, draw)


def adaptive(deployments: Sequence[Deployment], board: Board, now: float, draw: Draw) -> Deployment:
    """Two drawn by weight, then the one with the shorter queue: peak waiting time by calls in flight, failures on top.
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


def _lowest(deployments: Sequence[Deployment], scores: Sequence[object]) -> Sequence[Deployment]:
    best = min(scores)  # type: ignore[type-var]
    return [d for d, score in zip(deployments, scores, strict=True) if score == best]


def _quickest(
    deployments: Sequence[Deployment], board: Board, now: float, draw: Draw, times: Sequence[float | None]
) -> Deployment:
    known = [seconds for seconds in times if seconds is not None]
    best = min(known, default=_UNKNOWN_S)
    good: list[Deployment] = []
    for deployment, seconds in zip(deployments, times, strict=True):
        live = board.of(deployment)
        if seconds is None or now - live.measured_at > FORGET_S:
            if not live.in_flight:
                return deployment  # nobody knows: this call finds out, the others meanwhile go by what is known
            continue
        if seconds * (1 + 4 * live.errors) <= best * (1 + BUFFER):
            good.append(deployment)
    return weighted(good or deployments, board, now, draw)


def _used(deployment: Deployment, live: Live, now: float) -> tuple[float, float]:
    live.turn(now)
    limits = deployment.limits
    shares = [0.0]
    if limits.rpm:
        shares.append(live.requests / limits.rpm)
    if limits.tpm:
        shares.append(live.tokens / limits.tpm)
    if limits.concurrency:
        shares.append(live.in_flight / limits.concurrency)
    return max(shares), live.requests / deployment.weight


def _price(deployment: Deployment) -> float:
    price = deployment.price
    status = getattr(price, "status", "unpriced")
    if status == "priced":
        return float(3 * price.rates.input + price.rates.output)
    return 0.0 if status == "free" else float("inf")


def _load(live: Live, now: float) -> float:
    wait = live.peak_s(now)
    if live.in_flight and wait < 0.001:
        wait = _UNKNOWN_S  # its first call is still out
    return wait * (live.in_flight + 1) * (1 + 10 * live.errors)
