"""A provider that misbehaves on command, on real sockets, in OpenAI's, Anthropic's and every other dialect the tests
know (`tests/translate/dialects`; found by the request's path).

It logs every request's bytes and when and how its socket closed. A script says how the next requests are answered;
without one, and after it, every answer is whole. It runs on the test's loop, or in a thread of its own (`in_thread`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from sidecar.translate import UpstreamRequest
from sidecar.translate.simulate import Plan
from tests.translate.dialects import DIALECTS
from tests.translate.dialects.base import Dialect

MALFORMED = {
    b"text/event-stream": b"data: {broken\n\n",
    b"application/x-ndjson": b'{"message":{"content":"x"\n',
    b"application/vnd.amazon.eventstream": b"\x00\x00\x00\x14\x00\x00\x00\x00????{}{}!!!!",  # sums that are none
}
"""An event that is none, in each framing."""
WORDS = ("one", " two", " three", " four", " five")
PROMPT_TOKENS, COMPLETION_TOKENS = 11, 5

Kind = Literal[
    "ok",
    "cut",
    "reset",
    "stall",
    "malform",
    "torn",
    "ends",
    "done_only",
    "status",
    "no_usage",
    "empty",
    "null",
    "html",
    "silent",
    "endless",
    "held",
]


@dataclass(frozen=True)
class Fault:
    """What to do with one request. `after` counts stream events (or, unstreamed, quarters of the body) sent before the
    fault; `drip_s` waits between events. `stall` says what it says in one piece, then nothing for ever. `ends` is a
    stream properly framed that ends there, `torn` one that ends in the middle of that event; `endless` says one from
    the third on for ever; `done_only` has but its last event; `held` says its last content again and again until the
    provider's `release()`, then goes on. Streams that `wait` do so after their first event, which has no content, for
    that too."""

    kind: Kind = "ok"
    after: int = 0
    status: int = 200
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()
    drip_s: float = 0.0
    waits: bool = False


@dataclass
class Seen:
    """One request as it arrived."""

    head: bytes
    body: bytes
    connection: int
    at: float
    closed_at: float | None = None
    closed_how: str = ""
    events_sent: int = 0
    is_answered: bool = False
    fault: Fault = Fault()

    @property
    def target(self) -> str:
        return self.head.split(b" ", 2)[1].decode("latin-1")

    @property
    def headers(self) -> dict[str, str]:
        lines = self.head.split(b"\r\n")[1:]
        return {n.strip().lower(): v.strip() for n, _, v in (li.decode("latin-1").partition(":") for li in lines) if n}

    def json(self) -> Any:
        return json.loads(self.body)


def _event(value: Any, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value, separators=(',', ':'))}\n\n".encode()


def chat_events(*, usage: bool, forced_usage: bool) -> list[bytes]:
    base = {"id": "chatcmpl-f", "object": "chat.completion.chunk", "created": 1, "model": "fault"}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        return _event({**base, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    events = [chunk({"role": "assistant", "content": ""}), *(chunk({"content": w}) for w in WORDS), chunk({}, "stop")]
    if usage and forced_usage:
        total = PROMPT_TOKENS + COMPLETION_TOKENS
        counts = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS, "total_tokens": total}
        events.append(_event({**base, "choices": [], "usage": counts}))
    return [*events, b"data: [DONE]\n\n"]


def message_events(*, usage: bool) -> list[bytes]:
    counts = {"input_tokens": PROMPT_TOKENS, "output_tokens": 1} if usage else {}
    message = {
        "id": "msg_f", "type": "message", "role": "assistant", "model": "fault", "content": [], "stop_reason": None,
        "stop_sequence": None, "usage": counts,
    }  # fmt: skip
    deltas = [
        _event(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": w}},
            "content_block_delta",
        )
        for w in WORDS
    ]
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}}
    end["usage"] = {"output_tokens": COMPLETION_TOKENS} if usage else {}
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    return [
        _event({"type": "message_start", "message": message}, "message_start"),
        _event(block, "content_block_start"),
        *deltas,
        _event({"type": "content_block_stop", "index": 0}, "content_block_stop"),
        _event(end, "message_delta"),
        _event({"type": "message_stop"}, "message_stop"),
    ]


def chat_body(*, usage: bool) -> bytes:
    message = {"role": "assistant", "content": "".join(WORDS)}
    answer: dict[str, Any] = {
        "id": "chatcmpl-f", "object": "chat.completion", "created": 1, "model": "fault",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
    }  # fmt: skip
    if usage:
        total = PROMPT_TOKENS + COMPLETION_TOKENS
        answer["usage"] = {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": COMPLETION_TOKENS,
            "total_tokens": total,
        }
    return json.dumps(answer).encode()


def message_body(*, usage: bool) -> bytes:
    counts = {"input_tokens": PROMPT_TOKENS, "output_tokens": COMPLETION_TOKENS} if usage else {}
    return json.dumps(
        {
            "id": "msg_f", "type": "message", "role": "assistant", "model": "fault", "stop_reason": "end_turn",
            "stop_sequence": None, "content": [{"type": "text", "text": "".join(WORDS)}], "usage": counts,
        }
    ).encode()  # fmt: skip


def canned(*, usage: bool) -> Plan:
    """The answer of every dialect without functions of its own above."""
    plan = Plan(model="fault", words=list(WORDS), input_tokens=PROMPT_TOKENS, output_tokens=COMPLETION_TOKENS)
    plan.has_usage = usage
    return plan


def stream_events(name: str, *, usage: bool) -> list[bytes]:
    """What the provider of that name streams, the usage included if there is any."""
    if name == "anthropic":
        return message_events(usage=usage)
    if name in DIALECTS:
        return list(DIALECTS[name].events(canned(usage=usage), {"stream_options": {"include_usage": True}}))
    return chat_events(usage=usage, forced_usage=True)


def _dialect(seen: Seen) -> Dialect | None:
    """`None`: OpenAI's or Anthropic's, which are written out above."""
    return next((dialect for dialect in DIALECTS.values() if dialect.claims(seen.target)), None)


class FaultProvider:
    """`base_url` ends before `/v1`. `script(...)` is used up in order of arrival."""

    def __init__(self) -> None:
        self.requests: list[Seen] = []
        self.connections = 0
        self.base_url = ""
        self._is_released = False
        self._script: deque[Fault] = deque()
        self._script_for: dict[bytes, deque[Fault]] = {}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def script(self, *faults: Fault) -> None:
        self._script.extend(faults)

    def script_for(self, mark: bytes, *faults: Fault) -> None:
        """For requests whose body holds this text, whenever they arrive."""
        self._script_for.setdefault(mark, deque()).extend(faults)

    def _next(self, body: bytes) -> Fault:
        for mark, faults in self._script_for.items():
            if mark in body and faults:
                return faults.popleft()
        return self._script.popleft() if self._script else Fault()

    def release(self) -> None:
        """From now on, streams that are held or wait go on to their ends."""
        self._is_released = True

    def hang_up(self) -> None:
        """Whoever is connected is left where they are."""
        for task in list(self._tasks):
            task.cancel()

    def reset(self) -> None:
        self._is_released = False
        self.requests.clear()
        self._script.clear()
        self._script_for.clear()

    @property
    def open_requests(self) -> list[Seen]:
        return [r for r in self.requests if r.closed_at is None]

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def aclose(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        number = self.connections
        mine: list[Seen] = []
        how = "cancelled"
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
                seen = Seen(head, b"", number, time.monotonic())
                seen.body = await reader.readexactly(int(seen.headers.get("content-length", "0")))
                self.requests.append(seen)
                mine.append(seen)
                fault = seen.fault = self._next(seen.body)
                answering = asyncio.ensure_future(self._answer(seen, fault, writer))
                leaving = asyncio.ensure_future(reader.read(1))
                done, _ = await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if leaving in done:
                    answering.cancel()
                    await asyncio.wait({answering})
                    how = "left"
                    leaving.result()
                    return
                ends = answering.result()
                if ends:
                    leaving.cancel()
                    await asyncio.wait({leaving})
                    how = ends
                    return
                seen.is_answered = True
                # Keep-alive: what `leaving` reads next is the next request's first byte.
                first = await leaving
                if not first:
                    how = "idle"
                    return
                # Put back: `feed_data` would not take it after an end that came along with it.
                reader._buffer[:0] = first  # type: ignore[attr-defined]
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            how = "reset" if isinstance(error, ConnectionResetError) else "left"
        except asyncio.CancelledError:
            pass
        finally:
            for seen in mine:
                if seen.closed_at is None:
                    seen.closed_at, seen.closed_how = time.monotonic(), how
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, seen: Seen, fault: Fault, writer: asyncio.StreamWriter) -> str:
        """How the connection ends: "" keeps it alive."""
        if fault.kind == "silent":
            await asyncio.sleep(3600)
        if fault.kind == "status":
            body = fault.body if fault.body is not None else b'{"error":{"message":"scripted","type":"server_error"}}'
            await self._whole(writer, fault.status, body, fault.headers)
            return ""
        fixed = {"empty": b"", "null": b"null", "html": b"<html><body>Bad gateway</body></html>"}.get(fault.kind)
        if fixed is not None:
            await self._whole(writer, fault.status, fixed, fault.headers, "text/html" if fault.kind == "html" else None)
            return ""
        usage = fault.kind != "no_usage"
        dialect = _dialect(seen)
        if dialect is not None:
            path, _, query = seen.target.partition("?")
            asked = dialect.read(UpstreamRequest(path, seen.body, [], query))
            if asked.get("stream"):
                events = list(dialect.events(canned(usage=usage), asked))
                return await self._stream(seen, fault, writer, events, dialect.stream_type)
            return await self._pieces(fault, writer, dialect.answer(canned(usage=usage)))
        is_messages = "/messages" in seen.target
        payload = json.loads(seen.body)
        if payload.get("stream"):
            forced = bool((payload.get("stream_options") or {}).get("include_usage"))
            events = message_events(usage=usage) if is_messages else chat_events(usage=usage, forced_usage=forced)
            return await self._stream(seen, fault, writer, events)
        body = message_body(usage=usage) if is_messages else chat_body(usage=usage)
        return await self._pieces(fault, writer, body)

    async def _whole(
        self,
        writer: asyncio.StreamWriter,
        status: int,
        body: bytes,
        headers: tuple[tuple[str, str], ...],
        kind: str | None = None,
    ) -> None:
        lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *(f"{n}: {v}" for n, v in headers)]
        if not any(n == "content-type" for n, _ in headers):
            lines.append(f"content-type: {kind or 'application/json'}")
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await writer.drain()

    async def _stream(
        self,
        seen: Seen,
        fault: Fault,
        writer: asyncio.StreamWriter,
        events: list[bytes],
        kind: bytes = b"text/event-stream",
    ) -> str:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n" % kind
        if fault.kind == "stall":
            # In one piece: nobody's patience can end between one event and the next.
            said = events[: fault.after]
            writer.write(head + b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in said))
            await writer.drain()
            seen.events_sent += len(said)
            return await self._break(fault, writer)
        writer.write(head)
        if fault.kind == "endless":
            at = max(2, fault.after)
            for event in itertools.chain(events[:at], itertools.repeat(events[at])):
                writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                await writer.drain()
                seen.events_sent += 1
                await asyncio.sleep(fault.drip_s)
        if fault.kind in ("ends", "done_only"):
            events = events[: fault.after] if fault.kind == "ends" else events[-1:]
        faulty = fault.kind in ("cut", "reset", "malform", "torn")
        for number, event in enumerate(events):
            while fault.waits and number == 1 and not self._is_released:
                await asyncio.sleep(0.005)
            if faulty and number == fault.after:
                if fault.kind not in ("malform", "torn"):
                    return await self._break(fault, writer)
                event = event[: len(event) // 2] if fault.kind == "torn" else MALFORMED[kind.partition(b";")[0]]
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await writer.drain()
            seen.events_sent += 1
            if fault.kind == "torn" and number == fault.after:
                break
            await asyncio.sleep(fault.drip_s)
            while fault.kind == "held" and number == 2 and not self._is_released:
                writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                await writer.drain()
                seen.events_sent += 1
                await asyncio.sleep(max(fault.drip_s, 0.01))
        if faulty and fault.kind not in ("malform", "torn"):
            return await self._break(fault, writer)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return ""

    async def _pieces(self, fault: Fault, writer: asyncio.StreamWriter, body: bytes) -> str:
        if fault.kind == "malform":
            body = body[:-1] + b"!"
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        if fault.kind in ("cut", "reset", "stall"):
            writer.write(head + body[: len(body) * min(fault.after, 3) // 4])
            await writer.drain()
            return await self._break(fault, writer)
        writer.write(head + body)
        await writer.drain()
        return ""

    async def _break(self, fault: Fault, writer: asyncio.StreamWriter) -> str:
        await asyncio.sleep(0.01)
        if fault.kind == "stall":
            await asyncio.sleep(3600)
        if fault.kind == "reset":
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        return f"fault:{fault.kind}"


@contextlib.asynccontextmanager
async def fault_provider() -> AsyncIterator[FaultProvider]:
    provider = FaultProvider()
    await provider.start()
    try:
        yield provider
    finally:
        await provider.aclose()


@dataclass
class _Thread:
    provider: FaultProvider = field(default_factory=FaultProvider)
    ready: threading.Event = field(default_factory=threading.Event)
    loop: asyncio.AbstractEventLoop | None = None
    stop: asyncio.Event | None = None

    def run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()
        await self.provider.start()
        self.ready.set()
        await self.stop.wait()
        await self.provider.aclose()


@contextlib.contextmanager
def in_thread() -> Iterator[FaultProvider]:
    """The provider on a loop of its own, for gateways in other processes."""
    runner = _Thread()
    thread = threading.Thread(target=runner.run, daemon=True)
    thread.start()
    assert runner.ready.wait(60)
    try:
        yield runner.provider
    finally:
        assert runner.loop is not None
        assert runner.stop is not None
        runner.loop.call_soon_threadsafe(runner.stop.set)
        thread.join(60)
