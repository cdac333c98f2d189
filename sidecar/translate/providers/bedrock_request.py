"""An OpenAI chat request as a Converse request: everything but the message contents.

Neighbours: `bedrock_content` (messages), `bedrock` (the provider), `bedrock_models` (what a model can do). What only
Claude, Nova or gpt-oss know goes into `additionalModelRequestFields`, in their own words.
https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from sidecar.translate.chat_fields import reasoning_effort
from sidecar.translate.content import bad
from sidecar.translate.fields import dropper
from sidecar.translate.losses import note
from sidecar.translate.provider import Call, Provider, select_params
from sidecar.translate.providers.anthropic_request import json_tool_name, set_thinking, token_cap
from sidecar.translate.providers.bedrock_content import Contents, cache_point, called_tools, flat
from sidecar.translate.providers.bedrock_media import Block, Drop
from sidecar.translate.providers.bedrock_models import BedrockModel, known_model, model_of, wants_tool_for_json
from sidecar.translate.providers.bedrock_tools import NOTHING, choose, object_schema, tool_config
from sidecar.translate.schema import rewrite
from sidecar.translate.schema_rules import BEDROCK_STRICT
from sidecar.translate.tool_names import BEDROCK as BEDROCK_NAMES
from sidecar.translate.tool_names import ToolNames, tool_names

OPERATORS_FIELDS = (
    "guardrailConfig", "performanceConfig", "promptVariables", "additionalModelResponseFieldPaths", "outputConfig",
)  # fmt: skip
"""What a deployment's `params` may set and a client may not: a guardrail that clients choose is none."""

_LOW_TO_HIGH = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
_TIERS = ("default", "flex", "priority", "reserved")
_META_KEY = re.compile(r"[a-zA-Z0-9\s:_@$#=/+,\-.]{1,256}")
_META_VALUE = re.compile(r"[a-zA-Z0-9\s:_@$#=/+,\-.]{0,256}")
_NOT_ENFORCED = ("/additionalProperties", "/$ref", "/patternProperties")


class RequestPlan:
    """The request body and what the answer's translation has to know about it."""

    __slots__ = ("body", "dropped", "extra", "json_tool")

    def __init__(self) -> None:
        self.body: dict[str, Any] = {}
        self.extra: dict[str, Any] = {}
        self.dropped: list[str] = []
        self.json_tool: str | None = None


def names_for(call: Call) -> ToolNames:
    return tool_names(call.payload, BEDROCK_NAMES)


def uses_json_tool(call: Call) -> bool:
    """True if the client's response_format is served by a forced tool."""
    value = call.payload.get("response_format", call.params.get("response_format"))
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in ("json_object", "json_schema") or not model_of(known_model(call)).takes_tool_choice:
        return False
    return kind == "json_object" or _native_schema(call, value) is None


def build(provider: Provider, call: Call) -> RequestPlan:
    """Raises `BadRequestError` naming the field that cannot be sent."""
    plan = RequestPlan()
    fields, plan.dropped = select_params(provider, call)

    drop = dropper(provider, call, plan.dropped)
    model = model_of(known_model(call))
    names = names_for(call)
    extra = fields.pop("additionalModelRequestFields", None)
    plan.extra = dict(extra) if isinstance(extra, dict) else {}
    messages = fields.pop("messages", None)
    config, choice = tool_config(fields, plan.dropped, model, names, drop)
    contents = Contents(call, model, names, drop, rendered=config is None and model.family != "claude")
    system, turns = contents.convert(messages)
    if config is None and model.family == "claude" and (used := called_tools(turns)):
        # Converse wants the tools of a conversation defined even if none may be called any more.
        config = {"tools": [{"toolSpec": {"name": name, "inputSchema": {"json": NOTHING}}} for name in used]}
        choice = {"type": "none"}

    body = plan.body
    if system:
        body["system"] = flat(system)
    body["messages"] = turns
    _cache_all(fields, turns, model, drop)
    if config is None:
        config, choice = {"tools": []}, None
    is_thinking = _reasoning(call, fields, plan, turns, choice, model, drop)
    choice = _response_format(call, fields, plan, config, choice, is_thinking, model, drop)
    if config["tools"]:
        body["toolConfig"] = config
        choose(plan.extra, config, choice, model)
    _sampling(fields, plan, model, drop)
    _stop(fields, plan, model, drop)
    metadata = request_metadata(fields, drop)
    if metadata:
        body["requestMetadata"] = metadata
    tier = service_tier(fields, drop)
    if tier is not None:
        body["serviceTier"] = {"type": tier}
    for name in OPERATORS_FIELDS:
        value = fields.pop(name, None)
        if isinstance(value, dict):
            body[name] = {**value, **body.get(name, {})}
        elif value is not None:
            body[name] = value
    betas = fields.pop("anthropic_beta", None)
    if betas:
        plan.extra["anthropic_beta"] = [betas] if isinstance(betas, str) else betas
    for name in _DONE:
        fields.pop(name, None)
    if "n" not in call.allowed_params:
        fields.pop("n", None)
    for name, value in fields.items():  # the deployment's own, in the model's words
        plan.extra.setdefault(name, value)
    if plan.extra:
        body["additionalModelRequestFields"] = plan.extra
    for turn in turns:
        turn["content"] = flat(turn["content"])
    return plan


