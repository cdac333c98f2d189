"""OpenAI chat messages as Converse messages, part by part.

Neighbour: `bedrock_request`, which maps everything else of the request. Rules: roles alternate and the user begins;
bytes travel as base64; a part or field that Converse cannot say is a 400 naming its place, never left out. Blocks hold
`cache_control` until `flat`, which puts a cache point after each.
https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ContentBlock.html
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from sidecar.translate.content import Text, bad, messages_of, parts_of, tool_calls_of
from sidecar.translate.nested import NestedFields
from sidecar.translate.provider import Call
from sidecar.translate.providers.anthropic_content import packed_blocks, replay, thinking_blocks
from sidecar.translate.providers.bedrock_media import Block, Drop, MediaBlocks
from sidecar.translate.providers.bedrock_models import BedrockModel
from sidecar.translate.signatures import bare_id
from sidecar.translate.tool_names import ToolNames

FILLER = "."
"""Where Converse wants a text and the client has none: before an assistant's first turn, and beside a document."""
NO_OUTPUT = "(no output)"
"""An empty tool result: blank texts are refused."""

_TOOL_ID = re.compile(r"[a-zA-Z0-9_.:-]{1,64}")
_RAW = "base64:"

NESTED = NestedFields(
    "Bedrock",
    message=("cache_control",),
    tool_result=("is_error",),
    part=("cache_control",),
    call=("cache_control",),
    tool=("cache_control",),
)


