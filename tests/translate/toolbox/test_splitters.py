"""Event streams of AWS and JSON lines: the same events however they are cut, bounded, and never half an event."""

from __future__ import annotations

import json
import struct
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import UpstreamBrokenError
from sidecar.translate.aws_events import MAX_HEADERS_BYTES, AWSEventSplitter
from sidecar.translate.framing import Event
from sidecar.translate.json_lines import JSONLinesSplitter


def header(name: str, kind: int, value: bytes) -> bytes:
    sized = struct.pack(">H", len(value)) + value if kind in (6, 7) else value
    return bytes([len(name.encode())]) + name.encode() + bytes([kind]) + sized


def message(headers: bytes, payload: bytes) -> bytes:
    prelude = struct.pack(">II", len(headers) + len(payload) + 16, len(headers))
    body = prelude + struct.pack(">I", crc32(prelude)) + headers + payload
    return body + struct.pack(">I", crc32(body))


def said(payload: bytes = b"", **headers: str) -> bytes:
    return message(b"".join(header(f":{n.replace('_', '-')}", 7, v.encode()) for n, v in headers.items()), payload)


def event(kind: str, payload: bytes) -> bytes:
    return said(payload, message_type="event", event_type=kind, content_type="application/json")


def feed(splitter: Any, data: bytes, cuts: list[int]) -> list[Event]:
    found: list[Event] = []
    at = 0
    for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        found += splitter.feed(data[at:cut])
        at = max(at, cut)
    return found


PAYLOADS = st.lists(
    st.tuples(st.sampled_from(["messageStart", "contentBlockDelta", "x"]), st.binary(max_size=60)), max_size=6
)
CUTS = st.lists(st.integers(0, 2000), max_size=8)


@given(sent=PAYLOADS, cuts=CUTS)
def test_messages_come_out_the_same_however_they_are_cut(sent: list[tuple[str, bytes]], cuts: list[int]) -> None:
    messages = [event(kind, payload) for kind, payload in sent]
    splitter = AWSEventSplitter()
    found = feed(splitter, b"".join(messages), cuts)
    assert found == [(k.encode(), p, m) for (k, p), m in zip(sent, messages, strict=True)]
    splitter.flush()


HEADERS = st.lists(
    st.tuples(
        st.text(st.characters(codec="ascii"), min_size=1, max_size=8),
        st.one_of(
            st.tuples(st.sampled_from([0, 1]), st.just(b"")),
            st.tuples(st.just(2), st.binary(min_size=1, max_size=1)),
            st.tuples(st.just(3), st.binary(min_size=2, max_size=2)),
            st.tuples(st.just(4), st.binary(min_size=4, max_size=4)),
            st.tuples(st.sampled_from([5, 8]), st.binary(min_size=8, max_size=8)),
            st.tuples(st.just(9), st.binary(min_size=16, max_size=16)),
            st.tuples(st.just(6), st.binary(max_size=9)),
            st.tuples(st.just(7), st.text(st.characters(codec="utf-8"), max_size=5).map(str.encode)),
        ),
    ),
    max_size=5,
)


def botocores(data: bytes) -> Any:
    """Headers and payloads as botocore reads them, or `None` if it refuses."""
    eventstream = pytest.importorskip("botocore.eventstream")
    buffer = eventstream.EventStreamBuffer()
    try:
        buffer.add_data(data)
        return [(found.headers, found.payload) for found in buffer]
    except (eventstream.ParserError, UnicodeDecodeError, struct.error, KeyError, IndexError):
        return None


@given(headers=HEADERS, payload=st.binary(max_size=40))
def test_every_kind_of_header_is_read_as_botocore_reads_it(headers: Any, payload: bytes) -> None:
    data = message(b"".join(header(name, kind, value) for name, (kind, value) in headers), payload)
    theirs = botocores(data)
    try:
        (ours,) = AWSEventSplitter().feed(data)
    except UpstreamBrokenError:
        assert theirs is None
        return
    ((names, content),) = theirs
    assert ours[1:] == (content, data) or names.get(":message-type") not in (None, "event")
    kind = names.get(":event-type", "")
    assert ours[0] == (kind if isinstance(kind, bytes) else str(kind).encode()) or type(kind) not in (str, bytes)


