"""One upstream HTTP/1.1 connection and the answer on it, on plain asyncio callbacks: no task, no queue, one timer.

Neighbours: `parsers` (bytes to events), `httptools_transport` (the pool). Rule: back-pressure by pausing the socket;
the timer is re-armed lazily, so a piece costs no timer call.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Literal, cast

from sidecar.errors import UpstreamBrokenError, UpstreamError, UpstreamStaleError, UpstreamTimeoutError
from sidecar.types import Headers
from sidecar.upstream.base import HttpRequest, read_all, returnable
from sidecar.upstream.parsers import ParseError, Parser

HIGH_WATER = 262_144
"""Bytes buffered for a slow reader before the socket is paused."""

Phase = Literal["connect", "first_byte", "gap", "total"]


def poll_of(transport: asyncio.BaseTransport) -> Callable[[int], object] | None:
    """Asks the kernel whether something came that the event loop has not seen, where the platform can tell."""
    if not hasattr(select, "poll"):
        return None
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return poll.poll


class Line:
    """What an answer comes through: a whole connection, or one stream of a shared one. It keeps one timer, which
    outlives the answer it was set for: the next one's deadline is later, so that in steady use a request sets none."""

    __slots__ = ("_answer", "_rings_at", "_timer", "has_eof", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.has_eof = False
        self._answer: Answer | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = 0.0

    def ring_at(self, deadline: float) -> None:
        if self._timer is None or deadline < self._rings_at:
            self._silence()
            self._rings_at = deadline
            self._timer = self.loop.call_at(deadline, self._ring)

    def rings_by(self, deadline: float) -> bool:
        return self._timer is not None and self._rings_at <= deadline

    def _ring(self) -> None:
        self._timer = None
        answer = self._answer
        if answer is None or answer.is_complete:
            return
        deadline, phase = answer.next_deadline()
        if self.loop.time() + 0.001 < deadline:
            self.ring_at(deadline)
        else:
            answer.fail(UpstreamTimeoutError(f"The provider was too slow ({phase} timeout).", phase=phase))

    def _silence(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def is_all_written(self) -> bool:
        raise NotImplementedError

    def pause(self) -> None:
        """The reader is slow: the provider is to wait."""
        raise NotImplementedError

    def resume(self) -> None:
        raise NotImplementedError

    def release(self, answer: Answer) -> None:
        """The answer is complete."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing more is wanted of the answer."""
        raise NotImplementedError


class _NoParser:
    def feed(self, data: bytes) -> None:
        raise ParseError("the connection is lost")

    def expect(self, method: str) -> None: ...


_GONE = _NoParser()


class Connection(asyncio.Protocol, Line):
    """Serves one request at a time. `is_reusable` once the answer is complete and nothing odd happened."""

    __slots__ = (
        "_can_write",
        "_parser",
        "_poll",
        "_transport",
        "idle_since",
        "is_closed",
        "is_fresh",
        "is_reusable",
        "on_closed",
        "on_free",
        "origin",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, make_parser: Callable[[Connection], Parser]) -> None:
        Line.__init__(self, loop)
        self._parser = make_parser(self)
        self._transport: asyncio.Transport | None = None
        self._can_write = True
        self._poll: Callable[[int], object] | None = None
        self.is_closed = False
        self.is_fresh = True
        self.is_reusable = True
        self.idle_since = 0.0
        self.origin: tuple[str, str, int] = ("", "", 0)
        self.on_closed: Callable[[Connection], None] | None = None
        self.on_free: Callable[[Connection], None] | None = None

    # asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._poll = poll_of(transport)

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None or answer.is_complete:
            # Nothing was asked: whatever this is, this connection is not to be trusted with another request.
            self.close()
            return
        answer.has_bytes = True
        try:
            self._parser.feed(data)
        except ParseError as error:
            self.is_reusable = False
            answer.fail(UpstreamBrokenError(f"The provider's answer is not proper HTTP ({error})."))
            self.close()

    def eof_received(self) -> bool:
        self.has_eof = True
        self.is_reusable = False
        if self._transport is not None and not self.is_all_written:
            # No answer can follow: don't go on writing to someone who may never read.
            self._can_write = False
            self._transport.abort()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        self.is_reusable = False
        self._silence()
        answer, self._answer = self._answer, None
        self._parser = _GONE  # it holds us
        if answer is not None and not answer.is_complete:
            answer.lost(exc)
        if self.on_closed is not None:
            self.on_closed(self)

    def pause_writing(self) -> None:
        self._can_write = False

    def resume_writing(self) -> None:
        self._can_write = True

    # parser callbacks ---------------------------------------------------------------------------------------------

    def on_head(self, status: int, headers: Headers, *, is_close_delimited: bool, keeps_alive: bool) -> None:
        answer = self._answer
        if answer is None or answer.is_complete or answer.status:
            raise ParseError("an unsolicited answer")
        if not keeps_alive:
            self.is_reusable = False
        answer.begin(status, returnable(headers), is_close_delimited)

    def on_body(self, body: bytes) -> None:
        if self._answer is not None:
            self._answer.piece(body)

    def on_done(self) -> None:
        if self._answer is not None:
            self._answer.done()

    # use ----------------------------------------------------------------------------------------------------------

    def send(self, request: HttpRequest, head: bytes, started_at: float) -> Answer:
        assert self._transport is not None
        answer = self._answer = Answer(self, self.loop, request, started_at, is_reused=not self.is_fresh)
        self.is_fresh = False
        self._parser.expect(request.method)
        self._transport.write(head + request.body if request.body else head)
        if self._transport.is_closing():
            self._can_write = False  # the very first write failed
        self.ring_at(answer.next_deadline()[0])
        return answer

    @property
    def is_usable(self) -> bool:
        """For another request. A transport that is closing has not told us yet; nor has the event loop of what came
        since it last looked: an end, or bytes nobody asked for, which must not answer the next request."""
        if not self.is_reusable or self._transport is None or self._transport.is_closing():
            return False
        return self._poll is None or not self._poll(0)

    @property
    def is_all_written(self) -> bool:
        return self._can_write and (self._transport is None or self._transport.get_write_buffer_size() == 0)

    def pause(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def release(self, answer: Answer) -> None:
        """The answer is complete: the connection is free, or goes."""
        if self._answer is answer:
            self._answer = None
        if not self.is_reusable or not self.is_all_written:
            self.close()
        elif self.on_free is not None:
            self.on_free(self)

    def close(self) -> None:
        self.is_reusable = False
        self._silence()
        if not self.is_closed:
            self.is_closed = True
            answer, self._answer = self._answer, None
            if answer is not None:
                answer.abort()
            if self._transport is not None:
                self._transport.abort()


class Answer:
    """Status, headers, then pieces. Buffers at most about HIGH_WATER bytes plus one socket read."""

    __slots__ = (
        "_connection",
        "_is_paused",
        "_loop",
        "_pieces",
        "_request",
        "_size",
        "_started_at",
        "_waiter",
        "error",
        "has_bytes",
        "headers",
        "is_close_delimited",
        "is_complete",
        "is_reused",
        "status",
        "touched_at",
    )

    def __init__(
        self,
        connection: Line,
        loop: asyncio.AbstractEventLoop,
        request: HttpRequest,
        started_at: float,
        *,
        is_reused: bool,
    ) -> None:
        self._connection = connection
        self._loop = loop
        self._request = request
        self._started_at = started_at
        self.touched_at = started_at
        self._pieces: list[bytes] = []
        self._size = 0
        self._is_paused = False
        self._waiter: asyncio.Future[None] | None = None
        self.error: UpstreamError | None = None
        self.has_bytes = False
        self.is_reused = is_reused
        self.status = 0
        self.headers: Headers = []
        self.is_complete = False
        self.is_close_delimited = False

    # from the connection ------------------------------------------------------------------------------------------

    def begin(self, status: int, headers: Headers, is_close_delimited: bool) -> None:
        self.status = status
        self.headers = headers
        self.is_close_delimited = is_close_delimited
        self.touched_at = self._loop.time()
        if not self._connection.rings_by(self.touched_at + self._request.timeouts.gap_s):
            self._connection.ring_at(self.next_deadline()[0])
        self._wake()

    def piece(self, body: bytes) -> None:
        self._pieces.append(body)
        self._size += len(body)
        self.touched_at = self._loop.time()
        if self._size > HIGH_WATER and not self._is_paused:
            self._is_paused = True
            self._connection.pause()
        self._wake()

    def done(self) -> None:
        self.is_complete = True
        if self._is_paused:
            self._is_paused = False
            self._connection.resume()  # the next answer's reader is another
        self._connection.release(self)
        self._wake()

    def lost(self, exc: Exception | None) -> None:
        if self.error is not None:
            return
        if self.is_close_delimited and exc is None and self._connection.has_eof:
            self.done()
            return
        if self.is_reused and not self.has_bytes and not self._connection.is_all_written:
            self.fail(UpstreamStaleError("The provider closed a kept-alive connection before the request was written."))
        else:
            how = "closed" if exc is None else "reset"
            what = "after part of its answer" if self.status else "before it answered; it may have done the work"
            self.fail(UpstreamBrokenError(f"The provider {how} the connection {what}."))

    def fail(self, error: UpstreamError) -> None:
        if self.error is None and not self.is_complete:
            self.error = error
            self._connection.close()
            self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # time ---------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> tuple[float, Phase]:
        times = self._request.timeouts
        total = self._started_at + times.total_s
        if self._is_paused:
            return total, "total"  # the reader is slow, not the provider
        if self._request.is_stream:
            if not self.status:
                first = self._started_at + times.first_byte_s
                return (first, "first_byte") if first < total else (total, "total")
            gap = self.touched_at + times.gap_s
            return (gap, "gap") if gap < total else (total, "total")
        if self.status:
            gap = self.touched_at + times.gap_s
            return (gap, "gap") if gap < total else (total, "total")
        return total, "total"

    # for the reader -----------------------------------------------------------------------------------------------

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        except asyncio.CancelledError:
            self.abort()
            raise
        finally:
            self._waiter = None

    async def head(self) -> None:
        while not self.status and self.error is None:
            await self._wait()
        if self.error is not None and not self.status:
            raise self.error

    async def read(self) -> bytes:
        while not self._pieces:
            if self.error is not None:
                raise self.error
            if self.is_complete:
                return b""
            await self._wait()
        pieces = self._pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._size = 0
        if self._is_paused:
            self._is_paused = False
            self.touched_at = self._loop.time()
            if not self.is_complete and self.error is None:
                self._connection.ring_at(self.next_deadline()[0])  # the timer may be set for `total`
                self._connection.resume()
        return body

    async def read_all(self, limit: int) -> bytes:
        return await read_all(self, limit)

    def abort(self) -> None:
        if not self.is_complete and self.error is None:
            self.error = UpstreamBrokenError("The gateway closed the connection to the provider.")
            self._connection.close()
            self._wake()
