"""What a file inside a request may count at most, told by its first bytes and not by what it is called.

Neighbours: `estimate` and `dialects/responses`, which find the parts. Rule: text, pictures, MP3 and plain waves are
counted by what is there, if what is there is that. Everything else is packed, or says itself how long it lasts: its
bytes bound nothing, so it counts as if it were only named. Looks at a few kilobytes, and reads no page numbers: who
sends a file writes them.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
from typing import NamedTuple

from sidecar.translate.content import type_of_name

FILE_TOKENS = 200_000
"""A document whose size is not known here: given by URL or id, or packed. Of a PDF vendors read the text and a picture
of every page. https://developers.openai.com/api/docs/guides/file-inputs
https://platform.claude.com/docs/en/build-with-claude/pdf-support"""
WINDOW_TOKENS = 1_050_000
"""Films, packed sound, and what a vendor keeps: no model that takes them reads more in all. Nine and a half hours of
sound, the most Gemini takes at once, are as many. https://ai.google.dev/gemini-api/docs/long-context
https://ai.google.dev/gemini-api/docs/audio"""


class Rates(NamedTuple):
    """Tokens of a picture, a film, a packed document. A guess takes 0 for the last: then its bytes count. `scaled`: of
    a picture whose detail was chosen, if that is less."""

    picture: int
    film: int = WINDOW_TOKENS
    paper: int = FILE_TOKENS
    scaled: int = 0

    def at(self, detail: object) -> Rates:
        return self._replace(picture=self.scaled) if self.scaled and detail in ("low", "high") else self


