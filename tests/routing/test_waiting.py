"""Waiting instead of 429, through the stack: order, fairness, priorities, time, leaving, cancellation; nothing is
left behind. Rates of 60 s are made short by a clock that runs as told."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from sidecar import waiting
from sidecar.asgi import ASGIApp, Scope
from sidecar.limits.store.memory import MemoryStore
from sidecar.middleware.auth import AuthMiddleware
from sidecar.middleware.budget import BudgetMiddleware
from sidecar.middleware.rate_limit import RateLimitMiddleware
from sidecar.middleware.route import RouteMiddleware
from sidecar.middleware.spend import SpendMiddleware
from sidecar.middleware.translate import TranslateMiddleware
from sidecar.places import DeploymentPlaces
from sidecar.routing.catalog import Catalog
from sidecar.types import Deployment, Identity, Limits, Principal
from sidecar.waiting import WaitingRoom
from tests.asgi import Answer, call
from tests.faults.provider import Fault
from tests.middleware.stack import BODY, CALLER, DEPLOYMENT, Rows, Speaker, make_policy
from tests.promises.support import body, eventually, process, served

pytestmark = pytest.mark.anyio


class Clock:
    """Stands still but for what it is told."""

    def __init__(self) -> None:
        self.began = time.time()
        self.ahead = 0.0

    def __call__(self) -> float:
        return self.began + self.ahead


class ManyKeys:
    """`sk-NAME` is the key of that name."""

    def __init__(self, *identities: Identity) -> None:
        self.known = {f"sk-{identity.key_alias}": identity for identity in identities}

    def cached(self, token: str) -> Identity | None:
        return self.known.get(token)

    async def lookup(self, token: str) -> Identity:
        raise AssertionError(token)


def key(name: str, **more: Any) -> Identity:
    return Identity(key_hash=name * 8, key_alias=name, **{"limits": Limits(), **more})


class Held(Speaker):
    """Answers when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.go.set()
        self.order: list[str] = []
        self.by: dict[str, asyncio.Event] = {}
        """Deployments that answer when they are told to."""

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        exchange = scope["sidecar"]
        self.order.append(exchange.caller.key_alias)
        await self.by.get(exchange.attempt.deployment.deployment_id, self.go).wait()
        await super().__call__(scope, receive, send)


@dataclass
class Stack:
    room: WaitingRoom
    identities: tuple[Identity, ...]
    deployments: tuple[Deployment, ...] = (DEPLOYMENT,)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.speaker = Held()
        self.rows = Rows()
        catalog = Catalog(self.deployments)
        self.policy = make_policy(catalog, clock=self.clock)
        app: ASGIApp = TranslateMiddleware(self.speaker)
        places = DeploymentPlaces(self.policy.admission)
        app = self.route = RouteMiddleware(app, catalog=catalog, places=places, room=self.room)
        app = SpendMiddleware(app, recorder=self.rows)
        app = BudgetMiddleware(app, policy=self.policy)
        app = RateLimitMiddleware(app, policy=self.policy, room=self.room)
        self.app = AuthMiddleware(app, keys=ManyKeys(*self.identities))

    async def ask(self, name: str, *, timeout_s: float = 120, leave_after: int | None = None, **headers: str) -> Answer:
        headers = {k.replace("_", "-"): v for k, v in headers.items()} | {"authorization": f"Bearer sk-{name}"}
        return await call(self.app, BODY, headers=headers, timeout_s=timeout_s, leave_after=leave_after)

    def begin(self, name: str, **more: Any) -> asyncio.Task[Answer]:
        return asyncio.create_task(self.ask(name, **more))

    async def waiting(self, count: int) -> None:
        await eventually(lambda: self.room.lines.count == count, 60, lambda: f"{count}, not {self.room.lines.count}")

    def is_empty(self) -> bool:
        store = self.policy.admission.store
        assert isinstance(store, MemoryStore)
        return (
            not store._live and not any(store._slots.values()) and not self.room.lines.count and not self.room._states
        )


