"""Sound in and out: where the vendor has it, it arrives and is counted and priced; elsewhere a 400 names the place."""

from __future__ import annotations

import base64
import json
import struct
from decimal import Decimal
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from sidecar.errors import BadRequestError
from sidecar.spend.cost import cost_nano
from sidecar.spend.prices import price_from_config
from sidecar.translate import Head, Provider, get_provider
from sidecar.translate.estimate import estimate_input_tokens
from sidecar.types import Usage
from tests.translate.dialects import DISTINCT
from tests.translate.support import OK, USER, call_to, events, make_call, run

WAVE = b"RIFF\x24\x01\x00\x00WAVEfmt \x10\x00\x00\x00" + struct.pack("<HHIIHH", 1, 1, 24_000, 48_000, 2, 16)
SOUND = base64.b64encode(WAVE + b"data\x00\x01\x00\x00" + bytes(range(256))).decode()
HEARD = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is said?"},
            {"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}},
        ],
    }
]
SPOKEN = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "pcm16"}}
COUNTS = {
    "prompt_tokens": 120, "completion_tokens": 90, "total_tokens": 210,
    "prompt_tokens_details": {"cached_tokens": 10, "audio_tokens": 100, "text_tokens": 20},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 70, "text_tokens": 20},
}  # fmt: skip
CLASSES = Usage(input=10, cached_input=10, audio_input=100, output=20, reasoning=0, audio_output=70)
PRICE = {"input": 2.5, "output": 10, "cache_read": 1.25, "audio_input": 32, "audio_output": 64}
HEARS = {"gemini", "vertex", "bedrock", "mistral"}
"""Of those that do not pass OpenAI's part as it is, who takes sound."""
PASSES = {name for name, provider in DISTINCT.items() if provider.is_same_dialect} - {"mistral"} | {"watsonx"}
"""Who gets the client's messages as they are, and judges them itself."""


def test_openai_hears_and_speaks_byte_for_byte() -> None:
    call = make_call({"messages": HEARD, **SPOKEN}, model="m")
    assert get_provider("openai").request(call).body == call.raw
    said = {"id": "audio_1", "data": SOUND, "expires_at": 1_700_000_000, "transcript": "Hello."}
    message = {"role": "assistant", "content": None, "refusal": None, "audio": said}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    answer = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": COUNTS}
    raw = json.dumps(answer).encode()
    reply = get_provider("openai").response(call, OK, raw)
    assert reply.body == raw
    assert reply.usage == CLASSES
    parsed = ChatCompletion.model_validate_json(reply.body, strict=True)
    assert parsed.choices[0].message.audio is not None
    again = make_call({"messages": [*HEARD, {"role": "assistant", "audio": {"id": "audio_1"}}, *USER]}, model="m")
    assert get_provider("openai").request(again).body == again.raw


def test_a_stream_of_sound_passes_with_its_usage_and_content_starts_with_the_first_of_it() -> None:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        return b"data: " + json.dumps({**base, "choices": [choice]}).encode() + b"\n\n"

    base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": []}
    stream = [
        chunk({"role": "assistant", "content": None, "refusal": None}),
        chunk({"audio": {"id": "audio_1", "transcript": "Hel"}}),
        *(chunk({"audio": {"data": SOUND[at : at + 100]}}) for at in range(0, len(SOUND), 100)),
        chunk({"audio": {"expires_at": 1_700_000_000}}),
        chunk({}, "stop"),
        b"data: " + json.dumps({**base, "usage": COUNTS}).encode() + b"\n\n",
        b"data: [DONE]\n\n",
    ]
    for provider in ("openai", "azure"):
        asked = {"messages": HEARD, **SPOKEN, "stream": True, "stream_options": {"include_usage": True}}
        translator = get_provider(provider).stream(make_call(asked, model="m"), Head(200))
        out = translator.feed(stream[0])
        assert not translator.content_started
        out += translator.feed(stream[1])
        assert translator.content_started
        out += run(translator, *stream[2:])
        assert out == b"".join(stream)
        assert translator.usage == CLASSES
    chunks = [ChatCompletionChunk.model_validate(one, strict=True) for one in events(out) if one != "[DONE]"]
    sounds = [one.choices[0].delta.audio for one in chunks if one.choices]
    assert "".join(sound.data or "" for sound in sounds if sound is not None) == SOUND


def test_sound_has_prices_of_its_own_both_ways() -> None:
    price = price_from_config({name: Decimal(str(value)) for name, value in PRICE.items()})
    assert cost_nano(price, CLASSES) == 10 * 2500 + 10 * 1250 + 100 * 32_000 + 20 * 10_000 + 70 * 64_000


