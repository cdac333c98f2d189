"""The same call twice: one provider call, one row, the same bytes; and the ways in which there is nothing to keep."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from sidecar import (
    AuthMiddleware,
    BudgetMiddleware,
    IdempotencyMiddleware,
    MemoryAnswers,
    ObserveMiddleware,
    RateLimitMiddleware,
    SpendMiddleware,
)
from sidecar.asgi import ASGIApp, Receive, Scope, Send
from sidecar.errors import UnavailableError
from sidecar.exchange import Exchange
from sidecar.types import SpendRecord
from tests.asgi import Answer, call
from tests.middleware.stack import BODY, CALLER, DEPLOYMENT, Foreign, Keys, Rows, Speaker, Wrap, make_policy, metrics
from tests.promises.support import eventually

pytestmark = pytest.mark.anyio
KEY = {"authorization": "Bearer sk-good", "idempotency-key": "one"}
STREAM = {**BODY, "stream": True}
SSE = [(b"content-type", b"text/event-stream")]


class Stack:
    """Observe to Spend above an app that speaks OpenAI's dialect."""

    def __init__(self, app: ASGIApp, *, rows: Any = None, wrap: Wrap | None = None, **options: Any) -> None:
        self.store = options.pop("store", None)
        if self.store is None:
            self.store = MemoryAnswers()
        self.rows = rows if rows is not None else Rows()
        self.lines: list[dict[str, Any]] = []
        self.keys = Keys()
        policy = make_policy()
        self.admission = policy.admission
        stack: ASGIApp = SpendMiddleware(app, recorder=self.rows, deployment=DEPLOYMENT)
        stack = BudgetMiddleware(stack, policy=policy)
        stack = RateLimitMiddleware(stack, policy=policy)
        if wrap is not None:
            stack = wrap(stack)
        self.idempotency = IdempotencyMiddleware(stack, store=self.store, **options)
        stack = self.idempotency if wrap is None else wrap(self.idempotency)
        stack = AuthMiddleware(stack, keys=self.keys)
        self.app = ObserveMiddleware(stack, metrics=metrics(), access_log=self.lines.append)

    async def call(self, body: Any = BODY, headers: dict[str, str] | None = None, **options: Any) -> Answer:
        return await call(self.app, body, headers=KEY if headers is None else headers, **options)


def is_replay(answer: Answer) -> bool:
    return answer.headers.get("idempotent-replayed") == "true"


@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "stream"])
@pytest.mark.parametrize("wrap", [None, Foreign], ids=["ours", "foreign"])
async def test_the_same_call_again_gets_the_same_bytes_and_bills_nothing(body: Any, wrap: Any) -> None:
    speaker = Speaker()
    stack = Stack(speaker, wrap=wrap)
    first, again = await stack.call(body), await stack.call(body)
    assert (first.status, again.status) == (200, 200)
    assert again.body == first.body
    assert again.headers["content-type"] == first.headers["content-type"]
    assert (is_replay(first), is_replay(again)) == (False, True)
    assert again.headers["x-sidecar-cost-usd"] == "0"
    assert again.headers["x-sidecar-replay-of"] == stack.lines[0]["exchange_id"]
    assert again.headers["x-request-id"] == stack.lines[1]["exchange_id"] != stack.lines[0]["exchange_id"]
    assert len(speaker.bodies) == len(stack.rows.records) == len(stack.rows.intents) == 1
    assert [line["outcome"] for line in stack.lines] == ["ok", "ok"]


async def test_a_replay_takes_no_place_in_any_limit() -> None:
    stack = Stack(Speaker())
    stack.keys.identity = replace(CALLER, limits=replace(CALLER.limits, rpm=1))
    assert (await stack.call()).status == 200
    for _ in range(5):
        again = await stack.call()
        assert again.status == 200
        assert not [name for name in again.headers if name.startswith("x-ratelimit-")]
    assert (await stack.call(headers=KEY | {"idempotency-key": "two"})).status == 429


async def test_a_hundred_at_once_are_one_provider_call_and_one_row() -> None:
    speaker = Speaker()
    stack = Stack(speaker)
    answers = await asyncio.gather(*(stack.call(STREAM) for _ in range(100)))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert sum(map(is_replay, answers)) == 99
    assert len(speaker.bodies) == len(stack.rows.records) == 1
    assert stack.idempotency.waiting == 0


