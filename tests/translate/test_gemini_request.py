"""Requests to Gemini, each held to google-genai's own types: what we send is what their SDK would send."""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import BadRequestError
from sidecar.translate import PROVIDERS
from sidecar.translate.provider import Media
from sidecar.translate.providers.gemini_content import NO_SIGNATURE
from tests.translate.dialects.gemini import assert_google_takes
from tests.translate.support import USER, WEATHER, call_to
from tests.translate.support import sent as sent_to

GEMINI = PROVIDERS["gemini"]
THREE, TWO_FIVE, OLD = "gemini-3-flash-preview", "gemini-2.5-flash", "gemini-1.5-pro"
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"0" * 20).decode()
DETAIL = "messages[0].content[0].image_url.detail"
PDF = base64.b64encode(b"%PDF-1.4 hello there").decode()


def sent(payload: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    body = sent_to("gemini", payload, **options)
    assert_google_takes(body)
    return body


def refused(payload: dict[str, Any], **options: Any) -> BadRequestError:
    with pytest.raises(BadRequestError) as caught:
        sent_to("gemini", payload, **options)
    return caught.value


def contents(*messages: dict[str, Any], model: str = THREE, **options: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = sent({"messages": list(messages)}, model=model, **options)["contents"]
    return found


def call(tool_id: str, name: str = "weather", arguments: str = '{"city":"Rome"}') -> dict[str, Any]:
    return {"id": tool_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def test_model_and_method_stand_in_the_path() -> None:
    request = GEMINI.request(call_to(GEMINI, model="gemini-2.5-pro"))
    assert (request.path, request.query) == ("/v1beta/models/gemini-2.5-pro:generateContent", "")
    request = GEMINI.request(call_to(GEMINI, {"stream": True}, model="models/gemini-2.5-pro"))
    assert (request.path, request.query) == ("/v1beta/models/gemini-2.5-pro:streamGenerateContent", "alt=sse")
    assert GEMINI.request(call_to(GEMINI, model="tunedModels/mine")).path == "/v1beta/tunedModels/mine:generateContent"
    assert "?" not in GEMINI.request(call_to(GEMINI, model="a?key=x#y")).path


def test_leading_system_messages_are_the_instruction_and_later_ones_keep_their_place() -> None:
    body = sent(
        {
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "developer", "content": [{"type": "text", "text": "be kind"}]},
                *USER,
                {"role": "assistant", "content": "hello"},
                {"role": "system", "content": "now long"},
                {"role": "user", "content": "go on"},
            ]
        }
    )
    assert body["systemInstruction"] == {"parts": [{"text": "be brief"}, {"text": "be kind"}]}
    assert body["contents"] == [
        {"role": "user", "parts": [{"text": "hi"}]},
        {"role": "model", "parts": [{"text": "hello"}]},
        {"role": "user", "parts": [{"text": "<system>\nnow long\n</system>"}, {"text": "go on"}]},
    ]


def test_a_lone_system_message_is_what_the_user_says() -> None:
    assert contents({"role": "system", "content": "write"}) == [{"role": "user", "parts": [{"text": "write"}]}]
    assert refused({"messages": [{"role": "user", "content": ""}]}).param == "messages"


def test_media_by_data_url_bytes_and_uri() -> None:
    (turn,) = contents(
        user(
            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{PNG}"}},
            {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PDF}", "filename": "a.pdf"}},
            {"type": "file", "file": {"file_data": PDF}},
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
            {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}},
            {"type": "image_url", "image_url": {"url": "gs://bucket/a.png"}},
            {"type": "file", "file": {"file_id": "files/abc", "format": "application/pdf"}},
            {"type": "video_url", "video_url": {"url": "https://www.youtube.com/watch?v=1"}},
        )
    )
    assert turn["parts"] == [
        {"inlineData": {"mimeType": "image/png", "data": PNG}},
        {"inlineData": {"mimeType": "application/pdf", "data": PDF}},
        {"inlineData": {"mimeType": "application/pdf", "data": PDF}},
        {"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}},
        {"inlineData": {"mimeType": "video/mp4", "data": "AAAA"}},
        {"fileData": {"mimeType": "image/png", "fileUri": "gs://bucket/a.png"}},
        {
            "fileData": {
                "mimeType": "application/pdf",
                "fileUri": "https://generativelanguage.googleapis.com/v1beta/files/abc",
            }
        },
        {"fileData": {"mimeType": "video/mp4", "fileUri": "https://www.youtube.com/watch?v=1"}},
    ]


def test_other_urls_are_fetched_and_sent_as_bytes() -> None:
    message = user(
        {"type": "image_url", "image_url": {"url": "https://example.com/a"}},
        {"type": "file", "file": {"file_url": "https://example.com/b.pdf"}},
        {"type": "video_url", "video_url": {"url": "https://example.com/c.mp4"}},
        {"type": "video_url", "video_url": "https://youtu.be/x"},
        {"type": "image_url", "image_url": {"url": "gs://b/a.png"}},
    )
    needed = GEMINI.needs(call_to(GEMINI, {"messages": [message]}))
    assert needed == ("https://example.com/a", "https://example.com/b.pdf", "https://example.com/c.mp4")
    media = {url: Media("image/webp", b"RIFF") for url in needed}
    (turn,) = contents(message, media=media)
    assert turn["parts"][0] == {"inlineData": {"mimeType": "image/webp", "data": "UklGRg=="}}
    assert refused({"messages": [message]}).param == "messages[0].content[0]"


@pytest.mark.parametrize("kind", ["application/pdf", "video/mp4", "text/plain; charset=utf-8"])
def test_a_link_held_for_as_a_picture_leads_to_one(kind: str) -> None:
    url = "https://example.com/a"
    message = user({"type": "image_url", "image_url": {"url": url}})
    with pytest.raises(BadRequestError, match="no picture"):
        contents(message, media={url: Media(kind, b"x")})
    named = f"{url}.pdf"  # which is held for as a document
    message = user({"type": "image_url", "image_url": {"url": named}})
    assert contents(message, media={named: Media("application/pdf", b"%PDF-")})


@pytest.mark.parametrize(
    ("part", "where"),
    [
        ({"type": "image_url", "image_url": {"url": "ftp://x"}}, "messages[0].content[0]"),
        ({"type": "image_url", "image_url": {"url": "no url"}}, "messages[0].content[0]"),
        ({"type": "hologram"}, "messages[0].content[0].type"),
        ({"type": "text", "text": "x", "frobnicate": 1}, "messages[0].content[0].frobnicate"),
        ({"type": "video_url", "video_url": {}}, "messages[0].content[0].type"),
        ({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "tiny"}}, DETAIL),
    ],
)
def test_a_part_that_cannot_be_said_is_refused_with_its_place(part: dict[str, Any], where: str) -> None:
    assert refused({"messages": [user(part)]}).param == where
    assert refused({"messages": [{"role": "assistant", "content": [part]}]}).param is not None


