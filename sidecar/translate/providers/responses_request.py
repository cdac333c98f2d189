"""An OpenAI chat request as a Responses request.

Neighbours: `responses` (the provider), `responses_state` (what comes back in tool-call ids). Pure functions of the
call. Every message becomes one or more input items in its place; nothing is stored at OpenAI unless the client says so.
https://platform.openai.com/docs/api-reference/responses/create
https://platform.openai.com/docs/guides/migrate-to-responses
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from sidecar.translate.content import File, Image, Text, bad, messages_of, parts_of
from sidecar.translate.fields import Drop, dropper
from sidecar.translate.losses import note
from sidecar.translate.nested import NestedFields
from sidecar.translate.provider import Call, Provider, select_params
from sidecar.translate.providers.responses_models import base_model, thinks
from sidecar.translate.providers.responses_state import KIND, replay
from sidecar.translate.signatures import bare_id, unpack
from sidecar.translate.tool_names import OPENAI, ToolNames, tool_names

Item = dict[str, Any]

MAX_CALL_ID = 64
"""https://platform.openai.com/docs/api-reference/responses/create#responses-create-input"""
HOSTED_TOOLS = (
    *("web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11"),
    *("file_search", "code_interpreter", "mcp", "image_generation"),
)
"""Tools that run at OpenAI; deep research needs one. https://platform.openai.com/docs/guides/tools"""

SAME = (
    *("temperature", "top_p", "parallel_tool_calls", "metadata", "user", "safety_identifier", "service_tier"),
    *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "moderation"),
    *("truncation", "max_tool_calls"),
)
"""Fields of the same name and meaning."""

NESTED = NestedFields("The Responses API", assistant=("images",), part=("prompt_cache_breakpoint",))
_SAID = NestedFields("The Responses API")
"""Parts of an assistant's content."""
_CUSTOM = frozenset(("name", "description", "format"))
_NO_PARAMETERS = {"type": "object", "properties": {}}


def build(provider: Provider, call: Call) -> tuple[Item, list[str]]:
    """(the body, names dropped by policy). Raises `BadRequestError` naming the field."""
    fields, dropped = select_params(provider, call)
    drop = dropper(provider, call, dropped, hints=("cache_control",))
    names = tool_names(call.payload, OPENAI)
    body: Item = {
        "model": call.edits.get("model", call.model),
        "input": _input(fields.get("messages"), names, provider.name, drop),
        "store": bool(fields.get("store")),
    }
    include: list[str] = []
    has_own_tools = _tools(fields, body, names, drop)
    if has_own_tools and thinks(base_model(call)):
        include.append("reasoning.encrypted_content")
    _tool_choice(fields.get("tool_choice"), body, names, drop)
    _text(fields, body)
    _reasoning(fields, body)
    _logprobs(fields, body, include)
    _cap(call, fields, body)
    for name in SAME:
        if name in fields:
            body[name] = fields[name]
    if "parallel_tool_calls" in body and "tools" not in body:
        del body["parallel_tool_calls"]  # says nothing without tools
        note("dropped", "parallel_tool_calls", "there are no tools")
    if include:
        body["include"] = include
    if call.is_stream:
        body["stream"] = True
        options = fields.get("stream_options")
        if isinstance(options, dict) and isinstance(options.get("include_obfuscation"), bool):
            body["stream_options"] = {"include_obfuscation": options["include_obfuscation"]}
    for name in call.allowed_params:
        if name in fields and name not in provider.params:
            body[name] = fields[name]
    return body, dropped


def _input(messages: Any, names: ToolNames, provider_name: str, drop: Drop) -> list[Item]:
    items: list[Item] = []
    custom: set[str] = set()  # ids of calls of custom tools, whose results have a type of their own
    for role, message, where in messages_of(messages):
        NESTED.message(role, message, where, drop)
        if role == "assistant":
            items += _assistant(message, where, names, custom, provider_name, drop)
        elif role == "tool":
            items.append(_result(message, where, custom, drop))
        else:
            content = message.get("content")
            if not isinstance(content, str):
                content = _parts(content, f"{where}.content", drop, role == "user")
            items.append({"type": "message", "role": role, "content": content})
    return items


