"""Routing end to end: limits of deployments, tags, names, fallbacks by kind of error, affinity, strategy by group; the
whole gateway in front of two fault providers."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.provider import Fault, FaultProvider
from tests.promises.support import PROVIDER_KEY, Running, body, eventually, process, served

pytestmark = pytest.mark.anyio


def place(dialect: str, provider: FaultProvider, **more: Any) -> dict[str, Any]:
    return {
        "provider": dialect, "model": "m", "api_key": PROVIDER_KEY, "price": {"input": 1, "output": 2},
        "base_url": f"{provider.base_url}/v1" if dialect == "openai" else provider.base_url, **more,
    }  # fmt: skip


def two(name: str, first: FaultProvider, second: FaultProvider, **limits: int) -> dict[str, Any]:
    """The first has limits, the second serves what is over."""
    return {"name": name, "deployments": [place("openai", first, limits=limits), place("openai", second, order=2)]}


def models_of(first: FaultProvider, second: FaultProvider) -> list[dict[str, Any]]:
    cheap = {"price": {"input": 0.1, "output": 0.1}}
    return [
        two("limited", first, second, rpm=2),
        two("narrow", first, second, concurrency=1),
        two("tokens", first, second, tpm=400),
        {"name": "scarce", "deployments": [place("openai", first, limits={"rpm": 1})]},
        {
            "name": "regions",
            "deployments": [place("openai", first, tags=["eu"]), place("openai", second)],
        },
        {"name": "eu-only", "deployments": [place("openai", first, tags=["eu"])]},
        {"name": "small", "deployments": [place("openai", first)]},
        {"name": "big", "deployments": [place("openai", second)]},
        {"name": "mild", "deployments": [place("openai", second)]},
        {"name": "dialects", "deployments": [place("anthropic", first), place("openai", second, order=2)]},
        {"name": "claude", "deployments": [place("anthropic", first), place("anthropic", second)]},
        {"name": "sticky", "affinity": True, "deployments": [place("openai", first), place("openai", second)]},
        {
            "name": "thrifty",
            "strategy": "cost",
            "deployments": [place("openai", first), place("openai", second, **cheap)],
        },
        {"name": "failing", "deployments": [place("openai", first)]},
        {"name": "any/*", "deployments": [place("openai", first, model="*")]},
        {"name": "vendor/*", "deployments": [place("openai", second, model="of-vendor/*")]},
        {"name": "anthropic-only", "deployments": [place("anthropic", first)]},
    ]  # fmt: skip


ROUTING = {
    "retries": 1,
    "cooldown_s": 0.001,
    "fallbacks": {
        "failing": ["mild", "big"],
        "small": ["vendor/a"],
        "any/a": ["any/b"],
        "anthropic-only": ["mild"],
    },
    "context_window_fallbacks": {"small": ["big"]},
    "content_policy_fallbacks": {"small": ["mild"]},
    "aliases": {"nick": "big"},
    "default_model": "big",
}


@pytest.fixture(scope="module")
async def gateway_of_pair(
    pair: tuple[FaultProvider, FaultProvider], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    top = {"models": models_of(*pair), "routing": ROUTING}
    async with served(tmp_path_factory.mktemp("gateway"), pair[0].base_url, top=top) as running:
        yield running


@pytest.fixture
def gateway(gateway_of_pair: Running) -> Running:
    return gateway_of_pair


async def test_a_full_deployment_is_passed_over_at_no_cost_of_an_attempt(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    key = await gateway.mint()
    answers = await asyncio.gather(*(gateway.chat(key, body("limited", stream=n % 2 == 0)) for n in range(8)))
    assert {(a.status_code, a.headers["x-sidecar-attempts"]) for a in answers} == {(200, "1")}
    assert (len(first.requests), len(second.requests)) == (2, 6)


async def test_where_all_are_full_the_request_is_refused_and_costs_the_caller_nothing(
    gateway: Running, first: FaultProvider
) -> None:
    key = await gateway.mint(rpm_limit=2)
    assert (await gateway.chat(key, body("scarce"))).status_code == 200
    for _ in range(5):
        answer = await gateway.chat(key, body("scarce"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "deployments_full")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert len(first.requests) == 1
    assert (await gateway.chat(key, body("big"))).status_code == 200, "the refused ones were given back"


async def test_a_slot_is_taken_while_an_answer_lasts(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    key = await gateway.mint()
    first.script(Fault("held", after=2))
    long = asyncio.create_task(gateway.chat(key, body("narrow", stream=True)))
    await eventually(lambda: len(first.requests) == 1)
    others = [await gateway.chat(key, body("narrow")) for _ in range(3)]
    assert {a.headers["x-sidecar-deployment"] for a in others} == {"narrow#1:openai"}
    first.release()
    assert (await long).headers["x-sidecar-deployment"] == "narrow#0:openai"

    async def is_free() -> bool:
        return (await gateway.chat(key, body("narrow"))).headers["x-sidecar-deployment"] == "narrow#0:openai"

    await eventually(is_free)


async def test_tokens_are_counted_as_they_were_used(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    key = await gateway.mint()
    # Each reserves some 110 and uses 16, so far more than three fit.
    answers = [await gateway.chat(key, body("tokens", max_tokens=100)) for _ in range(10)]
    assert {a.headers["x-sidecar-deployment"] for a in answers} == {"tokens#0:openai"}
    big = await gateway.chat(key, body("tokens", max_tokens=300))
    assert big.headers["x-sidecar-deployment"] == "tokens#1:openai"


async def test_limits_hold_over_processes(
    tmp_path: Path, pair: tuple[FaultProvider, FaultProvider], redis_url: str
) -> None:
    first, second = pair
    first.reset(), second.reset()
    top = {"models": [two("g", first, second, rpm=5)], "store": {"redis_url": redis_url}}
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
    async with (
        process(folders[0], first.base_url, top=top) as one,
        process(folders[1], first.base_url, top=top) as other,
    ):
        keys = [(running, await running.mint()) for running in (one, other)]
        answers = await asyncio.gather(*(running.chat(key, body("g")) for running, key in keys * 10))
        assert {answer.status_code for answer in answers} == {200}
        assert (len(first.requests), len(second.requests)) == (5, 15)


async def test_a_tag_of_the_key_or_the_request_chooses(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    european, anybody = await gateway.mint(tags=["eu", "other"]), await gateway.mint()

    async def used(key: str, **headers: str) -> str:
        answer = await gateway.chat(key, body("regions"), headers=headers)
        return str(answer.headers["x-sidecar-deployment"])

    assert {await used(european) for _ in range(6)} == {"regions#0:openai"}
    assert {await used(anybody) for _ in range(6)} == {"regions#1:openai"}
    assert await used(anybody, **{"x-sidecar-tags": "eu"}) == "regions#0:openai"
    assert await used(european, **{"x-sidecar-tags": "us"}) == "regions#0:openai", "a key's own tag stays"
    first.script(*[Fault("status", status=500)] * 4)
    count = len(second.requests)
    assert (await gateway.chat(european, body("regions"))).status_code == 500
    assert len(second.requests) == count, "not even when it fails"
    refused = await gateway.chat(anybody, body("eu-only"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "no_deployment_for_tags")


def said(code: str) -> bytes:
    return json.dumps({"error": {"message": "no", "type": "invalid_request_error", "code": code}}).encode()


@pytest.mark.parametrize(
    ("code", "served_by"), [("context_length_exceeded", "big#0:openai"), ("content_policy_violation", "mild#0:openai")]
)
async def test_a_fallback_for_a_kind_of_error(
    gateway: Running, first: FaultProvider, second: FaultProvider, code: str, served_by: str
) -> None:
    first.script(Fault("status", status=400, body=said(code)))
    answer = await gateway.chat(await gateway.mint(), body("small"))
    assert (answer.status_code, answer.headers["x-sidecar-deployment"]) == (200, served_by)
    first.script(Fault("status", status=400, body=said("else")))
    assert (await gateway.chat(await gateway.mint(), body("small"))).status_code == 400
    first.script(Fault("status", status=400, body=said(code)))
    narrow = await gateway.mint(models=["small"])
    answer = await gateway.chat(narrow, body("small"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), "not for a key that may not call it"


async def test_a_field_one_dialect_does_not_have_is_served_by_another(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    key = await gateway.mint()
    answer = await gateway.chat(key, body("dialects", logit_bias={"1": 5}))
    assert (answer.status_code, answer.headers["x-sidecar-deployment"]) == (200, "dialects#1:openai")
    assert first.requests == []
    refused = await gateway.chat(key, body("claude", logit_bias={"1": 5}))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "logit_bias")
    assert refused.json()["error"]["message"].startswith("The gateway refused")


async def test_names(gateway: Running, first: FaultProvider, second: FaultProvider) -> None:
    key = await gateway.mint()
    for name, used in (("nick", "big#0:openai"), ("nobody-knows", "big#0:openai"), ("any/thing", "any/*#0:openai")):
        answer = await gateway.chat(key, body(name))
        assert (answer.status_code, answer.headers["x-sidecar-deployment"]) == (200, used)
    assert first.requests[-1].json()["model"] == "thing"
    narrow = await gateway.mint(models=["small", "nobody-knows"])
    assert (await gateway.chat(narrow, body("nobody-knows"))).status_code == 403


async def test_the_same_beginning_stays_with_one_deployment(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    key = await gateway.mint()
    used: Counter[str] = Counter()
    for talk in range(12):
        turns: list[dict[str, str]] = [{"role": "system", "content": f"talk {talk}"}]
        homes = set()
        for turn in range(3):
            turns = [*turns, {"role": "user", "content": f"turn {turn}"}]
            answer = await gateway.chat(key, body("sticky", messages=turns))
            homes.add(answer.headers["x-sidecar-deployment"])
            turns = [*turns, {"role": "assistant", "content": "so"}]
        assert len(homes) == 1, talk
        used.update(homes)
    assert set(used) == {"sticky#0:openai", "sticky#1:openai"}, "and talks are shared out"


async def test_a_group_has_its_own_strategy(gateway: Running, first: FaultProvider, second: FaultProvider) -> None:
    key = await gateway.mint()
    used = {(await gateway.chat(key, body("thrifty"))).headers["x-sidecar-deployment"] for _ in range(10)}
    assert used == {"thrifty#1:openai"}


async def test_a_keys_limit_of_a_fallback_model_holds_for_the_fallback(
    gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    key = await gateway.mint(model_rpm_limit={"mild": 2, "big": 1})
    first.script(*[Fault("status", status=500)] * 99)
    used = []
    for _ in range(4):
        answer = await gateway.chat(key, body("failing"))
        used.append(answer.headers.get("x-sidecar-deployment", str(answer.status_code)))
    assert used == ["mild#0:openai", "mild#0:openai", "big#0:openai", "500"], "its own error, nobody else had room"
    assert (await gateway.chat(key, body("mild"))).status_code == 429, "asked for by name it is the same limit"
    assert len(second.requests) == 3


@pytest.mark.parametrize(("asked", "fallback"), [("small", "vendor/a"), ("any/a", "any/b")])
async def test_it_holds_below_wildcards_whatever_their_providers_call_the_model(
    asked: str, fallback: str, gateway: Running, first: FaultProvider, second: FaultProvider
) -> None:
    key = await gateway.mint(model_rpm_limit={fallback: 1})
    statuses = []
    for _ in range(2):
        first.script(Fault("status", status=500))
        statuses.append((await gateway.chat(key, body(asked))).status_code)
        first.reset()
    second.reset()
    assert statuses[0] == 200, "the fallback answered"
    assert (await gateway.chat(key, body(fallback))).status_code == 429, "by name it is the same limit, and used up"


async def test_it_holds_where_only_the_fallback_speaks_the_clients_dialect(gateway: Running) -> None:
    key = await gateway.mint(model_rpm_limit={"mild": 1})
    headers = {"authorization": f"Bearer {key}"}
    asked = {"model": "anthropic-only", "input": "hi"}
    answers = [await gateway.http.post(f"{gateway.url}/v1/responses", headers=headers, json=asked) for _ in range(3)]
    assert [a.status_code for a in answers] == [200, 429, 429], answers[0].text


async def test_such_a_fallback_is_retried_under_that_limit_too(
    tmp_path: Path, pair: tuple[FaultProvider, FaultProvider], redis_url: str
) -> None:
    """Each attempt takes its place under a name of its own."""
    top = {"models": models_of(*pair), "routing": ROUTING, "store": {"redis_url": redis_url}}
    async with served(tmp_path, pair[0].base_url, top=top) as gateway:
        key = await gateway.mint(model_rpm_limit={"mild": 2})
        headers = {"authorization": f"Bearer {key}"}
        pair[1].reset()  # of the tests before
        pair[1].script(Fault("status", status=500))
        asked = {"model": "anthropic-only", "input": "hi"}
        answers = [
            await gateway.http.post(f"{gateway.url}/v1/responses", headers=headers, json=asked) for _ in range(2)
        ]
        assert [a.status_code for a in answers] == [200, 429], answers[0].text
        assert len(pair[1].requests) == 2
