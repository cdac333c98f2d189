"""Upper bounds for admission, before the provider has counted: cheap, no tokenizer.

Rule: `estimate_input_tokens` is never under. Every tokenizer in use works on bytes and emits no more tokens than
bytes, and the JSON of a request is longer than its text, so the body's length bounds text, tools and schemas.
Media is bounded by kind instead, because a picture's tokens have nothing to do with its bytes.
`likely_input_tokens` is the fairer guess for token windows (`tpm`), which are corrected at settle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BASE_TOKENS = 16
TOOL_TOKENS = 1_000
"""Vendors add a system prompt of their own when tools are given (Anthropic: up to 804 tokens).
https://platform.claude.com/docs/en/agents-and-tools/tool-use/overview"""
IMAGE_TOKENS = 5_000
"""Anthropic's largest picture is under 4,800 tokens, OpenAI's gpt-4o under 1,500."""
IMAGE_TOKENS_MINI = 50_000
"""gpt-4o-mini counts a picture about 33 times as high. https://platform.openai.com/docs/guides/images-vision"""
FILE_TOKENS = 200_000
"""A document given by URL or id, whose size is not known here."""


def _media_tokens(payload: Mapping[str, Any], image_tokens: int) -> tuple[int, int]:
    """(tokens of media parts, bytes of their data inside the body)."""
    tokens = inline = 0
    messages = payload.get("messages")
    if not isinstance(messages, list):
        return 0, 0
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, list):
            continue
        for part in content:
            if not isinstance(part, dict):
                continue
            kind = part.get("type")
            value = part.get(kind) if isinstance(kind, str) else None
            if kind == "image_url":
                url = value.get("url") if isinstance(value, dict) else value
                tokens += image_tokens
                if isinstance(url, str) and url.startswith("data:"):
                    inline += len(url)
            elif kind == "file":
                data = value.get("file_data") if isinstance(value, dict) else None
                tokens += max(image_tokens, len(data)) if isinstance(data, str) else FILE_TOKENS
                inline += len(data) if isinstance(data, str) else 0
            elif kind == "input_audio":
                data = value.get("data") if isinstance(value, dict) else None
                tokens += len(data) // 64 + 100 if isinstance(data, str) else 100
                inline += len(data) if isinstance(data, str) else 0
    return tokens, inline


def _is_list_content(payload: Mapping[str, Any]) -> bool:
    messages = payload.get("messages")
    return isinstance(messages, list) and any(
        isinstance(message, dict) and isinstance(message.get("content"), list) for message in messages
    )


def estimate_input_tokens(payload: Mapping[str, Any], raw_len: int, *, image_tokens: int | None = None) -> int:
    """An upper bound of the request's input tokens. `raw_len` is the body's length in bytes."""
    extra = BASE_TOKENS
    if payload.get("tools") or payload.get("functions") or payload.get("response_format"):
        extra += TOOL_TOKENS
    if not _is_list_content(payload):
        return raw_len + extra
    if image_tokens is None:
        image_tokens = IMAGE_TOKENS_MINI if "4o-mini" in str(payload.get("model", "")) else IMAGE_TOKENS
    tokens, inline = _media_tokens(payload, image_tokens)
    return max(0, raw_len - inline) + extra + tokens


def likely_input_tokens(payload: Mapping[str, Any], raw_len: int) -> int:
    """A fair guess (about three bytes a token), for windows whose surplus is settled afterwards."""
    if not _is_list_content(payload):
        return raw_len // 3 + BASE_TOKENS
    tokens, inline = _media_tokens(payload, 1_500)
    return max(0, raw_len - inline) // 3 + BASE_TOKENS + tokens


def requested_output_tokens(payload: Mapping[str, Any]) -> int | None:
    """The most output the client allows over all its `n` choices, or `None` if it sets no bound."""
    caps = [
        value
        for name in ("max_completion_tokens", "max_tokens")
        if type(value := payload.get(name)) is int and value > 0
    ]
    if not caps:
        return None
    choices = payload.get("n")
    return min(caps) * (choices if type(choices) is int and choices > 1 else 1)
