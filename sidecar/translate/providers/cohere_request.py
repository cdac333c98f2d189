"""An OpenAI chat request as a Cohere v2 chat request.

Neighbours: `cohere` (the provider), `chat_fields` and `content` (what is shared). Pure functions of the call: the same
request twice gives the same bytes.
https://docs.cohere.com/reference/chat · https://docs.cohere.com/docs/tool-use-overview
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import msgspec

from sidecar.translate.chat_fields import (
    Fields,
    function_tools,
    json_format,
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
    Part,
    Text,
    bad,
    messages_of,
    parts_of,
    tool_calls_of,
)
from sidecar.translate.fields import Drop, dropper
from sidecar.translate.losses import note
from sidecar.translate.nested import NestedFields
from sidecar.translate.provider import Call, Provider, select_params
from sidecar.translate.schema import rewrite
from sidecar.translate.schema_rules import COHERE as STRICT_SCHEMA
from sidecar.translate.schema_rules import COHERE_TOOL as TOOL_SCHEMA
from sidecar.translate.signatures import bare_id
from sidecar.translate.tool_names import COHERE as NAMES
from sidecar.translate.tool_names import ToolNames, tool_names

MAX_STOPS = 5
MAX_P = 0.99
"""`p` ends there; OpenAI's `top_p` of 1 is sent so. Left out it would be 0.75."""
THINKING_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192}
"""More effort than that has no budget but the model's own."""

_RENAMED = {"top_p": "p", "top_k": "k"}
_NUMBERS = ("temperature", "top_p", "top_k", "seed", "frequency_penalty", "presence_penalty")
_DONE = ("stream", "stream_options", "model")
NESTED = NestedFields("Cohere", tool_result=("is_error",))


def build(provider: Provider, call: Call, model: str) -> tuple[Fields, list[str]]:
    """(body, names left out by policy). Raises `BadRequestError` naming the field that cannot be sent."""
    fields, dropped = select_params(provider, call)
    drop = dropper(provider, call, dropped, hints=("cache_control",))
    names = tool_names(call.payload, NAMES)
    body: Fields = {"model": model, "stream": call.is_stream}
    body["messages"] = _Messages(names, drop).take(fields.pop("messages", None))
    _tools(fields, body, names, dropped, drop)
    _response_format(fields, body, drop)
    cap = output_cap(call, fields)
    if cap is not None:
        body["max_tokens"] = cap
    _thinking(fields, body)
    found = stops(fields)
    if len(found) > MAX_STOPS:
        raise bad(f"'stop' has {len(found)} sequences; Cohere takes {MAX_STOPS}.", "stop")
    if found:
        body["stop_sequences"] = found
    if not isinstance(fields.get("logprobs", False), bool):
        raise bad("'logprobs' must be true or false.", "logprobs")
    if fields.get("logprobs") is False:
        del fields["logprobs"]
    numbers({name: call.payload.get(name) for name in _NUMBERS}, _NUMBERS)
    for name in _DONE:
        fields.pop(name, None)
    if fields.get("top_p", 0) > MAX_P:
        note("capped", "top_p", f"{fields['top_p']} is sent as {MAX_P}")
        fields["top_p"] = MAX_P
    for name, value in fields.items():
        body[_RENAMED.get(name, name)] = value
    return body, dropped


def _tools(fields: Fields, body: Fields, names: ToolNames, dropped: list[str], drop: Drop) -> None:
    tools = function_tools(fields, names, drop, "Cohere", NESTED)
    NESTED.choice(fields.get("tool_choice"), drop)
    kept, mode, _ = tool_choice(fields, tools, names)
    if not kept:
        return
    strict = all(tool.is_strict for tool in kept)
    if not strict:  # it holds for all tools or none; the SDKs ask for it by themselves, so it is no reason to refuse
        dropped += [f"{tool.where}.function.strict" for tool in kept if tool.is_strict]
    sent = []
    for tool in kept:
        place = f"{tool.where}.function.parameters"
        schema = rewrite(tool.schema, STRICT_SCHEMA if strict else TOOL_SCHEMA, tool=tool.name, where=place).schema
        function: Fields = {"name": tool.name, "parameters": schema}
        if tool.description:
            function["description"] = tool.description
        sent.append({"type": "function", "function": function})
    body["tools"] = sent
    if strict:
        body["strict_tools"] = True
    if mode in ("none", "required"):
        body["tool_choice"] = mode.upper()


def _response_format(fields: Fields, body: Fields, drop: Drop) -> None:
    """Beside tools and documents Cohere refuses it. https://docs.cohere.com/docs/structured-outputs"""
    wanted = json_format(fields)
    if wanted is None:
        return
    if "tools" in body or fields.get("documents"):
        drop("response_format", "At Cohere JSON output cannot stand beside tools or documents; send one of the two.")
        return
    body["response_format"] = {"type": "json_object"}
    if wanted.schema is not None:
        schema = rewrite(wanted.schema, STRICT_SCHEMA, where=wanted.where).schema
        body["response_format"]["json_schema"] = schema


