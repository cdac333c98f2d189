"""An OpenAI chat request as an Anthropic Messages request: everything but the message contents.

Neighbours: `anthropic_content` (messages), `anthropic_tools`, `anthropic` (the provider). Pure functions of the call:
the same request twice gives the same bytes.
https://platform.claude.com/docs/en/api/messages/create
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from sidecar.translate.chat_fields import reasoning_effort
from sidecar.translate.content import bad
from sidecar.translate.fields import dropper
from sidecar.translate.losses import is_asked, note
from sidecar.translate.provider import Call, Provider, select_params
from sidecar.translate.providers.anthropic_content import Block, convert_messages, tool_name
from sidecar.translate.providers.anthropic_models import ModelTraits, traits
from sidecar.translate.providers.anthropic_tools import set_tools, strict_schema

DEFAULT_MAX_TOKENS = 4096
THINKING_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16384, "xhigh": 24576, "max": 32000}
"""`reasoning_effort` for models that take a thinking budget instead of an effort."""
MIN_THINKING_BUDGET = 1024
JSON_TOOL = "respond_in_json"
"""The tool a model is made to call when it has no native JSON output; its input becomes the answer's content."""

_MAIL_OR_PHONE = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+|(?=(?:\D*\d){7})[+()\-.\s\d]{7,}")
_DONE = (
    "stream", "stream_options", "model", "max_tokens", "max_completion_tokens", "anthropic_beta",
    "structured_output", "base_model",
)  # fmt: skip


class RequestPlan:
    """The request body and what the answer's translation has to know about it."""

    __slots__ = ("body", "dropped", "json_tool")

    def __init__(self) -> None:
        self.body: dict[str, Any] = {}
        self.dropped: list[str] = []
        self.json_tool: str | None = None


def json_tool_name(payload: Mapping[str, Any]) -> str:
    """A name for the JSON tool that is none of the client's."""
    taken = {original for original, _ in _function_names(payload)}
    name = JSON_TOOL
    while name in taken:
        name += "_"
    return name


def _function_names(payload: Mapping[str, Any]) -> list[tuple[str, str]]:
    tools = payload.get("tools")
    names: list[tuple[str, str]] = []
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function") if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if isinstance(name, str) and name:
            names.append((name, tool_name(name, "tools")))
    return names


def original_names(payload: Mapping[str, Any]) -> dict[str, str]:
    """Sent tool name → the client's, for those that differ."""
    return {sent: original for original, sent in _function_names(payload) if sent != original}


def uses_json_tool(call: Call) -> bool:
    """True if the client's response_format is served by a forced tool."""
    response_format = call.payload.get("response_format", call.params.get("response_format"))
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    if kind == "json_object":
        return True
    return kind == "json_schema" and _native_schema(call, response_format) is None


def build(provider: Provider, call: Call) -> RequestPlan:
    """Raises `BadRequestError` naming the field that cannot be sent."""
    plan = RequestPlan()
    fields, plan.dropped = select_params(provider, call)

    drop = dropper(provider, call, plan.dropped)
    model = call.edits.get("model", call.model)
    model_traits = traits(model)
    system, turns = convert_messages(fields.pop("messages", None), drop)
    body = plan.body
    body["model"] = model
    body["max_tokens"] = 0  # its place; set by set_thinking
    if system:
        body["system"] = system
    body["messages"] = turns

    search = fields.pop("web_search_options", None) if "web_search_options" in provider.params else None
    set_tools(fields, body, plan.dropped, turns, model_traits, search, drop)
    if _resumes_unthinking(fields, turns, model_traits):
        del fields["reasoning_effort"]
        plan.dropped.append("reasoning_effort")
    is_thinking = set_thinking(call, fields, body, model_traits, drop)
    if (
        is_asked()
        and call.edits.get("output_cap") is None
        and not {"max_tokens", "max_completion_tokens"} & fields.keys()
    ):
        note("capped", "max_tokens", f"none asked for, and Claude needs one: {body['max_tokens']}")
    _response_format(call, fields, plan, is_thinking, drop)
    _sampling(fields, body, model_traits, drop)
    _stop(fields, body, drop)
    _metadata(fields, body, drop)
    if call.is_stream:
        body["stream"] = True
    for name in _DONE:
        fields.pop(name, None)
    if "n" not in call.allowed_params:
        fields.pop("n", None)
    cache = fields.pop("cache_control", None)
    if isinstance(cache, dict):
        body["cache_control"] = cache
    elif cache is not None:
        raise bad("'cache_control' must be an object.", "cache_control")
    body.update(fields)  # top_k and the deployment's own, which are Anthropic's already
    return plan


