"""What became of a request, asked afterwards: who refused and why, what was tried, what it cost; for whose it was."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sidecar.records import Records
from tests.faults.provider import Fault, FaultProvider, fault_provider
from tests.promises.fleet import fleet
from tests.promises.support import MASTER, PROVIDER_KEY, Running, body, served
from tests.servers.redis import LocalServer

pytestmark = pytest.mark.anyio
CANARY = "the-words-of-a-prompt-7c2e"


@pytest.fixture
async def provider() -> AsyncIterator[FaultProvider]:
    async with fault_provider() as provider:
        yield provider


def two_of(provider: FaultProvider, **more: Any) -> dict[str, Any]:
    """Two deployments of one group, then another on the second level, and a fallback group."""
    base = {"provider": "openai", "api_key": PROVIDER_KEY, "base_url": f"{provider.base_url}/v1"}
    price = {"price": {"input": 1, "output": 2, "cache_read": "0.5"}, "max_output_tokens": 64}
    group = [
        {**base, **price, "model": "a"},
        {**base, **price, "model": "b"},
        {**base, **price, "model": "c", "order": 2},
    ]
    routing = {"retries": 2, "cooldown_s": 600, "cooldown_after": 1, "fallbacks": {"gpt": ["spare"]}}
    models = [
        {"name": "gpt", "deployments": group},
        {"name": "spare", "deployments": [{**base, **price, "model": "d"}]},
    ]
    return {"models": models, "routing": routing, **more}


@pytest.fixture
async def gateway(provider: FaultProvider, tmp_path: Path) -> AsyncIterator[Running]:
    async with served(tmp_path, provider.base_url, top=two_of(provider)) as running:
        yield running


async def asked(gateway: Running, name: str, key: str = MASTER) -> httpx2.Response:
    return await gateway.http.get(f"{gateway.url}/exchanges/{name}", headers={"authorization": f"Bearer {key}"})


async def explained(gateway: Running, answer: httpx2.Response | str, key: str = MASTER) -> dict[str, Any]:
    name = answer if isinstance(answer, str) else answer.headers["x-request-id"]
    found = await asked(gateway, name, key)
    assert found.status_code == 200, found.text
    assert CANARY not in found.text
    assert PROVIDER_KEY not in found.text
    shown: dict[str, Any] = found.json()
    return shown


async def test_an_answer_is_explained_with_attempts_limits_money_and_route(
    gateway: Running, provider: FaultProvider
) -> None:
    await gateway.admin("/team/new", {"team_id": "t", "tpm_limit": 100_000})
    key = await gateway.mint(key_alias="ci", team_id="t", rpm_limit=7, max_budget=5, aliases={"fast": "gpt"})
    answer = await gateway.chat(key, body("fast", user="u-1"), headers={"x-sidecar-tags": "x"})
    shown = await explained(gateway, answer)
    assert (shown["source"], shown["missing"]) == ("memory", [])
    assert (shown["status"], shown["outcome"], shown["error"]) == (200, "ok", None)
    assert (shown["model"], shown["alias"], shown["is_stream"]) == ("gpt", "fast", False)
    caller = shown["caller"]
    assert (caller["key"], caller["team_id"], caller["end_user_id"], caller["tags"]) == ("ci", "t", "u-1", ["x"])
    (attempt,) = shown["attempts"]
    assert attempt["deployment"] == answer.headers["x-sidecar-deployment"]
    assert attempt["cost_usd"] == shown["money"]["cost_usd"] == answer.headers["x-sidecar-cost-usd"]
    assert (attempt["status"], attempt["cost_status"], attempt["is_complete"]) == (200, "settled", True)
    assert attempt["usage"] == {"input": 11, "output": 5}
    assert attempt["price"] == {"status": "priced", "input": "1", "output": "2", "cache_read": "0.5"}
    assert attempt["duration_ms"] >= 0
    assert {"what": "requests", "of": "key", "limit": 7} in shown["limits"]["scopes"]
    assert {"what": "tokens", "of": "team", "limit": 100_000} in shown["limits"]["scopes"]
    assert shown["limits"]["tightest"]["remaining-requests"] == "6"
    (budget,) = shown["money"]["budgets"]
    assert (budget["of"], budget["max_usd"]) == ("key", "5")
    assert float(shown["money"]["held_usd"]) > float(shown["money"]["cost_usd"])
    route = shown["route"]
    assert (route["group"], route["strategy"]) == ("gpt", "weighted")
    assert [candidate["model"] for candidate in route["candidates"]] == ["a", "b", "c", "d"]
    whys = [candidate["not_tried"] for candidate in route["candidates"]]
    assert sorted(str(why) for why in whys[:2]) == ["None", "not chosen"]
    assert whys[2].startswith("order 2")
    assert whys[3].startswith("fallback")


async def test_failed_attempts_stand_with_kind_time_and_what_was_paused(
    gateway: Running, provider: FaultProvider
) -> None:
    key = await gateway.mint()
    provider.script(Fault("status", status=503, body=b'{"error":{"message":"%s"}}' % CANARY.encode()))
    answer = await gateway.chat(key, body(messages=[{"role": "user", "content": CANARY}]))
    assert answer.headers["x-sidecar-attempts"] == "2"
    shown = await explained(gateway, answer)
    first, second = shown["attempts"]
    assert (first["error"]["kind"], first["error"]["status"], first["status"]) == ("overloaded", 503, 503)
    assert first["error"]["is_from_gateway"] is False
    assert (first["cost_usd"], first["cost_status"]) == ("0", "not_billed")
    assert (second["error"], second["status"], second["is_hedge"]) == (None, 200, False)
    tried = {c["deployment"]: c["attempts"] for c in shown["route"]["candidates"]}
    assert tried[first["deployment"]] == tried[second["deployment"]] == 1
    after = await explained(gateway, await gateway.chat(key, body()))
    (paused,) = [c for c in after["route"]["candidates"] if c["deployment"] == first["deployment"]]
    assert paused["not_tried"].startswith("paused until 20")


async def test_when_all_fail_each_attempt_stands_there(gateway: Running, provider: FaultProvider) -> None:
    key = await gateway.mint()
    provider.script(*(Fault("status", status=500) for _ in range(3)))
    answer = await gateway.chat(key, body())
    shown = await explained(gateway, answer)
    assert (shown["status"], shown["outcome"]) == (answer.status_code, "provider_error")
    assert shown["error"]["by"] == "provider"
    assert shown["error"]["code"] == answer.json()["error"]["code"]
    assert [attempt["error"]["kind"] for attempt in shown["attempts"]] == ["server"] * 3


REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any], str, dict[str, Any] | None]] = {
    "rate": ({"rpm_limit": 1}, {}, "requests_limit_exceeded", {"what": "requests", "of": "key", "limit": 1}),
    "budget": (
        {"max_budget": 0.000001}, {}, "budget_exceeded", {"what": "budget", "of": "key", "max_usd": "0.000001"},
    ),
    "access": ({"models": ["spare"]}, {}, "model_access_denied", None),
    "model": ({}, {"model": "unknown"}, "model_not_found", None),
    "body": ({}, {"stream": "yes"}, "bad_request", None),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
async def test_a_refusal_says_which_scope_refused_and_why(gateway: Running, provider: FaultProvider, name: str) -> None:
    fields, change, code, limit = REFUSALS[name]
    key = await gateway.mint(**fields)
    if name == "rate":
        assert (await gateway.chat(key, body())).status_code == 200
    before = len(provider.requests)
    answer = await gateway.chat(key, body() | change)
    assert len(provider.requests) == before
    for who in (MASTER, key):
        shown = await explained(gateway, answer, who)
        error = shown["error"]
        assert (shown["outcome"], shown["status"], error["by"]) == ("refused", answer.status_code, "gateway")
        assert (error["code"], error["limit"]) == (code, limit)
        assert error["message"] == answer.json()["error"]["message"]
        assert shown["attempts"] == []
        assert shown["money"]["cost_usd"] == "0"
    if name == "rate":
        assert 0 < shown["error"]["retry_after_s"] <= 60


async def test_one_without_a_known_key_is_for_administrators(gateway: Running) -> None:
    key = await gateway.mint()
    for token in ("sk-nobody-knows-this-one-0123456789", None):
        answer = await gateway.chat(token, body())
        assert answer.status_code == 401
        shown = await explained(gateway, answer)
        assert (shown["caller"], shown["error"]["status"]) == (None, 401)
        assert (await asked(gateway, answer.headers["x-request-id"], key)).status_code == 404


async def test_it_is_for_whose_it_was_and_for_those_above(gateway: Running) -> None:
    await gateway.admin("/team/new", {"team_id": "t"})
    for user in ("ann", "bob", "lea"):
        await gateway.admin("/user/new", {"user_id": user, "user_role": "internal_user", "auto_create_key": False})
    await gateway.admin("/user/new", {"user_id": "vic", "user_role": "proxy_admin_viewer", "auto_create_key": False})
    await gateway.admin("/team/member_add", {"team_id": "t", "member": {"user_id": "lea", "role": "admin"}})
    anns, anns_other, bobs = [await gateway.mint(user_id=user) for user in ("ann", "ann", "bob")]
    teams, leas, viewers, nobodys = [
        await gateway.mint(**fields) for fields in ({"team_id": "t"}, {"user_id": "lea"}, {"user_id": "vic"}, {})
    ]
    of_ann = (await gateway.chat(anns, body())).headers["x-request-id"]
    of_team = (await gateway.chat(teams, body())).headers["x-request-id"]
    unknown = await asked(gateway, "unknown", bobs)
    sees = {
        of_ann: {MASTER, viewers, anns, anns_other},
        of_team: {MASTER, viewers, teams, leas},
    }
    for exchange_id, those in sees.items():
        for key in (MASTER, viewers, anns, anns_other, bobs, teams, leas, nobodys):
            found = await asked(gateway, exchange_id, key)
            assert found.status_code == (200 if key in those else 404)
            if key not in those:
                assert found.json() == unknown.json()
            else:
                candidates = found.json()["route"]["candidates"]
                assert len(candidates) == (4 if key in (MASTER, viewers) else 1)
    refused = await gateway.http.get(f"{gateway.url}/exchanges/{of_ann}")
    assert refused.status_code == 401


async def test_the_clients_own_id_finds_it_and_hides_nobody_elses(gateway: Running) -> None:
    key, other = await gateway.mint(), await gateway.mint()
    mine = await gateway.chat(key, body(), headers={"x-request-id": "order-17"})
    exchange_id = mine.headers["x-request-id"]
    assert (await explained(gateway, "order-17", key))["exchange_id"] == exchange_id
    await gateway.chat(other, body(), headers={"x-request-id": "order-17"})
    await gateway.chat(other, body(), headers={"x-request-id": exchange_id})
    assert (await explained(gateway, "order-17", key))["exchange_id"] == exchange_id
    assert (await explained(gateway, exchange_id))["exchange_id"] == exchange_id
    assert (await explained(gateway, exchange_id, other))["request_id"] == exchange_id
    odd = await gateway.chat(key, body(), headers={"x-request-id": "a/b c/"})
    found = await explained(gateway, "a%2Fb%20c%2F", key)
    assert (found["request_id"], found["exchange_id"]) == ("a/b c/", odd.headers["x-request-id"])


async def test_a_replay_names_whose_answer_it_got(gateway: Running) -> None:
    key = await gateway.mint()
    first = await gateway.chat(key, body(), headers={"idempotency-key": "k"})
    again = await gateway.chat(key, body(), headers={"idempotency-key": "k"})
    shown = await explained(gateway, again, key)
    assert shown["replay_of"] == first.headers["x-request-id"]
    assert (shown["attempts"], shown["money"]["cost_usd"], shown["status"]) == ([], "0", 200)


async def test_two_attempts_at_once_are_told_as_such(provider: FaultProvider, tmp_path: Path) -> None:
    top = two_of(provider)
    top["routing"]["hedge"] = {"after_s": 0.05, "share": 1}
    async with served(tmp_path, provider.base_url, top=top) as gateway:
        key = await gateway.mint()
        provider.script(Fault("silent"))
        answer = await gateway.chat(key, body(stream=True), headers={"idempotency-key": "k"})
        shown = await explained(gateway, answer)
        first, second = shown["attempts"]
        assert (first["is_lost"], first["is_hedge"]) == (True, False)
        assert (second["is_lost"], second["is_hedge"], second["status"]) == (False, True, 200)
        assert first["cost_status"] in ("unknown", "estimated")
        again = await gateway.chat(key, body(stream=True), headers={"idempotency-key": "k"})
        assert again.content == answer.content
        assert again.headers["idempotent-replayed"] == "true"
        assert len(provider.requests) == 2


async def test_who_waited_in_the_queue_and_how_long_is_told(provider: FaultProvider, tmp_path: Path) -> None:
    async with served(tmp_path, provider.base_url, top=two_of(provider, queue={"size": 5})) as gateway:
        key = await gateway.mint(max_parallel_requests=1)
        provider.script(Fault(drip_s=0.05))
        running = asyncio.create_task(gateway.chat(key, body(stream=True), headers={"x-sidecar-timeout": "120"}))
        async with asyncio.timeout(60):
            while not provider.requests:
                await asyncio.sleep(0.005)
        waited = await gateway.chat(key, body(), headers={"idempotency-key": "k"})
        shown = await explained(gateway, waited)
        assert (shown["queue"]["place"], shown["queue"]["waited_ms"] > 0) == (1, True)
        assert abs(shown["queue"]["waited_ms"] - int(waited.headers["x-sidecar-queue-ms"])) <= 1
        assert (await explained(gateway, await running))["deadline_s"] == 120
        again = await gateway.chat(key, body(), headers={"idempotency-key": "k"})
        assert again.headers["idempotent-replayed"] == "true"
        assert not [name for name in again.headers if name.startswith("x-sidecar-queue")]


async def test_a_client_that_left_stands_there_with_what_it_cost(gateway: Running, provider: FaultProvider) -> None:
    key = await gateway.mint()
    provider.script(Fault("stall", after=3))
    headers = {"authorization": f"Bearer {key}", "x-request-id": "left"}
    path = f"{gateway.url}/v1/chat/completions"
    async with gateway.http.stream("POST", path, headers=headers, json=body(stream=True)) as answer:
        async for _ in answer.aiter_bytes():
            break
    async with asyncio.timeout(60):
        while (await asked(gateway, "left")).status_code != 200:
            await asyncio.sleep(0.02)
    shown = await explained(gateway, "left")
    assert shown["outcome"] == "client_left"
    assert shown["attempts"][0]["cost_status"] == "estimated"
    assert float(shown["money"]["cost_usd"]) > 0


async def test_no_record_holds_what_was_said(gateway: Running, provider: FaultProvider) -> None:
    key = await gateway.mint()
    provider.script(
        Fault("status", status=400, body=b'{"error":{"message":"%s"}}' % CANARY.encode()),
        Fault("cut", after=3),
        Fault(),
    )
    for stream in (False, True, True):
        await gateway.chat(key, body(stream=stream, messages=[{"role": "user", "content": CANARY}]))
    await gateway.chat(key, CANARY)
    await gateway.chat(key, body(messages=[{"role": CANARY}]))
    assert gateway.gateway is not None
    records = find_records(gateway)
    assert len(records) >= 5
    whole = repr(records._ring)
    for secret in (CANARY, key, PROVIDER_KEY, "one two", MASTER):
        assert secret not in whole


def find_records(gateway: Running) -> Records:
    assert gateway.gateway is not None
    found = gateway.gateway.stack.records  # type: ignore[attr-defined]
    assert isinstance(found, Records)
    return found


@pytest.mark.parametrize("keep", [0, 3])
async def test_what_memory_forgot_is_told_by_the_ledger(provider: FaultProvider, tmp_path: Path, keep: int) -> None:
    top = two_of(provider, log={"exchanges": keep})
    async with served(tmp_path, provider.base_url, top=top) as gateway:
        key, other = await gateway.mint(rpm_limit=1), await gateway.mint()
        provider.script(Fault("status", status=500))
        answer = await gateway.chat(key, body(), headers={"x-request-id": "mine"})
        refused = await gateway.chat(key, body())
        for _ in range(5):
            await gateway.chat(other, body())
        rows = await gateway.rows(key, at_least=2)
        for name in (answer.headers["x-request-id"], "mine"):
            shown = await explained(gateway, name, key)
            assert shown["source"] == "ledger"
            assert set(shown["missing"]) >= {"limits", "route", "error"}
            assert [attempt["outcome"] for attempt in shown["attempts"]] == ["provider_error", "ok"]
            assert shown["exchange_id"] == rows[0]["exchange_id"]
            assert shown["money"]["cost_usd"] == answer.headers["x-sidecar-cost-usd"]
            assert (await asked(gateway, name, other)).status_code == 404
        assert (await asked(gateway, refused.headers["x-request-id"])).status_code == 404


async def test_any_process_explains_what_any_other_did(
    provider: FaultProvider, tmp_path: Path, redis_url: str, postgres_url: str
) -> None:
    async with fleet(
        tmp_path, provider.base_url, database_url=postgres_url, redis_url=redis_url, workers=[2, 1]
    ) as gateways:
        first, second = gateways.running
        key, other = await first.mint(rpm_limit=1), await first.mint()
        answer = await first.chat(key, body())
        refused = await first.chat(key, body())
        assert refused.status_code == 429
        for gateway in (first, second) * 3:
            async with httpx2.AsyncClient(timeout=60, trust_env=False) as http:
                there = Running(gateway.url, http)
                assert (await explained(there, answer, key))["source"] == "memory"
                shown = await explained(there, refused)
                assert shown["error"]["limit"] == {"what": "requests", "of": "key", "limit": 1}
                assert (await asked(there, refused.headers["x-request-id"], other)).status_code == 404


async def test_redis_gone_costs_a_moment_and_leaves_the_rest(
    provider: FaultProvider, tmp_path: Path, start_redis: Callable[..., LocalServer]
) -> None:
    server = start_redis()
    stores = {"redis_url": server.url, "on_failure": "open", "deadline_s": 0.5}
    async with served(tmp_path, provider.base_url, top=two_of(provider, store=stores)) as gateway:
        key = await gateway.mint()
        answer = await gateway.chat(key, body())
        await gateway.rows(key, at_least=1)
        find_records(gateway)._ring.clear()
        for harm in (server.freeze, server.kill):
            harm()
            began = time.monotonic()
            assert (await explained(gateway, answer, key))["source"] == "ledger"
            assert time.monotonic() - began < 40  # the client waits longer
            if harm == server.freeze:
                with contextlib.suppress(ProcessLookupError):
                    server.thaw()


def test_memory_is_bounded() -> None:
    from sidecar.asgi import Inbox
    from sidecar.exchange import Exchange

    async def never() -> Any:
        raise AssertionError

    records = Records(keep=100)
    for number in range(1000):
        records.note(Exchange(f"x-{number}", 0.0, Inbox(never)), 1.0)
    assert len(records) == 100
    assert records.find("x-899") == []
    assert records.find("x-999")[0]["duration_ms"] == 1000


def test_one_name_for_thousands_of_requests_is_one_account_a_caller() -> None:
    from sidecar.asgi import Inbox
    from sidecar.exchange import Exchange
    from sidecar.types import Identity

    async def never() -> Any:
        raise AssertionError

    records = Records()
    for number in range(3000):
        exchange = Exchange(f"x-{number}", float(number), Inbox(never), request_id="1")
        exchange.identity = Identity(key_hash="ab"[number % 2] * 64) if number % 3 else None
        records.note(exchange, number + 1.0)
    assert [shown["exchange_id"] for shown in records.find("1")] == ["x-2999", "x-2998", "x-2997"]
    assert [shown["exchange_id"] for shown in records.find("x-17")] == ["x-17"]
