"""Who is next in a line: by priority, and within a priority one request of each key after the other. Pure.

Neighbour: `sidecar.waiting`, which holds the requests. Bounded: when all places are taken, the one who would be served
last gives way to a newcomer who comes before it: of the lowest priority, of the key with most waiting.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True, eq=False)
class Waiter:
    """One waiting request. `owner` is the key; a higher `priority` is sooner."""

    owner: str
    priority: int = 0
    line: str = ""
    payload: Any = field(default=None, repr=False)


_Owners = dict[str, deque[Waiter]]
"""By key, in the order of their turns."""


class Lines:
    """All lines of a process, at most `size` waiters. A line exists as long as somebody stands in it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.count = 0
        self._lines: dict[str, dict[int, _Owners]] = {}

    def __contains__(self, line: str) -> bool:
        return line in self._lines

    def names(self) -> list[str]:
        return list(self._lines)

    def join(self, waiter: Waiter, line: str) -> tuple[bool, Waiter | None]:
        """Whether it stands in the line now, and who had to give way for it. One that stood elsewhere leaves there."""
        if waiter.line:
            self.leave(waiter)
        gone: Waiter | None = None
        if self.count >= self.size:
            gone = self._last()
            if gone is None or not self._is_before(waiter, gone):
                return False, None
            self.leave(gone)
        waiter.line = line
        owners = self._lines.setdefault(line, {}).setdefault(waiter.priority, {})
        owners.setdefault(waiter.owner, deque()).append(waiter)
        self.count += 1
        return True, gone

    def leave(self, waiter: Waiter, *, is_served: bool = False) -> None:
        """Out of its line. One that was served hands the turn to the next key."""
        levels = self._lines.get(waiter.line)
        owners = levels.get(waiter.priority) if levels is not None else None
        mine = owners.get(waiter.owner) if owners is not None else None
        if levels is None or owners is None or mine is None or waiter not in mine:
            waiter.line = ""
            return
        mine.remove(waiter)
        self.count -= 1
        if not mine:
            del owners[waiter.owner]
        elif is_served:
            owners[waiter.owner] = owners.pop(waiter.owner)
        if not owners:
            del levels[waiter.priority]
        if not levels:
            del self._lines[waiter.line]
        waiter.line = ""

    def first(self, line: str) -> Waiter | None:
        levels = self._lines.get(line)
        if not levels:
            return None
        return next(iter(levels[max(levels)].values()))[0]

    def place(self, waiter: Waiter) -> int:
        """1 is next. As things stand: who comes later may have priority."""
        levels = self._lines[waiter.line]
        place = sum(
            len(mine) for priority, owners in levels.items() if priority > waiter.priority for mine in owners.values()
        )
        owners = levels[waiter.priority]
        before = owners[waiter.owner].index(waiter)
        is_earlier = True
        for owner, mine in owners.items():
            if owner == waiter.owner:
                is_earlier = False
                place += before
            else:
                place += min(len(mine), before + is_earlier)
        return place + 1

    def _counts(self) -> dict[tuple[int, str], tuple[int, Waiter]]:
        """Per priority and key: how many wait, over all lines, and the last of them."""
        found: dict[tuple[int, str], tuple[int, Waiter]] = {}
        for levels in self._lines.values():
            for priority, owners in levels.items():
                for owner, mine in owners.items():
                    known = found.get((priority, owner))
                    found[priority, owner] = (len(mine) + (known[0] if known is not None else 0), mine[-1])
        return found

    def _last(self) -> Waiter | None:
        """Who is served last, all told."""
        counts = self._counts()
        if not counts:
            return None
        (_, _), (_, last) = max(counts.items(), key=lambda item: (-item[0][0], item[1][0]))
        return last

    def _is_before(self, newcomer: Waiter, last: Waiter) -> bool:
        if newcomer.priority != last.priority:
            return newcomer.priority > last.priority
        counts = self._counts()
        mine = counts.get((newcomer.priority, newcomer.owner))
        return (mine[0] if mine is not None else 0) + 1 < counts[last.priority, last.owner][0]
