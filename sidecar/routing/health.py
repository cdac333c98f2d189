"""Who is left alone for a while, why and until when: outliers are ejected, then probed with real calls, each a
pause after the one before, whatever becomes of that. Pure: the instant is an argument.

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
_BACK_S = 60.0
"""A clock set back by less is waited for."""
_EVER = float("inf")
_AT_ONCE = frozenset({"rate_limit", "quota", "authentication"})
"""What the provider says of itself: no need to hear it thrice."""


@dataclass(slots=True)
class Cooldown:
    """`since_at`: what was sent before says nothing about it. `probed_at`: the newest trial began, and until
    `probe_until_at` no other does. Older ones may be out still: each may end the pause, none prolongs it."""

    until_at: float
    reason: str
    since_at: float = 0.0
    probe_until_at: float = 0.0
    probed_at: float = 0.0


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
        self._cooldown_s = min(cooldown_s, MAX_PAUSE_S)
        self._after = after
        self._cooling: dict[str, Cooldown] = {}
        self._records: dict[str, _Record] = {}
        self._healed: dict[str, float] = {}
        """When the newest trial of a pause that is over began."""
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
        is_told = retry_after_s is not None or kind in _AT_ONCE
        if not is_told and started_at < self._since(name) <= now:
            return  # what hung since before the pause, or a later trial, tells nothing of now
        record = self._records.get(name)
        if record is None:
            record = self._records[name] = _Record()
        record.bits = (record.bits << 1 | 1) & _MASK
        record.known = min(record.known + 1, _WINDOW)
        record.in_a_row += 1
        is_outlier = (
            is_told
            or name in self._cooling
            or record.in_a_row >= self._after
            or (record.known >= _AT_LEAST and 2 * record.bits.bit_count() >= record.known)
        )
        if is_outlier:
            known = self._cooling.get(name)
            if known is None:
                self._mark = object()
            if known is None or is_told or known.since_at > now:
                pause_s = self._cooldown_s if retry_after_s is None else max(retry_after_s, self._cooldown_s)
                cooldown = Cooldown(now + min(pause_s, MAX_PAUSE_S), reason, now)
            else:
                # It may have healed right after this was sent, however long that hung.
                sent_at = min(started_at, now)
                cooldown = Cooldown(max(known.until_at, sent_at + self._cooldown_s), reason, sent_at)
            self._cooling[name] = cooldown
            if self.on_change is not None:
                self.on_change(name, cooldown)

    def _since(self, name: str) -> float:
        """What was sent before then and failed went to a deployment that is known to have failed, that is on a later
        trial, or that has healed since."""
        cooldown = self._cooling.get(name)
        return _last(cooldown) if cooldown is not None else self._healed.get(name, -_EVER)

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
                self._healed[name] = max(started_at, cooldown.probed_at)
            if self.on_change is not None:
                self.on_change(name, None)

    def unknown(self, deployment: Deployment, started_at: float = _EVER) -> None:
        """The attempt says nothing (its client left): the next may probe. One from before the pause was no trial, and
        one from before the newest trial holds nobody off."""
        cooldown = self._cooling.get(deployment.deployment_id)
        if cooldown is not None and _last(cooldown) <= started_at:
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
        """One whose pause is over, and that nobody began to try a pause ago or less: the caller's attempt is its
        trial."""
        if not self._cooling:
            return None
        is_due, next_at = False, now + self._cooldown_s
        for cooldown in self._cooling.values():
            if cooldown.until_at > now + MAX_PAUSE_S + _BACK_S or cooldown.probe_until_at > next_at + _BACK_S:
                # No pause is that long: the clock was set back.
                cooldown.until_at = cooldown.since_at = now
                cooldown.probe_until_at = cooldown.probed_at = 0.0
            is_due = is_due or (cooldown.until_at <= now and cooldown.probe_until_at <= now)
        if not is_due:
            return None
        for deployment in deployments:
            found = self._cooling.get(deployment.deployment_id)
            if found is not None and found.until_at <= now and found.probe_until_at <= now:
                found.probed_at, found.probe_until_at = now, next_at
                return deployment
        return None

    def learn(self, name: str, cooldown: Cooldown | None) -> None:
        """What another process found out; tells nobody."""
        self._mark = object()
        if cooldown is None:
            over = self._cooling.pop(name, None)
            if over is not None:
                self._healed[name] = _last(over)
            self._records.pop(name, None)
        else:
            known = self._cooling.get(name)
            if known is not None and known.probed_at > cooldown.until_at - self._cooldown_s:
                return  # our own trial began after what failed there
            if known is None or known.until_at < cooldown.until_at:
                self._cooling[name] = Cooldown(cooldown.until_at, cooldown.reason, cooldown.since_at)

    def keep(self, ids: Iterable[str]) -> None:
        """Forget deployments that are no longer configured."""
        self._mark = object()
        known = set(ids)
        for table in (self._cooling, self._records, self._healed):
            for name in [name for name in table if name not in known]:
                del table[name]


def _last(cooldown: Cooldown) -> float:
    """What failed, or was left, before then is not what finds out."""
    return max(cooldown.since_at, cooldown.probed_at)
