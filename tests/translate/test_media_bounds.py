"""What files inside a request count at most: by their bytes, whatever they are called."""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
import zipfile
import zlib
from typing import Any

import pytest

from sidecar.translate import media_bounds
from sidecar.translate.dialects.responses import RESPONSES
from sidecar.translate.estimate import IMAGE_TOKENS, LIKELY, estimate_input_tokens, likely_input_tokens
from sidecar.translate.media_bounds import FILE_TOKENS, WINDOW_TOKENS, Rates, file_tokens, sound_tokens

RATES = Rates(IMAGE_TOKENS)
WORDS = "1 2 3 4 5 6 7 8 9 "


def pdf(pages: int = 100, words: int = 200) -> bytes:
    """All pages show one stream, so that more of them cost next to nothing."""
    shown = zlib.compress(b"BT /F1 4 Tf 9 9 Td (" + WORDS.encode() * words + b") Tj ET", 9)
    kids = b"".join(b"%d 0 R " % (number + 4) for number in range(pages))
    page = b"<</Type/Page/Parent 2 0 R/Contents 3 0 R/MediaBox[0 0 600 800]>>"
    parts = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Count %d/Kids[%b]>>" % (pages, kids),
        b"<</Length %d/Filter/FlateDecode>>stream\n%b\nendstream" % (len(shown), shown),
        *([page] * pages),
    ]
    body = b"".join(b"%d 0 obj%bendobj\n" % (number, part) for number, part in enumerate(parts, 1))
    return b"%PDF-1.4\n" + body + b"trailer<</Root 1 0 R>>\n%%EOF"


def packed(kind: str) -> bytes:
    if kind == "zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("word/document.xml", WORDS * 10_000)
        return buffer.getvalue()
    if kind == "gzip":
        return gzip.compress(WORDS.encode() * 10_000)
    return {"pdf": pdf(), "ole": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(2_000), "noise": bytes(range(256))}[kind]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def url(data: bytes, kind: str = "application/pdf") -> str:
    return f"data:{kind};base64,{b64(data)}"


@pytest.mark.parametrize("kind", ["pdf", "zip", "gzip", "ole", "noise"])
@pytest.mark.parametrize("called", ["application/pdf", "text/plain", "application/json", "image/png", ""])
@pytest.mark.parametrize("name", ["", "a.txt", "a.docx"])
def test_what_is_packed_counts_as_if_it_were_only_named(kind: str, called: str, name: str) -> None:
    data = packed(kind)
    assert len(b64(data)) < FILE_TOKENS / 5
    assert file_tokens(url(data, called), RATES, name=name) >= FILE_TOKENS
    assert file_tokens(b64(data), RATES, called, name) >= FILE_TOKENS


TEXT = "Zeile äöü – 日本語\n".encode() * 1_000


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (url(TEXT, "text/plain"), ""),
        (url(TEXT, "TEXT/Markdown"), "notes.md"),
        (url(TEXT, "text/plain;charset=utf-8"), "a"),
        (url(TEXT, "text/x-python"), "a.py"),
        (url(TEXT, "application/json"), "a.JSON"),
        (url(TEXT, ""), "a.csv"),
        (url(TEXT, "application/octet-stream"), "a.txt"),
        (b64(TEXT), "a.txt"),
        (b64(TEXT).rstrip("="), "a.txt"),
        (url(b"\xef\xbb\xbf" + TEXT, "text/csv"), ""),
    ],
)
def test_text_counts_byte_by_byte(data: str, name: str) -> None:
    for rates in (RATES, Rates(50_000)):
        assert len(TEXT) <= file_tokens(data, rates, name=name) <= len(data)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b64(TEXT), ""),
        (url(TEXT, ""), ""),
        (url(TEXT, "application/pdf"), "a.txt"),
        (url(TEXT, "text/plain"), "a.pdf"),
        (url(TEXT, "text/plain"), "a.odt"),
        (url(TEXT, "text/plain;charset=utf-16"), ""),
        (url("text".encode("utf-16"), "text/plain"), ""),
        (url(b"\n" * 1_000 + b"%PDF-1.4\n", "text/plain"), ""),
        (url(TEXT + packed("zip"), "text/plain"), ""),
        (url(b" {\\rtf1 x}", "text/plain"), ""),
        (url(b"{\\rtf1 x}", "text/rtf"), ""),
        (url(b"%!PS-Adobe-3.0", "text/plain"), ""),
        (url(b"", "text/plain"), ""),
        (f"data:text/plain,{'x' * 90}", ""),
        (f"DATA:Text/Plain;base64,{b64(pdf())}", ""),
        (f" \n data:application/pdf;base64,{b64(pdf())}", ""),
        (f"data:text/plain ; base64, {b64(TEXT)}", ""),
        (f"data:text/plain;base64,\n{b64(TEXT)}", ""),
        ("data:text/plain;base64,!!!!", ""),
        ("data:", ""),
        ("ä" * 50, "a.txt"),
        ("\ud800", "a.txt"),
    ],
)
def test_what_is_not_plainly_text_counts_as_a_document(data: str, name: str) -> None:
    assert file_tokens(data, RATES, name=name) >= FILE_TOKENS


