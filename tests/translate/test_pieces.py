"""A big body decoded in pieces is what one decode gives; how many values it holds is counted outside its strings."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import BadRequestError
from sidecar.translate import pieces
from sidecar.translate.providers.openai import _WINDOW, _may_repeat_fields

TEXT = st.text(st.sampled_from('ab\\",[{}]:é\n 😀'), max_size=40)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**12) | TEXT,
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=60,
)


@pytest.fixture(params=[7, 8, 64])
def small_windows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_WINDOW", request.param)
    monkeypatch.setattr(pieces, "PIECE_BYTES", request.param * 3)


@pytest.mark.usefixtures("small_windows")
def test_the_pieces_are_what_one_decode_gives_wherever_the_windows_end() -> None:
    @given(VALUES, st.sampled_from([None, 1]), st.booleans())
    @settings(deadline=None, max_examples=150)
    def holds(value: Any, indent: int | None, is_ascii: bool) -> None:
        raw = json.dumps(value, indent=indent, ensure_ascii=is_ascii).encode()
        assert pieces.decode_big(raw) == value
        bare = re.sub(rb'"(?:[^"\\]|\\.)*"', b"", raw)
        assert pieces._marks_outside_strings(raw) == sum(bare.count(mark) for mark in (b",", b"[", b"{"))

    holds()


def test_the_last_of_two_fields_of_one_name_counts() -> None:
    long = "x" * pieces.BIG_BYTES
    assert pieces.decode_big(f'{{"a":1,"b":"{long}","a":[2]}}'.encode()) == {"a": [2], "b": long}


@pytest.mark.parametrize(
    "faulty", [b'{"a":[1,}', b'{"a":["%s",]}', b'{"a":[tru]}', b'{"a":["\\x"]}', b'{"a":"%s', b'{"a":["\xff"]}']
)
def test_what_is_not_json_raises_as_one_decode_does(faulty: bytes) -> None:
    long = faulty.replace(b'{"a"', b'{"b":["%s"],"a"' % (b"x" * pieces.BIG_BYTES))
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)) as one:
        msgspec.json.decode(long)
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)) as other:
        pieces.decode_big(long)
    assert other.type is one.type


def test_too_deep_is_too_deep() -> None:
    with pytest.raises(RecursionError):
        pieces.decode_big(b'{"b":"%s","a":%s' % (b"x" * pieces.BIG_BYTES, b"[" * 200_000))


def test_values_are_counted_not_commas_of_texts() -> None:
    table = "1,2,3,[4],{5}\n" * 100_000
    assert pieces.decode_big(json.dumps({"messages": [table, table]}).encode()) == {"messages": [table, table]}
    at_most = json.dumps([1] * pieces.MAX_VALUES).encode()
    assert len(pieces.decode_big(at_most)) == pieces.MAX_VALUES
    for more in ("[" + "1," * pieces.MAX_VALUES + "1]", "[" + "[]," * pieces.MAX_VALUES + "1]"):
        with pytest.raises(BadRequestError) as refused:
            pieces.decode_big(more.encode())
        assert refused.value.code == "too_many_values"


@pytest.mark.parametrize("before", [0, 1, 5, 8, 20, 30])
def test_a_field_given_twice_is_seen_across_the_windows_of_the_search(before: int) -> None:
    first = b'{"model":"a","x":"'
    cut = first + b"x" * (_WINDOW - len(first) - before)
    assert _may_repeat_fields(cut + b'","model":"b"}')
    assert not _may_repeat_fields(cut + b'","n":1}')
