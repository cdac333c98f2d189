"""Ollama's own chat API: what goes in, and what comes back as JSON lines or whole."""

from __future__ import annotations

import base64
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sidecar.errors import BadRequestError, ProviderError, UpstreamBrokenError
from sidecar.translate import Head, get_provider
from sidecar.translate.json_lines import JSONLinesSplitter
from sidecar.translate.losses import told
from sidecar.translate.provider import Media
from sidecar.types import Usage
from tests.translate.dialects.ollama import assert_ollama_takes
from tests.translate.support import OK, USER, WEATHER, call_to, fold, run, sent, unfold

OLLAMA = get_provider("ollama")
PNG = b"\x89PNG\r\n\x1a\n1234"
PNG64 = base64.b64encode(PNG).decode()
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
LINES = Head(200, [(b"content-type", b"application/x-ndjson")])


def body_of(payload: dict[str, Any], **options: Any) -> dict[str, Any]:
    body = sent("ollama", payload, **options)
    assert_ollama_takes(body)
    return body


def refused(payload: dict[str, Any], **options: Any) -> str | None:
    with pytest.raises(BadRequestError) as caught:
        sent("ollama", payload, **options)
    return caught.value.param


def line(message: dict[str, Any] | None = None, **fields: Any) -> bytes:
    said = {"role": "assistant", "content": "", **(message or {})}
    return json.dumps({"model": "qwen3", "message": said, "done": False, **fields}).encode() + b"\n"


END = line(done=True, done_reason="stop", prompt_eval_count=3, eval_count=2)


def test_messages_of_every_role_and_pictures_as_bytes() -> None:
    url = "https://example.com/cat.png"
    payload = {
        "messages": [
            {"role": "developer", "content": "be brief"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "what"},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG64}"}},
                    {"type": "text", "text": "is it?"},
                    {"type": "image_url", "image_url": {"url": url}},
                ],
            },
            {"role": "assistant", "content": "a cat", "reasoning_content": "whiskers"},
            {"role": "system", "content": "shout"},
            *USER,
        ]
    }
    call = call_to(OLLAMA, payload)
    assert OLLAMA.needs(call) == (url,)
    assert body_of(payload, media={url: Media("image/png", PNG)})["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "what\nis it?", "images": [PNG64, PNG64]},
        {"role": "assistant", "content": "a cat", "thinking": "whiskers"},
        {"role": "system", "content": "shout"},
        {"role": "user", "content": "hi"},
    ]
    assert refused(payload) == "messages[1].content[3].image_url.url"


def test_text_files_are_text_and_others_are_refused_by_their_place() -> None:
    note = base64.b64encode(b"x").decode()
    file = {"type": "file", "file": {"filename": "a.txt", "file_data": f"data:text/plain;base64,{note}"}}
    (message,) = body_of({"messages": [{"role": "user", "content": [file]}]})["messages"]
    assert message["content"] == "<document name='a.txt'>\nx\n</document>"
    pdf = {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0x"}}
    for part in (pdf, {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}):
        assert refused({"messages": [{"role": "user", "content": [part]}]}) == "messages[0].content[0]"


def test_a_round_of_tool_use_names_the_tool_of_each_result() -> None:
    body = body_of(
        {
            "tools": [WEATHER],
            "messages": [
                *USER,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
                {"role": "tool", "tool_call_id": "lost", "content": ""},
            ],
        }
    )
    assert body["messages"][1:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c1", "function": {"index": 0, "name": "weather", "arguments": {"city": "Rome"}}}],
        },
        {"role": "tool", "content": "sunny", "tool_name": "weather", "tool_call_id": "c1"},
        {"role": "tool", "content": "", "tool_call_id": "lost"},
    ]
    assert refused({"messages": [{"role": "tool", "content": "x"}]}) == "messages[0].tool_call_id"


def test_recursive_schemas_stay_as_they_are_and_missing_ones_are_empty_objects() -> None:
    schema = {
        "type": "object",
        "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}},
        "properties": {"a": {"$ref": "#/$defs/node"}, "b": {"type": ["string", "null"]}},
    }
    named = {"type": "function", "function": {"name": "any name: ünï", "parameters": schema}}
    bare = {"type": "function", "function": {"name": "f"}}
    tools = body_of({"tools": [named, bare]})["tools"]
    assert tools[0]["function"] == {"name": "any name: ünï", "description": "", "parameters": schema}
    assert tools[1]["function"]["parameters"] == {"type": "object", "properties": {}}