def _resumes_unthinking(fields: Mapping[str, Any], turns: list[Block], model: ModelTraits) -> bool:
    """True if thinking with a budget is asked for amid a tool loop whose calls came without (from another provider, or
    from a client that cut the ids): Claude refuses that, so it thinks again from the next question on.
    https://platform.claude.com/docs/en/build-with-claude/extended-thinking#toggling-thinking-modes-in-conversations"""
    if fields.get("reasoning_effort") is None or fields.get("thinking") is not None or model.has_adaptive_thinking:
        return False
    if len(turns) < 2 or turns[-1]["content"][0]["type"] != "tool_result":
        return False
    return not turns[-2]["content"][0]["type"].endswith("thinking")


def token_cap(name: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise bad(f"'{name}' must be a whole number of at least 1.", name)
    return value


def set_thinking(call: Call, fields: dict[str, Any], body: dict[str, Any], model: ModelTraits, drop: Any) -> bool:
    """Sets max_tokens and thinking; True if the model will think."""
    caps = [
        token_cap(name, fields[name])
        for name in ("max_completion_tokens", "max_tokens")
        if fields.get(name) is not None
    ]
    given = min(caps) if caps else None
    cap = call.edits.get("output_cap")
    limit = cap if cap is not None else given
    effort = reasoning_effort(fields)
    thinking = fields.pop("thinking", None)
    config: dict[str, Any] = {}
    if isinstance(fields.get("output_config"), dict):
        config = dict(fields.pop("output_config"))
    if thinking is not None:
        if not isinstance(thinking, dict) or not isinstance(thinking.get("type"), str):
            raise bad("'thinking' must be an object with a type.", "thinking")
    elif effort is not None:
        if effort != "none" and not model.has_thinking:
            drop("reasoning_effort", "This model does not think; remove the field.")
        elif body.get("tool_choice", {}).get("type") in ("any", "tool") and effort != "none":
            drop("reasoning_effort", "Claude cannot think when tool_choice forces a tool; remove one of the two.")
        elif model.has_adaptive_thinking:
            if effort == "none":
                thinking = {"type": "disabled"}
            elif effort == "xhigh" and not model.has_xhigh_effort:
                drop("reasoning_effort", "This model has no effort xhigh; say high or max.")
            else:
                thinking = {"type": "adaptive"}
                config["effort"] = "low" if effort == "minimal" else effort
        elif effort != "none":
            thinking = {"type": "enabled", "budget_tokens": THINKING_BUDGETS[effort]}
    budget = thinking.get("budget_tokens") if thinking is not None else None
    if limit is None:
        limit = call.max_output_tokens or (DEFAULT_MAX_TOKENS + (budget if type(budget) is int else 0))
    if type(budget) is int and budget >= limit and (effort is not None or cap is not None):
        # The budget was ours, or the cap is: think as much as fits.
        if limit <= MIN_THINKING_BUDGET:
            raise bad(
                f"thinking needs more than {MIN_THINKING_BUDGET} output tokens, but at most {limit} are allowed.",
                "max_completion_tokens",
            )
        thinking = {**(thinking or {}), "budget_tokens": max(MIN_THINKING_BUDGET, limit - 1)}
        note("capped", "reasoning_effort", f"{budget} tokens of thinking cut to {thinking['budget_tokens']}")
    body["max_tokens"] = limit
    if thinking is not None:
        body["thinking"] = thinking
    if config:
        body["output_config"] = config
    return thinking is not None and thinking.get("type") != "disabled"


def _schema_of(response_format: Mapping[str, Any]) -> dict[str, Any]:
    inner = response_format.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if not isinstance(schema, dict):
        raise bad("'response_format.json_schema.schema' must be an object.", "response_format.json_schema.schema")
    return schema


def _native_schema(call: Call, response_format: Mapping[str, Any]) -> dict[str, Any] | None:
    """The schema for `output_config.format`, or `None` if the model, the deployment (`structured_output: tool` in its
    `params`) or the schema wants the tool instead."""
    if call.params.get("structured_output") == "tool":
        return None
    if not traits(call.edits.get("model", call.model)).has_native_schema:
        return None
    return strict_schema(_schema_of(response_format), "response_format.json_schema.schema")


def _response_format(call: Call, fields: dict[str, Any], plan: RequestPlan, is_thinking: bool, drop: Any) -> None:
    value = fields.pop("response_format", None)
    if value is None:
        return
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return
    if kind not in ("json_object", "json_schema"):
        raise bad("'response_format.type' must be text, json_object or json_schema.", "response_format.type")
    body = plan.body
    description = "Answer with this tool: its input is your whole answer."
    schema: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": True}
    if kind == "json_schema":
        native = _native_schema(call, value)
        if native is not None:
            body["output_config"] = {
                **body.get("output_config", {}),
                "format": {"type": "json_schema", "schema": native},
            }
            return
        schema = _schema_of(value)
        if schema.get("type") != "object":
            if schema.get("type") is not None:
                where = "response_format.json_schema.schema"
                raise bad(f"'{where}' must have type object.", where)
            schema = {**schema, "type": "object"}
        inner = value["json_schema"]
        if isinstance(inner.get("description"), str) and inner["description"]:
            description = inner["description"]
    plan.json_tool = json_tool_name(call.payload)
    note("replaced", "response_format", f"by the tool {plan.json_tool}, whose input becomes the content")
    has_tools = bool(body.get("tools")) and body.get("tool_choice", {}).get("type") != "none"
    body["tools"] = [
        *body.get("tools", ()),
        {"name": plan.json_tool, "description": description, "input_schema": schema},
    ]
    if is_thinking:
        body["tool_choice"] = {"type": "auto"}  # thinking models refuse a forced tool
    elif not has_tools:
        body["tool_choice"] = {"type": "tool", "name": plan.json_tool, "disable_parallel_tool_use": True}
    elif body.get("tool_choice", {}).get("type") != "tool":
        body["tool_choice"] = {**body.get("tool_choice", {}), "type": "any"}


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise bad(f"'{name}' must be a number.", name)
    return value


def _sampling(fields: dict[str, Any], body: dict[str, Any], model: ModelTraits, drop: Any) -> None:
    for name in ("temperature", "top_p"):
        value = fields.pop(name, None)
        if value is None:
            continue
        value = _number(name, value)
        if not model.takes_sampling:
            if value != 1:
                drop(name, "This model takes only its own sampling; remove the field.")
        elif value > 1:
            drop(name, "Anthropic takes values from 0 to 1; send at most 1.")
        else:
            body[name] = value
    top_k = fields.pop("top_k", None)
    if top_k is not None:
        if type(top_k) is not int:
            raise bad("'top_k' must be a whole number.", "top_k")
        if model.takes_sampling:
            body["top_k"] = top_k
        else:
            drop("top_k", "This model takes only its own sampling; remove the field.")


def _stop(fields: dict[str, Any], body: dict[str, Any], drop: Any) -> None:
    stop = fields.pop("stop", None)
    if stop is None:
        return
    sequences = [stop] if isinstance(stop, str) else stop
    if not isinstance(sequences, list) or not all(isinstance(item, str) for item in sequences):
        raise bad("'stop' must be a string or a list of strings.", "stop")
    kept = [item for item in sequences if item.strip()]
    if len(kept) != len(sequences):
        drop("stop", "Anthropic takes no stop sequence of white space only; leave it out.")
    if kept:
        body["stop_sequences"] = kept


def _metadata(fields: dict[str, Any], body: dict[str, Any], drop: Any) -> None:
    user = fields.pop("user", None)
    identifier = fields.pop("safety_identifier", None)
    metadata = fields.pop("metadata", None)
    if isinstance(metadata, dict):
        for key in metadata.keys() - {"user_id"}:
            drop(f"metadata.{key}", "Anthropic's metadata holds user_id only; remove the others.")
    elif metadata is not None:
        raise bad("'metadata' must be an object.", "metadata")
    value = user if user is not None else identifier
    name = "user" if user is not None else "safety_identifier"
    if value is None and isinstance(metadata, dict):
        value, name = metadata.get("user_id"), "metadata.user_id"
    if value is not None:
        if not isinstance(value, str):
            raise bad(f"'{name}' must be a string.", name)
        body["metadata"] = {"user_id": opaque_user(value)}
    tier = fields.pop("service_tier", None)
    if tier in ("auto", "standard_only"):
        body["service_tier"] = tier
    elif tier == "default":
        body["service_tier"] = "standard_only"
    elif tier is not None:
        drop("service_tier", "Anthropic has auto and default.")


def opaque_user(value: str) -> str:
    """Anthropic wants an opaque id and refuses mail addresses and phone numbers: those, and ids over 256 characters,
    are sent as their SHA-256."""
    if len(value) > 256 or _MAIL_OR_PHONE.fullmatch(value):
        note("replaced", "user", "by its SHA-256: the vendor refuses mail addresses, phone numbers and long ids")
        return hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
    return value
