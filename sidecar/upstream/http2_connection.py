"""One upstream HTTP/2 connection (RFC 9113) on plain asyncio callbacks, and the streams on it.

Neighbours: `connection` (the answer, which is the same), `http2_transport` (the pool). Rules: an answer nobody wants
any more is reset at once, so that the provider stops; a slow reader holds up its own stream and no other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import cast

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from h2.exceptions import H2Error, NoAvailableStreamIDError, TooManyStreamsError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import Frame, GoAwayFrame

from sidecar.errors import (
    BadRequestError,
    UpstreamBrokenError,
    UpstreamConnectError,
    UpstreamError,
    UpstreamStaleError,
    UpstreamTimeoutError,
)
from sidecar.types import Headers
from sidecar.upstream.base import HttpRequest, is_proper, returnable
from sidecar.upstream.connection import HIGH_WATER, Answer, Line, poll_of

MAX_STREAMS = 100
"""At once on one connection, or fewer where the provider allows fewer."""

_CONNECTION_WINDOW = 1 << 24
_WINDOW_STEP = 32_768
"""Flow control is told of what was taken in steps of this many bytes, not with every frame."""


class _State(H2Connection):
    """h2 takes a GOAWAY for the end of all. It is the end of new streams: those up to the last one named go on (RFC
    9113 §6.8), as they do when a server's or a load balancer's connection gets old."""

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        event = ConnectionTerminated()
        event.error_code = frame.error_code
        event.last_stream_id = frame.last_stream_id
        return [], [event]


def _state() -> _State:
    state = _State(H2Configuration(client_side=True, header_encoding=None, validate_inbound_headers=False))
    state.local_settings = Settings(
        client=True,
        initial_values={
            SettingCodes.ENABLE_PUSH: 0,
            SettingCodes.INITIAL_WINDOW_SIZE: HIGH_WATER,
            SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
            SettingCodes.MAX_HEADER_LIST_SIZE: 65_536,
        },
    )
    del state.local_settings[SettingCodes.ENABLE_CONNECT_PROTOCOL]  # for servers to say
    state.initiate_connection()
    state.increment_flow_control_window(_CONNECTION_WINDOW)
    return state


class Http2Connection(asyncio.Protocol):
    """`has_room` for another request; closed by itself when it was without one for `idle_s`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, idle_s: float) -> None:
        self.loop = loop
        self.on_closed: Callable[[Http2Connection], None] | None = None
        self.is_closed = False
        self.is_fresh = True
        self.has_eof = False
        self._idle_s = idle_s
        self._idle_timer: asyncio.TimerHandle | None = None
        self._idle_since = 0.0
        self._heard_at = loop.time()
        self._is_doubted = False
        self._is_leaving = False
        self._can_write = True
        self._poll: Callable[[int], object] | None = None
        self._state = _state()
        self._streams: dict[int, Stream] = {}
        self._taken = 0
        self._transport: asyncio.Transport | None = None

    # asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._poll = poll_of(transport)
        self.flush()

    def data_received(self, data: bytes) -> None:
        self._heard_at = self.loop.time()
        self._is_doubted = False
        try:
            events = self._state.receive_data(data)
        except H2Error as error:
            self.flush()
            self._fail_all(UpstreamBrokenError(f"The provider's answer is not proper HTTP/2 ({type(error).__name__})."))
            self.close()
            return
        for event in events:  # h2 is at the last of them already
            self._take(event)
        self._pump()
        for stream in list(self._streams.values()):
            stream.tell_taken()
        if self._taken >= _CONNECTION_WINDOW // 16:
            # The streams' own windows bound what waits for readers; the shared one is always open, so that a slow
            # reader holds up nobody else.
            self._state.increment_flow_control_window(self._taken)
            self._taken = 0
        self.flush()
        self._rest()

    def _take(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            self._taken += event.flow_controlled_length
        elif isinstance(event, ConnectionTerminated):
            self._is_leaving = True
            for stream_id, unseen in list(self._streams.items()):
                if stream_id > (event.last_stream_id or 0):
                    unseen.turn_away()
        stream = self._streams.get(getattr(event, "stream_id", None) or 0)
        if stream is not None:
            stream.take(event)

    def eof_received(self) -> bool:
        self.has_eof = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        for stream in list(self._streams.values()):
            stream.lost(exc)
        self._streams.clear()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self.on_closed is not None:
            self.on_closed(self)

    def pause_writing(self) -> None:
        self._can_write = False

    def resume_writing(self) -> None:
        self._can_write = True
        self._pump()
        self.flush()

    # use ----------------------------------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        if self.is_closed or self._is_leaving or self._is_doubted:
            return False
        if self._transport is None or self._transport.is_closing():
            return False
        if len(self._streams) >= min(MAX_STREAMS, self._state.remote_settings.max_concurrent_streams):
            return False
        # While it rested it may have been closed, and the event loop has not looked yet.
        return bool(self._streams) or self._poll is None or not self._poll(0)

    def send(self, request: HttpRequest, headers: Headers, started_at: float) -> Answer:
        try:
            stream_id = self._state.get_next_available_stream_id()
            self._state.send_headers(stream_id, headers, end_stream=not request.body)
        except (NoAvailableStreamIDError, TooManyStreamsError) as error:
            self._is_leaving = isinstance(error, NoAvailableStreamIDError)
            raise UpstreamStaleError("The connection to the provider takes no more requests.") from None
        except H2Error as error:
            raise BadRequestError(
                f"The gateway refused the request: it may not be sent ({type(error).__name__})."
            ) from None
        stream = self._streams[stream_id] = Stream(self, stream_id, request, started_at)
        self.is_fresh = False
        stream.pump()
        self.flush()
        stream.ring_at(stream.answer.next_deadline()[0])
        return stream.answer

    @property
    def state(self) -> H2Connection:
        return self._state

    @property
    def can_write(self) -> bool:
        return self._can_write

    @property
    def is_flushed(self) -> bool:
        transport = self._transport
        return self._can_write and (transport is None or transport.get_write_buffer_size() == 0)

    def flush(self) -> None:
        data = self._state.data_to_send()
        if data and self._transport is not None and not self.is_closed:
            self._transport.write(data)
            if self._transport.is_closing():
                self._can_write = False

    def _pump(self) -> None:
        for stream in list(self._streams.values()):
            stream.pump()

    def _fail_all(self, error: UpstreamError) -> None:
        for stream in list(self._streams.values()):
            stream.answer.fail(error)

    def doubt(self, since: float) -> None:
        """An answer was waited for in vain since then. If nothing at all came meanwhile, the way may be gone without a
        word (a firewall forgot it), and TCP tells in minutes: no further request until the provider says something."""
        if self._heard_at <= since and not self._is_doubted:
            self._is_doubted = True
            self._state.ping(b"\0" * 8)

    def drop(self, stream_id: int) -> None:
        """The stream is over, for whatever reason."""
        self._streams.pop(stream_id, None)
        self._rest()

    def _rest(self) -> None:
        if self._streams or self.is_closed:
            return
        if self._is_leaving:
            self.close()
            return
        self._idle_since = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self._idle_s, self._wake)

    def _wake(self) -> None:
        self._idle_timer = None
        if self._streams:
            return
        left = self._idle_since + self._idle_s - self.loop.time()
        if left <= 0.001:
            self.close()
        else:
            self._idle_timer = self.loop.call_later(left, self._wake)

    def close(self) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        for stream in list(self._streams.values()):
            stream.answer.abort()
        if self._transport is not None:
            self._transport.abort()


