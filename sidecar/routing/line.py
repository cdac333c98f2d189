"""Who is next in a line: by priority, and within a priority one request of each key after the other. Pure.

Neighbour: `sidecar.waiting`, which holds the requests. Bounded: when all places are taken, the one who would be served
last gives way to a newcomer who comes before it: of the lowest priority, of the key with most waiting.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True, eq=False)
class Waiter:
    """One waiting request. `owner` is the key; a higher `priority` is sooner."""

    owner: str
    priority: int = 0
    line: str = ""
    payload: Any = field(default=None, repr=False)


_Waiters = dict[Waiter, None]
"""In the order in which they came."""


class _Level:
    """Those of one priority in one line. `owners` by key, in the order of their turns."""

    __slots__ = ("count", "owners")

    def __init__(self) -> None:
        self.owners: dict[str, _Waiters] = {}
        self.count = 0


class _Crowd:
    """Those of one priority over all lines, by how many each key has there."""

    __slots__ = ("_by_count", "_most", "_of")

    def __init__(self) -> None:
        self._of: dict[str, _Waiters] = {}
        self._by_count: dict[int, dict[str, None]] = {}
        self._most = 0

    def __len__(self) -> int:
        return len(self._of)

    def count_of(self, owner: str) -> int:
        return len(self._of.get(owner, ()))

    def last(self) -> Waiter:
        """The one who came last of the key with most waiting."""
        return next(reversed(self._of[next(iter(self._by_count[self._most]))]))

    def add(self, waiter: Waiter) -> None:
        mine = self._of.setdefault(waiter.owner, {})
        self._move(waiter.owner, len(mine), len(mine) + 1)
        mine[waiter] = None

    def remove(self, waiter: Waiter) -> None:
        mine = self._of[waiter.owner]
        self._move(waiter.owner, len(mine), len(mine) - 1)
        del mine[waiter]
        if not mine:
            del self._of[waiter.owner]

    def _move(self, owner: str, before: int, after: int) -> None:
        if before:
            same = self._by_count[before]
            del same[owner]
            if not same:
                del self._by_count[before]
        if after:
            self._by_count.setdefault(after, {})[owner] = None
        if after > self._most or self._most not in self._by_count:
            self._most = after  # it had most itself, so the others have no more than it has now


class Lines:
    """All lines of a process, at most `size` waiters. A line exists as long as somebody stands in it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.count = 0
        self._lines: dict[str, dict[int, _Level]] = {}
        self._crowds: dict[int, _Crowd] = {}

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
            if not self._crowds:
                return False, None
            gone = self._crowds[min(self._crowds)].last()  # served last, all told
            if not self._is_before(waiter, gone):
                return False, None
            self.leave(gone)
        waiter.line = line
        level = self._lines.setdefault(line, {}).setdefault(waiter.priority, _Level())
        level.owners.setdefault(waiter.owner, {})[waiter] = None
        level.count += 1
        self._crowds.setdefault(waiter.priority, _Crowd()).add(waiter)
        self.count += 1
        return True, gone

    def leave(self, waiter: Waiter, *, is_served: bool = False) -> None:
        """Out of its line. One that was served hands the turn to the next key."""
        line, waiter.line = waiter.line, ""
        if not line:
            return
        levels = self._lines[line]
        level = levels[waiter.priority]
        mine = level.owners[waiter.owner]
        del mine[waiter]
        level.count -= 1
        self.count -= 1
        if not mine:
            del level.owners[waiter.owner]
        elif is_served:
            level.owners[waiter.owner] = level.owners.pop(waiter.owner)
        if not level.count:
            del levels[waiter.priority]
        if not levels:
            del self._lines[line]
        crowd = self._crowds[waiter.priority]
        crowd.remove(waiter)
        if not crowd:
            del self._crowds[waiter.priority]

    def first(self, line: str) -> Waiter | None:
        levels = self._lines.get(line)
        if not levels:
            return None
        return next(iter(next(iter(levels[max(levels)].owners.values()))))

    def place(self, waiter: Waiter) -> int:
        """1 is next. As things stand: who comes later may have priority."""
        levels = self._lines[waiter.line]
        place = sum(level.count for priority, level in levels.items() if priority > waiter.priority)
        owners = levels[waiter.priority].owners
        mine = owners[waiter.owner]
        if len(mine) == 1 and next(reversed(owners)) == waiter.owner:
            return place + len(owners)
        before = next(number for number, other in enumerate(mine) if other is waiter)
        is_earlier = True
        for owner, others in owners.items():
            if owner == waiter.owner:
                is_earlier = False
                place += before
            else:
                place += min(len(others), before + is_earlier)
        return place + 1

    def _is_before(self, newcomer: Waiter, last: Waiter) -> bool:
        if newcomer.priority != last.priority:
            return newcomer.priority > last.priority
        crowd = self._crowds[last.priority]
        return crowd.count_of(newcomer.owner) + 1 < crowd.count_of(last.owner)
