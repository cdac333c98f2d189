"""What Mistral's messages and tools may hold, which is less than OpenAI's: its schema forbids every other field.

Neighbour: `mistral`. Rule: what is right already is shared, and a request of which all is right keeps its bytes.
https://docs.mistral.ai/api/endpoint/chat · https://docs.mistral.ai/capabilities/function_calling
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from sidecar.translate.content import File, bad, messages_of, parts_of
from sidecar.translate.fields import Drop
from sidecar.translate.losses import note
from sidecar.translate.nested import NestedFields
from sidecar.translate.signatures import bare_id
from sidecar.translate.tool_names import OPENAI as NAMES
from sidecar.translate.tool_names import ToolNames

_ID = re.compile(r"[a-zA-Z0-9]{9}")
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CALL_KEYS = frozenset(("id", "type", "function"))
_KEYS = {
    "system": frozenset(("role", "content")),
    "user": frozenset(("role", "content")),
    "assistant": frozenset(("role", "content", "tool_calls", "prefix")),
    "tool": frozenset(("role", "content", "tool_call_id", "name")),
}
NESTED = NestedFields("Mistral", assistant=("prefix",))
_OWN_PARTS = ("document_url", "reference", "thinking")
_PARTS = {"text": frozenset(("type", "text")), "image_url": frozenset(("type", "image_url"))}
_OWN_FILE = frozenset(("type", "file_id"))


def sent_id(tool_id: str) -> str:
    """Nine letters and digits: the id itself, or its hash. The same for the same id, so that calls and results fit."""
    own = bare_id(tool_id)
    if _ID.fullmatch(own):
        return own
    note("renamed", f"tool call {own:.80}", "its id is sent as nine letters and digits")
    number = int.from_bytes(hashlib.blake2b(own.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
    digits = []
    for _ in range(9):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(digits)


def sent_messages(messages: Any, names: ToolNames, drop: Drop) -> list[dict[str, Any]]:
    """The messages as Mistral takes them; those it takes as they are, are the same objects."""
    sent: list[dict[str, Any]] = []
    for role, message, where in messages_of(messages):
        found = _message("system" if role == "developer" else role, message, where, names, drop)
        if found is None:
            continue
        if found["role"] in ("user", "system") and sent and sent[-1]["role"] == "tool":  # its error 3230
            note("replaced", where, "an assistant's OK is put before it: Mistral takes nobody else after a tool")
            sent.append({"role": "assistant", "content": "OK"})
        sent.append(found)
    if sent and sent[-1]["role"] == "assistant" and not sent[-1].get("tool_calls") and "prefix" not in sent[-1]:
        sent[-1] = {**sent[-1], "prefix": True}  # a prefill; Mistral refuses a last message of this role else
    return sent


def _message(role: str, message: dict[str, Any], where: str, names: ToolNames, drop: Drop) -> dict[str, Any] | None:
    NESTED.message(role, message, where, drop)
    changed: dict[str, Any] = {}
    if role != message["role"]:
        changed["role"] = role
    content = message.get("content")
    if isinstance(content, list):
        changed["content"] = _parts(content, f"{where}.content", drop)
    elif content is not None and not isinstance(content, str):
        raise bad(f"'{where}.content' must be a string or a list of parts.", f"{where}.content")
    elif content is None and role != "assistant":
        changed["content"] = ""
    if role == "assistant":
        _assistant(message, changed, where, names, drop)
        if not changed.get("content", content) and not message.get("tool_calls"):
            note("dropped", where, "the assistant says nothing in it, which Mistral refuses")
            return None
    elif role == "tool":
        given = message.get("tool_call_id")
        if not isinstance(given, str) or not given:
            raise bad(f"'{where}.tool_call_id' must be a non-empty string.", f"{where}.tool_call_id")
        if (own := sent_id(given)) != given:
            changed["tool_call_id"] = own
        if isinstance(name := message.get("name"), str) and (sent := names.sent(name)) != name:
            changed["name"] = sent
    if not changed and message.keys() <= _KEYS[role]:
        return message
    kept = {name: value for name, value in message.items() if name in _KEYS[role]}
    return {**kept, **changed}


def _assistant(message: Mapping[str, Any], changed: dict[str, Any], where: str, names: ToolNames, drop: Drop) -> None:
    calls = message.get("tool_calls")
    if calls is not None:
        if not isinstance(calls, list):
            raise bad(f"'{where}.tool_calls' must be a list.", f"{where}.tool_calls")
        sent = [_call(call, f"{where}.tool_calls[{index}]", names, drop) for index, call in enumerate(calls)]
        if any(one is not other for one, other in zip(sent, calls, strict=True)):
            changed["tool_calls"] = sent
    refusal, thought = message.get("refusal"), message.get("reasoning_content")
    content = changed.get("content", message.get("content"))
    if isinstance(refusal, str) and refusal:
        said = {"type": "text", "text": refusal}
        content = changed["content"] = [*content, said] if isinstance(content, list) else (content or "") + refusal
    if isinstance(thought, str) and thought:
        thinking = {"type": "thinking", "thinking": [{"type": "text", "text": thought}]}
        rest = [{"type": "text", "text": content}] if isinstance(content, str) and content else content
        changed["content"] = [thinking, *(rest if isinstance(rest, list) else ())]


def _call(call: Any, where: str, names: ToolNames, drop: Drop) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise bad(f"'{where}' must be a function call.", where)
    given, name, arguments = call.get("id"), function.get("name"), function.get("arguments")
    if not isinstance(given, str) or not given or not isinstance(name, str) or not name:
        raise bad(f"'{where}' needs an id and a function with a name.", where)
    own, sent = sent_id(given), names.sent(name)
    is_right = isinstance(arguments, (str, dict)) and arguments != "" and function.keys() == {"name", "arguments"}
    if is_right and (own, sent) == (given, name) and call.keys() <= _CALL_KEYS:
        return call
    NESTED.call(call, where, drop)
    if not isinstance(arguments, (str, dict)) or arguments == "":
        arguments = "{}"
    return {"id": own, "type": "function", "function": {"name": sent, "arguments": arguments}}


def _parts(content: list[Any], where: str, drop: Drop) -> list[dict[str, Any]] | str:
    sent = []
    for index, part in enumerate(content):
        found = _part(part, f"{where}[{index}]", drop)
        if found is not None:
            sent.append(found)
    return sent or ""


def _part(part: Any, where: str, drop: Drop) -> dict[str, Any] | None:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict):
        raise bad(f"'{where}' must be an object.", where)
    kind = part.get("type")
    if not isinstance(kind, str):
        raise bad(f"'{where}.type' must be a string.", f"{where}.type")
    if kind in _OWN_PARTS or (kind in _PARTS and part.keys() <= _PARTS[kind]):
        return part
    if kind == "input_audio" and isinstance(part.get("input_audio"), str):
        return part
    if kind == "file" and isinstance(part.get("file_id"), str):
        NESTED.rest(part, _OWN_FILE, where, drop)
        return {"type": "file", "file_id": part["file_id"]}
    NESTED.part(part, where, drop)
    if kind in ("refusal", "input_text", "output_text"):
        return {"type": "text", "text": part.get("refusal" if kind == "refusal" else "text") or ""}
    if kind in _PARTS:
        return {name: value for name, value in part.items() if name in _PARTS[kind]}
    if kind == "input_audio":
        value = part.get("input_audio")
        data = value.get("data") if isinstance(value, dict) else None
        if not isinstance(data, str) or not data:
            raise bad(f"'{where}.input_audio' needs data and format.", f"{where}.input_audio")
        return {"type": "input_audio", "input_audio": data}
    if kind == "file":
        (found,) = parts_of([part], where.rpartition("[")[0], ("file",))
        assert isinstance(found, File)
        if found.file_id:
            return {"type": "file", "file_id": found.file_id}
        url = found.url or f"data:{found.media_type};base64,{found.data}"
        name = {"document_name": found.filename} if found.filename else {}
        return {"type": "document_url", "document_url": url, **name}
    drop(where, "Mistral reads text, pictures, documents and sound; send the content in one of these.")
    return None


def sent_tools(tools: Any, names: ToolNames, drop: Drop) -> list[dict[str, Any]]:
    """Functions need parameters; Mistral's own tools pass. https://docs.mistral.ai/agents/connectors"""
    if not isinstance(tools, list):
        raise bad("'tools' must be a list.", "tools")
    sent = []
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict):
            if not isinstance(tool, dict) or tool.get("type", "function") == "function":
                raise bad(f"'{where}.function' must be an object.", f"{where}.function")
            sent.append(tool)
            continue
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise bad(f"'{where}.function.name' must be a non-empty string.", f"{where}.function.name")
        NESTED.tool(tool, where, drop)
        kept = {
            key: value
            for key, value in function.items()
            if key in ("description", "parameters", "strict") and value is not None
        }
        parameters = kept.pop("parameters", {"type": "object", "properties": {}})
        sent.append({"type": "function", "function": {"name": names.sent(name), **kept, "parameters": parameters}})
    return tools if sent == tools else sent


