"""Which of OpenAI's models answer on `/v1/responses` alone, and which of them think.

A deployment's `api` (chat or responses) overrules the table. A family's name stands for its dated snapshots too.
https://platform.openai.com/docs/models · https://platform.openai.com/docs/guides/migrate-to-responses
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from sidecar.translate.provider import Call

RESPONSES_ONLY: Mapping[str, str] = {
    "o1-pro": "pro",
    "o3-pro": "pro",
    "gpt-5-pro": "pro",
    "gpt-5.2-pro": "pro",
    "gpt-5.4-pro": "pro",
    "gpt-5.5-pro": "pro",
    "codex-mini-latest": "codex",
    "gpt-5-codex": "codex",
    "gpt-5.1-codex": "codex",
    "gpt-5.1-codex-mini": "codex",
    "gpt-5.1-codex-max": "codex",
    "gpt-5.2-codex": "codex",
    "gpt-5.3-codex": "codex",
    "o3-deep-research": "deep research",
    "o4-mini-deep-research": "deep research",
    "computer-use-preview": "computer use",
    "gpt-daybreak-blue-latest": "security",
    "gpt-daybreak-red-latest": "security",
    "gpt-5.6-cyber": "security",
    "gpt-6-cyber": "security",
    "gpt-rosalind-research": "research",
    "gpt-6-rosalind": "research",
}
"""Family → what it is. Each has a page under https://platform.openai.com/docs/models that names its endpoints."""

_SNAPSHOT = re.compile(r"-\d{4}-\d{2}-\d{2}$")
# Others refuse to be asked for encrypted reasoning.
# https://platform.openai.com/docs/guides/reasoning#encrypted-reasoning-items
_THOUGHTLESS = re.compile(r"(?:^|/)(?:gpt-[34](?!\d)|chatgpt|computer-use|.*-chat(?:-|$))")


@lru_cache(maxsize=1024)
def is_responses_only(model: str) -> bool:
    return model in RESPONSES_ONLY or _SNAPSHOT.sub("", model) in RESPONSES_ONLY


def base_model(call: Call) -> str:
    """What the model is: Azure's name of a deployment need not say it, `base_model` in `params` does."""
    base = call.params.get("base_model")
    return base if isinstance(base, str) else str(call.edits.get("model", call.model))


def speaks_responses(call: Call) -> bool:
    """True if this deployment is to be asked over `/v1/responses`."""
    if call.options and (api := call.options.get("api")) is not None:
        return api == "responses"
    return is_responses_only(base_model(call) if call.params or "model" in call.edits else call.model)


def thinks(model: str) -> bool:
    return _THOUGHTLESS.match(model) is None
