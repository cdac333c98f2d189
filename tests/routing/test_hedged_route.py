"""Hedging through the whole gateway, over sockets: a second attempt beside a slow one, the loser's socket closed, both
in the ledger, nothing left behind wherever the request ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sidecar.gateway import Gateway
from sidecar.middleware.route import RouteMiddleware
from sidecar.routing.hedging import BURST
from tests.asgi import call
from tests.faults.provider import Fault, FaultProvider
from tests.promises.support import MASTER, PROVIDER_KEY, Running, body, eventually, process, served

pytestmark = pytest.mark.anyio


def group(name: str, first: FaultProvider, second: FaultProvider, **more: Any) -> dict[str, Any]:
    """The first is asked first: the second is of a later level."""
    places = [
        {
            "provider": "openai", "model": "m", "api_key": PROVIDER_KEY, "base_url": f"{provider.base_url}/v1",
            "price": {"input": 1, "output": 2}, "max_output_tokens": 64, "order": order,
        }
        for order, provider in enumerate((first, second), 1)
    ]  # fmt: skip
    return {"name": name, "deployments": places, **more}


def limited(made: dict[str, Any]) -> dict[str, Any]:
    made["deployments"] = [place | {"limits": {"concurrency": 1}} for place in made["deployments"]]
    return made


def models_of(first: FaultProvider, second: FaultProvider) -> list[dict[str, Any]]:
    return [
        group("quick", first, second, hedge={"after_s": 0.05, "share": 1}),
        group("rare", first, second, hedge={"after_s": 0.001, "share": 0.1}),
        group("patient", first, second, hedge={"after_s": 2, "share": 1}),
        group("measured", first, second, hedge={"samples": 20, "share": 1}),
        group("plain", first, second),
        limited(group("narrow", first, second, hedge={"after_s": 0.05, "share": 1})),
        group("alone", first, second) | {"deployments": group("", first, second)["deployments"][:1],
                                         "hedge": {"after_s": 0.05, "share": 1}},
    ]  # fmt: skip


@pytest.fixture(scope="module")
async def gateway_of_pair(
    pair: tuple[FaultProvider, FaultProvider], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    top = {"models": models_of(*pair), "routing": {"retries": 1, "cooldown_s": 0.001}}
    async with served(tmp_path_factory.mktemp("gateway"), pair[0].base_url, top=top) as running:
        yield running


@pytest.fixture
def gateway(gateway_of_pair: Running) -> Running:
    return gateway_of_pair


SILENT = Fault("silent")


def route_of(gateway: Gateway | None) -> RouteMiddleware:
    app: Any = gateway.stack if gateway is not None else None
    while not isinstance(app, RouteMiddleware):
        app = app.app
    return app


async def is_idle(running: Running) -> None:
    """Nothing of any request goes on: no hold, no slot, no call in flight."""
    await eventually(lambda: running.live_exchanges == 0 and running.taken_slots == 0, name=lambda: "holds and slots")
    lives = route_of(running.gateway).router.board._live
    await eventually(lambda: all(live.in_flight == 0 for live in lives.values()), name=lambda: "calls in flight")


@pytest.mark.parametrize("is_stream", [False, True])
async def test_the_second_attempt_answers_and_the_slow_one_is_ended(
    gateway: Running, first: FaultProvider, second: FaultProvider, is_stream: bool
) -> None:
    key = await gateway.mint(max_budget=1)
    first.script(SILENT)
    answer = await gateway.chat(key, body("quick", stream=is_stream))
    assert answer.status_code == 200
    assert (answer.headers["x-sidecar-deployment"], answer.headers["x-sidecar-attempts"]) == ("quick#1:openai", "2")
    assert answer.text.count("one") == 1
    await eventually(lambda: first.requests[0].closed_how == "left")
    rows = await gateway.rows(key, at_least=2)
    assert [(row["attempt"], row["outcome"], row["status"]) for row in rows] == [
        (1, "incomplete", "unknown"),
        (2, "ok", "settled"),
    ]
    assert float(rows[0]["spend"]) > float(rows[1]["spend"]) > 0, "nobody knows what the ended one cost"
    assert await gateway.spend(key) == pytest.approx(sum(float(row["spend"]) for row in rows))
    await is_idle(gateway)
    metrics = (await gateway.http.get(gateway.url + "/metrics")).text
    assert 'sidecar_attempts_total{deployment="quick#0:openai",result="hedge_lost"}' in metrics


async def test_the_first_may_still_win(gateway: Running, first: FaultProvider, second: FaultProvider) -> None:
    key = await gateway.mint()
    first.script(Fault("ok", waits=True))  # its content comes with the second event
    second.script(SILENT)
    answering = asyncio.create_task(gateway.chat(key, body("quick", stream=True)))
    await eventually(lambda: len(second.requests) == 1)
    first.release()
    answer = await answering
    assert (answer.headers["x-sidecar-deployment"], answer.headers["x-sidecar-attempts"]) == ("quick#0:openai", "2")
    assert answer.text.endswith("data: [DONE]\n\n")
    await eventually(lambda: second.requests[0].closed_how == "left")
    assert second.requests[0].closed_at is not None
    rows = await gateway.rows(key, at_least=2)
    assert [(row["attempt"], row["outcome"]) for row in rows] == [(1, "ok"), (2, "incomplete")]
    await is_idle(gateway)


async def test_once_content_began_there_is_no_second_attempt(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    first.script(Fault("held", after=2))
    task = asyncio.create_task(gateway.chat(await gateway.mint(), body("patient", stream=True)))
    await eventually(lambda: len(first.requests) == 1)
    await asyncio.sleep(2.2)
    assert second.requests == []
    first.release()
    assert (await task).headers["x-sidecar-attempts"] == "1"


async def test_only_groups_that_ask_for_it_and_have_another_deployment(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    for model in ("plain", "alone"):
        first.script(Fault("ok", drip_s=0.1))
        answer = await gateway.chat(await gateway.mint(), body(model, stream=True))
        assert (answer.status_code, answer.headers["x-sidecar-attempts"], second.requests) == (200, "1", [])


async def test_a_budget_that_does_not_cover_two_has_no_second_attempt(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    # One attempt of 500 tokens of output costs at most $0.001 and a bit.
    for budget, attempts in ((0.0015, "1"), (0.004, "2")):
        key = await gateway.mint(max_budget=budget)
        first.script(Fault("ok", waits=True))
        answering = asyncio.create_task(gateway.chat(key, body("quick", stream=True, max_tokens=500)))
        await eventually(lambda: len(first.requests) == 1)
        if attempts == "2":
            await eventually(lambda: len(second.requests) == 1)
        else:
            await asyncio.sleep(0.2)
        first.release()
        answer = await answering
        assert (answer.status_code, answer.headers["x-sidecar-attempts"]) == (200, attempts), answer.text
        await is_idle(gateway)
        first.reset()
    assert len(second.requests) == 1


async def test_both_are_held_for_while_both_run(gateway: Running, first: FaultProvider, second: FaultProvider) -> None:
    key = await gateway.mint(max_budget=1)
    first.script(SILENT, SILENT)
    second.script(SILENT)
    held = []
    for model, begun in (("plain", first), ("quick", second)):
        before = gateway.counted_nano
        task = asyncio.create_task(gateway.chat(key, body(model, max_tokens=1000)))
        await eventually(lambda begun=begun: len(begun.requests) == 1)
        held.append(gateway.counted_nano - before)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await is_idle(gateway)
    alone, both = held
    assert both == 2 * alone > 0


async def test_a_client_that_leaves_ends_both(gateway: Running, first: FaultProvider, second: FaultProvider) -> None:
    key = await gateway.mint(max_parallel_requests=1)
    first.script(SILENT)
    second.script(SILENT)
    task = asyncio.create_task(gateway.chat(key, body("quick", stream=True)))
    await eventually(lambda: len(second.requests) == 1)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await eventually(lambda: {first.requests[0].closed_how, second.requests[0].closed_how} == {"left"})
    await gateway.is_free(key, model="plain")
    rows = await gateway.rows(key, at_least=3)
    assert sorted((row["attempt"], row["outcome"]) for row in rows) == [
        (1, "client_left"),
        (1, "ok"),
        (2, "client_left"),
    ]
    await is_idle(gateway)


async def after_the_second(gateway: Running, first: FaultProvider, second: FaultProvider) -> httpx2.Response:
    """An answer, its first attempt released once the second one was answered."""
    answering = asyncio.create_task(gateway.chat(await gateway.mint(), body("quick", stream=True)))
    await eventually(lambda: bool(second.requests) and second.requests[0].is_answered)
    first.release()
    return await answering


async def test_if_one_of_two_fails_the_other_is_waited_for(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    first.script(Fault("ok", waits=True))
    second.script(Fault("status", status=500))
    answer = await after_the_second(gateway, first, second)
    assert (answer.status_code, answer.headers["x-sidecar-deployment"]) == (200, "quick#0:openai")
    assert (len(first.requests), len(second.requests)) == (1, 1), "no third attempt meanwhile"


async def test_if_both_fail_the_client_is_told_both_reasons(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    first.script(Fault("cut", after=1, waits=True))
    second.script(Fault("status", status=500))
    answer = await after_the_second(gateway, first, second)
    assert (answer.status_code, answer.headers["x-sidecar-attempts"]) == (503, "2"), answer.text
    message = answer.json()["error"]["message"]
    assert "quick#0:openai" in message
    assert "quick#1:openai" in message


async def test_a_mistake_of_the_clients_ends_the_other_too(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    first.script(SILENT)
    second.script(Fault("status", status=400, body=b'{"error":{"message":"no","type":"invalid_request_error"}}'))
    key = await gateway.mint()
    answer = await gateway.chat(key, body("quick"))
    assert answer.status_code == 400
    await eventually(lambda: first.requests[0].closed_how == "left")
    rows = await gateway.rows(key, at_least=2)
    assert [(row["attempt"], row["outcome"]) for row in rows] == [(1, "incomplete"), (2, "provider_error")]
    await is_idle(gateway)


async def test_second_attempts_are_a_share_of_the_requests(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    key = await gateway.mint()
    for drip_s in (0.01, 0.05, 0.2):  # so long content takes; on a slow machine less is no time for a second attempt
        first.reset(), second.reset()
        first.script(*[Fault("ok", drip_s=drip_s)] * 50)
        for _ in range(50):
            assert (await gateway.chat(key, body("rare", stream=True))).status_code == 200
        assert len(second.requests) <= BURST + 5
        if len(second.requests) >= 3:
            return
    raise AssertionError(f"{len(second.requests)} second attempts, though a tenth are allowed")


async def test_the_time_is_measured(gateway: Running, first: FaultProvider, second: FaultProvider) -> None:
    key = await gateway.mint()
    for _ in range(20):
        await gateway.chat(key, body("measured"))
    assert second.requests == []
    first.script(SILENT)
    answer = await gateway.chat(key, body("measured"))
    assert answer.headers["x-sidecar-deployment"] == "measured#1:openai"


async def test_wherever_the_server_cancels_nothing_is_left(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    """The request's task is cancelled after 0, 1, 2 … turns of the loop, and while both run."""
    assert gateway.gateway is not None
    headers = {"authorization": f"Bearer {MASTER}", "content-type": "application/json"}
    ended = 0
    for turns in [*range(0, 60, 2), 0.03, 0.06, 0.1]:
        first.reset(), second.reset()
        first.script(Fault("ok", drip_s=0.1))
        second.script(Fault("ok", drip_s=0.1))
        before = asyncio.all_tasks()
        asked = body("quick", stream=True, max_tokens=20)
        task = asyncio.create_task(call(gateway.gateway, asked, headers=headers))
        if isinstance(turns, int):
            for _ in range(turns):
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(turns)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
            ended += 1
        await is_idle(gateway)
        left = {t for t in asyncio.all_tasks() - before if "Dispatch" in repr(t) or "Inbox" in repr(t)}
        assert not left, (turns, left)
    assert ended < 16, "most were really cancelled"