def test_tool_choice_is_done_by_what_is_sent_and_a_forced_call_is_refused() -> None:
    other = {**WEATHER, "function": {**WEATHER["function"], "name": "other"}}
    tools = {"tools": [WEATHER, other]}
    assert len(body_of({**tools, "tool_choice": "auto"})["tools"]) == 2
    assert "tools" not in body_of({**tools, "tool_choice": "none"})
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"function": {"name": "other"}}]}}
    assert [tool["function"]["name"] for tool in body_of({**tools, "tool_choice": allowed})["tools"]] == ["other"]
    for choice in ("required", {"type": "function", "function": {"name": "other"}}):
        assert refused({**tools, "tool_choice": choice}) == "tool_choice"
        request = OLLAMA.request(call_to(OLLAMA, {**tools, "tool_choice": choice}, drop_params=True))
        assert request.dropped == ("tool_choice",)
        assert len(json.loads(request.body)["tools"]) == 2
    assert refused({**tools, "parallel_tool_calls": False}) == "parallel_tool_calls"


def test_parameters_go_to_options_and_the_operators_own_pass() -> None:
    body = body_of(
        {"max_tokens": 9, "temperature": 0, "top_p": 1, "top_k": 40, "seed": 3, "stop": "END", "presence_penalty": 1,
         "frequency_penalty": 0.5, "logprobs": True, "top_logprobs": 2},
        params={"num_ctx": 8192, "keep_alive": "10m", "options": {"repeat_penalty": 1.1}},
    )  # fmt: skip
    assert body["options"] == {
        "num_predict": 9,
        "temperature": 0,
        "top_p": 1,
        "top_k": 40,
        "seed": 3,
        "stop": ["END"],
        "presence_penalty": 1,
        "frequency_penalty": 0.5,
        "num_ctx": 8192,
        "repeat_penalty": 1.1,
    }
    assert (body["keep_alive"], body["logprobs"], body["top_logprobs"]) == ("10m", True, 2)
    assert body["stream"] is False
    assert "options" not in body_of({})
    for name in ("num_ctx", "options", "keep_alive"):  # a model is loaded anew for these: the operator's alone
        assert refused({name: 1}) == name


@pytest.mark.parametrize(
    ("payload", "think"),
    [
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, "low"),
        ({"reasoning_effort": "xhigh"}, "high"),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, True),
        ({"thinking": {"type": "disabled"}}, False),
        ({"think": "medium"}, "medium"),
    ],
)
def test_thinking(payload: dict[str, Any], think: Any) -> None:
    assert body_of(payload)["think"] == think


def test_json_output() -> None:
    assert body_of({"response_format": {"type": "json_object"}})["format"] == "json"
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    assert body_of({"response_format": wanted})["format"] == schema
    assert "format" not in body_of({"response_format": {"type": "text"}})
    assert refused({"response_format": {"type": "xml"}}) == "response_format.type"


def test_several_calls_in_lines_have_indexes_and_ids_of_their_own() -> None:
    def called(city: Any, **fields: Any) -> dict[str, Any]:
        return {"tool_calls": [{**fields, "function": {"name": "weather", "arguments": city}}]}

    stream = line(called({"city": "a"})) + line(called('{"city": "b"}', id="own")) + line(called(None)) + END
    folded = fold(run(OLLAMA.stream(call_to(OLLAMA, {"stream": True}), LINES), stream))
    assert [(tool["id"], tool["arguments"]) for tool in folded["tools"]] == [
        ("call_ex1_0", {"city": "a"}),
        ("own", {"city": "b"}),
        ("call_ex1_2", {}),
    ]
    assert (folded["finish"], folded["content"]) == ("tool_calls", None)


def test_logprobs_come_through_whole_and_in_lines() -> None:
    given_probs = [{"token": "é", "logprob": -1, "top_logprobs": [{"token": "e", "logprob": -2.5}]}]
    entry = {"token": "é", "logprob": -1.0, "bytes": [195, 169]}
    expected = [{**entry, "top_logprobs": [{"token": "e", "logprob": -2.5, "bytes": [101]}]}]
    whole = line({"content": "é"}, done=True, logprobs=given_probs)
    reply = OLLAMA.response(call_to(OLLAMA), OK, whole)
    unfold(reply.body)
    assert json.loads(reply.body)["choices"][0]["logprobs"]["content"] == expected
    out = run(OLLAMA.stream(call_to(OLLAMA), LINES), line({"content": "é"}, logprobs=given_probs) + END)
    fold(out)
    assert json.dumps(expected[0]["token"], ensure_ascii=False).encode() in out


@pytest.mark.parametrize(
    ("fields", "usage", "finish"),
    [
        ({"prompt_eval_count": 5, "eval_count": 7, "done_reason": "length"}, Usage(input=5, output=7), "length"),
        ({"eval_count": 7}, Usage(output=7), "stop"),
        ({"done_reason": "load"}, Usage(), "stop"),
        ({"prompt_eval_count": "x", "eval_count": -1}, Usage(), "stop"),
    ],
)
def test_usage_and_endings(fields: dict[str, Any], usage: Usage, finish: str) -> None:
    said = line({"content": "x"}, done=True, **fields)
    reply = OLLAMA.response(call_to(OLLAMA), OK, said)
    assert (reply.usage, unfold(reply.body)["finish"]) == (usage, finish)
    translator = OLLAMA.stream(call_to(OLLAMA), LINES)
    assert fold(run(translator, said))["finish"] == finish
    assert translator.usage == usage


