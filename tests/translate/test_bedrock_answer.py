"""Converse's answers, streams and errors in OpenAI's words."""

from __future__ import annotations

import base64
import contextlib
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import ProviderError, SidecarError, UpstreamBrokenError
from sidecar.translate import PROVIDERS, Head
from sidecar.translate.signatures import unpack
from sidecar.types import Usage
from tests.translate.dialects import DIALECTS
from tests.translate.dialects.aws import assert_fits, event, exception, operation
from tests.translate.support import OK, WEATHER, events, fold, run, unfold
from tests.translate.test_bedrock_request import (
    CALLED,
    CLAUDE,
    CLOSED,
    NOVA,
    OLD_CLAUDE,
    PROFILE,
    USER,
    bedrock_call,
    body_of,
    json_schema,
)

BEDROCK = PROVIDERS["bedrock"]
DIALECT = DIALECTS["bedrock"]
COUNTS = {"inputTokens": 3, "outputTokens": 5, "totalTokens": 8}
THOUGHT = {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "c2ln"}}}
HIDDEN = {"reasoningContent": {"redactedContent": base64.b64encode(b"EroB==").decode()}}


def use(name: str = "weather", tool_id: str = "tooluse_1", **given: Any) -> dict[str, Any]:
    return {"toolUse": {"toolUseId": tool_id, "name": name, "input": given}}


def answer(*content: dict[str, Any], stop: str = "end_turn", usage: Any = COUNTS, **fields: Any) -> bytes:
    whole = {
        "output": {"message": {"role": "assistant", "content": list(content)}},
        "stopReason": stop,
        "usage": usage,
        "metrics": {"latencyMs": 5},
        **fields,
    }
    shape = operation("bedrock-runtime", "Converse").output_shape
    assert shape is not None
    assert_fits(shape, whole)
    return json.dumps(whole).encode()


def checked(name: str, **payload: Any) -> bytes:
    shape = operation("bedrock-runtime", "ConverseStream").get_event_stream_output()
    assert_fits(shape.members[name], payload, where=name)
    return event(name, {**payload, "p": "abcdef"})


def stream(*content: dict[str, Any], stop: str = "end_turn", usage: Any = COUNTS, **fields: Any) -> bytes:
    """The same content as events."""
    out = [checked("messageStart", role="assistant")]
    for index, block in enumerate(content):
        deltas: list[Any] = []
        if "toolUse" in block:
            start = {key: value for key, value in block["toolUse"].items() if key != "input"}
            out.append(checked("contentBlockStart", contentBlockIndex=index, start={"toolUse": start}))
            text = json.dumps(block["toolUse"]["input"]) if block["toolUse"]["input"] else ""
            deltas = [{"toolUse": {"input": text[at : at + 5]}} for at in range(0, len(text), 5)]
        elif "text" in block:
            deltas = [{"text": block["text"][:2]}, {"text": block["text"][2:]}]
        elif "citationsContent" in block:
            cited = block["citationsContent"]
            deltas = [{"text": part["text"]} for part in cited["content"]]
            deltas += [{"citation": one} for one in cited["citations"]]
        elif "redactedContent" in block["reasoningContent"]:
            deltas = [block]
        else:
            thought = block["reasoningContent"]["reasoningText"]
            deltas = [{"reasoningContent": {name: value}} for name, value in thought.items()]
        out += [checked("contentBlockDelta", contentBlockIndex=index, delta=delta) for delta in deltas]
        out.append(checked("contentBlockStop", contentBlockIndex=index))
    out.append(checked("messageStop", stopReason=stop))
    out.append(checked("metadata", usage=usage, metrics={"latencyMs": 5}, **fields))
    return b"".join(out)


