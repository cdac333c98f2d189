"""An OpenAI chat request as a request to Ollama's own chat API.

Neighbours: `ollama` (the provider), `chat_fields` and `content` (what is shared). Pure functions of the call.
https://docs.ollama.com/api/chat · https://docs.ollama.com/modelfile#valid-parameters-and-values
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

from sidecar.translate.chat_fields import (
    Fields,
    function_tools,
    json_format,
    logprob_fields,
    numbers,
    output_cap,
    reasoning_effort,
    stops,
    tool_choice,
)
from sidecar.translate.content import (
    TEXT_TYPES,
    File,
    Image,
    Text,
    bad,
    messages_of,
    parts_of,
    tool_calls_of,
)
from sidecar.translate.fields import Drop, dropper
from sidecar.translate.inline import inlined
from sidecar.translate.losses import note
from sidecar.translate.nested import NestedFields
from sidecar.translate.provider import Call, Provider, select_params
from sidecar.translate.schema import rewrite
from sidecar.translate.schema_rules import OLLAMA as SCHEMA
from sidecar.translate.signatures import bare_id
from sidecar.translate.tool_names import NameRules, ToolNames

LEVELS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
"""Models without levels take any of them for true. https://docs.ollama.com/capabilities/thinking"""

_ANY_NAME = NameRules(re.compile(r"[\s\S]+"), re.compile(r"[^\s\S]"), 1 << 16)
_TOP = ("keep_alive", "truncate", "shift")
_NUMBERS = ("temperature", "top_p", "top_k", "min_p", "seed", "frequency_penalty", "presence_penalty")
_DONE = ("stream", "stream_options", "model")
NESTED = NestedFields("Ollama")


def build(provider: Provider, call: Call, model: str) -> tuple[Fields, list[str]]:
    """(body, names left out by policy). Raises `BadRequestError` naming the field that cannot be sent."""
    fields, dropped = select_params(provider, call)
    drop = dropper(provider, call, dropped, hints=("cache_control",))
    body: Fields = {"model": model, "messages": []}
    body["messages"] = _Messages(drop).take(inlined(call.payload, call.media).get("messages"))
    fields.pop("messages", None)
    body["stream"] = call.is_stream
    _tools(fields, body, dropped, drop)
    wanted = json_format(fields)
    if wanted is not None:
        schema = wanted.schema
        body["format"] = "json" if schema is None else rewrite(schema, SCHEMA, where=wanted.where).schema
    _think(fields, body)
    asks, top = logprob_fields(fields)
    if asks:
        body["logprobs"] = True
        if top:
            body["top_logprobs"] = top
    options: Fields = {}
    cap = output_cap(call, fields)
    if cap is not None:
        options["num_predict"] = cap
    if found := stops(fields):
        options["stop"] = found
    numbers({name: call.payload.get(name) for name in _NUMBERS}, _NUMBERS)
    for name in _DONE:
        fields.pop(name, None)
    for name in _TOP:
        if name in fields:
            body[name] = fields.pop(name)
    own = fields.pop("options", None)
    options = {**(own if isinstance(own, dict) else {}), **fields, **options}  # num_ctx and the like as Ollama has them
    if options:
        body["options"] = options
    return body, dropped


def _tools(fields: Fields, body: Fields, dropped: list[str], drop: Drop) -> None:
    names = ToolNames((), _ANY_NAME)
    tools = function_tools(fields, names, drop, "Ollama", NESTED)
    NESTED.choice(fields.get("tool_choice"), drop)
    kept, mode, _ = tool_choice(fields, tools, names)
    if mode == "required":
        drop("tool_choice", "Ollama calls tools as its model thinks fit; send auto or none.")
        kept = tools
    if mode == "none" or not kept:
        return
    # The SDKs ask for it by themselves, so it is no reason to refuse.
    dropped += [f"{tool.where}.function.strict" for tool in kept if tool.is_strict]
    body["tools"] = [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": rewrite(
                    tool.schema, SCHEMA, tool=tool.name, where=f"{tool.where}.function.parameters"
                ).schema,
            },
        }
        for tool in kept
    ]


