"""Errors as providers send them, as data: what each family of vendors says for one meaning, and what the client is to
read. And errors of whatever stands in front of a provider (gateways, CDNs), the same for all.

OpenAI: https://platform.openai.com/docs/guides/error-codes
Anthropic: https://docs.claude.com/en/api/errors
Google: https://ai.google.dev/gemini-api/docs/troubleshooting, https://google.aip.dev/193
AWS: https://docs.aws.amazon.com/bedrock/latest/APIReference/CommonErrors.html
Cohere: https://docs.cohere.com/reference/errors, https://docs.cohere.com/reference/chat
Ollama: https://docs.ollama.com/api/errors, https://github.com/ollama/ollama (`server/routes.go`, `server/sched.go`,
    `server/cloud_proxy.go`, `llm/server.go`)
IBM: https://cloud.ibm.com/apidocs/watsonx-ai#error-handling, https://github.com/IBM/watsonx-ai-java-sdk
    (`WatsonxError.java` and its tests), https://github.com/quarkiverse/quarkus-langchain4j (`HttpErrorTest.java`);
    of spent quotas in the words that several public projects recorded
Rows that users of these vendors saw name the thread. Where a page gives a status alone, the text is empty or ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Said:
    status: int
    body: bytes
    headers: Headers = ()
    is_html: bool = False
    code: str | None = None
    """The vendor's own code in OpenAI's form: it is kept."""
    words: str = ""
    """Of this vendor's reason, in place of the case's."""


@dataclass(frozen=True)
class Case:
    """`statuses`: what the client may read; a vendor that speaks OpenAI's dialect keeps its own. `code` is ours.
    `words`: of the vendor's reason, to be found in the message. `wait`: the `retry-after` the client reads."""

    name: str
    statuses: frozenset[int]
    code: str
    said: Mapping[str, Said]
    words: str = ""
    wait: str | None = None
    headers: Headers = field(default=())


def openai(status: int, text: str, kind: str, code: str | None = None, param: str | None = None) -> Said:
    error = {"message": text, "type": kind, "param": param, "code": code}
    return Said(status, json.dumps({"error": error}).encode(), code=code or kind)


def anthropic(status: int, text: str, kind: str) -> Said:
    error = {"type": "error", "error": {"type": kind, "message": text}, "request_id": "req_011CSHoEeqs5C35K2UUqR7Fy"}
    return Said(status, json.dumps(error).encode())


def google(status: int, text: str, kind: str, reason: str | None = None, delay: str | None = None) -> Said:
    details: list[dict[str, Any]] = []
    if reason is not None:
        info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "googleapis.com"}
        details.append(info)
    if delay is not None:
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay})
    error = {"code": status, "message": text, "status": kind, **({"details": details} if details else {})}
    return Said(status, json.dumps({"error": error}).encode())


def aws(status: int, text: str, kind: str) -> Said:
    return Said(status, json.dumps({"message": text}).encode(), (("x-amzn-errortype", f"{kind}:http://internal/"),))


def cohere(status: int, text: str = "", **more: str) -> Said:
    """Without a text where the page gives a status and no wording: neither field is required."""
    error = {"id": "4d1a5c4b-0c2b-4e9f-8e71-1f2a2d6d2a17", **({"message": text} if text else {}), **more}
    return Said(status, json.dumps(error).encode(), words=_quoted(status, text))


def ollama(status: int, text: str, **more: Any) -> Said:
    return Said(status, json.dumps({**more, "error": text}).encode(), words=_quoted(status, text))


def ibm(status: int, code: str, text: str) -> Said:
    told = {"code": code, "message": text, "more_info": "https://cloud.ibm.com/apidocs/watsonx-ai#text-chat"}
    error = {"errors": [told], "trace": "23e11747002c4d29199874a5b7a42f81", "status_code": status}
    return Said(status, json.dumps(error).encode(), words=_quoted(status, text))


def _quoted(status: int, text: str) -> str:
    """Nothing of a refused credential is: it is the gateway's."""
    return "" if status == 401 else text[:60].strip()


def vendor(
    name: str,
    statuses: set[int],
    code: str,
    words: str = "",
    wait: str | None = None,
    headers: Headers = (),
    **said: Said,
) -> Case:
    """What each family says."""
    return Case(name, frozenset(statuses), code, said, words, wait, headers)


