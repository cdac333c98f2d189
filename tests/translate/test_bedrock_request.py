"""OpenAI chat requests as Converse requests; each is one botocore's model takes and its serializer would send."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from sidecar.errors import BadRequestError
from sidecar.translate import PROVIDERS, Call
from sidecar.translate.provider import Media
from tests.translate.dialects.aws import assert_takes, segment
from tests.translate.support import USER, WEATHER, make_call

BEDROCK = PROVIDERS["bedrock"]
CLAUDE = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
OLD_CLAUDE = "anthropic.claude-3-5-sonnet-20240620-v1:0"
NEW_CLAUDE = "global.anthropic.claude-opus-5"
NOVA = "eu.amazon.nova-lite-v1:0"
NOVA_2 = "us.amazon.nova-2-lite-v1:0"
LLAMA = "us.meta.llama3-3-70b-instruct-v1:0"
GPT_OSS = "openai.gpt-oss-120b-1:0"
QWEN = "qwen.qwen3-235b-a22b-2507-v1:0"
PROFILE = "arn:aws:bedrock:eu-central-1:123456789012:application-inference-profile/a1b2c3d4e5f6"
FAMILIES = [CLAUDE, OLD_CLAUDE, NEW_CLAUDE, NOVA, NOVA_2, LLAMA, GPT_OSS, QWEN, PROFILE]
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(16)).decode()
PDF = base64.b64encode(b"%PDF-1.7 " + bytes(16)).decode()
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}],
}
ANSWERED = {"role": "tool", "tool_call_id": "c1", "content": "sunny"}
CLOSED = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}


def bedrock_call(payload: dict[str, Any], model: str = CLAUDE, **options: Any) -> Call:
    return make_call(payload, model=model, options={"region": "eu-central-1"}, **options)


def body_of(payload: dict[str, Any], model: str = CLAUDE, **options: Any) -> Any:
    request = BEDROCK.request(bedrock_call(payload, model, **options))
    name = "ConverseStream" if request.path.endswith("-stream") else "Converse"
    assert_takes("bedrock-runtime", name, request, modelId=segment(request.path))
    return json.loads(request.body)


def refused(payload: dict[str, Any], model: str = CLAUDE, **options: Any) -> BadRequestError:
    with pytest.raises(BadRequestError) as caught:
        BEDROCK.request(bedrock_call(payload, model, **options))
    return caught.value


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def file(**fields: str) -> dict[str, Any]:
    return {"type": "file", "file": fields}


def json_schema(schema: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **fields}}}


@pytest.mark.parametrize(
    ("model", "path"),
    [
        (CLAUDE, "/model/us.anthropic.claude-sonnet-4-5-20250929-v1%3A0/converse"),
        (
            "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.amazon.nova-pro-v1:0",
            "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A123456789012%3Ainference-profile%2Fus.amazon.nova-pro-v1%3A0/converse",
        ),
        (
            PROFILE,
            "/model/arn%3Aaws%3Abedrock%3Aeu-central-1%3A123456789012%3Aapplication-inference-profile%2Fa1b2c3d4e5f6/converse",
        ),
    ],
)
def test_ids_and_arns_are_one_segment_quoted_as_botocore_does(model: str, path: str) -> None:
    body_of({}, model)  # compares the path with botocore's
    assert BEDROCK.request(bedrock_call({}, model)).path == path
    assert BEDROCK.request(bedrock_call({"stream": True}, model)).path == path + "-stream"
    assert BEDROCK.base_url({"region": "eu-central-1"}) == "https://bedrock-runtime.eu-central-1.amazonaws.com"


@pytest.mark.parametrize("name", ["bedrock", "bedrock-invoke", "sagemaker"])
def test_a_clients_name_of_a_wildcard_group_stays_one_segment(name: str) -> None:
    for model in ("..", ".", ""):
        with pytest.raises(BadRequestError) as caught:
            PROVIDERS[name].request(make_call({}, model=model))
        assert caught.value.param == "model"
    path = PROVIDERS[name].request(make_call({}, model="../../x?y#z\r\n")).path
    assert path.count("/") == 3
    assert not set("?#\r\n") & set(path)


def test_system_and_developer_messages_lead_or_stay_in_their_place() -> None:
    body = body_of(
        {
            "messages": [
                {"role": "system", "content": "one"},
                {"role": "developer", "content": [{"type": "text", "text": "two"}, {"type": "text", "text": " \n"}]},
                {"role": "user", "content": "hi"},
                {"role": "system", "content": "late"},
                {"role": "assistant", "content": "yes"},
                {"role": "user", "content": "go"},
            ]
        }
    )
    assert body["system"] == [{"text": "one"}, {"text": "two"}]
    assert body["messages"] == [
        {"role": "user", "content": [{"text": "hi"}, {"text": "<system>\nlate\n</system>"}]},
        {"role": "assistant", "content": [{"text": "yes"}]},
        {"role": "user", "content": [{"text": "go"}]},
    ]


def test_the_user_begins_and_a_lone_system_message_is_the_users() -> None:
    assert body_of({"messages": [{"role": "assistant", "content": "Hello!"}, *USER]})["messages"][0] == {
        "role": "user",
        "content": [{"text": "."}],
    }
    body = body_of({"messages": [{"role": "system", "content": "only"}]})
    assert "system" not in body
    assert body["messages"] == [{"role": "user", "content": [{"text": "only"}]}]
    assert refused({"messages": [{"role": "user", "content": ""}]}).param == "messages"


def test_a_prefill_does_not_end_in_white_space() -> None:
    body = body_of({"messages": [*USER, {"role": "assistant", "content": "Sure, \n"}]})
    assert body["messages"][-1]["content"] == [{"text": "Sure,"}]


def test_pictures_are_bytes_from_data_urls_fetched_urls_and_s3() -> None:
    url = "https://example.com/cat.png"
    payload = user(image(f"data:image/jpeg;base64,{PNG}"), image(url), image("s3://bucket/cats/cat.webp"))
    assert BEDROCK.needs(bedrock_call(payload)) == (url,)
    body = body_of(payload, media={url: Media("image/gif", b"GIF89a" + bytes(9))})
    given, fetched, stored = body["messages"][0]["content"]
    assert given == {"image": {"format": "png", "source": {"bytes": PNG}}}  # what it is, not what it is called
    assert fetched["image"]["format"] == "gif"
    assert stored == {"image": {"format": "webp", "source": {"s3Location": {"uri": "s3://bucket/cats/cat.webp"}}}}
    assert refused(payload).param == "messages[0].content[1]"  # not fetched
    assert "BMP" not in refused(user(image("data:image/bmp;base64,Qk0="))).message
    assert refused(user({**image(f"data:image/png;base64,{PNG}"), "image_url": {"url": "x", "detail": "low"}})).param


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        (file(file_data=f"data:application/pdf;base64,{PDF}", filename="a.pdf"), "pdf"),
        (file(file_data=PDF), "pdf"),
        (file(file_data="data:application/octet-stream;base64,UEsDBA==", filename="a.docx"), "docx"),
        (file(file_data="data:;base64,UEsDBA==", filename="Sheet.XLSX"), "xlsx"),
        (file(file_data="data:text/markdown;base64,IyBo"), "md"),
        (file(file_data="data:text/csv;base64,YSxi"), "csv"),
        (file(file_data="data:text/x-python;base64,cHJpbnQ="), "txt"),
        (file(file_data="data:application/json;base64,e30="), "txt"),
    ],
)
def test_documents_have_the_format_of_their_bytes_or_name(part: dict[str, Any], kind: str) -> None:
    """7b-63: the table of endings is ours, for the system's may be empty."""
    document = body_of(user({"type": "text", "text": "read"}, part))["messages"][0]["content"][1]["document"]
    assert document["format"] == kind