def team(limits: Limits) -> dict[str, Any]:
    return {"team_id": "t", "principals": (Principal("team", "t", limits=limits),)}


@pytest.fixture
async def no_tasks_left(anyio_backend: str) -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield

    def left() -> list[asyncio.Task[Any]]:
        return [task for task in asyncio.all_tasks() - before if "TestRunner" not in repr(task)]

    await eventually(lambda: not left(), 60, lambda: repr(left()))


async def test_200_calls_at_once_on_a_limit_of_20_at_a_time_are_all_served(no_tasks_left: None) -> None:
    stack = Stack(WaitingRoom(size=500), (key("a", limits=Limits(concurrency=20)),))
    answers = await asyncio.gather(*(stack.ask("a") for _ in range(200)))
    assert Counter(answer.status for answer in answers) == {200: 200}
    places = sorted(int(answer.headers["x-sidecar-queue"]) for answer in answers if "x-sidecar-queue" in answer.headers)
    assert len(places) == 180
    assert places[:3] == [1, 2, 3]
    assert stack.room.results["served"] == 180
    assert stack.is_empty()


async def test_200_calls_at_once_on_100_a_minute_the_rest_is_served_when_the_minute_is_over(
    no_tasks_left: None,
) -> None:
    stack = Stack(WaitingRoom(size=500, max_wait_s=120), (key("a", limits=Limits(rpm=100)),))
    calls = [stack.begin("a") for _ in range(200)]
    await stack.waiting(100)
    await eventually(lambda: sum(task.done() for task in calls) >= 100)
    for _ in range(500):
        await asyncio.sleep(0)
    assert sum(task.done() for task in calls) == 100
    stack.clock.ahead = 61.0
    answers = await asyncio.gather(*calls)
    assert {answer.status for answer in answers} == {200}
    assert stack.is_empty()


async def test_a_newcomer_does_not_pass_those_who_wait(no_tasks_left: None) -> None:
    stack = Stack(WaitingRoom(size=10, max_wait_s=200), (key("a", limits=Limits(rpm=1)),))
    assert (await stack.ask("a")).status == 200
    first = stack.begin("a")
    await stack.waiting(1)
    stack.clock.ahead = 61.0  # there is room now, and the first of the line has not looked yet
    second = stack.begin("a")
    await stack.waiting(2)
    assert (await first).status == 200
    assert not second.done()
    stack.clock.ahead = 122.0
    assert (await second).headers["x-sidecar-queue"] == "2"


async def test_keys_of_one_team_take_turns(no_tasks_left: None) -> None:
    limited = team(Limits(concurrency=1))
    stack = Stack(WaitingRoom(size=100), tuple(key(name, **limited) for name in "abc"))
    stack.speaker.go.clear()
    calls = [stack.begin("a")]
    await eventually(lambda: stack.speaker.order == ["a"])
    for count, name in enumerate("aaaaabbc", 1):
        calls.append(stack.begin(name))
        await stack.waiting(count)
    stack.speaker.go.set()
    await asyncio.gather(*calls)
    assert "".join(stack.speaker.order) == "a" + "abcabaaa"


async def test_priority_is_the_configurations_and_a_header_only_lowers_it(no_tasks_left: None) -> None:
    limited = team(Limits(concurrency=1))
    room = WaitingRoom(size=100, priorities={f"key:{'h' * 8}": 5, "team:t": 1}, is_header_read=True)
    stack = Stack(room, tuple(key(name, **limited) for name in "abh"))
    stack.speaker.go.clear()
    calls = [stack.begin("a")]
    await eventually(lambda: stack.speaker.order == ["a"])
    wanted = [("a", "100"), ("b", "-3"), ("h", "nonsense"), ("h", "0"), ("b", "")]
    for count, (name, asked) in enumerate(wanted, 1):
        calls.append(stack.begin(name, **({"x_sidecar_priority": asked} if asked else {})))
        await stack.waiting(count)
    stack.speaker.go.set()
    await asyncio.gather(*calls)
    assert stack.speaker.order == ["a", "h", "a", "b", "h", "b"]


