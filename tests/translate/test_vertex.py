"""Vertex AI: Gemini's bodies under other paths, Claude by rawPredict, open models by the OpenAI-compatible endpoint."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.errors import BadRequestError
from sidecar.translate import PROVIDERS, Head, UpstreamRequest
from sidecar.translate.provider import Media
from sidecar.translate.simulate import simulate
from tests.translate.dialects.gemini import VertexContents, assert_google_takes
from tests.translate.support import OK, USER, WEATHER, assert_anthropic_takes, call_to, fold, run, unfold

VERTEX = PROVIDERS["vertex"]
FOLDER = "/v1/projects/my-project/locations/europe-west4"
STREAM = VertexContents().stream_head


def request(payload: dict[str, Any] | None = None, model: str = "gemini-2.5-flash", **options: Any) -> UpstreamRequest:
    return VERTEX.request(call_to(VERTEX, payload, model=model, **options))


@pytest.mark.parametrize(
    ("region", "url"),
    [
        ("europe-west4", "https://europe-west4-aiplatform.googleapis.com"),
        ("global", "https://aiplatform.googleapis.com"),
        ("eu", "https://aiplatform.eu.rep.googleapis.com"),
    ],
)
def test_the_host_follows_the_region(region: str, url: str) -> None:
    assert VERTEX.base_url({"project": "p", "region": region}) == url


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gemini-2.5-flash", "/publishers/google/models/gemini-2.5-flash:generateContent"),
        ("google/gemini-2.5-flash", "/publishers/google/models/gemini-2.5-flash:generateContent"),
        ("publishers/google/models/gemini-3-pro", "/publishers/google/models/gemini-3-pro:generateContent"),
        ("endpoints/123", "/endpoints/123:generateContent"),
        ("claude-sonnet-4-5@20250929", "/publishers/anthropic/models/claude-sonnet-4-5@20250929:rawPredict"),
        ("anthropic/claude-opus-4-6", "/publishers/anthropic/models/claude-opus-4-6:rawPredict"),
        ("meta/llama-4-maverick-17b-128e-instruct-maas", "/endpoints/openapi/chat/completions"),
        ("deepseek-ai/deepseek-v3.1-maas", "/endpoints/openapi/chat/completions"),
    ],
)
def test_the_path_follows_the_model(model: str, path: str) -> None:
    assert request(model=model).path == FOLDER + path


def test_a_tuned_model_by_its_full_name_and_options_cannot_leave_the_path() -> None:
    name = "projects/1/locations/us-central1/endpoints/9"
    assert request(model=name).path == f"/v1/{name}:generateContent"
    found = request(options={"project": "a/../b", "region": "r?x=1"})
    assert found.path.startswith("/v1/projects/a%2F..%2Fb/locations/r%3Fx%3D1/publishers/")


def test_streams_go_to_the_streaming_methods() -> None:
    found = request({"stream": True})
    assert (found.path.rpartition(":")[2], found.query) == ("streamGenerateContent", "alt=sse")
    assert request({"stream": True}, model="claude-opus-4-6").path.endswith(":streamRawPredict")
    assert json.loads(request({"stream": True}, model="meta/llama-x").body)["stream"] is True


def test_labels_are_vertex_s_alone() -> None:
    """7b-87: metadata and user become labels; what the alphabet of labels has no letters for becomes a hash."""
    body = json.loads(
        request(
            {"metadata": {"team": "blue", "Cost Centre": "A 1"}, "user": "ann@example.com", "labels": {"x": "y"}}
        ).body
    )
    assert_google_takes(body, is_vertex=True)
    labels = body["labels"]
    assert (labels["team"], labels["x"]) == ("blue", "y")
    assert "ann" not in labels["user"]
    assert len(labels) == 4
    assert all(set(key + value) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-") for key, value in labels.items())
    gemini = PROVIDERS["gemini"]
    for field, value in (("metadata", {"a": "b"}), ("user", "u")):
        with pytest.raises(BadRequestError) as caught:
            gemini.request(call_to(gemini, {field: value}))
        assert caught.value.param == field


@pytest.mark.parametrize("payload", [{"metadata": {"a": 1}}, {"metadata": []}, {"user": 3}, {"labels": "x"}])
def test_labels_that_are_none_are_refused(payload: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError) as caught:
        request(payload)
    assert caught.value.param in payload


def test_the_tier_is_a_header() -> None:
    assert request({"service_tier": "auto"}).headers == request().headers
    assert request({"service_tier": "priority"}).headers[1:] == [(b"x-vertex-ai-llm-shared-request-type", b"priority")]


def test_a_file_by_uri_needs_a_type() -> None:
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "gs://b/a"}}]}]
    with pytest.raises(BadRequestError, match="format"):
        request({"messages": messages})


CLAUDE = "claude-sonnet-4-5@20250929"


def test_claude_gets_its_own_body_without_the_model() -> None:
    found = request(
        {"tools": [WEATHER], "max_tokens": 9, "stream": True}, model=CLAUDE, params={"anthropic_beta": "b-1"}
    )
    body = json.loads(found.body)
    assert body.pop("anthropic_version") == "vertex-2023-10-16"
    assert "model" not in body
    assert_anthropic_takes({"model": "m", **body})
    assert found.headers == [(b"content-type", b"application/json"), (b"anthropic-beta", b"b-1")]


def test_claude_on_vertex_gets_bytes_for_urls() -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": "https://example.com/a"}},
        {"type": "file", "file": {"file_url": "https://example.com/b"}},
        {"type": "text", "text": "x"},
    ]
    payload = {"messages": [{"role": "user", "content": parts}]}
    needed = VERTEX.needs(call_to(VERTEX, payload, model=CLAUDE))
    assert needed == ("https://example.com/a", "https://example.com/b")
    media = {needed[0]: Media("image/webp", b"RIFF0000WEBP"), needed[1]: Media("application/pdf", b"%PDF-1.4")}
    content = json.loads(request(payload, model=CLAUDE, media=media).body)["messages"][0]["content"]
    assert [block.get("source", {}).get("media_type") for block in content] == ["image/webp", "application/pdf", None]
    assert parts[0]["image_url"] == {"url": "https://example.com/a"}


@pytest.mark.parametrize("case", ["sim-echo", "sim-tools", "sim-think"])
@pytest.mark.parametrize("maker", ["anthropic", "openai"])
def test_partner_models_answer_in_their_own_dialect(maker: str, case: str) -> None:
    model = f"{maker}/{case}"
    payload: dict[str, Any] = {"tools": [WEATHER], "stream_options": {"include_usage": True}}

    def answer(*, stream: bool) -> tuple[Any, bytes]:
        call = call_to(VERTEX, {**payload, "stream": stream}, model=model)
        body = {**json.loads(VERTEX.request(call).body), "model": case}
        found = simulate("anthropic" if maker == "anthropic" else "openai", json.dumps(body).encode())
        assert found.status == 200
        return call, b"".join(piece for _, piece in found.pieces)

    call, whole = answer(stream=False)
    reply = VERTEX.response(call, OK, whole)
    call, stream = answer(stream=True)
    translator = VERTEX.stream(call, STREAM)
    assert fold(run(translator, stream)) == unfold(reply.body)
    assert translator.usage == reply.usage
    assert reply.usage.is_known


@pytest.mark.parametrize("model", ["gemini-2.5-pro", CLAUDE, "meta/llama-x"])
def test_googles_front_answers_for_the_partners_in_its_own_form(model: str) -> None:
    body = [{"error": {"code": 429, "message": "Quota exceeded", "status": "RESOURCE_EXHAUSTED", "details": []}}]
    error = VERTEX.error(call_to(VERTEX, model=model), Head(429), json.dumps(body).encode())
    assert (error.kind, error.status, "vertex" in error.message) == ("rate_limit", 429, True)
    theirs = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    error = VERTEX.error(call_to(VERTEX, model=CLAUDE), Head(529), json.dumps(theirs).encode())
    assert error.kind == "overloaded"


def test_open_models_get_openai_s_body_with_the_maker_in_the_model() -> None:
    found = request({"seed": 7, "frobnicate": 1}, model="publishers/meta/models/llama-x")
    assert json.loads(found.body) == {"model": "meta/llama-x", "messages": USER, "seed": 7, "frobnicate": 1}
