"""Estimates bound what a tokenizer counts, and stay sane for media."""

from __future__ import annotations

import json
from typing import Any

import pytest
import toktok
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.translate.estimate import estimate_input_tokens, likely_input_tokens, requested_output_tokens


def estimate(payload: dict[str, Any]) -> int:
    return estimate_input_tokens(payload, len(json.dumps(payload, ensure_ascii=False).encode()))


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=400))
def test_the_estimate_is_never_under_a_real_tokenizer(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    assert (
        estimate({"messages": [{"role": "user", "content": text}]}) >= toktok.batch_count([text], "o200k_base")[0] + 7
    )


def test_a_picture_counts_by_kind_and_not_by_its_bytes() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}
    payload = {"model": "m", "messages": [{"role": "user", "content": [picture, {"type": "text", "text": "hi"}]}]}
    assert 5_000 <= estimate(payload) < 6_000
    assert estimate({**payload, "model": "gpt-4o-mini"}) >= 50_000
    assert likely_input_tokens(payload, len(json.dumps(payload))) < 2_000


@pytest.mark.parametrize("messages", [None, 3, [], [3], [{"content": [3, {"type": "image_url"}, {"type": []}]}]])
def test_odd_payloads_do_not_raise(messages: Any) -> None:
    assert estimate_input_tokens({"messages": messages}, 100) >= 100
    assert likely_input_tokens({"messages": messages}, 100) > 0


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({}, None),
        ({"max_tokens": None}, None),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 5, "max_tokens": 9}, 5),
        ({"max_tokens": 5, "n": 3}, 15),
        ({"max_tokens": True}, None),
        ({"max_tokens": "5"}, None),
        ({"max_tokens": 0}, None),
    ],
)
def test_the_output_asked_for_is_over_all_choices(payload: dict[str, Any], expected: int | None) -> None:
    assert requested_output_tokens(payload) == expected
