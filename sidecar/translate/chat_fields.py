"""OpenAI's request fields read once for providers with a dialect of their own: tools, choices, caps, stops, JSON.

Neighbours: `content` (messages), `fields` (which fields a provider takes at all). Every error names its field.
https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from sidecar.translate.content import bad
from sidecar.translate.fields import Drop
from sidecar.translate.nested import NestedFields
from sidecar.translate.provider import Call
from sidecar.translate.tool_names import ToolNames

Fields = dict[str, Any]
Mode = Literal["auto", "none", "required"]
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
NOTHING: Fields = {"type": "object", "properties": {}}


class FunctionTool(NamedTuple):
    """`name` is as it is sent; `schema` has type object."""

    name: str
    description: str
    schema: Fields
    is_strict: bool
    where: str


class JSONFormat(NamedTuple):
    """`schema` is `None` for any JSON object."""

    schema: Fields | None
    where: str = "response_format.json_schema.schema"


def function_tools(
    fields: Fields, names: ToolNames, drop: Drop, vendor: str, nested: NestedFields
) -> list[FunctionTool]:
    """Takes `tools` out of the fields."""
    tools = fields.pop("tools", None)
    if tools is None:
        return []
    if not isinstance(tools, list):
        raise bad("'tools' must be a list.", "tools")
    return [_tool(tool, f"tools[{index}]", names, drop, vendor, nested) for index, tool in enumerate(tools)]


def _tool(tool: Any, where: str, names: ToolNames, drop: Drop, vendor: str, nested: NestedFields) -> FunctionTool:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(tool, dict) or tool.get("type", "function") != "function" or not isinstance(function, dict):
        kind = tool.get("type") if isinstance(tool, dict) else tool
        raise bad(f"'{where}' has type {kind!r:.60}; {vendor} takes function tools.", f"{where}.type")
    name, description, schema = function.get("name"), function.get("description"), function.get("parameters")
    if not isinstance(name, str) or not name:
        raise bad(f"'{where}.function.name' must be a non-empty string.", f"{where}.function.name")
    if description is not None and not isinstance(description, str):
        raise bad(f"'{where}.function.description' must be a string.", f"{where}.function.description")
    place = f"{where}.function.parameters"
    if schema is None:
        schema = NOTHING
    elif not isinstance(schema, dict):
        raise bad(f"'{place}' must be an object.", place)
    elif schema.get("type") != "object":
        if schema.get("type") is not None:
            raise bad(f"'{place}' must have type object.", place)
        schema = {**NOTHING, **schema, "type": "object"}
    nested.tool(tool, where, drop)
    return FunctionTool(names.sent(name), description or "", schema, function.get("strict") is True, where)


def tool_choice(
    fields: Fields, tools: list[FunctionTool], names: ToolNames
) -> tuple[list[FunctionTool], Mode | None, bool]:
    """Takes `tool_choice` out of the fields: (the tools that may be called, how, whether a single one is forced)."""
    value = fields.pop("tool_choice", None)
    if value is None:
        return tools, None, False
    kind = value.get("type") if isinstance(value, dict) else value
    if kind in ("auto", "none"):
        return tools, kind, False
    if kind in ("required", "any"):
        return _some(tools), "required", False
    if isinstance(value, dict) and kind == "allowed_tools":
        inner = value.get("allowed_tools")
        inner = inner if isinstance(inner, dict) else value
        listed = inner.get("tools")
        if not isinstance(listed, list):
            raise bad("'tool_choice.allowed_tools.tools' must be a list.", "tool_choice")
        allowed = {name for name in map(_function_name, listed) if name}
        kept = [tool for tool in tools if tool.name in {names.sent(name) for name in allowed}]
        return kept, "required" if inner.get("mode") == "required" and kept else "auto", False
    name = _function_name(value) if kind == "function" else ""
    if not name:
        raise bad("'tool_choice' must be none, auto, required or name a function.", "tool_choice")
    chosen = [tool for tool in tools if tool.name == names.sent(name)]
    if not chosen:
        raise bad(f"'tool_choice' names the function {name!r:.80}, which is not among the tools.", "tool_choice")
    return chosen, "required", True


def _some(tools: list[FunctionTool]) -> list[FunctionTool]:
    if not tools:
        raise bad("'tool_choice' asks for a tool but there are no functions.", "tool_choice")
    return tools


def _function_name(value: Any) -> str:
    function = value.get("function", value) if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""


def output_cap(call: Call, fields: Fields) -> int | None:
    """Takes both caps out of the fields; the gateway's own cap stands above them."""
    caps = []
    for name in ("max_completion_tokens", "max_tokens"):
        value = fields.pop(name, None)
        if value is not None:
            if type(value) is not int or value < 1:
                raise bad(f"'{name}' must be a whole number of at least 1.", name)
            caps.append(value)
    cap = call.edits.get("output_cap")
    return cap if cap is not None else min(caps, default=None)


def stops(fields: Fields) -> list[str]:
    """Takes `stop` out of the fields. Empty sequences stop nothing."""
    value = fields.pop("stop", None)
    if value is None:
        return []
    sequences = [value] if isinstance(value, str) else value
    if not isinstance(sequences, list) or not all(isinstance(item, str) for item in sequences):
        raise bad("'stop' must be a string or a list of strings.", "stop")
    return [item for item in sequences if item]


def reasoning_effort(fields: Fields) -> str | None:
    value = fields.pop("reasoning_effort", None)
    if isinstance(value, dict):
        value = value.get("effort")
    if value is None:
        return None
    if not isinstance(value, str) or value not in EFFORTS:
        raise bad(f"'reasoning_effort' is {value!r:.40}; known are {', '.join(EFFORTS)}.", "reasoning_effort")
    return value


def json_format(fields: Fields) -> JSONFormat | None:
    """Takes `response_format` out of the fields; `None` where text is wanted."""
    value = fields.pop("response_format", None)
    kind = value.get("type") if isinstance(value, dict) else None
    if value is None or kind == "text":
        return None
    if kind == "json_object":
        return JSONFormat(None)
    if kind != "json_schema":
        raise bad("'response_format.type' must be text, json_object or json_schema.", "response_format.type")
    inner = value.get("json_schema")
    found = JSONFormat(inner.get("schema") if isinstance(inner, dict) else None)
    if not isinstance(found.schema, dict):
        raise bad(f"'{found.where}' must be an object.", found.where)
    description = inner.get("description")
    if isinstance(description, str) and description and "description" not in found.schema:
        return JSONFormat({**found.schema, "description": description})
    return found


def numbers(fields: Fields, names: tuple[str, ...]) -> None:
    """Raises `BadRequestError` for a client's value that is no number."""
    for name in names:
        value = fields.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise bad(f"'{name}' must be a number.", name)


def logprob_fields(fields: Fields) -> tuple[bool, int]:
    asks, top = fields.pop("logprobs", None), fields.pop("top_logprobs", None)
    if asks is not None and not isinstance(asks, bool):
        raise bad("'logprobs' must be true or false.", "logprobs")
    if top is not None and (type(top) is not int or not 0 <= top <= 20):
        raise bad("'top_logprobs' must be a whole number from 0 to 20.", "top_logprobs")
    return bool(asks or top), top or 0
