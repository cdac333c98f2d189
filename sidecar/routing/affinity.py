"""Where a conversation is at home, so that the provider's prompt cache is found again. Pure and without memory: the
home is computed from the conversation's beginning, so every process and every later turn finds the same.

Neighbours: `router`. Rule: a home that is unhealthy or full is not among the deployments given, and one that is much
busier than the others is passed over, so stickiness never makes a queue.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from math import log
from typing import Any

from sidecar.routing.board import Board
from sidecar.types import Deployment

MAX_CHARS = 8_192
"""Of the beginning that are read: caches begin to pay off long before."""
MAX_PARTS = 64
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
    ranked = sorted(deployments, key=lambda d: _draw(prefix, d), reverse=True)
    weights = sum(d.weight for d in deployments)
    calls = sum(board.of(d).in_flight for d in deployments) + 1
    for deployment in ranked:
        if board.of(deployment).in_flight <= (1 + SLACK) * calls * deployment.weight / weights:
            return deployment
    return ranked[0]


def _draw(prefix: int, deployment: Deployment) -> float:
    digest = blake2b(deployment.deployment_id.encode("utf-8", "surrogatepass"), digest_size=8, key=_key(prefix))
    number = int.from_bytes(digest.digest(), "big") >> 11
    # -w / ln(u): the highest of these is each with probability w / sum of w.
    return -deployment.weight / log((number + 1) / (2**53 + 2))


def _key(prefix: int) -> bytes:
    return prefix.to_bytes(8, "big")
