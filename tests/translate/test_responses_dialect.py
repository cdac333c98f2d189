"""The Responses API as a client dialect, without I/O: what is estimated, what goes upstream, what comes back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.errors import BadRequestError, NotFoundError, ProviderError, UpstreamBrokenError
from sidecar.translate import Call, Head, get_provider
from sidecar.translate.dialects import AT, CHAT, RESPONSES
from sidecar.translate.dialects.responses import CONTEXT_TOKENS, THOUGHT_TOKENS, ResponsesSniffer
from sidecar.translate.dialects.responses_native import native
from sidecar.translate.estimate import IMAGE_TOKENS, IMAGE_TOKENS_MOST
from sidecar.translate.media_bounds import FILE_TOKENS
from sidecar.translate.simulate import Plan
from sidecar.types import Deployment
from tests.translate.dialects.responses import ResponsesAPI, assert_openai_takes

PLAN = Plan(model="m", words=["one", " two"], input_tokens=11, output_tokens=5, thought="so it is")
EVENTS = list(ResponsesAPI().events(PLAN, {}))
STREAM = b"".join(EVENTS)


class Ids:
    def __init__(self, previous: tuple[str, str] | None = None) -> None:
        self.previous = previous
        self.lengths: list[int | None] = []

    def outward(self, provider_id: str, tokens: int | None) -> str:
        self.lengths.append(tokens)
        return provider_id + "_ours"


def call_of(payload: dict[str, Any] | None = None, **more: Any) -> Call:
    payload = {"model": "gpt", "input": "hi"} | (payload or {})
    return Call(payload=payload, raw=json.dumps(payload).encode(), model="gpt-1", **more)


def sent(provider: str = "openai", payload: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    found = json.loads(native(get_provider(provider)).request(call_of(payload, **more)).body)
    assert isinstance(found, dict)
    return found


def test_each_path_has_one_dialect() -> None:
    assert AT["/v1/chat/completions"] is AT["/chat/completions"] is CHAT
    assert AT["/v1/responses"] is AT["/responses"] is RESPONSES


@pytest.mark.parametrize(
    ("provider", "options", "path", "query"),
    [
        ("openai", {}, "/responses", ""),
        ("openai-responses", {}, "/responses", ""),
        ("azure", {}, "/openai/v1/responses", ""),
        ("azure", {"api_version": "preview"}, "/openai/v1/responses", "api-version=preview"),
        ("azure", {"api_version": "2025-04-01"}, "/openai/responses", "api-version=2025-04-01"),
    ],
)
def test_where_each_provider_has_it(provider: str, options: dict[str, str], path: str, query: str) -> None:
    request = native(get_provider(provider)).request(call_of(options=options))
    assert (request.path, request.query) == (path, query)


def test_all_but_what_must_differ_goes_on_as_it_is() -> None:
    payload: dict[str, Any] = {
        "instructions": "Be brief.", "store": True, "include": ["reasoning.encrypted_content"],
        "reasoning": {"effort": "low"}, "tools": [{"type": "web_search"}], "metadata": {"a": "b"}, "temperature": 0.1,
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi \u2028"}]}], "truncation": "auto",
    }  # fmt: skip
    found = sent(payload=payload)
    assert_openai_takes(found)
    assert found == {**payload, "model": "gpt-1"}
    assert list(found)[:2] == ["model", "input"]


def test_defaults_of_the_deployment_stand_where_the_client_says_nothing() -> None:
    params = {"temperature": 0.5, "reasoning_effort": "high", "max_tokens": 77, "seed": 3, "base_model": "gpt-5"}
    found = sent(params=params)
    assert found == {
        "model": "gpt-1", "input": "hi", "temperature": 0.5, "reasoning": {"effort": "high"}, "max_output_tokens": 77,
    }  # fmt: skip
    given = {"temperature": 0, "reasoning": {"effort": "low"}, "max_output_tokens": 20}
    assert sent(payload=given, params=params) == {"model": "gpt-1", "input": "hi"} | given
    assert sent(params=params, edits={"output_cap": 50})["max_output_tokens"] == 50


def test_a_previous_response_goes_by_the_providers_name_or_not_at_all() -> None:
    payload = {"previous_response_id": "resp_1_ours"}
    found = sent(payload=payload, ids=Ids(("resp_1_ours", "resp_1")))
    assert found["previous_response_id"] == "resp_1"
    for ids in (None, Ids()):
        with pytest.raises(NotFoundError, match="resp_1_ours"):
            sent(payload=payload, ids=ids)


def test_an_operator_may_let_clients_share_what_is_kept() -> None:
    payload = {"conversation": "conv_1", "input": [{"type": "item_reference", "id": "msg_1"}]}
    found = sent(payload=payload, allowed_params=frozenset({"conversation", "item_reference"}))
    assert found == {"model": "gpt-1"} | payload
    with pytest.raises(BadRequestError, match="item_reference"):
        sent(payload=payload, allowed_params=frozenset({"conversation"}))


def test_an_answer_gets_its_clients_ids_and_keeps_all_else() -> None:
    whole = json.loads(ResponsesAPI().answer(PLAN)) | {"previous_response_id": "resp_0", "extra": [1.0, "é\u2028"]}
    ids = Ids(("resp_0_ours", "resp_0"))
    reply = native(get_provider("openai")).response(call_of(ids=ids), Head(200), json.dumps(whole).encode())
    found = json.loads(reply.body)
    assert (found.pop("id"), found.pop("previous_response_id")) == ("resp_sim_ours", "resp_0_ours")
    assert found == {name: value for name, value in whole.items() if name in found}
    assert len(found) == len(whole) - 2
    assert (reply.usage.input, reply.usage.total) == (11, 16)
    assert ids.lengths == [16]


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"{}", b'"x"', b"<html>", b'{"status":"in_progress","output":[]}', b'{"status":"completed"}',
     b'{"status":"completed","output":{}}', b'{"status":"completed","output":[],"usage":', b"\xff" * 9],
)  # fmt: skip
def test_what_is_no_whole_response_is_broken(body: bytes) -> None:
    with pytest.raises(UpstreamBrokenError):
        native(get_provider("openai")).response(call_of(), Head(200), body)


def stream_of(pieces: list[bytes], ids: Ids | None = None) -> tuple[bytes, Any]:
    stream = native(get_provider("openai")).stream(call_of(ids=ids), Head(200))
    return b"".join([*(stream.feed(piece) for piece in pieces), stream.end()]), stream


def test_a_stream_passes_byte_for_byte_however_it_is_cut() -> None:
    assert stream_of([STREAM])[0] == STREAM
    for size in (1, 2, 3, 7, 64, 1000):
        out, stream = stream_of([STREAM[at : at + size] for at in range(0, len(STREAM), size)])
        assert out == STREAM
        assert (stream.usage.input, stream.usage.total) == (11, 16)
    crlf = STREAM.replace(b"\n", b"\r\n")
    assert stream_of([crlf])[0] == crlf


def test_all_events_that_name_the_response_name_it_alike() -> None:
    out, _ = stream_of([STREAM], Ids())
    assert out.count(b'"id":"resp_sim_ours"') == 3
    assert out.replace(b"resp_sim_ours", b"resp_sim") == STREAM


@pytest.mark.parametrize("tail", [b"data: [DONE]\n\n", b": ping\n\n", b"event: more\ndata: {}\n\n"])
def test_nothing_follows_the_end(tail: bytes) -> None:
    assert stream_of([STREAM, tail])[0] == STREAM


def test_servers_that_name_no_events_or_leave_out_the_last_blank_line_are_understood() -> None:
    plain = b"".join(event.partition(b"\n")[2] for event in EVENTS)
    assert stream_of([plain])[0] == plain
    assert stream_of([STREAM[:-1]])[0] == STREAM


def test_the_end_is_held_until_the_body_ends_and_a_cut_stream_never_has_it() -> None:
    for number in range(len(EVENTS)):
        stream = native(get_provider("openai")).stream(call_of(), Head(200))
        out = stream.feed(b"".join(EVENTS[:number]))
        assert b"response.completed" not in out
        with pytest.raises(UpstreamBrokenError):
            stream.end()
    stream = native(get_provider("openai")).stream(call_of(), Head(200))
    assert stream.feed(STREAM) == b"".join(EVENTS[:-1])
    assert stream.end() == EVENTS[-1]


def test_content_begins_with_the_first_thing_a_client_could_show() -> None:
    stream = native(get_provider("openai")).stream(call_of(), Head(200))
    first = next(event for event in EVENTS if stream.feed(event) and stream.content_started)
    assert b"reasoning_summary_text.delta" in first
    for item in ("function_call", "web_search_call"):
        stream = native(get_provider("openai")).stream(call_of(), Head(200))
        added = {"type": "response.output_item.added", "item": {"type": item}}
        stream.feed(EVENTS[0] + b"data: " + json.dumps(added).encode() + b"\n\n")
        assert stream.content_started


@pytest.mark.parametrize(
    "event",
    [
        b'event: error\ndata: {"type":"error","code":"rate_limit_exceeded","message":"slow","param":null}\n\n',
        b'event: error\ndata: {"type":"error","error":{"code":"rate_limit_exceeded","message":"slow"}}\n\n',
        b'data: {"error":{"code":"rate_limit_exceeded","message":"slow"}}\n\n',
        b'data: {"type":"response.failed","response":{"error":{"code":"rate_limit_exceeded","message":"slow"}}}\n\n',
    ],
)
def test_errors_in_a_stream_are_what_they_say(event: bytes) -> None:
    stream = native(get_provider("openai")).stream(call_of(), Head(200))
    with pytest.raises(ProviderError, match="slow") as caught:
        stream.feed(event)
    assert (caught.value.status, caught.value.kind) == (429, "rate_limit")


def estimate(payload: dict[str, Any], *served_by: Deployment) -> int:
    return RESPONSES.input_tokens(payload, len(json.dumps(payload)), served_by)


def test_the_estimate_is_never_under() -> None:
    assert estimate({"input": "x" * 500}) > 500
    assert estimate({"input": [{"role": "user", "content": "x" * 500}]}) > 500
    picture = {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgoAAAAN" + "A" * 90_000}
    seen = {"model": "gpt-4.1", "input": [{"role": "user", "content": [picture]}]}
    assert IMAGE_TOKENS < estimate(seen) < IMAGE_TOKENS + 500
    newer = Deployment("d", "g", "openai", "gpt-5.6", "http://x")
    assert estimate(seen, newer) > IMAGE_TOKENS_MOST
    chosen = {"input": [{"role": "user", "content": [picture | {"detail": "high"}]}]}
    assert IMAGE_TOKENS < estimate(chosen, newer) < IMAGE_TOKENS + 500
    shot = {"type": "computer_call_output", "call_id": "c", "output": {"type": "computer_screenshot", "file_id": "f"}}
    assert estimate({"input": [shot]}) > IMAGE_TOKENS
    given = {
        "type": "function_call_output",
        "call_id": "c",
        "output": [picture, {"type": "input_file", "file_id": "f"}],
    }
    assert estimate({"input": [given]}) > IMAGE_TOKENS + FILE_TOKENS
    mini = Deployment("d", "g", "openai", "gpt-4o-mini", "http://x")
    assert estimate({"input": [{"role": "user", "content": [picture]}]}, mini) > IMAGE_TOKENS_MOST
    assert estimate({"input": "x", "prompt": {"id": "p"}}) > FILE_TOKENS
    for kept in ({"conversation": "c", "input": "x"}, {"input": [{"type": "item_reference", "id": "m"}]}):
        assert estimate(kept) > CONTEXT_TOKENS
    thought = {"type": "reasoning", "id": "rs_1", "summary": []}
    assert estimate({"input": [thought, {"type": "message", "content": "x"}]}) > THOUGHT_TOKENS
    assert 2 * THOUGHT_TOKENS < estimate({"input": [thought, thought]}) < 2 * THOUGHT_TOKENS + 1000
    assert estimate({"input": [thought] * 50}) < CONTEXT_TOKENS + 10_000
    assert estimate({"input": [thought | {"encrypted_content": "A" * 100}]}) < 1000, "it is in the body"


@pytest.mark.parametrize("cap", [0, -1, True, "16", 16.0, None])
def test_what_is_no_bound_of_the_output_is_none(cap: Any) -> None:
    assert RESPONSES.output_tokens({"max_output_tokens": cap}) is None
    assert RESPONSES.output_tokens({"max_output_tokens": 16}) == 16


def test_the_end_of_a_stream_nobody_translates_is_found_wherever_it_is_cut() -> None:
    last = EVENTS[-1]
    begin = b"".join(EVENTS[:-1])
    assert RESPONSES.end_at(begin) == -1
    assert RESPONSES.end_at(begin + last) == len(begin)
    for cut in range(1, len(last)):
        assert RESPONSES.end_at(begin + last[:cut]) == len(begin)
    data_only = last.partition(b"\n")[2]
    assert RESPONSES.end_at(data_only) == 0
    assert RESPONSES.end_at(last.replace(b"event: ", b"event:")) == 0
    assert RESPONSES.end_at(data_only.replace(b'{"type":"', b'{"type": "')) == 0
    text = b'data: {"type":"response.output_text.delta","delta":"event: response.completed"}\n\n'
    assert RESPONSES.end_at(text) == -1


@pytest.mark.parametrize("size", [1, 5, 100, 100_000])
def test_usage_is_read_from_what_nobody_translates(size: int) -> None:
    for body, is_stream in ((STREAM, True), (ResponsesAPI().answer(PLAN), False)):
        sniffer = ResponsesSniffer(is_stream=is_stream)
        for at in range(0, len(body), size):
            sniffer.feed(body[at : at + size])
        assert (sniffer.usage.input, sniffer.usage.output, sniffer.usage.reasoning) == (11, 2, 3)
    for junk in (b"data: {\n\n", b"\xff\n\n", b'data: {"type":"response.completed","usage":1,"response":3}\n\n'):
        sniffer = ResponsesSniffer(is_stream=True)
        sniffer.feed(junk)
        assert not sniffer.usage.is_known


def test_a_whole_error_becomes_an_event_of_this_dialect() -> None:
    body = b'{"error":{"message":"No.","type":"x","param":null,"code":"c"}}'
    name, _, data = RESPONSES.event_of(body).partition(b"\ndata: ")
    event = json.loads(data)
    assert (name, event["type"], event["code"], event["error"]["message"]) == (b"event: error", "error", "c", "No.")
    assert RESPONSES.event_of(b"line\nline") == b"data: line\ndata: line\n\n"