def both(payload: dict[str, Any], *content: dict[str, Any], model: str = CLAUDE, **options: Any) -> dict[str, Any]:
    """What the client gets, which is the same in one piece and in many."""
    call = bedrock_call(payload, model)
    plain = unfold(BEDROCK.response(call, OK, answer(*content, **options)).body)
    call = bedrock_call({**payload, "stream": True, "stream_options": {"include_usage": True}}, model)
    folded = fold(run(BEDROCK.stream(call, DIALECT.stream_head), stream(*content, **options)))
    assert folded == plain
    return plain


def test_text_thinking_and_calls() -> None:
    found = both(
        {"tools": [WEATHER]}, THOUGHT, {"text": "I look."}, HIDDEN, use(city="Rome"), use(tool_id="t2"), stop="tool_use"
    )
    assert found["content"] == "I look."
    assert found["reasoning"] == "hm"
    assert found["thinking_blocks"] == [
        {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
        {"type": "redacted_thinking", "data": "EroB=="},
    ]
    assert [tool["arguments"] for tool in found["tools"]] == [{"city": "Rome"}, {}]
    assert found["finish"] == "tool_calls"
    bare, state = unpack(found["tools"][0]["id"])
    assert bare == "tooluse_1"
    assert state == {"kind": "claude", "before": [found["thinking_blocks"][0], 7, found["thinking_blocks"][1]]}
    assert found["tools"][1]["id"] == "t2"


def test_what_was_thought_goes_back_as_it_came_through_a_stock_client() -> None:
    said = [THOUGHT, {"text": "I look."}, HIDDEN, use(city="Rome")]
    found = both({"tools": [WEATHER]}, *said, stop="tool_use")
    tool = found["tools"][0]
    function = {"name": tool["name"], "arguments": json.dumps(tool["arguments"])}
    echoed = {
        "role": "assistant",
        "content": found["content"],
        "tool_calls": [{"id": tool["id"], "type": "function", "function": function}],
    }
    result = {"role": "tool", "tool_call_id": tool["id"], "content": "sunny"}
    assert body_of({"tools": [WEATHER], "messages": [*USER, echoed, result]})["messages"][1]["content"] == said


def test_hidden_thinking_in_pieces_is_one_block_and_what_is_no_text_goes_back_as_it_came() -> None:
    raw = bytes(range(200, 230))
    whole = base64.b64encode(raw).decode()
    out = checked("messageStart", role="assistant")
    for piece in (raw[:7], raw[7:]):
        delta = {"reasoningContent": {"redactedContent": base64.b64encode(piece).decode()}}
        out += checked("contentBlockDelta", contentBlockIndex=0, delta=delta)
    out += checked("contentBlockStop", contentBlockIndex=0) + checked("messageStop", stopReason="end_turn")
    out += checked("metadata", usage=COUNTS, metrics={"latencyMs": 1})
    blocks = fold(run(BEDROCK.stream(bedrock_call({"stream": True}), DIALECT.stream_head), out))["thinking_blocks"]
    assert len(blocks) == 1
    echoed = {"role": "assistant", "content": "x", "thinking_blocks": blocks}
    sent = body_of({"messages": [*USER, echoed, *USER]})["messages"][1]["content"][0]
    assert sent == {"reasoningContent": {"redactedContent": whole}}


def test_reasoning_without_a_signature_is_told_but_not_kept() -> None:
    found = both(
        {}, {"reasoningContent": {"reasoningText": {"text": "hm"}}}, {"text": "x"}, model="openai.gpt-oss-20b-1:0"
    )
    assert (found["reasoning"], found["thinking_blocks"]) == ("hm", [])


def test_names_come_back_as_the_client_knows_them() -> None:
    tool = {"type": "function", "function": {"name": "get.weather", "parameters": {}}}
    sent = body_of({"tools": [tool]})["toolConfig"]["tools"][0]["toolSpec"]["name"]
    assert both({"tools": [tool]}, use(sent), stop="tool_use")["tools"][0]["name"] == "get.weather"


@pytest.mark.parametrize("beside", [[], [{"text": "Here it is:"}], [THOUGHT]])
def test_the_json_tools_input_is_the_content_and_the_reason_a_plain_stop(beside: list[Any]) -> None:
    """7b-43: also with text beside it, which would spoil the JSON."""
    found = both(
        json_schema(CLOSED),
        *beside,
        use("respond_in_json", n=1),
        use("respond_in_json", n=2),
        model=OLD_CLAUDE,
        stop="tool_use",
    )
    assert json.loads(found["content"]) == {"n": 1}
    assert (found["tools"], found["finish"]) == ([], "stop")
    assert both(json_schema(CLOSED), {"text": '{"n":3}'}, model=OLD_CLAUDE)["content"] == '{"n":3}'


def test_the_clients_own_tool_stays_a_call_beside_the_json_tool() -> None:
    found = both({**json_schema(CLOSED), "tools": [WEATHER]}, use(city="Rome"), model=OLD_CLAUDE, stop="tool_use")
    assert found["tools"][0]["name"] == "weather"
    assert found["finish"] == "tool_calls"


def test_native_json_streams_as_it_comes() -> None:
    """7b-50"""
    call = bedrock_call({**json_schema(CLOSED), "stream": True})
    translator = BEDROCK.stream(call, DIALECT.stream_head)
    first = checked("messageStart", role="assistant") + checked(
        "contentBlockDelta", contentBlockIndex=0, delta={"text": '{"n'}
    )
    assert b'{\\"n' in translator.feed(first)


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("guardrail_intervened", "content_filter"),
        ("content_filtered", "content_filter"),
        ("malformed_model_output", "stop"),
        ("malformed_tool_use", "stop"),
        ("tool_use", "stop"),
    ],
)
def test_finish_reasons(reason: str, finish: str) -> None:
    assert both({}, {"text": "Blocked."}, stop=reason)["finish"] == finish


