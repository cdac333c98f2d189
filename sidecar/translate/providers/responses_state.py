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

    __slots__ = ("_before", "_cut", "_has_state", "_name", "_start", "said")

    def __init__(self, provider_name: str) -> None:
        self._name = provider_name
        self._before: list[Any] = []
        self._cut = self._start = 0
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
        before, self._before = self._before, []
        start, self._start = self._start, self.said
        if not self._has_state:
            return call_id
        state = {"kind": KIND, "at": self._name, "from": start, "to": self.said, "before": before}
        packed = pack(call_id, state)
        if packed == call_id:  # too long: the summaries are for reading only
            short = [{**item, "summary": []} if isinstance(item, dict) else item for item in before]
            packed = pack(call_id, {**state, "before": short})
        return packed


def replay(
    text: str, calls: Sequence[tuple[dict[str, Any], dict[str, Any] | None]], provider_name: str
) -> Iterator[dict[str, Any]]:
    """An assistant's turn as the items it was said in. `calls`: each call's item and the state its id held, which is
    another's and left alone if it is not this provider's (what is encrypted by one platform none else can read)."""
    states = [_valid(state) if state and state.get("at") == provider_name else None for _, state in calls]
    known = [state for state in states if state is not None]
    places = [place for state in known for place in (state.start, *state.ends, state.end)]
    is_edited = places != sorted(places) or (places and places[-1] > len(text))
    at = known[0].start if known and not is_edited else len(text)  # of an edited text nothing has a place
    if at:
        yield _message(text[:at])
    for (call, _), state in zip(calls, states, strict=True):
        for item in state.items if state is not None else ():
            if isinstance(item, dict):
                summary = [{"type": "summary_text", "text": said} for said in item["summary"]]
                yield {"type": "reasoning", **item, "summary": summary}
            elif at < item[0] <= len(text):
                yield _message(text[at : item[0]], *item[1:])
                at = item[0]
        if state is not None and at < state.end <= len(text):
            yield _message(text[at : state.end])
            at = state.end
        yield call
    if at < len(text):
        yield _message(text[at:])


class _State:
    """`items`: reasoning as it is sent, texts as `[end, phase?]`; the content from `start` to `end` belongs to it."""

    __slots__ = ("end", "items", "start")

    def __init__(self, start: int, end: int, items: list[Any]) -> None:
        self.start = start
        self.end = end
        self.items = items

    @property
    def ends(self) -> list[int]:
        return [item[0] for item in self.items if isinstance(item, list)]


def _message(text: str, phase: str = "") -> dict[str, Any]:
    message = {"type": "message", "role": "assistant", "content": text}
    return {**message, "phase": phase} if phase else message


def _valid(state: Mapping[str, Any]) -> _State | None:
    """A state in the form we pack; ids travel through clients, so anything may come back."""
    before, start, end = state.get("before"), state.get("from"), state.get("to")
    if state.get("kind") != KIND or not isinstance(before, list) or type(start) is not int or type(end) is not int:
        return None
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
    return _State(max(0, start), end, found)
