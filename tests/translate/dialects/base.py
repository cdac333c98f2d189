"""What a dialect has to say about its side of the wire."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from sidecar.translate import Head, UpstreamRequest
from sidecar.translate.simulate import Plan, plan_answer
from sidecar.types import Headers

Answer = tuple[Headers, list[bytes]]
"""Headers and, in order, the events of a stream or the one body of a whole answer."""


class Dialect:
    """One vendor's API, as small as the tests need it. A subclass writes `read`, `answer`, `events`, `error_body` and
    `error_event`; the behaviour (which `sim-…` model does what) is the same for all."""

    model: ClassVar[str] = "claude-opus-4-5"
    """One that takes every field the provider maps."""
    options: ClassVar[Mapping[str, str]] = {}
    """What a deployment must give beside model and key."""
    values: ClassVar[Mapping[str, Any]] = {}
    """Values of OpenAI fields this vendor takes, where it does not take those every test sends."""
    stream_type: ClassVar[bytes] = b"text/event-stream"
    end_mark: ClassVar[bytes] = b""
    """Where in the last event it has become the end; empty: at its beginning."""
    empty_streams: ClassVar[tuple[bytes, ...]] = (b": ping\n\n", b"data: [DONE]\n\n")
    """Streams properly framed and ended that say nothing."""
    scraps: ClassVar[tuple[bytes, ...]] = ()
    """Pieces of streams for the fuzzer: whole events, odd ones, halves."""
    base_path: ClassVar[str] = ""
    """What a deployment's `base_url` holds after the host."""

    def claims(self, target: str) -> bool:
        """True if a request with this path and query is of this dialect; asked by the fault provider."""
        return False

    def check(self, request: UpstreamRequest) -> None:
        """Fails if the vendor's own types would not take the request."""

    def read(self, request: UpstreamRequest) -> dict[str, Any]:
        """What is asked, as OpenAI would say it: model, messages, tools, tool_choice, max_tokens, stream …"""
        raise NotImplementedError

    def answer(self, plan: Plan) -> bytes:
        raise NotImplementedError

    def events(self, plan: Plan, asked: Mapping[str, Any]) -> Iterator[bytes]:
        """The stream, event by event, the end event last."""
        raise NotImplementedError

    def error_event(self) -> bytes:
        """An error within a stream."""
        raise NotImplementedError

    @property
    def stream_head(self) -> Head:
        return Head(200, [(b"content-type", self.stream_type)])

    def pieces(self, request: UpstreamRequest) -> list[bytes]:
        """The answer to a request the vendor's types take, by the model's name as in `translate.simulate`."""
        self.check(request)
        asked = self.read(request)
        model = asked["model"]
        trigger = model[model.find("sim-") :] if "sim-" in model else "sim-echo"
        plan = plan_answer("openai", asked, trigger)
        if not asked.get("stream"):
            return [self.answer(plan)]
        events = list(self.events(plan, asked))
        if trigger.startswith("sim-error"):
            return [*events[: max(1, len(events) // 2)], self.error_event()]
        return events

    def says(self, piece: bytes, text: bytes) -> bool:
        """True if this text stands in this event."""
        return text in piece

    def end_of(self, pieces: list[bytes]) -> int:
        """Offset up to which a stream cut there is not whole."""
        before = sum(map(len, pieces[:-1]))
        return before + (pieces[-1].rindex(self.end_mark) if self.end_mark else 0)


def json_of(request: UpstreamRequest) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(request.body)
    return parsed