def test_every_reason_the_service_knows_has_a_word() -> None:
    from sidecar.translate.providers.bedrock import FINISH_REASONS, finish_reason

    shape: Any = operation("bedrock-runtime", "Converse").output_shape
    assert shape.members["stopReason"].enum == [*shape.members["stopReason"].enum]
    assert set(shape.members["stopReason"].enum) == FINISH_REASONS.keys()
    assert finish_reason("brand_new", False) == "stop"


@pytest.mark.parametrize(
    ("counts", "usage", "prompt"),
    [
        ({}, Usage(input=3, output=5), 3),
        (
            {"cacheReadInputTokens": 10, "cacheWriteInputTokens": 7},
            Usage(input=3, cached_input=10, cache_write_5m=7, output=5),
            20,
        ),
        (
            {
                "cacheReadInputTokens": 0,
                "cacheWriteInputTokens": 7,
                "cacheDetails": [{"ttl": "1h", "inputTokens": 4}, {"ttl": "5m", "inputTokens": 3}],
            },
            Usage(input=3, cached_input=0, cache_write_5m=3, cache_write_1h=4, output=5),
            10,
        ),
    ],
)
def test_usage_is_in_disjoint_classes(counts: dict[str, Any], usage: Usage, prompt: int) -> None:
    """7b-45, 7b-60: cached tokens are counted once, in the prompt's total and in their own class."""
    reply = BEDROCK.response(bedrock_call({}), OK, answer({"text": "x"}, usage={**COUNTS, **counts}))
    assert reply.usage == usage
    assert json.loads(reply.body)["usage"]["prompt_tokens"] == prompt
    assert both({}, {"text": "x"}, usage={**COUNTS, **counts})["usage"]["prompt_tokens"] == prompt


def test_usage_that_makes_no_sense_is_unknown() -> None:
    for usage in (None, [], {"inputTokens": -1, "outputTokens": "x"}):
        body = json.loads(answer({"text": "x"})) | {"usage": usage}
        reply = BEDROCK.response(bedrock_call({}), OK, json.dumps(body).encode())
        assert not reply.usage.is_known
        assert "usage" not in json.loads(reply.body)


