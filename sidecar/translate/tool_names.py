"""Tool names in a provider's alphabet and length, and the way back.

A name the provider takes is sent as it is; another is sent as what is left of it with a hash of the whole. So a name's
form does not depend on the other tools, their order, or the turn, and the conversation's prefix stays the same.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sidecar.translate.losses import note


@dataclass(frozen=True, slots=True)
class NameRules:
    """`pattern` is what a whole name has to match, `alphabet` a character it may hold anywhere."""

    pattern: re.Pattern[str]
    alphabet: re.Pattern[str]
    max_length: int


def _rules(first: str, rest: str, max_length: int) -> NameRules:
    return NameRules(re.compile(f"[{first}][{rest}]{{0,{max_length - 1}}}"), re.compile(f"[^{rest}]"), max_length)


OPENAI = _rules("a-zA-Z0-9_-", "a-zA-Z0-9_-", 64)
"""https://platform.openai.com/docs/api-reference/chat/create#chat-create-tools · Mistral's are the same."""
ANTHROPIC = _rules("a-zA-Z0-9_-", "a-zA-Z0-9_-", 64)
"""https://platform.claude.com/docs/en/agents-and-tools/tool-use/implement-tool-use"""
BEDROCK = _rules("a-zA-Z0-9_-", "a-zA-Z0-9_-", 64)
"""https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ToolSpecification.html"""
GEMINI = _rules("a-zA-Z_", "a-zA-Z0-9_.-", 64)
"""Newer models take colons and 128 characters; these all take. https://ai.google.dev/api/caching#FunctionDeclaration"""
COHERE = _rules("a-zA-Z_", "a-zA-Z0-9_", 64)
"""Letters, digits and underscores are what all of its models take. https://docs.cohere.com/docs/tool-use"""


def sent_name(name: str, rules: NameRules, *, digits: int = 10) -> str:
    """The name as it is sent; the same for the same name, and different for different ones but for chance (`digits`
    hexadecimal ones of it)."""
    if rules.pattern.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:digits]
    rest = rules.alphabet.sub("_", name)[: rules.max_length - digits - 2]
    cleaned = f"{rest}_{digest}"
    return cleaned if rules.pattern.fullmatch(cleaned) else f"_{cleaned}"


class ToolNames:
    """The names of one request: `sent(name)` for any of them, `original(name)` for those in the answer.

    Names are taken from the tools, the history and `tool_choice` are asked for through `sent`. Should the form of one
    be another's name, it gets a longer hash.
    """

    __slots__ = ("_originals", "_rules", "_sent")

    def __init__(self, names: Iterable[str], rules: NameRules) -> None:
        self._rules = rules
        self._sent: dict[str, str] = {}
        self._originals: dict[str, str] = {}
        listed = list(dict.fromkeys(names))
        for name in listed:
            if rules.pattern.fullmatch(name):
                self._sent[name] = self._originals[name] = name
        for name in sorted(set(listed) - self._sent.keys()):
            self._add(name)

    def _add(self, name: str) -> str:
        digits = 10
        found = sent_name(name, self._rules)
        while self._originals.get(found, name) != name:
            digits += 6
            found = sent_name(name, self._rules, digits=digits)
        self._sent[name] = found
        self._originals[found] = name
        if found != name:
            note("renamed", f"tool {name:.80}", f"sent as {found}, and back in the answer")
        return found

    def sent(self, name: str) -> str:
        return self._sent.get(name) or self._add(name)

    def original(self, name: str) -> str:
        """The client's name for one in an answer; a name the provider made up stays as it is."""
        return self._originals.get(name, name)


def names_of(payload: Mapping[str, Any]) -> list[str]:
    """The names of a chat request's function tools, in order; what is no tool is left to who validates it."""
    found: list[str] = []
    tools = payload.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function") if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if isinstance(name, str) and name:
            found.append(name)
    return found


def tool_names(payload: Mapping[str, Any], rules: NameRules) -> ToolNames:
    return ToolNames(names_of(payload), rules)
