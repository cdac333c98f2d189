"""Claude through InvokeModel: Anthropic's bodies on AWS's paths, its events within AWS's."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from sidecar.errors import BadRequestError, ProviderError, UpstreamBrokenError
from sidecar.translate import PROVIDERS, Call, Head
from sidecar.translate.provider import Media
from tests.translate.dialects import DIALECTS
from tests.translate.dialects.aws import event, exception, segment
from tests.translate.support import (
    OK,
    USER,
    WEATHER,
    assert_anthropic_takes,
    events,
    fold,
    make_call,
    run,
    unfold,
)
from tests.translate.test_bedrock_request import CLOSED, PDF, PNG, PROFILE, file, image, json_schema, user

INVOKE = PROVIDERS["bedrock-invoke"]
ANTHROPIC = PROVIDERS["anthropic"]
DIALECT = DIALECTS["bedrock-invoke"]
CLAUDE = "eu.anthropic.claude-sonnet-4-5-20250929-v1:0"
OLD = "anthropic.claude-3-5-sonnet-20240620-v1:0"


def invoke_call(payload: dict[str, Any], model: str = CLAUDE, **options: Any) -> Call:
    return make_call(payload, model=model, options={"region": "eu-central-1"}, **options)


def body_of(payload: dict[str, Any], model: str = CLAUDE, **options: Any) -> Any:
    request = INVOKE.request(invoke_call(payload, model, **options))
    DIALECT.check(request)
    body = json.loads(request.body)
    assert body["anthropic_version"] == "bedrock-2023-05-31"
    own = {name: value for name, value in body.items() if name not in ("anthropic_version", "anthropic_beta")}
    assert_anthropic_takes({**own, "model": "m"})
    return body


def refused(payload: dict[str, Any], model: str = CLAUDE, **options: Any) -> BadRequestError:
    with pytest.raises(BadRequestError) as caught:
        INVOKE.request(invoke_call(payload, model, **options))
    return caught.value


def chunk(**fields: Any) -> bytes:
    return event("chunk", {"bytes": base64.b64encode(json.dumps(fields).encode()).decode(), "p": "abc"})


@pytest.mark.parametrize(
    "model", [CLAUDE, PROFILE, "arn:aws:bedrock:us-east-1::foundation-model/anthropic.claude-v2:1"]
)
def test_the_model_and_the_stream_are_in_the_path(model: str) -> None:
    for is_stream, operation in ((False, "/invoke"), (True, "/invoke-with-response-stream")):
        request = INVOKE.request(invoke_call({"stream": is_stream}, model))
        DIALECT.check(request)  # botocore's serializer makes the same path
        assert request.path.endswith(operation)
        assert segment(request.path) == model
        assert not {"model", "stream"} & json.loads(request.body).keys()


def test_a_body_is_anthropics_own_but_for_what_bedrock_takes_elsewhere() -> None:
    payload = {
        "tools": [WEATHER],
        "tool_choice": "required",
        "stop": ["END"],
        "temperature": 0.5,
        "messages": [{"role": "system", "content": "s"}, *USER],
    }
    body = body_of(payload)
    direct = json.loads(ANTHROPIC.request(make_call(payload, model="claude-sonnet-4-5")).body)
    direct.pop("model")
    assert body == {"anthropic_version": "bedrock-2023-05-31", **direct}
    assert next(iter(body)) == "anthropic_version"
    assert body_of({}, params={"anthropic_beta": ["a", "b"]})["anthropic_beta"] == ["a", "b"]


def test_pictures_and_files_are_bytes() -> None:
    urls = ("https://example.com/a", "https://example.com/b.pdf", "https://example.com/c")
    media = {
        urls[0]: Media("application/octet-stream", base64.b64decode(PNG)),
        urls[1]: Media("application/pdf", base64.b64decode(PDF)),
        urls[2]: Media("application/pdf", base64.b64decode(PDF)),
    }
    parts = [image(urls[0]), file(file_url=urls[1], filename="b.pdf"), file(file_data=urls[2])]
    parts += [{"type": "image_url", "image_url": urls[0]}, image(f"data:image/png;base64,{PNG}")]
    payload = user(*parts)
    call = invoke_call(payload)
    assert INVOKE.needs(call) == urls
    before = json.dumps(call.payload)
    content = body_of(payload, media=media)["messages"][0]["content"]
    assert [block["source"]["type"] for block in content] == ["base64"] * 5
    assert [block["source"]["media_type"] for block in content] == [
        "image/png", "application/pdf", "application/pdf", "image/png", "image/png",
    ]  # fmt: skip
    assert content[1]["title"] == "b.pdf"
    assert json.dumps(call.payload) == before
    assert "could not fetch" in refused(payload).message
    assert "file_id" in refused(user(file(file_id="file-1"))).message


def test_tags_and_tier_are_headers() -> None:
    call = invoke_call({"metadata": {"team": "a"}, "user": "u-1", "service_tier": "priority"})
    request = INVOKE.request(call)
    DIALECT.check(request)
    headers = dict(request.headers)
    assert json.loads(headers[b"x-amzn-bedrock-request-metadata"]) == {"team": "a", "user": "u-1"}
    assert headers[b"x-amzn-bedrock-service-tier"] == b"priority"
    guarded = INVOKE.request(invoke_call({}, params={"guardrailIdentifier": "abc", "guardrailVersion": "1"}))
    DIALECT.check(guarded)
    assert dict(guarded.headers)[b"x-amzn-bedrock-guardrailidentifier"] == b"abc"
    assert b"guardrail" not in guarded.body
    assert refused({"guardrailIdentifier": "mine"}).param == "guardrailIdentifier"
    assert refused({"metadata": {"a": 1}}).param == "metadata.a"
    dropped = INVOKE.request(invoke_call({"service_tier": "scale", "seed": 1}, drop_params=True)).dropped
    assert set(dropped) == {"service_tier", "seed"}


def test_a_cache_mark_of_the_whole_request_stands_on_its_last_block() -> None:
    body = body_of({"cache_control": {"type": "ephemeral"}})
    assert "cache_control" not in body
    assert body["messages"][-1]["content"][-1]["cache_control"] == {"type": "ephemeral"}


def test_strict_and_native_schemas_are_sent_where_bedrocks_claude_takes_them() -> None:
    """7b-49, 7b-58"""
    tool = {"type": "function", "function": {"name": "f", "parameters": CLOSED, "strict": True}}
    assert body_of({"tools": [tool]})["tools"][0]["strict"] is True
    assert "format" in body_of(json_schema(CLOSED))["output_config"]
    for model in (OLD, "anthropic.claude-opus-4-7"):
        assert "strict" not in body_of({"tools": [tool]}, model)["tools"][0]
        assert INVOKE.request(invoke_call({"tools": [tool]}, model)).dropped == ("tools[0].function.strict",)
        body = body_of(json_schema(CLOSED), model)
        assert body["tools"][0]["name"] == "respond_in_json"
        assert "output_config" not in body


def test_the_json_tool_of_a_model_without_the_native_form_is_unwrapped_too() -> None:
    call = invoke_call(json_schema(CLOSED), "anthropic.claude-opus-4-7")
    block = {"type": "tool_use", "id": "t", "name": "respond_in_json", "input": {"n": 1}}
    answer = {
        "type": "message",
        "content": [block],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }
    found = unfold(INVOKE.response(call, OK, json.dumps(answer).encode()).body)
    assert (json.loads(found["content"]), found["finish"]) == ({"n": 1}, "stop")


def test_an_arn_that_says_nothing_has_its_model_named_by_the_deployment() -> None:
    params = {"base_model": "anthropic.claude-opus-4-6-v1"}
    assert body_of({"reasoning_effort": "high"}, PROFILE, params=params)["thinking"] == {"type": "adaptive"}
    reply = INVOKE.response(invoke_call({}, PROFILE), OK, json.dumps({"content": []}).encode())
    assert b"123456789012" not in reply.body


def stream_of(*more: bytes) -> bytes:
    start = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5-20250929",
        "content": [],
    }
    usage = {"input_tokens": 3, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 2, "output_tokens": 1}
    return b"".join(
        [
            chunk(type="message_start", message={**start, "stop_reason": None, "usage": usage}),
            chunk(type="content_block_start", index=0, content_block={"type": "text", "text": ""}),
            chunk(type="content_block_delta", index=0, delta={"type": "text_delta", "text": "hi"}),
            *more,
            chunk(type="content_block_stop", index=0),
            chunk(type="message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 5}),
            chunk(type="message_stop", **{"amazon-bedrock-invocationMetrics": {"inputTokenCount": 3}}),
        ]
    )


def test_events_in_chunks_are_anthropics_events() -> None:
    """7b-57, 7b-60: index 0 here as well; cached tokens are counted once."""
    call = invoke_call({"stream": True, "stream_options": {"include_usage": True}})
    translator = INVOKE.stream(call, DIALECT.stream_head)
    out = run(translator, stream_of(event("somethingNew", {})))
    found = fold(out)
    assert (found["content"], found["finish"]) == ("hi", "stop")
    assert found["usage"]["prompt_tokens"] == 9
    assert (translator.usage.input, translator.usage.cached_input, translator.usage.cache_write_5m) == (3, 4, 2)
    assert {chunk["model"] for chunk in events(out) if chunk != "[DONE]"} == {"claude-sonnet-4-5-20250929"}


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        (exception("throttlingException", message="x"), ProviderError),
        (exception("modelTimeoutException", message="x"), ProviderError),
        (chunk(type="error", error={"type": "overloaded_error", "message": "x"}), ProviderError),
        (event("chunk", {"bytes": "AAA"}), UpstreamBrokenError),
        (event("chunk", {"p": "x"}), UpstreamBrokenError),
        (event("chunk", b"no JSON"), UpstreamBrokenError),
    ],
)
def test_what_goes_wrong_in_a_stream_is_raised_after_what_came_before(broken: bytes, error: type[Exception]) -> None:
    translator = INVOKE.stream(invoke_call({"stream": True}), DIALECT.stream_head)
    assert b"hi" in translator.feed(stream_of(broken))
    with pytest.raises(error):
        translator.end()


def test_errors_are_aws_errors() -> None:
    head = Head(429, [(b"x-amzn-errortype", b"ThrottlingException"), (b"retry-after", b"2")])
    error = INVOKE.error(invoke_call({}), head, b'{"message":"Too many requests"}')
    assert (error.kind, error.retry_after_s) == ("rate_limit", 2.0)