def test_document_names_are_clean_unlike_and_depend_on_nothing_behind_them() -> None:
    """7b-61"""
    parts = [
        file(file_data=PDF, filename="../../Q3 report (final)_v2.pdf"),
        file(file_data=PDF),
        file(file_data=PDF),
        file(file_data=PDF, filename="../../Q3 report (final)_v2.pdf"),
    ]
    content = body_of(user({"type": "text", "text": "read"}, *parts))["messages"][0]["content"]
    names = [block["document"]["name"] for block in content[1:]]
    assert names[0] == "Q3 report (final) v2"
    assert names[1].startswith("document ")
    assert len(set(names)) == 4
    fewer = body_of(user({"type": "text", "text": "read"}, *parts[:2]))["messages"][0]["content"]
    assert content[:3] == fewer


def test_a_document_without_a_text_gets_one_and_a_file_id_is_refused() -> None:
    assert body_of(user(file(file_data=PDF)))["messages"][0]["content"][-1] == {"text": "."}
    assert refused(user(file(file_id="file-1"))).param == "messages[0].content[0].file"


def test_video_and_audio() -> None:
    clip = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}
    remote = {"type": "video_url", "video_url": {"url": "https://example.com/a.mov"}}
    sound = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}}
    payload = user(clip, remote, sound, file(file_data="data:video/webm;base64,AAAA"))
    assert BEDROCK.needs(bedrock_call(payload)) == ("https://example.com/a.mov",)
    media = {"https://example.com/a.mov": Media("application/octet-stream", b"\0\0\0\x14ftypqt  ")}
    first, second, third, fourth = body_of(payload, NOVA, media=media)["messages"][0]["content"]
    assert first == {"video": {"format": "mp4", "source": {"bytes": "AAAA"}}}
    assert second["video"]["format"] == "mov"
    assert third == {"audio": {"format": "mp3", "source": {"bytes": "AAAA"}}}
    assert fourth["video"]["format"] == "webm"