PICTURES = {"png": b"\x89PNG\r\n\x1a\n", "jpeg": b"\xff\xd8\xff\xe0", "webp": b"RIFF\0\0\0\0WEBP", "gif": b"GIF89a"}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_counts_as_one_in_a_file_too(kind: str) -> None:
    data = PICTURES[kind] + bytes(50_000)
    assert file_tokens(url(data, f"image/{kind}"), RATES) == IMAGE_TOKENS
    assert file_tokens(b64(data), RATES) == IMAGE_TOKENS
    assert file_tokens(url(data, f"image/{kind}"), RATES, name="a.docx") >= FILE_TOKENS, "an archive may follow"
    assert file_tokens(url(PICTURES[kind] + pdf(), f"image/{kind}"), RATES) >= FILE_TOKENS


def wave(rate: int = 16_000, tag: int = 1, block: int = 2, seconds: int = 10, before: bytes = b"") -> bytes:
    sound = bytes(rate * block * seconds)
    fmt = b"fmt " + struct.pack("<IHHIIHH", 16, tag, 1, rate, rate * block, block, 16)
    return b"RIFF" + struct.pack("<I", 36 + len(sound)) + b"WAVE" + before + fmt + b"data" + sound


MP3 = b"\xff\xf3\x18\xc4"  # MPEG-2 Layer III, 8 kbit/s, 24 kHz
TAGGED = b"ID3\x04\0\0\0\0\x01\x05" + bytes(133) + MP3


@pytest.mark.parametrize(
    ("data", "seconds"),
    [
        (wave(), 10),
        (wave(8_000, block=2, before=b"JUNK\x04\0\0\0abcd"), 10),
        (MP3 + bytes(60_000), 60),
        (TAGGED + bytes(60_000), 60),
    ],
)
def test_sound_of_a_known_rate_counts_as_many_tokens_as_it_may_last(data: bytes, seconds: int) -> None:
    for sent in (b64(data), url(data, "audio/x")):
        assert seconds * 32 <= sound_tokens(sent, RATES) <= len(sent) // 24 + 100
    assert file_tokens(url(data, "audio/mpeg"), RATES) == sound_tokens(url(data, "audio/mpeg"), RATES)


@pytest.mark.parametrize(
    "data",
    [
        wave(rate=1, block=2),
        wave(tag=0x55),
        wave(block=4),
        b"\xff\xf3\x08\xc4" + bytes(900),  # of a bitrate of its own
        b"\xff\xf1\x50\x80" + bytes(900),  # AAC
        b"ID3\x04\0\0\0\0\0\x02\0\0fLaC" + bytes(900),
        b"fLaC" + bytes(900),
        b"OggS" + bytes(900),
        b"\0\0\0\x18ftypM4A " + bytes(900),
        b"\x1aE\xdf\xa3" + bytes(900),
        bytes(900),
        b"",
    ],
)
def test_sound_that_says_itself_how_long_it_lasts_counts_as_a_window(data: bytes) -> None:
    assert sound_tokens(b64(data), RATES) == WINDOW_TOKENS
    assert sound_tokens("!" + b64(data), RATES) == WINDOW_TOKENS
    assert file_tokens(url(data, "audio/mpeg"), RATES) == WINDOW_TOKENS
    assert sound_tokens(b64(data), LIKELY) <= len(b64(data)) // 24 + 100


@pytest.mark.parametrize("data", [b"\0\0\0\x18ftypisom", b"\x1aE\xdf\xa3", b"RIFF\0\0\0\0AVI ", b"OggS"])
@pytest.mark.parametrize("called", ["image/png", "application/pdf", ""])
def test_a_film_counts_as_one_whatever_it_is_called(data: bytes, called: str) -> None:
    assert file_tokens(url(data + bytes(900), called), RATES) >= WINDOW_TOKENS


def test_words_are_no_film() -> None:
    for text in (b"The free software", b"FORM 10-K", b"ID3 tags", b"skipskip", b"G" * 400):
        assert file_tokens(url(text, "text/plain"), RATES) == IMAGE_TOKENS


