"""OpenAI's tools and tool_choice as Converse's toolConfig.

Neighbour: `bedrock_request`. A choice is in Claude's words (`{"type": "any"}`) until `choose` says it in Converse's, or
in Claude's own where Converse has none.
https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ToolConfiguration.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sidecar.translate.content import bad
from sidecar.translate.providers.bedrock_content import NESTED, cache_point
from sidecar.translate.providers.bedrock_media import Block, Drop
from sidecar.translate.providers.bedrock_models import BedrockModel
from sidecar.translate.schema import rewrite
from sidecar.translate.schema_rules import BEDROCK_STRICT
from sidecar.translate.tool_names import ToolNames

NOTHING: dict[str, Any] = {"type": "object", "properties": {}}


def _choice(value: Any, names: ToolNames) -> dict[str, Any] | None:
    """tool_choice in all its forms, in Claude's words; `None` for a form that has no meaning."""
    kind = value.get("type") if isinstance(value, dict) else value
    if kind in ("auto", "none", "any"):
        return {"type": kind}
    if kind == "required":
        return {"type": "any"}
    if isinstance(value, dict) and kind in ("function", "tool"):
        function = value.get("function")
        name = function.get("name") if isinstance(function, dict) else value.get("name")
        if not isinstance(name, str) or not name:
            raise bad("'tool_choice.function.name' must be a non-empty string.", "tool_choice.function.name")
        return {"type": "tool", "name": names.sent(name)}
    return None


def object_schema(schema: Any, where: str) -> dict[str, Any]:
    if schema is None:
        return NOTHING
    if not isinstance(schema, dict):
        raise bad(f"'{where}' must be an object.", where)
    if schema.get("type") == "object":
        return schema
    if schema.get("type") is not None:
        raise bad(f"'{where}' must have type object.", where)
    return {"type": "object", "properties": {}, **schema}


def _tool(tool: Any, where: str, dropped: list[str], model: BedrockModel, names: ToolNames, drop: Drop) -> list[Block]:
    if not isinstance(tool, dict):
        raise bad(f"'{where}' must be an object.", where)
    kind = tool.get("type", "function")
    function = tool.get("function")
    if kind != "function" or not isinstance(function, dict):
        raise bad(f"'{where}' has type {kind!r:.60}; Bedrock takes function tools.", f"{where}.type")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise bad(f"'{where}.function.name' must be a non-empty string.", f"{where}.function.name")
    place = f"{where}.function.parameters"
    schema = object_schema(function.get("parameters"), place)
    spec: Block = {"name": names.sent(name)}
    description = function.get("description")
    if description is not None:
        if not isinstance(description, str):
            raise bad(f"'{where}.function.description' must be a string.", f"{where}.function.description")
        if description.strip():
            spec["description"] = description
    is_strict = function.get("strict") is True
    if is_strict and model.has_native_schema:
        schema = rewrite(schema, BEDROCK_STRICT, tool=name, where=place).schema
        spec["strict"] = True
    else:
        if model.schema_rules is not None:
            schema = rewrite(schema, model.schema_rules, tool=name, where=place).schema
        if is_strict:  # the SDKs send it by themselves, so it is no reason to refuse
            dropped.append(f"{where}.function.strict")
    spec["inputSchema"] = {"json": schema}
    NESTED.tool(tool, where, drop)
    marked = where if tool.get("cache_control") is not None else f"{where}.function"
    cache = tool.get("cache_control") or function.get("cache_control")
    if cache is None:
        return [{"toolSpec": spec}]
    point = cache_point(cache, marked)
    if model.takes_tool_cache_points:
        return [{"toolSpec": spec}, {"cachePoint": point}]
    drop(f"{marked}.cache_control", "This model caches no tools; remove it.")
    return [{"toolSpec": spec}]


def tool_config(
    fields: dict[str, Any], dropped: list[str], model: BedrockModel, names: ToolNames, drop: Drop
) -> tuple[Block | None, dict[str, Any] | None]:
    """(toolConfig or `None`, the choice in Claude's words)."""
    tools, given = fields.pop("tools", None), fields.pop("tool_choice", None)
    parallel = fields.pop("parallel_tool_calls", None)
    search = fields.pop("web_search_options", None)
    if parallel is not None and not isinstance(parallel, bool):
        raise bad("'parallel_tool_calls' must be true or false.", "parallel_tool_calls")
    if tools is not None and not isinstance(tools, list):
        raise bad("'tools' must be a list.", "tools")
    converted: list[Block] = []
    for index, tool in enumerate(tools or ()):
        converted += _tool(tool, f"tools[{index}]", dropped, model, names, drop)
    NESTED.choice(given, drop)
    choice: dict[str, Any] | None = None
    if isinstance(given, dict) and given.get("type") == "allowed_tools":
        converted, choice = _allowed(given, converted, names)
    elif given is not None:
        choice = _choice(given, names)
        if choice is None:
            raise bad("'tool_choice' must be none, auto, required or name a function.", "tool_choice")
    if not converted and choice is not None and choice["type"] in ("any", "tool"):
        raise bad("'tool_choice' asks for a tool but there are no tools.", "tool_choice")
    if choice is not None and choice["type"] in ("any", "tool") and not model.takes_tool_choice:
        drop("tool_choice", "This model calls tools as it thinks fit; remove it.")
        choice = None
    if search is not None:
        if model.family in ("nova", "nova2"):
            converted.append({"systemTool": {"name": "nova_grounding"}})
        else:
            drop("web_search_options", "Of Bedrock's models only Amazon Nova searches; remove it.")
    if not converted:
        return None, None
    if choice is not None and choice["type"] == "none" and model.family != "claude":
        return None, None  # Converse has no such choice
    if parallel is False and (choice is None or choice["type"] != "none"):
        if model.family == "claude":
            choice = {**(choice or {"type": "auto"}), "disable_parallel_tool_use": True}
        else:
            drop("parallel_tool_calls", "Of Bedrock's models only Claude can be told so; remove it.")
    return {"tools": converted}, choice


def _allowed(choice: Mapping[str, Any], tools: list[Block], names: ToolNames) -> tuple[list[Block], dict[str, Any]]:
    inner = choice.get("allowed_tools")
    inner = inner if isinstance(inner, dict) else choice
    listed = inner.get("tools")
    if not isinstance(listed, list):
        raise bad("'tool_choice.allowed_tools.tools' must be a list.", "tool_choice")
    kept = set()
    for tool in listed:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or not name:
            raise bad("'tool_choice.allowed_tools' must name functions.", "tool_choice")
        kept.add(names.sent(name))
    found = [tool for tool in tools if "toolSpec" in tool and tool["toolSpec"]["name"] in kept]
    return found, {"type": "any" if inner.get("mode") == "required" else "auto"}


def choose(extra: dict[str, Any], config: Block, choice: dict[str, Any] | None, model: BedrockModel) -> None:
    """Claude's own form is needed for what Converse cannot say; both at once are refused."""
    if choice is None:
        return
    if model.family == "claude" and (choice["type"] == "none" or "disable_parallel_tool_use" in choice):
        extra["tool_choice"] = choice
    elif choice["type"] == "tool":
        config["toolChoice"] = {"tool": {"name": choice["name"]}}
    else:
        config["toolChoice"] = {choice["type"]: {}}
