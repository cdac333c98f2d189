"""Edge cases of Gemini, OpenAI's dialect and the core that no other file holds: numbers as in
docs/translation-cases.md."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from sidecar.errors import ProviderError, UpstreamBrokenError
from sidecar.spend.cost import cost_nano
from sidecar.spend.prices import price_from_config
from sidecar.translate import PROVIDERS, Head, get_provider
from sidecar.types import Usage
from tests.translate.dialects import DISTINCT, dialect_of
from tests.translate.support import OK, USER, WEATHER, call_to, events, fold, make_call, run, sent, unfold

GEMINI = get_provider("gemini")
OPENAI = get_provider("openai")
SSE = Head(200, [(b"content-type", b"text/event-stream")])


def test_a_deployment_that_costs_more_says_so_itself() -> None:
    """32: nothing multiplies prices behind the operator's back; a fast or regional deployment has its own price."""
    plain, fast = (price_from_config({"input": rate, "output": 5 * rate}) for rate in (Decimal(3), Decimal("3.63")))
    usage = Usage(input=1000, output=100)
    assert cost_nano(plain, usage) == 4_500_000
    assert cost_nano(fast, usage) == 5_445_000


@pytest.mark.parametrize("name", ["anthropic", "bedrock", "bedrock-invoke", "gemini", "openai"])
def test_cached_tokens_cost_what_cached_tokens_cost_and_nothing_else(name: str) -> None:
    """60: classes of usage are disjoint, so none is billed twice."""
    price = price_from_config({"input": 3, "cache_read": Decimal("0.3"), "cache_write": Decimal("3.75"), "output": 15})
    given = {
        "anthropic": {"input_tokens": 10, "cache_read_input_tokens": 1000, "output_tokens": 1},
        "bedrock": {"inputTokens": 10, "cacheReadInputTokens": 1000, "outputTokens": 1, "totalTokens": 1011},
        "gemini": {"promptTokenCount": 1010, "cachedContentTokenCount": 1000, "candidatesTokenCount": 1,
                   "totalTokenCount": 1011},
        "openai": {"prompt_tokens": 1010, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 1000}},
    }  # fmt: skip
    usage = given.get(name, given["anthropic"])
    bodies: dict[str, Any] = {
        "anthropic": {"type": "message", "content": [{"type": "text", "text": "x"}], "usage": usage,
                      "stop_reason": "end_turn"},
        "bedrock": {"output": {"message": {"role": "assistant", "content": [{"text": "x"}]}}, "usage": usage,
                    "stopReason": "end_turn"},
        "gemini": {"candidates": [{"content": {"parts": [{"text": "x"}]}, "finishReason": "STOP"}],
                   "usageMetadata": usage},
        "openai": {"choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}}], "usage": usage},
    }  # fmt: skip
    provider = PROVIDERS[name]
    body = json.dumps(bodies.get(name, bodies["anthropic"])).encode()
    found = provider.response(call_to(provider), OK, body).usage
    assert (found.input, found.cached_input, found.total) == (10, 1000, 1011)
    assert cost_nano(price, found) == 10 * 3000 + 1000 * 300 + 15_000


def test_a_page_behind_an_address_is_fetched_not_refused() -> None:
    """62: Converse takes no URL of a document; the gateway fetches it where that is allowed."""
    part = {"type": "file", "file": {"file_url": "https://example.com/a.pdf"}}
    call = call_to(get_provider("bedrock"), {"messages": [{"role": "user", "content": [part]}]})
    assert get_provider("bedrock").needs(call) == ("https://example.com/a.pdf",)


def test_geminis_chunks_may_be_cut_anywhere_also_late_in_the_stream() -> None:
    """72."""
    chunks = [
        {"candidates": [{"content": {"parts": [{"text": word}]}}]} for word in ("one", " two", ' {"three":', " 3}")
    ] + [{"candidates": [{"finishReason": "STOP"}], "usageMetadata": {"promptTokenCount": 1, "totalTokenCount": 5}}]
    whole = b"".join(b"data: " + json.dumps(chunk).encode() + b"\r\n\r\n" for chunk in chunks)
    call = call_to(GEMINI, {"stream": True})
    folded = [fold(run(GEMINI.stream(call, SSE), whole[:at], whole[at:])) for at in range(len(whole))]
    assert folded[0]["content"] == 'one two {"three": 3}'
    assert all(one == folded[0] for one in folded)


def test_searches_are_not_counted_as_tokens() -> None:
    """79: searches are billed by the vendor per search, which no answer tells reliably; usage is of tokens alone."""
    grounding = {"webSearchQueries": ["", "a", ""], "groundingChunks": []}
    body = {
        "candidates": [{"content": {"parts": [{"text": "x"}]}, "finishReason": "STOP", "groundingMetadata": grounding}],
        "usageMetadata": {"promptTokenCount": 2, "candidatesTokenCount": 1, "totalTokenCount": 3},
    }
    reply = GEMINI.response(call_to(GEMINI, {"web_search_options": {}}), OK, json.dumps(body).encode())
    assert reply.usage.total == 3
    unfold(reply.body)


@pytest.mark.parametrize("name", ["gemini", "vertex"])
def test_arguments_in_pieces_are_not_asked_for(name: str) -> None:
    """81: Google sends them only to who asks, and whole calls come soon enough."""
    assert (
        b"streamFunctionCallArguments"
        not in PROVIDERS[name].request(call_to(PROVIDERS[name], {"tools": [WEATHER], "stream": True})).body
    )


@pytest.mark.parametrize("model", ["gpt-5", "gpt-5-mini", "o3", "azure-deployment"])
def test_what_a_model_of_openais_refuses_is_openais_to_say(model: str) -> None:
    """88: which model takes which temperature changes with models, so it passes, and the vendor's 400 with its field
    reaches the client; only the name of the output cap, which OpenAI changed for good, is set right."""
    body = sent("openai", {"temperature": 0.2, "max_tokens": 9}, model=model)
    assert body["temperature"] == 0.2
    assert ("max_completion_tokens" in body) == (model != "azure-deployment")
    said = {"error": {"message": "Unsupported value: 'temperature' …", "type": "invalid_request_error",
                      "param": "temperature", "code": "unsupported_value"}}  # fmt: skip
    error = OPENAI.error(make_call(), Head(400), json.dumps(said).encode())
    assert (error.status, error.kind, error.param, error.is_retryable) == (400, "bad_request", "temperature", False)


@pytest.mark.parametrize("asked", [None, {}, {"include_usage": False}, {"include_usage": True}])
def test_usage_is_had_from_every_stream_and_shown_to_who_asked(asked: dict[str, Any] | None) -> None:
    """89: a client's false keeps the chunk from it, not the count from the gateway."""
    payload = {"stream": True} | ({} if asked is None else {"stream_options": asked})
    assert sent("openai", payload)["stream_options"]["include_usage"] is True
    pieces = dialect_of(OPENAI).pieces(OPENAI.request(make_call(payload, model="sim-echo")))
    translator = OPENAI.stream(make_call(payload, model="sim-echo"), SSE)
    out = run(translator, *pieces)
    assert translator.usage.is_known
    shown = any(chunk != "[DONE]" and chunk["usage"] for chunk in events(out) if chunk == "[DONE]" or "usage" in chunk)
    assert shown == ((asked or {}).get("include_usage") is True)


@pytest.mark.parametrize("body", [b"", b"null", b"{}", b"[]", b'"ok"', b'{"choices":null}'])
@pytest.mark.parametrize("provider", DISTINCT.values(), ids=DISTINCT)
def test_a_reply_that_says_nothing_is_a_clear_error(provider: Any, body: bytes) -> None:
    """90."""
    with pytest.raises((UpstreamBrokenError, ProviderError)) as caught:
        provider.response(call_to(provider), OK, body)
    assert provider.name in caught.value.message
    assert caught.value.status >= 500


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_stays_in_its_own_field(field: str) -> None:
    """96: an answer is not rewritten, so no tag has to be closed."""
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m",
             "choices": [{"index": 0, "delta": {field: "hm"}, "finish_reason": None}]}  # fmt: skip
    data = b"data: " + json.dumps(chunk).encode() + b"\n\n"
    translator = OPENAI.stream(make_call({"stream": True}), SSE)
    assert translator.feed(data) == data
    assert translator.content_started


