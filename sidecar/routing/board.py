"""What this process knows of each deployment right now: calls in flight, how quick, how busy, how often it failed.

Neighbours: `strategies` read it, RouteMiddleware writes it: `started` and `ended` once per attempt, nothing per piece.
Pure: the instant is an argument. Bounded by the configured deployments (`keep`).
"""

from __future__ import annotations

from collections.abc import Iterable
from math import exp

from sidecar.routing.level import Level
from sidecar.types import Deployment

_SLOT_S = 5
_SLOTS = 13
"""A minute and the slot that is only partly over: what is counted is never less than the last 60 s hold."""
_SHARE = 0.2
"""Of the newest measurement in an average."""
_EVER = float("inf")
PEAK_S = 10.0
"""How fast a peak is forgotten (its time constant)."""


class Live:
    """One deployment's figures. `wait_s` is the average time until content began (unstreamed: until the answer),
    `token_s` per output token, `errors` the failing share; `None` is unknown. `share`: what is taken of its own limits,
    of the one that is closest; kept while somebody told them (`seats`: rpm, tpm, concurrency)."""

    __slots__ = (
        "_counts",
        "_peak_at",
        "_peak_s",
        "_slot",
        "errors",
        "full_until",
        "in_flight",
        "measured_at",
        "newest",
        "requests",
        "seats",
        "share",
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
        self.measured_at = -_EVER
        self.full_until = 0.0
        self.requests = 0
        self.tokens = 0
        self.seats: tuple[float, float, float] | None = None
        self.share = 0.0
        self._peak_s = 0.0
        self._peak_at = 0.0
        self._slot = 0
        self.turns_at = 0
        self._counts: list[list[int]] = [[0, 0] for _ in range(_SLOTS)]
        self.newest = self._counts[0]
        """Requests and tokens of the slot that holds the present, until `turns_at`."""

    def turn(self, now: float) -> list[int]:
        """Forget what is over a minute old; the counts of the slot that holds `now`."""
        if now < self.turns_at:
            return self.newest
        slot = int(now) // _SLOT_S
        if slot > self._slot:
            for passed in range(max(self._slot + 1, slot - _SLOTS + 1), slot + 1):
                old = self._counts[passed % _SLOTS]
                self.requests -= old[0]
                self.tokens -= old[1]
                old[0] = old[1] = 0
            self._slot = slot
            self.turns_at = (slot + 1) * _SLOT_S
            self.newest = self._counts[slot % _SLOTS]
            self.reckon()
        return self.newest

    def reckon(self) -> None:
        """Every change of a count ends here, if there are limits."""
        if self.seats is not None:
            rpm, tpm, calls = self.seats
            self.share = max(self.requests / rpm, self.tokens / tpm, self.in_flight / calls)

    def begin_anew(self, now: float) -> None:
        """The clock was set back: what is counted would stay until it is there again."""
        for counts in self._counts:
            counts[0] = counts[1] = 0
        self.requests = self.tokens = 0
        self.full_until = 0.0
        self._slot = int(now) // _SLOT_S
        self.turns_at = (self._slot + 1) * _SLOT_S
        self.newest = self._counts[self._slot % _SLOTS]
        self.reckon()

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
        faded = exp((self._peak_at - now) / PEAK_S) if now > self._peak_at else 1.0
        peak = self._peak_s * faded
        # What faded is made up for by the new measurement: an average weighed by time, but a peak counts whole.
        self._peak_s = wait_s if wait_s > peak else peak + (1.0 - faded) * wait_s
        self._peak_at = now

    def outrun(self, now: float, after_s: float) -> None:
        """Another attempt began content first, so this one was ended. It would have taken longer, nobody knows how
        long: twice as much, if that is news."""
        if self.wait_s is None or 2 * after_s > self.wait_s:
            self.waited(now, 2 * after_s)


class Lives(list[Live]):
    """Those of a level, in its order. `known_at`, for waiting times and for times per token: all are known, none was
    measured before. Until the board counts more than `calls_to` and `tokens_to`, none is at its limits."""

    def __init__(self, lives: Iterable[Live]) -> None:
        super().__init__(lives)
        self.known_at = [-_EVER, -_EVER]
        self.calls_to = self.tokens_to = 0.0
        self._turns_at = -_EVER

    def turn(self, now: float) -> None:
        if now >= self._turns_at:
            for live in self:
                live.turn(now)
            self._turns_at = min(live.turns_at for live in self)


class Board:
    """One per process. `full_until`: none is known to be full for longer."""

    def __init__(self) -> None:
        self._live: dict[str, Live] = {}
        self._mark = object()
        self._calls = self._tokens = 0
        self.full_until = 0.0

    def __len__(self) -> int:
        return len(self._live)

    def of(self, deployment: Deployment) -> Live:
        live = self._live.get(deployment.deployment_id)
        if live is None:
            live = self._live[deployment.deployment_id] = Live()
        return live

    def all_of(self, level: Level) -> Lives:
        if level.seen_by is not self._mark:
            level.seen, level.seen_by = Lives(map(self.of, level)), self._mark
            if level.has_limits:
                for live, seats in zip(level.seen, level.seats, strict=True):
                    live.seats = seats
                    live.reckon()
        lives: Lives = level.seen
        return lives

    def started(self, deployment: Deployment, now: float, tokens: int = 0) -> Live:
        """An attempt begins; `tokens` is what it may use, corrected by `ended`."""
        live = self._live.get(deployment.deployment_id)
        if live is None:
            live = self.of(deployment)
        counts = live.newest if now < live.turns_at else live.turn(now)
        counts[0] += 1
        live.requests += 1
        self._calls += 1
        if tokens:
            counts[1] += tokens
            live.tokens += tokens
            self._tokens += tokens
        live.in_flight += 1
        if live.seats is not None:
            live.reckon()
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
        if used != reserved:
            surplus = used - reserved
            counts = live.turn(now)
            surplus = max(surplus, -counts[1])
            counts[1] += surplus
            live.tokens += surplus
            if surplus > 0:
                self._tokens += surplus
        if live.seats is not None:
            live.reckon()
        if failed is None:
            return
        if failed or live.errors:
            live.errors += _SHARE * (failed - live.errors)
        if began_s is None:
            live.waited(now, took_s, failed=failed)
        if output > 0 and not failed:
            token_s = (took_s - began_s if began_s is not None and began_s < took_s else took_s) / output
            live.token_s = token_s if live.token_s is None else live.token_s + _SHARE * (token_s - live.token_s)

    def filled(self, deployment: Deployment, until: float) -> None:
        """Whoever counts for all processes has no room for it until then."""
        self.of(deployment).full_until = until
        self.full_until = max(self.full_until, until)

    def is_any_full(self, level: Level, now: float) -> bool:
        """Whoever counts for all processes said so."""
        return any(live.full_until > now for live in self.all_of(level))

    def has_room(self, level: Level, tokens: int, now: float) -> bool:
        """None of them is at its own limits, as far as this process knows."""
        lives = self.all_of(level)
        if self._calls < lives.calls_to and self._tokens + tokens <= lives.tokens_to:
            return True
        lives.turn(now)
        more_calls = more_tokens = _EVER
        for (rpm, tpm, calls), live in zip(level.caps, lives, strict=True):
            if live.requests >= rpm or live.tokens + tokens > tpm or live.in_flight >= calls:
                return False
            more_calls = min(more_calls, rpm - live.requests, calls - live.in_flight)
            more_tokens = min(more_tokens, tpm - live.tokens)
        # However these are spread, none is full before.
        lives.calls_to, lives.tokens_to = self._calls + more_calls, self._tokens + more_tokens
        return True

    def room_in_s(self, deployment: Deployment, tokens: int, now: float) -> float:
        """0 if the deployment's own limits let one more call in, as far as this process knows; else seconds to wait."""
        live = self.of(deployment)
        if live.turns_at > now + 2 * _SLOT_S:
            live.begin_anew(now)
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
        self._mark = object()
