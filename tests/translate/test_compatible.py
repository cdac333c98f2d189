"""Every row of compatible vendors: whole, told apart, and translating as its shape's representative does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from sidecar.config.check import is_local
from sidecar.errors import BadRequestError, ProviderError, UpstreamBrokenError
from sidecar.translate import PROVIDERS, Head
from sidecar.translate.compatible import COMPATIBLE, shape_of
from sidecar.translate.provider import OPENAI_CHAT_FIELDS
from sidecar.translate.vendors import OTHER_MODELS, VENDORS, Vendor
from sidecar.types import Usage
from tests.translate.dialects import DISTINCT, OPENAI
from tests.translate.support import OK, fold, make_call, run, sent, unfold

PAGE = (Path(__file__).parents[2] / "docs" / "translation.md").read_text("utf-8")
ROWS = pytest.mark.parametrize("vendor", VENDORS, ids=lambda vendor: vendor.name)
CHUNK = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[%s]%s}\n\n'
DONE = b"data: [DONE]\n\n"


@ROWS
def test_a_row_is_whole(vendor: Vendor) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", vendor.name)
    page = urlsplit(vendor.docs_url)
    assert page.scheme == "https"
    assert page.hostname
    assert not vendor.docs_url.endswith("//")
    refused, renamed = set(vendor.refused), set(vendor.renames)
    assert refused - OTHER_MODELS.keys() | renamed <= OPENAI_CHAT_FIELDS
    assert not refused & renamed
    assert all(fix.endswith(".") for fix in vendor.refused.values())
    assert vendor.cap_name in ("max_tokens", "max_completion_tokens")
    assert vendor.cap_name == "max_tokens" or not vendor.takes_both_caps
    if vendor.base_url is None:
        assert vendor.name == "openai_compatible" or "https://" in vendor.note or "WORKSPACE" in vendor.note
        return
    url = urlsplit(vendor.base_url)
    assert not vendor.base_url.endswith("/")
    assert not url.query
    assert not url.path.endswith("/chat/completions")
    if is_local(url.hostname or ""):
        assert vendor.base_url.startswith("http://127.0.0.1:")
        assert vendor.api_key_env is None
    else:
        assert url.scheme == "https"
        assert url.port is None
        assert vendor.api_key_env is not None


@ROWS
def test_a_rows_key_has_a_name_of_its_own(vendor: Vendor) -> None:
    if vendor.api_key_env is not None:
        assert re.fullmatch(r"[A-Z][A-Z0-9_]*_(API_KEY|ACCESS_KEY|TOKEN|PAT)", vendor.api_key_env)
        users = [name for name, each in PROVIDERS.items() if each.api_key_env == vendor.api_key_env]
        assert users == [vendor.name], "one variable would open two vendors"


def test_no_vendor_is_there_twice() -> None:
    assert len(VENDORS) >= 61  # sixty, and openai_compatible
    assert len({vendor.name for vendor in VENDORS}) == len(VENDORS)
    far = [vendor.base_url for vendor in VENDORS if vendor.base_url is not None and vendor.api_key_env is not None]
    assert len(set(far)) == len(far)
    hosts = [urlsplit(url).hostname for url in far]
    assert len(set(hosts)) == len(hosts)
    assert set(COMPATIBLE) <= set(PROVIDERS)


def test_each_shape_of_row_is_in_the_conformance_suite() -> None:
    shapes = {shape_of(row.vendor) for name, row in COMPATIBLE.items() if name in DISTINCT}
    assert shapes == {shape_of(vendor) for vendor in VENDORS}
    assert set(PROVIDERS) - set(COMPATIBLE) <= set(DISTINCT)
    assert {"groq", "deepseek", "perplexity"} <= set(DISTINCT)
    for vendor in VENDORS:
        twin = next(
            row for name, row in COMPATIBLE.items() if name in DISTINCT and shape_of(row.vendor) == shape_of(vendor)
        )
        mine = COMPATIBLE[vendor.name]
        assert type(mine) is type(twin)
        assert (mine.path, mine.params, mine.unsupported.keys(), mine.passes_unknown) == (
            twin.path,
            twin.params,
            twin.unsupported.keys(),
            twin.passes_unknown,
        )


@ROWS
def test_a_row_translates_both_ways(vendor: Vendor) -> None:
    provider = COMPATIBLE[vendor.name]
    payload = {"tools": [], "temperature": 0.5, "x_own": {"a": 1}, "max_completion_tokens": 9}
    body = sent(provider, payload, model="sim-echo")
    cap = vendor.cap_name if not vendor.takes_both_caps else "max_completion_tokens"
    assert body == {
        "model": "sim-echo",
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [],
        "temperature": 0.5,
        "x_own": {"a": 1},
        cap: 9,
    }
    folded = []
    for is_stream in (False, True):
        asked = {"stream": True, "stream_options": {"include_usage": True}} if is_stream else {}
        call = make_call({**asked}, model="sim-echo")
        request = provider.request(call)
        assert (request.path, request.query, request.dropped) == ("/chat/completions", "", ())
        assert request.headers == [(b"content-type", b"application/json")]
        answer = b"".join(OPENAI.pieces(request))
        if is_stream:
            translator = provider.stream(call, OPENAI.stream_head)
            out = run(translator, answer)
            assert out == answer
            assert translator.usage.is_known == vendor.forces_usage  # the simulator tells it only when asked
            folded.append({**fold(out), "usage": None})
        else:
            folded.append({**unfold(provider.response(call, OK, answer).body), "usage": None})
    assert folded[0] == folded[1]
    assert folded[0]["content"].startswith("echo:")


@ROWS
def test_a_row_refuses_what_it_says_and_renames_what_it_says(vendor: Vendor) -> None:
    for field in vendor.refused:
        with pytest.raises(BadRequestError) as caught:
            sent(vendor.name, {field: {"odd": True}})
        assert caught.value.param == field
        assert vendor.name in caught.value.message
        assert field not in sent(vendor.name, {field: {"odd": True}}, drop_params=True)
    for field, renamed in vendor.renames.items():
        body = sent(vendor.name, {field: 7})
        assert body[renamed] == 7
        assert field not in body
    body = sent(vendor.name, {"stream": True})
    assert body.get("stream_options") == ({"include_usage": True} if vendor.forces_usage else None)


@ROWS
def test_a_rows_errors_say_who_refused(vendor: Vendor) -> None:
    provider = COMPATIBLE[vendor.name]
    said = b'{"error": {"message": "slow down", "type": "rate_limit_error", "code": "rate_limit_exceeded"}}'
    error = provider.error(make_call(), Head(429, [(b"retry-after", b"3")]), said)
    assert (error.kind, error.status, error.retry_after_s) == ("rate_limit", 429, 3.0)
    assert error.message == f"Provider {vendor.name} answered 429: slow down"
    with pytest.raises((ProviderError, UpstreamBrokenError), match=vendor.name):
        provider.response(make_call(), OK, b"<html>")
    translator = provider.stream(make_call({"stream": True}), OK)
    translator.feed(CHUNK % (b'{"index":0,"delta":{"content":"x"}}', b""))
    with pytest.raises(UpstreamBrokenError, match=vendor.name):
        translator.end()


@ROWS
def test_the_page_names_a_row_with_its_address_and_key(vendor: Vendor) -> None:
    line = next(line for line in PAGE.splitlines() if line.startswith(f"| [{vendor.name}]({vendor.docs_url}) |"))
    for part in (
        vendor.base_url,
        vendor.api_key_env,
        vendor.note or None,
        *sorted(vendor.refused.keys() - OTHER_MODELS.keys()),
        *vendor.renames.values(),
    ):
        assert part is None or part in line


@pytest.mark.parametrize(
    ("name", "usage", "expected"),
    [
        (
            "deepseek",
            {"prompt_tokens": 10, "completion_tokens": 5, "prompt_cache_hit_tokens": 6, "prompt_cache_miss_tokens": 4},
            Usage(input=4, cached_input=6, output=5),
        ),
        (
            "moonshot",
            {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, "cached_tokens": 6},
            Usage(input=4, cached_input=6, output=5),
        ),
        (
            "xai",
            {
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "total_tokens": 35,
                "completion_tokens_details": {"reasoning_tokens": 20},
            },
            Usage(input=10, output=5, reasoning=20),
        ),
        (
            "zai",
            {
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "total_tokens": 15,
                "prompt_tokens_details": {"cached_tokens": 6},
            },
            Usage(input=4, cached_input=6, output=5),
        ),
    ],
)
def test_usage_in_the_vendors_own_words(name: str, usage: dict[str, object], expected: Usage) -> None:
    body = json.dumps({"choices": [{"message": {"content": "x"}}], "usage": usage}).encode()
    assert COMPATIBLE[name].response(make_call(), OK, body).usage == expected


def test_usage_so_far_in_every_chunk_ends_as_the_last() -> None:
    """Perplexity's: https://docs.perplexity.ai/docs/sonar/openai-compatibility"""
    words = [
        CHUNK % (b'{"index":0,"delta":{"content":"w"}}', b',"usage":{"prompt_tokens":3,"completion_tokens":%d}' % n)
        for n in range(1, 5)
    ]
    translator = COMPATIBLE["perplexity"].stream(make_call({"stream": True}), OK)
    assert run(translator, *words, DONE) == b"".join(words) + DONE
    assert translator.usage == Usage(input=3, output=4)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thinking_under_either_name_passes_and_counts_as_content(field: str) -> None:
    word = CHUNK % (b'{"index":0,"delta":{"%s":"hm"}}' % field.encode(), b"")
    translator = COMPATIBLE["deepseek"].stream(make_call({"stream": True}), OK)
    assert translator.feed(word) == word
    assert translator.content_started