@pytest.mark.parametrize(
    ("name", "data"), [("a", b"%PDF-1.7"), ("a.mov", b"\0\0\0\x14ftypqt  ")], ids=["document", "film"]
)
def test_a_link_held_for_as_a_picture_leads_to_one(name: str, data: bytes) -> None:
    url = f"https://example.com/{name}"
    media = {url: Media("application/octet-stream", data)}
    with pytest.raises(BadRequestError, match="no picture"):
        body_of(user({"type": "image_url", "image_url": {"url": url}}), NOVA, media=media)
    assert body_of(user({"type": "file", "file": {"file_url": url}}), NOVA, media=media)


def test_tools_calls_and_results() -> None:
    body = body_of(
        {
            "tools": [WEATHER],
            "messages": [
                *USER,
                {**CALLED, "tool_calls": [*CALLED["tool_calls"], {**CALLED["tool_calls"][0], "id": "c2"}]},  # type: ignore[misc]
                ANSWERED,
                {"role": "tool", "tool_call_id": "c2", "content": "", "is_error": True},
                {"role": "user", "content": "and?"},
            ],
        }
    )
    assert body["toolConfig"] == {
        "tools": [
            {
                "toolSpec": {
                    "name": "weather",
                    "description": "Weather in a city",
                    "inputSchema": {"json": WEATHER["function"]["parameters"]},
                }
            }
        ]
    }
    assert body["messages"][1]["content"][0] == {
        "toolUse": {"toolUseId": "c1", "name": "weather", "input": {"city": "Rome"}}
    }
    assert body["messages"][2]["content"] == [
        {"toolResult": {"toolUseId": "c1", "content": [{"text": "sunny"}]}},
        {"toolResult": {"toolUseId": "c2", "content": [{"text": "(no output)"}], "status": "error"}},
        {"text": "and?"},
    ]


def test_a_tool_result_may_hold_pictures_and_documents() -> None:
    content = [{"type": "text", "text": "see"}, image(f"data:image/png;base64,{PNG}"), file(file_data=PDF)]
    body = body_of({"tools": [WEATHER], "messages": [*USER, CALLED, {**ANSWERED, "content": content}]})
    result = body["messages"][2]["content"][0]["toolResult"]["content"]
    assert [next(iter(part)) for part in result] == ["text", "image", "document"]


