"""SageMaker endpoints: OpenAI's bytes pass, within AWS's paths and event streams."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import ProviderError, UpstreamBrokenError
from sidecar.translate import PROVIDERS, Call, Head
from sidecar.translate.signatures import pack
from tests.translate.dialects import DIALECTS
from tests.translate.dialects.aws import event, exception
from tests.translate.support import USER, make_call, run

SAGEMAKER = PROVIDERS["sagemaker"]
DIALECT = DIALECTS["sagemaker"]
CHUNK = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"\xc3\xa9"},"finish_reason":null}]}\n\n'
USAGE = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'
DONE = b"data: [DONE]\n\n"
SSE_HEAD = Head(200, [(b"content-type", b"text/event-stream")])


def endpoint_call(payload: dict[str, Any], **options: Any) -> Call:
    return make_call(payload, model="my-endpoint", options={"region": "eu-central-1"}, **options)


def test_the_endpoint_is_in_the_path_and_the_containers_model_in_the_body() -> None:
    for is_stream, operation in ((False, "invocations"), (True, "invocations-response-stream")):
        request = SAGEMAKER.request(endpoint_call({"stream": is_stream, "anything": [1]}))
        DIALECT.check(request)
        assert request.path == f"/endpoints/my-endpoint/{operation}"
        body = json.loads(request.body)
        assert (body["model"], body["anything"]) == ("my-endpoint", [1])
        assert body.get("stream_options") == ({"include_usage": True} if is_stream else None)
    params = {"served_model": "meta/llama", "inference_component": "part-1", "target_variant": "v1", "temperature": 0.1}
    request = SAGEMAKER.request(endpoint_call({}, params=params))
    DIALECT.check(request)
    body = json.loads(request.body)
    assert body == {"model": "meta/llama", "messages": USER, "temperature": 0.1}
    assert dict(request.headers)[b"x-amzn-sagemaker-inference-component"] == b"part-1"
    for region, end in (("us-east-1", "us-east-1.amazonaws.com"), ("cn-north-1", "cn-north-1.amazonaws.com.cn")):
        assert SAGEMAKER.base_url({"region": region}) == f"https://runtime.sagemaker.{end}"


def test_state_of_other_providers_is_taken_out_of_ids() -> None:
    packed = pack("c1", {"kind": "claude", "before": []})
    call = {"id": packed, "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        *USER,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": packed, "content": "x"},
    ]
    body = SAGEMAKER.request(endpoint_call({"messages": messages})).body
    assert b"__sdc1_" not in body


@settings(max_examples=100, deadline=None)
@given(cuts=st.lists(st.integers(0, 10_000), max_size=8), reads=st.lists(st.integers(0, 10_000), max_size=8))
def test_payload_parts_may_cut_the_containers_stream_anywhere(cuts: list[int], reads: list[int]) -> None:
    whole = b": hello\n\n" + CHUNK + CHUNK + USAGE + DONE
    places = sorted({0, len(whole), *(cut % len(whole) for cut in cuts)})
    wire = b"".join(event("PayloadPart", whole[a:b]) for a, b in pairwise(places))
    places = sorted({0, len(wire), *(cut % len(wire) for cut in reads)})
    translator = SAGEMAKER.stream(endpoint_call({"stream": True}), DIALECT.stream_head)
    out = run(translator, *(wire[a:b] for a, b in pairwise(places)))
    assert out == b": hello\n\n" + CHUNK + CHUNK + DONE
    assert (translator.usage.input, translator.usage.output) == (3, 2)


def test_the_usage_a_client_asked_for_reaches_it() -> None:
    call = endpoint_call({"stream": True, "stream_options": {"include_usage": True}})
    wire = event("PayloadPart", CHUNK + USAGE + DONE)
    assert run(SAGEMAKER.stream(call, DIALECT.stream_head), wire) == CHUNK + USAGE + DONE


def test_a_container_behind_a_plain_proxy_may_stream_plainly() -> None:
    assert SAGEMAKER.is_stream(SSE_HEAD)
    assert SAGEMAKER.is_stream(DIALECT.stream_head)
    assert not SAGEMAKER.is_stream(Head(200, [(b"content-type", b"application/json")]))
    call = endpoint_call({"stream": True})
    assert run(SAGEMAKER.stream(call, SSE_HEAD), CHUNK + DONE) == CHUNK + DONE


def test_an_exception_or_a_broken_message_ends_the_stream_after_what_came_before() -> None:
    for broken, error, kind in (
        (exception("InternalStreamFailure", Message="x"), ProviderError, "server"),
        (exception("ModelStreamError", Message="x", ErrorCode="ModelInvocationTimeExceeded"), ProviderError, "timeout"),
        (event("PayloadPart", CHUNK)[:-1] + b"!" + bytes(20), UpstreamBrokenError, "connection"),
        (event("PayloadPart", b'data: {"error":{"message":"x","code":503}}\n\n'), ProviderError, "overloaded"),
    ):
        translator = SAGEMAKER.stream(endpoint_call({"stream": True}), DIALECT.stream_head)
        assert translator.feed(event("PayloadPart", CHUNK) + broken) == CHUNK
        with pytest.raises(error) as caught:
            translator.feed(b"")
        assert getattr(caught.value, "kind", kind) == kind


@pytest.mark.parametrize(
    ("status", "name", "body", "kind"),
    [
        (400, "ValidationError", {"Message": "Endpoint my-endpoint of account 1 not found."}, "bad_request"),
        (403, "AccessDeniedException", {"Message": "no"}, "permission"),
        (424, "ModelError", {"OriginalStatusCode": 500, "OriginalMessage": "oops"}, "server"),
        (
            424,
            "ModelError",
            {"OriginalStatusCode": 400, "OriginalMessage": '{"error":{"message":"bad temperature"}}'},
            "bad_request",
        ),
        (424, "ModelError", {"OriginalStatusCode": 429, "OriginalMessage": "busy"}, "rate_limit"),
        (424, "ModelError", {"OriginalStatusCode": 401, "OriginalMessage": "x"}, "server"),
        (429, "ModelNotReadyException", {"Message": "x"}, "overloaded"),
        (503, "ServiceUnavailable", {"Message": "x"}, "overloaded"),
        (530, "InternalDependencyException", {"Message": "x"}, "server"),
    ],
)
def test_errors_are_awss_or_the_containers(status: int, name: str, body: dict[str, Any], kind: str) -> None:
    head = Head(status, [(b"x-amzn-errortype", name.encode())])
    error = SAGEMAKER.error(endpoint_call({}), head, json.dumps(body).encode())
    assert error.kind == kind
    if "temperature" in str(body):
        assert error.message.endswith("bad temperature")
