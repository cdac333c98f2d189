"""What a client's dialect has to say: where a request names what we decide by, how an answer is counted and ends.

Neighbours: `chat`, `responses` (one file each, listed in `dialects/__init__.py`); the edge reads `exchange.dialect`.
Rule: pure, without state; the payload is never mutated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sidecar.errors import SidecarError
from sidecar.translate.provider import Provider
from sidecar.types import Deployment, Usage


class Sniffer(Protocol):
    """Reads usage from an answer passing by; never raises, never changes a byte."""

    def feed(self, data: bytes) -> None: ...

    @property
    def usage(self) -> Usage: ...


class Dialect:
    """`name` is what a provider's `endpoints` call it. `cap_field`: where a client bounds its output. `event_mark`: by
    which events with a token of output are counted."""

    name: str = ""
    title: str = ""
    paths: tuple[str, ...] = ()
    cap_field: str = ""
    event_mark: bytes = b"data:"

    def check(self, payload: Mapping[str, Any]) -> None:
        """Raises `BadRequestError` for what no provider could be asked."""

    def input_tokens(self, payload: Mapping[str, Any], raw_len: int, served_by: Sequence[Deployment] = ()) -> int:
        """An upper bound; `raw_len` is the body's length in bytes, `served_by` who may be asked."""
        raise NotImplementedError

    def likely_tokens(self, payload: Mapping[str, Any], raw_len: int) -> int:
        """A fair guess of the same, for windows whose surplus is settled afterwards."""
        raise NotImplementedError

    def output_tokens(self, payload: Mapping[str, Any]) -> int | None:
        """The most output the client allows, `None` if it sets no bound."""
        raise NotImplementedError

    def beginning(self, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        """What stays the same from turn to turn, in the fields of chat."""
        raise NotImplementedError

    def speaker(self, provider: Provider) -> Provider:
        """What asks this provider in its own words and answers in this dialect."""
        raise NotImplementedError

    def sniffer(self, *, is_stream: bool) -> Sniffer:
        """For answers that no translator reads."""
        raise NotImplementedError

    def end_at(self, body: bytes) -> int:
        """Where the event that ends a stream, or what may become it with the next piece, begins; -1 if nowhere."""
        raise NotImplementedError

    def error_event(self, error: SidecarError, after: object = None) -> bytes:
        """How a stream that has begun ends with an error. `after`: the translator whose stream it was, if any."""
        raise NotImplementedError

    def event_of(self, body: bytes) -> bytes:
        """A whole answer as the one event of a stream that a heartbeat began."""
        return b"".join(b"data: " + line + b"\n" for line in body.splitlines()) + b"\n"
