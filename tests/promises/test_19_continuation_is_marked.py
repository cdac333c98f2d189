"""*One deadline, one attempt budget*, the opt-in: where `continuation` is on, another attempt goes on with a stream
that broke after content began, and the client is told before its first word. Everything else stays as without it: one
finish, one end, one budget of attempts, a row and a price for each attempt, an error event where nobody goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import openai
import pytest

from sidecar.continuation import GO_ON
from tests.faults.provider import COMPLETION_TOKENS, PROMPT_TOKENS, WORDS, Fault, FaultProvider
from tests.promises.support import Running, body, eventually, model_for, served
from tests.promises.test_19_one_deadline_one_budget import OTHER, WHOLE, place, routed

pytestmark = pytest.mark.anyio

LATE = ("cut", "reset", "stall", "malform", "ends", "torn")
FIRST_WORD = {"openai": 1, "anthropic": 2}
STALLED = {"timeouts": {"gap_s": 0.2}}
HEDGE = {"after_s": 0.05, "share": 1}


def models_of(first: FaultProvider, second: FaultProvider) -> list[dict[str, Any]]:
    def group(name: str, *places: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"name": name, "deployments": [p | {"order": n} for n, p in enumerate(places, 1)], **more}

    return [
        group("openai", place("openai", first), place("anthropic", second)),
        group("anthropic", place("anthropic", first), place("openai", second)),
        group("openai-impatient", place("openai", first, **STALLED), place("anthropic", second)),
        group("anthropic-impatient", place("anthropic", first, **STALLED), place("openai", second)),
        group("same-impatient", place("openai", first, **STALLED), place("openai", second)),
        group("same", place("openai", first), place("openai", second)),
        group("three", place("openai", first), place("anthropic", second), place("openai", second, model="third")),
        group("lone", place("openai", first)),
        group("group", place("openai", first)),
        group("fallback", place("anthropic", second)),
        group("off", place("openai", first), place("anthropic", second), continuation=False),
        group("form", place("openai", first, params={"response_format": {"type": "json_object"}}),
              place("openai", second)),
        group("hedged", place("openai", first), place("openai", second), place("anthropic", second), hedge=HEDGE),
        group("hedged-pair", place("openai", first), place("openai", second), hedge=HEDGE),
        group("sheds", place("openai", first), place("anthropic", second, drop_params=True)),
        group("narrow", place("openai", first), place("openai", second, limits={"concurrency": 1})),
    ]  # fmt: skip


@pytest.fixture(scope="module")
async def gateway_of_pair(
    pair: tuple[FaultProvider, FaultProvider], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    top = routed({}, fallbacks={"group": ["fallback"]}, continuation=True) | {"models": models_of(*pair)}
    async with served(tmp_path_factory.mktemp("gateway"), pair[0].base_url, top=top) as running:
        yield running


@pytest.fixture
def gateway(gateway_of_pair: Running) -> Running:
    return gateway_of_pair


def chunks_of(answer: httpx2.Response) -> list[dict[str, Any]]:
    """Of an answer that came to its end."""
    assert answer.status_code == 200, answer.text
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]", answer.text[-300:]
    assert events.count("[DONE]") == 1
    return [json.loads(event) for event in events[:-1]]


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def marks_of(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [chunk["sidecar"] for chunk in chunks if "continued_by" in chunk.get("sidecar", {})]


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.status_code == 200
    assert "[DONE]" not in answer.text
    *_, last = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    found: dict[str, Any] = json.loads(last[6:])["error"]
    return found


def texts_in(seen: Any) -> list[tuple[str, str]]:
    """(role, text) of a request's messages, in either dialect."""
    found = []
    for message in seen.json()["messages"]:
        content = message["content"]
        parts = content if isinstance(content, list) else [{"text": content}]
        found.append((message["role"], "".join(part["text"] for part in parts)))
    return found


async def is_idle(running: Running) -> None:
    await eventually(lambda: running.live_exchanges == 0 and running.taken_slots == 0, name=lambda: "holds and slots")


