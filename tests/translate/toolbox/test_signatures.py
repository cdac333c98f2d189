"""State in tool-call ids: it comes back whole or not at all, and nobody else sees it."""

from __future__ import annotations

import base64
import copy
import json
import os
import re
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.translate.signatures import MARK, MAX_PACKED, MAX_STATE, _digest, may_be_packed, pack, strip_ids, unpack
from tests.translate.support import USER, sent

IDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).filter(lambda text: MARK not in text)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="utf-8"), max_size=60),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)
STATES = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), VALUES, max_size=4)
STATE = {"kind": "claude", "blocks": [{"type": "thinking", "thinking": "so " * 300, "signature": "c2lnbmF0dXJl" * 30}]}


@given(tool_id=IDS, state=STATES)
def test_what_is_packed_comes_back(tool_id: str, state: dict[str, Any]) -> None:
    packed = pack(tool_id, state)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", packed.removeprefix(tool_id))
    assert unpack(packed) == (tool_id, state)
    assert pack(tool_id, state) == packed
    assert may_be_packed(json.dumps({"id": packed}).encode())


@given(tool_id=IDS)
def test_a_plain_id_has_no_state(tool_id: str) -> None:
    assert unpack(tool_id) == (tool_id, None)


@given(where=st.integers(0, 10**6), what=st.sampled_from("Aa0_-x"), length=st.integers(0, 4))
def test_a_mangled_id_is_an_id_without_state(where: int, what: str, length: int) -> None:
    packed = pack("toolu_1", STATE)
    start = len("toolu_1" + MARK) + where % (len(packed) - len("toolu_1" + MARK))
    mangled = packed[:start] + what * length + packed[start + 1 :]
    assert unpack(mangled) == ("toolu_1", STATE if mangled == packed else None)


@pytest.mark.parametrize("cut", [1, 7, 40, 64])
def test_a_cut_id_is_an_id_without_state(cut: int) -> None:
    packed = pack("toolu_1", STATE)
    bare, state = unpack(packed[:-cut])
    assert (bare, state) == ("toolu_1", None)


@given(st.text(max_size=80).map(lambda text: "x" + MARK + text))
def test_junk_after_the_mark_is_no_state(tool_id: str) -> None:
    assert unpack(tool_id) == ("x", None)


def test_a_state_is_not_taken_for_another_id() -> None:
    assert unpack(pack("toolu_1", STATE).replace("toolu_1", "toolu_2")) == ("toolu_2", None)


def forged(body: bytes) -> str:
    return "x" + MARK + base64.urlsafe_b64encode(_digest("x", body) + body).rstrip(b"=").decode()


def test_what_inflates_without_end_is_no_state() -> None:
    bomb = zlib.compress(b" " * (MAX_STATE * 40), 9, -15)
    assert len(forged(b"\x01" + bomb)) < MAX_PACKED
    assert unpack(forged(b"\x01" + bomb)) == ("x", None)
    assert unpack(forged(b"\x01" + zlib.compress(b'{"a":1}', 9, -15))) == ("x", {"a": 1})


@pytest.mark.parametrize("body", [b"", b"\x00", b"\x00[1]", b"\x00{", b"\x02{}", b"\x01{}", b"\x00" + b"[" * 9000])
def test_what_is_no_state_by_form(body: bytes) -> None:
    assert unpack(forged(body)) == ("x", None)


def test_long_text_is_deflated_and_what_is_too_long_is_left_out() -> None:
    text = " ".join(f"thought {n} of many" for n in range(2000))
    assert len(pack("x", {"t": text})) < len(text) / 3
    assert pack("x", {"t": base64.b64encode(os.urandom(60_000)).decode()}) == "x"
    assert pack("x", {"t": "a" * MAX_STATE}) == "x"
    assert len(pack("x", {"t": "a" * (MAX_STATE - 100)})) < MAX_PACKED


def test_an_id_is_not_packed_twice() -> None:
    packed = pack("x", STATE)
    assert pack(packed, {"other": 1}) == packed


CONVERSATION = [
    *USER,
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": pack("toolu_1", STATE), "type": "function", "function": {"name": "weather", "arguments": "{}"}},
        {"id": "toolu_2", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
    ]},
    {"role": "tool", "tool_call_id": pack("toolu_1", STATE), "content": "sunny"},
    {"role": "tool", "tool_call_id": "toolu_2", "content": "rainy"},
]  # fmt: skip


def test_stripping_leaves_the_input_and_shares_what_has_no_state() -> None:
    payload = {"model": "m", "messages": CONVERSATION}
    before = copy.deepcopy(payload)
    stripped = strip_ids(payload)
    assert payload == before
    messages = stripped["messages"]
    assert [call["id"] for call in messages[1]["tool_calls"]] == ["toolu_1", "toolu_2"]
    assert [message["tool_call_id"] for message in messages[2:]] == ["toolu_1", "toolu_2"]
    assert messages[0] is CONVERSATION[0]
    assert messages[3] is CONVERSATION[3]
    assert strip_ids(stripped) is stripped
    for odd in ({}, {"messages": 3}, {"messages": [3, {"tool_calls": 3}, {"tool_calls": [3, {"id": 3}]}]}):
        assert strip_ids(odd) is odd


@pytest.mark.parametrize("provider", ["openai", "deepseek", "groq"])
def test_a_provider_of_openais_dialect_never_sees_a_packed_id(provider: str) -> None:
    body = sent(provider, {"messages": CONVERSATION}, model="m")
    assert MARK not in json.dumps(body)
    assert body["messages"][1]["tool_calls"][0]["id"] == body["messages"][2]["tool_call_id"] == "toolu_1"


def test_mistral_whose_ids_have_nine_characters_never_sees_one_either() -> None:
    body = sent("mistral", {"messages": CONVERSATION}, model="m")
    assert MARK not in json.dumps(body)
    assert body["messages"][1]["tool_calls"][0]["id"] == body["messages"][2]["tool_call_id"]


def test_a_packed_id_spelt_with_escapes_is_seen_too() -> None:
    raw = json.dumps({"messages": CONVERSATION}).replace("_", "\\u005f").encode()
    assert MARK.encode() not in raw
    assert may_be_packed(raw)
    assert not may_be_packed(json.dumps({"messages": USER}).encode())
