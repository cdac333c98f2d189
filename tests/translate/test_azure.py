"""Azure OpenAI: OpenAI's bytes by other paths, and its content filter's words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletionChunk

from sidecar.errors import BadRequestError, ProviderError, UpstreamBrokenError
from sidecar.importing.providers import fit_base_url
from sidecar.translate import PROVIDERS, Call, Head
from sidecar.types import Usage
from tests.translate.support import OK, events, make_call, run, sent

AZURE = PROVIDERS["azure"]
FILTERED = {
    "message": "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
    "type": None,
    "param": "prompt",
    "code": "content_filter",
    "status": 400,
    "innererror": {
        "code": "ResponsibleAIPolicyViolation",
        "content_filter_result": {
            "hate": {"filtered": False, "severity": "safe"},
            "jailbreak": {"detected": True, "filtered": True},
            "violence": {"filtered": True, "severity": "high"},
        },
    },
}
"""As Azure answers: https://github.com/openai/openai-agents-python/issues/806"""
PROMPT = (
    b'data: {"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[{"prompt_index":0,'
    b'"content_filter_results":{"hate":{"filtered":false,"severity":"safe"}}}]}\n\n'
)
CHUNK = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"gpt-4o","choices":[%s]%s}\n\n'
ROLE = CHUNK % (
    b'{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null,"content_filter_results":{}}',
    b"",
)
WORD = CHUNK % (b'{"index":0,"delta":{"content":"hi"},"finish_reason":null}', b"")
LAST = CHUNK % (b'{"index":0,"delta":{},"finish_reason":"stop","content_filter_results":{}}', b"")
OFFSETS = (
    b'data: {"id":"","object":"","created":0,"model":"","choices":[{"index":0,"finish_reason":null,'
    b'"content_filter_results":{},"content_filter_offsets":{"check_offset":1,"start_offset":1,"end_offset":9}}]}\n\n'
)
USAGE = CHUNK % (b"", b',"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13}')
DONE = b"data: [DONE]\n\n"


def azure_call(payload: dict[str, Any] | None = None, version: str | None = None, **options: Any) -> Call:
    options.setdefault("model", "prod-gpt")
    return make_call(payload, options={} if version is None else {"api_version": version}, **options)


@pytest.mark.parametrize(
    ("version", "path", "query"),
    [
        (None, "/openai/v1/chat/completions", ""),
        ("v1", "/openai/v1/chat/completions", ""),
        ("latest", "/openai/v1/chat/completions", ""),
        ("preview", "/openai/v1/chat/completions", "api-version=preview"),
        ("2024-10-21", "/openai/deployments/prod-gpt/chat/completions", "api-version=2024-10-21"),
        ("2025-04-01-preview", "/openai/deployments/prod-gpt/chat/completions", "api-version=2025-04-01-preview"),
        ("1&x=/../", "/openai/deployments/prod-gpt/chat/completions", "api-version=1%26x%3D%2F..%2F"),
    ],
)
def test_a_dated_version_goes_to_the_deployments_path_and_none_to_v1(
    version: str | None, path: str, query: str
) -> None:
    request = AZURE.request(azure_call(version=version))
    assert (request.path, request.query) == (path, query)
    assert json.loads(request.body)["model"] == "prod-gpt"


@pytest.mark.parametrize("model", ["a/b", "a?x=1", "a#b", "a%2f", "ü"])
def test_a_name_is_one_segment_of_the_path(model: str) -> None:
    path = AZURE.request(azure_call(version="2024-10-21", model=model)).path
    assert path.count("/") == 5
    assert not {*"?# "} & {*path}
    assert path.isascii()


