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


class _Stream:
    __slots__ = ("front", "seen", "since", "waiting")

    def __init__(self, front: Front, waiting: Waiting, now: float) -> None:
        self.front = front
        self.waiting = waiting
        self.seen: Message | None = front.last
        self.since = now


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

    def watch(self, front: Front, waiting: Waiting) -> _Stream:
        """Until `forget`."""
        loop = asyncio.get_running_loop()
        streams = self._streams
        if loop is not streams.loop:
            streams.loop, streams.live, streams.has_timer = loop, set(), False
        stream = _Stream(front, waiting, loop.time())
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
        for stream in streams.live:
            front = stream.front
            last = front.last
            if last is not stream.seen:
                stream.seen, stream.since = last, now
            elif now - stream.since >= self.every_s and stream.waiting.is_waiting and is_between(last):
                stream.since = now
                front.start_beat(loop)
        loop.call_later(self.every_s / LOOKS, self._look, loop)


def is_between(last: Message | None) -> bool:
    """The client has whole events only, so that a comment does not end one early."""
    return last is None or last.get("body", b"").endswith(_ENDS)
