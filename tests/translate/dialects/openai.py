"""OpenAI's chat completions, answered by the product's own simulator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sidecar.translate import UpstreamRequest
from sidecar.translate.simulate import Plan, simulate
from tests.translate.dialects.base import Dialect, json_of


class OpenAIChat(Dialect):
    end_mark = b"[DONE]"
    base_path = "/v1"
    scraps = (
        b'data: {"choices":3,"usage":[]}\n\n',
        b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n',
        b'data: {"error":[]}\n\n',
    )

    def read(self, request: UpstreamRequest) -> dict[str, Any]:
        return json_of(request)

    def pieces(self, request: UpstreamRequest) -> list[bytes]:
        answer = simulate("openai", request.body)
        assert answer.status == 200
        return [piece for _, piece in answer.pieces]

    def answer(self, plan: Plan) -> bytes:
        raise NotImplementedError("the simulator answers")

    def events(self, plan: Plan, asked: Mapping[str, Any]) -> Iterator[bytes]:
        raise NotImplementedError("the simulator answers")
