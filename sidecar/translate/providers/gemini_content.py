"""OpenAI chat messages as Gemini contents, part by part.

Neighbour: `gemini_request`, which maps everything else of the request. Rules: a part or field that cannot be said is a
400 naming its place; a signed part is never merged with another; the results of one turn's calls come in one turn.
https://ai.google.dev/api/caching#Content · https://ai.google.dev/gemini-api/docs/thought-signatures
"""

from __future__ import annotations

import base64
import posixpath
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from sidecar.translate.content import (
    Audio,
    File,
    Image,
    Text,
    ToolCall,
    bad,
    check_picture,
    messages_of,
    parts_of,
    remote_urls,
    split_data_url,
    tool_calls_of,
    type_of_name,
)
from sidecar.translate.content import Part as Given
from sidecar.translate.nested import NestedFields
from sidecar.translate.provider import Media
from sidecar.translate.providers.gemini_models import ModelTraits
from sidecar.translate.signatures import MARK, bare_id, unpack
from sidecar.translate.tool_names import ToolNames
from sidecar.translate.usage import NOT_JSON

Part = dict[str, Any]
Drop = Callable[[str, str], None]
"""`drop(param, fix)`: notes a field left out by policy, or raises the 400 that names it."""

NO_SIGNATURE = "skip_thought_signature_validator"
"""What Google says to send for a call that never had a signature, of another model say.
https://ai.google.dev/gemini-api/docs/thought-signatures#faqs"""

FILES_API = "https://generativelanguage.googleapis.com/v1beta/"
_YOUTUBE = frozenset(("youtube.com", "www.youtube.com", "m.youtube.com", "youtu.be"))
NESTED = NestedFields(
    "Gemini",
    message=("cache_control",),
    assistant=("images",),
    tool_result=("is_error",),
    part=("cache_control",),
    file=("format",),
    call=("cache_control",),
    tool=("cache_control",),
)
"""`cache_control` asks for what Gemini does by itself with a repeated beginning.
https://ai.google.dev/gemini-api/docs/caching#implicit-caching"""
_DETAILS = {
    "low": "MEDIA_RESOLUTION_LOW",
    "medium": "MEDIA_RESOLUTION_MEDIUM",
    "high": "MEDIA_RESOLUTION_HIGH",
}
_OWN_CALLS = frozenset(("toolCall", "toolResponse", "thoughtSignature"))
_THOUGHTS = ("thinking", "redacted_thinking")


def goes_by_uri(url: str) -> bool:
    """True for what Gemini fetches itself: files uploaded to it, Cloud Storage, YouTube. Other URLs are not taken by
    all models, so their bytes are sent. https://ai.google.dev/gemini-api/docs/file-input-methods"""
    if url.startswith(("gs://", FILES_API)):
        return True
    try:
        return urlsplit(url).hostname in _YOUTUBE
    except ValueError:
        return False


def urls_to_fetch(payload: Mapping[str, Any]) -> tuple[str, ...]:
    found = dict.fromkeys(url for url in remote_urls(payload) if not goes_by_uri(url))
    for url in _video_urls(payload):
        if url.startswith(("https://", "http://")) and not goes_by_uri(url):
            found[url] = None
    return tuple(found)


def _video_urls(payload: Mapping[str, Any]) -> Iterator[str]:
    messages = payload.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.get("type") == "video_url":
                value = part.get("video_url")
                url = value.get("url") if isinstance(value, dict) else value
                if isinstance(url, str):
                    yield url