def test_clouds_want_their_own_credentials() -> None:
    assert (COMPATIBLE["watsonx_gateway"].auth, COMPATIBLE["watsonx_gateway"].default_base_url) == ("ibm", None)
    assert {vendor.name for vendor in VENDORS if vendor.auth != "bearer"} == {"watsonx_gateway"}


@pytest.mark.parametrize(
    ("name", "status", "message", "kind"),
    [
        (
            "vllm",
            400,
            "This model's maximum context length is 8192 tokens. However, you requested 9000",
            "context_window",
        ),
        ("nvidia_nim", 400, "This model's maximum context length is 8192 tokens. However, you", "context_window"),
        ("vllm", 400, "The decoder prompt (length 9000) is longer than the maximum model length", "context_window"),
        ("sglang", 400, "Requested token count exceeds the model's maximum context length of 8192", "context_window"),
        ("llama_cpp", 400, "the request exceeds the available context size, try increasing it", "context_window"),
        ("vllm", 400, "bad: This model's maximum context length is", "bad_request"),
        ("vllm", 500, "This model's maximum context length is 8192 tokens", "server"),
        ("vllm", 404, "The model `x` does not exist.", "not_found"),
    ],
)
def test_a_prompt_too_long_for_a_server_of_open_models_is_told_by_the_beginning_of_its_message(
    name: str, status: int, message: str, kind: str
) -> None:
    """7b-99, 7b-100: it has no code for it; its own form and OpenAI's."""
    plain = {"object": "error", "message": message, "type": "BadRequestError", "param": None, "code": status}
    for body in (plain, {"error": plain}):
        error = COMPATIBLE[name].error(make_call(), Head(status), json.dumps(body).encode())
        assert error.kind == kind
        assert kind != "context_window" or (error.status, error.code) == (400, "context_length_exceeded")


