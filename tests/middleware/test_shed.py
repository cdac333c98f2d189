"""Load shedding: by requests in flight and by the loop's lag; what runs goes on, and it ends when the load does."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from sidecar.middleware.shed import LoopLag, ShedMiddleware
from tests.asgi import call
from tests.clock import LoopClock
from tests.faults.provider import Fault, FaultProvider
from tests.middleware.stack import BODY, Speaker
from tests.promises.support import body, eventually, served

pytestmark = pytest.mark.anyio


async def test_above_the_bound_new_requests_are_refused_and_the_others_go_on() -> None:
    gap = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await gap.wait()
        await Speaker()(scope, receive, send)

    app = ShedMiddleware(slow, max_in_flight=3)
    running = [asyncio.create_task(call(app, BODY)) for _ in range(3)]
    await eventually(lambda: app.in_flight == 3)
    refused = await call(app, BODY)
    assert (refused.status, refused.error["code"]) == (503, "overloaded")
    assert 1 <= int(refused.headers["retry-after"]) <= 3
    assert refused.error["message"].startswith("The gateway refused")
    gap.set()
    assert {(await task).status for task in running} == {200}
    assert (await call(app, BODY)).status == 200
    assert (app.in_flight, app.shed) == (0, {"in_flight": 1, "lag": 0})


async def test_one_that_fails_or_is_cancelled_is_no_longer_in_flight() -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("no")

    async def hangs(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    for inner, error in ((fails, RuntimeError), (hangs, asyncio.CancelledError)):
        app = ShedMiddleware(inner, max_in_flight=1)
        task = asyncio.create_task(call(app, BODY))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(error):
            await task
        assert app.in_flight == 0


async def test_a_loop_that_goes_on_lagging_sheds_until_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    lag, clock = LoopLag(every_s=100), LoopClock(monkeypatch)
    app = ShedMiddleware(Speaker(), max_lag_s=500, lag=lag)
    await lag.start()
    try:
        for _ in range(4):
            await clock.forward(101)
        await clock.forward(1000)  # one long step
        assert (await call(app, BODY)).status == 200, "one is no overload"
        assert lag.worst_s() >= 800
        for _ in range(2):
            await clock.forward(1000)  # the loop is busy
        assert lag.lag_s > 500
        assert (await call(app, BODY)).error["code"] == "overloaded"
        await clock.forward(101)
        assert (await call(app, BODY)).status == 200
    finally:
        await lag.aclose()


async def test_without_bounds_nothing_is_refused_and_other_paths_never_are() -> None:
    assert (await call(ShedMiddleware(Speaker()), BODY)).status == 200
    closed = ShedMiddleware(Speaker(), max_in_flight=0)
    assert (await call(closed, BODY)).status == 503
    assert (await call(closed, BODY, path="/v1/other")).status == 200


async def test_a_gateway_with_a_bound(tmp_path: Path, faults: FaultProvider) -> None:
    async with served(tmp_path, faults.base_url, top={"server": {"max_in_flight": 1, "max_lag_s": 30}}) as running:
        key = await running.mint()
        faults.script(Fault("held", after=2))
        held = asyncio.create_task(running.chat(key, body(stream=True)))
        await eventually(lambda: len(faults.requests) == 1)
        refused = await running.chat("sk-nobody", body())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded"), (
            "before any key is looked up"
        )
        assert (await running.admin("/key/list"))["keys"], "the admin API still answers"
        faults.release()
        assert (await held).status_code == 200
        text = (await running.http.get(running.url + "/metrics")).text
        assert 'sidecar_shed_total{reason="in_flight"} 1.0' in text
        assert "sidecar_event_loop_lag_seconds" in text


async def test_a_gateway_whose_loop_is_late_refuses_until_it_turns_again(tmp_path: Path, faults: FaultProvider) -> None:
    async with served(tmp_path, faults.base_url, top={"server": {"max_lag_s": 0.05}}) as running:
        gateway, key = running.gateway, await running.mint()
        assert gateway is not None
        head = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        loop = asyncio.get_running_loop()
        turns = 0
        is_busy = True

        def block() -> None:
            nonlocal turns
            turns += 1
            time.sleep(0.2)
            if is_busy:
                loop.call_soon(block)

        async def is_served() -> bool:
            return (await call(gateway, body(), headers=head)).status == 200

        await eventually(is_served)
        faults.reset()
        loop.call_soon(block)
        try:
            while turns < 12:  # the clock ticks every other turn
                await asyncio.sleep(0)
            refused = await call(gateway, body(), headers=head)
        finally:
            is_busy = False
        assert (refused.status, refused.error["code"]) == (503, "overloaded")
        assert 1 <= int(refused.headers["retry-after"]) <= 3
        assert faults.requests == []
        await eventually(is_served)
        assert len(faults.requests) == 1
        text = (await running.http.get(running.url + "/metrics")).text
        shed = next(line for line in text.splitlines() if line.startswith('sidecar_shed_total{reason="lag"}'))
        assert float(shed.split()[-1]) >= 1