_DONE = (
    "stream", "stream_options", "model", "max_tokens", "max_completion_tokens", "base_model", "structured_output",
)  # fmt: skip


def _cache_all(fields: dict[str, Any], turns: list[Block], model: BedrockModel, drop: Drop) -> None:
    """`cache_control` of the whole request: the prompt up to its end."""
    cache = fields.pop("cache_control", None)
    if cache is None:
        return
    point = cache_point(cache, "request")
    if model.takes_cache_points:
        turns[-1]["content"][-1].setdefault("cache_control", point)
    else:
        drop("cache_control", "This model caches no prompts; remove it.")


def _reasoning(
    call: Call, fields: dict[str, Any], plan: RequestPlan, turns: list[Block], choice: dict[str, Any] | None,
    model: BedrockModel, drop: Drop,
) -> bool:  # fmt: skip
    """Sets maxTokens and what makes the model think; True if Claude will. Without any cap Bedrock takes the model's."""
    inference: dict[str, Any] = {}
    if model.claude is not None:
        if _resumes_unthinking(fields, turns, model):
            del fields["reasoning_effort"]
            plan.dropped.append("reasoning_effort")
        said: dict[str, Any] = {} if choice is None else {"tool_choice": choice}
        is_thinking = set_thinking(call, fields, said, model.claude, drop)
        thinking = said.get("thinking")
        plan.extra.update({name: said[name] for name in ("thinking", "output_config") if name in said})
        has_budget = isinstance(thinking, dict) and "budget_tokens" in thinking
        if has_budget or _is_capped(call, fields):
            inference["maxTokens"] = said["max_tokens"]
    else:
        is_thinking = False
        names = ("max_completion_tokens", "max_tokens")
        caps = [token_cap(name, fields[name]) for name in names if fields.get(name) is not None]
        cap = call.edits.get("output_cap")
        limit = cap if cap is not None else min(caps) if caps else call.max_output_tokens
        if limit is not None:
            inference["maxTokens"] = limit
        _effort(fields, plan, inference, model, drop)
    if inference:
        plan.body["inferenceConfig"] = inference
    return is_thinking


def _is_capped(call: Call, fields: Mapping[str, Any]) -> bool:
    caps = (call.edits.get("output_cap"), call.max_output_tokens)
    return any(cap is not None for cap in (*caps, fields.get("max_tokens"), fields.get("max_completion_tokens")))