async def test_a_cancelled_pair_has_its_rows(tmp_path: Path, first: FaultProvider, second: FaultProvider) -> None:
    top = {"models": models_of(first, second), "routing": {"retries": 1}, "server": {"grace_s": 0.1}}
    first.script(SILENT)
    second.script(SILENT)
    async with served(tmp_path, first.base_url, top=top) as running:
        key = await running.mint()
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        task = asyncio.create_task(call(running.gateway, body("quick"), headers=headers))  # type: ignore[arg-type]
        await eventually(lambda: len(second.requests) == 1)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        rows = await running.rows(key, at_least=2)
        assert [(row["attempt"], row["outcome"], row["status"]) for row in rows] == [
            (1, "incomplete", "unknown"),
            (2, "incomplete", "unknown"),
        ]


async def test_comments_into_the_silence_of_both_leave_the_answer_whole(
    tmp_path: Path, first: FaultProvider, second: FaultProvider
) -> None:
    top = {
        "models": models_of(first, second),
        "routing": {"retries": 1},
        "server": {"heartbeat_s": 0.02, "heartbeat_early": True},
    }
    async with served(tmp_path, first.base_url, top=top) as running:
        key = await running.mint()

        def without_comments(text: str) -> list[str]:
            return [event for event in text.split("\n\n") if not event.startswith(":")]

        plain = without_comments((await running.chat(key, body("plain", stream=True))).text)
        for _ in range(5):
            first.script(SILENT)
            second.script(Fault("ok", drip_s=0.05))
            answer = await running.chat(key, body("quick", stream=True))
            assert answer.status_code == 200
            assert ": keep-alive" in answer.text.split("\n\n")
            assert without_comments(answer.text) == plain
        await is_idle(running)


