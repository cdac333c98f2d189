"""An OpenAI chat request as a Gemini generateContent request: everything but the message contents.

Neighbours: `gemini_content` (messages), `gemini_tools`, `gemini` and `vertex` (the providers). Pure functions of the
call: the same request twice gives the same bytes.
https://ai.google.dev/api/generate-content#request-body
https://cloud.google.com/vertex-ai/generative-ai/docs/model-reference/inference
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from sidecar.translate.chat_fields import reasoning_effort
from sidecar.translate.content import bad
from sidecar.translate.fields import dropper
from sidecar.translate.provider import Call, Provider, select_params
from sidecar.translate.providers.gemini_content import Contents, Drop
from sidecar.translate.providers.gemini_models import THINKING_BUDGETS, ModelTraits, traits
from sidecar.translate.providers.gemini_tools import map_tools
from sidecar.translate.schema import rewrite
from sidecar.translate.schema_rules import GEMINI as OLD_SCHEMA
from sidecar.translate.schema_rules import GEMINI_JSON as JSON_SCHEMA
from sidecar.translate.tool_names import GEMINI as NAMES
from sidecar.translate.tool_names import tool_names

Fields = dict[str, Any]

_TOP = {
    "safety_settings": "safetySettings",
    "cached_content": "cachedContent",
    "labels": "labels",
    "tool_config": "toolConfig",
}
_CONFIG = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "seed": "seed",
    "frequency_penalty": "frequencyPenalty",
    "presence_penalty": "presencePenalty",
    "media_resolution": "mediaResolution",
    "image_config": "imageConfig",
    "speech_config": "speechConfig",
    "thinking_config": "thinkingConfig",
}
_TIERS = {"default": "standard", "flex": "flex", "priority": "priority"}
_TIER_HEADERS = {
    "default": (b"x-vertex-ai-llm-request-type", b"shared"),
    "flex": (b"x-vertex-ai-llm-shared-request-type", b"flex"),
    "priority": (b"x-vertex-ai-llm-shared-request-type", b"priority"),
}
"""https://cloud.google.com/vertex-ai/generative-ai/docs/flex-paygo · …/priority-paygo"""
_LABEL = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")
MAX_STOPS = 5


class Plan:
    """The request body, the headers it needs, and the names left out by policy."""

    __slots__ = ("body", "dropped", "headers")

    def __init__(self) -> None:
        self.body: Fields = {}
        self.headers: list[tuple[bytes, bytes]] = []
        self.dropped: list[str] = []


def build(provider: Provider, call: Call, model_name: str, *, is_vertex: bool) -> Plan:
    """Raises `BadRequestError` naming the field that cannot be sent."""
    plan = Plan()
    fields, plan.dropped = select_params(provider, call)

    drop = dropper(provider, call, plan.dropped)
    model = traits(model_name)
    names = tool_names(call.payload, NAMES)
    contents = Contents(provider.name, model, names, call.media, drop, needs_type=is_vertex)
    contents.take(fields.pop("messages", None))
    body = plan.body
    if contents.system:
        body["systemInstruction"] = {"parts": contents.system}
    body["contents"] = contents.turns
    config: Fields = {}
    if contents.resolution:
        config["mediaResolution"] = contents.resolution
    map_tools(fields, body, names, model, plan.dropped, drop, is_vertex=is_vertex)
    _response_format(fields, body, config, model, drop)
    _caps(call, fields, config)
    _reasoning(fields, config, model, drop)
    _choices(fields, config)
    _modalities(fields, config, drop)
    _stop(fields, config)
    _tier(fields, plan, drop, is_vertex=is_vertex)
    if is_vertex:
        _labels(fields, body)
    if (store := fields.pop("store", None)) is not None:
        body["store"] = store
    for name in ("stream", "stream_options", "model"):
        fields.pop(name, None)
    for name, value in fields.items():
        if name in _CONFIG:
            config[_CONFIG[name]] = _number(name, value) if name in call.payload and name in _NUMBERS else value
        elif name == "generationConfig" and isinstance(value, dict):
            config = {**value, **config}
        else:  # the deployment's own, which are Gemini's already
            body[_TOP.get(name, name)] = value
    if config:
        body["generationConfig"] = config
    return plan


