"""Provider state that has to come back with the conversation, carried in what every client echoes: tool-call ids.

Claude wants its thinking blocks before the tool call they led to, Gemini its thought signatures on it; a stock OpenAI
client drops both. So an id is sent as `ID__sdc1_BODY`: one alphabet (`A-Za-z0-9_-`), a version, and a body of flag,
checksum and JSON (deflated if long). Nothing is stored, so it works after a restart and on any replica. Rules: sizes
are bounded both ways; an id that came back mangled is just an id; no other provider ever sees the packed form.
https://platform.claude.com/docs/en/build-with-claude/preserved-thinking · https://ai.google.dev/gemini-api/docs/thought-signatures
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Mapping
from typing import Any

import msgspec

from sidecar.translate.usage import NOT_JSON

MARK = "__sdc1_"
MAX_PACKED = 65_536
"""Characters of a packed id. A state that does not fit is left out: clients keep ids, and send each of them twice."""
MAX_STATE = 1_048_576
"""Bytes of a state, unpacked."""
MAX_OPENAI_ID = 40
"""OpenAI refuses longer ids (`string_above_max_length`); what is left of ours after `strip_ids` is what was packed.
https://github.com/vercel/ai/issues/5171"""

_RAW_MARKS = (MARK.encode(), b"\\u005f", b"\\u005F")
_PLAIN, _DEFLATED = b"\x00", b"\x01"
_DIGEST = 8


def pack(tool_id: str, state: Mapping[str, Any]) -> str:
    """The id with `state` (JSON values; by convention `{"kind": …}` says whose) in it; or the id alone if the state is
    too large or the id has our mark already."""
    if MARK in tool_id:
        return tool_id
    data = msgspec.json.encode(state)
    if len(data) > MAX_STATE:
        return tool_id
    body = _PLAIN + data
    if len(data) > 128:
        deflated = _DEFLATED + zlib.compress(data, 6, -15)
        body = min(body, deflated, key=len)
    encoded = base64.urlsafe_b64encode(_digest(tool_id, body) + body).rstrip(b"=").decode()
    packed = f"{tool_id}{MARK}{encoded}"
    return packed if len(packed) <= MAX_PACKED else tool_id


def unpack(tool_id: str) -> tuple[str, dict[str, Any] | None]:
    """(the id as the provider gave it, the state or `None`). Never raises: what is not ours, or no longer whole, is
    no state."""
    bare, mark, encoded = tool_id.partition(MARK)
    if not mark:
        return tool_id, None
    bare = bare or "call"
    if len(tool_id) > MAX_PACKED:
        return bare, None
    try:
        blob = base64.b64decode(encoded.encode("ascii") + b"=" * (-len(encoded) % 4), b"-_", validate=True)
        digest, body = blob[:_DIGEST], blob[_DIGEST:]
        if digest != _digest(bare, body):
            return bare, None
        data = body[1:]
        if body[:1] == _DEFLATED:
            inflater = zlib.decompressobj(-15)
            data = inflater.decompress(data, MAX_STATE)
            if not inflater.eof:
                return bare, None
        elif body[:1] != _PLAIN:
            return bare, None
        state = msgspec.json.decode(data)
    except (binascii.Error, zlib.error, ValueError, *NOT_JSON):
        return bare, None
    return bare, state if isinstance(state, dict) else None


def bare_id(tool_id: str) -> str:
    """The id as the provider gave it."""
    return tool_id if MARK not in tool_id else tool_id[: tool_id.index(MARK)] or "call"


def _digest(tool_id: str, body: bytes) -> bytes:
    return hashlib.blake2b(tool_id.encode("utf-8", "surrogatepass") + b"\x00" + body, digest_size=_DIGEST).digest()


def may_be_packed(raw: bytes) -> bool:
    """False if no id in this JSON body is packed; cheap."""
    return any(mark in raw for mark in _RAW_MARKS)


def strip_ids(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """The chat request with every id as its provider gave it. What holds none is shared with, or is, the input."""
    messages = payload.get("messages")
    if not isinstance(messages, list):
        return payload
    stripped = [_strip_message(message) if isinstance(message, dict) else message for message in messages]
    if all(one is other for one, other in zip(stripped, messages, strict=True)):
        return payload
    return {**payload, "messages": stripped}


def _strip_message(message: dict[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    given = message.get("tool_call_id")
    if isinstance(given, str) and MARK in given:
        changed["tool_call_id"] = bare_id(given)
    calls = message.get("tool_calls")
    if isinstance(calls, list) and any(_is_packed(call) for call in calls):
        changed["tool_calls"] = [{**call, "id": bare_id(call["id"])} if _is_packed(call) else call for call in calls]
    return {**message, **changed} if changed else message


def _is_packed(call: Any) -> bool:
    return isinstance(call, dict) and isinstance(call.get("id"), str) and MARK in call["id"]