async def test_without_the_setting_the_header_says_nothing(no_tasks_left: None) -> None:
    stack = Stack(WaitingRoom(size=100, priorities={"team:t": 3}), (key("a", **team(Limits(concurrency=1))),))
    scope: dict[str, Any] = {"headers": [(b"x-sidecar-priority", b"-9")]}
    assert stack.room.priority_of(stack.identities[0], scope) == 3


async def test_a_wait_that_would_be_too_long_is_refused_at_once(no_tasks_left: None) -> None:
    stack = Stack(WaitingRoom(size=100, max_wait_s=50), (key("a", limits=Limits(rpm=1)),))
    assert (await stack.ask("a")).status == 200
    refused = await stack.ask("a", timeout_s=40)
    assert (refused.status, refused.error["code"]) == (429, "requests_limit_exceeded")
    assert int(refused.headers["retry-after"]) > 50
    assert stack.is_empty()


async def test_time_runs_out_while_waiting(no_tasks_left: None) -> None:
    stack = Stack(WaitingRoom(size=100, max_wait_s=1.3), (key("a", limits=Limits(concurrency=1)),))
    stack.speaker.go.clear()
    running = stack.begin("a")
    await eventually(lambda: len(stack.speaker.order) == 1)
    first, second = await asyncio.gather(stack.ask("a"), stack.ask("a"))
    assert {first.status, second.status} == {429}
    assert first.error["code"] == "concurrency_limit_exceeded"
    assert second.error["code"] in ("queue_timeout", "concurrency_limit_exceeded"), "as far as it came"
    assert (first.headers["x-sidecar-queue"], second.headers["x-sidecar-queue"]) == ("1", "2")
    assert int(first.headers["x-sidecar-queue-ms"]) > 200
    stack.speaker.go.set()
    assert (await running).status == 200
    assert stack.is_empty()


async def test_the_room_is_bounded_and_a_greedy_key_gives_way(no_tasks_left: None) -> None:
    stack = Stack(WaitingRoom(size=3), tuple(key(name, **team(Limits(concurrency=1))) for name in "ab"))
    stack.speaker.go.clear()
    running = stack.begin("a")
    await eventually(lambda: len(stack.speaker.order) == 1)
    greedy = [stack.begin("a") for _ in range(3)]
    await stack.waiting(3)
    assert (await stack.ask("a", timeout_s=60)).error["code"] == "queue_full"
    other = stack.begin("b")
    await eventually(lambda: any(task.done() for task in greedy))
    assert [task.done() for task in greedy] == [False, False, True]
    assert (await greedy[2]).error["code"] == "queue_full"
    stack.speaker.go.set()
    answers = await asyncio.gather(running, *greedy[:2], other)
    assert {answer.status for answer in answers} == {200}
    assert stack.is_empty()


async def test_a_client_that_leaves_gives_its_place_back(no_tasks_left: None) -> None:
    stack = Stack(WaitingRoom(size=10), (key("a", limits=Limits(concurrency=1)),))
    stack.speaker.go.clear()
    running = stack.begin("a")
    await eventually(lambda: len(stack.speaker.order) == 1)
    gone = await stack.ask("a", leave_after=0)
    assert gone.messages == []
    assert (stack.room.lines.count, stack.room.results["left"]) == (0, 1)
    stack.speaker.go.set()
    await running
    assert len(stack.speaker.order) == 1, "it was never sent"
    assert stack.is_empty()


