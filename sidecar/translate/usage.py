"""Usage in OpenAI's form, read into disjoint classes.

Used by the OpenAI-dialect providers and, through `UsageSniffer`, by the tap when no Translate middleware is mounted.
Rule: what a vendor does not say is `None`, never 0; a usage that makes no sense is unknown, never an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from sidecar.errors import UpstreamBrokenError
from sidecar.translate.framing import SSESplitter
from sidecar.types import UNKNOWN_USAGE, Usage

NOT_JSON = (msgspec.MsgspecError, RecursionError, UnicodeError)
"""What decoding hostile bytes may raise: malformed or of the wrong shape, nested too deeply, not UTF-8."""


_CACHED_BESIDE = ("prompt_cache_hit_tokens", "cached_tokens", "num_cached_tokens")
"""DeepSeek's, Moonshot's, Mistral's."""


MAX_COUNT = 1 << 31
"""No request has more tokens; one that says so would use up any budget, and be more than a ledger's row holds."""


def count(value: Any) -> int | None:
    """A token count, or `None` for anything that is not one."""
    if type(value) is int:
        return value if 0 <= value < MAX_COUNT else None
    if type(value) is float and value.is_integer():
        return count(int(value))
    return None


def _sub(source: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = source.get(name)
    return value if isinstance(value, dict) else {}


def usage_from_openai(source: Any) -> Usage:
    """OpenAI's `usage` object (https://platform.openai.com/docs/api-reference/chat/object) as disjoint classes.

    `prompt_tokens` includes cached, audio and image tokens; `completion_tokens` includes reasoning and audio. Quirks:
    DeepSeek counts cache hits in `prompt_cache_hit_tokens`
    (https://api-docs.deepseek.com/guides/kv_cache); some vendors put `reasoning_tokens` beside the total or leave it
    out of `completion_tokens` (https://docs.x.ai/docs/guides/reasoning), which the total shows; some report
    Anthropic's cache writes as `cache_write_tokens` or `cache_creation_tokens`.
    """
    if not isinstance(source, dict):
        return UNKNOWN_USAGE
    prompt = count(source.get("prompt_tokens"))
    completion = count(source.get("completion_tokens"))
    if prompt is None and completion is None:
        prompt, completion = count(source.get("input_tokens")), count(source.get("output_tokens"))
        prompt_details, completion_details = _sub(source, "input_tokens_details"), _sub(source, "output_tokens_details")
    else:
        prompt_details = _sub(source, "prompt_tokens_details")
        completion_details = _sub(source, "completion_tokens_details")
    if prompt is None and completion is None:
        return UNKNOWN_USAGE
    if completion is None and prompt is not None and (total := count(source.get("total_tokens"))) is not None:
        completion = max(0, total - prompt)

    cached = written = audio_input = image_input = None
    if prompt_details:
        cached = count(prompt_details.get("cached_tokens"))
        written = count(prompt_details.get("cache_write_tokens"))
        if written is None:
            written = count(prompt_details.get("cache_creation_tokens"))
        audio_input = count(prompt_details.get("audio_tokens"))
        image_input = count(prompt_details.get("image_tokens"))
    if cached is None:
        for name in _CACHED_BESIDE:
            if name in source and (cached := count(source[name])) is not None:
                break
    reasoning = audio_output = image_output = None
    if completion_details:
        reasoning = count(completion_details.get("reasoning_tokens"))
        audio_output = count(completion_details.get("audio_tokens"))
        image_output = count(completion_details.get("image_tokens"))
    if reasoning is None and "reasoning_tokens" in source:
        reasoning = count(source["reasoning_tokens"])

    plain_input = prompt
    if prompt is not None:
        plain_input = max(0, prompt - (cached or 0) - (written or 0) - (audio_input or 0) - (image_input or 0))
    plain_output = completion
    if completion is not None:
        inside = 0
        if reasoning:
            total = count(source.get("total_tokens"))
            is_exclusive = reasoning > completion or (
                total is not None and total == (prompt or 0) + completion + reasoning
            )
            inside = 0 if is_exclusive else reasoning
        plain_output = max(0, completion - inside - (audio_output or 0) - (image_output or 0))
    return Usage(
        input=plain_input,
        cached_input=cached,
        cache_write_5m=written,
        output=plain_output,
        reasoning=reasoning,
        audio_input=audio_input,
        audio_output=audio_output,
        image_input=image_input,
        image_output=image_output,
    )


NO_CHOICES_FIELD = msgspec.Raw(b"null")


class ChunkView(msgspec.Struct, gc=False):
    """The few top-level fields of an answer or chunk we look at; the rest is skipped (but must be JSON)."""

    choices: msgspec.Raw = NO_CHOICES_FIELD
    usage: Any = None
    error: Any = None
    x_groq: Any = None


decode_chunk = msgspec.json.Decoder(ChunkView).decode


def usage_of(view: ChunkView) -> Any:
    """The usage object of an answer or chunk; Groq's streams carry it in `x_groq`."""
    if view.usage is None and isinstance(view.x_groq, dict):
        return view.x_groq.get("usage")
    return view.usage


def has_content(choices: bytes) -> bool:
    """True if a chunk's `choices` hold anything a client would show or act on (not just the role)."""
    try:
        parsed = msgspec.json.decode(choices)
    except NOT_JSON:
        return False
    if not isinstance(parsed, list):
        return False
    for choice in parsed:
        if not isinstance(choice, dict):
            continue
        delta = choice.get("delta")
        if isinstance(delta, dict) and any(value for key, value in delta.items() if key != "role"):
            return True
        if choice.get("text"):
            return True
    return False


class AnswerReader:
    """Reads usage from an answer passing by; never raises, never changes a byte. A dialect says what its events and its
    whole body tell. Bodies and events over `limit` bytes have unknown usage."""

    __slots__ = ("_body", "_is_stream", "_limit", "_splitter", "_usage")

    def __init__(self, is_stream: bool = False, limit: int = 8 * 1024 * 1024) -> None:
        self._is_stream = is_stream
        self._limit = limit
        self._body = bytearray()
        self._splitter: SSESplitter | None = SSESplitter(limit) if is_stream else None
        self._usage: Usage | None = None

    def feed(self, data: bytes) -> None:
        if not self._is_stream:
            if len(self._body) <= self._limit:
                self._body += data
                self._usage = None
            return
        if self._splitter is None:
            return
        try:
            events = self._splitter.feed(data)
        except UpstreamBrokenError:
            self._splitter = None
            return
        for name, content, _ in events:
            if content is not None:
                try:
                    self._event(name, content)
                except NOT_JSON:
                    continue

    def _event(self, name: bytes, content: bytes) -> None:
        """May raise one of `NOT_JSON`."""
        raise NotImplementedError

    def _whole(self, body: bytes) -> Usage:
        """May raise one of `NOT_JSON`."""
        raise NotImplementedError

    @property
    def usage(self) -> Usage:
        """As far as seen; for an unstreamed body, once it is whole."""
        if self._usage is None and not self._is_stream and 0 < len(self._body) <= self._limit:
            try:
                self._usage = self._whole(bytes(self._body))
            except NOT_JSON:
                return UNKNOWN_USAGE
        return self._usage or UNKNOWN_USAGE


class UsageSniffer(AnswerReader):
    """Of an OpenAI-dialect answer, and whether it has begun and ended."""

    __slots__ = ("content_started", "is_complete")

    def __init__(self, is_stream: bool = False, limit: int = 8 * 1024 * 1024) -> None:
        super().__init__(is_stream, limit)
        self.content_started = False
        self.is_complete = False

    def feed(self, data: bytes) -> None:
        if data and not self._is_stream:
            self.content_started = True
        super().feed(data)

    def _event(self, name: bytes, content: bytes) -> None:
        if content.strip() == b"[DONE]":
            self.is_complete = True
            return
        view = decode_chunk(content)
        usage = usage_of(view)
        if usage is not None and (found := usage_from_openai(usage)).is_known:
            self._usage = found
        if not self.content_started:
            self.content_started = has_content(bytes(view.choices))

    def _whole(self, body: bytes) -> Usage:
        return usage_from_openai(decode_chunk(body).usage)