_NUMBERS = frozenset(("temperature", "top_p", "top_k", "seed", "frequency_penalty", "presence_penalty"))


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise bad(f"'{name}' must be a number.", name)
    return value


def _response_format(fields: Fields, body: Fields, config: Fields, model: ModelTraits, drop: Drop) -> None:
    value = fields.pop("response_format", None)
    if value is None:
        return
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return
    if kind not in ("json_object", "json_schema"):
        raise bad("'response_format.type' must be text, json_object or json_schema.", "response_format.type")
    if "tools" in body and not model.is_three:
        drop("response_format", "Before Gemini 3 JSON output cannot stand beside tools; send one of the two.")
        return
    config["responseMimeType"] = "application/json"
    if kind == "json_schema":
        place = "response_format.json_schema.schema"
        inner = value.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, dict) else None
        if not isinstance(schema, dict):
            raise bad(f"'{place}' must be an object.", place)
        description = inner.get("description")
        if isinstance(description, str) and description and "description" not in schema:
            schema = {**schema, "description": description}
        rules = JSON_SCHEMA if model.has_json_schema else OLD_SCHEMA
        key = "responseJsonSchema" if model.has_json_schema else "responseSchema"
        config[key] = rewrite(schema, rules, where=place).schema


def _caps(call: Call, fields: Fields, config: Fields) -> None:
    caps = []
    for name in ("max_completion_tokens", "max_tokens"):
        value = fields.pop(name, None)
        if value is not None:
            if type(value) is not int or value < 1:
                raise bad(f"'{name}' must be a whole number of at least 1.", name)
            caps.append(value)
    cap = call.edits.get("output_cap")
    if cap is not None or caps:
        config["maxOutputTokens"] = cap if cap is not None else min(caps)


def _reasoning(fields: Fields, config: Fields, model: ModelTraits, drop: Drop) -> None:
    effort = reasoning_effort(fields)
    thinking = fields.pop("thinking", None)
    if thinking is not None:
        _thinking(thinking, config, model, drop)
        return
    if effort is None:
        return
    if not model.thinks_by:
        if effort != "none":
            drop("reasoning_effort", "This model does not think; remove the field.")
    elif effort == "none" and not model.can_stop_thinking:
        drop("reasoning_effort", "This model cannot stop thinking; say minimal or low.")
    elif model.thinks_by == "level":
        config["thinkingConfig"] = {"thinkingLevel": model.levels[effort], "includeThoughts": effort != "none"}
    elif effort == "none":
        config["thinkingConfig"] = {"thinkingBudget": 0, "includeThoughts": False}
    else:
        budget = min(THINKING_BUDGETS[effort], model.max_budget)
        config["thinkingConfig"] = {"thinkingBudget": budget, "includeThoughts": True}


def _thinking(thinking: Any, config: Fields, model: ModelTraits, drop: Drop) -> None:
    """Anthropic's form, as clients of Claude send it."""
    kind = thinking.get("type") if isinstance(thinking, dict) else None
    if kind not in ("enabled", "disabled", "adaptive"):
        raise bad("'thinking' must be an object with type enabled, adaptive or disabled.", "thinking")
    if not model.thinks_by:
        if kind != "disabled":
            drop("thinking", "This model does not think; remove the field.")
    elif kind == "disabled":
        if not model.can_stop_thinking:
            drop("thinking", "This model cannot stop thinking; remove the field.")
        elif model.thinks_by == "level":
            config["thinkingConfig"] = {"thinkingLevel": model.levels["none"], "includeThoughts": False}
        else:
            config["thinkingConfig"] = {"thinkingBudget": 0, "includeThoughts": False}
    else:
        budget = thinking.get("budget_tokens")
        config["thinkingConfig"] = {"includeThoughts": True}
        if budget is not None:
            if type(budget) is not int or budget < 0:
                raise bad("'thinking.budget_tokens' must be a whole number.", "thinking.budget_tokens")
            config["thinkingConfig"]["thinkingBudget"] = min(budget, model.max_budget)


