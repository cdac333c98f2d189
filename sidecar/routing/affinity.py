"""Where a conversation is at home, so that the provider's prompt cache is found again. Pure and without memory: the
home is computed from the conversation's beginning, so every process and every later turn finds the same.

Neighbours: `router`. Rule: a home that is unhealthy or full is not among the deployments given, and one that is much
busier than the others is passed over, so stickiness never makes a queue.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from math import log
from typing import Any

from sidecar.routing.board import Board
from sidecar.routing.level import as_level
from sidecar.types import Deployment

MAX_CHARS = 8_192
"""Of the beginning that are read: caches begin to pay off long before."""
MAX_PARTS = 64
KEPT = 4096
"""Conversations whose home need not be computed again."""
SLACK = 0.25
"""A home may have this share more calls in flight than the mean, and one."""


def prefix_of(payload: Mapping[str, Any]) -> int:
    """A number of the stable beginning: the client's `prompt_cache_key`, else tools, system and first user turn."""
    digest = blake2b(digest_size=8)
    key = payload.get("prompt_cache_key")
    if isinstance(key, str) and key:
        digest.update(key[:MAX_CHARS].encode("utf-8", "surrogatepass"))
        return int.from_bytes(digest.digest(), "big")
    left = MAX_CHARS
    for number, text in enumerate(_parts(payload)):
        if left <= 0 or number >= MAX_PARTS:
            break
        digest.update(text[:left].encode("utf-8", "surrogatepass") + b"\0")
        left -= len(text)
    return int.from_bytes(digest.digest(), "big")


def _parts(payload: Mapping[str, Any]) -> Iterator[str]:
    tools = payload.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict):
            yield str(function.get("name"))
            yield str(function.get("description"))
    messages = payload.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if not isinstance(message, dict):
            continue
        yield from _texts(message.get("content"))
        if message.get("role") == "user":
            return


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                yield part["text"]


def at_home(prefix: int, deployments: Sequence[Deployment], board: Board) -> Deployment:
    """The deployment with the highest draw for this beginning (rendezvous hashing, by weight): one that comes or goes
    moves only the conversations it gets or had."""
    level = as_level(deployments)
    lives, weights = board.all_of(level), level.weights
    ranked = _ranked(prefix, level.names, weights)
    share = (1 + SLACK) * (sum([live.in_flight for live in lives]) + 1) / level.sums[level.last]
    for number in ranked:
        if lives[number].in_flight <= share * weights[number]:
            return level[number]
    return level[ranked[0]]


@lru_cache(KEPT)
def _ranked(prefix: int, names: tuple[bytes, ...], weights: tuple[float, ...]) -> tuple[int, ...]:
    """By their draws, the highest first. Kept for the turns that follow: it does not change."""
    key = prefix.to_bytes(8, "big")
    draws = [int.from_bytes(blake2b(name, digest_size=8, key=key).digest(), "big") >> 11 for name in names]
    if len(set(weights)) > 1:
        # -w / ln(u): the highest of these is each with probability w / sum of w. Of equal weights it is in their order.
        by_weight = [-weight / log((draw + 1) / (2**53 + 2)) for draw, weight in zip(draws, weights, strict=True)]
        return tuple(sorted(range(len(names)), key=by_weight.__getitem__, reverse=True))
    return tuple(sorted(range(len(names)), key=draws.__getitem__, reverse=True))