def _parts(content: Any, where: str, drop: Drop, allows_media: bool) -> list[Item]:
    """https://platform.openai.com/docs/guides/images-vision · https://platform.openai.com/docs/guides/pdf-files"""
    found: list[Item] = []
    for part in parts_of(content, where, ("image_url", "file") if allows_media else ()):
        item: Item
        if isinstance(part, Text):
            item = {"type": "input_text", "text": part.text}
        elif isinstance(part, Image):
            value = part.source.get("image_url")
            url = value.get("url") if isinstance(value, dict) else value
            item = {"type": "input_image", "image_url": url, "detail": part.detail or "auto"}
        elif isinstance(part, File):
            item = _file(part)
        else:
            takes = "text, image_url and file" if allows_media else "text"
            raise bad(
                f"'{part.where}' has type {part.source.get('type')!r:.60}; here the Responses API takes {takes} parts.",
                f"{part.where}.type",
            )
        NESTED.part(part.source, part.where, drop)
        if part.source.get("prompt_cache_breakpoint") is not None:
            item["prompt_cache_breakpoint"] = part.source["prompt_cache_breakpoint"]
        found.append(item)
    return found


def _file(part: File) -> Item:
    item: Item = {"type": "input_file"}
    if part.file_id:
        item["file_id"] = part.file_id
    elif part.url:
        item["file_url"] = part.url
        return item
    else:
        item["file_data"] = f"data:{part.media_type};base64,{part.data}"
        item["filename"] = part.filename or "file"  # data is refused without one
        return item
    return item


def _assistant(
    message: Mapping[str, Any], where: str, names: ToolNames, custom: set[str], provider_name: str, drop: Drop
) -> Iterator[Item]:
    text = "".join(_said(message, where, drop))
    calls: list[tuple[Item, dict[str, Any] | None]] = []  # each with the state its id held
    given = message.get("tool_calls")
    if given is not None and not isinstance(given, list):
        raise bad(f"'{where}.tool_calls' must be a list.", f"{where}.tool_calls")
    for index, call in enumerate(given or ()):
        calls.append(_call(call, f"{where}.tool_calls[{index}]", names, custom, drop))
        state = calls[-1][1]
        if state is not None and (state.get("kind"), state.get("at")) != (KIND, provider_name):
            note("dropped", f"{where}.tool_calls[{index}].id", "the reasoning in it is another platform's")
    return replay(text, calls, provider_name)


def _said(message: Mapping[str, Any], where: str, drop: Drop) -> Iterator[str]:
    for part in parts_of(message.get("content"), f"{where}.content", ()):
        if not isinstance(part, Text):
            raise bad(
                f"'{part.where}' has type {part.source.get('type')!r:.60}; an assistant's content is text here.",
                f"{part.where}.type",
            )
        _SAID.part(part.source, part.where, drop)
        yield part.text
    refusal = message.get("refusal")
    if isinstance(refusal, str):
        yield refusal


def _call(call: Any, where: str, names: ToolNames, custom: set[str], drop: Drop) -> tuple[Item, dict[str, Any] | None]:
    if not isinstance(call, dict):
        raise bad(f"'{where}' must be an object.", where)
    kind = "custom" if call.get("type") == "custom" else "function"
    inner, given = call.get(kind), call.get("id")
    if call.get("type") not in (None, "function", "custom") or not isinstance(inner, dict):
        raise bad(f"'{where}' must be a call of a function or a custom tool.", f"{where}.type")
    if not isinstance(given, str) or not given:
        raise bad(f"'{where}.id' must be a non-empty string.", f"{where}.id")
    name = inner.get("name")
    if not isinstance(name, str) or not name:
        raise bad(f"'{where}.{kind}.name' must be a non-empty string.", f"{where}.{kind}.name")
    NESTED.call(call, where, drop)
    _, state = unpack(given)
    call_id = _call_id(given)
    if kind == "custom":
        custom.add(call_id)
        item = {"type": "custom_tool_call", "call_id": call_id, "name": name, "input": _as_text(inner.get("input"))}
        return item, state
    arguments = _as_text(inner.get("arguments")) or "{}"
    return {
        "type": "function_call",
        "call_id": call_id,
        "name": names.sent(name),
        "arguments": arguments,
    }, state


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else msgspec.json.encode(value).decode()


