"""The translators as a library: an OpenAI request for Claude, and Claude's answers as OpenAI's. No gateway, no network.

python -m examples.translate
"""

from __future__ import annotations

from sidecar.translate import Head, get_provider, read_call

ASKED = b'{"model": "any", "stream": true, "messages": [{"role": "user", "content": "Hello"}]}'
EVENTS = (
    '{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"claude-sonnet-4-5",'
    '"content":[],"usage":{"input_tokens":8,"output_tokens":1}}}',
    '{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}',
    '{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hi!"}}',
    '{"type":"content_block_stop","index":0}',
    '{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":3}}',
    '{"type":"message_stop"}',
)
ANSWERED = [f"data: {event}\n\n".encode() for event in EVENTS]
"""What your HTTP client would bring."""


def translate() -> tuple[bytes, bytes]:
    """(what Claude is sent, what OpenAI's client gets)"""
    claude = get_provider("anthropic")
    call = read_call(ASKED, model="claude-sonnet-4-5", exchange_id="1", now=1_760_000_000)
    request = claude.request(call)  # path, query, headers, body; `dropped` names what a policy left out
    stream = claude.stream(call, Head(200))
    out = b"".join(stream.feed(piece) for piece in ANSWERED) + stream.end()  # raises if the stream was cut
    assert stream.usage.total == 11
    error = claude.error(call, Head(529), b'{"type":"error","error":{"type":"overloaded_error","message":"busy"}}')
    assert (error.kind, error.is_retryable) == ("overloaded", True)
    return request.body, out


if __name__ == "__main__":
    for text in translate():
        print(text.decode())
