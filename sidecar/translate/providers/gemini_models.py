"""What a Gemini model can do, read from its name; versions rather than lists, so a new model is right on its first day.

https://ai.google.dev/gemini-api/docs/models · https://ai.google.dev/gemini-api/docs/thinking
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

_VERSION = re.compile(r"gemini-(\d{1,2})(?:\.(\d{1,2}))?(?!\d)")
NEWEST = (99, 0)


@dataclass(frozen=True, slots=True)
class ModelTraits:
    has_json_schema: bool
    """`parametersJsonSchema` and `responseJsonSchema`; from 2.0 on."""
    thinks_by: Literal["", "budget", "level"]
    """`thinkingBudget` (2.5), `thinkingLevel` (from 3 on), or not at all."""
    max_budget: int
    levels: dict[str, str]
    """`reasoning_effort` → `thinkingLevel`, for the efforts the model has."""
    can_stop_thinking: bool
    has_validated_mode: bool
    """Function calls held to their schemas without being forced; from 2.5 on."""
    is_three: bool
    """From 3 on: media within function responses, a resolution per picture, built-in tools and JSON beside functions,
    and thought signatures demanded back."""


_FLASH_LEVELS = {
    "none": "MINIMAL",
    "minimal": "MINIMAL",
    "low": "LOW",
    "medium": "MEDIUM",
    "high": "HIGH",
    "xhigh": "HIGH",
    "max": "HIGH",
}
_PRO_LEVELS = {name: level for name, level in _FLASH_LEVELS.items() if name != "none"} | {"minimal": "LOW"}
_FIRST_PRO_LEVELS = _PRO_LEVELS | {"medium": "HIGH"}
"""As in Google's own OpenAI endpoint: https://ai.google.dev/gemini-api/docs/openai#thinking. Pro models cannot stop
thinking; 3 Pro has two levels. For the others "none" is the least they can do, which for most questions is nothing."""

THINKING_BUDGETS = {"minimal": 1024, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 32768, "max": 32768}
"""From the same page; more than a model has is cut to what it has."""


@lru_cache(maxsize=256)
def traits(model: str) -> ModelTraits:
    """A Gemini without a version (`gemini-flash-latest`) counts as the newest, and so does a name that is none of
    Google's: a tuned model or an endpoint."""
    lowered = model.lower()
    match = _VERSION.search(lowered)
    version = NEWEST if match is None else (int(match.group(1)), int(match.group(2) or 0))
    if "gemini-robotics" in lowered:
        version = (2, 5)
    is_pro = "-pro" in lowered
    is_maker = "-image" in lowered or "-tts" in lowered or "native-audio" in lowered
    thinks_by: Literal["", "budget", "level"] = "level" if version >= (3, 0) else "budget"
    if version < (2, 5) or is_maker or "gemma" in lowered:
        thinks_by = ""
    return ModelTraits(
        has_json_schema=version >= (2, 0),
        thinks_by=thinks_by,
        max_budget=32768 if is_pro else 24576,
        levels=_FLASH_LEVELS if not is_pro else _FIRST_PRO_LEVELS if version == (3, 0) else _PRO_LEVELS,
        can_stop_thinking=not is_pro,
        has_validated_mode=version >= (2, 5),
        is_three=version >= (3, 0),
    )