_TEXT_LEAST = 5_000
"""OpenAI adds a summary to tables. https://developers.openai.com/api/docs/guides/file-inputs"""
_HEAD = 1_024
"""PDF's readers look for its mark that far (PDF Reference 1.7, appendix H, note 13)."""
_DATA_URL = re.compile(r"data:([\w.+/-]*)((?:;[\w.=+-]+)*?);base64,", re.ASCII | re.IGNORECASE)
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_CHARSETS = ("", ";charset=utf-8", ";charset=utf8", ";charset=us-ascii")
_VAGUE = ("", "application/octet-stream", "binary/octet-stream")
_TEXTS = frozenset(
    f"application/{kind}"
    for kind in (
        *("json", "jsonl", "x-ndjson", "yaml", "x-yaml", "toml", "csv", "sql"),
        *("javascript", "x-javascript", "typescript", "x-sh", "x-python"),
    )
)
_NOT_PLAIN = ("text/rtf", "text/richtext")
_TEXT_NAMES = frozenset(
    (
        *("txt", "text", "md", "markdown", "rst", "log", "csv", "tsv", "json", "jsonl", "ndjson", "yaml", "yml"),
        *("toml", "ini", "cfg", "conf", "env", "xml", "html", "htm", "css", "scss", "sql", "py", "pyi", "js", "mjs"),
        *("cjs", "jsx", "ts", "tsx", "java", "kt", "scala", "go", "rs", "rb", "php", "pl", "lua", "r", "c", "h", "cc"),
        *("cpp", "hpp", "cs", "swift", "sh", "bash", "zsh", "ps1", "diff", "patch", "proto", "graphql", "tf", "vue"),
        *("srt", "vtt"),
    )
)
_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")
_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif")
_FILMS = (
    *(b"ID3", b"OggS", b"fLaC", b"FLV", b"FORM", b".snd", b"caff", b"#!AMR", b"\x1aE\xdf\xa3", b"0&\xb2u"),
    *(b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3"),
)
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


def is_inline(url: str) -> bool:
    """A data URL, however it is spelled."""
    return url[:8].lstrip()[:5].lower() == "data:"


def file_tokens(data: str, rates: Rates, stated: str = "", name: str = "") -> int:
    """Of base64, bare or in a data URL. `stated` and `name`: what else the request says of it."""
    start, in_url, charset = _beginning(data)
    head = _decoded(data, start, _HEAD) if start >= 0 else b""
    kinds = [kind for kind in (in_url, stated.lower(), type_of_name(name) or "") if kind not in _VAGUE]
    if (
        kinds
        and all(kind in _TEXTS or (kind.startswith("text/") and kind not in _NOT_PLAIN) for kind in kinds)
        and ("." not in name or name.rpartition(".")[2].lower() in _TEXT_NAMES)
        and charset in _CHARSETS
        and _is_text(data, start, head)
    ):
        return max(min(rates.picture, _TEXT_LEAST), len(data))
    if _is_film(head) or any(kind.startswith(("audio/", "video/")) for kind in kinds):
        return sound_tokens(data, rates)
    if _is_picture(head) and b"%PDF-" not in head and all(kind.startswith("image/") for kind in kinds):
        return rates.picture
    return max(rates.paper, rates.picture, len(data))


def sound_tokens(data: str, rates: Rates) -> int:
    """Gemini counts most, 32 tokens a second. An MP3 has 8 kbit in a second at least, a plain wave here as many bytes.
    https://ai.google.dev/gemini-api/docs/audio http://www.mp3-tech.org/programmer/frame_header.html"""
    start, _, _ = _beginning(data)
    if start >= 0 and _is_plain_wave(_decoded(data, start, _HEAD)):
        return min(rates.film, len(data) // 64 + 100)
    if not rates.paper or (start >= 0 and _is_mp3(data, start)):
        return min(rates.film, len(data) // 24 + 100)
    return rates.film


def _beginning(data: str) -> tuple[int, str, str]:
    """(where base64 begins, or -1; the media type and its parameters in a data URL)."""
    if not is_inline(data):
        return 0, "", ""
    match = _DATA_URL.match(data[:_HEAD])
    return (match.end(), match[1].lower(), match[2].lower()) if match else (-1, "", "")


def _decoded(data: str, start: int, count: int) -> bytes:
    """The first bytes from there on; none if it is no base64."""
    text = data[start : start + (count + 2) // 3 * 4]
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _is_text(data: str, start: int, head: bytes) -> bool:
    """UTF-8 without controls at both ends: an archive has its table at the end, whatever stands before it."""
    end = _decoded(data, start + max(0, len(data) - start - 1_368) // 4 * 4, _HEAD + 4)
    return _reads_as_text(head) and _reads_as_text(end.lstrip(bytes(range(0x80, 0xC0))))


def _reads_as_text(some: bytes) -> bool:
    if not some or _CONTROLS.search(some) or b"%PDF-" in some:
        return False
    if some.removeprefix(codecs.BOM_UTF8).lstrip().startswith((b"{\\rtf", b"%!")):
        return False  # both can be small and long: RTF in its objects, PostScript in its loops
    try:
        codecs.getincrementaldecoder("utf-8")().decode(some)
    except UnicodeDecodeError:
        return False
    return True


def _is_picture(head: bytes) -> bool:
    if head[4:8] == b"ftyp":
        return head[8:12] in _BRANDS
    return head.startswith(_PICTURES) or (head.startswith(b"RIFF") and head[8:12] == b"WEBP")


def _is_film(head: bytes) -> bool:
    if head.startswith(b"\0") and head[4:8] in _BOXES:
        return not _is_picture(head)
    if head.startswith(b"RIFF"):
        return head[8:12] != b"WEBP"
    is_sync = len(head) > 1 and head[0] == 0xFF and 0xE0 <= head[1] != 0xFE  # which begins UTF-16
    return is_sync or head.startswith(_FILMS) or (head[:1] == b"G" and head[188:189] == b"G")


def _is_plain_wave(head: bytes) -> bool:
    """PCM at 8,000 bytes a second or more; in this container there may be anything, at any rate.
    http://soundfile.sapp.org/doc/WaveFormat"""
    if not head.startswith(b"RIFF") or head[8:12] != b"WAVE":
        return False
    at = 12
    while at + 24 <= len(head):
        if head[at : at + 4] == b"fmt ":
            tag, channels = _number(head, at + 8, 2), _number(head, at + 10, 2)
            rate, block, bits = _number(head, at + 12, 4), _number(head, at + 20, 2), _number(head, at + 22, 2)
            return tag in (1, 3) and block == channels * ((bits + 7) // 8) and rate * block >= 8_000
        size = _number(head, at + 4, 4)
        at += 8 + size + size % 2
    return False


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")


def _is_mp3(data: str, start: int) -> bool:
    """A frame of Layer III with a bitrate of the table, after the tag if there is one. https://id3.org/id3v2.4.0-structure"""
    tag = _decoded(data, start, 10)
    skipped = 0
    if tag.startswith(b"ID3") and len(tag) >= 10:
        size = (tag[6] & 127) << 21 | (tag[7] & 127) << 14 | (tag[8] & 127) << 7 | tag[9] & 127
        skipped = 10 + size + (10 if tag[5] & 0x10 else 0)
    frame = _decoded(data, start + skipped // 3 * 4, 9)[skipped % 3 :]
    if len(frame) < 4 or frame[0] != 0xFF or frame[1] & 0xE6 != 0xE2 or (frame[1] >> 3) & 3 == 1:
        return False
    return 0 < frame[2] >> 4 < 15 and (frame[2] >> 2) & 3 != 3
