"""OpenAI chat messages, part by part: what every provider's way in shares.

Neighbours: the providers, which say what they take and how. Rules: a part is parsed when it is its turn, so errors come
in the message's order; base64 is passed on as text and never decoded here but for its first bytes; every error names
its place.
https://platform.openai.com/docs/api-reference/chat/create#chat-create-messages
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgspec

from sidecar.errors import BadRequestError
from sidecar.translate.losses import note
from sidecar.translate.signatures import bare_id
from sidecar.translate.usage import NOT_JSON

ROLES = ("system", "developer", "user", "assistant", "tool")
IMAGE_TYPES = frozenset(("image/jpeg", "image/png", "image/gif", "image/webp"))
"""What every provider with pictures takes."""
TEXT_TYPES = frozenset(("text/plain", "text/markdown", "text/csv", "text/html", "application/json"))
MEDIA_PARTS = ("image_url", "file", "input_audio")
UNKNOWN_TYPE = "application/octet-stream"

_DATA_URL = re.compile(r"data:([\w.+/-]*)((?:;[\w.=+-]+)*?)(;base64)?,", re.ASCII)
_SAME_TYPE = {
    "image/jpg": "image/jpeg",
    "audio/mp3": "audio/mpeg",
    "audio/x-wav": "audio/wav",
    "audio/wave": "audio/wav",
}
_AUDIO_FORMATS = {"mp3": "audio/mpeg", "pcm16": "audio/pcm", "m4a": "audio/mp4"}
_WORD = "application/vnd.openxmlformats-officedocument."
_EXTENSIONS = {
    "pdf": "application/pdf",
    "txt": "text/plain",
    "md": "text/markdown",
    "csv": "text/csv",
    "html": "text/html",
    "htm": "text/html",
    "json": "application/json",
    "xml": "application/xml",
    "doc": "application/msword",
    "docx": f"{_WORD}wordprocessingml.document",
    "xls": "application/vnd.ms-excel",
    "xlsx": f"{_WORD}spreadsheetml.sheet",
    "pptx": f"{_WORD}presentationml.presentation",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "png": "image/png",
    "gif": "image/gif",
    "webp": "image/webp",
    "mp3": "audio/mpeg",
    "wav": "audio/wav",
    "mp4": "video/mp4",
}
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"%PDF-", "application/pdf"),
    (b"ID3", "audio/mpeg"),
    (b"fLaC", "audio/flac"),
    (b"OggS", "audio/ogg"),
)
_IN_RIFF = {b"WEBP": "image/webp", b"WAVE": "audio/wav"}


class Text(msgspec.Struct, frozen=True, gc=False):
    """Text; a refusal is text too. `source` is the part as it came, for marks like cache_control."""

    text: str
    where: str
    source: Mapping[str, Any]


class Image(msgspec.Struct, frozen=True, gc=False):
    """A picture: base64 `data` of `media_type`, or a `url` of any scheme (then `data` is empty)."""

    url: str
    media_type: str
    data: str
    detail: str | None
    where: str
    source: Mapping[str, Any]


class Audio(msgspec.Struct, frozen=True, gc=False):
    """Sound: base64 `data` of `media_type`, `format` as the client said it (wav, mp3)."""

    data: str
    format: str
    media_type: str
    where: str
    source: Mapping[str, Any]


class File(msgspec.Struct, frozen=True, gc=False):
    """A file: base64 `data` of `media_type`, a `url`, or the `file_id` of one uploaded; the others are empty."""

    data: str
    media_type: str
    url: str
    file_id: str
    filename: str
    where: str
    source: Mapping[str, Any]


class Other(msgspec.Struct, frozen=True, gc=False):
    """A part of a type OpenAI does not have (or that belongs to one vendor)."""

    kind: Any
    where: str
    source: Mapping[str, Any]


Part = Text | Image | Audio | File | Other


class ToolCall(msgspec.Struct, frozen=True, gc=False):
    """A call of the history. `id` is the provider's own; `given_id` is the client's, perhaps with packed state."""

    id: str
    given_id: str
    name: str
    arguments: dict[str, Any]
    where: str
    source: Mapping[str, Any]


def bad(message: str, param: str) -> BadRequestError:
    return BadRequestError(f"The gateway refused the request: {message}", code="invalid_request", param=param)


def messages_of(messages: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(role, message, where) of each; raises `BadRequestError` for what is no message."""
    if not isinstance(messages, list) or not messages:
        raise bad("'messages' must be a non-empty list.", "messages")
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise bad(f"'{where}' must be an object.", where)
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            fix = " Use role tool." if role == "function" else ""
            raise bad(
                f"'{where}.role' is {role!r:.60}; known are system, developer, user, assistant and tool.{fix}",
                f"{where}.role",
            )
        yield role, message, where


