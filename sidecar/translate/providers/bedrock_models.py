"""What a model on Bedrock can do, read from its id; a fact about a family rather than a list of its members.

An id is `anthropic.claude-sonnet-4-5-20250929-v1:0`, that with a region before it (`us.`, `global.`), or an ARN that
ends in either; the id of an application inference profile or an imported model says nothing, so its deployment does
(`params: {base_model: …}`).
https://docs.aws.amazon.com/bedrock/latest/userguide/models-supported.html
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from sidecar.translate.provider import Call
from sidecar.translate.providers.anthropic_models import ModelTraits, traits
from sidecar.translate.schema_rules import BEDROCK, BEDROCK_NOVA, SchemaRules

Family = Literal["claude", "nova", "nova2", "gpt-oss", "open", "other", "unknown"]

_OPEN = re.compile(r"(?:^|\.)(?:qwen|deepseek|google|minimax|moonshot(?:ai)?|nvidia|zai|mistral)\.")
_OLD_MISTRAL = re.compile(r"mistral-(?:7b|large-24|small-24)|mixtral|pixtral")
_VENDOR = re.compile(r"(?:^|\.)(?:ai21|amazon|cohere|meta|mistral|openai|stability|twelvelabs|writer)\.")
_NATIVE_CLAUDE = re.compile(r"claude-(?:[a-z]+-)?(?:4-[56](?!\d)|[5-9](?!\d)|\d\d(?!\d))")


@dataclass(frozen=True, slots=True)
class BedrockModel:
    family: Family
    claude: ModelTraits | None
    has_native_schema: bool
    """`outputConfig.textFormat` and strict tools: Claude 4.5, 4.6 and from 5 on, and most models with open weights.
    https://docs.aws.amazon.com/bedrock/latest/userguide/structured-output.html"""
    takes_cache_points: bool
    """https://docs.aws.amazon.com/bedrock/latest/userguide/prompt-caching.html"""
    takes_tool_cache_points: bool
    takes_tool_choice: bool
    """False: the model calls tools when it thinks fit, and refuses `toolChoice`.
    https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ToolChoice.html"""
    schema_rules: SchemaRules | None
    """For tools; `None`: whole JSON Schema."""


@lru_cache(maxsize=256)
def model_of(model: str) -> BedrockModel:
    name = model.rpartition("/")[2].lower()
    family: Family = "unknown"
    if "claude" in name:
        family = "claude"
    elif "nova-2" in name:
        family = "nova2"
    elif "nova-" in name:
        family = "nova"
    elif "gpt-oss" in name:
        family = "gpt-oss"
    elif _OPEN.search(name) and not _OLD_MISTRAL.search(name) and "deepseek.r1" not in name:
        family = "open"
    elif _VENDOR.search(name) or "deepseek.r1" in name:
        family = "other"
    is_claude = family == "claude"
    is_nova = family in ("nova", "nova2")
    return BedrockModel(
        family=family,
        claude=traits(name) if is_claude else None,
        has_native_schema=bool(_NATIVE_CLAUDE.search(name)) if is_claude else family in ("open", "gpt-oss"),
        takes_cache_points=is_claude or is_nova or family == "unknown",
        takes_tool_cache_points=is_claude or family == "unknown",
        takes_tool_choice=family != "other" or "mistral." in name,
        schema_rules=None if is_claude else BEDROCK_NOVA if is_nova else BEDROCK,
    )


def sent_model(call: Call) -> str:
    """The id that goes into the path."""
    model = call.edits.get("model", call.model)
    return model if isinstance(model, str) else call.model


def known_model(call: Call) -> str:
    """The id that says what the model can do."""
    base = call.params.get("base_model")
    return base if isinstance(base, str) and base else sent_model(call)


def shown_model(call: Call) -> str:
    """For answers: an ARN has the account's number in it."""
    return sent_model(call).rpartition("/")[2]


def wants_tool_for_json(call: Call) -> bool:
    """True if the deployment says so (`params: {structured_output: tool}`), for a region without the native form."""
    return call.params.get("structured_output") == "tool"