def test_thinking_alone_is_an_empty_text_both_ways() -> None:
    whole = unfold(OLLAMA.response(call_to(OLLAMA), OK, line({"thinking": "hm"}, done=True)).body)
    stream = fold(run(OLLAMA.stream(call_to(OLLAMA), LINES), line({"thinking": "hm"}), line(done=True)))
    assert (whole["content"], whole["reasoning"]) == (stream["content"], stream["reasoning"]) == ("", "hm")


def test_a_last_line_without_its_end_counts_and_an_unfinished_answer_does_not() -> None:
    assert fold(run(OLLAMA.stream(call_to(OLLAMA), LINES), line({"content": "x"}) + END.rstrip()))["content"] == "x"
    with pytest.raises(UpstreamBrokenError):
        OLLAMA.response(call_to(OLLAMA), OK, line({"content": "x"}))


def test_a_line_that_never_ends_is_an_error_and_not_memory() -> None:
    translator = OLLAMA.stream(call_to(OLLAMA), LINES)
    translator._splitter = JSONLinesSplitter(1000)
    for _ in range(10):
        assert translator.feed(b"x" * 100) == b""
    with pytest.raises(UpstreamBrokenError):
        translator.feed(b"x")


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (400, "invalid options", "bad_request"),
        (404, "model 'x' not found", "not_found"),
        (500, "llama runner process has terminated", "server"),
        (502, "upstream", "server"),
        (503, "server busy, please try again. maximum pending requests exceeded", "overloaded"),
        (429, "rate limited", "rate_limit"),
    ],
)
def test_errors_by_status(status: int, message: str, kind: str) -> None:
    error = OLLAMA.error(call_to(OLLAMA), Head(status), json.dumps({"error": message}).encode())
    assert error.kind == kind
    assert message in error.message


def test_an_error_line_may_be_billed() -> None:
    for body in (b'{"error":"broke"}', b'{"error":{"message":"broke"}}'):
        with pytest.raises(ProviderError) as caught:
            run(OLLAMA.stream(call_to(OLLAMA), LINES), line({"content": "x"}), body + b"\n")
        assert caught.value.may_be_billed
        with pytest.raises(ProviderError):
            OLLAMA.response(call_to(OLLAMA), OK, body)


def test_an_error_line_may_be_the_requests_fault() -> None:
    said = (
        "Failed to create new sequence: failed to process inputs: this model is missing data required for image input"
    )
    with pytest.raises(ProviderError) as caught:
        run(OLLAMA.stream(call_to(OLLAMA), LINES), json.dumps({"error": said}).encode() + b"\n")
    error = caught.value
    assert (error.kind, error.status, error.is_retryable, error.cools_down) == ("bad_request", 400, False, False)


TEXTS = st.lists(st.tuples(st.sampled_from(["content", "thinking"]), st.text(max_size=6)), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(texts=TEXTS, cuts=st.lists(st.integers(0, 3000), max_size=8))
def test_any_cut_of_any_stream_gives_the_same_bytes(texts: list[tuple[str, str]], cuts: list[int]) -> None:
    stream = b"".join(line({kind: text}) for kind, text in texts) + END
    whole = run(OLLAMA.stream(call_to(OLLAMA), LINES), stream)
    places = sorted({0, len(stream), *(cut % len(stream) for cut in cuts)})
    pieces = [stream[start:end] for start, end in pairwise(places)]
    assert run(OLLAMA.stream(call_to(OLLAMA), LINES), *pieces) == whole
    folded = fold(whole)
    assert folded["content"] == "".join(text for kind, text in texts if kind == "content")
    assert folded["reasoning"] == "".join(text for kind, text in texts if kind == "thinking")


def test_the_dialect_refuses_what_ollama_has_no_place_for() -> None:
    """The oracle can fail."""
    for odd in ({"user": "u"}, {"tool_choice": "auto"}, {"messages": [{"role": "developer", "content": "x"}]}):
        with pytest.raises(ValidationError):
            assert_ollama_takes({"model": "m", "messages": USER, "stream": False, **odd})


def test_an_effort_ollama_has_no_level_for_is_told_to_whoever_asks() -> None:
    with told() as losses:
        body_of({"reasoning_effort": "high"})
        body_of({"reasoning_effort": "none"})
        assert not losses
        body_of({"reasoning_effort": "max"})
    assert [(loss.kind, loss.where) for loss in losses] == [("replaced", "reasoning_effort")]
