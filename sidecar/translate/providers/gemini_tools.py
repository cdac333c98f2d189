"""Tools and tool_choice as Gemini has them: function declarations, Google's own tools, functionCallingConfig.

Part of `gemini_request`.
https://ai.google.dev/api/caching#Tool · https://ai.google.dev/gemini-api/docs/function-calling
"""

from __future__ import annotations

from typing import Any

from sidecar.translate.content import bad
from sidecar.translate.providers.gemini_content import NESTED, Drop
from sidecar.translate.providers.gemini_models import ModelTraits
from sidecar.translate.schema import rewrite
from sidecar.translate.schema_rules import GEMINI as OLD_SCHEMA
from sidecar.translate.schema_rules import GEMINI_JSON as JSON_SCHEMA
from sidecar.translate.tool_names import ToolNames

Fields = dict[str, Any]

_BUILT_IN = {
    "web_search": "googleSearch",
    "web_search_preview": "googleSearch",
    "google_search": "googleSearch",
    "google_search_retrieval": "googleSearchRetrieval",
    "google_maps": "googleMaps",
    "url_context": "urlContext",
    "code_execution": "codeExecution",
    "code_interpreter": "codeExecution",
    "enterprise_web_search": "enterpriseWebSearch",
    "file_search": "fileSearch",
    "computer_use": "computerUse",
}
"""Google's own tools by what clients call them. https://ai.google.dev/gemini-api/docs/tools"""
_OWN_TOOLS = frozenset(_BUILT_IN.values())


def _declaration(tool: Any, where: str, names: ToolNames, model: ModelTraits, drop: Drop) -> Fields:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(tool, dict) or tool.get("type", "function") != "function" or not isinstance(function, dict):
        kind = tool.get("type") if isinstance(tool, dict) else tool
        raise bad(f"'{where}' has type {kind!r:.60}; Gemini takes functions and Google's own tools.", f"{where}.type")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise bad(f"'{where}.function.name' must be a non-empty string.", f"{where}.function.name")
    declaration: Fields = {"name": names.sent(name)}
    description = function.get("description")
    if description is not None:
        if not isinstance(description, str):
            raise bad(f"'{where}.function.description' must be a string.", f"{where}.function.description")
        declaration["description"] = description
    schema = function.get("parameters")
    if schema is not None:
        place = f"{where}.function.parameters"
        if not isinstance(schema, dict):
            raise bad(f"'{place}' must be an object.", place)
        if schema.get("type", "object") != "object":
            raise bad(f"'{place}' must have type object.", place)
        if schema.get("properties") or schema.keys() - {"type", "properties", "required", "additionalProperties"}:
            rules = JSON_SCHEMA if model.has_json_schema else OLD_SCHEMA
            key = "parametersJsonSchema" if model.has_json_schema else "parameters"
            declaration[key] = rewrite({"type": "object", **schema}, rules, tool=name, where=place).schema
    NESTED.tool(tool, where, drop)
    return declaration


def _built_in(tool: Any, where: str, drop: Drop) -> Fields | None:
    """One of Google's own tools, as `{"type": "web_search"}`, `{"googleSearch": {}}` or `{"google_search": {}}`."""
    if not isinstance(tool, dict):
        return None
    kind = tool.get("type")
    if isinstance(kind, str) and kind in _BUILT_IN:
        NESTED.rest(tool, ("type", kind, _BUILT_IN[kind], "cache_control"), where, drop)
        own = tool.get(kind, tool.get(_BUILT_IN[kind]))
        return {_BUILT_IN[kind]: own if isinstance(own, dict) else {}}
    if kind is None and len(tool) == 1:
        ((key, value),) = tool.items()
        key = _BUILT_IN.get(key, key)
        if key in _OWN_TOOLS and isinstance(value, dict):
            return {key: value}
    return None