def _call_id(given: str) -> str:
    call_id = bare_id(given)
    if len(call_id) <= MAX_CALL_ID:
        return call_id
    return "call_" + hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _result(message: Mapping[str, Any], where: str, custom: set[str], drop: Drop) -> Item:
    given = message.get("tool_call_id")
    if not isinstance(given, str) or not given:
        raise bad(f"'{where}.tool_call_id' must be a non-empty string.", f"{where}.tool_call_id")
    content = message.get("content")
    output: Any = content if isinstance(content, str) else _parts(content, f"{where}.content", drop, True)
    call_id = _call_id(given)
    kind = "custom_tool_call_output" if call_id in custom else "function_call_output"
    return {"type": kind, "call_id": call_id, "output": output or ""}


def _tools(fields: Mapping[str, Any], body: Item, names: ToolNames, drop: Drop) -> bool:
    """True if there are tools of the client's own, whose calls can carry state."""
    given = fields.get("tools")
    if given is not None and not isinstance(given, list):
        raise bad("'tools' must be a list.", "tools")
    tools: list[Item] = []
    has_own = False
    for index, tool in enumerate(given or ()):
        where = f"tools[{index}]"
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind in HOSTED_TOOLS:
            tools.append(tool)
            continue
        inner = tool.get(kind) if kind in ("function", "custom") else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not inner["name"]:
            raise bad(
                f"'{where}' must be a function or custom tool with a name, or one of {', '.join(HOSTED_TOOLS)}.", where
            )
        has_own = True
        if kind == "function":
            NESTED.tool(tool, where, drop)
        else:
            NESTED.rest(tool, ("type", "custom"), where, drop)
            NESTED.rest(inner, _CUSTOM, f"{where}.custom", drop)
        tools.append(_function(inner, where, names) if kind == "function" else _custom(inner))
    search = fields.get("web_search_options")
    if search is not None:
        tools.append(_web_search(search))
    if tools:
        body["tools"] = tools
    return has_own


def _function(function: Mapping[str, Any], where: str, names: ToolNames) -> Item:
    """Chat's default is not strict, this API's is. https://platform.openai.com/docs/guides/migrate-to-responses"""
    parameters = function.get("parameters")
    is_strict = function.get("strict") is True
    if parameters is None:
        parameters = {**_NO_PARAMETERS, "additionalProperties": False} if is_strict else _NO_PARAMETERS
    if not isinstance(parameters, dict):
        raise bad(f"'{where}.function.parameters' must be an object.", f"{where}.function.parameters")
    tool: Item = {"type": "function", "name": names.sent(function["name"]), "parameters": parameters}
    if isinstance(function.get("description"), str):
        tool["description"] = function["description"]
    return {**tool, "strict": is_strict}


def _custom(custom: Mapping[str, Any]) -> Item:
    tool: Item = {"type": "custom", "name": custom["name"]}
    if isinstance(custom.get("description"), str):
        tool["description"] = custom["description"]
    form = custom.get("format")
    if isinstance(form, dict):
        grammar = form.get("grammar")
        tool["format"] = {"type": "grammar", **grammar} if isinstance(grammar, dict) else form
    return tool


def _web_search(options: Any) -> Item:
    """https://platform.openai.com/docs/guides/tools-web-search"""
    if not isinstance(options, dict):
        raise bad("'web_search_options' must be an object.", "web_search_options")
    tool: Item = {"type": "web_search"}
    if options.get("search_context_size") is not None:
        tool["search_context_size"] = options["search_context_size"]
    place = options.get("user_location")
    if isinstance(place, dict):
        inner = place.get("approximate")
        tool["user_location"] = {**(inner if isinstance(inner, dict) else {}), "type": "approximate"}
    return tool


