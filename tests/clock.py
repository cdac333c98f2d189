"""The running loop's clock, put forward by hand: what sleeps wakes, late as after a standstill, and no time passes."""

from __future__ import annotations

import asyncio

import pytest


class LoopClock:
    """`ahead_s` is added to the time of the loop the test runs on (asyncio's own, not uvloop)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead_s = 0.0
        loop = asyncio.get_running_loop()
        time = loop.time
        monkeypatch.setattr(loop, "time", lambda: time() + self.ahead_s)

    async def forward(self, seconds: float) -> None:
        """What is due by then has been called, and has gone on as far as it can without a socket."""
        self.ahead_s += seconds
        for _ in range(10):
            await asyncio.sleep(0)