def front(
    name: str,
    status: int,
    statuses: set[int],
    code: str,
    body: bytes = b"",
    *,
    words: str = "",
    wait: str | None = None,
    headers: Headers = (),
    is_html: bool = False,
) -> Case:
    """The same from whoever stands in front of any provider."""
    said = Said(status, body, is_html=is_html)
    return Case(name, frozenset(statuses), code, dict.fromkeys(FAMILIES, said), words, wait, headers)


FAMILIES = ("openai", "anthropic", "google", "aws", "cohere", "ollama", "ibm")
BAD = "temperature: Input should be less than or equal to 1"
LONG = "the request is not valid " * 400
TRAP = "429 Too Many Requests: insufficient_quota, invalid api key, context_length_exceeded"
AFTER = (("retry-after", "20"),)

CASES: tuple[Case, ...] = (
    vendor(
        "a malformed field", {400}, "bad_request", "less than or equal",
        openai=openai(400, BAD, "invalid_request_error", None, "temperature"),
        anthropic=anthropic(400, BAD, "invalid_request_error"),
        google=google(400, BAD, "INVALID_ARGUMENT"),
        aws=aws(400, BAD, "ValidationException"),
        cohere=cohere(400, "invalid request: temperature must be between 0 and 1.0 inclusive."),
        ollama=ollama(400, "top_logprobs must be between 0 and 20"),
        ibm=ibm(400, "json_type_error",
                "Json field type error: response_format must be of type schemas.TextChatPropertyResponseFormat"),
    ),
    vendor(
        "a text that names other errors", {400}, "bad_request", "429 Too Many",
        openai=openai(400, TRAP, "invalid_request_error"),
        anthropic=anthropic(400, TRAP, "invalid_request_error"),
        google=google(400, TRAP, "INVALID_ARGUMENT"),
        aws=aws(400, TRAP, "ValidationException"),
        cohere=cohere(400, TRAP),
        ollama=ollama(400, TRAP),
        ibm=ibm(400, "invalid_input_argument", TRAP),
    ),
    vendor(
        "an endless text", {400}, "bad_request", "is not valid",
        openai=openai(400, LONG, "invalid_request_error"),
        anthropic=anthropic(400, LONG, "invalid_request_error"),
        google=google(400, LONG, "INVALID_ARGUMENT"),
        aws=aws(400, LONG, "ValidationException"),
        cohere=cohere(400, LONG),
        ollama=ollama(400, LONG),
        ibm=ibm(400, "invalid_input_argument", LONG),
    ),
    vendor(
        "a text in another language", {400}, "bad_request", "不正なリクエスト 🚫",
        openai=openai(400, "不正なリクエスト 🚫", "invalid_request_error"),
        anthropic=anthropic(400, "不正なリクエスト 🚫", "invalid_request_error"),
        google=google(400, "不正なリクエスト 🚫", "FAILED_PRECONDITION"),
        aws=aws(400, "不正なリクエスト 🚫", "ValidationException"),
        cohere=cohere(400, "不正なリクエスト 🚫"),
        ollama=ollama(400, "不正なリクエスト 🚫"),
        ibm=ibm(400, "invalid_input_argument", "不正なリクエスト 🚫"),
    ),
    vendor(
        "too long for the model", {400}, "context_length_exceeded",
        openai=openai(400, "This model's maximum context length is 128000 tokens.", "invalid_request_error",
                      "context_length_exceeded", "messages"),
        anthropic=anthropic(400, "prompt is too long: 250000 tokens > 200000 maximum", "invalid_request_error"),
        google=google(400, "The input token count (300000) exceeds the maximum number of tokens allowed (128000).",
                      "INVALID_ARGUMENT"),
        aws=aws(400, "Input is too long for requested model.", "ValidationException"),
        cohere=cohere(400, "too many tokens: size limit exceeded by 11326 tokens. Try using shorter or fewer inputs.",
                      error_type="TOO_MANY_TOKENS"),
        # https://github.com/openJiuwen-ai/jiuwenswarm/issues/12
        ollama=ollama(400, "prompt too long; exceeded max context length by 4 tokens", StatusCode=400,
                      Status="400 Bad Request"),
        ibm=ibm(400, "invalid_input_argument", "Invalid input argument for Model 'meta-llama/llama-2-70b-chat': the"
                " number of input tokens 4098 cannot exceed the total tokens limit 4096 for this model"),
    ),
    vendor(
        "refused by content policy", {400}, "content_policy_violation",
        openai=openai(400, "Your request was rejected by the safety system.", "invalid_request_error",
                      "content_policy_violation"),
        anthropic=anthropic(400, "Output blocked by content filtering policy", "invalid_request_error"),
        aws=aws(400, "Output blocked by content filtering policy", "ValidationException"),
        cohere=cohere(498),
    ),
    vendor(
        "the credential is wrong", {401}, "invalid_api_key", "gateway's operator",
        openai=openai(401, "Incorrect API key provided: sk-abc***def.", "invalid_request_error", "invalid_api_key"),
        anthropic=anthropic(401, "invalid x-api-key", "authentication_error"),
        google=google(401, "Request had invalid authentication credentials.", "UNAUTHENTICATED"),
        aws=aws(403, "The security token included in the request is invalid.", "UnrecognizedClientException"),
        cohere=cohere(401, "invalid api token"),
        ollama=ollama(401, "unauthorized", signin_url="https://ollama.com/connect?name=h&key=k"),
        ibm=ibm(401, "authentication_token_expired", "Failed to authenticate the request due to an expired token"),
    ),
    vendor(
        "the credential is wrong, said otherwise", {401}, "invalid_api_key", "gateway's operator",
        openai=openai(401, "Unauthorized", "authentication_error"),
        anthropic=anthropic(401, "OAuth token has expired.", "authentication_error"),
        google=google(400, "API key not valid. Please pass a valid API key.", "INVALID_ARGUMENT", "API_KEY_INVALID"),
        aws=aws(403, "The security token included in the request is expired", "ExpiredTokenException"),
        cohere=cohere(401, "Your API key has expired. Please create a production key at dashboard.cohere.com or reach"
                      " out to your contact at Cohere to continue usage."),
        ollama=ollama(401, "unauthorized"),
        ibm=ibm(401, "authentication_token_not_valid",
                "Failed to authenticate the request due to invalid token: Failed to parse and verify token"),
    ),
    vendor(
        "not permitted", {403}, "permission_denied", "not permitted here",
        openai=openai(403, "not permitted here", "permission_error"),
        anthropic=anthropic(403, "not permitted here", "permission_error"),
        google=google(403, "not permitted here", "PERMISSION_DENIED"),
        aws=aws(403, "not permitted here", "AccessDeniedException"),
        cohere=cohere(403, "not permitted here"),
        # https://github.com/ollama/ollama/issues/15741
        ollama=ollama(403, "this model requires a subscription, upgrade for access: https://ollama.com/upgrade"),
        ibm=ibm(403, "no_associated_service_instance_error",
                "project_id 6e70429b-2e92-4545-b77b-8170dbd2dfbb is not associated with a WML instance"),
    ),
    vendor(
        "no such model", {404}, "model_not_found", "m-9",
        openai=openai(404, "The model `m-9` does not exist", "invalid_request_error", "model_not_found"),
        anthropic=anthropic(404, "model: m-9", "not_found_error"),
        google=google(404, "models/m-9 is not found for API version v1beta", "NOT_FOUND"),
        aws=aws(404, "Could not resolve the foundation model m-9", "ResourceNotFoundException"),
        cohere=cohere(404, "model 'm-9' not found, make sure the correct model ID was used and that you have access to"
                      " the model."),
        ollama=ollama(404, 'model "m-9" not found, try pulling it first'),
        ibm=ibm(404, "model_not_supported", "Model 'm-9' is not supported"),
    ),
    vendor(
        "no money left", {429}, "insufficient_quota",
        openai=openai(429, "You exceeded your current quota.", "insufficient_quota", "insufficient_quota"),
        anthropic=anthropic(402, "Your credit balance is too low.", "billing_error"),
        google=google(403, "Billing is disabled.", "PERMISSION_DENIED", "BILLING_DISABLED"),
        aws=aws(400, "You exceeded the service quota.", "ServiceQuotaExceededException"),
        cohere=cohere(402, "Please add or update your payment method at"
                      " https://dashboard.cohere.com/billing?tab=payment to continue"),
        # https://github.com/continuedev/continue/issues/11444
        ollama=ollama(429, "you (someone) have reached your session usage limit, upgrade for higher limits:"
                      " https://ollama.com/upgrade"),
        ibm=ibm(403, "token_quota_reached", "Request of 1 token(s) from quota was rejected"),
    ),
    vendor(
        "too many requests", {429}, "rate_limit_exceeded", wait="20", headers=AFTER,
        openai=openai(429, "Rate limit reached for requests", "requests", "rate_limit_exceeded"),
        anthropic=anthropic(429, "Number of requests has exceeded your limit", "rate_limit_error"),
        google=google(429, "Resource has been exhausted (e.g. check quota).", "RESOURCE_EXHAUSTED"),
        aws=aws(429, "Too many requests, please wait before trying again.", "ThrottlingException"),
        cohere=cohere(429, "You are past the per minute request limit, please wait and try again later."),
        # https://github.com/IBM/unitxt/issues/1215
        ibm=ibm(429, "rate_limit_reached_requests",
                "Rate limit of 8 requests per 1s was reached for instance id i (user u, plan v2-standard)"),
    ),
    vendor(
        "too many tokens, milliseconds to wait", {429}, "rate_limit_exceeded", wait="2",
        headers=(("retry-after-ms", "1500"),),
        openai=openai(429, "Rate limit reached for tokens", "tokens", "rate_limit_exceeded"),
        anthropic=anthropic(429, "Number of input tokens has exceeded your limit", "rate_limit_error"),
        google=google(429, "Quota exceeded for tokens", "RESOURCE_EXHAUSTED"),
        aws=aws(429, "Too many tokens, please wait before trying again.", "ThrottlingException"),
        cohere=cohere(429, "trial token rate limit exceeded, limit is 100000 tokens per minute"),
    ),
    vendor(
        "too many requests, no word of when", {429}, "rate_limit_exceeded",
        openai=openai(429, "Slow down", "requests", "rate_limit_exceeded"),
        anthropic=anthropic(429, "Slow down", "rate_limit_error"),
        google=google(429, "Slow down", "RESOURCE_EXHAUSTED", "RATE_LIMIT_EXCEEDED"),
        aws=aws(429, "Slow down", "TooManyRequestsException"),
        cohere=cohere(429, "Please wait and try again later"),
        ollama=ollama(429, "Slow down"),
        ibm=ibm(429, "consumption_limit_reached", "The usage limit for the current plan has been reached: the total"
                " number of free concurrent requests for model ibm/granite-4-h-small has reached its limit 10. Please"
                " try again later"),
    ),
    vendor(
        "too many bytes", {413}, "request_too_large",
        openai=openai(413, "Request entity too large", "invalid_request_error"),
        anthropic=anthropic(413, "Request exceeds the maximum allowed number of bytes.", "request_too_large"),
        google=Said(413, b""),
        aws=Said(413, b'{"message":"Request Entity Too Large"}'),
    ),
    vendor(
        "its own time-out", {504}, "upstream_timeout",
        openai=openai(504, "The model took too long", "timeout"),
        anthropic=anthropic(504, "The request timed out", "timeout_error"),
        google=google(504, "Deadline expired before operation could complete.", "DEADLINE_EXCEEDED"),
        aws=aws(408, "The model timed out", "ModelTimeoutException"),
        cohere=cohere(504),
    ),
    vendor(
        "an error of its own", {500, 502}, "upstream_error", "went wrong",
        openai=openai(500, "Something went wrong", "server_error"),
        anthropic=anthropic(500, "Something went wrong", "api_error"),
        google=google(500, "Something went wrong", "INTERNAL"),
        aws=aws(500, "Something went wrong", "InternalServerException"),
        cohere=cohere(500, "internal server error"),
        ollama=ollama(500, "model failed to load, this may be due to resource limitations or an internal error, check"
                      " ollama server logs for details"),
        # https://github.com/i-am-bee/beeai-framework/issues/993
        ibm=ibm(500, "downstream_request_failed", "Downstream vllm request failed: "),
    ),
    vendor(
        "overloaded", {503}, "overloaded",
        openai=openai(503, "The engine is currently overloaded", "overloaded_error"),
        anthropic=anthropic(529, "Overloaded", "overloaded_error"),
        google=google(503, "The model is overloaded. Please try again later.", "UNAVAILABLE"),
        aws=aws(503, "Too many connections", "ServiceUnavailableException"),
        cohere=cohere(503),
        ollama=ollama(503, "server busy, please try again.  maximum pending requests exceeded"),
    ),
    vendor(
        "overloaded, and until when", {503}, "overloaded", wait="20", headers=AFTER,
        openai=openai(503, "Busy", "service_unavailable"),
        anthropic=anthropic(529, "Busy", "overloaded_error"),
        google=google(503, "Busy", "UNAVAILABLE"),
        aws=aws(503, "Busy", "ServiceUnavailableException"),
        # https://github.com/ollama/ollama/issues/15934
        ollama=ollama(503, "Server overloaded, please retry shortly (ref: aaa65c70-cfa0-446b-86f1-4ab0e2deb9e4)"),
    ),
    vendor(
        "too long for the model, said otherwise", {400}, "context_length_exceeded",
        openai=openai(400, "Your input exceeds the context window of this model. Please adjust your input and try"
                      " again.",
                      "invalid_request_error", "context_length_exceeded", "input"),
        cohere=cohere(400, "too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 4292."
                      " Try using a shorter prompt, or enabling prompt truncating."),
        ollama=ollama(400, "the input length exceeds the context length"),
    ),
    vendor(
        "refused by content policy, said otherwise", {400}, "content_policy_violation",
        # https://github.com/BeehiveInnovations/pal-mcp-server/issues/178
        openai=openai(400, "Invalid prompt: your prompt was flagged as potentially violating our usage policy.",
                      "invalid_request_error", "invalid_prompt"),
    ),
    vendor(
        "no money left, said otherwise", {429}, "insufficient_quota",
        # https://github.com/BerriAI/litellm/issues/2743
        openai=openai(429, "Your account is not active, please check your billing details on our website.",
                      "billing_not_active", "billing_not_active"),
        cohere=cohere(402, "Maximum billing reached for this API key as set in your dashboard"),
        # https://github.com/continuedev/continue/issues/9233
        ollama=ollama(429, "you've reached your hourly usage limit, please wait or upgrade to continue"),
    ),
    vendor(
        "the month's allowance is used up", {429}, "insufficient_quota",
        openai=openai(429, "You exceeded your current quota.", "insufficient_quota",
                      "project_spend_limit_exceeded"),
        cohere=cohere(429, "You are using a Trial key, which is limited to 1000 API calls / month. You can continue to"
                      " use the Trial key for free or upgrade to a Production key"),
        # https://github.com/HomericIntelligence/Scylla/issues/346
        ollama=ollama(429, "you've reached your weekly usage limit, please wait or upgrade to continue"),
    ),
    vendor(
        "too many requests of a trial", {429}, "rate_limit_exceeded",
        cohere=cohere(429, "You are using a Trial key, which is limited to 40 API calls / minute. You can continue to"
                      " use the Trial key for free or upgrade to a Production key"),
    ),
    vendor(
        "more output asked for than the model has", {400}, "bad_request",
        cohere=cohere(400, "too many tokens: max tokens must be less than or equal to 4096, the maximum output for"
                      " this model - received 8192.", error_type="TOO_MANY_TOKENS"),
        # https://github.com/cuga-project/cuga-agent/issues/439
        ibm=ibm(400, "invalid_input_argument", "Invalid input argument for Model 'openai/gpt-oss-120b': max_tokens"
                " must be at least 1, got -5178."),
    ),
    vendor(
        "a body that is none", {400}, "bad_request",
        cohere=cohere(400, r"invalid json syntax: invalid character '\a' in string literal"),
        ollama=ollama(400, "missing request body"),
        ibm=ibm(400, "json_validation_error",
                "Json document validation error: project_id should be a version 4 uuid "),
    ),
    vendor(
        "a field is missing", {400}, "bad_request",
        cohere=cohere(400, "a model parameter is required for this endpoint."),
        ollama=ollama(400, "model is required"),
        ibm=ibm(400, "invalid_request_entity", "Missing either space_id or project_id or wml_instance_crn"),
    ),
    vendor(
        "a field it does not know", {422}, "bad_request",
        # https://github.com/OpenRouterTeam/openrouter-examples/issues/71
        cohere=cohere(422, "unknown field: parameter 'strict' is not a valid field. For proper usage, please refer to"
                      " https://docs.cohere.com/reference/chat"),
    ),
    vendor(
        "no credential at all", {401}, "invalid_api_key", "gateway's operator",
        cohere=cohere(401, "no api key supplied"),
    ),
    vendor(
        "a model that was taken away", {404}, "model_not_found",
        # https://github.com/pydantic/pydantic-ai/pull/3201
        cohere=cohere(404, "model 'command' was removed on September 15, 2025. See"
                      " https://docs.cohere.com/docs/models#command for a list of models you can use instead."),
    ),
    vendor(
        "a model that does not chat", {404}, "model_not_found",
        ollama=ollama(400, '"nomic-embed-text" does not support chat'),
        ibm=ibm(400, "model_no_support_for_function",
                "Model 'ibm/granite-7b-lab' does not support function 'function_text_chat'"),
    ),
    vendor(
        "a model that runs elsewhere only", {404}, "model_not_found",
        ollama=ollama(400, "this server cannot run this remote model"),
    ),
    vendor(
        "a model without tools", {400}, "bad_request",
        # https://github.com/ollama/ollama/issues/14795
        ollama=ollama(400, "registry.ollama.ai/library/Qwen3.5:0.8b does not support tools"),
    ),
    vendor(
        "a model without thoughts", {400}, "bad_request",
        # https://github.com/Neurons-AI/crawbot/issues/24
        ollama=ollama(400, '"qwen3-coder:30b" does not support thinking'),
    ),
    vendor(
        "a model without eyes", {400}, "bad_request",
        # https://github.com/valentinfrlch/ha-llmvision/issues/691
        ollama=ollama(500, "Failed to create new sequence: failed to process inputs: this model is missing data"
                      " required for image input"),
    ),
    vendor(
        "a schema that is none", {400}, "bad_request",
        ollama=ollama(500, "invalid JSON schema in format"),
    ),
    vendor(
        "a format that is none", {400}, "bad_request",
        ollama=ollama(500, 'invalid format: "\\"X\\""; expected "json" or a valid JSON Schema object'),
    ),
    vendor(
        "a feature that is not there", {400}, "bad_request",
        cohere=cohere(501),
    ),
    vendor(
        "what runs elsewhere is switched off", {403}, "permission_denied",
        ollama=ollama(403, "ollama cloud is disabled: remote model is unavailable"),
    ),
    vendor(
        "somebody between left", {502}, "upstream_error",
        cohere=cohere(499, "request cancelled"),
        ollama=ollama(499, "request canceled"),
    ),
    vendor(
        "not enough memory", {500}, "upstream_error",
        # https://github.com/continuedev/continue/issues/11715
        ollama=ollama(500, "model requires more system memory (5.0 GiB) than is available (3.9 GiB)"),
    ),
    vendor(
        "the model's process died", {500}, "upstream_error",
        ollama=ollama(500, "llama runner process has terminated: exit status 2"),
    ),
    vendor(
        "what runs elsewhere cannot be reached", {502}, "upstream_error",
        ollama=ollama(502, 'Post "https://ollama.com:443/api/chat?ts=1": dial tcp: lookup ollama.com: no such host'),
    ),
    front("400 without a word", 400, {400}, "bad_request"),
    front("400 in plain text", 400, {400}, "bad_request", b"Bad Request: header too long", words="header too long"),
    front("401 without a word", 401, {401}, "invalid_api_key"),
    front("402 without a word", 402, {402, 429}, "insufficient_quota"),
    front("403 of a firewall", 403, {403}, "permission_denied", is_html=True),
    front("404 of a wrong path", 404, {404}, "model_not_found", is_html=True),
    front("405", 405, {400, 405}, "bad_request"),
    front("408 without a word", 408, {408, 504}, "upstream_timeout"),
    front("409 without a word", 409, {409, 502}, "upstream_error"),
    front("413 of a reverse proxy", 413, {413}, "request_too_large", is_html=True),
    front("415", 415, {400, 415}, "bad_request"),
    front("422 with a list of details", 422, {422}, "bad_request",
          b'{"detail":[{"loc":["body","x"],"msg":"field required"}]}', words="field required"),
    front("425", 425, {425, 502}, "upstream_error"),
    front("429 without a word", 429, {429}, "rate_limit_exceeded"),
    front("429 of a reverse proxy, and until when", 429, {429}, "rate_limit_exceeded", is_html=True, wait="20",
          headers=AFTER),
    front("429 with a date long past", 429, {429}, "rate_limit_exceeded", wait="1",
          headers=(("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"),)),
    front("499 of a reverse proxy", 499, {499, 502}, "upstream_error", is_html=True),
    front("500 without a word", 500, {500, 502}, "upstream_error"),
    front("500 with null", 500, {500, 502}, "upstream_error", b"null"),
    front("500 with an empty list", 500, {500, 502}, "upstream_error", b"[]"),
    front("500 with half an object", 500, {500, 502}, "upstream_error", b'{"error":{"mess'),
    front("502 of a reverse proxy", 502, {502}, "upstream_error", is_html=True),
    front("503 of a reverse proxy, and until when", 503, {503}, "overloaded", is_html=True, wait="20", headers=AFTER),
    front("504 of a reverse proxy", 504, {504}, "upstream_timeout", is_html=True),
    front("520 of a CDN", 520, {520, 502}, "upstream_error", is_html=True),
    front("524 of a CDN", 524, {524, 504}, "upstream_timeout", is_html=True),
    front("529 without a word", 529, {503}, "overloaded"),
)  # fmt: skip
