"""Kept answers of one process. Neighbours: `middleware.idempotency` (the contract), `redis` (the shared one).

Rule: bounded by bytes and by age; the oldest go first.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from sidecar.middleware.idempotency import Answer, Standing

_ENTRY_BYTES = 1000
"""What an entry takes besides its body: headers, hashes, the tables' places."""


@dataclass(slots=True)
class _Running:
    fingerprint: bytes
    owner: str
    waiters: list[Callable[[], None]] = field(default_factory=list)


@dataclass(slots=True)
class _Kept:
    fingerprint: bytes
    until_at: float
    size: int
    answer: Answer | None


class MemoryAnswers:
    """Answers are kept for `keep_s`, `max_bytes` of them."""

    def __init__(
        self, *, keep_s: float = 3600.0, max_bytes: int = 64 * 1024 * 1024, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._keep_s = keep_s
        self._max_bytes = max_bytes
        self._clock = clock
        self._running: dict[str, _Running] = {}
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept) + len(self._running)

    def knows(self, name: str) -> bool:
        self._forget(self._clock())
        return name in self._running or name in self._kept

    async def claim(self, name: str, fingerprint: bytes, owner: str) -> Answer | Standing:
        self._forget(self._clock())
        running = self._running.get(name)
        if running is not None:
            return "busy" if running.fingerprint == fingerprint else "other"
        kept = self._kept.get(name)
        if kept is None:
            self._running[name] = _Running(fingerprint, owner)
            return "mine"
        if kept.fingerprint != fingerprint:
            return "other"
        return kept.answer if kept.answer is not None else "not_kept"

    async def keep(self, name: str, owner: str, answer: Answer | None) -> None:
        running = self._running.get(name)
        if running is None or running.owner != owner:
            return
        del self._running[name]
        size = _ENTRY_BYTES
        if answer is not None:
            size += len(answer.body) + sum(len(name) + len(value) for name, value in answer.headers)
            if size > self._max_bytes:
                answer, size = None, _ENTRY_BYTES  # else it alone would be more than all may be
        now = self._clock()
        self._forget(now, room=size)
        self._kept[name] = _Kept(running.fingerprint, now + self._keep_s, size, answer)
        self.bytes += size
        _wake(running)

    async def release(self, name: str, owner: str) -> None:
        running = self._running.get(name)
        if running is not None and running.owner == owner:
            del self._running[name]
            _wake(running)

    def watch(self, name: str, wake: Callable[[], None]) -> None:
        running = self._running.get(name)
        if running is None:
            wake()
        else:
            running.waiters.append(wake)

    def unwatch(self, name: str, wake: Callable[[], None]) -> None:
        running = self._running.get(name)
        if running is not None and wake in running.waiters:
            running.waiters.remove(wake)

    async def aclose(self) -> None:
        self._kept.clear()
        self.bytes = 0

    def _forget(self, now: float, room: int = 0) -> None:
        """What is too old, and the oldest until `room` is free. All are kept equally long: the first is the oldest."""
        kept = self._kept
        while kept:
            oldest = next(iter(kept.values()))
            if oldest.until_at > now and self.bytes + room <= self._max_bytes:
                return
            kept.popitem(last=False)
            self.bytes -= oldest.size


def _wake(running: _Running) -> None:
    for wake in running.waiters:
        wake()
