"""Errors as vendors were seen to send them, beyond what their pages say: what they mean decides who is asked next.

The words are from the threads `provider_errors` cites, and from what users of these vendors report.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.errors import ProviderError
from sidecar.translate.provider import Call, Head
from sidecar.translate.registry import get_provider
from tests.translate.support import make_call


def told(provider: str, status: int, body: Any, headers: list[tuple[bytes, bytes]] | None = None) -> ProviderError:
    payload = {"model": "m", "messages": []}
    call = Call(
        payload=payload, raw=json.dumps(payload).encode(), model="m", options={"region": "us-east-1", "project": "p"}
    )
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return get_provider(provider).error(call, Head(status, headers or []), raw)


def openai(message: str, code: Any = None, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code, **more}}


def anthropic(message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": "invalid_request_error", "message": message}}


def failed(message: str) -> dict[str, Any]:
    return {"error": {"code": 400, "message": message, "status": "FAILED_PRECONDITION"}}


INVALID, DENIED = "Client specified an invalid argument", "The caller does not have permission to execute the operation"
TGI = "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 3997 `inputs` tokens and 100"
CLAUDE_LONG = json.dumps(anthropic("prompt is too long: 208732 tokens > 200000 maximum"))


@pytest.mark.parametrize(
    ("provider", "status", "body"),
    [
        (
            "xai",
            400,
            {"code": INVALID, "error": "This model's maximum prompt length is 131072 but the request contains 136973"},
        ),
        (
            "openrouter",
            400,
            {"error": {"code": 400, "message": "This endpoint's maximum context length is 131072 tokens."}},
        ),
        (
            "openrouter",
            400,
            {"error": {"code": 400, "message": "Provider returned error", "metadata": {"raw": CLAUDE_LONG}}},
        ),
        (
            "openai",
            400,
            {"object": "error", "message": "This model's maximum context length is 2048 tokens.", "code": 400},
        ),
        ("deepseek", 400, openai("This model's maximum context length is 65536 tokens.", "invalid_request_error")),
        (
            "fireworks",
            400,
            openai("The prompt is too long: 40177, model maximum context length: 32767", "invalid_request_error"),
        ),
        ("together", 422, openai(TGI)),
        ("llama_cpp", 400, openai("request (5000 tokens) exceeds the available context size (4096 tokens)", 400)),
        (
            "github",
            413,
            {
                "error": {
                    "code": "tokens_limit_reached",
                    "message": "Request body too large for gpt-4o model. Max size: 8000 tokens.",
                }
            },
        ),
        (
            "dashscope",
            400,
            openai(
                "<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 983616]",
                "invalid_parameter_error",
            ),
        ),
        ("minimax", 400, openai("invalid params, context window exceeds limit (2013)")),
        ("zai", 400, openai("Prompt exceeds max length", "1261")),
        ("moonshot", 400, openai("Invalid request: Your request exceeded model token limit: 131072")),
        ("lm_studio", 400, {"error": "Trying to keep the first 5000 tokens when context the overflows."}),
        ("ollama", 400, {"error": "the input length exceeds the context length"}),
        ("ollama", 400, {"StatusCode": 400, "error": "prompt too long; exceeded max context length by 4 tokens"}),
        (
            "ollama_cloud",
            400,
            openai("400 Bad Request: prompt too long; exceeded max context length by 263 tokens", type="api_error"),
        ),
        ("databricks", 400, {"error_code": "BAD_REQUEST", "message": "Input is too long for requested model."}),
        (
            "watsonx",
            400,
            {
                "errors": [
                    {
                        "code": "invalid_input_argument",
                        "message": "Invalid input argument for Model 'ibm/g': the number of input tokens 8199 cannot",
                    }
                ]
            },
        ),
        (
            "vertex",
            400,
            [
                {
                    "error": {
                        "code": 400,
                        "message": "The input token count exceeds the maximum.",
                        "status": "INVALID_ARGUMENT",
                    }
                }
            ],
        ),
        (
            "bedrock",
            400,
            {
                "__type": "ValidationException",
                "message": "Input Tokens Exceeded: Number of input tokens exceeds maximum length.",
            },
        ),
        (
            "sagemaker",
            424,
            {"__type": "ModelError", "OriginalStatusCode": 422, "OriginalMessage": json.dumps({"error": TGI})},
        ),
    ],
)
def test_a_prompt_too_long_is_one_whoever_says_it(provider: str, status: int, body: Any) -> None:
    error = told(provider, status, body)
    assert (error.kind, error.status, error.code) == ("context_window", 400, "context_length_exceeded")
    assert (error.is_retryable, error.cools_down) == (False, False)


@pytest.mark.parametrize(
    ("provider", "status", "body", "kind"),
    [
        ("deepseek", 400, openai("Content Exists Risk", "invalid_request_error"), "content_policy"),
        (
            "xai",
            403,
            {"code": DENIED, "error": "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO"},
            "content_policy",
        ),
        (
            "openrouter",
            403,
            {
                "error": {
                    "code": 403,
                    "message": "m requires moderation.",
                    "metadata": {"reasons": ["violence"], "flagged_input": "x"},
                }
            },
            "content_policy",
        ),
        (
            "openrouter",
            400,
            {
                "error": {
                    "code": 400,
                    "message": "Provider returned error",
                    "metadata": {"raw": json.dumps(openai("no", "content_filter"))},
                }
            },
            "content_policy",
        ),
        (
            "dashscope",
            400,
            openai("Input data may contain inappropriate content.", "data_inspection_failed"),
            "content_policy",
        ),
        (
            "volcengine",
            400,
            openai("It may contain sensitive information.", "SensitiveContentDetected.SevereViolation"),
            "content_policy",
        ),
        ("minimax", 400, openai("input new_sensitive (1026)"), "content_policy"),
        (
            "zhipu",
            400,
            openai("系统检测到输入或生成内容可能包含不安全或敏感内容，请您避免输入", "1301"),
            "content_policy",
        ),
        (
            "xai",
            400,
            {"code": INVALID, "error": "Incorrect API key provided: na***ys. You can obtain an API key from …"},
            "authentication",
        ),
        ("anthropic", 400, anthropic("This organization has been disabled."), "authentication"),
        (
            "anthropic",
            400,
            anthropic("You have reached your specified API usage limits. You will regain access on 2026-04-01"),
            "quota",
        ),
        (
            "xai",
            429,
            {
                "code": "exhausted",
                "error": "Your team 1b2c-3d has either used all available credits or reached its limit.",
            },
            "quota",
        ),
        ("xai", 403, {"code": DENIED, "error": "Your newly created team doesn't have any credits yet."}, "quota"),
        ("zai", 429, openai("Insufficient balance or no resource package. Please recharge.", "1113"), "quota"),
        (
            "dashscope",
            400,
            openai("Access denied, please make sure your account is in good standing.", "Arrearage"),
            "quota",
        ),
        (
            "openai",
            400,
            openai("Your organization must be verified to stream this model.", "unsupported_value"),
            "permission",
        ),
        ("fireworks", 412, openai("Account a is suspended, possibly due to the limit", "PRECONDITION_FAILED"), "quota"),
        ("vertex", 400, failed("Publisher Model `projects/p/m` is not servable in region us-east1."), "permission"),
        ("vertex", 400, [failed("Project `1` is not allowed to use Publisher Model `projects/p/m`")], "permission"),
        ("vertex", 400, failed("The model wants something else."), "bad_request"),
        ("deepseek", 400, openai("Model Not Exist", "invalid_request_error"), "not_found"),
        ("openrouter", 400, {"error": {"code": 400, "message": "a/b is not a valid model ID"}}, "not_found"),
        ("groq", 400, openai("The model `m` has been decommissioned.", "model_decommissioned"), "not_found"),
        (
            "azure",
            410,
            {"error": {"code": "ModelDeprecated", "message": "The model has been deprecated."}},
            "not_found",
        ),
        (
            "gemini",
            400,
            {
                "error": {
                    "code": 400,
                    "message": "User location is not supported for the API use.",
                    "status": "FAILED_PRECONDITION",
                }
            },
            "permission",
        ),
        (
            "bedrock",
            400,
            {
                "__type": "ValidationException",
                "message": "Invocation of model ID m with on-demand throughput isn’t supported.",
            },
            "not_found",
        ),
        ("openai", 429, openai("Your account is not active.", "billing_not_active"), "quota"),
        *(
            ("openai-responses", 429, openai("You exceeded your current quota.", code), "quota")
            for code in (
                "credit_balance_exhausted",
                "organization_spend_limit_exceeded",
                "organization_usage_limit_exceeded",
                "project_spend_limit_exceeded",
            )
        ),
        ("ollama", 429, {"error": "you (x) have reached your weekly usage limit, upgrade for higher limits"}, "quota"),
        ("ollama_cloud", 429, openai("you've reached your hourly usage limit, please wait or upgrade"), "quota"),
        ("ollama", 429, {"error": "slow down; you've reached your hourly usage limit"}, "rate_limit"),
        ("ollama", 400, {"error": '"nomic-embed-text" does not support chat'}, "not_found"),
        ("ollama", 400, {"error": "llama3 does not support tools"}, "bad_request"),
        ("ollama", 400, {"error": "this server cannot run this remote model"}, "not_found"),
        ("ollama", 500, {"error": "this model is missing data required for image input"}, "bad_request"),
        ("ollama", 500, {"error": "invalid JSON schema in format"}, "bad_request"),
        ("ollama", 500, {"error": 'invalid format: "X"; expected "json" or a valid JSON Schema object'}, "bad_request"),
        ("ollama", 500, {"error": "invalid format: the model's file"}, "server"),
        ("ollama", 499, {"error": "request canceled"}, "server"),
        ("openai", 499, b"", "server"),
        ("cohere", 501, {"id": "x"}, "bad_request"),
        (
            "cohere",
            429,
            {"message": "You are using a Trial key, which is limited to 1000 API calls / month. You can"},
            "quota",
        ),
        (
            "cohere",
            429,
            {"message": "You are using a Trial key, which is limited to 40 API calls / minute. You can"},
            "rate_limit",
        ),
        (
            "watsonx",
            400,
            {"errors": [{"code": "model_no_support_for_function", "message": "Model 'm' does not support function"}]},
            "not_found",
        ),
        ("openai", 400, openai("temperature: Content Exists Risk"), "bad_request"),
        ("openai", 403, openai("This endpoint's maximum context length is 5"), "permission"),
        (
            "openrouter",
            400,
            {"error": {"code": 400, "message": "Provider returned error", "metadata": {"raw": "<html>"}}},
            "bad_request",
        ),
        (
            "openrouter",
            400,
            {"error": {"code": 400, "message": "Provider returned error", "metadata": None}},
            "bad_request",
        ),
    ],
)
def test_what_a_vendor_means_is_not_always_what_its_status_says(
    provider: str, status: int, body: Any, kind: str
) -> None:
    assert told(provider, status, body).kind == kind


@pytest.mark.parametrize("status", [413, 429])
def test_one_request_beyond_the_tokens_of_a_minute_pauses_nobody_elses(status: int) -> None:
    """Groq says it with 413, OpenAI with 429; a smaller one goes through."""
    body = openai(
        "Request too large for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Requested 132819.",
        "rate_limit_exceeded",
        type="tokens",
    )
    error = told("groq" if status == 413 else "openai", status, body)
    assert (error.kind, error.status, error.code) == ("rate_limit", status, "rate_limit_exceeded")
    assert (error.is_retryable, error.cools_down) == (True, False)
    full = told("openai", 429, openai("Rate limit reached for gpt-4o", "rate_limit_exceeded", type="tokens"))
    assert full.cools_down


def test_a_compressed_or_binary_body_is_not_quoted() -> None:
    error = told("openai", 500, b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03abc")
    assert error.message == "Provider openai answered 500 without a reason."


def test_ids_of_the_operators_keys_are_not_passed_on() -> None:
    said = "Content violates usage guidelines. Team: 1b2c, API key ID: 8f14e45f-ceea-467f, Model: grok-4"
    error = told("xai", 403, {"code": DENIED, "error": said})
    assert "8f14e45f" not in error.message
    assert "Model: grok-4" in error.message


def half_way(key: str, error: Any) -> bytes:
    choice = {"index": 0, key: {"role": "assistant", "content": "so far"}, "finish_reason": "error", **error}
    return json.dumps({"id": "c", "created": 1, "model": "m", "choices": [choice]}).encode()


OVER = {"error": {"code": 429, "message": "Rate limit exceeded upstream"}}


@pytest.mark.parametrize(("error", "kind"), [(OVER, "rate_limit"), ({}, "server")], ids=["with a word", "without"])
def test_text_that_a_router_got_half_of_never_looks_whole(error: Any, kind: str) -> None:
    """https://openrouter.ai/docs/api-reference/overview: the error is within the choice."""
    provider = get_provider("openrouter")
    call = make_call({"model": "m", "messages": []}, is_stream=True)
    with pytest.raises(ProviderError) as caught:
        provider.response(call, Head(200), half_way("message", error))
    assert (caught.value.kind, caught.value.may_be_billed) == (kind, True)
    translator = provider.stream(call, Head(200))
    with pytest.raises(ProviderError) as caught:
        translator.feed(b"data: " + half_way("delta", error) + b"\n\ndata: [DONE]\n\n")
    assert caught.value.kind == kind


def test_an_answer_that_talks_of_errors_is_an_answer() -> None:
    said = 'write {"finish_reason":"error"} there'
    whole = {"choices": [{"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]}
    body = json.dumps(whole).encode()
    assert get_provider("openrouter").response(make_call({"model": "m", "messages": []}), Head(200), body).body == body
