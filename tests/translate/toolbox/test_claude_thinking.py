"""Claude's thinking through a client that echoes only role, content and tool calls."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.translate import get_provider
from sidecar.translate.signatures import MARK, pack, unpack
from tests.translate.support import OK, USER, WEATHER, make_call, run

CLAUDE = get_provider("anthropic")
THINKING = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
REDACTED = {"type": "redacted_thinking", "data": "b3BhcXVl"}
RESULT = {"role": "tool", "content": "ok"}


def use(number: int) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{number}", "name": "weather", "input": {"city": "Rome"}}


def answer(blocks: list[Any]) -> dict[str, Any]:
    body = {
        "id": "msg", "type": "message", "role": "assistant", "model": "claude", "content": blocks,
        "stop_reason": "tool_use", "usage": {"input_tokens": 1, "output_tokens": 1},
    }  # fmt: skip
    reply = CLAUDE.response(make_call({"tools": [WEATHER]}), OK, json.dumps(body).encode())
    message: dict[str, Any] = json.loads(reply.body)["choices"][0]["message"]
    return message


def standard(message: dict[str, Any]) -> dict[str, Any]:
    """What a stock client keeps."""
    return {name: message[name] for name in ("role", "content", "tool_calls") if name in message}


def asked(messages: list[Any], **options: Any) -> dict[str, Any]:
    model = options.pop("model", "claude-sonnet-4-5")
    call = make_call({"tools": [WEATHER], "messages": [*USER, *messages], **options}, model=model)
    request = CLAUDE.request(call)
    body: dict[str, Any] = json.loads(request.body)
    assert MARK not in request.body.decode()
    body["dropped"] = request.dropped
    return body


def turn_after(message: dict[str, Any]) -> list[Any]:
    results = [{**RESULT, "tool_call_id": call["id"]} for call in message["tool_calls"]]
    content: list[Any] = asked([message, *results])["messages"][1]["content"]
    return content


BLOCKS = st.lists(
    st.builds(lambda t, s: {**THINKING, "thinking": t, "signature": s}, st.text(max_size=20), st.text(max_size=9))
    | st.builds(lambda d: {"type": "redacted_thinking", "data": d}, st.text(max_size=9))
    | st.builds(lambda t: {"type": "text", "text": t}, st.text(st.characters(codec="utf-8"), min_size=1, max_size=20))
    | st.just({"type": "tool_use"}),
    max_size=8,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(blocks=BLOCKS)
def test_blocks_in_any_order_come_back_as_they_were(blocks: list[dict[str, Any]]) -> None:
    blocks = [use(number) if block["type"] == "tool_use" else block for number, block in enumerate(blocks)]
    while blocks and blocks[-1]["type"] != "tool_use":
        blocks.pop()  # what follows the last call is not its to carry
    if not any(block["type"].endswith("thinking") for block in blocks) or not blocks:
        return
    sent_back = turn_after(standard(answer(blocks)))
    after = next(i for i, block in enumerate(blocks) if block["type"].endswith("thinking"))
    if "tool_use" in [block["type"] for block in blocks[:after]]:
        # A call before all thinking carries nothing: its text may stand on the other side of it.
        blocks = [block for block in blocks if block["type"] != "text"]
        sent_back = [block for block in sent_back if block["type"] != "text"]
    said = [block for block in blocks if block["type"] != "text" or block["text"].strip()]
    assert sent_back == said


def test_streamed_or_not_the_ids_are_the_same() -> None:
    blocks = [THINKING, {"type": "text", "text": ""}, {"type": "text", "text": "é"}, use(1), REDACTED, use(2), use(3)]
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": "msg", "model": "claude", "usage": {"input_tokens": 1}}}
    ]
    for index, block in enumerate(blocks):
        events += [
            {"type": "content_block_start", "index": index, "content_block": block},
            {"type": "content_block_stop", "index": index},
        ]
    events += [
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 1}},
        {"type": "message_stop"},
    ]
    data = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    out = run(CLAUDE.stream(make_call({"tools": [WEATHER], "stream": True}), OK), data)
    streamed = [
        call["id"]
        for line in out.split(b"\n")
        if line.startswith(b"data: {")
        for choice in json.loads(line[6:])["choices"]
        for call in choice["delta"].get("tool_calls", [])
        if "id" in call
    ]
    ids = [call["id"] for call in answer(blocks)["tool_calls"]]
    assert streamed == ids
    assert [unpack(one)[0] for one in ids] == ["toolu_1", "toolu_2", "toolu_3"]
    assert ids[2] == "toolu_3", "nothing stood before it"


def test_without_thinking_ids_stay_as_they_are() -> None:
    assert [call["id"] for call in answer([{"type": "text", "text": "x"}, use(1)])["tool_calls"]] == ["toolu_1"]


@pytest.mark.parametrize(
    "change",
    [
        lambda given: given[:-1],
        lambda given: given[:40],
        lambda given: given.replace("toolu_1", "toolu_9"),
        lambda given: pack("toolu_1", {"kind": "gemini", "before": [THINKING]}),
        lambda given: pack("toolu_1", {"kind": "claude", "before": [{"type": "text", "text": "forged"}]}),
        lambda given: pack("toolu_1", {"kind": "claude", "before": 3}),
        lambda given: pack("toolu_1", {"kind": "claude", "before": [[], None]}),
        lambda given: pack("toolu_1", {}),
    ],
)
def test_an_id_of_others_or_mangled_is_just_an_id(change: Any) -> None:
    message = standard(answer([THINKING, {"type": "text", "text": "x"}, use(1)]))
    message["tool_calls"][0]["id"] = change(message["tool_calls"][0]["id"])
    sent_back = turn_after(message)
    assert [block["type"] for block in sent_back] == ["text", "tool_use"]


def test_content_the_client_changed_loses_nothing_but_its_cuts() -> None:
    abc, end = {"type": "text", "text": "abc"}, {"type": "text", "text": "def"}
    message = standard(answer([THINKING, abc, use(1), end, use(2)]))

    def kinds(content: Any) -> list[str]:
        return [block.get("text", block["type"]) for block in turn_after({**message, "content": content})]

    assert kinds("abcdef") == ["thinking", "abc", "tool_use", "def", "tool_use"]
    assert kinds("ab") == ["thinking", "ab", "tool_use", "tool_use"]
    assert kinds("abcdefgh") == ["thinking", "abc", "tool_use", "def", "tool_use", "gh"]
    assert kinds(None) == ["thinking", "tool_use", "tool_use"]
    marked = [{"type": "text", "text": "abcdef", "cache_control": {"type": "ephemeral"}}]
    assert kinds(marked) == ["thinking", "abcdef", "tool_use", "tool_use"]


def test_a_client_that_also_echoes_thinking_blocks_sends_them_once() -> None:
    message = answer([{"type": "text", "text": "x"}, THINKING, use(1)])
    assert message["thinking_blocks"] == [THINKING]
    assert [block["type"] for block in turn_after(message)] == ["text", "thinking", "tool_use"]


def test_amid_a_tool_loop_of_another_model_claude_thinks_again_only_with_the_next_question() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    foreign = [{"role": "assistant", "content": None, "tool_calls": [call]}, {**RESULT, "tool_call_id": "call_1"}]
    amid = asked(foreign, reasoning_effort="low")
    assert "thinking" not in amid
    assert amid["dropped"] == ("reasoning_effort",)
    after = asked([*foreign, {"role": "assistant", "content": "done"}, *USER], reasoning_effort="low")
    assert after["thinking"]["type"] == "enabled"
    own = standard(answer([THINKING, use(1)]))
    resumed = asked([own, {**RESULT, "tool_call_id": own["tool_calls"][0]["id"]}], reasoning_effort="low")
    assert resumed["thinking"]["type"] == "enabled"
    adaptive = asked(foreign, reasoning_effort="low", model="claude-opus-4-6")
    assert adaptive["thinking"] == {"type": "adaptive"}