async def test_a_full_deployment_is_waited_for_with_what_was_admitted(no_tasks_left: None) -> None:
    narrow = replace(DEPLOYMENT, limits=Limits(concurrency=1))
    stack = Stack(WaitingRoom(size=100), (replace(CALLER, key_alias="a"), key("b")), (narrow,))
    stack.speaker.go.clear()
    calls = [stack.begin("a")]
    await eventually(lambda: len(stack.speaker.order) == 1)
    for count, name in enumerate("aab", 1):
        calls.append(stack.begin(name))
        await stack.waiting(count)
    stack.speaker.go.set()
    answers = await asyncio.gather(*calls)
    assert {answer.status for answer in answers} == {200}
    assert "".join(stack.speaker.order) == "aaba"
    assert [answer.headers.get("x-sidecar-queue") for answer in answers] == [None, "1", "2", "2"]
    assert stack.is_empty()
    assert len(stack.rows.records) == 4


@pytest.fixture
def no_looking_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "LOOK_AGAIN_S", 1000.0)


class Regions:
    """A deployment in each of two regions, one call at a time; both answer when they are told to."""

    def __init__(self) -> None:
        regions = (
            replace(DEPLOYMENT, deployment_id=name, tags=(name,), limits=Limits(concurrency=1)) for name in ("eu", "us")
        )
        self.stack = Stack(WaitingRoom(size=100), tuple(map(key, "abc")), tuple(regions))
        self.eu, self.us = asyncio.Event(), asyncio.Event()
        self.stack.speaker.by = {"eu": self.eu, "us": self.us}

    async def begin(self, name: str, tags: str) -> asyncio.Task[Answer]:
        count = len(self.stack.speaker.order)
        task = self.stack.begin(name, x_sidecar_tags=tags)
        await eventually(lambda: len(self.stack.speaker.order) > count)
        return task


async def test_nobody_waits_behind_those_whom_others_will_serve(no_tasks_left: None, no_looking_again: None) -> None:
    regions = Regions()
    stack = regions.stack
    calls = [await regions.begin("a", "eu"), stack.begin("a", x_sidecar_tags="eu")]
    await stack.waiting(1)
    regions.us.set()
    for tags in ("us", "eu,us"):
        answer = await stack.ask("b", x_sidecar_tags=tags)
        assert (answer.status, answer.headers.get("x-sidecar-queue")) == (200, None)
    assert stack.room.lines.count == 1
    regions.eu.set()
    assert {answer.status for answer in await asyncio.gather(*calls)} == {200}
    assert stack.is_empty()


@pytest.mark.parametrize("first", ["eu", "us"])
async def test_who_may_be_served_by_several_is_told_of_each(
    first: str, no_tasks_left: None, no_looking_again: None
) -> None:
    regions = Regions()
    stack = regions.stack
    calls = [await regions.begin("a", "eu"), await regions.begin("b", "us"), stack.begin("c", x_sidecar_tags="eu,us")]
    await stack.waiting(1)
    (regions.eu if first == "eu" else regions.us).set()
    assert (await calls[2]).status == 200
    assert not calls[1 if first == "eu" else 0].done()
    regions.eu.set()
    regions.us.set()
    await asyncio.gather(*calls)
    assert stack.is_empty()
    await stack.ask("a", x_sidecar_tags="eu")
    assert not [name for name in stack.route._lines if name in stack.room.lines]


