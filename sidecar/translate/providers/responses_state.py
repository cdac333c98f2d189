"""Reasoning that has to come back: kept in the ids of the tool calls it led to, put back in its place.

Nothing is stored at OpenAI, so a reasoning item is only of use with its `encrypted_content`, before what it led to; a
stock client would lose it (see `signatures`). With it goes where the texts before a call ended, and their `phase`.
https://platform.openai.com/docs/guides/reasoning#keeping-reasoning-items-in-context
https://platform.openai.com/docs/guides/reasoning#encrypted-reasoning-items
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sidecar.translate.signatures import pack

KIND = "responses"


class Turn:
    """What stood before the next tool call. `said` counts the characters of content so far."""

    __slots__ = ("_before", "_cut", "_has_state", "_name", "said")

    def __init__(self, provider_name: str) -> None:
        self._name = provider_name
        self._before: list[Any] = []
        self._cut = 0
        self._has_state = False
        self.said = 0

    def reasoned(self, item: Mapping[str, Any]) -> None:
        """A finished reasoning item; one that cannot be said again is forgotten."""
        encrypted, given_id = item.get("encrypted_content"), item.get("id")
        if not isinstance(encrypted, str) or not encrypted or not isinstance(given_id, str):
            return
        summary = item.get("summary")
        texts = [part.get("text") for part in summary if isinstance(part, dict)] if isinstance(summary, list) else []
        self._before.append(
            {"id": given_id, "encrypted_content": encrypted, "summary": [text for text in texts if text]}
        )
        self._has_state = True

    def ended_message(self, phase: Any) -> None:
        """A message item is whole. Newer models want their `phase` back.
        https://platform.openai.com/docs/guides/latest-model#phase-parameter"""
        if self.said > self._cut:
            self._cut = self.said
            if isinstance(phase, str) and phase:
                self._has_state = True
                self._before.append([self.said, phase])
            else:
                self._before.append([self.said])

    def call_id(self, call_id: str) -> str:
        """The id of the call that comes now, with all of it packed."""
        if not self._has_state or not self._before:
            return call_id
        before, self._before = self._before, []
        packed = pack(call_id, {"kind": KIND, "at": self._name, "before": before})
        if packed == call_id:  # too long: the summaries are for reading only
            short = [{**item, "summary": []} if isinstance(item, dict) else item for item in before]
            packed = pack(call_id, {"kind": KIND, "at": self._name, "before": short})
        return packed


def replay(
    text: str, calls: Sequence[tuple[dict[str, Any], dict[str, Any] | None]], provider_name: str
) -> Iterator[dict[str, Any]]:
    """An assistant's turn as the items it was said in. `calls`: each call's item and the state its id held, which is
    another's and left alone if it is not this provider's (what is encrypted by one platform none else can read)."""
    before = [_valid(state) if state and state.get("at") == provider_name else [] for _, state in calls]
    ends = [item[0] for items in before for item in items if isinstance(item, list)]
    if ends != sorted(ends) or (ends and (ends[-1] > len(text) or ends[0] <= 0)):
        before = [[item for item in items if isinstance(item, dict)] for items in before]  # the text was edited
        ends = []
    at = 0
    if not ends and text:
        yield _message(text)
        at = len(text)
    for (call, _), items in zip(calls, before, strict=True):
        for item in items:
            if isinstance(item, dict):
                summary = [{"type": "summary_text", "text": said} for said in item["summary"]]
                yield {"type": "reasoning", **item, "summary": summary}
            elif item[0] > at:
                yield _message(text[at : item[0]], *item[1:])
                at = item[0]
        yield call
    if at < len(text):
        yield _message(text[at:])


def _message(text: str, phase: str = "") -> dict[str, Any]:
    message = {"type": "message", "role": "assistant", "content": text}
    return {**message, "phase": phase} if phase else message


def _valid(state: Mapping[str, Any]) -> list[Any]:
    """The parts of a state in the form we pack; ids travel through clients, so anything may come back."""
    before = state.get("before")
    if state.get("kind") != KIND or not isinstance(before, list):
        return []
    found: list[Any] = []
    for item in before:
        if isinstance(item, dict):
            summary = item.get("summary")
            if (
                isinstance(item.get("id"), str)
                and isinstance(item.get("encrypted_content"), str)
                and isinstance(summary, list)
                and all(isinstance(text, str) for text in summary)
            ):
                found.append({name: item[name] for name in ("id", "encrypted_content", "summary")})
        elif isinstance(item, list) and item and type(item[0]) is int:
            found.append([item[0], *(phase for phase in item[1:2] if phase in ("commentary", "final_answer"))])
    return found
