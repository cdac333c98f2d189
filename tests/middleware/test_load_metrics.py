"""What an operator sees of routing: who pauses, second attempts, who waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.metrics import Metrics
from tests.faults.provider import Fault, FaultProvider
from tests.promises.support import PROVIDER_KEY, Running, body, eventually, served

pytestmark = pytest.mark.anyio


async def value_of(running: Running, series: str) -> float | None:
    text = (await running.http.get(running.url + "/metrics")).text
    found = [line.rsplit(" ", 1)[1] for line in text.splitlines() if line.rsplit(" ", 1)[0] == series]
    return float(found[0]) if found else None


async def test_a_deployment_that_pauses_shows_until_its_trial_is_passed(tmp_path: Path, faults: FaultProvider) -> None:
    place = {"provider": "openai", "model": "m", "api_key": PROVIDER_KEY, "base_url": f"{faults.base_url}/v1"}
    models = [{"name": "g", "deployments": [place | {"price": "free"}, place | {"price": "free", "order": 2}]}]
    top = {"models": models, "routing": {"retries": 1, "cooldown_s": 0.2, "cooldown_after": 1}}
    series = 'sidecar_deployment_paused{deployment="g#0:openai"}'
    async with served(tmp_path, faults.base_url, top=top) as running:
        key = await running.mint()
        assert await value_of(running, series) is None
        faults.script(Fault("status", status=500))
        assert (await running.chat(key, body("g"))).headers["x-sidecar-deployment"] == "g#1:openai"
        assert await value_of(running, series) == 1.0
        assert await value_of(running, 'sidecar_deployment_paused{deployment="g#1:openai"}') is None

        async def is_back() -> bool:
            return (await running.chat(key, body("g"))).headers["x-sidecar-deployment"] == "g#0:openai"

        await eventually(is_back)
        assert await value_of(running, series) == 0.0


async def test_second_attempts_are_counted(tmp_path: Path, faults: FaultProvider) -> None:
    place = {"provider": "openai", "model": "m", "api_key": PROVIDER_KEY, "base_url": f"{faults.base_url}/v1"}
    deployments = [place | {"price": "free"}, place | {"price": "free", "order": 2}]
    models = [{"name": "g", "hedge": {"after_s": 0.05, "share": 1}, "deployments": deployments}]
    top = {"models": models, "routing": {"retries": 1}}
    async with served(tmp_path, faults.base_url, top=top) as running:
        faults.script(Fault("silent"))
        assert (await running.chat(await running.mint(), body("g"))).status_code == 200
        assert await value_of(running, 'sidecar_hedges_total{group="g"}') == 1.0
        assert await value_of(running, 'sidecar_hedges_won_total{group="g"}') == 1.0


def test_totals_are_counted_once_however_often_they_are_asked_for() -> None:
    metrics = Metrics()
    totals = {"served": 3}
    metrics.load.waits = lambda: totals
    metrics.load.waiting = lambda: 7
    for _ in range(3):
        text = metrics.render().decode()
    assert 'sidecar_queue_total{result="served"} 3.0' in text
    assert "sidecar_queue_waiting 7.0" in text
    totals["served"] = 5
    assert 'sidecar_queue_total{result="served"} 5.0' in metrics.render().decode()