def _think(fields: Fields, body: Fields) -> None:
    effort = reasoning_effort(fields)
    thinking, think = fields.pop("thinking", None), fields.pop("think", None)
    if think is not None:
        if not isinstance(think, (bool, str)):
            raise bad("'think' must be true, false or a level.", "think")
        body["think"] = think
    elif thinking is not None:
        kind = thinking.get("type") if isinstance(thinking, dict) else None
        if kind not in ("enabled", "disabled", "adaptive"):
            raise bad("'thinking' must be an object with type enabled, adaptive or disabled.", "thinking")
        body["think"] = kind != "disabled"
    elif effort is not None:
        body["think"] = LEVELS.get(effort, False)
        if body["think"] not in (effort, False):
            note("replaced", "reasoning_effort", f"{effort} is sent as {body['think']}")


class _Messages:
    def __init__(self, drop: Drop) -> None:
        self._drop = drop
        self._names: dict[str, str] = {}  # of the calls so far, by id

    def take(self, messages: Any) -> list[Fields]:
        return [self._message(role, message, where) for role, message, where in messages_of(messages)]

    def _message(self, role: str, message: Mapping[str, Any], where: str) -> Fields:
        NESTED.message(role, message, where, self._drop)
        sent: Fields = {"role": "system" if role == "developer" else role}
        sent["content"], images = self._content(message.get("content"), f"{where}.content")
        if images:
            sent["images"] = images
        if role == "assistant":
            self._assistant(message, sent, where)
        elif role == "tool":
            given = message.get("tool_call_id")
            if not isinstance(given, str) or not given:
                raise bad(f"'{where}.tool_call_id' must be a non-empty string.", f"{where}.tool_call_id")
            own = bare_id(given)
            name = self._names.get(own, message.get("name"))
            if isinstance(name, str) and name:
                sent["tool_name"] = name
            sent["tool_call_id"] = own
        return sent

    def _assistant(self, message: Mapping[str, Any], sent: Fields, where: str) -> None:
        refusal, thought = message.get("refusal"), message.get("reasoning_content")
        if isinstance(refusal, str):
            sent["content"] = "\n".join(filter(None, (sent["content"], refusal)))
        if isinstance(thought, str) and thought:
            sent["thinking"] = thought
        calls = []
        for index, call in enumerate(tool_calls_of(message, where)):
            NESTED.call(call.source, call.where, self._drop)
            self._names[call.id] = call.name
            calls.append({"id": call.id, "function": {"index": index, "name": call.name, "arguments": call.arguments}})
        if calls:
            sent["tool_calls"] = calls

    def _content(self, content: Any, where: str) -> tuple[str, list[str]]:
        if isinstance(content, str):
            return content, []
        texts: list[str] = []
        images: list[str] = []
        for part in parts_of(content, where, ("image_url", "file")):
            NESTED.part(part.source, part.where, self._drop)
            if isinstance(part, Text):
                texts.append(part.text)
            elif isinstance(part, Image) and part.data:
                if part.detail not in (None, "auto"):
                    self._drop(f"{part.where}.image_url.detail", "Ollama has no such setting; remove it.")
                images.append(part.data)
            elif isinstance(part, File) and part.data and part.media_type.startswith("image/"):
                images.append(part.data)
            elif isinstance(part, File) and part.data and part.media_type in TEXT_TYPES:
                texts.append(_text_of(part))
            else:
                self._drop(part.where, "Ollama reads text, pictures and text files; send the content in one of these.")
        return "\n".join(texts), images


def _text_of(part: File) -> str:
    try:
        text = base64.b64decode(part.data, validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        raise bad(f"'{part.where}.file.file_data' is not UTF-8 text in base64.", part.where) from None
    return f"<document name={part.filename or 'file'!r:.200}>\n{text}\n</document>"
