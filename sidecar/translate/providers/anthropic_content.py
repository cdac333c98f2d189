"""OpenAI chat messages as Anthropic Messages content, part by part.

Neighbour: `anthropic_request`, which maps everything else of the request. Rule: a part or field that cannot be said in
Anthropic's format is a 400 naming its place, never left out.
https://platform.claude.com/docs/en/api/messages/create
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sidecar.errors import BadRequestError
from sidecar.translate.content import (
    IMAGE_TYPES,
    TEXT_TYPES,
    File,
    Image,
    Text,
    ToolCall,
    bad,
    messages_of,
    parts_of,
    tool_calls_of,
)
from sidecar.translate.losses import note
from sidecar.translate.nested import NestedFields
from sidecar.translate.signatures import MARK, bare_id, unpack

Block = dict[str, Any]
Drop = Callable[[str, str], None]
"""`drop(param, fix)`: notes a field left out by policy, or raises the 400 that names it."""

_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_TOOL_ID = re.compile(r"[a-zA-Z0-9_-]{1,256}")


def tool_name(name: Any, where: str) -> str:
    """A name Anthropic takes (`^[a-zA-Z0-9_-]{1,64}$`); others are rewritten, always to the same and to different
    ones for different names."""
    if not isinstance(name, str) or not name:
        raise bad(f"'{where}' must be a non-empty string.", where)
    if _TOOL_NAME.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    sent = f"{re.sub(r'[^a-zA-Z0-9_-]', '_', name)[:53]}_{digest}"
    note("renamed", f"tool {name:.80}", f"sent as {sent}, and back in the answer")
    return sent


def tool_id(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise bad(f"'{where}' must be a non-empty string.", where)
    given = bare_id(value)
    if _TOOL_ID.fullmatch(given):
        return given
    return "call_" + hashlib.sha256(given.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _with_cache(block: Block, source: Mapping[str, Any], where: str) -> Block:
    cache = source.get("cache_control")
    if cache is not None:
        if not isinstance(cache, dict):
            raise bad(f"'{where}.cache_control' must be an object.", f"{where}.cache_control")
        block["cache_control"] = cache
    return block


def _image(part: Image, drop: Drop) -> Block:
    where = part.where
    if part.detail not in (None, "auto"):
        drop(f"{where}.image_url.detail", "Anthropic has no picture detail; remove it or say auto.")
    if part.data or not part.url:
        if part.media_type not in IMAGE_TYPES:
            raise bad(f"'{where}' is {part.media_type}; Anthropic takes JPEG, PNG, GIF and WebP.", where)
        return {"type": "image", "source": {"type": "base64", "media_type": part.media_type, "data": part.data}}
    if part.url.startswith(("https://", "http://")):
        return {"type": "image", "source": {"type": "url", "url": part.url}}
    raise bad(f"'{where}.image_url.url' must be an http(s) or a data URL.", f"{where}.image_url.url")


def _document(part: File) -> Block:
    where = part.where
    block: Block = {"type": "document"}
    if part.data:
        if part.media_type == "application/pdf":
            block["source"] = {"type": "base64", "media_type": part.media_type, "data": part.data}
        elif part.media_type in TEXT_TYPES:
            try:
                text = base64.b64decode(part.data, validate=True).decode("utf-8")
            except (binascii.Error, ValueError) as error:
                raise bad(
                    f"'{where}.file.file_data' is not base64 of UTF-8 text.", f"{where}.file.file_data"
                ) from error
            block["source"] = {"type": "text", "media_type": "text/plain", "data": text}
        elif part.media_type in IMAGE_TYPES:
            return {"type": "image", "source": {"type": "base64", "media_type": part.media_type, "data": part.data}}
        else:
            raise bad(f"'{where}' is {part.media_type}; Anthropic takes PDF and text files.", f"{where}.file")
    elif part.file_id:
        block["source"] = {"type": "file", "file_id": part.file_id}
    elif part.url.startswith(("https://", "http://")):
        block["source"] = {"type": "url", "url": part.url}
    else:
        raise bad(f"'{where}.file' needs file_data or file_id.", f"{where}.file")
    if part.filename:
        block["title"] = part.filename
    return block


_MEDIA = ("image_url", "file")
TOOL_EXTRAS = ("cache_control", "defer_loading", "allowed_callers", "input_examples", "eager_input_streaming")
NESTED = NestedFields(
    "Anthropic",
    message=("cache_control",),
    tool_result=("is_error",),
    part=("cache_control",),
    call=("cache_control",),
    tool=TOOL_EXTRAS,
    fix="Anthropic has no such field; remove it. cache_control marks what to cache.",
)


def content_blocks(content: Any, where: str, drop: Drop, *, allows_media: bool = True) -> list[Block]:
    """A message's content as blocks; empty texts are left out, because Anthropic refuses them and they say nothing."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    blocks: list[Block] = []
    for part in parts_of(content, where, _MEDIA if allows_media else ()):
        if isinstance(part, Text):
            if part.text:
                blocks.append(_with_cache({"type": "text", "text": part.text}, part.source, part.where))
        elif isinstance(part, Image):
            blocks.append(_with_cache(_image(part, drop), part.source, part.where))
        elif isinstance(part, File):
            blocks.append(_with_cache(_document(part), part.source, part.where))
        else:
            takes = "text, image_url and file" if allows_media else "text"
            kind = part.source.get("type")
            raise bad(
                f"'{part.where}' has type {kind!r:.60}; here Anthropic takes {takes} parts.", f"{part.where}.type"
            )
        NESTED.part(part.source, part.where, drop)
    return blocks