@pytest.mark.parametrize("model", ["openai", "anthropic"])
@pytest.mark.parametrize("kind", LATE)
async def test_whoever_goes_on_is_named_before_its_first_word(
    gateway: Running, first: FaultProvider, second: FaultProvider, model: str, kind: Any
) -> None:
    key = await gateway.mint(max_budget=1)
    counted, asked = gateway.counted_nano, model_for(kind, model)
    for words in range(1, len(WORDS) + 1):
        first.reset(), second.reset()
        first.script(Fault(kind, after=FIRST_WORD[model] + words, drip_s=0.002))
        answer = await gateway.chat(key, body(asked, stream=True, stream_options={"include_usage": True}))
        chunks = chunks_of(answer)
        begun = "".join(WORDS[:words])
        if kind == "reset":  # it may overtake words before it, and be one before content
            begun = text_of(chunks).removesuffix(WHOLE)
            words = len(begun.split())
            if not words:
                continue
            assert begun == "".join(WORDS[:words])
        assert text_of(chunks) == begun + WHOLE
        (mark,) = marks_of(chunks)
        assert mark["continued_by"] == f"{asked}#1:{OTHER[model]}"
        assert mark["model"] == f"{OTHER[model]}-1"
        assert mark["because"] in ("upstream_broken", "upstream_timeout_gap")
        at = next(n for n, chunk in enumerate(chunks) if "sidecar" in chunk)
        assert chunks[at]["choices"] == []
        assert (text_of(chunks[:at]), text_of(chunks[at:])) == (begun, WHOLE)
        assert answer.text.index("\n: the answer broke off") < answer.text.index('"continued_by"')
        assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1, "one answer"
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        assert sum(choice["delta"].get("role") is not None for choice in choices) == 1
        assert [c["finish_reason"] for c in choices if c.get("finish_reason")] == ["stop"]
        assert texts_in(second.requests[0]) == [("user", "hi"), ("assistant", begun), ("user", GO_ON)]
        (usage,) = [chunk for chunk in chunks if chunk.get("usage")]
        guess = usage["sidecar"]["estimated_usage"]
        assert guess["completion_tokens"] in (words, words - 1), "Anthropic tells of the first token"
        assert usage["usage"]["completion_tokens"] == words + COMPLETION_TOKENS
        assert usage["usage"]["prompt_tokens"] >= 2 * PROMPT_TOKENS
        assert (guess["prompt_tokens"] == 0) == (model == "anthropic"), "Anthropic tells of the input first"
    rows = await gateway.rows(key, at_least=2 * len(WORDS))
    if kind != "reset":
        assert [(row["attempt"], row["outcome"]) for row in rows] == [(1, "incomplete"), (2, "ok")] * len(WORDS)
    assert all(float(row["spend"]) > 0 for row in rows)
    await is_idle(gateway)
    spent = sum(round(float(row["spend"]) * 1e9) for row in rows)
    assert gateway.counted_nano - counted == spent, "what was held is settled to the rows"
    assert await gateway.spend(key) == pytest.approx(spent / 1e9)


@pytest.mark.parametrize("model", ["openai", "anthropic"])
async def test_the_stock_sdk_reads_the_whole_text_and_the_mark(
    gateway: Running, first: FaultProvider, second: FaultProvider, model: str
) -> None:
    key = await gateway.mint()
    client = openai.AsyncOpenAI(api_key=key, base_url=f"{gateway.url}/v1", max_retries=0)
    async with client:
        first.script(Fault("cut", after=FIRST_WORD[model] + 2, drip_s=0.002))
        text, marks = "", []
        messages: Any = [{"role": "user", "content": "hi"}]
        async for chunk in await client.chat.completions.create(model=model, messages=messages, stream=True):
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
            if (mark := (chunk.model_extra or {}).get("sidecar")) is not None:
                marks.append((text, mark["continued_by"]))
        assert text == "one two" + WHOLE
        assert marks == [("one two", f"{model}#1:{OTHER[model]}")]
        first.script(Fault("cut", after=FIRST_WORD[model] + 2, drip_s=0.002))
        async with client.chat.completions.stream(model=model, messages=messages) as stream:
            folded = await stream.get_final_completion()
        assert folded.choices[0].message.content == "one two" + WHOLE
        assert folded.choices[0].message.role == "assistant"
        assert folded.choices[0].finish_reason == "stop"


