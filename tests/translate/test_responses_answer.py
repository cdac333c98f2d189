"""The Responses bridge, the way out: whole answers and streams of the same items say the same, in chat's own types."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion

from sidecar.errors import ProviderError, UpstreamBrokenError
from sidecar.translate import Head, get_provider
from sidecar.translate.signatures import pack, unpack
from sidecar.translate.simulate import Plan
from sidecar.types import Usage
from tests.translate.dialects.responses import assert_openai_takes, event, item_events, response_of
from tests.translate.support import OK, USER, WEATHER, events, fold, make_call, run, unfold

SSE = Head(200, [(b"content-type", b"text/event-stream")])
PLAN = Plan(model="gpt-5-codex-2025-09-15", words=[], input_tokens=9, output_tokens=7)


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "output_text", "text": said, "annotations": [], "logprobs": [], **more}


def message(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": list(parts), **more,
    }  # fmt: skip


def reasoning(number: int, *summary: str, encrypted: str | None = "enc") -> dict[str, Any]:
    parts = [{"type": "summary_text", "text": said} for said in summary]
    sealed = {"encrypted_content": f"{encrypted}{number}"} if encrypted else {}
    return {"id": f"rs_{number}", "type": "reasoning", "summary": parts, **sealed}


def called(number: int, name: str = "weather", arguments: str = '{"city":"Rome"}') -> dict[str, Any]:
    return {
        "id": f"fc_{number}", "type": "function_call", "call_id": f"call_{number}", "name": name,
        "arguments": arguments, "status": "completed",
    }  # fmt: skip


def body_of(items: list[Any], status: str = "completed", **more: Any) -> dict[str, Any]:
    return {**response_of(PLAN, items, status), **more}


def stream_of(items: list[Any], status: str = "completed", cut: int = 8, **more: Any) -> Iterator[bytes]:
    yield event("response.created", 0, response=response_of(PLAN, [], "in_progress"))
    for index, item in enumerate(items):
        for kind, fields in item_events(item, index, cut=cut):
            yield event(kind, 1, output_index=index, **fields)
    yield event(f"response.{status}", 2, response=body_of(items, status, **more))


def whole(items: list[Any], payload: dict[str, Any] | None = None, *, provider: str = "openai", **more: Any) -> Any:
    call = make_call({"tools": [WEATHER], **(payload or {})}, model="gpt-5-codex")
    return get_provider(provider).response(call, OK, json.dumps(body_of(items, **more)).encode())


def streamed(items: list[Any], payload: dict[str, Any] | None = None, *, cut: int = 8, **more: Any) -> bytes:
    asked = {"tools": [WEATHER], "stream": True, "stream_options": {"include_usage": True}, **(payload or {})}
    translator = get_provider("openai").stream(make_call(asked, model="gpt-5-codex"), SSE)
    return run(translator, *stream_of(items, cut=cut, **more))


def both(items: list[Any], payload: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    plain = unfold(whole(items, payload, **more).body)
    assert fold(streamed(items, payload, **more)) == plain
    return plain


def test_text_reasoning_and_calls_of_one_turn() -> None:
    said = both([reasoning(1, "First.", "Then."), message(text("Let me "), text("look.")), called(1), called(2)])
    assert said["content"] == "Let me look."
    assert said["reasoning"] == "First.\n\nThen."
    assert [unpack(tool["id"])[0] for tool in said["tools"]] == ["call_1", "call_2"]
    assert said["finish"] == "tool_calls"
    assert said["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}


def test_open_models_tell_their_reasoning_itself() -> None:
    item = {"id": "rs_1", "type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
    assert unfold(whole([item, message(text("x"))]).body)["reasoning"] == "Hm."
    delta = {"item_id": "rs_1", "output_index": 0, "content_index": 0, "delta": "Hm."}
    pieces = [*stream_of([message(text("x"))])]
    pieces.insert(1, event("response.reasoning_text.delta", 1, **delta))
    assert fold(run(get_provider("openai").stream(make_call({"stream": True}, model="o3-pro"), SSE), *pieces))[
        "reasoning"
    ] == "Hm."  # fmt: skip


def test_usage_in_disjoint_classes() -> None:
    usage = {
        "input_tokens": 100, "input_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 10},
        "output_tokens": 50, "output_tokens_details": {"reasoning_tokens": 20}, "total_tokens": 150,
    }  # fmt: skip
    reply = whole([message(text("x"))], usage=usage)
    assert reply.usage == Usage(input=30, cached_input=60, cache_write_5m=10, output=30, reasoning=20)
    said = both([message(text("x"))], usage=usage)["usage"]
    assert (said["prompt_tokens"], said["completion_tokens"], said["total_tokens"]) == (100, 50, 150)
    assert said["prompt_tokens_details"] == {"cached_tokens": 60, "cache_write_tokens": 10}


@pytest.mark.parametrize(
    ("reason", "finish"), [("max_output_tokens", "length"), ("content_filter", "content_filter"), ("steered", "stop")]
)
def test_an_incomplete_answer_says_why(reason: str, finish: str) -> None:
    said = both([message(text("half"))], status="incomplete", incomplete_details={"reason": reason})
    assert (said["content"], said["finish"]) == ("half", finish)
    thinking_only = both([reasoning(1)], status="incomplete", incomplete_details={"reason": reason})
    assert (thinking_only["content"], thinking_only["finish"]) == ("", finish)


def test_a_refusal_stays_one() -> None:
    items = [message({"type": "refusal", "refusal": "I cannot help with that."})]
    answer = json.loads(whole(items).body)["choices"][0]
    assert answer["message"]["refusal"] == "I cannot help with that."
    assert answer["message"]["content"] is None
    assert answer["finish_reason"] == "stop"
    chunks = [chunk for chunk in events(streamed(items)) if chunk != "[DONE]" and chunk["choices"]]
    assert "".join(chunk["choices"][0]["delta"].get("refusal") or "" for chunk in chunks) == "I cannot help with that."
    assert chunks[0]["choices"][0]["delta"]["content"] is None
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_citations_are_annotations_counted_from_the_contents_start() -> None:
    cited = {"type": "url_citation", "url": "https://example.com", "title": "T", "start_index": 1, "end_index": 3}
    file = {"type": "file_citation", "file_id": "f", "filename": "a.txt", "index": 1}
    items = [
        {"id": "ws_1", "type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "q"}},
        message(text("12345"), text("abcde", annotations=[cited, file])),
    ]
    expected = {"url": "https://example.com", "title": "T", "start_index": 6, "end_index": 8}
    answer = ChatCompletion.model_validate_json(whole(items).body, strict=True).choices[0].message
    assert answer.content == "12345abcde"
    assert answer.annotations is not None
    assert [one.url_citation.model_dump() for one in answer.annotations] == [expected]
    found = []
    for chunk in events(streamed(items)):
        if chunk != "[DONE]" and chunk["choices"]:
            found += chunk["choices"][0]["delta"].get("annotations") or []
    assert found == [{"type": "url_citation", "url_citation": expected}]


def test_a_server_that_tells_no_parts_has_its_citations_in_place_too() -> None:
    cited = {"type": "url_citation", "url": "https://example.com", "title": "T", "start_index": 1, "end_index": 3}
    items = [message(text("12345")), message(text("abcde", annotations=[cited]))]
    pieces = [piece for piece in stream_of(items) if b"response.content_part" not in piece]
    translator = get_provider("openai").stream(make_call({"stream": True}, model="o3-pro"), SSE)
    deltas = [one["choices"][0]["delta"] for one in events(run(translator, *pieces)) if one != "[DONE]"]
    (found,) = [one for delta in deltas for one in delta.get("annotations") or []]
    assert (found["url_citation"]["start_index"], found["url_citation"]["end_index"]) == (6, 8)


def test_a_stream_of_ever_new_parts_leaves_nothing_behind() -> None:
    translator = get_provider("openai").stream(make_call({"stream": True}, model="o3-pro"), SSE)
    begin, *parts, _ = stream_of([message(text("x"))])
    translator.feed(begin)
    sizes = []
    for at in range(60):
        for piece in parts:
            translator.feed(piece.replace(b'"content_index":0', b'"content_index":%d' % at))
        state = (getattr(translator, name) for name in type(translator).__slots__)
        sizes.append(sum(len(value) for value in state if isinstance(value, (dict, set))))
    assert sizes[9] == sizes[-1]


def test_logprobs_in_chats_form() -> None:
    token = {"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": [
        {"token": "é", "logprob": -0.5, "bytes": [195, 169]}]}  # fmt: skip
    answer = ChatCompletion.model_validate_json(whole([message(text("é", logprobs=[token]))]).body, strict=True)
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content is not None
    assert answer.choices[0].logprobs.content[0].model_dump() == token
    bare = {"token": "é", "logprob": -0.5, "top_logprobs": [{"token": "é", "logprob": -0.5}]}
    delta = {"item_id": "m", "output_index": 0, "content_index": 0, "delta": "é", "logprobs": [bare]}
    created, *_, last = stream_of([message(text("é"))])
    pieces = [created, event("response.output_text.delta", 1, **delta), last]
    translator = get_provider("openai").stream(make_call({"stream": True}, model="o3-pro"), SSE)
    chunks = [chunk for chunk in events(run(translator, *pieces)) if chunk != "[DONE]"]
    (given,) = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert given == {"content": [token], "refusal": None}


def test_a_custom_tools_call_comes_as_one() -> None:
    item = {"id": "ct_1", "type": "custom_tool_call", "call_id": "c1", "name": "grep", "input": "x|y"}
    answer = ChatCompletion.model_validate_json(whole([item]).body, strict=True)
    assert answer.choices[0].message.tool_calls is not None
    assert answer.choices[0].message.tool_calls[0].model_dump() == {
        "id": "c1", "type": "custom", "custom": {"name": "grep", "input": "x|y"},
    }  # fmt: skip
    deltas = [
        piece
        for chunk in events(streamed([item], cut=2))
        if chunk != "[DONE]" and chunk["choices"]
        for piece in chunk["choices"][0]["delta"].get("tool_calls") or []
    ]
    assert (deltas[0]["id"], deltas[0]["type"], deltas[0]["custom"]["name"]) == ("c1", "custom", "grep")
    assert "".join(piece["custom"]["input"] for piece in deltas) == "x|y"


def test_names_come_back_as_the_client_knows_them() -> None:
    odd = {"type": "function", "function": {"name": "get.weather/ü"}}
    call = make_call({"tools": [odd]}, model="o3-pro")
    sent = json.loads(get_provider("openai").request(call).body)["tools"][0]["name"]
    assert sent != "get.weather/ü"
    assert both([called(1, sent)], {"tools": [odd]})["tools"][0]["name"] == "get.weather/ü"


def test_a_server_that_streams_no_deltas_is_heard_all_the_same() -> None:
    items = [message(text("all at once")), called(1), called(2, arguments="")]
    pieces = [piece for piece in stream_of(items) if b".delta" not in piece and b"arguments.done" not in piece]
    translator = get_provider("openai").stream(make_call({"stream": True}, model="gpt-5-codex"), SSE)
    said = fold(run(translator, *pieces))
    assert said["content"] == "all at once"
    assert [tool["arguments"] for tool in said["tools"]] == [{"city": "Rome"}, {}]


FAILURES = [
    ("server_error", 500, "server"),
    ("rate_limit_exceeded", 429, "rate_limit"),
    ("invalid_prompt", 400, "content_policy"),
    ("image_too_large", 400, "bad_request"),
    ("vector_store_timeout", 504, "timeout"),
    ("context_length_exceeded", 400, "context_window"),
    ("never_heard_of", 502, "server"),
]


@pytest.mark.parametrize("provider", ["openai", "azure", "openai-responses"])
@pytest.mark.parametrize(("code", "status", "kind"), FAILURES)
def test_a_failed_response_is_an_error_by_its_code(provider: str, code: str, status: int, kind: str) -> None:
    error = {"code": code, "message": "429 said nobody"}
    with pytest.raises(ProviderError) as caught:
        whole([], status="failed", error=error, provider=provider)
    assert (caught.value.status, caught.value.kind, caught.value.may_be_billed) == (status, kind, True)
    assert f"Provider {provider} " in caught.value.message
    usage = {"input_tokens": 5, "output_tokens": 1, "total_tokens": 6}
    failed = {"type": "response.failed", "response": body_of([], "failed", error=error, usage=usage)}
    flat = {"type": "error", "sequence_number": 1, **error, "param": None}
    nested = {"type": "error", "error": {**error, "type": None}}
    for last in (failed, flat, nested, {"error": error}):
        pieces = [*[*stream_of([message(text("so far"))])][:-2], b"data: " + json.dumps(last).encode() + b"\n\n"]
        translator = get_provider(provider).stream(make_call({"stream": True}, model="gpt-5-codex"), SSE)
        out = translator.feed(b"".join(pieces))
        assert b"so far" in out
        assert b"[DONE]" not in out
        with pytest.raises(ProviderError) as caught:
            translator.end()
        assert (caught.value.status, caught.value.kind) == (status, kind)
        assert translator.usage.is_known == (last is failed)


def test_azures_filter_is_named_behind_the_bridge_too() -> None:
    error = {
        "code": "content_filter", "message": "Filtered.",
        "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"hate": {"filtered": True}}},
    }  # fmt: skip
    call = make_call(model="o3-pro")
    found = get_provider("azure").error(call, Head(400), json.dumps({"error": error}).encode())
    assert found.kind == "content_policy"
    assert "filtered for hate" in found.message


@pytest.mark.parametrize("status", ["in_progress", "queued", "cancelled", None])
def test_a_response_that_is_not_over_is_broken(status: str | None) -> None:
    with pytest.raises(UpstreamBrokenError):
        whole([message(text("x"))], status=status)


TEXTS = st.text(min_size=1, max_size=12)
ITEMS = st.lists(
    st.one_of(
        st.builds(lambda n, parts: reasoning(n, *parts), st.integers(0, 9), st.lists(TEXTS, max_size=2)),
        st.builds(
            lambda parts, phase: message(*(text(part) for part in parts), **({"phase": phase} if phase else {})),
            st.lists(TEXTS, min_size=1, max_size=2),
            st.sampled_from([None, "commentary", "final_answer"]),
        ),
        st.builds(lambda n: {"type": "function_call", "n": n}, st.integers(0, 9)),
    ),
    max_size=6,
)


@settings(max_examples=200, deadline=None)
@given(found=ITEMS, cut=st.integers(1, 5))
def test_a_turn_comes_back_as_it_was_said_through_a_client_that_keeps_standard_fields(
    found: list[Any], cut: int
) -> None:
    """Promise 16: the next request has every item before the last call in its place, with its encrypted content."""
    items = [called(at) if item["type"] == "function_call" else item for at, item in enumerate(found)]
    said = both(items)
    assert fold(streamed(items, cut=cut)) == said
    calls = [
        {"id": tool["id"], "type": "function", "function": {"name": tool["name"], "arguments": '{"city":"Rome"}'}}
        for tool in said["tools"]
    ]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "ok"} for call in calls]
    echoed = {"role": "assistant", "content": said["content"], **({"tool_calls": calls} if calls else {})}
    call = make_call({"messages": [*USER, echoed, *results]}, model="gpt-5-codex")
    body = json.loads(get_provider("openai").request(call).body)
    assert_openai_takes(body)
    sent = [item for item in body["input"][1:] if not item["type"].endswith("_output")]
    assert "".join(item["content"] for item in sent if item["type"] == "message") == (said["content"] or "")
    assert [item["call_id"] for item in sent if item["type"] == "function_call"] == [
        item["call_id"] for item in items if item["type"] == "function_call"
    ]
    stateful = [at for at, item in enumerate(items) if item["type"] == "reasoning" or item.get("phase")]
    places = [at for at, item in enumerate(items) if item["type"] == "function_call"]
    if not stateful or not places or places[-1] < stateful[0]:
        assert all(item["type"] != "reasoning" for item in sent)
        return
    early = [at for at in places if at < stateful[0]]
    if early and any(items[at]["type"] == "message" for at in range(early[0], early[-1])):
        return  # texts between calls before there was any state are said together
    expected = joined(items[: places[-1] + 1])
    assert joined(sent)[: len(expected)] == expected


def joined(items: list[Any]) -> list[Any]:
    """Items by what of them comes back; neighbouring texts without a phase are one."""
    found: list[Any] = []
    for item in items:
        if item["type"] == "reasoning":
            found.append((item["id"], item["encrypted_content"], [part["text"] for part in item["summary"]]))
        elif item["type"] == "function_call":
            found.append(item["call_id"])
        else:
            parts, phase = item["content"], item.get("phase")
            text = parts if isinstance(parts, str) else "".join(part["text"] for part in parts)
            if found and not phase and isinstance(found[-1], list) and not found[-1][1]:
                found[-1][0] += text
            else:
                found.append([text, phase])
    return found


def test_a_text_the_client_cut_comes_first_and_reasoning_stays_with_its_call() -> None:
    said = both([message(text("Let me look."), phase="commentary"), reasoning(1), called(1)])
    calls = [{"id": said["tools"][0]["id"], "type": "function", "function": {"name": "weather", "arguments": "{}"}}]
    for content in ("Let", None, "Let me look. And more."):
        echoed = {"role": "assistant", "content": content, "tool_calls": calls}
        call = make_call({"messages": [*USER, echoed]}, model="o3-pro")
        items = json.loads(get_provider("openai").request(call).body)["input"][1:]
        kinds = [item["type"] for item in items]
        assert (
            kinds
            == {
                "Let": ["message", "reasoning", "function_call"],
                None: ["reasoning", "function_call"],
                "Let me look. And more.": ["message", "reasoning", "function_call", "message"],
            }[content]
        )
        assert "".join(item["content"] for item in items if item["type"] == "message") == (content or "")


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"before": 3},
        {"before": [], "from": None, "to": 1},
        {
            "before": [3, [], ["x"], {"id": 1}, {"id": "r", "encrypted_content": "e", "summary": [3]}],
            "from": 2,
            "to": 2,
        },
        {"before": [[9, "shouting"], [1]], "from": 4, "to": 2},
        {"before": [], "from": -9, "to": 1 << 60},
    ],
)
def test_a_state_in_another_form_is_none(state: dict[str, Any]) -> None:
    tool_id = pack("c1", {"kind": "responses", "at": "openai", **state})
    calls = [{"id": tool_id, "type": "function", "function": {"name": "weather", "arguments": "{}"}}]
    payload = {"messages": [*USER, {"role": "assistant", "content": "hm", "tool_calls": calls}]}
    items = json.loads(get_provider("openai").request(make_call(payload, model="o3-pro")).body)["input"][1:]
    assert [item["type"] for item in items] == ["message", "function_call"]
    assert items[0]["content"] == "hm"


def test_another_platforms_reasoning_is_left_out() -> None:
    said = both([reasoning(1), called(1)])
    calls = [{"id": said["tools"][0]["id"], "type": "function", "function": {"name": "weather", "arguments": "{}"}}]
    payload = {"messages": [*USER, {"role": "assistant", "content": None, "tool_calls": calls}]}
    kinds = {}
    for name in ("openai", "azure"):
        body = json.loads(get_provider(name).request(make_call(payload, model="o3-pro")).body)
        kinds[name] = [item["type"] for item in body["input"][1:]]
    assert kinds == {"openai": ["reasoning", "function_call"], "azure": ["function_call"]}
    plain = json.loads(get_provider("openai").request(make_call(payload, model="gpt-4o")).body)
    assert plain["messages"][1]["tool_calls"][0]["id"] == "call_1"


def test_a_state_too_long_for_an_id_goes_without_its_summaries_or_not_at_all() -> None:
    import random

    noise = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=90_000))
    (tool,) = both([reasoning(1, noise), called(1)])["tools"]
    _, state = unpack(tool["id"])
    assert state is not None
    assert state["before"] == [{"id": "rs_1", "encrypted_content": "enc1", "summary": []}]
    (tool,) = both([reasoning(1, encrypted=noise), called(1)])["tools"]
    assert tool["id"] == "call_1"