def _tool_choice(choice: Any, body: Item, names: ToolNames, drop: Drop) -> None:
    if choice is None:
        return
    if not isinstance(choice, dict) or choice.get("type") not in HOSTED_TOOLS:
        NESTED.choice(choice, drop)
    if isinstance(choice, dict) and choice.get("type") in ("auto", "none", "required"):
        choice = choice["type"]
    if "tools" not in body:
        if choice not in ("auto", "none"):
            raise bad("'tool_choice' asks for a tool but there are no tools.", "tool_choice")
        note("dropped", "tool_choice", "there are no tools")  # the API refuses it then
        return
    if choice in ("auto", "none", "required"):
        body["tool_choice"] = choice
    elif isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        inner = choice.get("allowed_tools")
        allowed = inner.get("tools") if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or not isinstance(allowed, list):
            raise bad("'tool_choice.allowed_tools.tools' must be a list.", "tool_choice.allowed_tools")
        tools = [_chosen(tool, names) for tool in allowed]
        body["tool_choice"] = {"type": "allowed_tools", "mode": inner.get("mode") or "auto", "tools": tools}
    else:
        body["tool_choice"] = _chosen(choice, names)


def _chosen(tool: Any, names: ToolNames) -> Item:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if kind in HOSTED_TOOLS:
        return dict(tool)
    inner = tool.get(kind) if kind in ("function", "custom") else None
    name = inner.get("name") if isinstance(inner, dict) else None
    if not isinstance(name, str) or not name:
        raise bad("'tool_choice' must be auto, none, required, or name a function or custom tool.", "tool_choice")
    return {"type": kind, "name": names.sent(name) if kind == "function" else name}


def _text(fields: Mapping[str, Any], body: Item) -> None:
    """https://platform.openai.com/docs/guides/structured-outputs"""
    text: Item = {}
    wanted = fields.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if wanted is not None and kind not in ("text", "json_object", "json_schema"):
        raise bad("'response_format.type' must be text, json_object or json_schema.", "response_format")
    if kind == "json_object":
        text["format"] = {"type": kind}
    elif isinstance(wanted, dict) and kind == "json_schema":
        inner = wanted.get("json_schema")
        if not isinstance(inner, dict) or not isinstance(inner.get("schema"), dict):
            raise bad("'response_format.json_schema' needs a name and a schema.", "response_format.json_schema")
        form: Item = {
            "type": kind,
            "name": inner.get("name") or "answer",
            "schema": inner["schema"],
            "strict": inner.get("strict") is True,
        }
        if isinstance(inner.get("description"), str):
            form["description"] = inner["description"]
        text["format"] = form
    if fields.get("verbosity") is not None:
        text["verbosity"] = fields["verbosity"]
    if text:
        body["text"] = text


def _reasoning(fields: Mapping[str, Any], body: Item) -> None:
    """Summaries come only when asked for (`reasoning: {summary: auto}`): they need a verified organisation.
    https://platform.openai.com/docs/guides/reasoning#reasoning-summaries"""
    given = fields.get("reasoning")
    if given is not None and not isinstance(given, dict):
        raise bad("'reasoning' must be an object.", "reasoning")
    reasoning: Item = dict(given or {})
    if fields.get("reasoning_effort") is not None:
        reasoning["effort"] = fields["reasoning_effort"]
    if reasoning:
        body["reasoning"] = reasoning


def _logprobs(fields: Mapping[str, Any], body: Item, include: list[str]) -> None:
    if fields.get("logprobs") is True:
        include.append("message.output_text.logprobs")
    if fields.get("top_logprobs") is not None:
        body["top_logprobs"] = fields["top_logprobs"]


def _cap(call: Call, fields: Mapping[str, Any], body: Item) -> None:
    """The smaller one if the client says both. https://platform.openai.com/docs/api-reference/responses/create"""
    cap = call.edits.get("output_cap")
    if cap is None:
        given = [fields[name] for name in ("max_completion_tokens", "max_tokens") if fields.get(name) is not None]
        for value in given:
            if type(value) is not int:
                raise bad("'max_completion_tokens' must be a whole number.", "max_completion_tokens")
        cap = min(given, default=None)
    if cap is not None:
        body["max_output_tokens"] = cap
