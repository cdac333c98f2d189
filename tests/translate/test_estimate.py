"""Estimates bound what a tokenizer counts, and stay sane for media."""

from __future__ import annotations

import json
from typing import Any

import pytest
import toktok
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.translate.estimate import estimate_input_tokens, likely_input_tokens, requested_output_tokens
from sidecar.types import Deployment


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
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgoAAAAN" + "A" * 1_000_000}}
    payload = {"model": "gpt-4o", "messages": [{"role": "user", "content": [picture, {"type": "text", "text": "hi"}]}]}
    assert 5_000 <= estimate(payload) < 6_000
    assert estimate({**payload, "model": "gpt-4o-mini"}) >= 50_000
    assert likely_input_tokens(payload, len(json.dumps(payload))) < 2_000


@pytest.mark.parametrize(
    ("models", "detail", "expected"),
    [
        (["claude-opus-4-7"], None, 5_000),
        (["anthropic.claude-sonnet-4", "gemini-3-pro"], "original", 5_000),
        (["gpt-4o", "gpt-4.1-nano", "gpt-5-mini", "gpt-5.2", "o4-mini", "openai/o3"], "auto", 5_000),
        (["gpt-4o-mini"], None, 50_000),
        (["gpt-4o-mini"], "high", 50_000),
        (["gpt-5.4"], None, 50_000),
        (["gpt-5.6"], None, 50_000),
        (["gpt-5.6"], "auto", 50_000),
        (["gpt-5.6", "openai/gpt-6.2-sol"], "high", 5_000),
        (["gpt-5.6"], "low", 5_000),
        (["gpt-5.6"], ["high"], 50_000),
        (["gpt-5.10"], None, 50_000),
        (["qwen2.5-vl"], "high", 50_000),
        (["gpt-4o", "my-own"], None, 50_000),
    ],
)
def test_a_picture_counts_at_most_what_the_models_make_of_it(models: list[str], detail: Any, expected: int) -> None:
    served_by = [Deployment("d", "g", "openai", model, "http://x") for model in models]
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": detail}}
    payload = {"model": "gpt-4o", "messages": [{"role": "user", "content": [picture]}]}
    assert expected <= estimate_input_tokens(payload, len(json.dumps(payload)), served_by) < expected + 500


def part_of(kind: str, value: Any) -> int:
    """What a part counts beyond the text it is written in."""
    payload = {"model": "claude", "messages": [{"role": "user", "content": [{"type": kind, kind: value}]}]}
    return estimate(payload) - len(json.dumps(payload))


@pytest.mark.parametrize(
    ("kind", "value", "least"),
    [
        ("video_url", {"url": "https://example.com/film"}, 1_048_576),
        ("video_url", "gs://bucket/film.mp4", 1_048_576),
        ("audio_url", {"url": "https://example.com/speech.mp3"}, 1_048_576),
        ("image_url", {"url": "https://www.YouTube.com/watch?v=x"}, 1_048_576),
        ("image_url", {"url": "gs://bucket/film.mp4"}, 1_048_576),
        ("image_url", {"url": "s3://bucket/film.mov"}, 1_048_576),
        ("image_url", {"url": "https://example.com/book.pdf?v=1"}, 200_000),
        ("file", {"file_id": "https://youtu.be/x"}, 1_048_576),
        ("file", {"file_id": "gs://bucket/film"}, 1_048_576),
        ("file", {"file_id": "files/abc"}, 1_048_576),
        ("file", {"file_id": "gs://bucket/x", "format": "video/mp4"}, 1_048_576),
        ("file", {"file_data": "https://example.com/book.pdf"}, 200_000),
        ("file", {"file_url": "https://example.com/film.mp4"}, 1_048_576),
        ("file", {"file_id": "file-abc"}, 200_000),
        ("document_url", "https://example.com/book.pdf", 200_000),
    ],
)
def test_what_is_named_and_not_sent_counts_as_much_as_it_may_be(kind: str, value: Any, least: int) -> None:
    assert part_of(kind, value) >= least
    messages = [{"role": "user", "content": [{"type": kind, kind: value}]}]
    assert likely_input_tokens({"messages": messages}, 100) <= 210_000


@pytest.mark.parametrize("url", ["https://example.com/a.png", "https://example.com/a", "gs://bucket/a.jpg"])
def test_a_link_to_a_picture_counts_as_one(url: str) -> None:
    assert 5_000 <= part_of("image_url", {"url": url}) < 6_500


@pytest.mark.parametrize("media_type", ["text/plain", "application/pdf", "video/mp4", ""])
def test_what_is_only_called_a_picture_counts_byte_by_byte(media_type: str) -> None:
    url = f"data:{media_type};base64," + "A" * 1_000_000
    payload = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}
    assert estimate(payload) >= 1_000_000


def test_what_a_vendor_keeps_counts_though_it_is_not_in_the_body() -> None:
    said = {"messages": [{"role": "user", "content": "x"}]}
    assert estimate(said | {"cached_content": "cachedContents/1"}) > estimate(said) + 1_048_576
    spoken = {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}
    assert estimate(spoken) > 16_384


def test_a_prediction_counts_as_the_output_it_is_billed_as() -> None:
    said = {"messages": [{"role": "user", "content": "x"}], "prediction": {"type": "content", "content": "y" * 1_000}}
    assert estimate(said) >= 5 * 1_000


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
        ({"max_completion_tokens": 5, "max_tokens": 9}, 9),
        ({"max_completion_tokens": 5, "max_tokens": "9"}, None),
        ({"max_tokens": 5, "n": "3"}, 15),
        ({"max_tokens": 5, "n": 2.5}, 15),
        ({"max_tokens": 5, "n": "inf"}, 5),
        ({"max_tokens": 5, "n": 3}, 15),
        ({"max_tokens": True}, None),
        ({"max_tokens": "5"}, None),
        ({"max_tokens": 0}, None),
    ],
)
def test_the_output_asked_for_is_over_all_choices(payload: dict[str, Any], expected: int | None) -> None:
    assert requested_output_tokens(payload) == expected