def test_the_tier_that_served_is_told_in_openais_words() -> None:
    for tier, told in (("flex", "flex"), ("reserved", None)):
        found = json.loads(
            BEDROCK.response(bedrock_call({}), OK, answer({"text": "x"}, serviceTier={"type": tier})).body
        )
        assert found.get("service_tier") == told
        call = bedrock_call({"stream": True})
        out = run(BEDROCK.stream(call, DIALECT.stream_head), stream({"text": "x"}, serviceTier={"type": tier}))
        assert [chunk.get("service_tier") for chunk in events(out) if chunk != "[DONE]"][-1] == told


def test_web_citations_are_annotations_and_cited_text_is_not_lost() -> None:
    web = {"title": "AWS", "location": {"web": {"url": "https://aws.example", "domain": "aws.example"}}}
    page = {"title": "a", "location": {"documentPage": {"documentIndex": 0, "start": 1, "end": 2}}}
    cited = {"citationsContent": {"content": [{"text": "so it is"}], "citations": [web, page]}}
    server = {"toolUse": {**use("nova_grounding")["toolUse"], "type": "server_tool_use"}}
    content = [server, {"text": "They say "}, cited]
    assert both({"web_search_options": {}}, *content, model=NOVA)["content"] == "They say so it is"
    reply = BEDROCK.response(bedrock_call({}, NOVA), OK, answer(*content))
    (found,) = json.loads(reply.body)["choices"][0]["message"]["annotations"]
    assert found["url_citation"] == {"start_index": 9, "end_index": 17, "title": "AWS", "url": "https://aws.example"}
    out = run(BEDROCK.stream(bedrock_call({"stream": True}, NOVA), DIALECT.stream_head), stream(*content))
    told = [chunk["choices"][0]["delta"].get("annotations") for chunk in events(out) if chunk != "[DONE]"]
    assert [one[0]["url_citation"]["url"] for one in told if one] == ["https://aws.example"]


def test_an_account_number_does_not_reach_the_client() -> None:
    reply = BEDROCK.response(bedrock_call({}, PROFILE), OK, answer({"text": "x"}))
    assert json.loads(reply.body)["model"] == "a1b2c3d4e5f6"
    out = run(BEDROCK.stream(bedrock_call({"stream": True}, PROFILE), DIALECT.stream_head), stream({"text": "x"}))
    assert b"123456789012" not in out + reply.body


def test_all_chunks_are_of_choice_0_and_share_one_id_and_time() -> None:
    """7b-57, 7b-94"""
    call = bedrock_call({"tools": [WEATHER], "stream": True})
    out = run(
        BEDROCK.stream(call, DIALECT.stream_head), stream(THOUGHT, {"text": "ab"}, use(city="x"), stop="tool_use")
    )
    chunks = [chunk for chunk in events(out) if chunk != "[DONE]"]
    assert {chunk["choices"][0]["index"] for chunk in chunks} == {0}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1


BROKEN = {
    "arguments for no call": checked("contentBlockDelta", contentBlockIndex=0, delta={"toolUse": {"input": "{}"}}),
    "a block twice": 2
    * checked("contentBlockStart", contentBlockIndex=0, start={"toolUse": {"toolUseId": "t", "name": "n"}}),
    "a second start": checked("messageStart", role="assistant"),
    "an end within a block": checked("contentBlockDelta", contentBlockIndex=0, delta={"text": "x"})
    + checked("messageStop", stopReason="end_turn"),
    "usage before the end": checked("metadata", usage=COUNTS, metrics={"latencyMs": 1}),
    "not JSON": event("contentBlockDelta", b"{"),
    "content after the end": checked("messageStop", stopReason="end_turn")
    + checked("contentBlockDelta", contentBlockIndex=0, delta={"text": "x"}),
}


@pytest.mark.parametrize("more", BROKEN.values(), ids=BROKEN)
def test_a_stream_out_of_order_is_broken(more: bytes) -> None:
    translator = BEDROCK.stream(bedrock_call({"stream": True}), DIALECT.stream_head)
    with pytest.raises(UpstreamBrokenError):
        run(translator, checked("messageStart", role="assistant"), more, stream({"text": "x"}))