def chat(*parts: Any, role: str = "user") -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": role, "content": list(parts)}]}


def held(payload: dict[str, Any]) -> int:
    return estimate_input_tokens(payload, len(json.dumps(payload)))


CHAT_PARTS: list[tuple[dict[str, Any], int]] = [
    ({"type": "file", "file": {"file_data": url(pdf()), "filename": "a.pdf"}}, FILE_TOKENS),
    ({"type": "file", "file": {"file_data": b64(pdf())}}, FILE_TOKENS),
    ({"type": "file", "file": {"file_data": url(TEXT, "text/plain"), "format": "application/pdf"}}, FILE_TOKENS),
    ({"type": "file", "file": {"file_data": url(TEXT, "text/plain"), "file_id": "file-a"}}, FILE_TOKENS),
    ({"type": "file", "file": {"file_data": url(pdf()), "file_id": "files/a"}}, WINDOW_TOKENS),
    ({"type": "file", "file": {"file_data": ""}}, FILE_TOKENS),
    ({"type": "file", "file": {"file_data": 3}}, FILE_TOKENS),
    ({"type": "input_file", "file_data": url(pdf())}, FILE_TOKENS),
    ({"type": "image_url", "image_url": {"url": url(pdf(), "image/png")}}, FILE_TOKENS),
    ({"type": "image_url", "image_url": "DATA:image/png;base64," + b64(pdf())}, FILE_TOKENS),
    ({"type": "document_url", "document_url": url(pdf())}, FILE_TOKENS),
    ({"type": "document", "source": {"type": "base64", "data": b64(pdf())}}, FILE_TOKENS),
    ({"type": "image", "source": {"type": "url", "url": "https://example.com/a"}}, IMAGE_TOKENS),
    ({"type": "video_url", "video_url": {"url": url(b"\0\0\0\x18ftypisom", "video/mp4")}}, WINDOW_TOKENS),
    ({"type": "audio_url", "audio_url": {"url": url(b"OggS", "audio/ogg")}}, WINDOW_TOKENS),
    ({"type": "input_audio", "input_audio": {"data": b64(b"fLaC"), "format": "mp3"}}, WINDOW_TOKENS),
    ({"type": "input_audio", "input_audio": "https://example.com/a.mp3"}, WINDOW_TOKENS),
]


@pytest.mark.parametrize(("part", "least"), CHAT_PARTS)
@pytest.mark.parametrize("role", ["user", "tool"])
def test_every_part_of_a_chat_is_looked_at(part: dict[str, Any], least: int, role: str) -> None:
    assert held(chat(part, role=role)) >= least


RESPONSES_PARTS: list[tuple[dict[str, Any], int]] = [
    ({"type": "input_file", "file_data": url(pdf()), "filename": "a.pdf"}, FILE_TOKENS),
    ({"type": "input_file", "file_data": b64(pdf()), "filename": "a.txt"}, FILE_TOKENS),
    ({"type": "input_file", "file_data": url(TEXT, "text/plain"), "file_id": "file-a"}, FILE_TOKENS),
    ({"type": "input_file", "file_data": ""}, FILE_TOKENS),
    ({"type": "input_image", "image_url": url(pdf(), "image/png")}, FILE_TOKENS),
    ({"type": "input_audio", "input_audio": {"data": b64(b"OggS"), "format": "mp3"}}, WINDOW_TOKENS),
]


@pytest.mark.parametrize(("part", "least"), RESPONSES_PARTS)
@pytest.mark.parametrize("where", ["content", "output"])
def test_every_part_of_a_response_is_looked_at(part: dict[str, Any], least: int, where: str) -> None:
    payload = {"input": [{"type": "message", where: [part]}]}
    assert RESPONSES.input_tokens(payload, len(json.dumps(payload))) >= least


def test_a_window_of_tokens_still_takes_a_small_pdf() -> None:
    part, payload = url(pdf()), chat({"type": "file", "file": {"file_data": url(pdf())}})
    assert likely_input_tokens(payload, len(json.dumps(payload))) < len(part) + 2_000


def test_only_a_few_kilobytes_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decode = base64.b64decode

    def counted(text: str, *, validate: bool) -> bytes:
        decoded.append(len(text))
        return decode(text, validate=validate)

    monkeypatch.setattr(media_bounds.base64, "b64decode", counted)
    for data in (url(TEXT * 100, "text/plain"), url(bytes(5_000_000)), b64(TAGGED + bytes(5_000_000))):
        file_tokens(data, RATES)
        sound_tokens(data, RATES)
    assert decoded
    assert sum(decoded) < 50_000
