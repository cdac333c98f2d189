"""Fields inside messages, parts, tools, tool calls and tool_choice: what a translating provider does not know is
refused by its place, or dropped by policy and named. Nothing is left out unsaid.

Neighbours: `fields` (the request's own fields, and the policy), the request modules, which hold `NestedFields` each.
Quietly fine is what has no meaning for the answer: what says nothing (`NOTHING`, which stock SDKs echo:
`refusal: null`, `annotations: []`, `function_call: null`), what an earlier answer told about itself (`ECHOED`), the
`name` in a tool's result (its id says it), and the `index` of a call (its place says it).
https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sidecar.translate.content import bad
from sidecar.translate.fields import Drop

NOTHING: tuple[Any, ...] = (None, [], {}, "")
ECHOED = frozenset(
    (
        *("annotations", "logprobs", "provider_specific_fields"),
        *("reasoning_content", "reasoning", "thinking_blocks"),  # told to the models that can read it
    )
)
"""What answers carry beside their content, and clients send back with it."""

_MESSAGE = frozenset(("role", "content"))
_ASSISTANT = _MESSAGE | {"refusal", "tool_calls"} | ECHOED
_TOOL_RESULT = _MESSAGE | {"tool_call_id", "name"}
_PART_ECHOES = frozenset(("type", "annotations", "logprobs"))
_TEXT = _PART_ECHOES | {"text"}
_PARTS: Mapping[str, frozenset[str]] = {
    "text": _TEXT,
    "input_text": _TEXT,
    "output_text": _TEXT,
    "refusal": _PART_ECHOES | {"refusal"},
    **{kind: _PART_ECHOES | {kind} for kind in ("image_url", "file", "input_audio", "video_url")},
}
_IN_PARTS: Mapping[str, frozenset[str]] = {
    "image_url": frozenset(("url", "detail")),
    "file": frozenset(("file_data", "file_id", "file_url", "filename")),
    "input_audio": frozenset(("data", "format")),
    "video_url": frozenset(("url",)),
}
_CALL = frozenset(("id", "type", "function", "index", "provider_specific_fields"))
_CUSTOM_CALL = _CALL | {"custom"}
_CALLED = frozenset(("name", "arguments"))
_CUSTOM_CALLED = frozenset(("name", "input"))
_TOOL = frozenset(("type", "function"))
_FUNCTION = frozenset(("name", "description", "parameters", "strict"))
_CHOICES: Mapping[str, frozenset[str]] = {
    "function": frozenset(("type", "function", "name")),
    "custom": frozenset(("type", "custom")),
    "tool": frozenset(("type", "name")),
    "allowed_tools": frozenset(("type", "allowed_tools", "mode", "tools")),
}
_TYPE_ONLY = frozenset(("type",))
_NAME_ONLY = frozenset(("name",))
_ALLOWED = frozenset(("mode", "tools"))


class NestedFields:
    """What one provider takes beyond what all do; each check names what is left by `drop`."""

    __slots__ = ("_assistant", "_call", "_fix", "_function", "_in_part", "_message", "_part", "_tool", "_tool_result")

    def __init__(
        self,
        vendor: str,
        *,
        message: Collection[str] = (),
        assistant: Collection[str] = (),
        tool_result: Collection[str] = (),
        part: Collection[str] = (),
        file: Collection[str] = (),
        call: Collection[str] = (),
        tool: Collection[str] = (),
        fix: str = "",
    ) -> None:
        """`message`: of every role. `tool`: beside or within the function."""
        self._fix = fix or f"{vendor} has no such field; remove it."
        self._message = _MESSAGE | set(message)
        self._assistant = _ASSISTANT | self._message | set(assistant)
        self._tool_result = _TOOL_RESULT | self._message | set(tool_result)
        self._part = {kind: known | set(part) for kind, known in _PARTS.items()}
        self._in_part = {**_IN_PARTS, "file": _IN_PARTS["file"] | set(file)}
        self._call = _CALL | set(call)
        self._tool = _TOOL | set(tool)
        self._function = _FUNCTION | set(tool)

    def message(self, role: str, message: Mapping[str, Any], where: str, drop: Drop) -> None:
        """The message's own fields, not its parts and calls. The sound of an answer is OpenAI's alone to know."""
        known = self._assistant if role == "assistant" else self._tool_result if role == "tool" else self._message
        if message.keys() <= known:
            return
        if role == "assistant" and message.get("audio") not in NOTHING:
            drop(f"{where}.audio", "The sound of an earlier answer is not here; send its transcript as content.")
            known = known | {"audio"}
        self.rest(message, known, where, drop)

    def part(self, part: Mapping[str, Any], where: str, drop: Drop) -> None:
        """Of a type that was understood; a text that came as a bare string is an empty one."""
        if not part:
            return
        kind = part.get("type")
        known = self._part.get(kind) if isinstance(kind, str) else None
        if known is None or kind is None:
            return  # the provider's own to take or refuse
        if not part.keys() <= known:
            self.rest(part, known, where, drop)
        inner = part.get(kind)
        fields = self._in_part.get(kind)
        if fields is not None and isinstance(inner, dict) and not inner.keys() <= fields:
            self.rest(inner, fields, f"{where}.{kind}", drop)

    def call(self, call: Mapping[str, Any], where: str, drop: Drop) -> None:
        """A tool call of the history."""
        is_custom = call.get("type") == "custom"
        known = _CUSTOM_CALL if is_custom else self._call
        if not call.keys() <= known:
            self.rest(call, known, where, drop)
        kind = "custom" if is_custom else "function"
        inner = call.get(kind)
        fields = _CUSTOM_CALLED if is_custom else _CALLED
        if isinstance(inner, dict) and not inner.keys() <= fields:
            self.rest(inner, fields, f"{where}.{kind}", drop)

    def tool(self, tool: Mapping[str, Any], where: str, drop: Drop) -> None:
        """A function tool."""
        if not tool.keys() <= self._tool:
            self.rest(tool, self._tool, where, drop)
        function = tool["function"]
        if not isinstance(function.get("strict", False), (bool, type(None))):
            raise bad(f"'{where}.function.strict' must be true or false.", f"{where}.function.strict")
        if not function.keys() <= self._function:
            self.rest(function, self._function, f"{where}.function", drop)

    def choice(self, choice: Any, drop: Drop) -> None:
        """tool_choice; its form is the provider's to judge."""
        if not isinstance(choice, dict):
            return
        kind = choice.get("type")
        known = _CHOICES.get(kind, _TYPE_ONLY) if isinstance(kind, str) else _TYPE_ONLY
        self.rest(choice, known, "tool_choice", drop)
        if kind in ("function", "custom") and isinstance(inner := choice.get(kind), dict):
            self.rest(inner, _NAME_ONLY, f"tool_choice.{kind}", drop)
        if kind == "allowed_tools":
            inner = choice.get(kind)
            if isinstance(inner, dict):
                self.rest(inner, _ALLOWED, "tool_choice.allowed_tools", drop)
            mode = (inner if isinstance(inner, dict) else choice).get("mode")
            if mode not in (None, "auto", "required"):
                where = "tool_choice.allowed_tools.mode"
                raise bad(f"'{where}' is {mode!r:.60}; known are auto and required.", where)

    def rest(self, given: Mapping[str, Any], known: Collection[str], where: str, drop: Drop) -> None:
        """What of an object is not `known` and says something."""
        for field, value in given.items():
            if field not in known and value not in NOTHING:
                drop(f"{where}.{field}", self._fix)
