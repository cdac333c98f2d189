"""OpenAI's usage in disjoint classes, and the sniffer that reads it in passing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.translate.usage import UsageSniffer, usage_from_openai
from sidecar.types import UNKNOWN_USAGE, Usage

TABLE: dict[str, tuple[Any, Usage]] = {
    "plain": ({"prompt_tokens": 9, "completion_tokens": 4}, Usage(input=9, output=4)),
    "cached, audio, reasoning": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 50,
            "total_tokens": 150,
            "prompt_tokens_details": {"cached_tokens": 60, "audio_tokens": 10},
            "completion_tokens_details": {"reasoning_tokens": 20, "audio_tokens": 5, "accepted_prediction_tokens": 1},
        },
        Usage(input=30, cached_input=60, audio_input=10, output=25, reasoning=20, audio_output=5),
    ),
    "DeepSeek's cache hits": (
        {"prompt_tokens": 100, "completion_tokens": 5, "prompt_cache_hit_tokens": 64, "prompt_cache_miss_tokens": 36},
        Usage(input=36, cached_input=64, output=5),
    ),
    "reasoning beside the completion, shown by the total": (
        {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "total_tokens": 115,
            "completion_tokens_details": {"reasoning_tokens": 100},
        },
        Usage(input=10, output=5, reasoning=100),
    ),
    "reasoning told beside the details": (
        {"prompt_tokens": 10, "completion_tokens": 50, "total_tokens": 60, "reasoning_tokens": 20},
        Usage(input=10, output=30, reasoning=20),
    ),
    "cache writes": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 10, "cache_write_tokens": 20},
        },
        Usage(input=70, cached_input=10, cache_write_5m=20, output=5),
    ),
    "details null": (
        {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": None, "completion_tokens_details": None},
        Usage(input=9, output=4),
    ),
    "responses names": (
        {"input_tokens": 9, "output_tokens": 4, "input_tokens_details": {"cached_tokens": 3}},
        Usage(input=6, cached_input=3, output=4),
    ),
    "the input alone": ({"prompt_tokens": 9}, Usage(input=9)),
    "no output, which the total shows": ({"prompt_tokens": 9, "total_tokens": 9}, Usage(input=9, output=0)),
    "output that only the total shows": ({"prompt_tokens": 9, "total_tokens": 13}, Usage(input=9, output=4)),
    "more than there can be": ({"prompt_tokens": 2**53 - 1, "completion_tokens": 2**63 - 1}, UNKNOWN_USAGE),
    "zeros are known": ({"prompt_tokens": 0, "completion_tokens": 0}, Usage(input=0, output=0)),
    "null": (None, UNKNOWN_USAGE),
    "empty": ({}, UNKNOWN_USAGE),
    "nonsense": ({"foo": 0, "bar": 0}, UNKNOWN_USAGE),
    "a list": ([1], UNKNOWN_USAGE),
    "wrong types": ({"prompt_tokens": "9", "completion_tokens": True}, UNKNOWN_USAGE),
    "negative": ({"prompt_tokens": -9, "completion_tokens": 4}, Usage(output=4)),
    "more cached than there is": (
        {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 9}},
        Usage(input=0, cached_input=9, output=1),
    ),
}


@pytest.mark.parametrize(("source", "expected"), TABLE.values(), ids=TABLE)
def test_usage_is_read_into_disjoint_classes(source: Any, expected: Usage) -> None:
    assert usage_from_openai(source) == expected


@pytest.mark.parametrize(("source", "expected"), TABLE.values(), ids=TABLE)
def test_the_sniffer_reads_answers_and_streams(source: Any, expected: Usage) -> None:
    body = json.dumps(
        {"choices": [{"message": {"content": '"usage": {"prompt_tokens": 7}'}}], "usage": source}
    ).encode()
    sniffer = UsageSniffer()
    for at in range(0, len(body), 7):
        sniffer.feed(body[at : at + 7])
    assert sniffer.usage == expected
    chunk = json.dumps({"choices": [{"delta": {"content": "x"}}], "usage": None})
    last = json.dumps({"choices": [], "usage": source})
    stream = f"data: {chunk}\n\ndata: {last}\n\ndata: [DONE]\n\n".encode()
    sniffer = UsageSniffer(is_stream=True)
    for at in range(0, len(stream), 5):
        sniffer.feed(stream[at : at + 5])
    assert sniffer.usage == expected
    assert sniffer.content_started
    assert sniffer.is_complete


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"null", b"[" * 99_999, b"\xff\xfe", b"data: {\n\ndata: [1]\n\n", b"x" * 5000]
)
def test_the_sniffer_never_raises(body: bytes, is_stream: bool) -> None:
    sniffer = UsageSniffer(is_stream, limit=1000)
    sniffer.feed(body)
    sniffer.feed(body)
    assert sniffer.usage == UNKNOWN_USAGE
