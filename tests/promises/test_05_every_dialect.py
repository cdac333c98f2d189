"""*A broken answer never looks whole*, over every dialect the gateway speaks: one gateway with a model of each
provider, every one of them cut, reset, stalled, malformed, torn and ended at every event, all at once. What is said
before the break is said; then an error event, no `[DONE]`, no finish reason of ours; the row says incomplete. OpenAI's
and Anthropic's own have a closer look in `test_05_broken_answers`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sidecar.errors import UpstreamBrokenError
from tests.faults.provider import WORDS, Fault, FaultProvider, stream_events
from tests.promises.support import PROVIDER_KEY, Running, body, model_for, served
from tests.promises.test_05_broken_answers import (
    WHOLE_BUT_WRONG,
    assert_broken,
    assert_row,
    events_of,
    sdk_raises,
)
from tests.translate.dialects import DIALECTS, DISTINCT, dialect_of
from tests.translate.support import call_to, run

pytestmark = pytest.mark.anyio
NAMES = [name for name in DIALECTS if name != "anthropic"]
KINDS: tuple[Any, ...] = ("cut", "reset", "stall", "malform", "torn", "ends")
EVENTS = {name: stream_events(name, usage=True) for name in NAMES}
AT_ONCE = 60


def first_word(name: str) -> int:
    """The index of the first event with content."""
    dialect = dialect_of(name)
    return next(at for at, event in enumerate(EVENTS[name]) if dialect.says(event, b'"one'))


def finish(name: str) -> int:
    """The index of the event in which a provider of our client's dialect says itself why it finished; others' finish
    is written by us."""
    if not DISTINCT[name].is_same_dialect:
        return len(EVENTS[name])
    dialect = dialect_of(name)
    return next(at for at, event in enumerate(EVENTS[name]) if dialect.says(event, b'"finish_reason": "stop"'))


def whole_from(name: str) -> int:
    """Of how many events on a stream that ends properly is whole. Where the vendor marks no end but in saying why it
    finished, a usage behind that may be missing."""
    provider = DISTINCT[name]
    for count in range(len(EVENTS[name])):
        translator = provider.stream(call_to(provider, {"stream": True}), dialect_of(name).stream_head)
        with contextlib.suppress(UpstreamBrokenError):
            run(translator, *EVENTS[name][:count])
            return count
    return len(EVENTS[name])


def test_a_stream_is_whole_only_after_its_last_word() -> None:
    late = {name: len(EVENTS[name]) - whole_from(name) for name in NAMES}
    assert {name for name, events in late.items() if events} <= {"watsonx"}, "only who marks no end"
    for name in NAMES:
        dialect = dialect_of(name)
        last_word = max(at for at, event in enumerate(EVENTS[name]) if dialect.says(event, b" five"))
        assert whole_from(name) > last_word


@pytest.fixture(scope="module")
async def gateway_of_file(
    provider_of_file: FaultProvider, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    folder: Path = tmp_path_factory.mktemp("gateway")
    models = []
    for name in NAMES:
        dialect = dialect_of(name)
        deployment = {
            "provider": name, "model": f"{name}-1", "api_key": PROVIDER_KEY, "price": {"input": 1, "output": 2},
            "base_url": provider_of_file.base_url + dialect.base_path, "max_output_tokens": 64,
            **dialect.options,
        }  # fmt: skip
        models.append({"name": name, "deployments": [deployment]})
        models.append({"name": f"{name}-impatient", "deployments": [deployment | {"timeouts": {"gap_s": 0.3}}]})
    async with served(folder, provider_of_file.base_url, top={"models": models}) as running:
        yield running


async def all_at_once(gateway: Running, key: str, asked: list[dict[str, Any]]) -> list[httpx2.Response]:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(payload: dict[str, Any]) -> httpx2.Response:
        async with gate:
            return await gateway.chat(key, payload)

    return await asyncio.gather(*map(one, asked))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stream_of_any_dialect_broken_at_any_event_ends_with_an_error(
    gateway: Running, faults: FaultProvider, kind: Any
) -> None:
    key = await gateway.mint()
    script = [Fault(kind, after=at, drip_s=0.001) for at in range(max(map(len, EVENTS.values())))]
    asked = []
    for name in NAMES:
        places = range(whole_from(name) if kind == "ends" else len(EVENTS[name]))
        for at in (1, first_word(name) + 2) if kind == "stall" else places:
            text = f"{name} at {at}."
            asked.append(body(model_for(kind, name), stream=True, messages=[{"role": "user", "content": text}]))
            faults.script_for(text.encode(), script[at])
    answers = await all_at_once(gateway, key, asked)
    assert len(faults.requests) == len(asked)
    rows = {row["exchange_id"]: row for row in await gateway.rows(key, at_least=len(asked))}
    assert len(rows) == len(asked)
    is_reset = kind == "reset"
    for payload, answer in zip(asked, answers, strict=True):
        name, _, place = payload["messages"][0]["content"][:-1].rpartition(" at ")
        at = int(place)
        began = at > first_word(name)
        assert_broken(answer, content_began=began, provider_finished=at > finish(name), is_reset=is_reset)
        assert_row(rows[answer.headers["x-request-id"]], content_began=began, is_reset=is_reset)
        if began and not is_reset:
            said = [c["delta"].get("content") or "" for e in events_of(answer.text)[:-1] for c in e["choices"]]
            assert "".join(WORDS).startswith("".join(said))
            assert "".join(said).startswith(WORDS[0])


@pytest.mark.parametrize("is_stream", [False, True], ids=["unstreamed", "streamed"])
async def test_an_answer_of_any_dialect_that_is_none_is_an_error(
    gateway: Running, faults: FaultProvider, is_stream: bool
) -> None:
    key = await gateway.mint()
    script = [
        *WHOLE_BUT_WRONG,
        *(() if is_stream else (Fault("malform"), Fault("cut", after=2), Fault("cut", after=3))),
    ]
    asked = []
    for name in NAMES:
        for number, fault in enumerate(script):
            text = f"{name} number {number}."
            asked.append(body(name, stream=is_stream, messages=[{"role": "user", "content": text}]))
            faults.script_for(text.encode(), fault)
    for answer in await all_at_once(gateway, key, asked):
        assert answer.status_code in (500, 502, 503, 504), answer.text  # some say in the body which it is
        assert answer.json()["error"]["message"]
        assert "data:" not in answer.text
    for row in await gateway.rows(key, at_least=len(asked)):
        assert_row(row, content_began=False)


@pytest.mark.parametrize("name", NAMES)
async def test_the_stock_sdk_raises_in_any_dialect(gateway: Running, faults: FaultProvider, name: str) -> None:
    key = await gateway.mint()
    for fault in (Fault("cut", after=first_word(name) + 2, drip_s=0.001), Fault("torn", after=len(EVENTS[name]) - 1)):
        faults.script(fault)
        await sdk_raises(gateway, key, body(name, stream=True))
    for row in await gateway.rows(key, at_least=2):
        assert_row(row, content_began=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("status", [400, 401, 429, 503])
async def test_a_refusal_in_any_dialect_is_an_error_answer(
    gateway: Running, faults: FaultProvider, name: str, status: int
) -> None:
    key = await gateway.mint()
    faults.script(Fault("status", status=status, body=b'{"message":"scripted","error":{"message":"scripted"}}'))
    answer = await gateway.chat(key, body(name, stream=True))
    assert 400 <= answer.status_code < 600
    assert answer.json()["error"]["message"]
    (row,) = await gateway.rows(key, at_least=1)
    assert row["outcome"] == "provider_error"