@pytest.mark.parametrize("arguments", ["", "{}", "null", "[1]", "not json", '{"a": 1}'])
def test_arguments_of_the_history_are_objects(arguments: str) -> None:
    """7b-102"""
    called = json.loads(json.dumps(CALLED))
    called["tool_calls"][0]["function"]["arguments"] = arguments
    body = body_of({"tools": [WEATHER], "messages": [*USER, called, ANSWERED]})
    assert isinstance(body["messages"][1]["content"][0]["toolUse"]["input"], dict)


def test_names_and_ids_outside_the_alphabet_are_rewritten_the_same_everywhere() -> None:
    name, given = "get.weather/für " + "x" * 70, "call|" + "y" * 80
    tool = {"type": "function", "function": {"name": name, "parameters": {}}}
    called = json.loads(json.dumps(CALLED))
    called["tool_calls"][0]["id"] = given
    called["tool_calls"][0]["function"]["name"] = name
    body = body_of(
        {
            "tools": [tool],
            "tool_choice": {"type": "function", "function": {"name": name}},
            "messages": [*USER, called, {**ANSWERED, "tool_call_id": given}],
        }
    )
    sent = body["toolConfig"]["tools"][0]["toolSpec"]["name"]
    use = body["messages"][1]["content"][0]["toolUse"]
    assert use["name"] == sent == body["toolConfig"]["toolChoice"]["tool"]["name"]
    assert use["toolUseId"] == body["messages"][2]["content"][0]["toolResult"]["toolUseId"]


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("auto", {"auto": {}}),
        ("required", {"any": {}}),
        ("any", {"any": {}}),
        ({"type": "function", "function": {"name": "weather"}}, {"tool": {"name": "weather"}}),
        ({"type": "function", "name": "weather"}, {"tool": {"name": "weather"}}),
    ],
)
def test_tool_choice_in_its_forms(given: Any, sent: Any) -> None:
    """7b-59: `any` beside `required`."""
    for model in (CLAUDE, NOVA):
        assert body_of({"tools": [WEATHER], "tool_choice": given}, model)["toolConfig"]["toolChoice"] == sent


def test_a_tool_choice_without_meaning_is_refused_by_name() -> None:
    """7b-59"""
    for value in ("sometimes", {"type": "x"}, 3):
        assert refused({"tools": [WEATHER], "tool_choice": value}).param == "tool_choice"
    assert refused({"tool_choice": "required"}).param == "tool_choice"
    assert "toolConfig" not in body_of({"tool_choice": "auto", "parallel_tool_calls": False})


def test_allowed_tools_are_the_tools() -> None:
    other = {"type": "function", "function": {"name": "other"}}
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"type": "function", **other}]}}
    config = body_of({"tools": [WEATHER, other], "tool_choice": choice})["toolConfig"]
    assert [tool["toolSpec"]["name"] for tool in config["tools"]] == ["other"]
    assert config["toolChoice"] == {"any": {}}


