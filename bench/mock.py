"""A mock provider as raw asyncio callbacks: prebuilt answers in both dialects, so that it is never the bottleneck."""

from __future__ import annotations

import asyncio
import json
import sys

TEXT = "x" * 200


def _http(body: bytes, kind: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (kind, len(body), body)


def _chunked(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def _event(value: object, name: str | None = None) -> bytes:
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


USAGE = {"prompt_tokens": 250, "completion_tokens": 50, "total_tokens": 300}
CHAT = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-4o", "usage": USAGE,
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": TEXT}}],
}  # fmt: skip
MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "stop_reason": "end_turn",
    "stop_sequence": None, "content": [{"type": "text", "text": TEXT}],
    "usage": {"input_tokens": 250, "output_tokens": 50},
}  # fmt: skip
_CHUNK = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o"}


def _chat_events(count: int) -> list[bytes]:
    choice = {"index": 0, "delta": {"content": "word "}, "finish_reason": None}
    events = [_event({**_CHUNK, "choices": [choice]}) for _ in range(count)]
    events.append(_event({**_CHUNK, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
    events.append(_event({**_CHUNK, "choices": [], "usage": USAGE}))
    return [*events, b"data: [DONE]\n\n"]


def _message_events(count: int) -> list[bytes]:
    start = {**MESSAGE, "content": [], "stop_reason": None, "usage": {"input_tokens": 250, "output_tokens": 1}}
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "word "}}
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 50}}
    return [
        _event({"type": "message_start", "message": start}, "message_start"),
        _event(block, "content_block_start"),
        *[_event(delta, "content_block_delta") for _ in range(count)],
        _event({"type": "content_block_stop", "index": 0}, "content_block_stop"),
        _event(end, "message_delta"),
        _event({"type": "message_stop"}, "message_stop"),
    ]


_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
JSON_ANSWER = {
    False: _http(json.dumps(CHAT).encode(), b"application/json"),
    True: _http(json.dumps(MESSAGE).encode(), b"application/json"),
}
STREAMS = {False: [_chunked(e) for e in _chat_events(50)], True: [_chunked(e) for e in _message_events(50)]}


class Provider(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while True:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            body = self.buffer[end + 4 : end + 4 + length]
            self.buffer = self.buffer[end + 4 + length :]
            is_messages = b"/v1/messages" in head[:200]
            if b'"stream":true' in body or b'"stream": true' in body:
                self.transport.write(_STREAM_HEAD)  # type: ignore[attr-defined]
                self.drip(STREAMS[is_messages], 0)
            else:
                self.transport.write(JSON_ANSWER[is_messages])  # type: ignore[attr-defined]

    def drip(self, pieces: list[bytes], at: int) -> None:
        """One piece per loop turn, so that each arrives as a read of its own."""
        if self.transport.is_closing():  # type: ignore[attr-defined]
            return
        if at < len(pieces):
            self.transport.write(pieces[at])  # type: ignore[attr-defined]
            asyncio.get_running_loop().call_later(0.0005, self.drip, pieces, at + 1)
        else:
            self.transport.write(b"0\r\n\r\n")  # type: ignore[attr-defined]


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(Provider, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    sys.exit(uvloop.run(_serve()))
