"""Who is left alone for a while, why and until when: outliers are ejected, then probed with one real call. Pure: the
instant is an argument.

Neighbours: `plan` asks for the healthy ones, RouteMiddleware reports how attempts went. A lone deployment is never
locked out: where nobody is healthy, the plan asks all the same. A client's own mistake is never reported as a failure.
`on_change` tells whoever shares pauses with other processes; `learn` takes over what they found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sidecar.routing.level import Level
from sidecar.types import Deployment

MAX_PAUSE_S = 300.0
AFTER = 3
"""So many failures in a row eject."""
_WINDOW = 20
_MASK = (1 << _WINDOW) - 1
_AT_LEAST = 10
"""So many outcomes must be known before a failing share of half of them ejects."""
PROBE_S = 60.0
"""A probe that has not come back after this no longer holds others off."""
_BACK_S = 60.0
"""A clock set back by less is waited for."""
_EVER = float("inf")
_AT_ONCE = frozenset({"rate_limit", "quota", "authentication"})
"""What the provider says of itself: no need to hear it thrice."""


@dataclass(slots=True)
class Cooldown:
    """`since_at`: what was sent before says nothing about it. `probe_until_at`: one call is finding out whether it is
    over."""

    until_at: float
    reason: str
    since_at: float = 0.0
    probe_until_at: float = 0.0


class _Record:
    """Outcomes since the first failure: the last twenty as bits (1 failed), how many are known, failures in a row."""

    __slots__ = ("bits", "in_a_row", "known")

    def __init__(self) -> None:
        self.bits = 0
        self.known = 0
        self.in_a_row = 0


OnChange = Callable[[str, "Cooldown | None"], None]


class Health:
    """One per process. Bounded by the number of configured deployments (`keep`)."""

    def __init__(self, cooldown_s: float = 5.0, *, after: int = AFTER, on_change: OnChange | None = None) -> None:
        self._cooldown_s = cooldown_s
        self._after = after
        self._cooling: dict[str, Cooldown] = {}
        self._records: dict[str, _Record] = {}
        self._healed: dict[str, float] = {}
        """When the trial that ended a pause began."""
        self._mark = object()
        """Another one as soon as others pause than before."""
        self.on_change = on_change

    def failed(
        self,
        deployment: Deployment,
        reason: str,
        now: float,
        retry_after_s: float | None = None,
        *,
        kind: str = "server",
        started_at: float = _EVER,
    ) -> None:
        """The deployment's own fault, with what was sent then. `retry_after_s` is what its provider asked for."""
        name = deployment.deployment_id
        if retry_after_s is None and kind not in _AT_ONCE and started_at < self._since(name) <= now:
            return  # what hung since before the pause tells nothing of now
        record = self._records.get(name)
        if record is None:
            record = self._records[name] = _Record()
        record.bits = (record.bits << 1 | 1) & _MASK
        record.known = min(record.known + 1, _WINDOW)
        record.in_a_row += 1
        is_outlier = (
            kind in _AT_ONCE
            or retry_after_s is not None
            or name in self._cooling
            or record.in_a_row >= self._after
            or (record.known >= _AT_LEAST and 2 * record.bits.bit_count() >= record.known)
        )
        if is_outlier:
            pause = self._cooldown_s if retry_after_s is None else max(retry_after_s, self._cooldown_s)
            if name not in self._cooling:
                self._mark = object()
            cooldown = self._cooling[name] = Cooldown(now + min(pause, MAX_PAUSE_S), reason, now)
            if self.on_change is not None:
                self.on_change(name, cooldown)

    def _since(self, name: str) -> float:
        """What was sent before then went to a deployment that is known to have failed, or to have healed since."""
        cooldown = self._cooling.get(name)
        return cooldown.since_at if cooldown is not None else self._healed.get(name, -_EVER)

    def succeeded(self, deployment: Deployment, started_at: float = _EVER) -> None:
        """It answered what was sent then, if only that the client was wrong."""
        if not self._records and not self._cooling:
            return
        name = deployment.deployment_id
        record = self._records.get(name)
        if record is not None:
            record.bits = record.bits << 1 & _MASK
            record.known = min(record.known + 1, _WINDOW)
            record.in_a_row = 0
            if not record.bits:
                del self._records[name]
        self.began(deployment, started_at)

    def began(self, deployment: Deployment, started_at: float = _EVER) -> None:
        """Content began: a trial is passed already, however long the answer is."""
        if not self._cooling:
            return
        name = deployment.deployment_id
        cooldown = self._cooling.get(name)
        if cooldown is not None and cooldown.since_at <= started_at:
            # It starts anew, what failed before does not count against it.
            del self._cooling[name]
            self._mark = object()
            self._records.pop(name, None)
            if started_at != _EVER:
                self._healed[name] = started_at
            if self.on_change is not None:
                self.on_change(name, None)

    def unknown(self, deployment: Deployment, started_at: float = _EVER) -> None:
        """The attempt says nothing (its client left): the next may probe. One from before the pause was no trial."""
        cooldown = self._cooling.get(deployment.deployment_id)
        if cooldown is not None and cooldown.since_at <= started_at:
            cooldown.probe_until_at = 0.0

    def cooling(self, now: float) -> dict[str, Cooldown]:
        """Who pauses, or is on trial after a pause."""
        return {name: c for name, c in self._cooling.items() if c.until_at > now or c.probe_until_at > now}

    def healthy(self, deployments: Sequence[Deployment], now: float) -> Sequence[Deployment]:
        """Those that do not pause and are not on trial; maybe none."""
        if not self._cooling:
            return deployments
        cooling = self._cooling
        if type(deployments) is not Level:
            return [d for d in deployments if d.deployment_id not in cooling]
        if deployments.awake_by is not self._mark:
            awake = [d for d in deployments if d.deployment_id not in cooling]
            deployments.awake = Level(awake) if len(awake) < len(deployments) else None
            deployments.awake_by = self._mark
        return deployments if deployments.awake is None else deployments.awake

    def probe(self, deployments: Sequence[Deployment], now: float) -> Deployment | None:
        """One whose pause is over and that nobody is trying: the caller's attempt is its trial."""
        if not self._cooling:
            return None
        is_due = False
        for cooldown in self._cooling.values():
            if cooldown.until_at > now + MAX_PAUSE_S + _BACK_S or cooldown.probe_until_at > now + PROBE_S + _BACK_S:
                # No pause is that long: the clock was set back.
                cooldown.until_at = cooldown.since_at = now
                cooldown.probe_until_at = 0.0
            is_due = is_due or (cooldown.until_at <= now and cooldown.probe_until_at <= now)
        if not is_due:
            return None
        for deployment in deployments:
            found = self._cooling.get(deployment.deployment_id)
            if found is not None and found.until_at <= now and found.probe_until_at <= now:
                found.probe_until_at = now + PROBE_S
                return deployment
        return None

    def learn(self, name: str, cooldown: Cooldown | None) -> None:
        """What another process found out; tells nobody."""
        self._mark = object()
        if cooldown is None:
            over = self._cooling.pop(name, None)
            if over is not None:
                self._healed[name] = over.since_at
            self._records.pop(name, None)
        else:
            known = self._cooling.get(name)
            if known is None or known.until_at < cooldown.until_at:
                self._cooling[name] = Cooldown(cooldown.until_at, cooldown.reason, cooldown.since_at)

    def keep(self, ids: Iterable[str]) -> None:
        """Forget deployments that are no longer configured."""
        self._mark = object()
        known = set(ids)
        for table in (self._cooling, self._records, self._healed):
            for name in [name for name in table if name not in known]:
                del table[name]
