"""What a Claude model can do, read from its name; versions rather than lists, so a new model is right on its first day.

https://platform.claude.com/docs/en/about-claude/models/overview
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_VERSION = re.compile(r"claude-(?:([a-z]+)-)?(\d{1,2})(?!\d)(?:[-.](\d{1,2})(?!\d))?")

NEWEST = (99, 0)


@dataclass(frozen=True, slots=True)
class ModelTraits:
    has_native_schema: bool
    """`output_config.format`; from 4.5 on. https://platform.claude.com/docs/en/build-with-claude/structured-outputs"""
    has_thinking: bool
    has_adaptive_thinking: bool
    """`thinking.type: adaptive` with `output_config.effort`; from 4.6 on."""
    has_xhigh_effort: bool
    takes_sampling: bool
    """False from 4.7 on: a temperature, top_p or top_k other than the default is refused."""


@lru_cache(maxsize=256)
def traits(model: str) -> ModelTraits:
    """`model` may carry a vendor prefix or a date. A Claude without a version counts as the newest; another name (an
    Anthropic-compatible vendor) gets the forms that have been there longest."""
    match = _VERSION.search(model.lower())
    if match is not None:
        version = (int(match.group(2)), int(match.group(3) or 0))
    elif "claude" in model.lower() and "instant" not in model.lower():
        version = NEWEST
    else:
        return ModelTraits(False, True, False, False, True)
    return ModelTraits(
        has_native_schema=version >= (4, 5),
        has_thinking=version >= (3, 7),
        has_adaptive_thinking=version >= (4, 6),
        has_xhigh_effort=version >= (4, 7),
        takes_sampling=version < (4, 7),
    )
