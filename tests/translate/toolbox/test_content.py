"""Messages, parts and tool calls as all providers read them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import BadRequestError
from sidecar.translate.content import (
    Audio,
    File,
    Image,
    Other,
    Text,
    arguments_of,
    messages_of,
    parts_of,
    remote_urls,
    sniff,
    sniff_base64,
    split_data_url,
    tool_call,
    tool_calls_of,
    type_of_name,
)
from sidecar.translate.signatures import pack

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\nrest").decode()
PDF = base64.b64encode(b"%PDF-1.7 rest of it, and so on").decode()


def one(part: Any) -> Any:
    (found,) = parts_of([part], "c")
    return found


def test_texts() -> None:
    assert [part.text for part in parts_of("hi", "c")] == ["hi"]
    assert list(parts_of(None, "c")) == []
    parts = ["a", {"type": "text", "text": "b", "cache_control": {}}, {"type": "refusal", "refusal": "c"}]
    found = list(parts_of(parts, "c"))
    assert [(part.text, part.where) for part in found if isinstance(part, Text)] == [
        ("a", "c[0]"),
        ("b", "c[1]"),
        ("c", "c[2]"),
    ]
    assert found[1].source is parts[1]


def test_pictures() -> None:
    url = {"type": "image_url", "image_url": {"url": "https://x.example/a.png", "detail": "low"}}
    assert one(url) == Image("https://x.example/a.png", "", "", "low", "c[0]", url)
    data = {"type": "image_url", "image_url": f"data:image/jpeg;name=x;base64,{PNG}"}
    assert one(data) == Image("", "image/png", PNG, None, "c[0]", data)


def test_sound() -> None:
    part = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}}
    assert one(part) == Audio("AAAA", "mp3", "audio/mpeg", "c[0]", part)
    assert one({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}).media_type == "audio/wav"
    assert [type(part) for part in parts_of([part], "c", takes=())] == [Other]


@pytest.mark.parametrize(
    ("file", "media_type", "data"),
    [
        ({"file_data": f"data:application/pdf;base64,{PDF}"}, "application/pdf", PDF),
        ({"file_data": PDF, "filename": "x.txt"}, "application/pdf", PDF),
        ({"file_data": "YWJj", "filename": "x.TXT"}, "text/plain", "YWJj"),
        ({"file_data": "YWJj"}, "application/pdf", "YWJj"),
        ({"file_data": "data:;base64,YWJj", "filename": "a.docx"}, type_of_name("b.docx"), "YWJj"),
        ({"file_data": f"data:application/octet-stream;base64,{PNG}"}, "image/png", PNG),
    ],
)  # fmt: skip
def test_files(file: dict[str, Any], media_type: str, data: str) -> None:
    found = one({"type": "file", "file": file})
    assert isinstance(found, File)
    assert (found.media_type, found.data) == (media_type, data)


def test_files_elsewhere() -> None:
    assert one({"type": "file", "file": {"file_data": "https://x.example/a.pdf"}}).url == "https://x.example/a.pdf"
    assert one({"type": "file", "file": {"file_url": "https://x.example/a.pdf"}}).url == "https://x.example/a.pdf"
    assert one({"type": "file", "file": {"file_id": "file-1", "filename": "a"}}).file_id == "file-1"


@pytest.mark.parametrize(
    ("part", "param"),
    [
        (3, "c[0]"),
        ({"type": "text", "text": 3}, "c[0].text"),
        ({"type": "image_url"}, "c[0].image_url.url"),
        ({"type": "image_url", "image_url": {"url": "data:image/png,abc"}}, "c[0].image_url.url"),
        ({"type": "file"}, "c[0].file"),
        ({"type": "file", "file": {}}, "c[0].file"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA"}}, "c[0].input_audio"),
    ],
)
def test_malformed_parts_are_refused_with_their_place(part: Any, param: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        one(part)
    assert caught.value.param == param


def test_errors_come_in_the_order_of_the_parts() -> None:
    parts = parts_of([{"type": "text", "text": "a"}, {"type": "file"}], "c")
    assert next(parts).where == "c[0]"
    with pytest.raises(BadRequestError):
        next(parts)


@given(st.binary(max_size=60), st.sampled_from(["image/png", "audio/wav", "text/plain", "application/pdf", ""]))
def test_data_urls_keep_their_data_and_a_kind(data: bytes, stated: str) -> None:
    encoded = base64.b64encode(data).decode()
    media_type, found = split_data_url(f"data:{stated};base64,{encoded}", "w")
    assert found == encoded
    assert sniff_base64(encoded) in (None, sniff(data))
    if stated:
        assert media_type.split("/")[0] == stated.split("/")[0]


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\0\0\0\0WEBP", "image/webp"),
        (b"RIFF\0\0\0\0WAVE", "audio/wav"),
        (b"RIFF", None),
        (b"", None),
        (b"<html>", None),
    ],
)
def test_types_by_the_first_bytes(data: bytes, media_type: str | None) -> None:
    assert sniff(data) == media_type


def test_tool_calls() -> None:
    packed = pack("toolu_1", {"kind": "x"})
    call = {"id": packed, "type": "function", "function": {"name": "f", "arguments": '{"a":1.0}'}}
    (found,) = tool_calls_of({"tool_calls": [call]}, "m")
    assert (found.id, found.given_id, found.name, found.where) == ("toolu_1", packed, "f", "m.tool_calls[0]")
    assert json.dumps(found.arguments) == '{"a": 1.0}'
    assert list(tool_calls_of({}, "m")) == []


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ("", {}),
        (None, {}),
        ("{}", {}),
        ({"a": 1}, {"a": 1}),
        ("[1]", {"malformed_arguments": "[1]"}),
        ('{"a":1}{"b":2}', {"malformed_arguments": '{"a":1}{"b":2}'}),
        ("null", {"malformed_arguments": "null"}),
    ],
)
def test_arguments(arguments: Any, read: dict[str, Any]) -> None:
    """85, 102"""
    assert arguments_of(arguments) == read


@pytest.mark.parametrize(
    ("call", "param"),
    [
        (3, "w"),
        ({"type": "custom"}, "w.type"),
        ({"function": {"name": "f"}}, "w.id"),
        ({"id": "x", "function": {}}, "w.function.name"),
    ],
)
def test_what_is_no_call_is_refused_with_its_place(call: Any, param: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        tool_call(call, "w")
    assert caught.value.param == param


def test_messages() -> None:
    messages = [{"role": "developer", "content": "a"}, {"role": "tool"}]
    assert [(role, where) for role, _, where in messages_of(messages)] == [
        ("developer", "messages[0]"),
        ("tool", "messages[1]"),
    ]
    for wrong, param in (([], "messages"), ([3], "messages[0]"), ([{"role": "function"}], "messages[0].role")):
        with pytest.raises(BadRequestError) as caught:
            list(messages_of(wrong))
        assert caught.value.param == param


JUNK = st.recursive(
    st.none() | st.integers() | st.sampled_from(["https://x.example/a", "data:image/png;base64,AAAA", "text"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "content", "type", "image_url", "file", "url", "file_data", "text"]), inner
        )
    ),
    max_leaves=20,
)


@given(payload=st.dictionaries(st.just("messages"), JUNK))
def test_urls_are_found_and_nothing_is_refused_yet(payload: dict[str, Any]) -> None:
    assert all(url == "https://x.example/a" for url in remote_urls(payload))


def test_urls_once_and_in_order() -> None:
    def image(url: Any) -> dict[str, Any]:
        return {"type": "image_url", "image_url": url}

    content = [image({"url": "https://b"}), image("https://a"), image({"url": "https://b"}), image({"url": "gs://c"})]
    file = {"type": "file", "file": {"file_data": "http://d", "file_url": "https://e"}}
    assert remote_urls({"messages": [{"content": content}, {"content": [file]}]}) == (
        *("https://b", "https://a"),
        *("http://d", "https://e"),
    )
