"""Every ordered subset of the middlewares, with a foreign scope-copying middleware between: the body is read once, a
disconnect is seen, and what was claimed is settled once."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest

from sidecar.asgi import ASGIApp
from sidecar.middleware.auth import AuthMiddleware
from sidecar.middleware.budget import BudgetMiddleware
from sidecar.middleware.observe import ObserveMiddleware
from sidecar.middleware.rate_limit import RateLimitMiddleware
from sidecar.middleware.route import RouteMiddleware
from sidecar.middleware.spend import SpendMiddleware
from sidecar.middleware.translate import TranslateMiddleware
from sidecar.routing.catalog import Catalog
from tests.asgi import call
from tests.middleware.stack import (
    BODY,
    CALLER,
    COST_NANO,
    DEPLOYMENT,
    Foreign,
    Keys,
    Rows,
    Speaker,
    make_policy,
    metrics,
)

pytestmark = pytest.mark.anyio
LAYERS = ("observe", "auth", "rate_limit", "budget", "spend", "route", "translate")
SUBSETS = [s for n in range(len(LAYERS) + 1) for s in itertools.combinations(LAYERS, n)]
GOOD = {"authorization": "Bearer sk-good", "content-type": "application/json"}


class Stack:
    def __init__(self, names: tuple[str, ...], speaker: Speaker) -> None:
        self.names = names
        self.rows = Rows()
        self.policy = make_policy()
        catalog = Catalog([DEPLOYMENT])
        app: ASGIApp = Foreign(speaker)
        for name in reversed(names):
            app = Foreign(self.layer(name, app, catalog))
        self.app = app

    def layer(self, name: str, app: ASGIApp, catalog: Catalog) -> ASGIApp:
        match name:
            case "observe":
                return ObserveMiddleware(app, metrics=metrics())
            case "auth":
                return AuthMiddleware(app, keys=Keys())
            case "rate_limit":
                return RateLimitMiddleware(app, policy=self.policy)
            case "budget":
                return BudgetMiddleware(app, policy=self.policy)
            case "spend":
                announced = "route" in self.names or "translate" in self.names
                return SpendMiddleware(app, recorder=self.rows, deployment=None if announced else DEPLOYMENT)
            case "route":
                return RouteMiddleware(app, catalog=catalog)
            case _:
                return TranslateMiddleware(app, deployment=DEPLOYMENT)

    async def spent(self) -> int:
        return sum((await self.policy.admission.spent(CALLER)).values())


def check_wire(names: tuple[str, ...], speaker: Speaker, body: dict[str, Any]) -> None:
    assert len(speaker.bodies) == 1
    sent = json.loads(speaker.bodies[0])
    assert sent["messages"] == body["messages"]
    if "translate" in names:
        assert sent["model"] == "gpt-4o-mini"


@pytest.mark.parametrize("is_stream", [False, True], ids=["unstreamed", "streamed"])
async def test_the_body_is_read_once_and_everything_is_settled_once(is_stream: bool) -> None:
    for names in SUBSETS:
        speaker = Speaker()
        stack = Stack(names, speaker)
        body = {**BODY, "stream": is_stream}
        answer = await call(stack.app, body, headers=GOOD, pieces=3)
        assert answer.status == 200, (names, answer.body)
        assert answer.receives == 3
        assert answer.is_ended
        check_wire(names, speaker, body)
        if is_stream:
            assert answer.body.count(b"[DONE]") == 1
        if "spend" in names:
            assert len(stack.rows.records) == len(stack.rows.intents) == 1, names
            assert stack.rows.records[0].cost_nano == COST_NANO, names
            assert stack.rows.records[0].status == "settled"
        if "budget" in names:
            await asyncio.sleep(0)
            assert await stack.spent() == (COST_NANO if "auth" in names else 0), names


@pytest.mark.parametrize("is_stream", [False, True], ids=["unstreamed", "streamed"])
async def test_a_client_who_leaves_is_seen_by_the_app_below_and_settled_once(is_stream: bool) -> None:
    for names in SUBSETS:
        speaker = Speaker(gap=asyncio.Event())
        stack = Stack(names, speaker)
        leave_after = 2 if is_stream else 0
        await call(stack.app, {**BODY, "stream": is_stream}, headers=GOOD, leave_after=leave_after)
        assert speaker.disconnects == 1, names
        if "spend" in names:
            assert len(stack.rows.records) == 1, names
            assert stack.rows.records[0].outcome == "client_left"
        if "budget" in names and "auth" in names:
            spent = await stack.spent()
            assert 0 < spent <= 10**7
            if "spend" in names:
                assert spent == stack.rows.records[0].cost_nano, names


async def test_refused_before_anything_is_read_or_claimed() -> None:
    for names in SUBSETS:
        if "auth" not in names:
            continue
        speaker = Speaker()
        stack = Stack(names, speaker)
        answer = await call(stack.app, BODY, headers={"authorization": "Bearer sk-bad"})
        assert answer.status == 401
        assert answer.receives == 0, "a bad credential never reads the body"
        assert not speaker.bodies
        assert not stack.rows.intents