async def test_keys_that_wait_for_limits_of_their_own_ask_nothing_when_others_requests_end(
    no_tasks_left: None, no_looking_again: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 150
    keys = [key(f"k{number}", limits=Limits(rpm=1)) for number in range(count)]
    stack = Stack(WaitingRoom(size=1000, max_wait_s=200), (*keys, key("free", limits=Limits(rpm=1000, concurrency=5))))
    for number in range(count):
        await stack.ask(f"k{number}")
    calls = [stack.begin(f"k{number}") for number in range(count)]
    await stack.waiting(count)
    asked: list[str] = []
    acquire = stack.policy.admission.store.acquire

    async def counted(*arguments: Any, **named: Any) -> Any:
        asked.append(arguments[0])
        return await acquire(*arguments, **named)

    monkeypatch.setattr(stack.policy.admission.store, "acquire", counted)
    for _ in range(20):
        assert (await stack.ask("free")).status == 200
    assert len(asked) == 20
    for task in calls:
        task.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert stack.is_empty()


async def test_who_leaves_a_full_deployments_line_pays_nothing(no_tasks_left: None) -> None:
    narrow = replace(DEPLOYMENT, limits=Limits(concurrency=1))
    stack = Stack(WaitingRoom(size=100), (replace(CALLER, key_alias="a"),), (narrow,))
    stack.speaker.go.clear()
    running = stack.begin("a")
    await eventually(lambda: len(stack.speaker.order) == 1)
    await stack.ask("a", leave_after=0)
    cancelled = stack.begin("a")
    await stack.waiting(1)
    cancelled.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await cancelled
    stack.speaker.go.set()
    await running
    cost = sum(record.cost_nano for record in stack.rows.records)
    assert len(stack.rows.records) == 1
    assert sum((await stack.policy.admission.spent(stack.identities[0])).values()) == cost
    assert stack.is_empty()


async def test_cancelled_at_any_point_nothing_is_left_and_the_line_moves_on(no_tasks_left: None) -> None:
    for limits, own in ((Limits(concurrency=1), Limits()), (Limits(), Limits(concurrency=1))):
        for turns in range(40):
            stack = Stack(
                WaitingRoom(size=10), (key("a", limits=limits),), (replace(DEPLOYMENT, limits=own),)
            )  # fmt: skip
            stack.speaker.go.clear()
            running = stack.begin("a")
            await eventually(lambda s=stack: len(s.speaker.order) == 1)
            victim = stack.begin("a")
            await stack.waiting(1)
            last = stack.begin("a")
            await stack.waiting(2)
            stack.speaker.go.set()
            for _ in range(turns):
                await asyncio.sleep(0)
            victim.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await victim
            assert (await last).status == 200
            assert (await running).status == 200
            assert stack.is_empty(), turns


async def test_a_gateway_whose_queue_is_configured(tmp_path: Any, faults: Any) -> None:
    async with served(tmp_path, faults.base_url, top={"queue": {"size": 50, "max_wait_s": 100}}) as running:
        own = await running.mint(max_parallel_requests=1)
        answers = await asyncio.gather(*(running.chat(own, body(stream=n % 2 == 0)) for n in range(12)))
        assert {answer.status_code for answer in answers} == {200}
        assert sum("x-sidecar-queue" in answer.headers for answer in answers) == 11
        assert running.taken_slots == 0


async def test_two_processes_share_the_limit_their_lines_wait_for(tmp_path: Any, faults: Any, redis_url: str) -> None:
    store = {"redis_url": redis_url, "database_url": f"sqlite:///{tmp_path}/shared.db"}
    top = {"queue": {"size": 50, "max_wait_s": 100}, "store": store}
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
    async with (
        process(folders[0], faults.base_url, top=top) as one,
        process(folders[1], faults.base_url, top=top) as other,
    ):
        own = await one.mint(max_parallel_requests=2)
        answers = await asyncio.gather(*(running.chat(own, body()) for running in (one, other) * 8))
        assert {answer.status_code for answer in answers} == {200}
        assert any("x-sidecar-queue" in answer.headers for answer in answers)


async def test_the_requests_own_deadline_ends_a_wait(tmp_path: Any, faults: Any) -> None:
    async with served(tmp_path, faults.base_url, top={"queue": {"size": 50}}) as running:
        own = await running.mint(max_parallel_requests=1)
        faults.script(Fault("held", after=2))
        held = asyncio.create_task(running.chat(own, body(stream=True)))
        await eventually(lambda: len(faults.requests) == 1)
        async with asyncio.timeout(60):
            late = await running.chat(own, body(), headers={"x-sidecar-timeout": "4"})
        assert (late.status_code, late.headers["x-sidecar-queue"]) == (429, "1")
        faults.release()
        assert (await held).status_code == 200
