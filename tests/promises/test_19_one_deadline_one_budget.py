"""*One deadline, one attempt budget.* Fail-over is invisible before the first content byte: whatever the first provider
does, the client gets the second one's whole answer. After it nothing is spliced. Attempts and time are bounded over the
whole request, waits and fallbacks included; the final status is the honest one. Each attempt has a ledger row.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.faults.provider import WORDS, Fault, FaultProvider, chat_events, message_events
from tests.promises.support import PROVIDER_KEY, Running, body, eventually, model_for, process, served

pytestmark = pytest.mark.anyio

WHOLE = "".join(WORDS)
FIRST_WORD = {"openai": 1, "anthropic": 2}
"""The index of the first event with content."""
EVENTS = {
    "openai": len(chat_events(usage=True, forced_usage=True)),
    "anthropic": len(message_events(usage=True)),
}
OTHER = {"openai": "anthropic", "anthropic": "openai"}
LATE = ("cut", "reset", "stall", "malform", "ends")
IMPATIENT = {"timeouts": {"first_byte_s": 0.4, "gap_s": 0.4, "total_s": 0.5}}
"""Only of who says nothing, and before any content: how soon it is given up changes nothing then."""


def place(dialect: str, provider: FaultProvider | str, **more: Any) -> dict[str, Any]:
    url = provider if isinstance(provider, str) else provider.base_url
    return {
        "provider": dialect, "model": f"{dialect}-1", "api_key": PROVIDER_KEY, "max_output_tokens": 64,
        "base_url": f"{url}/v1" if dialect == "openai" else url, "price": {"input": 1, "output": 2}, **more,
    }  # fmt: skip


def routed(models: dict[str, list[dict[str, Any]]], **routing: Any) -> dict[str, Any]:
    """The `top` of a config: groups in the order given, no pauses that outlast a call (but where a provider asks for
    one: then a group is for one test)."""
    return {
        "models": [{"name": name, "deployments": places} for name, places in models.items()],
        "routing": {"retries": 2, "cooldown_s": 0.001, "cooldown_after": 100, **routing},
    }


@pytest.fixture(scope="module")
async def gateway_of_pair(
    pair: tuple[FaultProvider, FaultProvider], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    first, second = pair
    models = {
        "openai": [place("openai", first), place("anthropic", second, order=2)],
        "anthropic": [place("anthropic", first), place("openai", second, order=2)],
        "openai-impatient": [place("openai", first, **IMPATIENT), place("anthropic", second, order=2)],
        "anthropic-impatient": [place("anthropic", first, **IMPATIENT), place("openai", second, order=2)],
        "group": [place("openai", first)],
        "fallback": [place("anthropic", second)],
        **{name: [place("openai", first)] for name in ("lone", "asked-to-wait", "left")},
        **{
            name: [place("openai", first), place("anthropic", second, order=2, **IMPATIENT if is_silent(other) else {})]
            for name, _, other, *_ in FINAL
        },
        **{
            f"{kind}-{dialect}": [
                place(dialect, first, **{"timeouts": {"gap_s": 0.4}} if kind == "stall" else {}),
                place(OTHER[dialect], second, order=2),
            ]
            for dialect in OTHER
            for kind in LATE
        },
        "unreachable": [place("openai", "http://127.0.0.1:9"), place("anthropic", "http://127.0.0.1:9", order=2)],
    }
    top = routed(models, fallbacks={"group": ["fallback"]})
    async with served(tmp_path_factory.mktemp("gateway"), first.base_url, top=top) as running:
        yield running


@pytest.fixture
def gateway(gateway_of_pair: Running) -> Running:
    return gateway_of_pair


def text_of(answer: httpx2.Response) -> str:
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return str(answer.json()["choices"][0]["message"]["content"])
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]", answer.text[-300:]
    chunks = [json.loads(event) for event in events[:-1]]
    assert all("error" not in chunk for chunk in chunks)
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


EARLY = [
    Fault("status", status=500),
    Fault("status", status=503),
    Fault("status", status=529),
    Fault("status", status=429),
    Fault("status", status=408),
    Fault("status", status=401),
    Fault("status", status=403),
    Fault("status", status=404),
    Fault("html", status=502),
    Fault("html"),
    Fault("empty"),
    Fault("null"),
    Fault("silent"),
    *(Fault(kind, after=0) for kind in ("cut", "reset", "stall", "malform")),
]
"""What a provider may do before any content."""
EARLY_IN_A_STREAM = [
    *(Fault(kind, after=1) for kind in ("cut", "reset", "stall", "malform", "ends")),
    Fault("done_only"),
]


def is_silent(fault: Fault) -> bool:
    return fault.kind in ("silent", "stall")


def id_of(fault: Fault) -> str:
    return f"{fault.kind}-{fault.status}-{fault.after}"


async def assert_fails_over(gateway: Running, first: FaultProvider, second: FaultProvider, **asked: Any) -> None:
    key = await gateway.mint()
    answer = await gateway.chat(key, body(**asked))
    assert answer.status_code == 200, answer.text
    assert text_of(answer) == WHOLE
    assert answer.headers["x-sidecar-attempts"] == "2"
    assert (len(first.requests), len(second.requests)) == (1, 1)
    failed, done = await gateway.rows(key, at_least=2)
    assert (failed["outcome"], done["outcome"]) == ("provider_error", "ok")
    assert failed["exchange_id"] == done["exchange_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("is_stream", [False, True], ids=["unstreamed", "streamed"])
@pytest.mark.parametrize("model", ["openai", "anthropic"])
@pytest.mark.parametrize("fault", EARLY, ids=id_of)
async def test_fail_over_before_the_first_content_byte_is_invisible(
    gateway: Running, first: FaultProvider, second: FaultProvider, fault: Fault, model: str, is_stream: bool
) -> None:
    first.script(fault)
    await assert_fails_over(gateway, first, second, model=model_for(fault.kind, model), stream=is_stream)


@pytest.mark.parametrize("model", ["openai", "anthropic"])
@pytest.mark.parametrize("fault", EARLY_IN_A_STREAM, ids=id_of)
async def test_a_stream_that_began_without_content_fails_over_too(
    gateway: Running, first: FaultProvider, second: FaultProvider, fault: Fault, model: str
) -> None:
    first.script(fault)
    await assert_fails_over(gateway, first, second, model=model_for(fault.kind, model), stream=True)


@pytest.mark.parametrize("quarter", [1, 2, 3])
@pytest.mark.parametrize("kind", ["cut", "reset", "stall"])
async def test_an_unstreamed_answer_fails_over_at_any_byte(
    gateway: Running, first: FaultProvider, second: FaultProvider, kind: Any, quarter: int
) -> None:
    first.script(Fault(kind, after=quarter))
    await assert_fails_over(gateway, first, second, model=model_for(kind, "openai"), stream=False)


async def test_a_fallback_group_takes_over_and_a_key_that_may_not_call_it_is_not_served_by_it(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    first.script(Fault("status", status=500))
    await assert_fails_over(gateway, first, second, model="group", stream=True)
    first.reset(), second.reset()
    first.script(*[Fault("status", status=500)] * 9)
    answer = await gateway.chat(await gateway.mint(models=["group"]), body("group"))
    assert answer.status_code == 500, "its own, for it is the only one"
    assert (len(first.requests), len(second.requests)) == (3, 0)


@pytest.mark.parametrize("model", ["openai", "anthropic"])
@pytest.mark.parametrize("kind", LATE)
async def test_after_the_first_content_byte_no_other_model_goes_on(
    gateway: Running, first: FaultProvider, second: FaultProvider, model: str, kind: Any
) -> None:
    places = range(FIRST_WORD[model] + 1, EVENTS[model] - 2)
    first.script(*(Fault(kind, after=at, drip_s=0.005) for at in places))
    key = await gateway.mint()
    answers = await asyncio.gather(*(gateway.chat(key, body(f"{kind}-{model}", stream=True)) for _ in places))
    assert len(first.requests) == len(places)
    assert second.requests == []
    for answer in answers:
        assert answer.status_code == 200
        *_, last = [line for line in answer.text.splitlines() if line.startswith("data: ")]
        assert set(json.loads(last[6:])) == {"error"}
        assert "[DONE]" not in answer.text
    rows = await gateway.rows(key, at_least=len(places))
    assert [row["outcome"] for row in rows] == ["incomplete"] * len(places)


@pytest.mark.parametrize("model", ["openai", "group", "lone"])
async def test_one_budget_of_attempts_spans_retries_and_fallbacks(
    gateway: Running, first: FaultProvider, second: FaultProvider, model: str
) -> None:
    first.script(*[Fault("status", status=500)] * 99)
    second.script(*[Fault("status", status=500)] * 99)
    key = await gateway.mint()
    answers = await asyncio.gather(*(gateway.chat(key, body(model, stream=n % 2 == 0)) for n in range(10)))
    assert len(first.requests) + len(second.requests) == 3 * len(answers)
    assert {answer.headers["x-sidecar-attempts"] for answer in answers} == {"3"}
    assert len(await gateway.rows(key, at_least=3 * len(answers))) == 3 * len(answers)


FINAL: list[tuple[str, Fault, Fault, int, str, str | None]] = [
    ("both-broken", Fault("status", status=500), Fault("status", status=500), 503, "upstreams_failed", None),
    ("one-broken-one-silent", Fault("status", status=500), Fault("silent"), 503, "upstreams_failed", None),
    (
        "both-busy-the-sooner",
        Fault("status", status=429, headers=(("retry-after", "40"),)),
        Fault("status", status=429, headers=(("retry-after", "30"),)),
        429, "rate_limit_exceeded", "30",
    ),
    (
        "one-busy-one-broken",
        Fault("status", status=429, headers=(("retry-after", "40"),)), Fault("status", status=500),
        503, "upstreams_failed", "40",
    ),
    ("the-client-s-own-mistake", Fault("status", status=500), Fault("status", status=400), 400, "bad_request", None),
    ("nobody-has-the-model", Fault("status", status=404), Fault("status", status=404), 404, "model_not_found", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "one", "other", "status", "code", "wait"), FINAL, ids=[f[0] for f in FINAL])
async def test_the_final_status_is_the_honest_one(
    gateway: Running,
    first: FaultProvider,
    second: FaultProvider,
    name: str,
    one: Fault,
    other: Fault,
    status: int,
    code: str,
    wait: str | None,
) -> None:
    plain = b'{"error":{"message":"the reason it gives"}}'
    first.script(*[Fault(one.kind, status=one.status, headers=one.headers, body=plain)] * 3)
    second.script(*[Fault(other.kind, status=other.status, headers=other.headers, body=plain)] * 3)
    answer = await gateway.chat(await gateway.mint(), body(name))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code), answer.text
    assert answer.headers.get("retry-after") == wait
    if status != 400:
        assert f"{name}#0:openai: Provider openai answered" in error["message"]
        assert f"{name}#1:anthropic: " in error["message"]


async def test_nobody_reachable_is_one_503_that_names_them_all(gateway: Running) -> None:
    answer = await gateway.chat(await gateway.mint(), body("unreachable", stream=True))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "upstreams_failed")
    assert "unreachable#0:openai" in answer.json()["error"]["message"]
    assert "unreachable#1:anthropic" in answer.json()["error"]["message"]


async def test_a_wait_is_at_least_as_long_as_the_provider_asks(gateway: Running, first: FaultProvider) -> None:
    first.script(Fault("status", status=429, headers=(("retry-after", "1"),)))
    answer = await gateway.chat(await gateway.mint(), body("asked-to-wait"))
    assert answer.status_code == 200
    asked, again = first.requests
    assert again.at - asked.at >= 0.99


async def test_a_client_that_leaves_while_it_waits_is_not_asked_for_again(
    gateway: Running, first: FaultProvider
) -> None:
    first.script(Fault("status", status=429, headers=(("retry-after", "30"),)))
    key = await gateway.mint(max_parallel_requests=1)
    task = asyncio.create_task(gateway.chat(key, body("left")))
    await eventually(lambda: first.requests and first.requests[0].is_answered)
    task.cancel()
    await asyncio.wait({task})
    (row,) = await gateway.rows(key, at_least=1)
    assert row["spend"] == 0
    await gateway.is_free(key, model="anthropic")
    await eventually(lambda: gateway.gateway is not None and gateway.gateway._in_flight == 0)
    assert gateway.live_exchanges == 0, "nobody is left who would ask again"
    assert len([seen for seen in first.requests if "/chat/" in seen.target]) == 1


async def test_one_deadline_spans_everything(tmp_path: Path, pair: tuple[FaultProvider, FaultProvider]) -> None:
    """As a process of its own. Each attempt may take an hour and there are ten; the request has one second."""
    for provider in pair:
        provider.reset()
        provider.script(*[Fault("silent")] * 9)
    slow = {"timeouts": {"connect_s": 3600, "first_byte_s": 3600, "gap_s": 3600, "total_s": 3600}}
    models = {
        "both": [place("openai", pair[0], **slow), place("anthropic", pair[1], **slow, order=2)],
        "busy": [place("openai", pair[0])],
    }
    top = routed(models, retries=10, deadline_s=1.0)
    async with process(tmp_path, pair[0].base_url, top=top) as running:
        key = await running.mint()
        for is_stream in (False, True):
            answer = await running.chat(key, body("both", stream=is_stream))
            assert answer.status_code in (503, 504)
            assert "upstream_timeout" in answer.text or "took longer" in answer.text or "timed out" in answer.text
        assert len(pair[0].requests) + len(pair[1].requests) <= 2
        for _ in range(9):
            pair[0].reset()
            pair[0].script(Fault("status", status=429, headers=(("retry-after", "5"),)))
            answer = await running.chat(key, body("busy"))
            if pair[0].requests:
                break  # else the machine stood still for longer than the request had
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "5"), "no wait it cannot afford"
        assert len(pair[0].requests) == 1
        await eventually(lambda: all(seen.closed_at or seen.is_answered for seen in pair[1].requests))