class Stream(Line):
    """One request and its answer."""

    __slots__ = ("_connection", "_is_over", "_is_paused", "_left", "_owed", "answer", "stream_id")

    def __init__(self, connection: Http2Connection, stream_id: int, request: HttpRequest, started_at: float) -> None:
        super().__init__(connection.loop)
        self._connection = connection
        self.stream_id = stream_id
        self.answer = self._answer = Answer(
            self, connection.loop, request, started_at, is_reused=not connection.is_fresh
        )
        self._left = memoryview(request.body)
        self._is_over = False
        self._is_paused = False
        self._owed = 0

    def pump(self) -> None:
        """As much of the body as the windows and the socket take."""
        connection = self._connection
        state = connection.state
        while self._left and not self._is_over and connection.can_write:
            size = min(state.local_flow_control_window(self.stream_id), state.max_outbound_frame_size, len(self._left))
            if size <= 0:
                return
            piece, self._left = self._left[:size], self._left[size:]
            state.send_data(self.stream_id, piece.tobytes(), end_stream=not self._left)
            if len(self._left) % HIGH_WATER < size:
                connection.flush()

    def take(self, event: Event) -> None:
        self.answer.has_bytes = True
        if isinstance(event, DataReceived):
            self._owed += event.flow_controlled_length
            if event.data:
                self.answer.piece(event.data)
        elif isinstance(event, ResponseReceived):
            self._begin([(bytes(name), bytes(value)) for name, value in event.headers])
        elif isinstance(event, StreamEnded):
            self._owed = 0
            self.answer.done()
        elif isinstance(event, StreamReset):
            self._reset(event.error_code)

    def _begin(self, headers: Headers) -> None:
        status = b"".join(value for name, value in headers if name == b":status")
        headers = [(name.lower(), value) for name, value in headers if not name.startswith(b":")]
        if len(status) != 3 or not status.isdigit() or not is_proper(headers):
            self.answer.fail(UpstreamBrokenError("The provider's answer is not proper HTTP/2 (its head)."))
            return
        self.answer.begin(int(status), returnable(headers), False)

    def _reset(self, code: ErrorCodes | int) -> None:
        if code == ErrorCodes.REFUSED_STREAM:
            self.turn_away()
            return
        self._is_over = True
        name = code.name if isinstance(code, ErrorCodes) else str(code)
        what = "after part of its answer" if self.answer.status else "before it answered; it may have done the work"
        self.answer.fail(UpstreamBrokenError(f"The provider reset the stream {what} ({name})."))

    def turn_away(self) -> None:
        """The provider says that it did nothing for this request (RFC 9113 §6.8, §8.7): on another connection it is
        free, and after a second refusal the attempt counts as one never sent."""
        self._is_over = True
        if self.answer.is_reused:
            self.answer.fail(UpstreamStaleError("The provider takes no more requests on this connection."))
        else:
            self.answer.fail(UpstreamConnectError("The provider refused the request before looking at it."))

    def lost(self, exc: Exception | None) -> None:
        self._is_over = True
        self._silence()
        if not self.answer.is_complete:
            self.answer.lost(exc)

    def tell_taken(self) -> None:
        if self._owed >= _WINDOW_STEP and not self._is_paused and not self._is_over:
            self._connection.state.increment_flow_control_window(self._owed, self.stream_id)
            self._owed = 0

    # Line ---------------------------------------------------------------------------------------------------------

    @property
    def is_all_written(self) -> bool:
        return not self._left and self._connection.is_flushed

    def pause(self) -> None:
        self._is_paused = True

    def resume(self) -> None:
        self._is_paused = False
        if not self._is_over:
            self.tell_taken()
            self._connection.flush()

    def release(self, answer: Answer) -> None:
        if self._left:
            self.close()  # it answered without reading all: the rest is of no use
        else:
            self._end()

    def close(self) -> None:
        if not self._is_over and not self._connection.is_closed:
            with contextlib.suppress(H2Error):  # it ended in the very bytes that are being looked at
                if isinstance(self.answer.error, UpstreamTimeoutError):
                    self._connection.doubt(self.answer.touched_at)
                self._connection.state.reset_stream(self.stream_id, ErrorCodes.CANCEL)
            self._connection.flush()
        self._end()

    def _end(self) -> None:
        self._is_over = True
        self._silence()
        self._connection.drop(self.stream_id)