def redacted_data(wire: str) -> str:
    """Claude's own text of redacted thinking, which Converse carries as a blob; so it fits every way to Claude."""
    try:
        text = base64.b64decode(wire, validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        return _RAW + wire
    return text if text.isprintable() and text else _RAW + wire


def redacted_blob(data: str) -> str:
    if data.startswith(_RAW):
        return data[len(_RAW) :]
    return base64.b64encode(data.encode("utf-8", "surrogatepass")).decode()


class Contents:
    """One request's messages on their way. `rendered`: tool calls and results are told as text, because the request
    has no tools and the model must call none."""

    __slots__ = ("drop", "media", "model", "names", "rendered")

    def __init__(self, call: Call, model: BedrockModel, names: ToolNames, drop: Drop, *, rendered: bool) -> None:
        self.media = MediaBlocks(call, drop)
        self.model = model
        self.names = names
        self.drop = drop
        self.rendered = rendered

    def _mark(self, block: Block, source: Mapping[str, Any], where: str) -> Block:
        cache = source.get("cache_control")
        if cache is not None:
            point = cache_point(cache, where)
            if self.model.takes_cache_points:
                block["cache_control"] = point
            else:
                self.drop(f"{where}.cache_control", "This model caches no prompts; remove it.")
        return block

    def blocks(self, content: Any, where: str, *, allows_media: bool = True) -> list[Block]:
        """A message's content; blank texts are left out, because Converse refuses them and they say nothing."""
        if isinstance(content, str):
            return [{"text": content}] if content.strip() else []
        blocks: list[Block] = []
        for part in parts_of(content, where):
            if isinstance(part, Text):
                if part.text.strip():
                    blocks.append(self._mark({"text": part.text}, part.source, part.where))
            else:
                block = self.media.block(part) if allows_media else None
                if block is None:
                    takes = "text, image_url, file, input_audio and video_url" if allows_media else "text"
                    raise bad(
                        f"'{part.where}' has type {part.source.get('type')!r:.60}; here Bedrock takes {takes} parts.",
                        f"{part.where}.type",
                    )
                blocks.append(self._mark(block, part.source, part.where))
            NESTED.part(part.source, part.where, self.drop)
        return blocks

    def _thinking(self, value: Any, where: str) -> list[Block]:
        """Claude's thinking goes to Claude only: another model would refuse it or read it as its own."""
        blocks = thinking_blocks(value, where)
        return blocks if self.model.family in ("claude", "unknown") else []

    def assistant(self, message: Mapping[str, Any], where: str) -> list[Block]:
        content = message.get("content")
        given = self._thinking(message.get("thinking_blocks"), f"{where}.thinking_blocks")
        if isinstance(content, list):
            thoughts = [part for part in content if _is_thinking(part)]
            if thoughts:
                content = [part for part in content if not _is_thinking(part)]
                given = given or self._thinking(thoughts, f"{where}.content")
        texts = self.blocks(content, f"{where}.content", allows_media=False)
        refusal = message.get("refusal")
        if isinstance(refusal, str) and refusal.strip():
            texts.append({"text": refusal})
        blocks = given + [{"type": "text", **text} for text in texts]
        uses: list[Block] = []
        before: list[list[Any]] = []
        for call in tool_calls_of(message, where):
            NESTED.call(call.source, call.where, self.drop)
            uses.append(
                self._mark(
                    {"type": "tool_use", "id": tool_id(call.given_id), "name": call.name, "input": call.arguments},
                    call.source,
                    call.where,
                )
            )
            state = packed_blocks(call.given_id)
            before.append(state if self.model.family in ("claude", "unknown") else [])
        blocks = blocks + uses if not any(before) else replay(blocks, uses, before)
        return [self._said(block) for block in blocks]

    def _said(self, block: Block) -> Block:
        kind = block["type"]
        if kind == "text":
            said: Block = {"text": block["text"]}
        elif kind == "thinking":
            said = {"reasoningContent": {"reasoningText": {"text": block["thinking"], "signature": block["signature"]}}}
        elif kind == "redacted_thinking":
            said = {"reasoningContent": {"redactedContent": redacted_blob(block["data"])}}
        elif self.rendered:
            given = msgspec.json.encode(block["input"]).decode()
            said = {"text": f"[Called tool {block['name']} with {given}]"}
        else:
            name = self.names.sent(block["name"])
            said = {"toolUse": {"toolUseId": block["id"], "name": name, "input": block["input"]}}
        if "cache_control" in block:
            said["cache_control"] = block["cache_control"]
        return said

    def tool_result(self, message: Mapping[str, Any], where: str) -> list[Block]:
        given = message.get("tool_call_id")
        if not isinstance(given, str) or not given:
            raise bad(f"'{where}.tool_call_id' must be a non-empty string.", f"{where}.tool_call_id")
        parts = self.blocks(message.get("content"), f"{where}.content")
        marks = [part.pop("cache_control") for part in parts if "cache_control" in part]
        if any("audio" in part for part in parts):
            raise bad(f"'{where}.content' holds audio; Bedrock takes none in tool results.", f"{where}.content")
        if self.rendered:
            how = "failed" if message.get("is_error") is True else "answered"
            blocks = [{"text": f"[The tool {how}:]"}, *(parts or [{"text": NO_OUTPUT}])]
        else:
            result: Block = {"toolUseId": tool_id(given), "content": parts or [{"text": NO_OUTPUT}]}
            if isinstance(message.get("is_error"), bool):
                result["status"] = "error" if message["is_error"] else "success"
            blocks = [{"toolResult": result}]
        if marks:  # a cache point stands between blocks, not within a result
            blocks[-1]["cache_control"] = marks[-1]
        return blocks

    def convert(self, messages: Any) -> tuple[list[Block], list[Block]]:
        """(system, turns). The leading run of system and developer messages becomes `system`; a later one stays in its
        place as the user's text in `<system>` tags. Neighbours of one role are one turn."""
        system: list[Block] = []
        turns: list[Block] = []
        for role, message, where in messages_of(messages):
            NESTED.message(role, message, where, self.drop)
            if role in ("system", "developer"):
                blocks = self.blocks(message.get("content"), f"{where}.content", allows_media=False)
                if not turns:
                    system += self._mark_last(blocks, message, where)
                    continue
                for block in blocks:
                    block["text"] = f"<system>\n{block['text']}\n</system>"
                role = "user"
            elif role == "assistant":
                blocks = self.assistant(message, where)
            elif role == "tool":
                blocks = self.tool_result(message, where)
                role = "user"
            else:
                blocks = self.blocks(message.get("content"), f"{where}.content")
            self._mark_last(blocks, message, where)
            if not blocks:
                continue
            if turns and turns[-1]["role"] == role:
                turns[-1]["content"] += blocks
            else:
                turns.append({"role": role, "content": blocks})
        if not turns:
            if not system:
                raise bad("'messages' holds no content.", "messages")
            turns, system = [{"role": "user", "content": system}], []
        for turn in turns:
            if turn["role"] == "user":  # results have to come first in a turn
                turn["content"].sort(key=lambda block: "toolResult" not in block)
                kinds = {kind for block in turn["content"] for kind in block}
                if "document" in kinds and "text" not in kinds:
                    turn["content"].append({"text": FILLER})
        if turns[0]["role"] == "assistant":
            turns.insert(0, {"role": "user", "content": [{"text": FILLER}]})
        last = turns[-1]["content"][-1]
        if turns[-1]["role"] == "assistant" and "text" in last:  # a prefill must not end in white space
            last["text"] = last["text"].rstrip()
        return system, turns

    def _mark_last(self, blocks: list[Block], message: Mapping[str, Any], where: str) -> list[Block]:
        """A cache mark on the whole message stands after its last block."""
        if blocks and message.get("cache_control") is not None:
            self._mark(blocks[-1], message, where)
        return blocks


def _is_thinking(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in ("thinking", "redacted_thinking")


def tool_id(given: str) -> str:
    """An id Converse takes; others as their hash, the same in call and result."""
    bare = bare_id(given)
    if _TOOL_ID.fullmatch(bare):
        return bare
    return "call_" + hashlib.sha256(bare.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def cache_point(cache: Any, where: str) -> Block:
    if not isinstance(cache, dict):
        raise bad(f"'{where}.cache_control' must be an object.", f"{where}.cache_control")
    ttl = cache.get("ttl")
    if ttl not in (None, "5m", "1h"):
        raise bad(f"'{where}.cache_control.ttl' must be 5m or 1h.", f"{where}.cache_control.ttl")
    return {"type": "default"} if ttl is None else {"type": "default", "ttl": ttl}


def flat(blocks: Iterable[Block]) -> list[Block]:
    """With a cache point after each block that is marked."""
    result: list[Block] = []
    for block in blocks:
        point = block.pop("cache_control", None)
        result.append(block)
        if point is not None:
            result.append({"cachePoint": point})
    return result


def called_tools(turns: Iterable[Block]) -> list[str]:
    """Names (as sent) of the tools used in the conversation, in order."""
    names: dict[str, None] = {}
    for turn in turns:
        for block in turn["content"]:
            if "toolUse" in block:
                names[block["toolUse"]["name"]] = None
    return list(names)
