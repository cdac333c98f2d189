"""How one of several equal deployments is chosen: pure functions of the board, each `(deployments, board, now, draw)`.

Neighbours: `plan` asks once per attempt, with those of one level that are healthy and have room. `draw` gives numbers
in [0, 1). What they do under load and faults: docs/routing.md, made by `python -m bench.routing`. They run for every
request, so what does not change from one to the next is kept at the level: what grows with the number of deployments
are comprehensions and what C does.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from types import MappingProxyType
from typing import Any

from sidecar.routing.board import Board, Live, Lives
from sidecar.routing.level import Level
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
    level = deployments if type(deployments) is Level else Level(deployments)
    last = level.last
    return level[bisect(level.sums, draw() * level.sums[last], 0, last) if last else 0]


def least_busy(deployments: Sequence[Deployment], board: Board, now: float, draw: Draw) -> Deployment:
    """The fewest calls in flight for its weight; equals by weight."""
    level = deployments if type(deployments) is Level else Level(deployments)
    calls = [live.in_flight for live in board.all_of(level)]
    return _least(level, calls if level.is_even else _by_weight(calls, level), draw)


def latency(deployments: Sequence[Deployment], board: Board, now: float, draw: Draw) -> Deployment:
    """The shortest average time until content begins, within a buffer; one unknown or long not asked is tried once."""
    level = deployments if type(deployments) is Level else Level(deployments)
    lives = board.all_of(level)
    return _quickest(level, lives, 0, [live.wait_s for live in lives], board, now, draw)


def throughput(deployments: Sequence[Deployment], board: Board, now: float, draw: Draw) -> Deployment:
    """The least average time per output token, within the same buffer."""
    level = deployments if type(deployments) is Level else Level(deployments)
    lives = board.all_of(level)
    return _quickest(level, lives, 1, [live.token_s for live in lives], board, now, draw)


def usage(deployments: Sequence[Deployment], board: Board, now: float, draw: Draw) -> Deployment:
    """The most headroom in the deployments' own rpm, tpm and concurrency; without limits the fewest calls this minute
    for its weight."""
    level = deployments if type(deployments) is Level else Level(deployments)
    lives = board.all_of(level)
    lives.turn(now)
    if not level.has_limits:
        counts: list[float] = [live.requests for live in lives]
        return _least(level, counts if level.is_even else _by_weight(counts, level), draw)
    shares = [live.share for live in lives]
    best = min(shares)
    count = shares.count(best)
    if count == 1:
        return level[shares.index(best)]
    good: Sequence[int] = range(count)
    if count <= level.last:
        at, good = -1, []
        for _ in range(count):
            at = shares.index(best, at + 1)
            good.append(at)
    if level.is_even:
        counts = [lives[number].requests for number in good]
    else:
        counts = [lives[number].requests / level.weights[number] for number in good]
    fewest = min(counts)
    if counts.count(fewest) == 1:
        return level[good[counts.index(fewest)]]
    return _of(level, [number for number, count in zip(good, counts, strict=True) if count == fewest], draw)


def cost(deployments: Sequence[Deployment], board: Board, now: float, draw: Draw) -> Deployment:
    """The lowest price of three input tokens and an output token; a price nobody knows comes last."""
    level = deployments if type(deployments) is Level else Level(deployments)
    return weighted(level.cheapest, board, now, draw)


def adaptive(deployments: Sequence[Deployment], board: Board, now: float, draw: Draw) -> Deployment:
    """Two drawn by weight, then the one that promises less waiting: its peak waiting time, calls in flight, failures.
    Looks at two, not at all, so processes that know the same do not all run to the same one."""
    level = deployments if type(deployments) is Level else Level(deployments)
    last = level.last
    if not last:
        return level[0]
    sums = level.sums
    one = bisect(sums, draw() * sums[last], 0, last)
    if last == 1:
        other = 1 - one
    else:
        # Of what is left of the sums when the first one's piece is cut out.
        weight = level.weights[one]
        point = draw() * (sums[last] - weight)
        other = bisect(sums, point if point < sums[one] - weight else point + weight, 0, last)
        if other == one:  # rounding
            other = one - 1 if one else 1
    lives = board.all_of(level)
    return level[one if _load(lives[one], now) <= _load(lives[other], now) else other]


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


def _by_weight(calls: Sequence[float], level: Level) -> list[float]:
    return [count / weight for count, weight in zip(calls, level.weights, strict=True)]


def _least(level: Level, scores: Sequence[float], draw: Draw) -> Deployment:
    """One of those with the lowest score, by weight."""
    best = min(scores)
    count = scores.count(best)
    at = scores.index(best)
    if count == 1:
        return level[at]
    if not level.is_even:
        return _of(level, [number for number, score in enumerate(scores) if score == best], draw)
    chosen = int(draw() * count)
    if count > level.last:
        return level[chosen]
    for _ in range(chosen):
        at = scores.index(best, at + 1)
    return level[at]


def _of(level: Level, good: Sequence[int], draw: Draw) -> Deployment:
    """One of these by weight."""
    if len(good) == 1:
        return level[good[0]]
    if level.is_even:
        return level[good[int(draw() * len(good))]]
    weights = level.weights
    point = draw() * sum([weights[number] for number in good])
    for number in good:
        point -= weights[number]
        if point < 0:
            return level[number]
    return level[good[-1]]


def _quickest(
    level: Level, lives: Lives, which: int, times: list[Any], board: Board, now: float, draw: Draw
) -> Deployment:
    old = now - FORGET_S
    if lives.known_at[which] < old:
        # Some are not known, or have not been for a while.
        is_known, good = True, []
        limit = min([seconds for seconds in times if seconds is not None], default=_UNKNOWN_S) * (1 + BUFFER)
        for number, live in enumerate(lives):
            seconds = times[number]
            if live.measured_at < old:
                if not live.in_flight:
                    return level[number]  # nobody knows: this call finds out, the others meanwhile go by what is known
                is_known = False
            elif seconds is None:
                is_known = False  # it was asked, and failed or does not tell
            elif seconds <= limit and seconds * (1 + 4 * live.errors) <= limit:
                good.append(number)
        if is_known:
            lives.known_at[which] = min([live.measured_at for live in lives])
    else:
        limit = min(times) * (1 + BUFFER)
        good = [
            number
            for number, seconds in enumerate(times)
            if seconds <= limit and (not lives[number].errors or seconds * (1 + 4 * lives[number].errors) <= limit)
        ]
    return _of(level, good, draw) if good else weighted(level, board, now, draw)


def _load(live: Live, now: float) -> float:
    """Waiting time by the root of the queue: a provider serves many calls at once, so twice as many in flight are not
    twice the wait, and long streams do not outweigh a slow start."""
    wait = live.peak_s(now)
    if live.wait_s is not None and live.wait_s > wait and now - live.measured_at < FORGET_S:
        wait = live.wait_s
    if live.in_flight and wait < 0.001:
        wait = _UNKNOWN_S  # its first call is still out
    elif live.errors and wait < _UNKNOWN_S and live.wait_s is None and now - live.measured_at < FORGET_S:
        wait = _UNKNOWN_S  # it only ever failed; that it was quick is no merit
    return wait * sqrt(live.in_flight + 1) * (1 + 10 * live.errors)
