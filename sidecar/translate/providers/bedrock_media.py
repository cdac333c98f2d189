"""Pictures, documents, video and sound as Converse's blocks: bytes as base64, or where they lie in S3.

Neighbour: `bedrock_content`.
https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_DocumentBlock.html
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from sidecar.translate.content import (
    Audio,
    File,
    Image,
    Other,
    Part,
    bad,
    check_picture,
    remote_urls,
    sniff,
    split_data_url,
    type_of_name,
)
from sidecar.translate.provider import Call

Block = dict[str, Any]
Drop = Callable[[str, str], None]
"""`drop(param, fix)`: notes a field left out by policy, or raises the 400 that names it."""

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9\s()\[\]-]+")
_SPACES = re.compile(r"\s+")

_IMAGES = {"image/png": "png", "image/jpeg": "jpeg", "image/gif": "gif", "image/webp": "webp"}
_OFFICE = "application/vnd.openxmlformats-officedocument."
_DOCUMENTS = {
    "application/pdf": "pdf",
    "text/csv": "csv",
    "application/msword": "doc",
    f"{_OFFICE}wordprocessingml.document": "docx",
    "application/vnd.ms-excel": "xls",
    f"{_OFFICE}spreadsheetml.sheet": "xlsx",
    "text/html": "html",
    "text/plain": "txt",
    "text/markdown": "md",
    "application/json": "txt",
    "application/xml": "txt",
}
_VIDEOS = {
    "video/mp4": "mp4",
    "video/webm": "webm",
    "video/quicktime": "mov",
    "video/x-matroska": "mkv",
    "video/x-flv": "flv",
    "video/mpeg": "mpeg",
    "video/x-ms-wmv": "wmv",
    "video/3gpp": "three_gp",
}
_AUDIO = {"audio/mpeg": "mp3", "audio/x-m4a": "m4a", "audio/x-matroska": "mka"}
_AUDIO_FORMATS = frozenset(
    ("mp3", "opus", "wav", "aac", "flac", "mp4", "ogg", "mkv", "mka", "x-aac", "m4a", "mpeg", "mpga", "pcm", "webm")
)
_BY_ENDING = {
    "mov": "video/quicktime",
    "mkv": "video/x-matroska",
    "webm": "video/webm",
    "flv": "video/x-flv",
    "mpeg": "video/mpeg",
    "mpg": "video/mpeg",
    "wmv": "video/x-ms-wmv",
    "3gp": "video/3gpp",
}


def wanted_urls(payload: Mapping[str, Any]) -> tuple[str, ...]:
    """http(s) URLs whose bytes have to be in the request; Converse takes S3's only."""
    found = dict.fromkeys(remote_urls(payload))
    messages = payload.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            value = part.get("video_url") if isinstance(part, dict) and part.get("type") == "video_url" else None
            url = value.get("url") if isinstance(value, dict) else value
            if isinstance(url, str) and url.startswith(("https://", "http://")):
                found[url] = None
    return tuple(found)


class MediaBlocks:
    """One request's files; no two documents have one name."""

    __slots__ = ("call", "documents", "drop")

    def __init__(self, call: Call, drop: Drop) -> None:
        self.call = call
        self.drop = drop
        self.documents: set[str] = set()

    def block(self, part: Part) -> Block | None:
        if isinstance(part, Image):
            if part.detail not in (None, "auto"):
                self.drop(f"{part.where}.image_url.detail", "Bedrock has no picture detail; remove it or say auto.")
            block = self._bytes(part.url, part.media_type, part.data, "", part.where)
            if "image" not in block:
                check_picture(part.url, "a document, film or sound", part.where)
            return block
        if isinstance(part, File):
            if not part.data and not part.url:
                raise bad(f"'{part.where}.file.file_id' is not known to Bedrock; send the bytes.", f"{part.where}.file")
            return self._bytes(part.url, part.media_type, part.data, part.filename, part.where)
        if isinstance(part, Audio):
            kind = _AUDIO.get(part.media_type, part.format.removesuffix("16"))
            if kind not in _AUDIO_FORMATS:
                raise bad(f"'{part.where}.input_audio.format' is none Bedrock takes.", f"{part.where}.input_audio")
            return {"audio": {"format": kind, "source": {"bytes": part.data}}}
        if isinstance(part, Other) and part.kind == "video_url":
            value = part.source.get("video_url")
            url = value.get("url") if isinstance(value, dict) else value
            where = f"{part.where}.video_url.url"
            if not isinstance(url, str) or not url:
                raise bad(f"'{where}' must be a URL.", where)
            if url.startswith("data:"):
                media_type, data = split_data_url(url, where)
                return self._bytes("", media_type, data, "", part.where)
            return self._bytes(url, "", "", "", part.where)
        return None

    def _bytes(self, url: str, media_type: str, data: str, filename: str, where: str) -> Block:
        """Whatever a file is, by its type: an image, document, video or sound."""
        if url.startswith("s3://"):
            return self._block(_type_of(url), {"s3Location": {"uri": url}}, url, filename, where)
        if url:
            media = self.call.media.get(url)
            if media is None:
                raise bad(f"'{where}' must be an http(s), s3 or data URL that the gateway can fetch.", where)
            given = media.content_type.partition(";")[0].strip().lower()
            told = "" if given.endswith("/octet-stream") else given
            media_type = sniff(media.data) or told or _type_of(url)
            data = base64.b64encode(media.data).decode()
        if not data:
            raise bad(f"'{where}' holds no bytes.", where)
        if filename and media_type not in _IMAGES and media_type not in _DOCUMENTS:
            media_type = type_of_name(filename) or _type_of(filename) or media_type
        return self._block(media_type, {"bytes": data}, data, filename, where)

    def _block(self, media_type: str, source: Block, content: str, filename: str, where: str) -> Block:
        if media_type in _IMAGES:
            return {"image": {"format": _IMAGES[media_type], "source": source}}
        kind = _DOCUMENTS.get(media_type, "txt" if media_type.startswith("text/") else "")
        if kind:
            name = self._document_name(filename, content)
            return {"document": {"format": kind, "name": name, "source": source}}
        if media_type in _VIDEOS:
            return {"video": {"format": _VIDEOS[media_type], "source": source}}
        if media_type.startswith("audio/"):
            kind = _AUDIO.get(media_type, media_type[6:].removeprefix("x-"))
            if kind in _AUDIO_FORMATS:
                return {"audio": {"format": kind, "source": source}}
        raise bad(
            f"'{where}' is {media_type or 'of no known type'}; Bedrock takes pictures (JPEG, PNG, GIF, WebP), "
            "documents (PDF, Word, Excel, CSV, HTML, text), video and audio.",
            where,
        )

    def _document_name(self, filename: str, content: str) -> str:
        """Converse wants one for every document, of letters, digits, single spaces, hyphens and brackets, and no two
        alike. It depends on what stands before it only, so the prompt's prefix stays cached."""
        stem = filename.rpartition(".")[0] or filename
        name = _SPACES.sub(" ", _NOT_IN_NAMES.sub(" ", stem)).strip()[:100].strip()
        if not name or name in self.documents:
            digest = hashlib.sha256(content.encode("ascii", "replace")).hexdigest()[:16]
            name = f"{name or 'document'} {digest}"
        base, count = name, 1
        while name in self.documents:
            count += 1
            name = f"{base} {count}"
        self.documents.add(name)
        return name


def _type_of(url: str) -> str:
    path = url.partition("?")[0].partition("#")[0]
    return type_of_name(path) or _BY_ENDING.get(path.rpartition(".")[2].lower(), "")
