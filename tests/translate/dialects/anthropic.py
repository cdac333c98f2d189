"""Anthropic's Messages, answered by the product's own simulator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sidecar.translate import UpstreamRequest
from sidecar.translate.simulate import Plan, simulate
from tests.translate.dialects.base import Dialect, json_of


class AnthropicMessages(Dialect):
    end_mark = b'{"type":"message_stop"}'
    empty_streams = (b'event: message_stop\ndata: {"type":"message_stop"}\n\n', *Dialect.empty_streams)
    scraps = (
        b'data: {"type":"message_start","message":{"usage":{"input_tokens":1}}}\n\n',
        b'data: {"type":"message_start","message":[]}\n\n',
        b'data: {"type":"content_block_start","index":0,"content_block":{"type":"tool_use"}}\n\n',
        b'data: {"type":"content_block_start","index":0,"content_block":{"type":"thinking","signature":3}}\n\n',
        b'data: {"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"{"}}\n\n',
        b'data: {"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"x"}}\n\n',
        b'data: {"type":"content_block_stop","index":0}\n\n',
        b'data: {"type":"message_delta","delta":{"stop_reason":"x"}}\n\n',
        b'data: {"type":"message_stop"}\n\n',
    )

    def read(self, request: UpstreamRequest) -> dict[str, Any]:
        return json_of(request)

    def pieces(self, request: UpstreamRequest) -> list[bytes]:
        answer = simulate("anthropic", request.body)
        assert answer.status == 200
        return [piece for _, piece in answer.pieces]

    def answer(self, plan: Plan) -> bytes:
        raise NotImplementedError("the simulator answers")

    def events(self, plan: Plan, asked: Mapping[str, Any]) -> Iterator[bytes]:
        raise NotImplementedError("the simulator answers")