def map_tools(
    fields: Fields, body: Fields, names: ToolNames, model: ModelTraits, dropped: list[str], drop: Drop, *,
    is_vertex: bool,
) -> None:  # fmt: skip
    tools = fields.pop("tools", None)
    given_choice = fields.pop("tool_choice", None)
    search = fields.pop("web_search_options", None)
    if tools is not None and not isinstance(tools, list):
        raise bad("'tools' must be a list.", "tools")
    declarations: list[Fields] = []
    own: list[tuple[str, Fields]] = []
    strict: list[str] = []
    for index, tool in enumerate(tools or ()):
        built_in = _built_in(tool, f"tools[{index}]", drop)
        if built_in is not None:
            own.append((f"tools[{index}]", built_in))
            continue
        declarations.append(_declaration(tool, f"tools[{index}]", names, model, drop))
        if tool["function"].get("strict") is True:
            strict.append(f"tools[{index}].function.strict")
    if search is not None:
        if not isinstance(search, dict):
            raise bad("'web_search_options' must be an object.", "web_search_options")
        for field, value in search.items():
            if value is not None and (field, value) != ("search_context_size", "medium"):
                drop(f"web_search_options.{field}", "Google Search has no such setting; remove it.")
        own.append(("web_search_options", {"googleSearch": {}}))
    if declarations and own and not model.is_three:
        for where, _ in own:
            drop(where, "Before Gemini 3 Google's own tools cannot stand beside functions; send one of the two.")
        own = []
    NESTED.choice(given_choice, drop)
    kept, calling = _choice(given_choice, declarations, names)
    if strict and kept and (calling is None or calling["mode"] == "AUTO"):
        if model.has_validated_mode:
            calling = {"mode": "VALIDATED"}  # as AUTO, held to the schemas, as ANY is
        else:  # the SDKs send it by themselves, so it is no reason to refuse
            dropped += strict
    sent: list[Fields] = []  # each an object of its own
    for _, tool in own:
        if tool not in sent:
            sent.append(tool)
    if kept:
        sent.append({"functionDeclarations": kept})
    if sent:
        body["tools"] = sent
    tool_config: Fields = {}
    if calling is not None and kept:
        tool_config["functionCallingConfig"] = calling
    if kept and own and not is_vertex:  # https://ai.google.dev/gemini-api/docs/tool-combination
        tool_config["includeServerSideToolInvocations"] = True
    if tool_config:
        body["toolConfig"] = tool_config


def _choice(value: Any, declarations: list[Fields], names: ToolNames) -> tuple[list[Fields], Fields | None]:
    """(the functions to send, functionCallingConfig). https://ai.google.dev/api/caching#FunctionCallingConfig"""
    if value is None:
        return declarations, None
    kind = value.get("type") if isinstance(value, dict) else value
    if kind in ("auto", "none"):
        return declarations, {"mode": "AUTO" if kind == "auto" else "NONE"}
    name: Any = None
    if kind in ("required", "any"):
        if not declarations:
            raise bad("'tool_choice' asks for a tool but there are no functions.", "tool_choice")
        return declarations, {"mode": "ANY"}
    if isinstance(value, dict) and kind == "function":
        function = value.get("function")
        name = function.get("name") if isinstance(function, dict) else value.get("name")
    elif isinstance(value, dict) and kind == "allowed_tools":
        inner = value.get("allowed_tools")
        inner = inner if isinstance(inner, dict) else value
        listed = inner.get("tools")
        if not isinstance(listed, list):
            raise bad("'tool_choice.allowed_tools.tools' must be a list.", "tool_choice")
        allowed = set()
        for tool in listed:
            function = tool.get("function", tool) if isinstance(tool, dict) else None
            stated = function.get("name") if isinstance(function, dict) else None
            if isinstance(stated, str) and stated:
                allowed.add(names.sent(stated))
        kept = [declaration for declaration in declarations if declaration["name"] in allowed]
        return kept, {"mode": "ANY" if inner.get("mode") == "required" else "AUTO"}
    if not isinstance(name, str) or not name:
        raise bad("'tool_choice' must be none, auto, required or name a function.", "tool_choice")
    sent = names.sent(name)
    if all(declaration["name"] != sent for declaration in declarations):
        raise bad(f"'tool_choice' names the function {name!r:.80}, which is not among the tools.", "tool_choice")
    return declarations, {"mode": "ANY", "allowedFunctionNames": [sent]}