async def test_without_the_header_nothing_is_kept_nor_replayed() -> None:
    speaker = Speaker()
    stack = Stack(speaker)
    for _ in range(2):
        assert not is_replay(await stack.call(headers={"authorization": "Bearer sk-good"}))
    assert len(speaker.bodies) == 2
    assert len(stack.store) == 0


async def test_another_key_of_the_gateway_never_gets_the_answer() -> None:
    speaker = Speaker()
    stack = Stack(speaker)
    await stack.call()
    for identity in (replace(CALLER, key_hash="b" * 64), replace(CALLER, user_id="u"), replace(CALLER, team_id="t")):
        stack.keys.identity = identity
        assert not is_replay(await stack.call())
        assert is_replay(await stack.call())
    assert len(speaker.bodies) == 4


async def test_a_key_that_may_no_longer_call_gets_no_replay() -> None:
    stack = Stack(Speaker())
    await stack.call()
    stack.keys.identity = replace(CALLER, models=("other",))
    assert (await stack.call()).status == 403
    assert (await stack.call(headers=KEY | {"authorization": "Bearer sk-bad"})).status == 401


async def test_other_tags_under_the_same_key_are_refused_for_another_region_answers_those() -> None:
    speaker = Speaker()
    stack = Stack(speaker)
    await stack.call(headers=KEY | {"x-sidecar-tags": "eu,a"})
    refused = await stack.call(headers=KEY | {"x-sidecar-tags": "us"})
    assert (refused.status, refused.error["code"]) == (422, "idempotency_key_reused")
    assert is_replay(await stack.call(headers=KEY | {"x-sidecar-tags": "a, eu"}))
    assert len(speaker.bodies) == 1


@pytest.mark.parametrize("changed", [{"max_tokens": 51}, {"user": "somebody"}, {"stream": True}])
async def test_another_body_under_the_same_key_is_refused(changed: dict[str, Any]) -> None:
    speaker = Speaker()
    stack = Stack(speaker)
    await stack.call()
    refused = await stack.call({**BODY, **changed})
    assert (refused.status, refused.error["code"]) == (422, "idempotency_key_reused")
    assert "gateway refused" in refused.error["message"]
    assert len(speaker.bodies) == 1
    assert is_replay(await stack.call())


class Slow:
    """Answers when told to; as the script says."""

    def __init__(self, *script: str) -> None:
        self.script = list(script)
        self.calls = 0
        self.go = asyncio.Event()
        self.is_asked = asyncio.Event()
        self.speaker = Speaker()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += 1
        how = self.script.pop(0) if self.script else "ok"
        self.is_asked.set()
        if how == "wait":
            await self.go.wait()
        if how == "left":
            await receive()
            assert (await receive())["type"] == "http.disconnect"
            return
        if how == "raise":
            raise LookupError("a bug of the host")
        if how == "status":
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})
            return
        if how == "cut":
            await send({"type": "http.response.start", "status": 200, "headers": SSE})
            await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})
            return
        if how == "broken":
            exchange: Exchange = scope["sidecar"]
            await send({"type": "http.response.start", "status": 200, "headers": SSE})
            exchange.outcome = "incomplete"
            await send({"type": "http.response.body", "body": b'data: {"error":{}}\n\n', "more_body": False})
            return
        await self.speaker(scope, receive, send)


@pytest.mark.parametrize("how", ["status", "cut", "broken"])
async def test_only_whole_successful_answers_are_kept(how: str) -> None:
    slow = Slow(how)
    stack = Stack(slow)
    await stack.call()
    assert len(stack.store) == 0
    assert (await stack.call()).status == 200
    assert is_replay(await stack.call())
    assert slow.calls == 2


async def test_after_an_exception_below_the_next_call_runs() -> None:
    slow = Slow("raise")
    stack = Stack(slow)
    with pytest.raises(LookupError):
        await stack.call()
    assert not is_replay(await stack.call())
    assert slow.calls == 2


async def test_a_stream_cut_because_its_row_could_not_be_written_is_not_kept() -> None:
    class FullDisk(Rows):
        async def record(self, record: SpendRecord) -> None:
            if not self.records:
                self.records.append(record)
                raise UnavailableError("no room", code="journal_not_writable")
            await super().record(record)

    stack = Stack(Speaker(), rows=FullDisk())
    assert b"record_not_written" in (await stack.call(STREAM)).body
    assert stack.lines[0]["outcome"] == "incomplete"
    again = await stack.call(STREAM)
    assert not is_replay(again)
    assert b"record_not_written" not in again.body