def test_cache_marks_are_what_gemini_does_anyway() -> None:
    (turn,) = contents(user({"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}))
    assert turn["parts"] == [{"text": "x"}]


def test_picture_detail() -> None:
    """7b-77: per picture from 3 on, for all of them before; auto says nothing."""

    def detail(*levels: str, model: str) -> dict[str, Any]:
        url = f"data:image/png;base64,{PNG}"
        parts = [{"type": "image_url", "image_url": {"url": url, "detail": level}} for level in levels]
        return sent({"messages": [user(*parts)]}, model=model)

    parts = detail("low", "high", "auto", model=THREE)["contents"][0]["parts"]
    assert [part.get("mediaResolution") for part in parts] == [
        {"level": "MEDIA_RESOLUTION_LOW"},
        {"level": "MEDIA_RESOLUTION_HIGH"},
        None,
    ]
    assert detail("low", "high", model=TWO_FIVE)["generationConfig"] == {"mediaResolution": "MEDIA_RESOLUTION_HIGH"}
    assert "generationConfig" not in detail("auto", model=TWO_FIVE)


def test_tool_calls_and_results() -> None:
    found = contents(
        *USER,
        {"role": "assistant", "content": "let me see", "tool_calls": [call("a"), call("b", "time", "")]},
        {"role": "tool", "tool_call_id": "b", "content": "noon"},
        {"role": "tool", "tool_call_id": "a", "content": '{"sky": "blue", "n": 1e400}'},
        {"role": "user", "content": "thanks"},
    )
    assert found[1]["parts"] == [
        {"text": "let me see"},
        {
            "functionCall": {"name": "weather", "args": {"city": "Rome"}},
            "thoughtSignature": NO_SIGNATURE,
        },
        {"functionCall": {"name": "time", "args": {}}},
    ]
    # In the order of the calls, in a turn of their own.
    assert [part["functionResponse"]["name"] for part in found[2]["parts"]] == ["weather", "time"]
    assert found[2]["parts"][1]["functionResponse"]["response"] == {"output": "noon"}
    assert found[3] == {"role": "user", "parts": [{"text": "thanks"}]}


def test_a_json_result_is_sent_byte_for_byte() -> None:
    history = [*USER, {"role": "assistant", "tool_calls": [call("a")]}]
    request = GEMINI.request(
        call_to(
            GEMINI, {"messages": [*history, {"role": "tool", "tool_call_id": "a", "content": '{"n": 1.50, "m":[]}'}]}
        )
    )
    assert b'"response":{"output":{"n": 1.50, "m":[]}}' in request.body
    request = GEMINI.request(
        call_to(GEMINI, {"messages": [*history, {"role": "tool", "tool_call_id": "a", "content": "{not json"}]})
    )
    assert b'"response":{"output":"{not json"}' in request.body


def test_an_error_result_an_empty_one_and_one_with_a_picture() -> None:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    blob = {"inlineData": {"mimeType": "image/png", "data": PNG}}

    def result(message: dict[str, Any], model: str = THREE) -> Any:
        tool = {"role": "tool", "tool_call_id": "a", **message}
        return contents(*USER, {"role": "assistant", "tool_calls": [call("a")]}, tool, model=model)[2]["parts"]

    assert result({"content": "no", "is_error": True})[0]["functionResponse"]["response"] == {"error": "no"}
    assert result({"content": ""})[0]["functionResponse"]["response"] == {"output": ""}
    assert result({"content": [image]})[0]["functionResponse"]["parts"] == [blob]
    assert result({"content": [image]}, TWO_FIVE)[1:] == [blob]


def test_a_result_without_its_call_is_refused_unless_it_names_the_function() -> None:
    message = {"role": "tool", "tool_call_id": "z", "content": "x"}
    assert refused({"messages": [*USER, message]}).param == "messages[1].tool_call_id"
    (_, turn) = contents(*USER, {**message, "name": "weather"})
    assert turn["parts"][0]["functionResponse"]["name"] == "weather"


def test_text_between_a_call_and_its_result_keeps_the_pair() -> None:
    """7b-83."""
    found = contents(
        *USER,
        {"role": "assistant", "tool_calls": [call("a")]},
        {"role": "assistant", "content": "one moment"},
        {"role": "tool", "tool_call_id": "a", "content": "x"},
    )
    assert [turn["role"] for turn in found] == ["user", "model", "user"]
    assert found[1]["parts"][1] == {"text": "one moment"}
    assert found[2]["parts"][0]["functionResponse"]["name"] == "weather"


def test_a_call_that_never_had_a_signature_says_so_from_three_on() -> None:
    history = [*USER, {"role": "assistant", "tool_calls": [call("a"), call("b")]}]
    signatures = [part.get("thoughtSignature") for part in contents(*history)[1]["parts"]]
    assert signatures == [NO_SIGNATURE, None]
    assert all("thoughtSignature" not in part for part in contents(*history, model=TWO_FIVE)[1]["parts"])


def test_what_other_providers_thought_is_left_out() -> None:
    (_, turn) = contents(
        *USER,
        {
            "role": "assistant",
            "reasoning_content": "hm",
            "thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "x"}],
            "content": [{"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "text", "text": "yes"}],
        },
    )
    assert turn["parts"] == [{"text": "yes"}]


def test_malformed_arguments_and_odd_tool_names() -> None:
    """7b-102, 7b-103."""
    name = "1 weird name/ü"
    body = sent(
        {
            "tools": [{"type": "function", "function": {"name": name}}],
            "tool_choice": {"type": "function", "function": {"name": name}},
            "messages": [
                *USER,
                {"role": "assistant", "tool_calls": [call("a", name, "{broken"), call("b", name, "[1]")]},
            ],
        }
    )
    declared = body["tools"][0]["functionDeclarations"][0]["name"]
    assert declared != name
    assert body["toolConfig"]["functionCallingConfig"] == {"mode": "ANY", "allowedFunctionNames": [declared]}
    first, second = (part["functionCall"] for part in body["contents"][1]["parts"])
    assert first == {"name": declared, "args": {"malformed_arguments": "{broken"}}
    assert second["args"] == {"malformed_arguments": "[1]"}
    assert refused({"messages": [{"role": "user", "name": "Ann", "content": "x"}]}).param == "messages[0].name"


def tool(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": schema, **more}}


def test_schemas_by_generation() -> None:
    """7b-66, 7b-67, 7b-86, 7b-101."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "kind": {"type": "string", "enum": ["", "a"]},
            "value": {"type": ["string", "number"]},
            "pair": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}]},
            "list": {"type": "array"},
            "node": {"$ref": "#/$defs/node"},
        },
        "required": ["kind"],
        "additionalProperties": False,
        "$defs": {"node": {"type": "object", "properties": {"name": {"type": "string"}}}},
    }
    before = copy.deepcopy(schema)
    response = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    for model in (THREE, TWO_FIVE, OLD):
        declared = sent({"tools": [tool(schema)]}, model=model)["tools"][0]["functionDeclarations"][0]
        config = sent({"response_format": response}, model=model)["generationConfig"]
        assert config["responseMimeType"] == "application/json"
        if model == OLD:
            assert declared["parameters"]["type"] == "OBJECT"
            assert declared["parameters"]["properties"]["list"]["items"]
            assert config["responseSchema"]["propertyOrdering"] == list(schema["properties"])
            assert "additionalProperties" not in config["responseSchema"]
        else:
            found = declared["parametersJsonSchema"]
            assert found["type"] == "object"
            assert found["additionalProperties"] is False
            assert config["responseJsonSchema"]["$defs"]["node"]
            assert config["responseJsonSchema"]["properties"]["pair"]["prefixItems"]
    assert schema == before


def test_a_function_without_parameters_has_none() -> None:
    for schema in ({}, {"type": "object"}, {"type": "object", "properties": {}}, None):
        (declared,) = sent({"tools": [tool(schema)]})["tools"][0]["functionDeclarations"]
        assert declared == {"name": "f"}
    assert refused({"tools": [tool({"type": "string"})]}).param == "tools[0].function.parameters"
    assert refused({"tools": [tool([])]}).param == "tools[0].function.parameters"
    assert refused({"tools": [{"type": "custom", "custom": {"name": "c"}}]}).param == "tools[0].type"


@pytest.mark.parametrize(
    ("choice", "config"),
    [
        ("auto", {"mode": "AUTO"}),
        ("none", {"mode": "NONE"}),
        ("required", {"mode": "ANY"}),
        ("any", {"mode": "ANY"}),
        ({"type": "auto"}, {"mode": "AUTO"}),
        ({"type": "required"}, {"mode": "ANY"}),
        (
            {"type": "function", "function": {"name": "weather"}},
            {"mode": "ANY", "allowedFunctionNames": ["weather"]},
        ),
        ({"type": "function", "name": "weather"}, {"mode": "ANY", "allowedFunctionNames": ["weather"]}),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [WEATHER]}},
            {"mode": "ANY"},
        ),
    ],
)
def test_tool_choice_in_all_forms(choice: Any, config: dict[str, Any]) -> None:
    body = sent({"tools": [tool({}), WEATHER], "tool_choice": choice})
    assert body["toolConfig"] == {"functionCallingConfig": config}
    names = [declared["name"] for declared in body["tools"][0]["functionDeclarations"]]
    assert names == (["weather"] if "allowed_tools" in str(choice) else ["f", "weather"])


@pytest.mark.parametrize(
    "choice", ["sometimes", {"type": "function"}, {"type": "function", "function": {"name": "nobody"}}, 3]
)
def test_a_tool_choice_that_means_nothing_is_refused(choice: Any) -> None:
    assert refused({"tools": [WEATHER], "tool_choice": choice}).param == "tool_choice"
    assert refused({"tool_choice": "required"}).param == "tool_choice"


def test_strict_functions_are_validated_without_being_forced() -> None:
    payload = {"tools": [tool({"type": "object", "properties": {"a": {"type": "string"}}}, strict=True)]}
    assert sent(payload)["toolConfig"] == {"functionCallingConfig": {"mode": "VALIDATED"}}
    assert "toolConfig" not in sent(payload, model="gemini-2.0-flash")


def test_parallel_calls_cannot_be_switched_off() -> None:
    payload = {"tools": [WEATHER], "parallel_tool_calls": False}
    assert refused(payload).param == "parallel_tool_calls"
    request = GEMINI.request(call_to(GEMINI, payload, drop_params=True))
    assert request.dropped == ("parallel_tool_calls",)
    assert sent({"tools": [WEATHER], "parallel_tool_calls": True}) == sent({"tools": [WEATHER]})


def test_google_search_and_googles_other_tools() -> None:
    """7b-73, 7b-75: each built-in tool is an object of its own; `{}` counts (7b-65)."""
    assert sent({"web_search_options": {}})["tools"] == [{"googleSearch": {}}]
    for own in ({"type": "web_search"}, {"type": "web_search_preview"}, {"googleSearch": {}}, {"google_search": {}}):
        assert sent({"tools": [own], "web_search_options": {}})["tools"] == [{"googleSearch": {}}]
    body = sent({"tools": [{"type": "code_interpreter"}, {"urlContext": {}}]})
    assert body["tools"] == [{"codeExecution": {}}, {"urlContext": {}}]
    assert refused({"web_search_options": {"search_context_size": "high"}}).param == (
        "web_search_options.search_context_size"
    )


def test_search_beside_functions_is_said_from_three_on_and_refused_before() -> None:
    """7b-74: not dropped without a word."""
    payload = {"tools": [WEATHER], "web_search_options": {}}
    body = sent(payload)
    assert [*map(list, body["tools"])] == [["googleSearch"], ["functionDeclarations"]]
    assert body["toolConfig"] == {"includeServerSideToolInvocations": True}
    assert refused(payload, model=TWO_FIVE).param == "web_search_options"
    request = GEMINI.request(call_to(GEMINI, payload, model=TWO_FIVE, drop_params=True))
    assert request.dropped == ("web_search_options",)
    assert b"googleSearch" not in request.body


def test_json_beside_tools_is_said_from_three_on_and_refused_before() -> None:
    payload = {"tools": [WEATHER], "response_format": {"type": "json_object"}}
    assert sent(payload)["generationConfig"] == {"responseMimeType": "application/json"}
    assert refused(payload, model=TWO_FIVE).param == "response_format"


def test_plain_text_format_says_nothing() -> None:
    """7b-13."""
    assert sent({"response_format": {"type": "text"}}) == sent({})


@pytest.mark.parametrize(
    ("model", "effort", "config"),
    [
        (TWO_FIVE, "none", {"thinkingBudget": 0, "includeThoughts": False}),
        (TWO_FIVE, "minimal", {"thinkingBudget": 1024, "includeThoughts": True}),
        (TWO_FIVE, "low", {"thinkingBudget": 1024, "includeThoughts": True}),
        (TWO_FIVE, "medium", {"thinkingBudget": 8192, "includeThoughts": True}),
        (TWO_FIVE, "high", {"thinkingBudget": 24576, "includeThoughts": True}),
        (TWO_FIVE, "max", {"thinkingBudget": 24576, "includeThoughts": True}),
        ("gemini-2.5-pro", "max", {"thinkingBudget": 32768, "includeThoughts": True}),
        ("gemini-2.5-pro", "none", None),
        (THREE, "none", {"thinkingLevel": "MINIMAL", "includeThoughts": False}),
        (THREE, "minimal", {"thinkingLevel": "MINIMAL", "includeThoughts": True}),
        (THREE, "medium", {"thinkingLevel": "MEDIUM", "includeThoughts": True}),
        (THREE, {"effort": "low"}, {"thinkingLevel": "LOW", "includeThoughts": True}),
        ("gemini-3-pro-preview", "medium", {"thinkingLevel": "HIGH", "includeThoughts": True}),
        ("gemini-3.1-pro-preview", "medium", {"thinkingLevel": "MEDIUM", "includeThoughts": True}),
        ("gemini-3.1-pro-preview", "minimal", {"thinkingLevel": "LOW", "includeThoughts": True}),
        ("gemini-3.1-pro-preview", "none", None),
        ("gemini-flash-latest", "high", {"thinkingLevel": "HIGH", "includeThoughts": True}),
        ("gemini-2.0-flash", "low", None),
        ("gemini-3-pro-image-preview", "low", None),
        (THREE, "vast", None),
    ],
)
def test_effort_by_model(model: str, effort: Any, config: dict[str, Any] | None) -> None:
    """7b-76: none is the least a Flash can do, and refused where a model cannot stop; image models think by
    themselves."""
    payload = {"reasoning_effort": effort}
    if config is None:
        assert refused(payload, model=model).param == "reasoning_effort"
    else:
        assert sent(payload, model=model)["generationConfig"] == {"thinkingConfig": config}


def test_thinking_as_clients_of_claude_say_it() -> None:
    def config(thinking: Any, model: str = TWO_FIVE) -> Any:
        return sent({"thinking": thinking}, model=model)["generationConfig"]["thinkingConfig"]

    assert config({"type": "enabled", "budget_tokens": 99999}) == {"includeThoughts": True, "thinkingBudget": 24576}
    assert config({"type": "disabled"}) == {"thinkingBudget": 0, "includeThoughts": False}
    assert config({"type": "disabled"}, THREE) == {"thinkingLevel": "MINIMAL", "includeThoughts": False}
    assert config({"type": "adaptive"}, THREE) == {"includeThoughts": True}
    for odd in ({}, {"type": 3}, "yes", {"type": "enabled", "budget_tokens": "x"}):
        assert str(refused({"thinking": odd}).param).startswith("thinking")
    assert refused({"thinking": {"type": "disabled"}}, model="gemini-2.5-pro").param == "thinking"


def test_sampling_caps_and_the_rest() -> None:
    body = sent(
        {
            "temperature": 1.7,
            "top_p": 0.5,
            "top_k": 3,
            "seed": 7,
            "n": 2,
            "max_tokens": 9,
            "max_completion_tokens": 5,
            "stop": "END",
            "frequency_penalty": 0.5,
            "presence_penalty": -1,
            "logprobs": True,
            "top_logprobs": 3,
            "service_tier": "flex",
            "safety_settings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
            "cached_content": "cachedContents/1",
            "store": False,
        }
    )
    assert body["generationConfig"] == {
        "maxOutputTokens": 5,
        "candidateCount": 2,
        "responseLogprobs": True,
        "logprobs": 3,
        "stopSequences": ["END"],
        "temperature": 1.7,
        "topP": 0.5,
        "topK": 3,
        "seed": 7,
        "frequencyPenalty": 0.5,
        "presencePenalty": -1,
    }
    assert (body["serviceTier"], body["store"], body["cachedContent"]) == ("flex", False, "cachedContents/1")
    assert sent({"max_tokens": 9}, edits={"output_cap": 3})["generationConfig"] == {"maxOutputTokens": 3}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("n", "two"),
        ("temperature", "hot"),
        ("stop", ["a"] * 6),
        ("stop", 3),
        ("top_logprobs", 99),
        ("logprobs", "yes"),
        ("modalities", ["smell"]),
        ("response_format", {"type": "xml"}),
        ("tools", {}),
        ("service_tier", "scale"),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(field: str, value: Any) -> None:
    assert str(refused({field: value}).param).startswith(field)


def test_sound_and_pictures_out() -> None:
    body = sent({"modalities": ["text", "audio"], "audio": {"voice": "Kore", "format": "pcm16"}})
    assert body["generationConfig"] == {
        "responseModalities": ["AUDIO"],
        "speechConfig": {"voiceConfig": {"prebuiltVoiceConfig": {"voiceName": "Kore"}}},
    }
    assert sent({"modalities": ["text", "image"]})["generationConfig"] == {"responseModalities": ["TEXT", "IMAGE"]}
    assert refused({"audio": {"voice": "Kore", "format": "mp3"}}).param == "audio.format"
    assert refused({"audio": {"format": "pcm16"}}).param == "audio.voice"


def test_the_deployments_own_settings_go_where_gemini_has_them() -> None:
    params = {
        "safety_settings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "OFF"}],
        "generationConfig": {"temperature": 0.1, "mediaResolution": "MEDIA_RESOLUTION_LOW"},
    }
    body = sent({"temperature": 0.9}, params=params)
    assert body["generationConfig"] == {"temperature": 0.9, "mediaResolution": "MEDIA_RESOLUTION_LOW"}
    assert body["safetySettings"] == params["safety_settings"]


NAMES = st.sampled_from(["f", "g", "a b", "ü", "x" * 90])
TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
CALLS = st.lists(
    st.tuples(NAMES, st.sampled_from(['{"a":1}', "", "{", "[]", '{"b":{"c":[1,2.5,null]}}'])), min_size=1, max_size=3
)
STEPS = st.lists(st.one_of(TEXTS, CALLS), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, model=st.sampled_from([THREE, TWO_FIVE, OLD]), is_stream=st.booleans())
def test_any_conversation_is_one_google_takes(steps: list[Any], model: str, is_stream: bool) -> None:
    """Each model turn's calls are answered in the next turn, one result for one call, in their order."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "go"}]
    for number, step in enumerate(steps):
        if isinstance(step, str):
            messages += [{"role": "assistant", "content": step}, {"role": "user", "content": step}]
            continue
        calls = [call(f"{number}-{at}", name, arguments) for at, (name, arguments) in enumerate(step)]
        messages.append({"role": "assistant", "content": None, "tool_calls": calls})
        messages += [{"role": "tool", "tool_call_id": item["id"], "content": "x"} for item in reversed(calls)]
    tools = [{"type": "function", "function": {"name": name}} for name in ("f", "g", "a b", "ü", "x" * 90)]
    body = sent({"messages": messages, "tools": tools, "stream": is_stream}, model=model)
    known = {declared["name"] for declared in body["tools"][0]["functionDeclarations"]}
    assert len(known) == len(tools)
    turns = body["contents"]
    for turn, after in zip(turns, [*turns[1:], None], strict=True):
        assert turn["parts"]
        called = [part["functionCall"]["name"] for part in turn["parts"] if "functionCall" in part]
        assert set(called) <= known
        if called:
            assert after is not None
            assert [part["functionResponse"]["name"] for part in after["parts"]] == called


def test_the_body_is_json_in_utf8() -> None:
    request = GEMINI.request(call_to(GEMINI, {"messages": [{"role": "user", "content": "ü \u2028 \U0001f600"}]}))
    assert json.loads(request.body)["contents"][0]["parts"][0]["text"] == "ü \u2028 \U0001f600"
    assert request.headers == [(b"content-type", b"application/json")]
