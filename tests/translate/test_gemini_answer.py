"""Gemini's answers and streams, read strictly by the openai SDK; errors; usage; what must come back with a call."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import ProviderError, UpstreamBrokenError
from sidecar.translate import PROVIDERS, Call, Head
from sidecar.translate.providers.gemini_answer import usage_of
from sidecar.translate.providers.gemini_content import NO_SIGNATURE
from sidecar.translate.signatures import MARK
from sidecar.types import Usage
from tests.translate.dialects.gemini import GeminiContents, assert_google_takes
from tests.translate.support import OK, USER, WEATHER, call_to, events, fold, run, sent, unfold

GEMINI = PROVIDERS["gemini"]
STREAM = GeminiContents().stream_head
SIG, SIG_2 = "c2lnbmF0dXJlIG9uZQ==", "c2lnL25hdHVyZSt0d28="


def chunk(*parts: Any, finish: str | None = None, **more: Any) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": list(parts)}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    usage = {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5}
    candidate |= more
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-3", "responseId": "r1"}


def sse(*chunks: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(item).encode() + b"\r\n\r\n" for item in chunks)


def asking(**payload: Any) -> Call:
    return call_to(GEMINI, {"stream_options": {"include_usage": True}, **payload})


def whole(*parts: Any, finish: str = "STOP", **more: Any) -> dict[str, Any]:
    body = json.dumps(chunk(*parts, finish=finish, **more)).encode()
    parsed: dict[str, Any] = json.loads(GEMINI.response(asking(), OK, body).body)
    unfold(json.dumps(parsed).encode())
    return parsed


def streamed(*chunks: Any, **payload: Any) -> bytes:
    return run(GEMINI.stream(asking(stream=True, **payload), STREAM), sse(*chunks))


def raised(*chunks: Any) -> ProviderError:
    translator = GEMINI.stream(asking(stream=True), STREAM)
    with pytest.raises(ProviderError) as caught:
        run(translator, sse(*chunks))
    return caught.value


def message(answer: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = answer["choices"][0]["message"]
    return found


def called(name: str = "weather", signature: str | None = None, **fields: Any) -> dict[str, Any]:
    part: dict[str, Any] = {"functionCall": {"name": name, **({"args": {}} | fields)}}
    return {**part, "thoughtSignature": signature} if signature else part


def test_a_thought_is_reasoning_and_a_signature_alone_is_not() -> None:
    """7b-70."""
    parts = [{"text": "hm", "thought": True}, {"text": "yes", "thoughtSignature": SIG}]
    found = message(whole(*parts))
    assert (found["reasoning_content"], found["content"]) == ("hm", "yes")
    folded = fold(streamed(chunk(parts[0]), chunk(parts[1], finish="STOP")))
    assert (folded["reasoning"], folded["content"]) == ("hm", "yes")


def test_stop_with_tool_calls_is_tool_calls() -> None:
    """7b-80: also when the finish chunk is separate and empty."""
    assert whole(called())["choices"][0]["finish_reason"] == "tool_calls"
    assert fold(streamed(chunk(called()), chunk(finish="STOP")))["finish"] == "tool_calls"
    assert whole(called(), finish="MAX_TOKENS")["choices"][0]["finish_reason"] == "length"


def test_tool_indexes_run_on_over_chunks_and_ids_differ() -> None:
    """7b-71."""
    stream = streamed(chunk(called("a"), called("b")), chunk(called("c")), chunk(finish="STOP"))
    tools = fold(stream)["tools"]
    assert [tool["name"] for tool in tools] == ["a", "b", "c"]
    assert len({tool["id"] for tool in tools}) == 3
    unstreamed = unfold(json.dumps(whole(called("a"), called("b"), called("c"))).encode())["tools"]
    assert unstreamed == tools


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ('{"a": 1.50,\n "b": [ ]}', '{"a":1.50,"b":[]}'),
        ("null", "{}"),
        ("{}", "{}"),
        ('"{\\"a\\":1}"', '{"a":1}'),
        ('"{\\"a\\":1}{\\"b\\":2}"', '{"a":1}{"b":2}'),
        ('""', "{}"),
        ("[1, 2]", "[1,2]"),
    ],
)
def test_arguments_of_all_kinds(args: str, text: str) -> None:
    """7b-85, 7b-102: never encoded twice, never a crash without `args`."""
    part = f'{{"functionCall":{{"name":"f","args":{args}}}}}'
    body = f'{{"candidates":[{{"content":{{"parts":[{part}]}},"finishReason":"STOP"}}]}}'.encode()
    answer = json.loads(GEMINI.response(asking(), OK, body).body)
    assert message(answer)["tool_calls"][0]["function"]["arguments"] == text
    bare = b'{"candidates":[{"content":{"parts":[{"functionCall":{"name":"f"}}]},"finishReason":"STOP"}]}'
    assert message(json.loads(GEMINI.response(asking(), OK, bare).body))["tool_calls"][0]["function"] == {
        "name": "f",
        "arguments": "{}",
    }


def test_the_clients_tool_name_comes_back() -> None:
    name = "städte.wetter/heute"
    tools = [{"type": "function", "function": {"name": name}}]
    declared = sent("gemini", {"tools": tools})["tools"][0]["functionDeclarations"][0]["name"]
    assert declared != name
    assert fold(streamed(chunk(called(declared), finish="STOP"), tools=tools))["tools"][0]["name"] == name


def echoed(answer: bytes, *, results: bool = True, model: str = GeminiContents.model) -> list[dict[str, Any]]:
    """The conversation's contents after a stock client echoed what the answer's standard fields say."""
    found = fold(answer) if answer.startswith(b"data:") else unfold(answer)
    calls = [
        {"id": t["id"], "type": "function", "function": {"name": t["name"], "arguments": json.dumps(t["arguments"])}}
        for t in found["tools"]
    ]
    history: list[dict[str, Any]] = [*USER, {"role": "assistant", "content": found["content"], "tool_calls": calls}]
    if results:
        history += [{"role": "tool", "tool_call_id": item["id"], "content": "sunny"} for item in calls]
    body = sent("gemini", {"messages": history, "tools": [WEATHER]}, model=model)
    assert_google_takes(body)
    contents: list[dict[str, Any]] = body["contents"]
    return contents


SHAPES: dict[str, list[dict[str, Any]]] = {
    "signed call": [called(signature=SIG)],
    "first of two signed, as in parallel calls": [called(signature=SIG), called("time")],
    "both signed": [called(signature=SIG), called("time", SIG_2)],
    "text, then a signed call": [{"text": "let me see"}, called(signature=SIG)],
    "signed text, then a call": [{"text": "let me see", "thoughtSignature": SIG}, called()],
    "text, an empty signed part, a call": [{"text": "ä \U0001f600"}, {"text": "", "thoughtSignature": SIG}, called()],
    "signed text between calls": [called(signature=SIG), {"text": "and", "thoughtSignature": SIG_2}, called("time")],
    "text between a signed call and another": [called(signature=SIG), {"text": "and"}, called("time", SIG_2)],
    "ids of its own": [called(signature=SIG, id="fc-1"), called("time", id="fc-2")],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_turn_comes_back_as_it_was_said(shape: str, is_stream: bool) -> None:
    """Promise 16 and 7b-82: signed and unsigned parts apart, each signature where it was."""
    parts = SHAPES[shape]
    if is_stream:
        answer = streamed(*(chunk(part) for part in parts), chunk(finish="STOP"), tools=[WEATHER])
    else:
        answer = json.dumps(whole(*parts)).encode()
    expected = json.loads(json.dumps(parts))
    first = next(part for part in expected if "functionCall" in part)
    first.setdefault("thoughtSignature", NO_SIGNATURE)
    _, turn, results = echoed(answer)
    assert turn == {"role": "model", "parts": expected}
    responses = [part["functionResponse"] for part in results["parts"]]
    assert [response.get("id") for response in responses] == [
        part["functionCall"].get("id") for part in expected if "functionCall" in part
    ]


def test_googles_own_tool_calls_come_back_too() -> None:
    own = [
        {
            "toolCall": {"toolType": "GOOGLE_SEARCH_WEB", "id": "s1", "args": {"queries": ["x"]}},
            "thoughtSignature": SIG,
        },
        {"toolResponse": {"toolType": "GOOGLE_SEARCH_WEB", "id": "s1", "response": {"r": 1}}},
        called(signature=SIG_2),
    ]
    assert echoed(json.dumps(whole(*own)).encode())[1]["parts"] == own


def test_before_three_a_lost_signature_needs_no_stand_in() -> None:
    answer = json.dumps(whole({"text": "x", "thoughtSignature": SIG}, called())).encode()
    parts = echoed(answer, model="gemini-2.5-flash")[1]["parts"]
    assert parts == [{"text": "x", "thoughtSignature": SIG}, called()]


def test_a_signature_of_another_platform_is_not_sent() -> None:
    answer = json.loads(json.dumps(whole(called(signature=SIG))))
    (tool,) = message(answer)["tool_calls"]
    assert MARK in tool["id"]
    history = [*USER, {"role": "assistant", "tool_calls": [tool]}]
    assert sent("vertex", {"messages": history})["contents"][1]["parts"][0]["thoughtSignature"] == NO_SIGNATURE
    assert MARK not in json.dumps(sent("openai", {"messages": history}))
    assert MARK not in json.dumps(sent("anthropic", {"messages": history}))


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(
        st.one_of(
            st.builds(lambda text: {"text": text}, st.text(st.characters(codec="utf-8"), max_size=6)),
            st.builds(
                lambda text: {"text": text, "thoughtSignature": SIG}, st.text(st.characters(codec="utf-8"), max_size=6)
            ),
            st.sampled_from([called(signature=SIG), called("time"), {"text": "t", "thought": True}]),
        ),
        max_size=6,
    ),
    cut=st.integers(0, 2000),
)
def test_any_turn_folds_to_the_same_however_it_is_cut(parts: list[dict[str, Any]], cut: int) -> None:
    stream = sse(*(chunk(part) for part in parts), chunk(finish="STOP"))
    translator = GEMINI.stream(asking(stream=True), STREAM)
    out = run(translator, stream[:cut], stream[cut:])
    plain = unfold(json.dumps(whole(*parts)).encode())
    assert fold(out) == plain
    assert out == run(GEMINI.stream(asking(stream=True), STREAM), stream)


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        *[(reason, "content_filter") for reason in ("SAFETY", "RECITATION", "PROHIBITED_CONTENT", "IMAGE_SAFETY")],
        *[(reason, "stop") for reason in ("OTHER", "NO_IMAGE", "MALFORMED_FUNCTION_CALL", "SOMETHING_NEW")],
    ],
)
def test_finish_reasons_keep_what_openai_has_no_word_for(reason: str, finish: str) -> None:
    """7b-84: a candidate without content is still a choice."""
    body = json.dumps({"candidates": [{"finishReason": reason, "index": 0}]}).encode()
    (choice,) = json.loads(GEMINI.response(asking(), OK, body).body)["choices"]
    assert choice["finish_reason"] == finish
    assert choice.get("native_finish_reason") == (None if reason in ("STOP", "MAX_TOKENS") else reason)
    assert choice["message"]["content"] == ""
    last = [item for item in events(streamed(chunk({"text": "x"}), json.loads(body))) if item != "[DONE]"][-2]
    assert {name: last["choices"][0].get(name) for name in ("finish_reason", "native_finish_reason")} == {
        "finish_reason": finish,
        "native_finish_reason": choice.get("native_finish_reason"),
    }


def test_a_blocked_prompt_is_a_content_policy_error() -> None:
    feedback = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 3}}
    with pytest.raises(ProviderError) as caught:
        GEMINI.response(asking(), OK, json.dumps(feedback).encode())
    for error in (caught.value, raised(feedback)):
        assert (error.kind, error.status, error.code) == ("content_policy", 400, "content_policy_violation")
        assert not error.is_retryable
        assert "PROHIBITED_CONTENT" in error.message
    with pytest.raises(UpstreamBrokenError):
        GEMINI.response(asking(), OK, b'{"usageMetadata":{"promptTokenCount":3}}')


def error_of(status: int, body: Any, headers: Any = ()) -> ProviderError:
    return GEMINI.error(asking(), Head(status, list(headers)), json.dumps(body).encode())


def google(code: int, status: str, message: str = "no", **detail: Any) -> dict[str, Any]:
    details = [{"@type": "type.googleapis.com/google.rpc.X", **detail}] if detail else []
    return {"error": {"code": code, "message": message, "status": status, "details": details}}


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, google(400, "INVALID_ARGUMENT"), "bad_request"),
        (400, google(400, "FAILED_PRECONDITION"), "bad_request"),
        (400, google(400, "INVALID_ARGUMENT", reason="API_KEY_INVALID"), "authentication"),
        (401, google(401, "UNAUTHENTICATED"), "authentication"),
        (403, google(403, "PERMISSION_DENIED"), "permission"),
        (403, google(403, "PERMISSION_DENIED", reason="BILLING_DISABLED"), "quota"),
        (404, google(404, "NOT_FOUND"), "not_found"),
        (429, google(429, "RESOURCE_EXHAUSTED"), "rate_limit"),
        (500, google(500, "INTERNAL"), "server"),
        (503, google(503, "UNAVAILABLE"), "overloaded"),
        (504, google(504, "DEADLINE_EXCEEDED"), "timeout"),
        (400, [google(400, "INVALID_ARGUMENT", reason="API_KEY_INVALID")], "authentication"),
        (400, google(400, "INVALID_ARGUMENT", "The input token count (9) exceeds the maximum (8)."), "context_window"),
        (400, google(400, "INVALID_ARGUMENT", "you said: 429 quota exceeded, token count exceeds"), "bad_request"),
        (502, "<html>", "server"),
    ],
)
def test_errors_by_status_and_code(status: int, body: Any, kind: str) -> None:
    """7b-99, 7b-100: never by what a user's text says."""
    assert error_of(status, body).kind == kind


