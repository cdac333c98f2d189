"""Upper bounds for admission, before the provider has counted: cheap, no tokenizer.

Rule: `estimate_input_tokens` is never under. Every tokenizer in use works on bytes and emits no more tokens than
bytes, and the JSON of a request is longer than its text, so the body's length bounds text, tools and schemas.
Media is bounded by kind instead (`media_bounds`), because a picture's tokens have nothing to do with its bytes.
`likely_input_tokens` is the fairer guess for token windows (`tpm`), which are corrected at settle.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sidecar.translate.content import counts_as_picture, type_of_name
from sidecar.translate.media_bounds import FILE_TOKENS, WINDOW_TOKENS, Rates, file_tokens, is_inline, sound_tokens
from sidecar.types import Deployment

BASE_TOKENS = 16
TOOL_TOKENS = 1_000
"""Vendors add a system prompt of their own when tools are given (Anthropic: up to 804 tokens).
https://platform.claude.com/docs/en/agents-and-tools/tool-use/overview"""
IMAGE_TOKENS = 5_000
"""Anthropic's largest picture is under 4,800 tokens, OpenAI's gpt-4.1-nano's under 3,800, gpt-4o's under 1,500.
https://platform.claude.com/docs/en/build-with-claude/vision https://ai.google.dev/gemini-api/docs/media-resolution"""
IMAGE_TOKENS_MOST = 50_000
"""gpt-4o-mini counts a picture about 33 times as high as gpt-4o; from gpt-5.6 on pictures keep their size, up to 30,000
patches of 1.2 tokens; Qwen's are 16,384 at most. https://developers.openai.com/api/docs/guides/images-vision
https://huggingface.co/Qwen/Qwen2-VL-7B-Instruct"""
_SCALED = re.compile(
    r"claude|gemini|gpt-4(?!o-mini)|gpt-5(?:\.[0-2])?(?![.\d])|(?<![a-z\d])o[134](?![a-z\d.])", re.IGNORECASE
)
"""Models known to make large pictures smaller, whatever they are asked."""
_SCALED_IF_ASKED = re.compile(r"gpt-[5-9]", re.IGNORECASE)
"""With `detail` low or high to 2,500 patches."""
PREDICTED = 4
"""What is predicted and not written is billed as output, which costs four times the input where predictions are taken;
no output cap bounds it. https://platform.openai.com/docs/guides/predicted-outputs"""
LIKELY = Rates(1_500, 30_000, 0)
"""Of a film about two minutes; of a file its bytes."""
SPOKEN_TOKENS = 16_384
"""An earlier answer's sound, named by its id: no model speaks longer at once.
https://platform.openai.com/docs/models/gpt-4o-audio-preview"""
_PICTURES = ("image_url", "image", "input_image")
_FILMS = ("video_url", "audio_url", "video", "input_video")
_PAPERS = ("document_url", "document")


def _linked_tokens(url: str, stated: str | None, film_tokens: int) -> int:
    """Of a file given by its URL or id."""
    kind = stated or type_of_name(url.partition("?")[0].partition("#")[0])
    if kind is not None:
        return film_tokens if kind.startswith(("video/", "audio/")) else FILE_TOKENS
    if url.startswith("files/") or (":" in url and not counts_as_picture(url)):
        return film_tokens  # whatever the vendor finds there
    return FILE_TOKENS


def _file_tokens(file: Any, rates: Rates) -> tuple[int, int]:
    """Of data and a reference side by side the dearer: vendors differ in which they read."""
    if not isinstance(file, dict):
        return FILE_TOKENS, 0
    data, stated, name = (_text(file, field) for field in ("file_data", "format", "filename"))
    named = [found for found in (_text(file, "file_url"), _text(file, "file_id")) if found]
    size = 0
    if data.startswith(("https://", "http://")):
        named.append(data)
    else:
        size = len(data)
    tokens = file_tokens(data, rates, stated, name) if size else 0
    for url in named if named or size else ("",):
        tokens = max(tokens, _linked_tokens(url, stated or type_of_name(name), rates.film))
    return tokens, size


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _address(value: Any) -> Any:
    return value.get("url") if isinstance(value, dict) else value


def picture_rates(model: Any, served_by: Sequence[Deployment]) -> Rates:
    """By the models that may serve it; the client's name for them, where nobody knows these, is all there is."""
    names = [deployment.model for deployment in served_by] or [str(model or "")]
    most = [IMAGE_TOKENS if _SCALED.search(name) else IMAGE_TOKENS_MOST for name in names]
    asked = [IMAGE_TOKENS if _SCALED_IF_ASKED.search(name) else found for name, found in zip(names, most, strict=True)]
    return Rates(max(most), scaled=max(asked))