def sent_choice(value: Any, tools: Any, names: ToolNames, drop: Drop) -> tuple[Any, Any]:
    """(tool_choice, tools). `allowed_tools` are the only ones sent."""
    NESTED.choice(value, drop)
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "function":
        function = value.get("function")
        name = function.get("name") if isinstance(function, dict) else value.get("name")
        if not isinstance(name, str) or not name:
            raise bad("'tool_choice.function.name' must be a non-empty string.", "tool_choice.function.name")
        found = {"type": "function", "function": {"name": names.sent(name)}}
        return (value if found == value else found), tools
    if kind == "allowed_tools":
        inner = value.get("allowed_tools")
        inner = inner if isinstance(inner, dict) else value
        listed = inner.get("tools")
        if not isinstance(listed, list):
            raise bad("'tool_choice.allowed_tools.tools' must be a list.", "tool_choice")
        functions = [tool.get("function", tool) for tool in listed if isinstance(tool, dict)]
        allowed = {function.get("name") for function in functions if isinstance(function, dict)}
        sent = {names.sent(name) for name in allowed if isinstance(name, str)}
        kept = [tool for tool in tools or () if isinstance(tool, dict) and _name(tool) in sent]
        return "required" if inner.get("mode") == "required" else "auto", kept
    return (kind if kind in ("auto", "none", "required", "any") else value), tools


def _name(tool: Mapping[str, Any]) -> Any:
    function = tool.get("function")
    return function.get("name") if isinstance(function, dict) else None


__all__ = ["NAMES", "sent_choice", "sent_id", "sent_messages", "sent_tools"]