def thinking_blocks(value: Any, where: str) -> list[Block]:
    """Thinking of an earlier answer, replayed exactly with its signature."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise bad(f"'{where}' must be a list.", where)
    blocks: list[Block] = []
    for index, block in enumerate(value):
        here = f"{where}[{index}]"
        if not isinstance(block, dict):
            raise bad(f"'{here}' must be an object.", here)
        if block.get("type") == "thinking":
            if not isinstance(block.get("thinking"), str) or not isinstance(block.get("signature"), str):
                raise bad(f"'{here}' needs thinking and signature as they were answered.", here)
            blocks.append({"type": "thinking", "thinking": block["thinking"], "signature": block["signature"]})
        elif block.get("type") == "redacted_thinking" and isinstance(block.get("data"), str):
            blocks.append({"type": "redacted_thinking", "data": block["data"]})
        else:
            raise bad(f"'{here}' is not a thinking block.", here)
    return blocks


def _tool_use(call: ToolCall) -> Block:
    block = {
        "type": "tool_use",
        "id": tool_id(call.id, f"{call.where}.id"),
        "name": tool_name(call.name, f"{call.where}.function.name"),
        "input": call.arguments,
    }
    return _with_cache(block, call.source, call.where)


def _cache_last(blocks: list[Block], message: Mapping[str, Any], where: str) -> None:
    """A cache mark on the whole message stands after its last block."""
    if blocks and message.get("cache_control") is not None:
        _with_cache(blocks[-1], message, where)


def _assistant(message: Mapping[str, Any], where: str, drop: Drop) -> list[Block]:
    content = message.get("content")
    blocks = thinking_blocks(message.get("thinking_blocks"), f"{where}.thinking_blocks")
    if isinstance(content, list) and any(
        isinstance(part, dict) and part.get("type") in ("thinking", "redacted_thinking") for part in content
    ):
        is_thinking = [
            isinstance(part, dict) and part.get("type") in ("thinking", "redacted_thinking") for part in content
        ]
        if not blocks:
            blocks = thinking_blocks(
                [part for part, yes in zip(content, is_thinking, strict=True) if yes], f"{where}.content"
            )
        content = [part for part, yes in zip(content, is_thinking, strict=True) if not yes]
    blocks += content_blocks(content, f"{where}.content", drop, allows_media=False)
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal:
        blocks.append({"type": "text", "text": refusal})
    calls = list(tool_calls_of(message, where))
    for call in calls:
        NESTED.call(call.source, call.where, drop)
    uses = [_tool_use(call) for call in calls]
    before = [packed_blocks(call.given_id) for call in calls]
    return blocks + uses if not any(before) else replay(blocks, uses, before)


def pack_blocks(before: list[int | Block]) -> Mapping[str, Any]:
    """What stood before a tool call, for its id: thinking blocks, and for each text block how far the content's text
    had come (in characters)."""
    return {"kind": "claude", "before": before}


def packed_blocks(given: str) -> list[int | Block]:
    if MARK not in given:
        return []
    _, state = unpack(given)
    before = state.get("before") if state is not None and state.get("kind") == "claude" else None
    if not isinstance(before, list):
        return []
    try:
        thinking_blocks([item for item in before if type(item) is not int], "tool_calls")
    except BadRequestError:
        return []
    return before


def replay(blocks: list[Block], uses: list[Block], before: Sequence[Sequence[int | Block]]) -> list[Block]:
    """The turn as Claude said it: what the ids carried in its place, the text (which the client may have changed) cut
    where it was."""
    texts = [block for block in blocks if block["type"] == "text"]
    result: list[Block] = []
    if any("cache_control" in block for block in texts):  # cut by the client: its cuts stay, thinking comes first
        thoughts = [[item for item in items if isinstance(item, dict)] for items in before]
        result = thoughts[0] + texts
        before = [[], *thoughts[1:]]
        texts = []
    text = "".join(block["text"] for block in texts)
    position = 0

    def say(end: int) -> None:
        nonlocal position
        piece, position = text[position:end], max(position, end)
        if piece.strip():
            result.append({"type": "text", "text": piece})

    for use, items in zip(uses, before, strict=True):
        for item in items:
            if isinstance(item, dict):
                result.append(item)
            else:
                say(item)
        result.append(use)
    say(len(text))
    return result


def _tool_result(message: Mapping[str, Any], where: str, drop: Drop) -> list[Block]:
    block: Block = {"type": "tool_result", "tool_use_id": tool_id(message.get("tool_call_id"), f"{where}.tool_call_id")}
    content = message.get("content")
    if isinstance(content, str):
        if content:
            block["content"] = content
    else:
        parts = content_blocks(content, f"{where}.content", drop)
        if parts:
            block["content"] = parts
    if isinstance(message.get("is_error"), bool):
        block["is_error"] = message["is_error"]
    return [block]


def convert_messages(messages: Any, drop: Drop) -> tuple[list[Block], list[Block]]:
    """(system blocks, messages). The leading run of system and developer messages becomes `system`; a later one stays
    in its place as the user's text in `<system>` tags, so that the order is kept and the prefix stays cached.
    Neighbours of one role are merged into one turn."""
    system: list[Block] = []
    turns: list[Block] = []
    for role, message, where in messages_of(messages):
        NESTED.message(role, message, where, drop)
        if role in ("system", "developer"):
            blocks = content_blocks(message.get("content"), f"{where}.content", drop, allows_media=False)
            if not turns:
                _cache_last(blocks, message, where)
                system += blocks
                continue
            for block in blocks:
                block["text"] = f"<system>\n{block['text']}\n</system>"
            role = "user"
        elif role == "assistant":
            blocks = _assistant(message, where, drop)
        elif role == "tool":
            blocks = _tool_result(message, where, drop)
            role = "user"
        else:
            blocks = content_blocks(message.get("content"), f"{where}.content", drop)
        _cache_last(blocks, message, where)
        if not blocks:
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    for turn in turns:
        if turn["role"] == "user":  # results have to come first in a turn
            turn["content"].sort(key=lambda block: block["type"] != "tool_result")
    if not turns:
        if not system:
            raise bad("'messages' holds no content.", "messages")
        turns, system = [{"role": "user", "content": system}], []
    if turns[-1]["role"] == "assistant":
        last = turns[-1]["content"][-1]
        if last["type"] == "text":  # a prefill must not end in white space
            last["text"] = last["text"].rstrip() or last["text"]
    return system, turns


def called_tools(turns: Iterable[Block]) -> list[str]:
    """Names of the tools used in the conversation, in order."""
    names: dict[str, None] = {}
    for turn in turns:
        for block in turn["content"]:
            if block["type"] == "tool_use":
                names[block["name"]] = None
    return list(names)