async def test_a_usage_that_was_not_asked_for_is_not_sent(gateway: Running, first: FaultProvider) -> None:
    first.script(Fault("cut", after=3, drip_s=0.002))
    chunks = chunks_of(await gateway.chat(await gateway.mint(), body("same", stream=True)))
    assert text_of(chunks) == "one two" + WHOLE
    assert not [chunk for chunk in chunks if chunk.get("usage")]


async def test_a_fallback_goes_on_and_only_one_the_key_may_call(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    first.script(Fault("cut", after=3, drip_s=0.002))
    chunks = chunks_of(await gateway.chat(await gateway.mint(), body("group", stream=True)))
    assert [mark["continued_by"] for mark in marks_of(chunks)] == ["fallback#0:anthropic"]
    first.reset(), second.reset()
    first.script(*[Fault("cut", after=3, drip_s=0.002)] * 3)
    answer = await gateway.chat(await gateway.mint(models=["group"]), body("group", stream=True))
    assert error_of(answer)["code"] == "upstream_broken"
    assert (len(first.requests), second.requests) == (3, []), "its own, as long as there are attempts"


async def test_a_lone_deployment_goes_on_with_its_own_answer(gateway: Running, first: FaultProvider) -> None:
    first.script(Fault("cut", after=2, drip_s=0.002), Fault("cut", after=4, drip_s=0.002))
    chunks = chunks_of(await gateway.chat(await gateway.mint(), body("lone", stream=True)))
    assert text_of(chunks) == "one" + "one two three" + WHOLE
    assert len(marks_of(chunks)) == 2
    assert texts_in(first.requests[2])[1] == ("assistant", "oneone two three")


async def test_what_breaks_again_is_gone_on_with_again_until_the_attempts_are_used_up(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    key = await gateway.mint(max_budget=1)
    first.script(Fault("cut", after=2, drip_s=0.002))
    second.script(Fault("cut", after=3, drip_s=0.002))
    answer = await gateway.chat(key, body("three", stream=True, stream_options={"include_usage": True}))
    chunks = chunks_of(answer)
    assert text_of(chunks) == "one" + "one" + WHOLE
    assert [m["continued_by"] for m in marks_of(chunks)] == ["three#1:anthropic", "three#2:openai"]
    (usage,) = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert usage["completion_tokens"] == 2 + COMPLETION_TOKENS
    first.reset(), second.reset()
    first.script(Fault("cut", after=2, drip_s=0.002))
    second.script(Fault("status", status=500), Fault("cut", after=2, drip_s=0.002))
    answer = await gateway.chat(key, body("three", stream=True))
    error = error_of(answer)
    assert error["code"] == "upstreams_failed"
    assert all(f"three#{n}" in error["message"] for n in range(3)), "each attempt's reason"
    assert answer.text.count("continued_by") == 1, "one that had no content is not named"
    rows = await gateway.rows(key, at_least=6)
    assert [row["outcome"] for row in rows] == [
        "incomplete", "incomplete", "ok", "incomplete", "provider_error", "incomplete"
    ]  # fmt: skip
    assert await gateway.spend(key) == pytest.approx(sum(float(row["spend"]) for row in rows))
    await is_idle(gateway)


def events(*deltas: Any, **more: Any) -> Fault:
    """A stream of these deltas, broken before its finish reason."""
    base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    lines = [base | {"choices": [{"index": 0, "delta": delta, "finish_reason": None} | more]} for delta in deltas]
    raw = b"".join(b"data: " + json.dumps(line).encode() + b"\n\n" for line in lines)
    return Fault("status", status=200, body=raw, headers=(("content-type", "text/event-stream"),))


TEXT = {"role": "assistant", "content": "so"}
CALL = {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{"}}]}
NOT_PLAIN = {
    "a tool call": events(TEXT, CALL),
    "a refusal": events(TEXT, {"refusal": "no"}),
    "sound": events(TEXT, {"audio": {"id": "a"}}),
    "signed thoughts": events({"thinking_blocks": [{"signature": "x"}]}, TEXT),
    "probabilities": events(TEXT, logprobs={"content": [{"token": "so", "logprob": -1, "top_logprobs": []}]}),
    "another choice": events(TEXT, index=1),
    "an end": events(TEXT, {}, finish_reason="stop"),
}


@pytest.mark.parametrize("what", NOT_PLAIN)
async def test_what_is_not_plain_text_of_one_choice_ends_in_the_error(
    gateway: Running, first: FaultProvider, second: FaultProvider, what: str
) -> None:
    first.script(NOT_PLAIN[what])
    answer = await gateway.chat(await gateway.mint(), body("same", stream=True))
    assert error_of(answer)["code"] == "upstream_broken"
    assert second.requests == []


@pytest.mark.parametrize(
    "asked",
    [
        {"n": 2},
        {"logprobs": True},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}},
        {"modalities": ["text", "audio"], "audio": {"voice": "a", "format": "wav"}},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": [], "tool_calls": []}]},
        {"max_tokens": 2},
        {"model": "off"},
        {"model": "form"},
    ],
    ids=lambda asked: "-".join(f"{name}" for name in asked) + str(asked.get("model", "")),
)
async def test_a_request_whose_half_answer_is_no_beginning_of_a_whole_one_ends_in_the_error(
    gateway: Running, first: FaultProvider, second: FaultProvider, asked: dict[str, Any]
) -> None:
    first.script(Fault("cut", after=3, drip_s=0.002))
    answer = await gateway.chat(await gateway.mint(), body("same", stream=True) | asked)
    assert error_of(answer)["code"] == "upstream_broken"
    assert second.requests == []


async def test_thoughts_are_no_part_of_what_is_repeated(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    key = await gateway.mint()
    first.script(events({"role": "assistant", "reasoning_content": "hm"}), events({"reasoning_content": "hm"}, TEXT))
    chunks = chunks_of(await gateway.chat(key, body("same", stream=True)))
    assert text_of(chunks) == WHOLE
    assert texts_in(second.requests[0]) == [("user", "hi")], "there is nothing to go on with: it is asked as it was"
    chunks = chunks_of(await gateway.chat(key, body("same", stream=True)))
    assert text_of(chunks) == "so" + WHOLE
    assert texts_in(second.requests[1])[1] == ("assistant", "so")
    at = next(n for n, chunk in enumerate(chunks) if "sidecar" in chunk)
    assert {chunk["model"] for chunk in chunks[:at]} == {"m"}
    assert {chunk["model"] for chunk in chunks[at + 1 :]} == {"fault"}, "each part has its own model's name"


async def test_a_beginning_the_client_gave_itself_is_part_of_it(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    first.script(Fault("cut", after=2, drip_s=0.002))
    messages = [{"role": "user", "content": "count"}, {"role": "assistant", "content": "zero "}]
    chunks = chunks_of(await gateway.chat(await gateway.mint(), body("same", stream=True, messages=messages, seed=7)))
    assert text_of(chunks) == "one" + WHOLE
    assert texts_in(second.requests[0]) == [("user", "count"), ("assistant", "zero one"), ("user", GO_ON)]
    asked = {name: value for name, value in second.requests[0].json().items() if name not in ("messages", "model")}
    assert asked == {n: v for n, v in first.requests[0].json().items() if n not in ("messages", "model")}


@pytest.mark.parametrize(("model", "name"), [("same", "max_tokens"), ("openai", "max_tokens")])
async def test_the_client_s_bound_of_output_holds_over_both(
    gateway: Running, first: FaultProvider, second: FaultProvider, model: str, name: str
) -> None:
    first.script(Fault("cut", after=4, drip_s=0.002))
    answer = await gateway.chat(await gateway.mint(max_budget=1), body(model, stream=True, max_tokens=20))
    chunks_of(answer)
    record = await gateway.admin(f"/exchanges/{answer.headers['x-request-id']}")
    one, other = [float(attempt["held_usd"]) for attempt in record["attempts"]]
    assert other - one > len(GO_ON) * 1e-6 - 3 * 2e-6 > 0, "a longer prompt, three tokens of output less"
    assert (first.requests[0].json()["max_tokens"], second.requests[0].json()[name]) == (20, 17)


async def test_a_provider_s_error_within_the_stream_is_a_break_unless_it_is_the_client_s_own(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    key = await gateway.mint()
    said = events(TEXT).body
    assert said is not None
    head = (("content-type", "text/event-stream"),)
    for type_, goes_on in (("server_error", True), ("invalid_request_error", False)):
        error = json.dumps({"error": {"message": "no more", "type": type_, "code": None}}).encode()
        first.script(Fault("status", status=200, body=said + b"data: " + error + b"\n\n", headers=head))
        answer = await gateway.chat(key, body("same", stream=True))
        if goes_on:
            assert text_of(chunks_of(answer)) == "so" + WHOLE
        else:
            assert error_of(answer)["type"] == type_
    assert len(second.requests) == 1


async def test_a_refusal_of_the_request_for_the_rest_is_not_told_as_the_client_s_mistake(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    first.script(Fault("cut", after=3, drip_s=0.002))
    second.script(Fault("status", status=400, body=b'{"error":{"message":"no","code":"context_length_exceeded"}}'))
    answer = await gateway.chat(await gateway.mint(), body("same", stream=True))
    assert error_of(answer)["code"] == "upstream_broken"
    assert len(second.requests) == 1


async def test_what_is_left_out_for_who_goes_on_is_named(gateway: Running, first: FaultProvider) -> None:
    first.script(Fault("cut", after=3, drip_s=0.002))
    (mark,) = marks_of(chunks_of(await gateway.chat(await gateway.mint(), body("sheds", stream=True, seed=7))))
    assert mark["dropped"] == ["seed"]


async def test_an_unstreamed_answer_and_one_before_content_are_as_ever(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    key = await gateway.mint()
    for is_stream in (False, True):
        first.script(Fault("cut", after=1))
        answer = await gateway.chat(key, body("openai", stream=is_stream))
        assert "continued_by" not in answer.text
        assert GO_ON.encode() not in second.requests[-1].body
        assert answer.headers["x-sidecar-deployment"] == "openai#1:anthropic"


async def test_a_client_that_leaves_while_the_rest_is_awaited_ends_it_at_once(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    key = await gateway.mint(max_budget=1, max_parallel_requests=1)
    first.script(Fault("cut", after=3, drip_s=0.002))
    second.script(Fault("silent"))
    task = asyncio.create_task(gateway.chat(key, body("same", stream=True)))
    await eventually(lambda: len(second.requests) == 1)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await eventually(lambda: second.requests[0].closed_how == "left")
    await is_idle(gateway)
    rows = await gateway.rows(key, at_least=2)
    assert [row["outcome"] for row in rows] == ["incomplete", "client_left"]
    assert await gateway.spend(key) == pytest.approx(sum(float(row["spend"]) for row in rows))


async def test_the_request_s_deadline_spans_both(gateway: Running, first: FaultProvider, second: FaultProvider) -> None:
    key = await gateway.mint(max_budget=1)
    for _ in range(9):
        first.reset(), second.reset()
        first.script(Fault("stall", after=3))
        second.script(Fault("silent"))
        headers = {"x-sidecar-timeout": "1"}  # the stall takes 0.2 of it
        answer = await gateway.chat(key, body("same-impatient", stream=True), headers=headers)
        if second.requests:
            break  # else the machine stood still until the deadline
    assert error_of(answer)["code"] in ("upstreams_failed", "upstream_timeout_total", "upstream_timeout_gap")
    assert (len(first.requests), len(second.requests)) == (1, 1)
    assert "continued_by" not in answer.text
    await is_idle(gateway)


async def test_a_budget_that_does_not_cover_the_rest_ends_in_the_error(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    key = await gateway.mint(max_budget=0.0015)  # one attempt of 500 tokens of output costs at most 0.001 and a bit
    first.script(Fault("cut", after=3, drip_s=0.002))
    answer = await gateway.chat(key, body("same", stream=True, max_tokens=500))
    assert error_of(answer)["code"] == "upstream_broken"
    assert second.requests == []
    (row,) = await gateway.rows(key, at_least=1)
    assert row["outcome"] == "incomplete"
    await is_idle(gateway)


async def test_the_rest_is_metered_as_it_goes_by(gateway: Running, first: FaultProvider, second: FaultProvider) -> None:
    key = await gateway.mint(max_budget=1)
    first.script(Fault("cut", after=3, drip_s=0.002))
    second.script(Fault("endless"))
    answer = await gateway.chat(key, body("same", stream=True, max_tokens=100))
    assert error_of(answer)["code"] == "budget_exceeded"
    assert answer.text.count("continued_by") == 1
    rows = await gateway.rows(key, at_least=2)
    assert [(row["outcome"], row["status"]) for row in rows] == [("incomplete", "unknown"), ("incomplete", "estimated")]
    await is_idle(gateway)


async def test_a_full_deployment_is_passed_over(gateway: Running, first: FaultProvider, second: FaultProvider) -> None:
    key = await gateway.mint()
    second.script(Fault("held"))
    first.script(Fault("status", status=500), *[Fault("cut", after=2, drip_s=0.002)] * 3)
    taken = asyncio.create_task(gateway.chat(key, body("narrow", stream=True)))
    await eventually(lambda: len(second.requests) == 1)
    answer = await gateway.chat(key, body("narrow", stream=True))
    assert error_of(answer)["code"] == "upstream_broken"
    assert len(second.requests) == 1
    second.release()
    await taken


@pytest.mark.parametrize("model", ["hedged", "hedged-pair"])
async def test_the_winner_of_a_race_is_gone_on_with_too(
    gateway: Running, first: FaultProvider, second: FaultProvider, model: str
) -> None:
    key = await gateway.mint(max_budget=1)
    first.script(Fault("silent"))
    second.script(Fault("cut", after=3, drip_s=0.002))
    chunks = chunks_of(await gateway.chat(key, body(model, stream=True)))
    assert text_of(chunks) == "one two" + WHOLE
    (mark,) = marks_of(chunks)
    assert mark["continued_by"] == {"hedged": "hedged#2:anthropic", "hedged-pair": "hedged-pair#0:openai"}[model]
    await eventually(lambda: first.requests[0].closed_how == "left")
    rows = await gateway.rows(key, at_least=3)
    assert [(row["attempt"], row["outcome"]) for row in rows] == [(1, "incomplete"), (2, "incomplete"), (3, "ok")]
    assert await gateway.spend(key) == pytest.approx(sum(float(row["spend"]) for row in rows))
    await is_idle(gateway)


async def test_the_kept_answer_of_an_idempotency_key_is_the_whole_of_it(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    key = await gateway.mint()
    first.script(Fault("cut", after=3, drip_s=0.002))
    headers = {"idempotency-key": "continued"}
    one = await gateway.chat(key, body("openai", stream=True), headers=headers)
    again = await gateway.chat(key, body("openai", stream=True), headers=headers)
    assert one.text.count("continued_by") == 1
    assert (again.text, again.headers["idempotent-replayed"]) == (one.text, "true")
    assert (len(first.requests), len(second.requests)) == (1, 1)


async def test_the_cost_after_the_end_is_that_of_both(gateway: Running, first: FaultProvider) -> None:
    key = await gateway.mint()
    first.script(Fault("cut", after=3, drip_s=0.002))
    answer = await gateway.chat(key, body("openai", stream=True), headers={"x-sidecar-cost": "trailer"})
    assert text_of(chunks_of(answer)) == "one two" + WHOLE
    rows = await gateway.rows(key, at_least=2)
    told = float(answer.text.rsplit("x-sidecar-cost-usd ", 1)[1].strip())
    assert told == pytest.approx(sum(float(row["spend"]) for row in rows))


async def test_the_record_and_the_metric_tell_of_it(gateway: Running, first: FaultProvider) -> None:
    key = await gateway.mint()
    first.script(Fault("cut", after=3, drip_s=0.002))
    answer = await gateway.chat(key, body("anthropic", stream=True))
    record = await gateway.admin(f"/exchanges/{answer.headers['x-request-id']}")
    assert [one["is_continuation"] for one in record["attempts"]] == [False, True]
    assert record["attempts"][0]["error"]["code"] == "upstream_broken"
    metrics = (await gateway.http.get(gateway.url + "/metrics")).text
    (line,) = [li for li in metrics.splitlines() if li.startswith('sidecar_continuations_total{group="anthropic"}')]
    assert float(line.split()[-1]) >= 1