def test_a_tool_nobody_defined_reaches_the_client_as_it_was_called() -> None:
    """98: what a model made up is the client's to judge; taking it apart would invent calls with ids nobody gave."""
    arguments = '{"tool_uses":[{"recipient_name":"functions.weather","parameters":{"city":"Rome"}}]}'
    call = {"id": "c1", "type": "function", "function": {"name": "multi_tool_use.parallel", "arguments": arguments}}
    message = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}
    body = json.dumps(
        {"id": "1", "object": "chat.completion", "created": 1, "model": "m",
         "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls", "logprobs": None}]}
    ).encode()  # fmt: skip
    assert OPENAI.response(make_call({"tools": [WEATHER]}), OK, body).body == body
    block = {"type": "tool_use", "id": "c1", "name": "multi_tool_use_parallel", "input": {"tool_uses": []}}
    answer = {"type": "message", "content": [block], "stop_reason": "tool_use", "usage": {}}
    anthropic = get_provider("anthropic")
    told = unfold(anthropic.response(make_call({"tools": [WEATHER]}), OK, json.dumps(answer).encode()).body)
    assert told["tools"] == [{"id": "c1", "name": "multi_tool_use_parallel", "arguments": {"tool_uses": []}}]


def test_a_name_on_a_message_passes_where_the_dialect_has_one() -> None:
    """103."""
    messages = [{**USER[0], "name": "Ann"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert sent("openai", {"messages": messages})["messages"] == messages