def test_nothing_follows_the_end_event() -> None:
    translator = BEDROCK.stream(bedrock_call({"stream": True}), DIALECT.stream_head)
    whole = stream({"text": "x"})
    assert run(translator, whole) == run(
        BEDROCK.stream(bedrock_call({"stream": True}), DIALECT.stream_head), whole + whole
    )


SAID = "The model returned the following errors: "
ERRORS: list[tuple[int, str, str, str, int]] = [
    (403, "AccessDenied", "You don't have access to the model with the specified model ID.", "permission_denied", 403),
    (403, "AccessDenied", "Authentication failed: Please make sure your API Key is valid.", "invalid_api_key", 401),
    (403, "UnrecognizedClient", "The security token included is invalid.", "invalid_api_key", 401),
    (403, "InvalidSignature", "The request signature we calculated does not match", "invalid_api_key", 401),
    (403, "ExpiredToken", "The security token included in the request is expired", "invalid_api_key", 401),
    (404, "ResourceNotFound", "Model not found", "model_not_found", 404),
    (400, "Validation", "The provided model identifier is invalid.", "model_not_found", 404),
    (400, "Validation", "1 validation error detected", "bad_request", 400),
    (400, "Validation", "Input is too long for requested model.", "context_length_exceeded", 400),
    (400, "Validation", SAID + "prompt is too long: 200049 tokens > 200000", "context_length_exceeded", 400),
    (400, "Validation", SAID + "input length and `max_tokens` exceed context limit", "context_length_exceeded", 400),
    (400, "Validation", "THIS MODEL'S MAXIMUM CONTEXT LENGTH IS 202752.", "context_length_exceeded", 400),
    (400, "Validation", SAID + "Output blocked by content filtering policy", "content_policy_violation", 400),
    (400, "ServiceQuotaExceeded", "Your request exceeds the service quota.", "insufficient_quota", 429),
    (429, "Throttling", "Too many tokens, please wait before trying again.", "rate_limit_exceeded", 429),
    (429, "ModelNotReady", "Model is not ready for inference.", "overloaded", 503),
    (408, "ModelTimeout", "Model has timed out", "upstream_timeout", 504),
    (424, "ModelError", "The model failed", "upstream_error", 502),
    (500, "InternalServer", "The system encountered an unexpected error", "upstream_error", 500),
    (503, "ServiceUnavailable", "Bedrock is unable to process your request.", "overloaded", 503),
    (418, "BrandNew", "x", "bad_request", 400),
]  # fmt: skip


@pytest.mark.parametrize(("status", "name", "message", "code", "told"), ERRORS)
@pytest.mark.parametrize("way", ["header", "body"])
def test_errors_mean_what_their_names_say(status: int, name: str, message: str, code: str, told: int, way: str) -> None:
    """7b-99, 7b-100: by name and status; a message's beginning in any case for validation errors only."""
    name += "Exception"
    fields = {"message": message}
    headers = [(b"retry-after", b"3")]
    if way == "header":
        headers.append((b"x-amzn-errortype", f"{name}:http://internal.amazon.com/coral/".encode()))
    else:
        fields = {"Message": message, "__type": f"com.amazon.coral.service#{name}"}
    error = BEDROCK.error(bedrock_call({}), Head(status, headers), json.dumps(fields).encode())
    assert (error.code, error.status, error.retry_after_s) == (code, told, 3.0)


def test_the_names_in_the_service_model_are_all_known() -> None:
    from sidecar.translate.providers.bedrock_errors import _KINDS, error_name

    for service, names in (
        ("bedrock-runtime", ("Converse", "ConverseStream", "InvokeModel", "InvokeModelWithResponseStream")),
        ("sagemaker-runtime", ("InvokeEndpoint", "InvokeEndpointWithResponseStream")),
    ):
        for name in names:
            model = operation(service, name)
            assert {shape.name for shape in model.error_shapes} <= _KINDS.keys()
            found = model.get_event_stream_output()
            members = found.members if found is not None else {}
            raised = {error_name(key) for key, shape in members.items() if shape.metadata.get("exception")}
            assert raised <= _KINDS.keys()