def _thinking(fields: Fields, body: Fields) -> None:
    """https://docs.cohere.com/docs/reasoning"""
    effort = reasoning_effort(fields)
    given = fields.pop("thinking", None)
    if given is not None:
        kind = given.get("type") if isinstance(given, dict) else None
        if kind not in ("enabled", "disabled", "adaptive"):
            raise bad("'thinking' must be an object with type enabled, adaptive or disabled.", "thinking")
        body["thinking"] = {"type": "disabled" if kind == "disabled" else "enabled"}
        budget = given.get("budget_tokens", given.get("token_budget"))
        if budget is not None and kind != "disabled":
            if type(budget) is not int or budget < 1:
                raise bad("'thinking.budget_tokens' must be a whole number of at least 1.", "thinking.budget_tokens")
            body["thinking"]["token_budget"] = budget
    elif effort == "none":
        body["thinking"] = {"type": "disabled"}
    elif effort is not None:
        budget = THINKING_BUDGETS.get(effort)
        body["thinking"] = {"type": "enabled", **({} if budget is None else {"token_budget": budget})}


class _Messages:
    def __init__(self, names: ToolNames, drop: Drop) -> None:
        self._names = names
        self._drop = drop
        self._sent: list[Fields] = []
        self._system: list[str] = []

    def take(self, messages: Any) -> list[Fields]:
        for role, message, where in messages_of(messages):
            NESTED.message(role, message, where, self._drop)
            if role in ("system", "developer"):
                self._take_system(message, where)
            elif role == "user":
                self._sent.append({"role": "user", "content": self._user(message.get("content"), f"{where}.content")})
            elif role == "assistant":
                self._take_assistant(message, where)
            else:
                self._sent.append(self._result(message, where))
        if self._system:
            return [{"role": "system", "content": "\n\n".join(self._system)}, *self._sent]
        if not self._sent:
            raise bad("'messages' holds no message with content.", "messages")
        return self._sent

    def _take_system(self, message: Mapping[str, Any], where: str) -> None:
        """The first ones are one message; Cohere has its system turn first or not at all, so a later one is said by
        the user, in tags."""
        text = self._text(message.get("content"), f"{where}.content")
        if not text:
            return
        if self._sent:
            note("replaced", where, "a later system message is said by the user, in <system> tags")
            self._sent.append({"role": "user", "content": f"<system>\n{text}\n</system>"})
        else:
            self._system.append(text)

    def _text(self, content: Any, where: str) -> str:
        texts = []
        for part in parts_of(content, where, ()):
            NESTED.part(part.source, part.where, self._drop)
            if isinstance(part, Text):
                texts.append(part.text)
            else:
                self._drop(part.where, "Only text can stand here; remove it.")
        return "\n\n".join(filter(None, texts)) if len(texts) > 1 else "".join(texts)

    def _user(self, content: Any, where: str) -> str | list[Fields]:
        if isinstance(content, str):
            return content
        parts = [self._part(part) for part in parts_of(content, where, ("image_url", "file"))]
        return [part for part in parts if part is not None] or ""

    def _part(self, part: Part) -> Fields | None:
        NESTED.part(part.source, part.where, self._drop)
        if isinstance(part, Text):
            return {"type": "text", "text": part.text}
        if isinstance(part, Image):
            image: Fields = {"url": part.url or f"data:{part.media_type};base64,{part.data}"}
            if part.detail is not None:
                if part.detail not in ("auto", "low", "high"):
                    self._drop(f"{part.where}.image_url.detail", "Cohere has auto, low and high.")
                else:
                    image["detail"] = part.detail
            return {"type": "image_url", "image_url": image}
        if isinstance(part, File) and part.data and part.media_type in TEXT_TYPES:
            try:
                text = base64.b64decode(part.data, validate=True).decode("utf-8")
            except (binascii.Error, ValueError):
                raise bad(f"'{part.where}.file.file_data' is not UTF-8 text in base64.", part.where) from None
            return {"type": "text", "text": f"<document name={part.filename or 'file'!r:.200}>\n{text}\n</document>"}
        self._drop(part.where, "Cohere reads text, pictures and text files; send the content in one of these.")
        return None

    def _take_assistant(self, message: Mapping[str, Any], where: str) -> None:
        text = self._text(message.get("content"), f"{where}.content")
        refusal = message.get("refusal")
        if isinstance(refusal, str):
            text = "\n\n".join(filter(None, (text, refusal)))
        thought = message.get("reasoning_content")
        given = list(tool_calls_of(message, where))
        for call in given:
            NESTED.call(call.source, call.where, self._drop)
        calls = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": self._names.sent(call.name), "arguments": _arguments(call.source, call.arguments)},
            }
            for call in given
        ]
        sent: Fields = {"role": "assistant"}
        if isinstance(thought, str) and thought:
            sent["content"] = [{"type": "thinking", "thinking": thought}]
            if text and not calls:
                sent["content"].append({"type": "text", "text": text})
        elif text and not calls:
            sent["content"] = text
        if calls:
            if text:
                sent["tool_plan"] = text
            sent["tool_calls"] = calls
        if len(sent) > 1:
            self._sent.append(sent)
        else:
            note("dropped", where, "the assistant says nothing in it")

    def _result(self, message: Mapping[str, Any], where: str) -> Fields:
        given = message.get("tool_call_id")
        if not isinstance(given, str) or not given:
            raise bad(f"'{where}.tool_call_id' must be a non-empty string.", f"{where}.tool_call_id")
        text = self._text(message.get("content"), f"{where}.content")
        content: Any = text
        if message.get("is_error") is True:
            content = [{"type": "document", "document": {"data": {"error": text}}}]
        return {"role": "tool", "tool_call_id": bare_id(given), "content": content}


def _arguments(source: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    """The client's own bytes where they are an object."""
    given = source["function"].get("arguments")
    if isinstance(given, str) and given.strip() and "malformed_arguments" not in arguments:
        return given
    return msgspec.json.encode(arguments).decode()
