"""Continuation in parts: every dialect breaks and takes the request for the rest; chunks however they are cut; stacks
without money; comments while the rest is awaited; the settings, and the record in words."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sidecar import Catalog, Deployment, RouteMiddleware, TranslateMiddleware, UpstreamProxy
from sidecar.admit import estimate_of
from sidecar.asgi import Message, open_exchange
from sidecar.cli.explain_exchange import text as in_words
from sidecar.config.build import build_continuations
from sidecar.config.check import notes
from sidecar.config.models import Config
from sidecar.continuation import GO_ON, MAX_TEXT, Continuation, Continuations
from sidecar.errors import UpstreamBrokenError
from sidecar.exchange import Attempt, Exchange
from sidecar.translate import UpstreamRequest
from sidecar.translate.framing import SSESplitter
from sidecar.types import Secret, Usage
from sidecar.upstream.httptools_transport import HttptoolsTransport
from tests.asgi import call
from tests.faults.provider import WORDS, Fault, FaultProvider, fault_provider
from tests.middleware.stack import PRICE
from tests.promises.support import PROVIDER_KEY, Running, body, served
from tests.routing.support import deployment
from tests.translate.dialects import DIALECTS, dialect_of

pytestmark = pytest.mark.anyio
WHOLE = "".join(WORDS)


def data_of(raw: str) -> list[Any]:
    lines = [line[6:] for line in raw.splitlines() if line.startswith("data: ")]
    return [json.loads(line) if line != "[DONE]" else line for line in lines]


def text_of(chunks: Sequence[Any]) -> str:
    choices = [choice for chunk in chunks if chunk != "[DONE]" for choice in chunk.get("choices", ())]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


@pytest.fixture(scope="module")
async def provider_of_file(anyio_backend: str) -> AsyncIterator[FaultProvider]:
    async with fault_provider() as provider:
        yield provider


@pytest.fixture(scope="module")
async def gateway(provider_of_file: FaultProvider, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    models = []
    for name in DIALECTS:
        dialect = dialect_of(name)
        place = {
            "provider": name, "model": f"{name}-1", "api_key": PROVIDER_KEY, "price": {"input": 1, "output": 2},
            "base_url": provider_of_file.base_url + dialect.base_path, "max_output_tokens": 64, **dialect.options,
        }  # fmt: skip
        models.append({"name": name, "deployments": [place]})
    top = {"models": models, "routing": {"retries": 1, "cooldown_s": 0.001, "continuation": True}}
    async with served(tmp_path_factory.mktemp("gateway"), provider_of_file.base_url, top=top) as running:
        yield running


async def test_every_dialect_takes_the_request_for_the_rest_and_goes_on(
    gateway: Running, provider_of_file: FaultProvider
) -> None:
    key = await gateway.mint(max_budget=1)
    provider_of_file.reset()
    gate = asyncio.Semaphore(8)

    async def asked(name: str) -> str:
        provider_of_file.script_for(f"<{name}>".encode(), Fault("cut", after=5, drip_s=0.01))
        messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": f"<{name}>"}]
        async with gate:
            return (await gateway.chat(key, body(name, stream=True, messages=messages, max_tokens=40))).text

    answers = await asyncio.gather(*map(asked, DIALECTS))
    rows = await gateway.rows(key, at_least=2 * len(DIALECTS))
    assert len(rows) == 2 * len(DIALECTS)
    assert {row["outcome"] for row in rows if row["attempt"] == 1} == {"incomplete"}
    assert {row["outcome"] for row in rows if row["attempt"] == 2} == {"ok"}
    for name, answer in zip(DIALECTS, answers, strict=True):
        chunks = data_of(answer)
        assert chunks[-1] == "[DONE]", (name, answer[-300:])
        assert [c["sidecar"]["continued_by"] for c in chunks[:-1] if "sidecar" in c] == [f"{name}#0:{name}"], name
        begun = text_of(chunks).removesuffix(WHOLE)
        assert begun, name
        assert WHOLE.startswith(begun), name
        first, again = [seen for seen in provider_of_file.requests if f"<{name}>".encode() in seen.body]
        path, _, query = again.target.partition("?")
        dialect = dialect_of(name)
        request = UpstreamRequest(path.removeprefix(dialect.base_path.partition("?")[0]), again.body, [], query)
        dialect.check(request)
        *_, said, wish = dialect.read(request)["messages"]
        assert (said["role"], plain(said["content"]).strip()) == ("assistant", begun.strip()), name
        assert (wish["role"], plain(wish["content"])) == ("user", GO_ON), name
        assert json.loads(first.body).keys() == json.loads(again.body).keys(), name


def plain(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def chunk(delta: dict[str, Any], finish: str | None = None, id: str = "one", **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return event({"id": id, "object": "chat.completion.chunk", "created": 7, "model": id, "choices": [choice], **more})


ASKED = {"model": "g", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
BROKEN = UpstreamBrokenError("it broke")


class Way:
    """A continuation with nothing around it."""

    def __init__(self, payload: dict[str, Any] | None = None) -> None:
        self.sent: list[Message] = []
        self.exchange: Exchange
        self.exchange, _ = open_exchange({"type": "http", "headers": []}, self._receive)
        self.exchange.payload = payload or ASKED
        self.exchange.raw = json.dumps(self.exchange.payload).encode()
        self.of = Continuations(True)
        made = self.of.of(self.exchange, "g", self._send)
        assert made is not None
        self.continuation: Continuation = made

    async def _receive(self) -> Message:
        raise AssertionError

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    async def begins(self, name: str, *pieces: bytes, usage: Usage | None = None) -> Attempt:
        attempt = Attempt(len(self.exchange.attempts) + 1, deployment(name), 0.0, content_started=True)
        attempt.usage = usage or attempt.usage
        self.exchange.attempts.append(attempt)
        self.exchange.answering = attempt
        await self.continuation(START)
        await self.says(*pieces)
        return attempt

    async def says(self, *pieces: bytes, more: bool = True) -> None:
        for piece in pieces:
            await self.continuation({"type": "http.response.body", "body": piece, "more_body": more})

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


REST = b"".join(
    [
        chunk({"role": "assistant", "content": "", "refusal": None}, id="two"),
        b": keep-alive\n\n",
        chunk({"content": "two"}, id="two", usage=None),
        chunk({}, "stop", id="two"),
        event({"id": "two", "created": 9, "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}),
        b"data: [DONE]\n\n",
    ]
)


async def went_on(*pieces: bytes) -> bytes:
    way = Way()
    attempt = await way.begins("a", chunk({"role": "assistant", "content": "one "}), usage=Usage(input=10, output=1))
    assert way.continuation.may_follow(attempt, BROKEN)
    await way.continuation.prepare()
    *before, last = pieces
    await way.begins("b", *before)
    await way.says(last, more=False)
    assert [m["type"] for m in way.sent].count("http.response.start") == 1
    assert not way.sent[-1]["more_body"]
    assert way.of.counts == {"g": 1}
    return way.body


async def test_the_rest_is_the_same_however_its_bytes_are_cut() -> None:
    whole = await went_on(REST)
    for at in range(1, len(REST)):
        assert await went_on(REST[:at], REST[at:]) == whole, at
    chunks = data_of(whole.decode())
    assert text_of(chunks) == "one two"
    assert {(c["id"], c["created"]) for c in chunks[:-1]} == {("one", 7)}
    assert [c["usage"] for c in chunks[:-1] if c.get("usage")] == [
        {"prompt_tokens": 13, "completion_tokens": 5, "total_tokens": 18}
    ], "of both"
    assert whole.count(b'"role"') == 1
    assert b": keep-alive\n\n" in whole
    assert len(SSESplitter().feed(whole)) == 8


@pytest.mark.parametrize("delta", [{"role": "assistant", "content": "x"}, {"role": "assistant", "tool_calls": [{}]}])
async def test_a_role_that_comes_with_more_leaves_that_behind(delta: dict[str, Any]) -> None:
    rest = chunk(delta, id="two") + chunk({}, "stop", id="two") + b"data: [DONE]\n\n"
    (found,) = [c for c in data_of((await went_on(rest)).decode()) if "two" in str(c) and c["choices"][0]["delta"]]
    assert found["choices"][0]["delta"] == {name: value for name, value in delta.items() if name != "role"}


async def test_a_chunk_of_odd_shape_is_passed_on() -> None:
    odd = event({"id": "two", "choices": ["odd"]}) + event({"choices": None, "usage": {"completion_tokens": 1}})
    whole = await went_on(odd + chunk({}, "stop", id="two") + b"data: [DONE]\n\n")
    assert event({"id": "two", "choices": ["odd"]}) in whole
    (usage,) = [c["usage"] for c in data_of(whole.decode())[:-1] if c.get("usage")]
    assert usage == {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}


async def test_an_answer_too_long_to_repeat_is_let_go_and_its_text_is_not_kept() -> None:
    way = Way()
    attempt = await way.begins("a", *[chunk({"content": "x" * 65_536})] * (MAX_TEXT // 65_536))
    assert len(way.continuation._text) == MAX_TEXT
    await way.says(chunk({"content": "x"}))
    assert not way.continuation._text
    assert not way.continuation.may_follow(attempt, BROKEN)


async def test_what_is_kept_of_an_answer_is_hardly_more_than_its_text() -> None:
    way = Way()
    await way.begins("a", chunk({"content": "\r\n"}))
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(5_000):
        way.continuation._read(chunk({"content": f" w{number:03}"})[6:-2])
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 2 * len(way.continuation._text)
    assert way.continuation._text.startswith(b"\r\n w000 w001")


async def test_what_another_attempt_than_the_answering_one_ended_with_is_no_break_of_it() -> None:
    way = Way()
    await way.begins("a", chunk({"content": "x"}))
    assert not way.continuation.may_follow(Attempt(2, deployment("b"), 0.0), BROKEN)
    assert not way.continuation.is_broken


async def test_the_bytes_of_the_request_stay_but_for_its_messages() -> None:
    way = Way({**ASKED, "metadata": {"big": 12345678901234567890, "float": 1.0}})
    raw = b'{"metadata": {"big": 12345678901234567890, "float": 1.0},"messages":[{"role":"user","content":"\\u00e9"}]}'
    way.exchange.raw = raw
    attempt = await way.begins("a", chunk({"content": "é\n"}))
    assert way.continuation.may_follow(attempt, BROKEN)
    await way.continuation.prepare()
    made = way.continuation.raw
    assert made is not None
    assert made.startswith(b'{"metadata":{"big": 12345678901234567890, "float": 1.0},"messages":[{"role":"user",')
    assert b'"content":"\\u00e9"}' in made
    assert json.loads(made)["messages"][1:] == [
        {"role": "assistant", "content": "é\n"}, {"role": "user", "content": GO_ON}
    ]  # fmt: skip


async def test_what_the_rest_may_cost_is_what_is_asked_for_it_and_what_was_lost_before_costs_what_it_did() -> None:
    way = Way({**ASKED, "max_tokens": 50})
    lost = Attempt(1, replace(deployment("c"), price=PRICE), 0.0, is_lost=True, events_seen=3)
    way.exchange.attempts.append(lost)
    attempt = await way.begins("a", chunk({"content": "one "}), chunk({"content": "two"}))
    before = estimate_of(way.exchange)
    assert way.continuation.may_follow(attempt, BROKEN)
    await way.continuation.prepare()
    made, raw = way.continuation.raw, way.exchange.raw
    assert made is not None
    assert raw is not None
    assert way.exchange.estimate == (before[0] + len(made) - len(raw), 48)
    assert way.exchange.edits == {"output_cap": 48}
    assert (lost.usage.input, lost.cost_status) == (before[0], "estimated")


async def test_it_needs_neither_money_nor_limits_above_nor_a_configuration(provider_of_file: FaultProvider) -> None:
    provider_of_file.reset()
    provider_of_file.script(Fault("cut", after=3, drip_s=0.01))
    places = [
        Deployment(name, "gpt", "openai", name, f"{provider_of_file.base_url}/v1", api_key=Secret("sk-none"), order=at)
        for at, name in enumerate(("a", "b"))
    ]
    transport = HttptoolsTransport()
    app: Any = TranslateMiddleware(UpstreamProxy(transport=transport))
    app = RouteMiddleware(app, catalog=Catalog(places), continuations=Continuations(True))
    try:
        answer = await call(app, body("gpt", stream=True))
    finally:
        await transport.aclose()
    chunks = data_of(answer.body.decode())
    assert answer.is_ended
    assert text_of(chunks) == "one two" + WHOLE
    assert [c["sidecar"]["continued_by"] for c in chunks[:-1] if "sidecar" in c] == ["b"]


async def test_comments_keep_the_stream_awake_while_the_rest_is_awaited(
    provider_of_file: FaultProvider, tmp_path: Path
) -> None:
    place = {
        "provider": "openai", "model": "m", "api_key": PROVIDER_KEY, "base_url": f"{provider_of_file.base_url}/v1",
        "timeouts": {"first_byte_s": 2},
    }  # fmt: skip
    top = {
        "models": [{"name": "gpt", "continuation": True, "deployments": [place, place]}],
        "server": {"heartbeat_s": 0.1},
        "routing": {"cooldown_s": 0.001, "retries": 5},
    }
    async with served(tmp_path, provider_of_file.base_url, top=top) as running:
        provider_of_file.reset()
        provider_of_file.script(Fault("cut", after=3, drip_s=0.005), Fault("silent"))
        answer = await running.chat(await running.mint(), body(stream=True))
    before, _, after = answer.text.partition("continued_by")
    assert before.count(": keep-alive\n\n") >= 2
    assert text_of(data_of(answer.text)) == "one two" + WHOLE
    assert after.endswith("data: [DONE]\n\n")


def test_it_is_off_unless_it_is_asked_for() -> None:
    def made(routing: Any = None, *groups: bool | None) -> Config:
        places = [{"provider": "openai", "model": "m", "api_key": "sk-none"}]
        models = [{"name": f"g{n}", "deployments": places, "continuation": on} for n, on in enumerate(groups)]
        return Config(routing=routing or {}, models=models)  # type: ignore[arg-type]

    way = Way()
    assert build_continuations(made()) is None
    assert build_continuations(made(None, None, False)) is None
    for config, on in (
        (made({"continuation": True}, None, False), {"g0": True, "g1": False, "other": True}),
        (made(None, None, True), {"g0": False, "g1": True, "other": False}),
    ):
        built = build_continuations(config)
        assert built is not None
        assert {g: built.of(way.exchange, g, way._send) is not None for g in on} == on
    assert any("continuation" in note for note in notes(made({"retries": 0}, True)))
    assert not any("continuation" in note for note in notes(made(None, True)))


async def test_the_record_in_words_tells_it(gateway: Running, provider_of_file: FaultProvider) -> None:
    provider_of_file.reset()
    provider_of_file.script(Fault("cut", after=4, drip_s=0.01))
    answer = await gateway.chat(await gateway.mint(), body("anthropic", stream=True))
    shown = in_words(await gateway.admin(f"/exchanges/{answer.headers['x-request-id']}"))
    first, second = [line for line in shown.splitlines() if line.startswith("attempt ")]
    assert "upstream_broken" in first
    assert "went on with the answer that broke" in second
