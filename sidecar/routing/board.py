"""What this process knows of each deployment right now: calls in flight, how quick, how busy, how often it failed.

Neighbours: `strategies` read it, RouteMiddleware writes it: `started` and `ended` once per attempt, nothing per piece.
Pure: the instant is an argument. Bounded by the configured deployments (`keep`).
"""

from __future__ import annotations

from collections.abc import Iterable
from math import exp

from sidecar.types import Deployment

_SLOT_S = 5
_SLOTS = 13
"""A minute and the slot that is only partly over: what is counted is never less than the last 60 s hold."""
_SHARE = 0.2
"""Of the newest measurement in an average."""
PEAK_S = 10.0
"""How fast a peak is forgotten (its time constant)."""


class Live:
    """One deployment's figures. `wait_s` is the average time until content began (unstreamed: until the answer),
    `token_s` per output token, `errors` the failing share; `None` is unknown."""

    __slots__ = (
        "_counts",
        "_peak_at",
        "_peak_s",
        "_slot",
        "errors",
        "full_until",
        "in_flight",
        "measured_at",
        "price",
        "priced",
        "requests",
        "token_s",
        "tokens",
        "turns_at",
        "wait_s",
    )

    def __init__(self) -> None:
        self.in_flight = 0
        self.wait_s: float | None = None
        self.token_s: float | None = None
        self.errors = 0.0
        self.measured_at = 0.0
        self.full_until = 0.0
        self.priced: object = None
        self.price = 0.0
        self.requests = 0
        self.tokens = 0
        self._peak_s = 0.0
        self._peak_at = 0.0
        self._slot = 0
        self.turns_at = 0
        self._counts: list[list[int]] = [[0, 0] for _ in range(_SLOTS)]

    def turn(self, now: float) -> list[int]:
        """Forget what is over a minute old; the counts of the slot that holds `now`."""
        if now < self.turns_at:
            return self._counts[self._slot % _SLOTS]
        slot = int(now) // _SLOT_S
        if slot > self._slot:
            for passed in range(max(self._slot + 1, slot - _SLOTS + 1), slot + 1):
                old = self._counts[passed % _SLOTS]
                self.requests -= old[0]
                self.tokens -= old[1]
                old[0] = old[1] = 0
            self._slot = slot
            self.turns_at = (slot + 1) * _SLOT_S
        return self._counts[self._slot % _SLOTS]

    def peak_s(self, now: float) -> float:
        """The waiting time, quick to rise and slow to fall: the highest measured lately, fading."""
        return self._peak_s * exp((self._peak_at - now) / PEAK_S) if now > self._peak_at else self._peak_s

    def until_fewer_s(self, now: float, which: int, allowed: int) -> float:
        """Seconds until the rolling minute holds at most `allowed` requests (`which` 0) or tokens (1)."""
        left = self.requests if which == 0 else self.tokens
        for slot in range(self._slot - _SLOTS + 1, self._slot + 1):
            if left <= allowed:
                break
            left -= self._counts[slot % _SLOTS][which]
            until_at = (slot + _SLOTS) * _SLOT_S
        else:
            return max(until_at - now, 0.0) if left <= allowed else float(_SLOTS * _SLOT_S)
        return max(until_at - now, 0.0)

    def waited(self, now: float, wait_s: float, *, failed: bool = False) -> None:
        """Content began, or the attempt failed, after so long."""
        self.measured_at = now
        if not failed:
            self.wait_s = wait_s if self.wait_s is None else self.wait_s + _SHARE * (wait_s - self.wait_s)
        peak = self.peak_s(now)
        # What faded is made up for by the new measurement: an average weighed by time, but a peak counts whole.
        faded = peak / self._peak_s if self._peak_s else 0.0
        self._peak_s = wait_s if wait_s > peak else peak + (1.0 - faded) * wait_s
        self._peak_at = now

    def outrun(self, now: float, after_s: float) -> None:
        """Another attempt began content first, so this one was ended. It would have taken longer, nobody knows how
        long: twice as much, if that is news."""
        if self.wait_s is None or 2 * after_s > self.wait_s:
            self.waited(now, 2 * after_s)


class Board:
    """One per process."""

    def __init__(self) -> None:
        self._live: dict[str, Live] = {}

    def __len__(self) -> int:
        return len(self._live)

    def of(self, deployment: Deployment) -> Live:
        live = self._live.get(deployment.deployment_id)
        if live is None:
            live = self._live[deployment.deployment_id] = Live()
        return live

    def all_of(self, deployments: Iterable[Deployment]) -> list[Live]:
        found = self._live.get
        return [found(d.deployment_id) or self.of(d) for d in deployments]

    def started(self, deployment: Deployment, now: float, tokens: int = 0) -> Live:
        """An attempt begins; `tokens` is what it may use, corrected by `ended`."""
        live = self.of(deployment)
        counts = live.turn(now)
        counts[0] += 1
        counts[1] += tokens
        live.requests += 1
        live.tokens += tokens
        live.in_flight += 1
        return live

    def ended(
        self,
        live: Live,
        now: float,
        *,
        took_s: float,
        began_s: float | None = None,
        used: int = 0,
        output: int = 0,
        reserved: int = 0,
        failed: bool | None = False,
    ) -> None:
        """`began_s`: content began after so long, and `live.waited` was told then. `failed=None`: the attempt says
        nothing about the deployment (its client left, or was wrong)."""
        live.in_flight -= 1
        surplus = used - reserved
        if surplus:
            counts = live.turn(now)
            surplus = max(surplus, -counts[1])
            counts[1] += surplus
            live.tokens += surplus
        if failed is None:
            return
        live.errors += _SHARE * (failed - live.errors)
        if began_s is None:
            live.waited(now, took_s, failed=failed)
        if output > 0 and not failed:
            token_s = (took_s - began_s if began_s is not None and began_s < took_s else took_s) / output
            live.token_s = token_s if live.token_s is None else live.token_s + _SHARE * (token_s - live.token_s)

    def room_in_s(self, deployment: Deployment, tokens: int, now: float) -> float:
        """0 if the deployment's own limits let one more call in, as far as this process knows; else seconds to wait."""
        live = self.of(deployment)
        wait = max(live.full_until - now, 0.0)
        limits = deployment.limits
        live.turn(now)
        if limits.rpm is not None and live.requests >= limits.rpm:
            wait = max(wait, live.until_fewer_s(now, 0, limits.rpm - 1))
        if limits.tpm is not None and live.tokens + tokens > limits.tpm and live.tokens:
            wait = max(wait, live.until_fewer_s(now, 1, max(limits.tpm - tokens, 0)))
        if limits.concurrency is not None and live.in_flight >= limits.concurrency:
            wait = max(wait, 1.0)
        return wait

    def keep(self, ids: Iterable[str]) -> None:
        """Forget deployments that are no longer configured, once nothing of theirs runs."""
        known = set(ids)
        for name in [name for name, live in self._live.items() if name not in known and not live.in_flight]:
            del self._live[name]