def test_a_users_words_in_an_error_mean_nothing() -> None:
    """7b-99"""
    said = "Malformed input request: #/messages/0: '429 Input is too long, throttled' is not valid"
    error = BEDROCK.error(
        bedrock_call({}),
        Head(400, [(b"x-amzn-errortype", b"ValidationException")]),
        json.dumps({"message": said}).encode(),
    )
    assert (error.kind, error.code) == ("bad_request", "bad_request")


def test_the_gateways_role_and_account_do_not_reach_the_client() -> None:
    said = (
        "User: arn:aws:sts::123456789012:assumed-role/gateway/i-0 is not authorized to perform: bedrock:InvokeModel on "
        "resource: arn:aws:bedrock:us-east-1::foundation-model/x because no identity-based policy allows it"
    )
    head = Head(403, [(b"x-amzn-errortype", b"AccessDeniedException")])
    error = BEDROCK.error(bedrock_call({}), head, json.dumps({"Message": said}).encode())
    assert error.kind == "permission"
    assert "123456789012" not in error.message


@pytest.mark.parametrize(
    ("name", "fields", "kind"),
    [
        ("throttlingException", {}, "rate_limit"),
        ("validationException", {"message": "Input is too long for requested model."}, "context_window"),
        ("internalServerException", {}, "server"),
        ("serviceUnavailableException", {}, "overloaded"),
        ("modelStreamErrorException", {"originalStatusCode": 500, "originalMessage": "x"}, "server"),
        ("modelStreamErrorException", {"originalStatusCode": 400, "originalMessage": "too hot"}, "bad_request"),
        ("modelStreamErrorException", {"originalStatusCode": 401}, "server"),
    ],
)
def test_exceptions_in_a_stream_have_the_kind_they_would_have_had_before_it(
    name: str, fields: dict[str, Any], kind: str
) -> None:
    translator = BEDROCK.stream(bedrock_call({"stream": True}), DIALECT.stream_head)
    begun = checked("messageStart", role="assistant") + checked(
        "contentBlockDelta", contentBlockIndex=0, delta={"text": "a"}
    )
    assert b'"a"' in translator.feed(begun)
    with pytest.raises(ProviderError) as caught:
        translator.feed(exception(name, **{"message": "x", **fields}))
    assert (caught.value.kind, caught.value.may_be_billed) == (kind, True)


SCRAPS = st.sampled_from([*DIALECT.scraps, stream({"text": "ab"}), checked("messageStop", stopReason="end_turn")])


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(SCRAPS | st.binary(max_size=30), max_size=10),
    model=st.sampled_from([CLAUDE, OLD_CLAUDE, NOVA]),
    cuts=st.lists(st.integers(0, 2_000), max_size=6),
)
def test_any_cut_of_any_stream_gives_the_same_bytes(pieces: list[bytes], model: str, cuts: list[int]) -> None:
    whole = b"".join(pieces)
    places = sorted({0, len(whole), *(cut % (len(whole) + 1) for cut in cuts)})
    outcomes = []
    for parts in ([whole], [whole[a:b] for a, b in pairwise(places)]):
        call = bedrock_call({**json_schema(CLOSED), "tools": [WEATHER], "stream": True}, model)
        translator = BEDROCK.stream(call, DIALECT.stream_head)
        out = b""
        with contextlib.suppress(SidecarError):
            for part in parts:
                out += translator.feed(part)
            out += translator.end()
        outcomes.append((out, type(translator.error), translator.usage, translator.is_complete))
    assert outcomes[0] == outcomes[1]


def test_called_is_a_valid_turn() -> None:
    assert body_of({"messages": [*USER, CALLED]})["messages"][1]["role"] == "assistant"
