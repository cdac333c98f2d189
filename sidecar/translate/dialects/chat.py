"""OpenAI's chat completions, the hub: what providers translate from and to.
https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sidecar.errors import BadRequestError, SidecarError
from sidecar.translate.dialects.base import Dialect, Sniffer
from sidecar.translate.estimate import (
    estimate_input_tokens,
    likely_input_tokens,
    requested_output_tokens,
)
from sidecar.translate.provider import Provider
from sidecar.translate.usage import UsageSniffer

_END_EVENTS = (b"data: [DONE]", b"data:[DONE]")
"""The blank is a vendor's choice. https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation"""


class Chat(Dialect):
    name = "chat"
    title = "chat completions"
    paths = ("/v1/chat/completions", "/chat/completions")
    cap_field = "max_tokens"

    input_tokens = staticmethod(estimate_input_tokens)
    likely_tokens = staticmethod(likely_input_tokens)
    output_tokens = staticmethod(requested_output_tokens)

    def check(self, payload: Mapping[str, Any]) -> None:
        if "messages" in payload and type(payload["messages"]) is not list:
            raise BadRequestError("The gateway refused the request: 'messages' must be a list.", param="messages")

    def beginning(self, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        return payload

    def speaker(self, provider: Provider) -> Provider:
        return provider

    def sniffer(self, *, is_stream: bool) -> Sniffer:
        return UsageSniffer(is_stream=is_stream)

    def end_at(self, body: bytes) -> int:
        first = max(0, len(body) - 64)
        done = body.rfind(b"[DONE]", first)
        if done >= 0:
            at = body.rfind(b"data:", first, done)
            if at >= 0 and body[at:done] in (b"data: ", b"data:"):
                return at
        line = max(body.rfind(b"\n"), body.rfind(b"\r")) + 1
        rest = body[line:]
        if rest and any(end.startswith(rest) for end in _END_EVENTS):
            return line
        return -1

    def error_event(self, error: SidecarError, after: object = None) -> bytes:
        """No `[DONE]`, no finish reason: the stock SDK raises on it."""
        return b"data: " + error.body_bytes() + b"\n\n"


CHAT = Chat()