@given(sent=PAYLOADS, where=st.integers(0, 10**6), flip=st.integers(1, 255), cuts=CUTS)
def test_one_wrong_byte_is_found_as_botocore_finds_it(sent: Any, where: int, flip: int, cuts: list[int]) -> None:
    data = bytearray(b"".join(event(kind, payload) for kind, payload in sent) or event("x", b""))
    data[where % len(data)] ^= flip
    splitter = AWSEventSplitter()
    found: list[Event] = []

    def read() -> None:
        at = 0
        for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
            found.extend(splitter.feed(bytes(data[at:cut])))
            at = max(at, cut)
        splitter.flush()

    with pytest.raises(UpstreamBrokenError):
        read()
    good = 0
    for kind, payload in sent:
        good += len(event(kind, payload))
        if good > where % len(data):
            break
    before = good - len(event(*sent[len(found)])) if sent else 0
    assert sum(len(raw) for _, _, raw in found) == before, "what came whole is given, however it is cut"
    assert botocores(bytes(data)) is None
    with pytest.raises(UpstreamBrokenError):
        splitter.feed(event("x", b""))


@given(data=st.binary(max_size=200), cuts=CUTS)
def test_junk_is_an_error_and_nothing_else(data: bytes, cuts: list[int]) -> None:
    splitter = AWSEventSplitter()
    try:
        found = feed(splitter, data, cuts)
        splitter.flush()
    except UpstreamBrokenError:
        return
    assert b"".join(raw for _, _, raw in found) == data


def test_exceptions_and_errors_have_their_type_in_the_name() -> None:
    thrown = said(b'{"message":"slow down"}', message_type="exception", exception_type="throttlingException")
    error = said(message_type="error", error_code="InternalError", error_message='a "bad" day')
    found = AWSEventSplitter().feed(thrown + error)
    assert [(name, json.loads(payload or b"")) for name, payload, _ in found] == [
        (b"exception:throttlingException", {"message": "slow down"}),
        (b"exception:InternalError", {"message": 'a "bad" day'}),
    ]


@pytest.mark.parametrize("cut", range(1, len(event("x", b"{}"))))
def test_a_stream_cut_within_a_message_is_an_error(cut: int) -> None:
    splitter = AWSEventSplitter()
    assert splitter.feed(event("x", b"{}")[:cut]) == []
    with pytest.raises(UpstreamBrokenError, match="cut off"):
        splitter.flush()


def prelude(total: int, headers: int) -> bytes:
    lengths = struct.pack(">II", total, headers)
    return lengths + struct.pack(">I", crc32(lengths))


@pytest.mark.parametrize(
    ("data", "how"),
    [
        (prelude(2**31, 0), "longer than"),
        (prelude(20, MAX_HEADERS_BYTES + 1), "impossible"),
        (prelude(20, 5), "impossible"),
        (prelude(0, 0), "impossible"),
        (message(b"\x05ab", b""), "headers"),
        (message(b"\x01a\x07\xff\xff", b""), "headers"),
        (message(b"\x01a\x0a", b""), "headers"),
        (message(header("a", 0, b"") * 2, b""), "headers"),
    ],
)  # fmt: skip
def test_impossible_messages_are_refused_before_they_are_kept(data: bytes, how: str) -> None:
    with pytest.raises(UpstreamBrokenError, match=how):
        AWSEventSplitter(limit=1000).feed(data)


LINES = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=20), max_size=6)


@given(lines=LINES, end=st.sampled_from([b"\n", b"\r\n"]), cuts=CUTS, ends_well=st.booleans())
def test_lines_come_out_the_same_however_they_are_cut(lines: Any, end: bytes, cuts: list[int], ends_well: bool) -> None:
    encoded = [json.dumps(line, ensure_ascii=False).encode() for line in lines]
    data = end.join(encoded) + (end if ends_well and encoded else b"")
    splitter = JSONLinesSplitter()
    found = feed(splitter, data, cuts)
    last = splitter.flush()
    found += [last] if last is not None else []
    assert [content for _, content, _ in found] == encoded
    assert b"".join(raw for _, _, raw in found) == data
    assert splitter.flush() is None


def test_blank_lines_have_no_content() -> None:
    assert JSONLinesSplitter().feed(b"\n{}\n \r\n") == [
        (b"", None, b"\n"),
        (b"", b"{}", b"{}\n"),
        (b"", None, b" \r\n"),
    ]


def test_a_line_without_end_is_an_error_not_memory() -> None:
    splitter = JSONLinesSplitter(limit=1000)
    assert splitter.feed(b"x" * 1000) == []
    with pytest.raises(UpstreamBrokenError, match="longer than 1000"):
        splitter.feed(b"x")
    for data in (b"y" * 2000 + b"\n", b"{}\n" + b"y" * 2000 + b"\n"):
        with pytest.raises(UpstreamBrokenError):
            JSONLinesSplitter(limit=1000).feed(data)
    assert splitter.feed(b"{}\n") == [(b"", b"{}", b"{}\n")]
