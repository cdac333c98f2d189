"""The SSE splitter: same events however the bytes are cut, only CR, LF and CRLF end lines, bounded memory."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import UpstreamBrokenError
from sidecar.translate.framing import Event, SSESplitter


def split(*pieces: bytes) -> list[Event]:
    splitter = SSESplitter()
    events = [event for piece in pieces for event in splitter.feed(piece)]
    last = splitter.flush()
    return [*events, last] if last is not None else events


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"data: a\n\n", [(b"", b"a")]),
        (b"data:a\n\n", [(b"", b"a")]),
        (b"data:  a\n\n", [(b"", b" a")]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [(b"", b"a"), (b"", b"b")]),
        (b"data: a\r\rdata: b\r\r", [(b"", b"a"), (b"", b"b")]),
        (b"event: x\ndata: a\ndata: b\nid: 1\nretry: 3\n\n", [(b"x", b"a\nb")]),
        (b": comment\n\n", [(b"", None)]),
        (b"data\n\n", [(b"", b"")]),
        (b"\xef\xbb\xbfdata: a\n\n", [(b"", b"a")]),
        ("data: a\u2028b\u0085c\x0bd\x0ce\n\n".encode(), [(b"", "a\u2028b\u0085c\x0bd\x0ce".encode())]),
        (b"data: [DONE]", [(b"", b"[DONE]")]),
        (b"", []),
        (b"\n\n\r\n\r\n", [(b"", None), (b"", None)]),
    ],
)
def test_events(body: bytes, expected: list[tuple[bytes, bytes | None]]) -> None:
    assert [event[:2] for event in split(body)] == expected
    for at in range(len(body)):
        assert split(body[:at], body[at:]) == split(body)


PIECES = st.lists(
    st.sampled_from([b"data: a", b"event: e", b": c", b"\n", b"\r", b"\r\n", b"\n\n", b"x", b"\xef\xbb\xbf"])
)


@given(PIECES, st.lists(st.integers(0, 60)))
def test_events_and_raw_bytes_do_not_depend_on_the_cuts(parts: list[bytes], cuts: list[int]) -> None:
    body = b"".join(parts)
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    pieces = [body[start:end] for start, end in itertools.pairwise(places)]
    whole = split(body)
    assert split(*pieces) == whole
    raw = b"".join(event[2] for event in whole)
    assert body.startswith(raw)
    assert not body[len(raw) :].strip(b"\r\n")


def test_a_line_that_never_ends_is_an_error_and_not_memory() -> None:
    splitter = SSESplitter(limit=1000)
    for _ in range(10):
        splitter.feed(b"x" * 100)
    with pytest.raises(UpstreamBrokenError):
        splitter.feed(b"x")
    assert splitter.flush() is None


def test_a_large_event_in_small_pieces_is_not_quadratic() -> None:
    splitter = SSESplitter()
    for _ in range(20_000):
        assert splitter.feed(b"y" * 100) == []
    assert len(splitter.feed(b"\n\n")) == 1