@pytest.mark.parametrize("provider", DISTINCT.values(), ids=DISTINCT)
def test_sound_arrives_or_is_refused_at_its_place(provider: Provider) -> None:
    call = call_to(provider, {"messages": HEARD})
    if provider.name in PASSES | HEARS:
        body = provider.request(call).body
        assert SOUND.encode() in body
        return
    with pytest.raises(BadRequestError) as caught:
        provider.request(call)
    assert caught.value.param is not None
    assert caught.value.param.startswith("messages[0].content[1]")
    assert caught.value.status == 400


@pytest.mark.parametrize("provider", DISTINCT.values(), ids=DISTINCT)
def test_an_answer_in_sound_is_asked_for_or_refused_by_name(provider: Provider) -> None:
    voice = {"modalities": ["text", "audio"], "audio": {"voice": "Kore", "format": "pcm16"}}
    call = call_to(provider, voice)
    if not provider.unsupported.keys() & voice.keys():
        assert b'"Kore"' in provider.request(call).body
        return
    with pytest.raises(BadRequestError) as caught:
        provider.request(call)
    assert caught.value.param in voice
    dropped = provider.request(call_to(provider, voice, drop_params=True)).dropped
    assert sorted(dropped) == ["audio", "modalities"]


@pytest.mark.parametrize("provider", DISTINCT.values(), ids=DISTINCT)
def test_sound_of_an_earlier_answer_is_named_where_it_cannot_be_sent(provider: Provider) -> None:
    """OpenAI keeps it by its id; nobody else has it. Beside text of the same turn some leave it out, as an echo."""
    said = {"role": "assistant", "content": None, "audio": {"id": "audio_1"}}
    call = call_to(provider, {"messages": [*USER, said, *USER]})
    if provider.name in PASSES:
        assert b'"audio_1"' in provider.request(call).body
        return
    with pytest.raises(BadRequestError) as caught:
        provider.request(call)
    assert caught.value.param is not None
    assert caught.value.param.startswith("messages[1]")


@pytest.mark.parametrize("name", ["gemini", "vertex"])
def test_gemini_speaks_in_chats_form_with_its_usage(name: str) -> None:
    provider = get_provider(name)
    voice = {"modalities": ["audio"], "audio": {"voice": "Kore", "format": "pcm16"}}
    usage = {
        "promptTokenCount": 110, "candidatesTokenCount": 70, "totalTokenCount": 180,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 10}, {"modality": "AUDIO", "tokenCount": 100}],
        "candidatesTokensDetails": [{"modality": "AUDIO", "tokenCount": 70}],
    }  # fmt: skip

    def said(data: str, **more: Any) -> dict[str, Any]:
        part = {"inlineData": {"mimeType": "audio/L16;codec=pcm;rate=24000", "data": data}}
        content = {"role": "model", "parts": [part] if data else []}
        return {"candidates": [{"content": content, "index": 0, **more}], "usageMetadata": usage}

    whole = json.dumps(said("AAAABBBB", finishReason="STOP")).encode()
    reply = provider.response(call_to(provider, {"messages": HEARD, **voice}), OK, whole)
    message = ChatCompletion.model_validate_json(reply.body, strict=True).choices[0].message
    assert message.audio is not None
    assert (message.audio.data, message.content) == ("AAAABBBB", None)
    classes = Usage(input=10, audio_input=100, output=0, audio_output=70)
    assert (reply.usage.input, reply.usage.audio_input, reply.usage.output, reply.usage.audio_output) == (
        *(classes.input, classes.audio_input, classes.output, classes.audio_output),
    )
    pieces = [said("AAAA"), said("BBBB"), said("", finishReason="STOP")]
    stream = [b"data: " + json.dumps(piece).encode() + b"\r\n\r\n" for piece in pieces]
    asked = {"messages": HEARD, **voice, "stream": True, "stream_options": {"include_usage": True}}
    translator = provider.stream(call_to(provider, asked), Head(200, [(b"content-type", b"text/event-stream")]))
    chunks = [
        ChatCompletionChunk.model_validate(one, strict=True)
        for one in events(run(translator, *stream))
        if one != "[DONE]"
    ]
    sounds = [one.choices[0].delta.audio for one in chunks if one.choices]
    assert "".join(sound.data or "" for sound in sounds if sound is not None) == "AAAABBBB"
    assert translator.usage == reply.usage
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens_details is not None
    assert chunks[-1].usage.prompt_tokens_details.audio_tokens == 100


def test_sound_counts_in_the_estimate() -> None:
    silent = make_call({"messages": [{"role": "user", "content": "What is said?"}]}, model="m")
    heard = make_call({"messages": HEARD}, model="m")
    tokens = [estimate_input_tokens(call.payload, len(call.raw)) for call in (silent, heard)]
    assert tokens[0] < tokens[1] < len(SOUND)