def test_what_converse_cannot_say_to_claude_is_said_in_claudes_words_alone() -> None:
    """Both forms at once are refused by the service."""
    body = body_of({"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False})
    assert body["additionalModelRequestFields"] == {"tool_choice": {"type": "any", "disable_parallel_tool_use": True}}
    assert "toolChoice" not in body["toolConfig"]
    body = body_of({"tools": [WEATHER], "tool_choice": "none"})
    assert body["additionalModelRequestFields"] == {"tool_choice": {"type": "none"}}
    assert refused({"tools": [WEATHER], "parallel_tool_calls": False}, NOVA).param == "parallel_tool_calls"
    assert "toolChoice" not in body_of({"tools": [WEATHER], "parallel_tool_calls": True}, NOVA)["toolConfig"]


@pytest.mark.parametrize("more", [{}, {"tools": [WEATHER], "tool_choice": "none"}])
def test_tool_history_without_tools_to_call(more: dict[str, Any]) -> None:
    payload = {"messages": [*USER, CALLED, ANSWERED], **more}
    body = body_of(payload)
    assert body["toolConfig"]["tools"][0]["toolSpec"]["name"] == "weather"
    assert body["additionalModelRequestFields"]["tool_choice"] == {"type": "none"}
    for model in (NOVA, LLAMA, PROFILE):  # these cannot be told to call none, so it is told to them
        body = body_of(payload, model)
        assert "toolConfig" not in body
        assert body["messages"][1]["content"] == [{"text": '[Called tool weather with {"city":"Rome"}]'}]
        assert body["messages"][2]["content"] == [{"text": "[The tool answered:]"}, {"text": "sunny"}]


def test_schemas_keep_their_form_for_claude_and_are_rewritten_for_the_others() -> None:
    """7b-64, 7b-101: references that lead to each other, type lists, empty enum values, `$schema`."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/a"}, "b": {"type": ["string", "number"]}, "c": {"enum": ["", "x"]}},
        "$defs": {
            "a": {"type": "object", "properties": {"b": {"$ref": "#/$defs/b"}}},
            "b": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}},
        },
    }
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    before = json.dumps(tool)
    sent = {
        model: body_of({"tools": [tool]}, model)["toolConfig"]["tools"][0]["toolSpec"]["inputSchema"]["json"]
        for model in FAMILIES
    }
    assert sent[CLAUDE] == schema
    assert "$ref" not in json.dumps(sent[LLAMA])
    assert sent[NOVA].keys() == {"type", "properties"}
    assert max(len(json.dumps(one)) for one in sent.values()) < 10_000
    assert json.dumps(tool) == before
    bad_tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}
    assert refused({"tools": [bad_tool]}).param == "tools[0].function.parameters"
    assert refused({"tools": [{"type": "custom", "custom": {}}]}).param == "tools[0].type"


def test_strict_is_sent_where_it_is_taken_and_named_where_not() -> None:
    """7b-58: nothing is sent that has to be taken back."""
    tool = {"type": "function", "function": {"name": "f", "parameters": CLOSED, "strict": True}}
    spec = body_of({"tools": [tool]})["toolConfig"]["tools"][0]["toolSpec"]
    assert spec["strict"] is True
    for model in (OLD_CLAUDE, NOVA, LLAMA):
        request = BEDROCK.request(bedrock_call({"tools": [tool]}, model))
        assert b"strict" not in request.body
        assert request.dropped == ("tools[0].function.strict",)


def test_cache_marks_are_cache_points_after_what_they_mark() -> None:
    """7b-44"""
    mark = {"cache_control": {"type": "ephemeral"}}
    long = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    payload = {
        "tools": [{**WEATHER, **mark}],
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "a", **long}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": [{"type": "text", "text": "c", **mark}, {"type": "text", "text": "d"}]},
            CALLED,
            {**ANSWERED, "content": [{"type": "text", "text": "sunny", **mark}]},
            {"role": "user", "content": "e", **mark},
        ],
    }
    point: Any = {"cachePoint": {"type": "default"}}
    body = body_of(payload)
    assert body["system"] == [{"text": "a"}, {"cachePoint": {"type": "default", "ttl": "1h"}}, {"text": "b"}]
    assert body["toolConfig"]["tools"][1] == point
    assert body["messages"][0]["content"] == [{"text": "c"}, point, {"text": "d"}]
    assert [next(iter(block)) for block in body["messages"][2]["content"]] == [
        "toolResult", "cachePoint", "text", "cachePoint",
    ]  # fmt: skip
    assert body_of({"messages": USER, **mark})["messages"][0]["content"][-1] == point
    assert refused(payload, LLAMA).param == "tools[0].cache_control"
    assert refused(payload, NOVA).param == "tools[0].cache_control"
    assert refused({"messages": payload["messages"]}, LLAMA).param == "messages[0].content[0].cache_control"
    assert "cachePoint" in json.dumps(body_of({**payload, "tools": [WEATHER]}, NOVA))
    assert refused({"messages": [{"role": "user", "content": "x", "cache_control": {"ttl": "2h"}}]}).param


def test_a_cap_is_sent_and_without_one_the_model_has_its_own() -> None:
    assert "inferenceConfig" not in body_of({})
    for model in FAMILIES:
        both = body_of({"max_tokens": 50, "max_completion_tokens": 40}, model)
        assert both["inferenceConfig"] == {"maxTokens": 40}
        assert body_of({"max_tokens": 50}, model, edits={"output_cap": 7})["inferenceConfig"] == {"maxTokens": 7}
        assert body_of({}, model, max_output_tokens=99)["inferenceConfig"] == {"maxTokens": 99}
        assert refused({"max_tokens": 0}, model).param == "max_tokens"


def test_sampling_and_stop_sequences() -> None:
    body = body_of({"temperature": 0.5, "top_p": 1, "stop": ["END"], "top_k": 3})
    assert body["inferenceConfig"] == {"temperature": 0.5, "topP": 1, "stopSequences": ["END"]}
    assert body["additionalModelRequestFields"] == {"top_k": 3}
    assert body_of({"top_k": 3}, NOVA)["additionalModelRequestFields"] == {"inferenceConfig": {"topK": 3}}
    assert refused({"temperature": 1.5}).param == "temperature"
    assert refused({"temperature": 0.5}, NEW_CLAUDE).param == "temperature"
    assert body_of({"stop": "\n"}, LLAMA)["inferenceConfig"] == {"stopSequences": ["\n"]}
    assert refused({"stop": "\n"}).param == "stop"
    assert refused({"stop": ["", "x"]}, LLAMA).param == "stop"


def test_effort_is_said_in_each_models_words() -> None:
    """7b-48: `output_config` goes to Claude only."""
    body = body_of({"reasoning_effort": "low"})
    assert body["additionalModelRequestFields"] == {"thinking": {"type": "enabled", "budget_tokens": 2048}}
    assert body["inferenceConfig"]["maxTokens"] > 2048
    assert body_of({"reasoning_effort": "high"}, NEW_CLAUDE)["additionalModelRequestFields"] == {
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "high"},
    }
    assert body_of({"reasoning_effort": "minimal"}, GPT_OSS)["additionalModelRequestFields"] == {
        "reasoning_effort": "low"
    }
    assert body_of({"reasoning_effort": "medium"}, NOVA_2)["additionalModelRequestFields"] == {
        "reasoningConfig": {"type": "enabled", "maxReasoningEffort": "medium"}
    }
    assert refused({"reasoning_effort": "high", "max_tokens": 9}, NOVA_2).param == "reasoning_effort"
    for model in (NOVA, LLAMA, OLD_CLAUDE):
        assert refused({"reasoning_effort": "low"}, model).param == "reasoning_effort"
        assert "additionalModelRequestFields" not in body_of({"reasoning_effort": "none"}, model)
    assert refused({"thinking": {"type": "adaptive"}}, NOVA).param == "thinking"
    assert body_of({"thinking": {"type": "adaptive"}}, NEW_CLAUDE)["additionalModelRequestFields"] == {
        "thinking": {"type": "adaptive"}
    }


def test_effort_none_leaves_thinking_out_and_garbage_is_refused() -> None:
    """7b-47"""
    assert "additionalModelRequestFields" not in body_of({"reasoning_effort": "none"})
    for model in (CLAUDE, NOVA_2, GPT_OSS):
        assert refused({"reasoning_effort": "very"}, model).param == "reasoning_effort"


def test_claude_does_not_think_when_a_tool_is_forced() -> None:
    """7b-46: told, or dropped by policy; the choice stands."""
    payload = {"tools": [WEATHER], "tool_choice": "required", "reasoning_effort": "low"}
    assert refused(payload).param == "reasoning_effort"
    body = body_of(payload, drop_params=True)
    assert "additionalModelRequestFields" not in body
    assert body["toolConfig"]["toolChoice"] == {"any": {}}


def test_a_tool_loop_begun_without_thinking_goes_on_without() -> None:
    """7b-54: by itself, and said."""
    payload = {"tools": [WEATHER], "reasoning_effort": "low", "messages": [*USER, CALLED, ANSWERED]}
    request = BEDROCK.request(bedrock_call(payload))
    assert request.dropped == ("reasoning_effort",)
    assert b"thinking" not in request.body
