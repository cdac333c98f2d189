"""Equal deployments, of which one is chosen, with what strategies need of them and no request changes: made once.

Neighbours: `candidates` makes levels, `strategies` choose of one; `board` and `health` keep what they know of it at it,
and what they kept counts as long as the mark beside it is the one they use now.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

from sidecar.types import Deployment, Limits

_NEVER = float("inf")


class Level(tuple[Deployment, ...]):
    """A tuple to everybody else. `weights` and their running `sums`, `last` (an index), `is_even`: all weigh alike.
    `caps`: the own rpm, tpm and concurrency of each; `seats`: what shares of them are taken of."""

    def __init__(self, deployments: Iterable[Deployment]) -> None:
        self.weights = tuple(d.weight for d in self)
        self.names = tuple(d.deployment_id.encode("utf-8", "surrogatepass") for d in self)
        self.sums = list(accumulate(self.weights))
        self.last = len(self) - 1
        self.is_even = len(set(self.weights)) < 2
        self.has_limits = any(not d.limits.is_empty for d in self)
        self.caps = [_caps(d.limits) for d in self]
        self.seats = [(rpm or _NEVER, tpm or _NEVER, calls or _NEVER) for rpm, tpm, calls in self.caps]
        self.seen: Any = None
        self.seen_by: object = None
        self.awake: Level | None = None
        self.awake_by: object = None
        self._cheapest: Level | None = None

    @property
    def cheapest(self) -> Level:
        """Those of the lowest price of three input tokens and an output token; a price nobody knows comes last."""
        found = self._cheapest
        if found is None:
            prices = [_price(d.price) for d in self]
            best = min(prices)
            found = self._cheapest = Level([d for d, price in zip(self, prices, strict=True) if price == best])
        return found


def as_level(deployments: Sequence[Deployment]) -> Level:
    return deployments if type(deployments) is Level else Level(deployments)


def _caps(limits: Limits) -> tuple[float, float, float]:
    return tuple(_NEVER if cap is None else cap for cap in (limits.rpm, limits.tpm, limits.concurrency))  # type: ignore


def _price(price: Any) -> float:
    status = getattr(price, "status", "unpriced")
    if status == "priced":
        return 3 * float(price.rates.input) + float(price.rates.output)
    return 0.0 if status == "free" else _NEVER