def test_retry_delay_is_retry_after() -> None:
    body = google(429, "RESOURCE_EXHAUSTED", retryDelay="34.5s")
    assert error_of(429, body).retry_after_s == 34.5
    assert error_of(429, body, [(b"retry-after", b"2")]).retry_after_s == 2
    assert error_of(429, google(429, "RESOURCE_EXHAUSTED", retryDelay="soon")).retry_after_s is None


def test_an_error_before_the_first_chunk_keeps_its_status() -> None:
    """7b-78."""
    error = raised(google(400, "INVALID_ARGUMENT"))
    assert (error.kind, error.status) == ("bad_request", 400)
    assert raised(google(0, "UNAVAILABLE")).kind == "overloaded"
    with pytest.raises(ProviderError) as caught:
        GEMINI.response(asking(), OK, json.dumps(google(429, "RESOURCE_EXHAUSTED")).encode())
    assert caught.value.kind == "rate_limit"


def modality(**counts: int) -> list[dict[str, Any]]:
    return [{"modality": name, "tokenCount": value} for name, value in counts.items()]


@pytest.mark.parametrize(
    ("meta", "usage"),
    [
        ({"promptTokenCount": 9, "candidatesTokenCount": 4, "totalTokenCount": 13}, Usage(input=9, output=4)),
        # 7b-68: thoughts beside the candidates, or within them
        (
            {"promptTokenCount": 9, "candidatesTokenCount": 4, "thoughtsTokenCount": 3, "totalTokenCount": 16},
            Usage(input=9, output=4, reasoning=3),
        ),
        (
            {"promptTokenCount": 9, "candidatesTokenCount": 4, "thoughtsTokenCount": 3, "totalTokenCount": 13},
            Usage(input=9, output=1, reasoning=3),
        ),
        # all of the cap went into thinking
        (
            {"promptTokenCount": 9, "thoughtsTokenCount": 3, "totalTokenCount": 12},
            Usage(input=9, output=0, reasoning=3),
        ),
        ({"promptTokenCount": 9, "totalTokenCount": 9}, Usage(input=9, output=0)),
        (
            {
                "promptTokenCount": 100,
                "cachedContentTokenCount": 60,
                "candidatesTokenCount": 4,
                "promptTokensDetails": modality(TEXT=50, AUDIO=40, IMAGE=10),
                "cacheTokensDetails": modality(TEXT=30, AUDIO=30),
                "totalTokenCount": 104,
            },
            Usage(input=20, cached_input=60, output=4, audio_input=10, image_input=10),
        ),
        # what searching read is input too
        (
            {
                "promptTokenCount": 10,
                "toolUsePromptTokenCount": 90,
                "candidatesTokenCount": 4,
                "thoughtsTokenCount": 6,
                "totalTokenCount": 110,
            },
            Usage(input=100, output=4, reasoning=6),
        ),
        # 7b-69: repeated modalities are added, a missing count is none
        (
            {
                "promptTokenCount": 9,
                "candidatesTokenCount": 1304,
                "candidatesTokensDetails": [*modality(IMAGE=1000), *modality(IMAGE=290), {"modality": "TEXT"}],
                "totalTokenCount": 1313,
            },
            Usage(input=9, output=14, image_output=1290),
        ),
        (
            {"promptTokenCount": 4, "candidatesTokenCount": 50, "candidatesTokensDetails": modality(AUDIO=50)},
            Usage(input=4, output=0, audio_output=50),
        ),
        ({"promptTokenCount": None, "totalTokenCount": "x"}, Usage()),
        ([], Usage()),
    ],
)
def test_usage_in_disjoint_classes(meta: Any, usage: Usage) -> None:
    assert usage_of(meta) == usage
    if usage.is_known and isinstance(meta, dict) and "totalTokenCount" in meta:
        assert usage.total == meta["totalTokenCount"]