def _effort(
    fields: dict[str, Any], plan: RequestPlan, inference: Mapping[str, Any], model: BedrockModel, drop: Drop
) -> None:
    """`reasoning_effort` of the models that are not Claude."""
    effort, thinking = reasoning_effort(fields), fields.pop("thinking", None)
    if thinking is not None:
        drop("thinking", "It is Claude's; remove it, or say reasoning_effort.")
    if effort is None:
        return
    if model.family == "gpt-oss" and effort != "none":
        # https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-openai.html
        plan.extra["reasoning_effort"] = _LOW_TO_HIGH[effort]
    elif model.family == "nova2":
        # https://docs.aws.amazon.com/nova/latest/nova2-userguide/extended-thinking.html
        if effort == "none":
            plan.extra["reasoningConfig"] = {"type": "disabled"}
        elif _LOW_TO_HIGH[effort] == "high" and (inference or "temperature" in fields or "top_p" in fields):
            drop("reasoning_effort", "Nova thinks hard only without a cap, temperature and top_p; say medium.")
        else:
            plan.extra["reasoningConfig"] = {"type": "enabled", "maxReasoningEffort": _LOW_TO_HIGH[effort]}
    elif effort != "none":
        drop("reasoning_effort", "This model cannot be told how much to think; remove it.")
    elif model.family == "gpt-oss":
        drop("reasoning_effort", "This model always thinks; say low.")


def _resumes_unthinking(fields: Mapping[str, Any], turns: list[Block], model: BedrockModel) -> bool:
    """As for Anthropic's own API: a tool loop whose calls came without thinking goes on without.
    https://platform.claude.com/docs/en/build-with-claude/extended-thinking#toggling-thinking-modes-in-conversations"""
    if fields.get("reasoning_effort") is None or fields.get("thinking") is not None:
        return False
    if model.claude is None or model.claude.has_adaptive_thinking or len(turns) < 2:
        return False
    if "toolResult" not in turns[-1]["content"][0]:
        return False
    return "reasoningContent" not in turns[-2]["content"][0]


def _schema_of(value: Mapping[str, Any]) -> dict[str, Any]:
    inner = value.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if not isinstance(schema, dict):
        raise bad("'response_format.json_schema.schema' must be an object.", "response_format.json_schema.schema")
    return schema


def _native_schema(call: Call, value: Mapping[str, Any]) -> dict[str, Any] | None:
    """The schema for `outputConfig`, or `None` if the model, the deployment or the schema wants the tool instead."""
    if wants_tool_for_json(call) or not model_of(known_model(call)).has_native_schema:
        return None
    written = rewrite(_schema_of(value), BEDROCK_STRICT, where="response_format.json_schema.schema")
    if any(path.endswith(_NOT_ENFORCED) for path in written.lost) or written.schema.get("type") != "object":
        return None  # an open or recursive object cannot be said
    return written.schema


def _response_format(
    call: Call, fields: dict[str, Any], plan: RequestPlan, config: Block, choice: dict[str, Any] | None,
    is_thinking: bool, model: BedrockModel, drop: Drop,
) -> dict[str, Any] | None:  # fmt: skip
    """The choice of tool that this leaves."""
    value = fields.pop("response_format", None)
    kind = value.get("type") if isinstance(value, dict) else None
    if value is None or kind == "text":
        return choice
    if kind not in ("json_object", "json_schema"):
        raise bad("'response_format.type' must be text, json_object or json_schema.", "response_format.type")
    description = "Answer with this tool: its input is your whole answer."
    schema: dict[str, Any] = {**NOTHING, "additionalProperties": True}
    if kind == "json_schema":
        inner = value.get("json_schema")
        native = _native_schema(call, value)
        name, about = (inner.get(key) if isinstance(inner, dict) else None for key in ("name", "description"))
        if native is not None:
            said = {"schema": msgspec.json.encode(native).decode()}
            said |= {"name": name} if isinstance(name, str) and name else {}
            said |= {"description": about} if isinstance(about, str) and about else {}
            plan.body["outputConfig"] = {"textFormat": {"type": "json_schema", "structure": {"jsonSchema": said}}}
            return choice
        where = "response_format.json_schema.schema"
        schema = object_schema(_schema_of(value), where)
        if model.schema_rules is not None:
            schema = rewrite(schema, model.schema_rules, where=where).schema
        description = about if isinstance(about, str) and about.strip() else description
    if not model.takes_tool_choice:
        drop("response_format", "This model cannot be made to answer in JSON; ask for it in the prompt.")
        return choice
    plan.json_tool = json_tool_name(call.payload)
    note("replaced", "response_format", f"by the tool {plan.json_tool}, whose input becomes the content")
    has_tools = bool(config["tools"]) and (choice is None or choice["type"] != "none")
    spec = {"name": plan.json_tool, "description": description, "inputSchema": {"json": schema}}
    config["tools"] = [*config["tools"], {"toolSpec": spec}]
    if is_thinking:
        return {"type": "auto"}  # thinking models refuse a forced tool
    if not has_tools:
        is_alone = len(config["tools"]) == 1  # then `any` is enough, which more models take
        return {"type": "any"} if is_alone else {"type": "tool", "name": plan.json_tool}
    if choice is None or choice["type"] != "tool":
        return {**(choice or {}), "type": "any"}
    return choice


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise bad(f"'{name}' must be a number.", name)
    return value


