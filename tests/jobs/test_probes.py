"""Health probes: off by default, priced beforehand, billed under their own key; what they find out is acted upon."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sidecar.cli import app
from sidecar.jobs.leader import Leader
from sidecar.jobs.probes import PROBE_KEY, Probes, price_of_probes
from sidecar.places import DeploymentPlaces
from sidecar.routing.catalog import Catalog
from sidecar.routing.health import Health
from sidecar.routing.router import Router
from sidecar.spend.cost import FREE, UNPRICED
from sidecar.spend.prices import price_from_config
from sidecar.types import Deployment, Limits, Secret
from sidecar.upstream.base import Transport
from sidecar.upstream.httptools_transport import HttptoolsTransport
from tests.faults.provider import Fault, FaultProvider, fault_provider
from tests.jobs.test_status import jobs_of
from tests.middleware.stack import Rows, make_policy
from tests.promises.support import PROVIDER_KEY, body, config_file, eventually, served

pytestmark = pytest.mark.anyio

PRICE = price_from_config({"input": Decimal(10), "output": Decimal(20)})


class AlwaysLeads(Leader):
    def __init__(self) -> None: ...

    def check(self) -> None: ...


@pytest.fixture
async def transport(anyio_backend: str) -> AsyncIterator[Transport]:
    made = HttptoolsTransport()
    yield made
    await made.aclose()


def place(name: str, url: str, **more: Any) -> Deployment:
    base = f"{url}/v1" if more.get("provider", "openai") == "openai" else url
    fields = {"provider": "openai", "model": f"{name}-1", "price": PRICE, "api_key": Secret(PROVIDER_KEY)} | more
    return Deployment(deployment_id=name, group=name, base_url=base, **fields)


def probes_of(
    deployments: list[Deployment], transport: Transport, *, models: tuple[str, ...] = ()
) -> tuple[Probes, Router, Rows]:
    catalog, router, rows = Catalog(deployments), Router(health=Health(300.0)), Rows()
    policy = make_policy(catalog)
    probes = Probes(
        catalog=catalog, router=router, places=DeploymentPlaces(policy.admission), policy=policy, recorder=rows,
        transport=transport, every_s=60, models=models,
    )  # fmt: skip
    return probes, router, rows


async def test_each_deployment_is_asked_for_a_little_and_billed_as_a_probe(
    faults: FaultProvider, transport: Transport
) -> None:
    deployments = [
        place("gpt", faults.base_url, tags=("eu",), limits=Limits(rpm=10)),
        place("claude", faults.base_url, provider="anthropic"),
        replace(place("openai/*", faults.base_url), model="*"),
    ]
    probes, _, rows = probes_of(deployments, transport)
    await probes.run(AlwaysLeads())
    assert sorted(seen.target for seen in faults.requests) == ["/v1/chat/completions", "/v1/messages"]
    for seen in faults.requests:
        assert seen.json()["max_tokens"] == 16
        assert not seen.json().get("stream")
    assert {(r.key_hash, r.tags, r.outcome, r.status) for r in rows.records} == {
        (PROBE_KEY, (PROBE_KEY,), "ok", "settled")
    }
    assert {r.group for r in rows.records} == {"gpt", "claude"}
    assert all(r.cost_nano > 0 for r in rows.records)


async def test_only_the_models_named_are_asked(faults: FaultProvider, transport: Transport) -> None:
    probes, _, rows = probes_of(
        [place("one", faults.base_url), place("two", faults.base_url)], transport, models=("two",)
    )
    await probes.run(AlwaysLeads())
    assert [r.group for r in rows.records] == ["two"]


async def test_a_sick_one_pauses_and_a_good_answer_ends_the_pause(faults: FaultProvider, transport: Transport) -> None:
    deployment = place("gpt", faults.base_url)
    probes, router, rows = probes_of([deployment], transport)
    faults.script(*[Fault("status", status=500)] * 3)
    for number in (1, 2, 3):
        await probes.run(AlwaysLeads())
        assert bool(router.health.cooling(time.time())) == (number == 3)
    assert {(r.outcome, r.cost_nano) for r in rows.records} == {("provider_error", 0)}
    await probes.run(AlwaysLeads())
    assert not router.health.cooling(time.time())


async def test_a_request_the_provider_does_not_like_is_an_answer_all_the_same(
    faults: FaultProvider, transport: Transport
) -> None:
    probes, router, _ = probes_of([place("gpt", faults.base_url)], transport)
    body_ = b'{"error":{"message":"max_tokens is too small","type":"invalid_request_error"}}'
    faults.script(*[Fault("status", status=400, body=body_)] * 5)
    for _ in range(5):
        await probes.run(AlwaysLeads())
    assert not router.health.cooling(time.time())


async def test_a_full_deployment_is_not_asked(faults: FaultProvider, transport: Transport) -> None:
    probes, _, rows = probes_of([place("gpt", faults.base_url, limits=Limits(rpm=1))], transport)
    for _ in range(3):
        await probes.run(AlwaysLeads())
    assert len(faults.requests) == len(rows.records) == 1


async def test_a_running_gateway_probes_and_tells_the_others(
    tmp_path: Path, faults: FaultProvider, redis_url: str
) -> None:
    """A client meets the healthy deployment at once, also at the gateway that does not probe."""
    async with fault_provider() as sick:
        sick.script(*[Fault("status", status=401)] * 100)

        def config(*, leads: bool) -> dict[str, Any]:
            more = {"model": "m", "api_key": PROVIDER_KEY, "price": {"input": 1, "output": 2}}
            deployments = [
                {"provider": "openai", "base_url": f"{sick.base_url}/v1", **more},
                {"provider": "openai", "base_url": f"{faults.base_url}/v1", "order": 2, **more},
            ]
            return {
                "models": [{"name": "gpt", "deployments": deployments}],
                "routing": {"retries": 1, "cooldown_s": 300},
                "jobs": {"enabled": leads, "probes": {"every_s": 3600}},
                "store": {"redis_url": redis_url},
            }

        first, second = tmp_path / "first", tmp_path / "second"
        first.mkdir()
        second.mkdir()
        async with (
            served(first, faults.base_url, top=config(leads=True)) as leader,
            served(second, faults.base_url, top=config(leads=False)) as other,
        ):
            await eventually(lambda: sick.requests and faults.requests)
            for running in (leader, other):
                key = await running.mint()

                async def is_known(running: Any = running, key: str = key) -> bool:
                    answer = await running.chat(key, body("gpt"))
                    assert answer.status_code == 200
                    return bool(answer.headers["x-sidecar-attempts"] == "1")

                await eventually(is_known)
            asked = len(sick.requests)
            rows = await leader.rows(at_least=2)
            probed = {(row["key_alias"], row["outcome"]) for row in rows if row["key_alias"] == PROBE_KEY}
            assert probed == {(PROBE_KEY, "ok"), (PROBE_KEY, "provider_error")}
            assert asked <= 3
            assert (await jobs_of(leader))["health_probes"]["runs"] >= 1


async def test_unless_configured_nothing_is_asked(tmp_path: Path, faults: FaultProvider) -> None:
    async with served(tmp_path, faults.base_url) as running:
        job = (await jobs_of(running))["health_probes"]
        assert (job["state"], job["why"]) == ("off", "jobs.probes.every_s is not set")
    assert not faults.requests


def test_the_price_is_named() -> None:
    one = place("one", "http://127.0.0.1:9")
    every = [one, replace(one, deployment_id="two"), replace(one, deployment_id="free", price=FREE)]
    # 24 tokens in at 10, 16 out at 20 USD a million: 0.00056 USD each.
    said = price_of_probes(every, 60.0)
    assert said == "health probes: 3 deployments every 60 s, 0.00112 USD a round: about 1.61 USD a day"
    said = price_of_probes([one, replace(one, group="other", price=UNPRICED)], 3600.0, ["other"])
    assert said == (
        "health probes: 1 deployments every 3600 s, 0 USD a round: about 0.00 USD a day, and what 1 without a known "
        "price cost"
    )


def test_config_check_names_it_and_knows_the_models(tmp_path: Path) -> None:
    file = config_file(tmp_path, "http://127.0.0.1:9", top={"jobs": {"probes": {"every_s": 30}}})
    shown = CliRunner().invoke(app, ["config", "check", str(file)])
    assert shown.exit_code == 0
    assert "health probes: 2 deployments every 30 s" in shown.output
    config = json.loads(file.read_text())
    config["jobs"]["probes"]["models"] = ["gpt", "nobody"]
    file.write_text(json.dumps(config))
    refused = CliRunner().invoke(app, ["config", "check", str(file)])
    assert refused.exit_code == 2
    assert "no such model" in refused.output


async def test_one_that_does_not_answer_in_time_is_sick(
    faults: FaultProvider, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.jobs.probes.LIMIT_S", 0.2)
    probes, router, _ = probes_of([place("gpt", faults.base_url)], transport)
    faults.script(*[Fault("silent")] * 3)
    for _ in range(3):
        await probes.run(AlwaysLeads())
    assert router.health.cooling(time.time())["gpt"].reason == "upstream_timeout_total"