def _part_tokens(part: Mapping[str, Any], rates: Rates) -> tuple[int, int]:
    """(tokens of one part, bytes of its data inside the body)."""
    kind = part.get("type")
    value = part.get(kind) if isinstance(kind, str) else None
    if kind in _PICTURES:
        url = _address(value)
        rates = rates.at(value.get("detail") if isinstance(value, dict) else None)
        if not isinstance(url, str):
            return rates.picture, 0
        if is_inline(url):
            # What is called a picture may be a document all the same, which some vendors read as one.
            return file_tokens(url, rates), len(url)
        return rates.picture if counts_as_picture(url) else _linked_tokens(url, None, rates.film), 0
    if kind in ("file", "input_file"):
        return _file_tokens(value if kind == "file" else part, rates)
    if kind == "input_audio":
        data = value.get("data") if isinstance(value, dict) else value
        if not isinstance(data, str):
            return 100, 0
        if data.startswith(("https://", "http://")):
            return rates.film, 0
        return sound_tokens(data, rates), len(data)
    if kind in _FILMS:
        url = _address(value)
        if isinstance(url, str) and is_inline(url):
            return (sound_tokens(url, rates) if kind == "audio_url" else rates.film), len(url)
        return rates.film, 0
    if kind in _PAPERS:
        url = _address(value)
        if isinstance(url, str) and is_inline(url):
            return max(FILE_TOKENS, file_tokens(url, rates)), len(url)
        return FILE_TOKENS, 0
    return 0, 0


def _media_tokens(payload: Mapping[str, Any], rates: Rates) -> tuple[int, int]:
    """(tokens of media parts, bytes of their data inside the body)."""
    tokens = inline = 0
    messages = payload.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if not isinstance(message, dict):
            continue
        if message.get("audio") is not None:
            tokens += SPOKEN_TOKENS
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict):
                found, size = _part_tokens(part, rates)
                tokens += found
                inline += size
    return tokens, inline


def _is_list_content(payload: Mapping[str, Any]) -> bool:
    messages = payload.get("messages")
    return isinstance(messages, list) and any(
        isinstance(message, dict) and (isinstance(message.get("content"), list) or message.get("audio") is not None)
        for message in messages
    )


def estimate_input_tokens(payload: Mapping[str, Any], raw_len: int, served_by: Sequence[Deployment] = ()) -> int:
    """An upper bound of the request's input tokens. `raw_len` is the body's length in bytes; what a picture counts
    depends on who may serve it, whatever the client calls that."""
    extra = BASE_TOKENS
    if payload.get("tools") or payload.get("functions") or payload.get("response_format"):
        extra += TOOL_TOKENS
    if payload.get("cached_content"):
        extra += WINDOW_TOKENS
    if payload.get("prediction") is not None:
        extra += PREDICTED * raw_len
    if not _is_list_content(payload):
        return raw_len + extra
    tokens, inline = _media_tokens(payload, picture_rates(payload.get("model"), served_by))
    return max(0, raw_len - inline) + extra + tokens


def likely_input_tokens(payload: Mapping[str, Any], raw_len: int) -> int:
    """A fair guess (about three bytes a token), for windows whose surplus is settled afterwards."""
    if not _is_list_content(payload):
        return raw_len // 3 + BASE_TOKENS
    tokens, inline = _media_tokens(payload, LIKELY)
    return max(0, raw_len - inline) // 3 + BASE_TOKENS + tokens


def requested_output_tokens(payload: Mapping[str, Any]) -> int | None:
    """The most output the client allows over all its `n` choices, or `None` if it sets no bound, or one that vendors
    read differently. Of two bounds the larger: some vendors heed only one of them."""
    first, second = payload.get("max_completion_tokens"), payload.get("max_tokens")
    cap = 0
    for value in (first, second):
        if value is not None:
            if type(value) is not int or value <= 0:
                return None
            cap = max(cap, value)
    return cap * requested_choices(payload) if cap else None


def requested_choices(payload: Mapping[str, Any]) -> int:
    """`n`, also as a text or a fraction, which some vendors round."""
    value = payload.get("n")
    if value is None or value == 1:
        return 1
    try:
        return max(1, math.ceil(float(value)))
    except (TypeError, ValueError, OverflowError):
        return 1
