"""Two things event loops do not do by themselves: end a background task for certain, and tell a slow server from a
process that got no CPU."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

LATE = 0.1
"""The part of its time by which a timer may ring late on a loop that turns."""
AGAIN_S = 2.0
"""What cleans up may take this long before it is told again."""


async def end(tasks: Iterable[asyncio.Task[Any] | None], *, again_s: float = AGAIN_S) -> None:
    """Cancels them until each has ended; their results and exceptions stay in them.

    Once is not enough: `asyncio.wait_for` before Python 3.12 loses a cancellation that comes together with the result
    (python/cpython#86296), and the Redis client sends through it."""
    all_of_them = {task for task in tasks if task is not None}
    left = {task for task in all_of_them if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=again_s)
    for task in all_of_them:
        if not task.cancelled():
            task.exception()  # looked at: nobody else will


def stood_still(due: float, seconds: float) -> bool:
    """A timer of `seconds`, due then by the running loop's clock, rings so late that this process stood still: what it
    waits for may have come and lie here unread."""
    return asyncio.get_running_loop().time() - due > seconds * LATE