class Contents:
    """The conversation as it is built up. `resolution` is what generationConfig has to say of the pictures."""

    def __init__(
        self,
        provider: str,
        model: ModelTraits,
        names: ToolNames,
        media: Mapping[str, Media],
        drop: Drop,
        *,
        needs_type: bool,
    ) -> None:
        self.system: list[Part] = []
        self.turns: list[dict[str, Any]] = []
        self.resolution = ""
        self._provider = provider
        self._model = model
        self._names = names
        self._media = media
        self._drop = drop
        self._needs_type = needs_type
        self._calls: dict[str, tuple[int, str, str | None]] = {}  # id → (number, sent name, Gemini's own id)

    def take(self, messages: Any) -> None:
        results: list[tuple[int, list[Part]]] = []
        for role, message, where in messages_of(messages):
            NESTED.message(role, message, where, self._drop)
            if role == "tool":
                results.append(self._result(message, where))
                continue
            if results:
                self._add_results(results)
                results = []
            if role == "assistant":
                self._assistant(message, where)
            else:
                parts = self._parts(message.get("content"), f"{where}.content", allows_media=role == "user")
                if role != "user":
                    if not self.turns:
                        self.system += parts
                        continue
                    for part in parts:
                        part["text"] = f"<system>\n{part['text']}\n</system>"
                self._add("user", parts)
        if results:
            self._add_results(results)
        if not self.turns:
            if not self.system:
                raise bad("'messages' holds no content.", "messages")
            self.turns, self.system = [{"role": "user", "parts": self.system}], []

    def _add(self, role: str, parts: list[Part]) -> None:
        if not parts:
            return
        last = self.turns[-1] if self.turns else None
        if last is not None and last["role"] == role and "functionResponse" not in last["parts"][0]:
            last["parts"] += parts
        else:
            self.turns.append({"role": role, "parts": parts})

    def _add_results(self, results: list[tuple[int, list[Part]]]) -> None:
        """One turn, in the order of the calls: those without ids are told apart by it."""
        results.sort(key=lambda result: result[0])
        parts = [part for _, found in results for part in found]
        parts.sort(key=lambda part: "functionResponse" not in part)
        self.turns.append({"role": "user", "parts": parts})

    def _parts(self, content: Any, where: str, *, allows_media: bool) -> list[Part]:
        found: list[Part] = []
        for given in parts_of(content, where):
            NESTED.part(given.source, given.where, self._drop)
            if isinstance(given, Text):
                if given.text:
                    found.append({"text": given.text})
            elif allows_media:
                found.append(self._medium(given))
            else:
                kind = given.source.get("type")
                raise bad(f"'{given.where}' has type {kind!r:.60}; here Gemini takes text.", f"{given.where}.type")
        return found

    def _medium(self, given: Given) -> Part:
        where = given.where
        if isinstance(given, Image):
            if (fetched := self._media.get(given.url)) is not None:
                check_picture(given.url, fetched.content_type, where)
            part = self._linked(given.url, "", where) if given.url else _blob(given.media_type, given.data)
            if given.detail not in (None, "auto"):
                self._detail(part, given.detail or "", where)
            return part
        if isinstance(given, Audio):
            return _blob(given.media_type, given.data)
        if isinstance(given, File):
            form = given.source["file"].get("format")
            stated = form if isinstance(form, str) else ""
            if given.data:
                return _blob(stated or given.media_type, given.data)
            url = given.url or given.file_id
            return self._linked(url, stated or type_of_name(given.filename) or "", where)
        kind = given.source.get("type") if not isinstance(given, Text) else "text"
        if kind == "video_url":
            value = given.source.get("video_url")
            video = value.get("url") if isinstance(value, dict) else value
            if isinstance(video, str) and video.startswith("data:"):
                return _blob(*split_data_url(video, f"{where}.video_url.url"))
            if isinstance(video, str) and video:
                return self._linked(video, "", where)
        raise bad(
            f"'{where}' has type {kind!r:.60}; Gemini takes text, image_url, file, input_audio and video_url parts.",
            f"{where}.type",
        )

    def _linked(self, url: str, media_type: str, where: str) -> Part:
        if url.startswith(("https://", "http://")) and not goes_by_uri(url):
            fetched = self._media.get(url)
            if fetched is None:
                raise bad(f"'{where}' is a URL whose content was not fetched.", where)
            return _blob(fetched.content_type, base64.b64encode(fetched.data).decode())
        if url.startswith("files/"):
            url = FILES_API + url
        elif not url.startswith(("gs://", "https://", "http://")):
            raise bad(f"'{where}' must be a data URL, an http(s) or gs:// URL, or files/….", where)
        if not media_type:
            media_type = type_of_name(posixpath.basename(urlsplit(url).path)) or ""
        if not media_type and urlsplit(url).hostname in _YOUTUBE:
            media_type = "video/mp4"
        if not media_type and self._needs_type:
            raise bad(f"'{where}' needs its media type: send it as a file with 'format'.", where)
        return {"fileData": {**({"mimeType": media_type} if media_type else {}), "fileUri": url}}

    def _detail(self, part: Part, detail: str, where: str) -> None:
        level = _DETAILS.get(detail)
        if level is None:
            self._drop(f"{where}.image_url.detail", "Gemini has low, medium and high; send one of them or auto.")
        elif self._model.is_three:
            part["mediaResolution"] = {"level": level}
        else:  # one for all of the request; the finest asked for, which loses nothing
            order = (*_DETAILS.values(),)
            if not self.resolution or order.index(level) > order.index(self.resolution):
                self.resolution = level

    def _assistant(self, message: Mapping[str, Any], where: str) -> None:
        content = message.get("content")
        if isinstance(content, list):  # another provider's thoughts say nothing to Gemini
            content = [part for part in content if not (isinstance(part, dict) and part.get("type") in _THOUGHTS)]
        texts = self._parts(content, f"{where}.content", allows_media=False)
        refusal = message.get("refusal")
        if isinstance(refusal, str) and refusal:
            texts.append({"text": refusal})
        calls = list(tool_calls_of(message, where))
        for call in calls:
            NESTED.call(call.source, call.where, self._drop)
        if not calls:
            self._add("model", texts)
            return
        states = [self._state(call) for call in calls]
        parts = _Replay(texts).parts(calls, states, self._function_call) if any(states) else []
        if not parts:
            parts = [*texts, *(self._function_call(call, {}) for call in calls)]
        if self._model.is_three:
            first = next(part for part in parts if "functionCall" in part)
            first.setdefault("thoughtSignature", NO_SIGNATURE)
        self._add("model", parts)

    def _state(self, call: ToolCall) -> Mapping[str, Any]:
        if MARK not in call.given_id:
            return {}
        _, state = unpack(call.given_id)
        return state if state is not None and state.get("kind") == self._provider else {}

    def _function_call(self, call: ToolCall, state: Mapping[str, Any]) -> Part:
        own = call.id if state.get("own") else None
        name = self._names.sent(call.name)
        self._calls[call.id] = (len(self._calls), name, own)
        part: Part = {"functionCall": {**({"id": own} if own else {}), "name": name, "args": call.arguments}}
        if isinstance(state.get("sig"), str):
            part["thoughtSignature"] = state["sig"]
        return part

    def _result(self, message: Mapping[str, Any], where: str) -> tuple[int, list[Part]]:
        given = message.get("tool_call_id")
        if not isinstance(given, str) or not given:
            raise bad(f"'{where}.tool_call_id' must be a non-empty string.", f"{where}.tool_call_id")
        number, name, own = self._calls.get(bare_id(given), (len(self._calls), "", None))
        if not name:
            stated = message.get("name")
            if not isinstance(stated, str) or not stated:
                raise bad(f"'{where}.tool_call_id' is the id of no tool call before it.", f"{where}.tool_call_id")
            name = self._names.sent(stated)
        parts = self._parts(message.get("content"), f"{where}.content", allows_media=True)
        text = "".join(part["text"] for part in parts if "text" in part)
        media = [part for part in parts if "text" not in part]
        key = "error" if message.get("is_error") is True else "output"
        response: Part = {**({"id": own} if own else {}), "name": name, "response": {key: _value(text)}}
        if media and self._model.is_three:
            response["parts"] = media
            media = []
        return number, [{"functionResponse": response}, *media]