def _sampling(fields: dict[str, Any], plan: RequestPlan, model: BedrockModel, drop: Drop) -> None:
    takes = model.claude is None or model.claude.takes_sampling
    for name, sent in (("temperature", "temperature"), ("top_p", "topP")):
        value = fields.pop(name, None)
        if value is None:
            continue
        value = _number(name, value)
        if not takes:
            if value != 1:
                drop(name, "This model takes only its own sampling; remove the field.")
        elif not 0 <= value <= 1:
            drop(name, "Bedrock takes values from 0 to 1; send at most 1.")
        else:
            plan.body.setdefault("inferenceConfig", {})[sent] = value
    top_k = fields.pop("top_k", None)
    if top_k is None:
        return
    if type(top_k) is not int:
        raise bad("'top_k' must be a whole number.", "top_k")
    if not takes:
        drop("top_k", "This model takes only its own sampling; remove the field.")
    elif model.family in ("nova", "nova2"):
        plan.extra["inferenceConfig"] = {"topK": top_k}
    else:
        plan.extra["top_k"] = top_k


def _stop(fields: dict[str, Any], plan: RequestPlan, model: BedrockModel, drop: Drop) -> None:
    stop = fields.pop("stop", None)
    if stop is None:
        return
    sequences = [stop] if isinstance(stop, str) else stop
    if not isinstance(sequences, list) or not all(isinstance(item, str) for item in sequences):
        raise bad("'stop' must be a string or a list of strings.", "stop")
    kept = [item for item in sequences if (item.strip() if model.claude is not None else item)]
    if len(kept) != len(sequences):
        drop("stop", "An empty stop sequence, and for Claude one of white space only, is refused; leave it out.")
    if kept:
        plan.body.setdefault("inferenceConfig", {})["stopSequences"] = kept


def request_metadata(fields: dict[str, Any], drop: Drop) -> dict[str, str]:
    """`metadata`, `user` and `safety_identifier` as tags of the invocation log. No model sees them."""
    metadata = fields.pop("metadata", None)
    if metadata is not None and not isinstance(metadata, dict):
        raise bad("'metadata' must be an object.", "metadata")
    own = fields.pop("requestMetadata", None)
    found: dict[str, str] = {**own} if isinstance(own, dict) else {}  # the deployment's, which a client cannot change
    for key, value in (metadata or {}).items():
        if key in found:
            drop(f"metadata.{key}", "The gateway sets it; remove it.")
        elif not isinstance(value, str) or not _META_VALUE.fullmatch(value) or not _META_KEY.fullmatch(key):
            drop(f"metadata.{key}", "Bedrock takes strings of up to 256 plain characters; remove it.")
        elif len(found) == 16:
            drop(f"metadata.{key}", "Bedrock takes 16 entries; remove some.")
        else:
            found[key] = value
    for name in ("user", "safety_identifier"):
        value = fields.pop(name, None)
        if value is None or name in found:
            continue
        if not isinstance(value, str):
            raise bad(f"'{name}' must be a string.", name)
        if not _META_VALUE.fullmatch(value):
            value = hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
        if len(found) < 16:
            found[name] = value
        else:
            drop(name, "Bedrock takes 16 entries of metadata; remove some.")
    return found


def service_tier(fields: dict[str, Any], drop: Drop) -> str | None:
    """https://docs.aws.amazon.com/bedrock/latest/userguide/service-tiers-inference.html"""
    tier = fields.pop("service_tier", None)
    if tier in (None, "auto"):
        return None
    if tier in _TIERS:
        return str(tier)
    drop("service_tier", "Bedrock has auto, default, flex, priority and reserved.")
    return None