def test_a_nim_takes_the_cap_under_its_old_name() -> None:
    """https://docs.api.nvidia.com/nim/reference/llm-apis"""
    body = sent("nvidia_nim", {"max_completion_tokens": 5, "stream": True})
    assert (body["max_tokens"], "max_completion_tokens" in body) == (5, False)
    assert body["stream_options"] == {"include_usage": True}


def test_no_client_has_a_router_ask_another_model() -> None:
    """It would be none of those the key may call, at a price nobody held; an operator may allow it."""
    for name, value in (("models", ["openai/o1-pro"]), ("providerOptions", {"gateway": {"models": ["openai/o1-pro"]}})):
        with pytest.raises(BadRequestError, match=f"does not support '{name}'"):
            sent("openrouter", {name: value})
        assert sent("openrouter", {name: value}, allowed_params=frozenset((name,)))[name] == value
        assert sent("openrouter", {}, params={name: value})[name] == value
        assert sent("together", {name: value})[name] == value


def test_names_of_messages_are_left_out_where_the_vendor_refuses_them() -> None:
    """https://console.groq.com/docs/openai#text-completions · 7b-103"""
    tools = [{"type": "function", "function": {"name": "weather"}}]
    turns = [{"role": "user", "content": "hi", "name": "bob"}, {"role": "user", "content": '"name"'}]
    call = make_call({"messages": turns, "tools": tools}, model="m")
    sent = COMPATIBLE["groq"].request(call)
    body = json.loads(sent.body)
    assert body["messages"] == [{"role": "user", "content": "hi"}, turns[1]]
    assert body["tools"] == tools
    assert sent.dropped == ("messages[0].name",)
    assert json.loads(COMPATIBLE["together"].request(call).body)["messages"] == turns
    plain = make_call({"model": "m", "tools": tools}, model="m")
    assert COMPATIBLE["groq"].request(plain).body == plain.raw