def parts_of(content: Any, where: str, takes: Collection[str] = MEDIA_PARTS) -> Iterator[Part]:
    """The parts of a message's content; a string is one text, `None` is nothing. Media not in `takes` come as `Other`,
    unread."""
    if content is None:
        return
    if isinstance(content, str):
        yield Text(content, where, {})
        return
    if not isinstance(content, list):
        raise bad(f"'{where}' must be a string or a list of parts.", where)
    for index, part in enumerate(content):
        here = f"{where}[{index}]"
        if isinstance(part, str):
            yield Text(part, here, {})
        elif not isinstance(part, dict):
            raise bad(f"'{here}' must be an object.", here)
        else:
            yield _part(part, here, takes)


def _part(part: dict[str, Any], where: str, takes: Collection[str]) -> Part:
    kind = part.get("type")
    if kind in ("text", "input_text", "output_text") or (kind == "refusal" and "refusal" in part):
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise bad(f"'{where}.text' must be a string.", f"{where}.text")
        return Text(text, where, part)
    if not isinstance(kind, str) or kind not in takes:
        return Other(kind, where, part)
    if kind == "image_url":
        return _image(part, where)
    if kind == "file":
        return _file(part, where)
    if kind == "input_audio":
        return _audio(part, where)
    return Other(kind, where, part)


def _image(part: dict[str, Any], where: str) -> Image:
    value = part.get("image_url")
    url = value.get("url") if isinstance(value, dict) else value
    if not isinstance(url, str) or not url:
        raise bad(f"'{where}.image_url.url' must be a URL.", f"{where}.image_url.url")
    detail = value.get("detail") if isinstance(value, dict) else None
    if detail is not None and not isinstance(detail, str):
        raise bad(f"'{where}.image_url.detail' must be a string.", f"{where}.image_url.detail")
    if url.startswith("data:"):
        media_type, data = split_data_url(url, f"{where}.image_url.url")
        return Image("", media_type, data, detail, where, part)
    return Image(url, "", "", detail, where, part)


def _audio(part: dict[str, Any], where: str) -> Audio:
    value = part.get("input_audio")
    data = value.get("data") if isinstance(value, dict) else None
    kind = value.get("format") if isinstance(value, dict) else None
    if not isinstance(data, str) or not data or not isinstance(kind, str) or not kind:
        raise bad(f"'{where}.input_audio' needs data and format.", f"{where}.input_audio")
    if data.startswith("data:"):
        media_type, data = split_data_url(data, f"{where}.input_audio.data")
        return Audio(data, kind, media_type, where, part)
    return Audio(data, kind, _AUDIO_FORMATS.get(kind, f"audio/{kind}"), where, part)


def _file(part: dict[str, Any], where: str) -> File:
    file = part.get("file")
    if not isinstance(file, dict):
        raise bad(f"'{where}.file' must be an object.", f"{where}.file")
    data, file_id, url, name = (
        _text_field(file, name, where) for name in ("file_data", "file_id", "file_url", "filename")
    )
    media_type = ""
    if data.startswith("data:"):
        media_type, data = split_data_url(data, f"{where}.file.file_data")
    elif data.startswith(("https://", "http://")):
        url, data = data, ""
    elif data:
        media_type = sniff_base64(data) or ""
    if data and media_type in ("", UNKNOWN_TYPE):
        media_type = type_of_name(name) or "application/pdf"
    if not data and not file_id and not url:
        raise bad(f"'{where}.file' needs file_data or file_id.", f"{where}.file")
    return File(data, media_type, url, file_id, name, where, part)


def _text_field(file: Mapping[str, Any], name: str, where: str) -> str:
    value = file.get(name)
    if value is not None and not isinstance(value, str):
        raise bad(f"'{where}.file.{name}' must be a string.", f"{where}.file.{name}")
    return value or ""


def split_data_url(url: str, where: str) -> tuple[str, str]:
    """(media type, base64 data) of a data URL. A picture's or sound's type is what its first bytes are, where these
    tell: clients often say another of the kind, and providers refuse what does not fit."""
    match = _DATA_URL.match(url)
    if match is None or match.group(3) is None:
        raise bad(f"'{where}' is a data URL that is not base64 (data:TYPE;base64,DATA).", where)
    data = url[match.end() :]
    stated = match.group(1).lower()
    stated = _SAME_TYPE.get(stated, stated)
    return _settled(stated, sniff_base64(data)), data


def settle_type(stated: str, first_bytes: bytes) -> str:
    """The media type of data that says it is `stated`."""
    return _settled(_SAME_TYPE.get(stated, stated), sniff(first_bytes))


