"""Hugging Face's router and endpoints, and TGI: bytes pass, and what TGI says otherwise is put right."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.errors import BadRequestError, ProviderError
from sidecar.translate import Head, get_provider
from sidecar.translate.provider import OPENAI_CHAT_FIELDS
from sidecar.translate.providers.huggingface import TGI_FIELDS
from tests.translate.support import OK, WEATHER, call_to, fold, run, sent, unfold

HUB, TGI = get_provider("huggingface"), get_provider("tgi")
CHUNK = b'data: {"id":"","object":"chat.completion.chunk","created":1,"model":"m","choices":[%s]}\n\n'
DONE = b"data: [DONE]\n\n"


def answer(message: dict[str, Any], finish: str = "stop") -> bytes:
    choices = [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", **message}}]
    whole = {"id": "", "object": "chat.completion", "created": 1, "model": "m", "choices": choices}
    return json.dumps(whole).encode()


def test_the_router_gets_the_client_s_bytes_and_the_cap_under_the_one_name_all_know() -> None:
    model = "meta-llama/Llama-3.3-70B-Instruct:together"
    call = call_to(HUB, {"model": model, "tools": [WEATHER], "x_own": 1}, model=model)
    request = HUB.request(call)
    assert (request.path, request.body) == ("/chat/completions", call.raw)
    assert sent("huggingface", {"max_completion_tokens": 5})["max_tokens"] == 5
    assert HUB.default_base_url == "https://router.huggingface.co/v1"


@pytest.mark.parametrize("field", sorted(OPENAI_CHAT_FIELDS - TGI_FIELDS))
def test_what_tgi_would_ignore_without_a_word_is_refused(field: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        sent("tgi", {field: {"odd": True}})
    assert caught.value.param == field
    assert sent("huggingface", {field: {"odd": True}})[field] == {"odd": True}


def test_fields_of_tgi_s_own_pass() -> None:
    body = sent("tgi", {"tool_prompt": "use tools", "repetition_penalty": 1.1, "top_k": 5, "seed": 3})
    assert (body["tool_prompt"], body["top_k"], body["seed"]) == ("use tools", 5, 3)


@pytest.mark.parametrize("provider", [HUB, TGI], ids=["huggingface", "tgi"])
def test_calls_with_objects_for_arguments_and_no_ids_of_their_own(provider: Any) -> None:
    """7b-92 too: calls end in tool_calls."""
    function = {"name": "weather", "description": None, "arguments": {"city": "Rome"}}
    calls = [{"id": "0", "type": "function", "function": function}, {"id": "", "function": function}]
    found = unfold(provider.response(call_to(provider), OK, answer({"tool_calls": calls})).body)
    assert [tool["id"] for tool in found["tools"]] == ["call_ex1_0", "call_ex1_1"]
    assert [tool["arguments"] for tool in found["tools"]] == [{"city": "Rome"}] * 2
    assert (found["finish"], found["content"]) == ("tool_calls", None)


def test_a_single_call_in_a_stream_that_is_no_list() -> None:
    def piece(function: dict[str, Any], tool_id: str, finish: str | None = None) -> bytes:
        call = {"index": 0, "id": tool_id, "type": "function", "function": function}
        delta = {"role": "assistant", "tool_calls": call}
        return CHUNK % json.dumps({"index": 0, "delta": delta, "finish_reason": finish}).encode()

    stream = piece({"name": "weather", "arguments": ""}, "") + piece({"name": None, "arguments": '{"city"'}, "")
    stream += piece({"name": None, "arguments": ':"x"}'}, "", "stop") + DONE
    found = fold(run(TGI.stream(call_to(TGI, {"stream": True}), OK), stream))
    assert found["tools"] == [{"id": "call_ex1_0", "name": "weather", "arguments": {"city": "x"}}]


@pytest.mark.parametrize(("reason", "finish"), [("eos_token", "stop"), ("stop_sequence", "stop"), ("length", "length")])
def test_finish_reasons(reason: str, finish: str) -> None:
    assert unfold(HUB.response(call_to(HUB), OK, answer({"content": "x"}, reason)).body)["finish"] == finish


def test_other_bytes_pass_untouched() -> None:
    plain = answer({"content": 'the "eos_token\\"'})
    assert HUB.response(call_to(HUB), OK, plain).body == plain


@pytest.mark.parametrize(
    ("status", "body", "kind", "after"),
    [
        (422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000",
               "error_type": "validation"}, "context_window", None),
        (422, {"error": "Input validation error: `temperature` must be strictly positive", "error_type": "validation"},
         "bad_request", None),
        (422, {"error": "Template error: `inputs` must be <= 3", "error_type": "template_error"}, "bad_request", None),
        (429, {"error": "Model is overloaded", "error_type": "overloaded"}, "overloaded", None),
        (424, {"error": "Request failed during generation", "error_type": "generation"}, "server", None),
        (503, {"error": "Model m is currently loading", "estimated_time": 20.5}, "overloaded", 21.0),
        (402, {"error": "You have exceeded your monthly included credits"}, "quota", None),
        (401, {"error": "Invalid username or password."}, "authentication", None),
        (400, {"error": {"message": "bad", "type": "invalid_request_error"}}, "bad_request", None),
        (404, {"error": "The model does not exist"}, "not_found", None),
    ],
)  # fmt: skip
def test_errors(status: int, body: dict[str, Any], kind: str, after: float | None) -> None:
    error = HUB.error(call_to(HUB), Head(status), json.dumps(body).encode())
    assert (error.kind, error.retry_after_s) == (kind, after)


def test_an_error_in_a_stream() -> None:
    stream = CHUNK % b'{"index":0,"delta":{"content":"x"},"finish_reason":null}'
    with pytest.raises(ProviderError) as caught:
        run(
            TGI.stream(call_to(TGI, {"stream": True}), OK),
            stream + b'data:{"error":"broke","error_type":"generation"}\n\n',
        )
    assert caught.value.may_be_billed