def test_the_last_usage_of_a_stream_counts_and_a_late_one_reaches_the_client() -> None:
    """7b-97."""
    first = chunk({"text": "a"})
    last = {**chunk(finish="STOP"), "usageMetadata": {}}
    late = {"usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 7, "totalTokenCount": 10}}
    assert fold(streamed(first, last))["usage"]["completion_tokens"] == 2
    folded = fold(streamed(first, last, late))
    assert (folded["usage"]["completion_tokens"], folded["content"]) == (7, "a")


def test_sources_are_annotations_in_characters() -> None:
    text = "Zürich is \U0001f600 sunny."
    end = len(text.encode())
    grounding = {
        "webSearchQueries": ["", "weather"],
        "groundingChunks": [{"web": {"uri": "https://a", "title": "A"}}, {"web": {"uri": "https://b"}}, {"web": {}}],
        "groundingSupports": [
            {"segment": {"endIndex": len("Zürich".encode())}, "groundingChunkIndices": [0]},
            {"segment": {"startIndex": end - 6, "endIndex": end}, "groundingChunkIndices": [1, 0, 2, 7]},
        ],
    }
    expected = [("https://a", "A", "Zürich"), ("https://b", "https://b", "sunny."), ("https://a", "A", "sunny.")]
    pieces = [chunk({"text": text[:9]}), chunk({"text": text[9:]}), chunk(finish="STOP", groundingMetadata=grounding)]
    (noted,) = [
        item["choices"][0]["delta"]["annotations"]
        for item in events(streamed(*pieces))
        if item != "[DONE]" and item["choices"] and "annotations" in item["choices"][0]["delta"]
    ]
    for notes in (message(whole({"text": text}, groundingMetadata=grounding))["annotations"], noted):
        found = [note["url_citation"] for note in notes]
        assert [(n["url"], n["title"], text[n["start_index"] : n["end_index"]]) for n in found] == expected
    fold(streamed(*pieces))


def test_sources_without_places_stand_for_the_whole_answer() -> None:
    grounding = {"groundingChunks": [{"web": {"uri": "https://a", "title": "A"}}]}
    (note,) = message(whole({"text": "abc"}, groundingMetadata=grounding))["annotations"]
    assert note["url_citation"] == {"url": "https://a", "title": "A", "start_index": 0, "end_index": 3}
    recited = {"citationSources": [{"startIndex": 1, "endIndex": 2, "uri": "https://c"}]}
    (note,) = message(whole({"text": "abc"}, citationMetadata=recited))["annotations"]
    assert note["url_citation"] == {"url": "https://c", "title": "https://c", "start_index": 1, "end_index": 2}


def test_logprobs() -> None:
    result = {
        "chosenCandidates": [{"token": "ä", "logProbability": -0.5}],
        "topCandidates": [{"candidates": [{"token": "ä", "logProbability": -0.5}, {"token": "b"}]}],
    }
    expected = {"token": "ä", "logprob": -0.5, "bytes": [195, 164]}
    (choice,) = whole({"text": "ä"}, logprobsResult=result)["choices"]
    assert choice["logprobs"]["content"][0]["token"] == "ä"
    assert choice["logprobs"]["content"][0]["top_logprobs"][0] == expected
    chunks = list(events(streamed(chunk({"text": "ä"}, finish="STOP", logprobsResult=result))))
    assert chunks[1]["choices"][0]["logprobs"] == choice["logprobs"]


def test_several_answers() -> None:
    both = chunk({"text": "a"}, finish="STOP")
    other = {**both["candidates"][0], "index": 1, "content": {"parts": [called()]}}
    both["candidates"].append(other)
    answer = json.loads(GEMINI.response(asking(n=2), OK, json.dumps(both).encode()).body)
    assert [(c["index"], c["finish_reason"]) for c in answer["choices"]] == [(0, "stop"), (1, "tool_calls")]
    chunks = [item for item in events(streamed(both, n=2)) if item != "[DONE]"]
    ends = [c for item in chunks for c in item["choices"] if c["finish_reason"]]
    assert [(c["index"], c["finish_reason"]) for c in ends] == [(0, "stop"), (1, "tool_calls")]
    translator = GEMINI.stream(asking(stream=True), STREAM)
    other["finishReason"] = None
    with pytest.raises(UpstreamBrokenError):
        run(translator, sse(both))


def test_sound_pictures_and_code() -> None:
    blob = {"inlineData": {"mimeType": "audio/L16;codec=pcm;rate=24000", "data": "AAAA"}}
    found = message(whole(blob))
    assert (found["audio"]["data"], found["content"]) == ("AAAA", None)
    picture = {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}
    found = message(whole({"text": "here"}, picture))
    assert found["images"] == [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    code = [
        {"executableCode": {"language": "PYTHON", "code": "print(1)"}},
        {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "1"}},
    ]
    assert message(whole(*code))["content"] == "\n```python\nprint(1)\n```\n\n```\n1\n```\n"
    deltas = [
        item["choices"][0]["delta"]
        for item in events(streamed(chunk(blob), chunk(picture, finish="STOP")))
        if item != "[DONE]" and item["choices"]
    ]
    assert deltas[1]["audio"]["data"] == "AAAA"
    assert deltas[2]["images"][0]["image_url"]["url"] == "data:image/png;base64,AAAA"


def test_a_chunk_without_parts_or_candidates_says_nothing() -> None:
    """7b-93, 7b-95, 7b-94: one id and one time over all chunks (`fold` holds it)."""
    odd = [{"candidates": []}, {"candidates": [{"content": {}}]}, {"candidates": [{"content": None, "index": None}]}]
    folded = fold(streamed(*odd, chunk({"text": "x", "thought": True}), chunk({"text": ""}), chunk(finish="STOP")))
    assert (folded["reasoning"], folded["content"], folded["finish"]) == ("x", "", "stop")


def test_a_finish_reason_is_the_end_only_when_the_body_ends() -> None:
    translator = GEMINI.stream(asking(stream=True), STREAM)
    out = translator.feed(sse(chunk({"text": "a"}, finish="STOP")))
    assert b'"finish_reason":"' not in out
    assert not translator.is_complete
    assert translator.end().endswith(b"data: [DONE]\n\n")
    assert translator.is_complete