async def test_when_the_first_caller_leaves_the_next_one_in_line_runs_it() -> None:
    slow = Slow("left")
    stack = Stack(slow)
    first = asyncio.create_task(stack.call(leave_after=0))
    await slow.is_asked.wait()
    others = await asyncio.gather(*(stack.call() for _ in range(20)))
    await first
    assert slow.calls == 2
    assert sum(map(is_replay, others)) == 19
    assert stack.lines[0]["outcome"] == "client_left"


async def test_a_cancelled_first_caller_leaves_the_name_free() -> None:
    slow = Slow("wait")
    stack = Stack(slow)
    first = asyncio.create_task(stack.call())
    await slow.is_asked.wait()
    second = asyncio.create_task(stack.call())
    await eventually(lambda: stack.idempotency.waiting == 1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert not is_replay(await second)
    assert is_replay(await stack.call())


async def test_a_waiter_that_leaves_or_is_cancelled_disturbs_nobody() -> None:
    slow = Slow("wait")
    stack = Stack(slow)
    first = asyncio.create_task(stack.call())
    await slow.is_asked.wait()
    leaves = await stack.call(leave_after=0)
    assert leaves.messages == []
    assert stack.lines[0]["outcome"] == "client_left"
    cancelled = asyncio.create_task(stack.call())
    await eventually(lambda: stack.idempotency.waiting == 1)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert stack.idempotency.waiting == 0
    slow.go.set()
    assert (await first).status == 200
    assert slow.calls == 1


async def test_who_waited_long_enough_is_told_to_come_back() -> None:
    slow = Slow("wait")
    stack = Stack(slow, wait_s=0.05)
    first = asyncio.create_task(stack.call())
    await slow.is_asked.wait()
    second = await stack.call()
    assert (second.status, second.error["code"]) == (409, "idempotency_in_flight")
    assert second.headers["retry-after"] == "1"
    other = await stack.call(STREAM)
    assert (other.status, other.error["code"]) == (422, "idempotency_key_reused")
    slow.go.set()
    assert (await first).status == 200
    assert is_replay(await stack.call())


async def test_an_answer_too_large_to_keep_is_not_billed_again() -> None:
    speaker = Speaker()
    stack = Stack(speaker, max_answer_bytes=100)
    whole = await stack.call()
    assert whole.status == 200
    assert len(whole.body) > 100
    again = await stack.call()
    assert (again.status, again.error["code"]) == (409, "idempotency_answer_not_kept")
    assert again.headers["x-should-retry"] == "false"
    assert len(speaker.bodies) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there", "umlaut-ü"])
async def test_a_key_that_is_none_is_refused(key: str) -> None:
    speaker = Speaker()
    refused = await Stack(speaker).call(headers=KEY | {"idempotency-key": key})
    assert (refused.status, refused.error["code"]) == (400, "invalid_idempotency_key")
    assert not speaker.bodies


async def test_an_answer_whose_reader_left_at_its_end_is_kept_since_it_is_billed() -> None:
    speaker = Speaker()
    stack = Stack(speaker)
    cut = await stack.call(leave_after=1)
    assert not cut.is_ended
    again = await stack.call()
    assert is_replay(again)
    assert json.loads(again.body)["choices"][0]["message"]["content"] == "hi"
    assert len(speaker.bodies) == len(stack.rows.records) == 1


async def test_memory_is_bounded_by_bytes_and_by_age() -> None:
    at = [0.0]
    store = MemoryAnswers(keep_s=10, max_bytes=20_000, clock=lambda: at[0])
    speaker = Speaker()
    stack = Stack(speaker, store=store)
    for number in range(50):
        await stack.call(headers=KEY | {"idempotency-key": f"key {number}"})
        assert store.bytes <= 20_000
    assert 5 < len(store) < 20
    assert is_replay(await stack.call(headers=KEY | {"idempotency-key": "key 49"}))
    assert not is_replay(await stack.call(headers=KEY | {"idempotency-key": "key 0"}))
    at[0] = 10.1
    assert not is_replay(await stack.call(headers=KEY | {"idempotency-key": "key 49"}))
    assert len(store) == 1
