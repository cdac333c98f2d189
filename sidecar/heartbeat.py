"""Comments into the silence of streams, so that nobody in between takes a thinking provider for a dead one.

Neighbours: UpstreamProxy says when it waits for the provider, `asgi.Front` writes to the client. Rules: one timer for
all streams of a loop, none while there is no stream; a stream that flows pays nothing; only between two whole events.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Protocol

from sidecar.asgi import Front, Message

LOOKS = 4
"""So often per interval the streams are looked at: the first comment comes after 1 to 1.5 intervals of silence."""
_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")


class Waiting(Protocol):
    """A layer that waits for a provider: while it does, nothing else of ours sends to the client."""

    is_waiting: bool

    def stuck(self) -> None:
        """The client takes nothing any more, and the time is over."""


class _Stream:
    __slots__ = ("front", "seen", "since", "until", "waiting")

    def __init__(self, front: Front, waiting: Waiting, now: float, until: float) -> None:
        self.front = front
        self.waiting = waiting
        self.seen: Message | None = front.last
        self.since = now
        self.until = until


class _Streams(threading.local):
    """Of one thread, so of one loop."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.live: set[_Stream] = set()
        self.has_timer = False


class Heartbeat:
    """`every_s` of silence bring one comment, each further `every_s` another. 0: never. `is_early`: also before the
    provider's status is known, which commits the answer to 200."""

    def __init__(self, every_s: float = 15.0, *, is_early: bool = False) -> None:
        self.every_s = every_s
        self.is_early = is_early
        self._streams = _Streams()

    def watch(self, front: Front, waiting: Waiting, total_s: float = float("inf")) -> _Stream:
        """Until `forget`. A stream whose client reads no more is ended once `total_s` are over, in which it holds what
        others may be waiting for."""
        loop = asyncio.get_running_loop()
        streams = self._streams
        if loop is not streams.loop:
            streams.loop, streams.live, streams.has_timer = loop, set(), False
        stream = _Stream(front, waiting, loop.time(), loop.time() + total_s)
        if not streams.has_timer:
            streams.has_timer = True
            loop.call_later(self.every_s / LOOKS, self._look, loop)
        streams.live.add(stream)
        return stream

    def forget(self, stream: _Stream) -> None:
        self._streams.live.discard(stream)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        streams = self._streams
        if loop is not streams.loop:
            return
        if not streams.live:
            streams.has_timer = False
            return
        now = loop.time()
        for stream in list(streams.live):
            front = stream.front
            last = front.last
            if last is not stream.seen:
                stream.seen, stream.since = last, now
            elif now - stream.since >= self.every_s and stream.waiting.is_waiting and is_between(last):
                stream.since = now
                front.start_beat(loop)
            elif now > stream.until and not stream.waiting.is_waiting:
                stream.waiting.stuck()
        loop.call_later(self.every_s / LOOKS, self._look, loop)


def is_between(last: Message | None) -> bool:
    """The client has whole events only, so that a comment does not end one early."""
    return last is None or last.get("body", b"").endswith(_ENDS)