def _choices(fields: Fields, config: Fields) -> None:
    n = fields.pop("n", None)
    if n is not None:
        if type(n) is not int or n < 1:
            raise bad("'n' must be a whole number of at least 1.", "n")
        if n > 1:
            config["candidateCount"] = n
    asks, top = fields.pop("logprobs", None), fields.pop("top_logprobs", None)
    if asks is not None and not isinstance(asks, bool):
        raise bad("'logprobs' must be true or false.", "logprobs")
    if top is not None and (type(top) is not int or not 0 <= top <= 20):
        raise bad("'top_logprobs' must be a whole number from 0 to 20.", "top_logprobs")
    if asks or top:
        config["responseLogprobs"] = True
    if top:
        config["logprobs"] = top


def _modalities(fields: Fields, config: Fields, drop: Drop) -> None:
    modalities = fields.pop("modalities", None)
    audio = fields.pop("audio", None)
    if modalities is not None:
        if not isinstance(modalities, list) or not all(item in ("text", "audio", "image") for item in modalities):
            raise bad("'modalities' must be a list of text, audio and image.", "modalities")
        if "audio" in modalities:  # OpenAI has text beside it always, Gemini never
            config["responseModalities"] = ["AUDIO"]
        elif "image" in modalities:
            config["responseModalities"] = [item.upper() for item in modalities]
    if audio is not None:
        if not isinstance(audio, dict):
            raise bad("'audio' must be an object.", "audio")
        if audio.get("format") not in (None, "pcm16"):
            drop("audio.format", "Gemini speaks pcm16 (24 kHz, one channel).")
        voice = audio.get("voice")
        if not isinstance(voice, str) or not voice:
            raise bad("'audio.voice' must name one of Gemini's voices, such as Kore.", "audio.voice")
        config["speechConfig"] = {"voiceConfig": {"prebuiltVoiceConfig": {"voiceName": voice}}}


def _stop(fields: Fields, config: Fields) -> None:
    stop = fields.pop("stop", None)
    if stop is None:
        return
    sequences = [stop] if isinstance(stop, str) else stop
    if not isinstance(sequences, list) or not all(isinstance(item, str) for item in sequences):
        raise bad("'stop' must be a string or a list of strings.", "stop")
    kept = [item for item in sequences if item]
    if len(kept) > MAX_STOPS:
        raise bad(f"'stop' has {len(kept)} sequences; Gemini takes {MAX_STOPS}.", "stop")
    if kept:
        config["stopSequences"] = kept


def _tier(fields: Fields, plan: Plan, drop: Drop, *, is_vertex: bool) -> None:
    tier = fields.pop("service_tier", None)
    if tier is None or tier == "auto":
        return
    if not isinstance(tier, str) or tier not in _TIERS:
        drop("service_tier", "Gemini has auto, default, flex and priority.")
    elif is_vertex:
        plan.headers.append(_TIER_HEADERS[tier])
    else:
        plan.body["serviceTier"] = _TIERS[tier]


def _labels(fields: Fields, body: Fields) -> None:
    """Labels of the bill. Their alphabet is narrow; what does not fit is sent as its hash, so that it stays a label to
    group by. https://cloud.google.com/vertex-ai/generative-ai/docs/multimodal/add-labels-to-api-calls"""
    labels: dict[str, str] = {}
    metadata = fields.pop("metadata", None)
    if metadata is not None and not isinstance(metadata, dict):
        raise bad("'metadata' must be an object.", "metadata")
    for key, value in (metadata or {}).items():
        if not isinstance(value, str):
            raise bad(f"'metadata.{key:.60}' must be a string.", "metadata")
        labels[key if _LABEL.fullmatch(key) else "k" + _hash(key)[:32]] = _label(value)
    for name in ("safety_identifier", "user"):
        value = fields.pop(name, None)
        if value is not None:
            if not isinstance(value, str):
                raise bad(f"'{name}' must be a string.", name)
            labels[name] = _label(value)
    own = fields.pop("labels", None)
    if isinstance(own, Mapping):
        labels = {**own, **labels}
    elif own is not None:
        raise bad("'labels' must be an object.", "labels")
    if labels:
        body["labels"] = labels


def _label(value: str) -> str:
    return value if _LABEL_VALUE.fullmatch(value) else _hash(value)[:63]


def _hash(value: str) -> str:
    return hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