async def test_places_of_both_deployments_are_given_back(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    key = await gateway.mint()
    for _ in range(5):
        first.script(SILENT)
        answer = await gateway.chat(key, body("narrow"))
        assert (answer.status_code, answer.headers["x-sidecar-deployment"]) == (200, "narrow#1:openai")
        await is_idle(gateway)
    first.script(Fault("ok", drip_s=0.1))
    second.script(SILENT)
    answer = await gateway.chat(key, body("narrow", stream=True))
    assert (answer.status_code, answer.headers["x-sidecar-deployment"]) == (200, "narrow#0:openai")
    await is_idle(gateway)


async def test_a_full_deployment_is_not_asked_beside_another(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    key = await gateway.mint()
    poor = await gateway.mint(max_budget=0.0002)  # for one attempt: however slow, no second one takes the other place
    first.script(Fault("ok", waits=True))
    long = asyncio.create_task(gateway.chat(poor, body("narrow", stream=True)))
    await eventually(lambda: len(first.requests) == 1)
    second.script(Fault("ok", drip_s=0.2))
    answer = await gateway.chat(key, body("narrow", stream=True))
    assert (answer.status_code, answer.headers["x-sidecar-deployment"]) == (200, "narrow#1:openai")
    assert (answer.headers["x-sidecar-attempts"], len(first.requests)) == ("1", 1)
    first.release()
    assert (await long).status_code == 200
    await is_idle(gateway)


async def test_in_a_process_of_its_own(tmp_path: Path, first: FaultProvider, second: FaultProvider) -> None:
    top = {
        "models": models_of(first, second),
        "routing": {"retries": 1},
        "server": {"max_in_flight": 100, "max_lag_s": 30},
        "queue": {"size": 10},
    }
    async with process(tmp_path, first.base_url, top=top) as running:
        key = await running.mint()
        for is_stream in (False, True):
            first.script(SILENT)
            answer = await running.chat(key, body("quick", stream=is_stream))
            assert (answer.status_code, answer.headers["x-sidecar-deployment"]) == (200, "quick#1:openai")
        await eventually(lambda: {seen.closed_how for seen in first.requests} == {"left"})
        rows = await running.rows(key, at_least=4)
        assert sorted(row["outcome"] for row in rows) == ["incomplete", "incomplete", "ok", "ok"]
        text = (await running.http.get(running.url + "/metrics")).text
        assert 'sidecar_hedges_won_total{group="quick"} 2.0' in text


async def test_a_budget_stays_a_ceiling_with_two_attempts_per_request(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    key = await gateway.mint(max_budget=0.0145)
    first.script(*[SILENT] * 10)
    asked = [asyncio.create_task(gateway.chat(key, body("quick", max_tokens=500))) for _ in range(10)]
    await eventually(lambda: sum(task.done() for task in asked) >= max(1, len(second.requests)))
    await asyncio.wait(asked, timeout=0.3)  # the others found no money for a second attempt
    codes = [task.result().status_code for task in asked if task.done()]
    assert set(codes) <= {200, 429}
    assert 200 in codes
    for task in asked:
        task.cancel()
    await asyncio.wait(asked)
    await is_idle(gateway)
    rows = await gateway.rows(key, at_least=len(first.requests) + len(second.requests))
    spent = sum(float(row["spend"]) for row in rows)
    assert spent <= 0.0145
    assert await gateway.spend(key) == pytest.approx(spent)
    assert len(rows) == len(first.requests) + len(second.requests), "every call of a provider has its row"
