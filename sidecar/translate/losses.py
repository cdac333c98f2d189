"""What a translation changes beyond the names of fields, told to whoever asks for it (`explain`).

Neighbours: `schema`, `tool_names` and the providers call `note` where they rewrite, cap or stand in for something; a
request nobody asks about pays a look-up there. What a policy drops stands in `UpstreamRequest.dropped` as always.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

Kind = Literal["dropped", "capped", "schema", "renamed", "replaced", "media"]


@dataclass(frozen=True, slots=True)
class Loss:
    """`where` is the place in the client's request."""

    kind: Kind
    where: str
    what: str


_asked: ContextVar[dict[Loss, None] | None] = ContextVar("asked_losses", default=None)


def is_asked() -> bool:
    return _asked.get() is not None


def note(kind: Kind, where: str, what: str) -> None:
    losses = _asked.get()
    if losses is not None:
        losses[Loss(kind, where, what)] = None


@contextmanager
def told() -> Iterator[dict[Loss, None]]:
    """Within it, notes come into this (each once, in order)."""
    losses: dict[Loss, None] = {}
    token = _asked.set(losses)
    try:
        yield losses
    finally:
        _asked.reset(token)