def _settled(stated: str, found: str | None) -> str:
    if found is None:
        return stated or UNKNOWN_TYPE
    is_vague = stated in ("", UNKNOWN_TYPE, "binary/octet-stream")
    return found if is_vague or found.split("/")[0] == stated.split("/")[0] != "application" else stated


def sniff_base64(data: str) -> str | None:
    """The media type by the first bytes, or `None`."""
    try:
        return sniff(base64.b64decode(data[:24], validate=True))
    except (binascii.Error, ValueError):
        return None


def sniff(data: bytes) -> str | None:
    """The media type by the first bytes, or `None` where they don't tell. https://mimesniff.spec.whatwg.org"""
    for magic, media_type in _MAGIC:
        if data.startswith(magic):
            return media_type
    if data.startswith(b"RIFF"):
        return _IN_RIFF.get(data[8:12])
    return None


def type_of_name(filename: str) -> str | None:
    """The media type by a file name's ending; our own table, for the system's may be empty."""
    return _EXTENSIONS.get(filename.rpartition(".")[2].lower()) if "." in filename else None


_READ_BY_VENDORS = ("youtube.com", "youtu.be", "generativelanguage.googleapis.com")
"""Hosts from which Gemini reads films by itself."""


def counts_as_picture(url: str) -> bool:
    """True for a link that is held for as a picture: what comes from there has to be one."""
    kind = type_of_name(url.partition("?")[0].partition("#")[0])
    if kind is not None:
        return kind.startswith("image/")
    name = url.lower()
    return name.startswith(("https://", "http://")) and not any(host in name for host in _READ_BY_VENDORS)


def check_picture(url: str, fetched_type: str, where: str) -> None:
    """Raises `BadRequestError` for a link given as a picture that leads to a film or a document."""
    kind = fetched_type.partition(";")[0].strip().lower()
    if not kind.startswith("image/") and not kind.endswith("/octet-stream") and counts_as_picture(url):
        raise bad(
            f"'{where}' is {kind or 'of no known type'} and no picture; send it as a part of type file, or video_url.",
            f"{where}.image_url",
        )


def tool_call(call: Any, where: str) -> ToolCall:
    """A call of the history. Arguments a model once said wrongly must not end the conversation: what is no JSON object
    becomes `{"malformed_arguments": …}`."""
    if not isinstance(call, dict):
        raise bad(f"'{where}' must be an object.", where)
    function = call.get("function")
    if call.get("type") not in (None, "function") or not isinstance(function, dict):
        raise bad(f"'{where}' must be a function call; there are no custom tools here.", f"{where}.type")
    given, name = call.get("id"), function.get("name")
    if not isinstance(given, str) or not given:
        raise bad(f"'{where}.id' must be a non-empty string.", f"{where}.id")
    if not isinstance(name, str) or not name:
        raise bad(f"'{where}.function.name' must be a non-empty string.", f"{where}.function.name")
    return ToolCall(bare_id(given), given, name, arguments_of(function.get("arguments")), where, call)


def arguments_of(arguments: Any) -> dict[str, Any]:
    given: Any = {}
    if isinstance(arguments, str) and arguments.strip():
        try:
            given = msgspec.json.decode(arguments.encode("utf-8", "surrogatepass"))
        except NOT_JSON:
            given = arguments
    elif isinstance(arguments, dict):
        given = arguments
    if isinstance(given, dict):
        return given
    note("replaced", "tool call arguments", "no JSON object; sent as {malformed_arguments: …}")
    return {"malformed_arguments": arguments}


def tool_calls_of(message: Mapping[str, Any], where: str) -> Iterator[ToolCall]:
    calls = message.get("tool_calls")
    if calls is None:
        return
    if not isinstance(calls, list):
        raise bad(f"'{where}.tool_calls' must be a list.", f"{where}.tool_calls")
    for index, call in enumerate(calls):
        yield tool_call(call, f"{where}.tool_calls[{index}]")


def remote_urls(payload: Mapping[str, Any]) -> tuple[str, ...]:
    """http(s) URLs of pictures and files in the messages, each once, in order: what a provider that wants bytes inline
    `needs`. Never raises; what is malformed is refused when it is mapped."""
    found: dict[str, None] = {}
    messages = payload.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in ("image_url", "file"):
                continue
            value = part.get(kind)
            urls: list[Any] = [value] if isinstance(value, str) else []
            if isinstance(value, dict):
                urls = [value.get(name) for name in (("url",) if kind == "image_url" else ("file_data", "file_url"))]
            for url in urls:
                if isinstance(url, str) and url.startswith(("https://", "http://")):
                    found[url] = None
    return tuple(found)