@pytest.mark.parametrize("model", ["..", "."])
def test_a_name_that_is_another_path_is_refused(model: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        AZURE.request(azure_call(version="2024-10-21", model=model))
    assert caught.value.param == "model"


def test_a_deployment_has_to_say_its_resource() -> None:
    assert AZURE.base_url({}) is None
    assert (AZURE.auth, AZURE.keyless) == ("api-key", "azure")
    assert AZURE.service == "https://cognitiveservices.azure.com/.default"
    for given in ("", "/", "/openai", "/openai/v1", "/openai/v1/", "/openai/v1/chat/completions"):
        assert fit_base_url("azure", f"https://ours.openai.azure.com{given}") == "https://ours.openai.azure.com"


@pytest.mark.parametrize(
    ("model", "params", "payload", "expected"),
    [
        ("gpt-5-mini", {}, {"max_tokens": 5}, {"max_completion_tokens": 5}),
        ("prod", {}, {"max_tokens": 5}, {"max_tokens": 5}),
        ("prod", {"base_model": "o3"}, {"max_tokens": 5}, {"max_completion_tokens": 5}),
        ("prod", {"base_model": "gpt-4o"}, {"max_completion_tokens": 5}, {"max_completion_tokens": 5}),
    ],
)
def test_base_model_says_what_a_deployments_name_does_not(
    model: str, params: dict[str, Any], payload: dict[str, Any], expected: dict[str, Any]
) -> None:
    """88."""
    body = sent("azure", payload, model=model, params=params)
    assert {name: value for name, value in body.items() if name.startswith("max_")} == expected
    assert "base_model" not in body
    capped = sent("azure", {}, model=model, params=params, edits={"output_cap": 7})
    assert 7 in (capped.get("max_tokens"), capped.get("max_completion_tokens"))


def test_bare_picture_urls_are_wrapped_and_their_bytes_kept() -> None:
    """91."""
    picture = "data:image/png;base64,iVBORw0KGgo+/AB=="
    parts = [
        {"type": "text", "text": "what?"},
        {"type": "image_url", "image_url": picture},
        {"type": "image_url", "image_url": {"url": picture, "detail": "low"}},
    ]
    payload = {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": parts}]}
    body = sent("azure", payload)
    assert body["messages"][1]["content"][1] == {"type": "image_url", "image_url": {"url": picture}}
    assert body["messages"][1]["content"][2] == parts[2]
    assert body["messages"][0] == payload["messages"][0]
    assert parts[1]["image_url"] == picture, "the client's payload is left alone"
    whole = azure_call({"model": "prod-gpt", "messages": [{"role": "user", "content": [parts[0], parts[2]]}]})
    assert AZURE.request(whole).body is whole.raw
    for odd in (None, "image_url", [3, "image_url"], [{"role": "user", "content": [3, {"type": "image_url"}]}]):
        AZURE.request(azure_call({"messages": odd}))


def test_a_stream_that_begins_with_the_filters_results_passes_whole() -> None:
    """93: chunks without choices at the start, and annotations without a delta when the filter runs beside."""
    body = PROMPT + ROLE + WORD + OFFSETS + LAST + USAGE + DONE
    translator = AZURE.stream(azure_call({"stream": True}), OK)
    assert translator.feed(PROMPT + ROLE) == PROMPT + ROLE
    assert not translator.content_started
    assert translator.feed(WORD) == WORD
    assert translator.content_started
    assert run(translator, OFFSETS + LAST + USAGE + DONE) == OFFSETS + LAST + DONE
    assert translator.usage == Usage(input=9, output=4)
    asked = AZURE.stream(azure_call({"stream": True, "stream_options": {"include_usage": True}}), OK)
    assert run(asked, body) == body
    for chunk in events(ROLE + WORD + LAST + USAGE):
        ChatCompletionChunk.model_validate(chunk, strict=True)
    for at in range(0, len(body), 7):
        again = AZURE.stream(azure_call({"stream": True}), OK)
        assert run(again, body[:at], body[at:]) == PROMPT + ROLE + WORD + OFFSETS + LAST + DONE


def test_what_the_filter_says_of_the_prompt_is_no_answer() -> None:
    for body in (PROMPT + DONE, PROMPT + USAGE + DONE):
        translator = AZURE.stream(azure_call({"stream": True}), OK)
        with pytest.raises(UpstreamBrokenError):
            run(translator, body)


@pytest.mark.parametrize("code", ["content_filter", None, "invalid_prompt", "400"])
def test_a_filtered_prompt_is_a_content_policy_error_that_names_the_filters(code: str | None) -> None:
    error = AZURE.error(azure_call(), Head(400), json.dumps({"error": {**FILTERED, "code": code}}).encode())
    assert (error.kind, error.status, error.code, error.param) == ("content_policy", 400, "content_filter", "prompt")
    assert error.message.endswith("(filtered for jailbreak, violence)")
    assert not error.is_retryable
    assert not error.cools_down


def test_a_filter_that_stops_a_stream_is_the_same_error_after_what_came_before() -> None:
    translator = AZURE.stream(azure_call({"stream": True}), OK)
    assert translator.feed(PROMPT + ROLE + WORD) == PROMPT + ROLE + WORD
    with pytest.raises(ProviderError) as caught:
        translator.feed(b"data: " + json.dumps({"error": FILTERED}).encode() + b"\n\n")
    assert (caught.value.kind, caught.value.status) == ("content_policy", 400)
    assert caught.value.may_be_billed


@pytest.mark.parametrize(
    "inner",
    [
        None,
        3,
        [],
        {},
        {"code": 3},
        {"code": "Other", "content_filter_result": {"hate": {"filtered": True}}},
    ],
)
def test_another_inner_error_is_not_taken_for_the_filter(inner: Any) -> None:
    fields = {"message": "ResponsibleAIPolicyViolation content_filter 429", "code": "BadRequest", "innererror": inner}
    error = AZURE.error(azure_call(), Head(400), json.dumps({"error": fields}).encode())
    assert (error.kind, error.code) == ("bad_request", "BadRequest")


@pytest.mark.parametrize(
    "results", [None, 3, [], {"hate": 3}, {"hate": {"filtered": "yes"}}, {"a b": {"filtered": True}}]
)
def test_odd_filter_results_are_not_quoted(results: Any) -> None:
    inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": results}
    fields = {"message": "no", "innererror": inner}
    error = AZURE.error(azure_call(), Head(400), json.dumps({"error": fields}).encode())
    assert error.kind == "content_policy"
    assert error.message == "Provider azure answered 400: no"


@pytest.mark.parametrize(
    ("status", "body", "kind", "wait"),
    [
        (
            401,
            {"error": {"code": "401", "message": "Access denied due to invalid subscription key"}},
            "authentication",
            0,
        ),
        (401, {"statusCode": 401, "message": "Unauthorized. Access token is missing"}, "authentication", 0),
        (403, {"error": {"code": "AuthorizationFailed", "message": "no"}}, "permission", 0),
        (404, {"error": {"code": "DeploymentNotFound", "message": "does not exist"}}, "not_found", 0),
        (404, {"error": {"code": "404", "message": "Resource not found"}}, "not_found", 0),
        (429, {"error": {"code": "429", "message": "call rate limit exceeded"}}, "rate_limit", 7),
        (429, {"error": {"code": "insufficient_quota", "message": "m"}}, "quota", 7),
        (400, {"error": {"code": "context_length_exceeded", "message": "m"}}, "context_window", 0),
        (408, {"error": {"code": "Timeout", "message": "The operation was timeout."}}, "timeout", 0),
        (500, {"error": {"code": "InternalServerError", "message": "m"}}, "server", 0),
        (503, {"error": {"code": "ServiceUnavailable", "message": "m"}}, "overloaded", 0),
    ],
)
def test_errors_keep_their_meaning(status: int, body: dict[str, Any], kind: str, wait: int) -> None:
    headers = [(b"retry-after", str(wait).encode())] if wait else []
    error = AZURE.error(azure_call(), Head(status, headers), json.dumps(body).encode())
    assert (error.kind, error.status) == (kind, status)
    assert error.retry_after_s == (float(wait) if wait else None)
