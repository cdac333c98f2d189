"""Tools for Claude: functions with their schemas, tools of Anthropic's own, and which of them has to be called.

Neighbours: `anthropic_request`, which asks for them, `anthropic_extras` (web search), `schema_rules` (what Claude
enforces).
https://platform.claude.com/docs/en/agents-and-tools/tool-use/implement-tool-use
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sidecar.translate.content import bad
from sidecar.translate.fields import Drop
from sidecar.translate.providers.anthropic_content import NESTED, TOOL_EXTRAS, Block, called_tools, tool_name
from sidecar.translate.providers.anthropic_extras import search_tool
from sidecar.translate.providers.anthropic_models import ModelTraits
from sidecar.translate.schema import rewrite
from sidecar.translate.schema_rules import CLAUDE_STRICT

_NATIVE_TOOL = re.compile(r"[a-z0-9_]+_\d{8}")
STRUCTURE_LOST = ("/additionalProperties", "/$ref", "/patternProperties")


def _choice(value: Any) -> dict[str, Any] | None:
    """tool_choice in all its forms; `None` for a form that has no meaning."""
    kind = value.get("type") if isinstance(value, dict) else value
    if kind in ("auto", "none", "any"):
        return {"type": kind}
    if kind == "required":
        return {"type": "any"}
    if isinstance(value, dict):
        if kind == "function":
            function = value.get("function")
            name = function.get("name") if isinstance(function, dict) else value.get("name")
            return {"type": "tool", "name": tool_name(name, "tool_choice.function.name")}
        if kind == "tool":
            return {"type": "tool", "name": tool_name(value.get("name"), "tool_choice.name")}
    return None


def _tool(tool: Any, where: str, model: ModelTraits, dropped: list[str], drop: Drop) -> Block:
    if not isinstance(tool, dict):
        raise bad(f"'{where}' must be an object.", where)
    kind = tool.get("type", "function")
    if isinstance(kind, str) and _NATIVE_TOOL.fullmatch(kind):
        return tool  # one of Anthropic's own, in its own form
    function = tool.get("function")
    if kind != "function" or not isinstance(function, dict):
        raise bad(f"'{where}' has type {kind!r:.60}; Anthropic takes function tools.", f"{where}.type")
    schema = function.get("parameters")
    if schema is None:
        schema = {}
    if not isinstance(schema, dict):
        raise bad(f"'{where}.function.parameters' must be an object.", f"{where}.function.parameters")
    if schema.get("type") != "object":
        if schema.get("type") is not None:
            raise bad(f"'{where}.function.parameters' must have type object.", f"{where}.function.parameters")
        schema = {"type": "object", "properties": {}, **schema}
    result: Block = {"name": tool_name(function.get("name"), f"{where}.function.name")}
    description = function.get("description")
    if description is not None:
        if not isinstance(description, str):
            raise bad(f"'{where}.function.description' must be a string.", f"{where}.function.description")
        if description:
            result["description"] = description
    result["input_schema"] = schema
    if function.get("strict") is True:  # the SDKs send it by themselves, so it is no reason to refuse
        place = f"{where}.function.parameters"
        strict = strict_schema(schema, place, function["name"]) if model.has_native_schema else None
        if strict is None:
            dropped.append(f"{where}.function.strict")
        else:
            result["input_schema"], result["strict"] = strict, True
    for extra in TOOL_EXTRAS:
        value = tool.get(extra, function.get(extra))
        if value is not None and value != []:
            result[extra] = value
    NESTED.tool(tool, where, drop)
    return result


def set_tools(
    fields: dict[str, Any], body: dict[str, Any], dropped: list[str], turns: list[Block], model: ModelTraits,
    search: Any, drop: Drop,
) -> None:  # fmt: skip
    """Sets `tools` and `tool_choice`; `search` are the web_search_options, if this provider takes them."""
    tools = fields.pop("tools", None)
    choice_given = fields.pop("tool_choice", None)
    parallel = fields.pop("parallel_tool_calls", None)
    if parallel is not None and not isinstance(parallel, bool):
        raise bad("'parallel_tool_calls' must be true or false.", "parallel_tool_calls")
    if tools is not None and not isinstance(tools, list):
        raise bad("'tools' must be a list.", "tools")
    converted = [_tool(tool, f"tools[{index}]", model, dropped, drop) for index, tool in enumerate(tools or ())]
    NESTED.choice(choice_given, drop)
    choice: dict[str, Any] | None = None
    if isinstance(choice_given, dict) and choice_given.get("type") == "allowed_tools":
        converted, choice = _allowed(choice_given, converted)
    elif choice_given is not None:
        choice = _choice(choice_given)
        if choice is None:
            raise bad("'tool_choice' must be none, auto, required or name a function.", "tool_choice")
    if search is not None:
        converted.append(search_tool(search, drop))
    if not converted:
        if choice is not None and choice["type"] in ("any", "tool"):
            raise bad("'tool_choice' asks for a tool but there are no tools.", "tool_choice")
        used = called_tools(turns)
        if used:  # Anthropic wants the tools of a conversation defined even if none may be called any more
            body["tools"] = [{"name": name, "input_schema": {"type": "object", "properties": {}}} for name in used]
            body["tool_choice"] = {"type": "none"}
        return
    body["tools"] = converted
    if parallel is False and (choice is None or choice["type"] != "none"):
        choice = {**(choice or {"type": "auto"}), "disable_parallel_tool_use": True}
    if choice is not None:
        body["tool_choice"] = choice


def _allowed(choice: Mapping[str, Any], tools: list[Block]) -> tuple[list[Block], dict[str, Any]]:
    inner = choice.get("allowed_tools")
    inner = inner if isinstance(inner, dict) else choice
    listed = inner.get("tools")
    if not isinstance(listed, list):
        raise bad("'tool_choice.allowed_tools.tools' must be a list.", "tool_choice")
    names = set()
    for tool in listed:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        names.add(tool_name(function.get("name") if isinstance(function, dict) else None, "tool_choice.allowed_tools"))
    kept = [tool for tool in tools if tool.get("name") in names]
    return kept, {"type": "any" if inner.get("mode") == "required" else "auto"}


def strict_schema(schema: dict[str, Any], where: str, tool: str = "") -> dict[str, Any] | None:
    """The schema in the part of JSON Schema that Claude enforces: objects closed, ranges and lengths as words; `None`
    if an open or recursive object would be said wrongly.
    https://platform.claude.com/docs/en/build-with-claude/structured-outputs#json-schema-limitations"""
    written = rewrite(schema, CLAUDE_STRICT, tool=tool, where=where)
    is_other = any(path.endswith(STRUCTURE_LOST) for path in written.lost) or written.schema.get("type") != "object"
    return None if is_other else written.schema