def _blob(media_type: str, data: str) -> Part:
    return {"inlineData": {"mimeType": media_type, "data": data}}


def _value(text: str) -> Any:
    """A result that is JSON is sent as such, byte for byte; other text as text."""
    if text[:1] in ("{", "["):
        try:
            raw = text.encode("utf-8")
            msgspec.json.decode(raw)
            return msgspec.Raw(raw)
        except NOT_JSON:
            pass
    return text


class _Replay:
    """The turn as Gemini said it: what the ids carried in its place, the text (which the client may have changed) cut
    where a signature stood on it."""

    def __init__(self, texts: list[Part]) -> None:
        self._text = "".join(part["text"] for part in texts)
        self._at = 0
        self._parts: list[Part] = []

    def _say(self, end: int, signature: str = "") -> None:
        end = max(self._at, end)
        piece, self._at = self._text[self._at : end], end
        if signature:
            self._parts.append({"text": piece, "thoughtSignature": signature})
        elif piece:
            self._parts.append({"text": piece})

    def parts(
        self,
        calls: list[ToolCall],
        states: list[Mapping[str, Any]],
        make: Callable[[ToolCall, Mapping[str, Any]], Part],
    ) -> list[Part]:
        if not any("at" in state or "before" in state for state in states):
            self._say(len(self._text))
        for call, state in zip(calls, states, strict=True):
            before = state.get("before")
            for item in before if isinstance(before, list) else ():
                if isinstance(item, dict) and item.keys() <= _OWN_CALLS:
                    self._parts.append(item)
                elif isinstance(item, list) and len(item) == 3 and isinstance(item[2], str):
                    start, end, signature = item
                    if type(start) is int and type(end) is int:
                        self._say(start)
                        self._say(end, signature)
            if type(state.get("at")) is int:
                self._say(state["at"])
            self._parts.append(make(call, state))
        self._say(len(self._text))
        return self._parts
