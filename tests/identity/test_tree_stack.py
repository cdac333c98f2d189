"""Everybody above a key, seen from outside: the whole gateway over HTTP, the rows written as another process would.

Each owner – organization, team, member, user, key, end user, tag – may restrict models, rates, money, or be blocked. A
refusal names its kind, reaches no provider and consumes nothing of what the others allow.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis.asyncio import Redis

from sidecar.db import Database
from sidecar.identity.keys import hash_key, new_key
from sidecar.identity.row import BudgetCap, ModelLimit, member_id
from sidecar.limits.admission import Admission
from tests.faults.provider import FaultProvider, fault_provider
from tests.identity.making import Tree, counted, opened
from tests.promises.support import Running, body, eventually, served

pytestmark = pytest.mark.anyio
OWNERS = ("key", "organization", "team", "member", "user", "end_user", "tag")
COST = 11 * 1000 + 5 * 2000
"""Nano-dollars of one answer of the fault provider; its hold is more."""


def models(url: str) -> list[dict[str, Any]]:
    def one(name: str, *groups: str) -> dict[str, Any]:
        upstream = "*" if name.endswith("*") else "m"
        deployment = {
            "provider": "openai", "model": upstream, "api_key": "sk-x", "base_url": f"{url}/v1",
            "price": {"input": 1, "output": 2}, "max_output_tokens": 16,
        }  # fmt: skip
        return {"name": name, "access_groups": list(groups), "deployments": [deployment]}

    return [one("gpt", "fast"), one("claude"), one("open/*"), one("spare", "fast")]


@dataclass
class Gateway:
    running: Running
    tree: Tree
    faults: FaultProvider

    async def grown(self, **owners: dict[str, Any]) -> tuple[str, dict[str, str]]:
        """A key below everybody, each with what `owners` says of its kind; and the headers that name the rest."""
        token = new_key(os.urandom)
        name = hash_key(token)[:12]
        given = {kind: owners.pop(kind, {}) for kind in OWNERS}
        assert not owners
        await self.tree.add("organization", f"o-{name}", **given["organization"])
        await self.tree.add("team", f"t-{name}", **{"organization_id": f"o-{name}"} | given["team"])
        await self.tree.add("user", f"u-{name}", **given["user"])
        await self.tree.member(f"t-{name}", f"u-{name}", **given["member"])
        await self.tree.add("end_user", f"e-{name}", **given["end_user"])
        await self.tree.add("tag", f"g-{name}", **given["tag"])
        await self.tree.key(token, team_id=f"t-{name}", user_id=f"u-{name}", **given["key"])
        return token, {"x-sidecar-tags": f"g-{name}", "x-customer": f"e-{name}"}

    async def ask(self, caller: tuple[str, dict[str, str]], model: str = "gpt", **more: Any) -> httpx2.Response:
        key, headers = caller
        return await self.running.chat(key, body(model, **{"max_tokens": 16} | more), headers=headers)


@pytest.fixture(scope="module")
async def gateway(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    folder = tmp_path_factory.mktemp("tree")
    async with fault_provider() as provider:
        top = {
            "models": models(provider.base_url),
            "auth": {"master_key": "sk-master-of-the-promises-0123456789abcdef", "end_user_header": "x-customer"},
            "routing": {"retries": 0, "aliases": {"nick": "gpt"}, "fallbacks": {"claude": ["spare"]}},
        }
        async with (
            served(folder, provider.base_url, top=top) as running,
            opened(f"sqlite:///{folder}/sidecar.db", migrated=False) as tree,
        ):
            yield Gateway(running, tree, provider)


def error(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.mark.parametrize(
    ("allowed", "admits", "refuses"),
    [
        (("gpt",), {"gpt"}, {"claude", "spare", "open/x", "open/gpt", "nick"}),
        (("open/*",), {"open/x", "open/gpt"}, {"gpt", "claude", "spare"}),
        (("fast",), {"gpt", "spare", "nick"}, {"claude", "open/x"}),
        (("claude", "fast"), {"gpt", "claude", "spare"}, {"open/x"}),
        (("*",), {"gpt", "claude", "open/x"}, set()),
        (("no-default-models",), set(), {"gpt", "claude", "open/x"}),
    ],
)
@pytest.mark.parametrize("owner", OWNERS)
async def test_whoever_restricts_models_restricts_the_request(
    owner: str, allowed: tuple[str, ...], admits: set[str], refuses: set[str], gateway: Gateway
) -> None:
    caller = await gateway.grown(**{owner: {"models": allowed, "rpm_limit": len(admits) or 1}})
    gateway.faults.reset()
    for model in sorted(refuses):
        answer = await gateway.ask(caller, model)
        assert error(answer) == (403, "model_access_denied"), model
        told = answer.text.replace(f"'{model}'", "")
        assert not any(name in told for name in ("claude", "spare", "open/", "fast", caller[0]))
    assert gateway.faults.requests == []
    for model in sorted(admits):
        # The refused ones took nothing of the limit, which has room for exactly these.
        assert (await gateway.ask(caller, model)).status_code == 200, model


async def test_what_everybody_admits_is_admitted_and_listed(gateway: Gateway) -> None:
    caller = await gateway.grown(key={"models": ("fast", "open/*")}, team={"models": ("gpt", "open/*")})
    listed = await gateway.running.http.get(
        f"{gateway.running.url}/v1/models", headers={"authorization": f"Bearer {caller[0]}"}
    )
    assert [model["id"] for model in listed.json()["data"]] == ["gpt", "open/*"]
    assert {m: (await gateway.ask(caller, m)).status_code for m in ("gpt", "spare", "claude", "open/x", "none")} == {
        "gpt": 200, "spare": 403, "claude": 403, "open/x": 200, "none": 403,
    }  # fmt: skip


@pytest.mark.parametrize("owner", OWNERS)
async def test_whoever_is_blocked_blocks_and_is_named(owner: str, gateway: Gateway) -> None:
    caller = await gateway.grown(**{owner: {"blocked": True}})
    gateway.faults.reset()
    answer = await gateway.ask(caller)
    assert error(answer) == ((401, "key_blocked") if owner == "key" else (403, f"{owner}_blocked"))
    assert hash_key(caller[0])[:12] not in answer.text
    assert gateway.faults.requests == []


@pytest.mark.parametrize("by_model", [False, True])
@pytest.mark.parametrize(
    ("limit", "code"),
    [
        ({"rpm_limit": 0}, "requests_limit_exceeded"),
        ({"tpm_limit": 1}, "tokens_limit_exceeded"),
        ({"max_parallel_requests": 0}, "concurrency_limit_exceeded"),
    ],
)
@pytest.mark.parametrize("owner", OWNERS)
async def test_whoever_limits_is_named_and_the_others_are_not_charged(
    owner: str, limit: dict[str, int], code: str, by_model: bool, gateway: Gateway
) -> None:
    given: dict[str, Any] = dict(limit)
    if by_model:
        words = {"rpm_limit": "rpm", "tpm_limit": "tpm", "max_parallel_requests": "concurrency"}
        given = {"model_limits": {"gpt": ModelLimit(**{words[n]: v for n, v in limit.items()})}}
    others = {kind: {"rpm_limit": 2} for kind in OWNERS if kind != owner}
    caller = await gateway.grown(**others, **{owner: given})
    gateway.faults.reset()
    for _ in range(3):
        answer = await gateway.ask(caller)
        assert error(answer) == (429, code)
        name = f"{owner}_model" if by_model else owner
        assert f"the {name.replace('_', ' ')} limit is" in answer.json()["error"]["message"]
    assert gateway.faults.requests == []
    if by_model:
        # All of the others' two calls are left.
        assert [(await gateway.ask(caller, "claude")).status_code for _ in range(3)] == [200, 200, 429]


async def test_a_models_limit_holds_under_its_other_names_too(gateway: Gateway) -> None:
    """An alias is the same model: no way around its limit."""
    caller = await gateway.grown(team={"model_limits": {"gpt": ModelLimit(rpm=2)}})
    answers = [await gateway.ask(caller, model) for model in ("gpt", "nick", "nick", "gpt")]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
    # One who limits the alias by its own name limits the alias.
    caller = await gateway.grown(key={"model_limits": {"nick": ModelLimit(rpm=1)}})
    answers = [await gateway.ask(caller, model) for model in ("nick", "nick", "gpt")]
    assert [answer.status_code for answer in answers] == [200, 429, 200]
    # A limit of a wildcard is one for all models in it; one of them may have its own besides.
    limits = {"open/*": ModelLimit(rpm=3), "open/a": ModelLimit(rpm=1)}
    caller = await gateway.grown(user={"model_limits": limits})
    answers = [await gateway.ask(caller, f"open/{name}") for name in "aabcb"]
    assert [answer.status_code for answer in answers] == [200, 429, 200, 200, 429]


@pytest.mark.parametrize("owner", OWNERS)
async def test_whose_money_is_spent_is_named(owner: str, gateway: Gateway) -> None:
    given: dict[str, Any] = {
        "max_budget_nano": 100_000_000,
        "budget_windows": (BudgetCap(max_budget_nano=1, budget_duration="1h"),),
    }
    caller = await gateway.grown(**{owner: given})
    gateway.faults.reset()
    answer = await gateway.ask(caller)
    assert error(answer) == (429, "budget_exceeded")
    assert f"the {owner.replace('_', ' ')} budget of $0.000000001 " in answer.json()["error"]["message"]
    assert gateway.faults.requests == []


async def test_a_soft_budget_refuses_nothing_and_an_increase_lasts_until_it_ends(gateway: Gateway) -> None:
    caller = await gateway.grown(team={"soft_budget_nano": 1}, user={"soft_budget_nano": 0})
    assert (await gateway.ask(caller)).status_code == 200
    import time

    raised = {"max_budget_nano": 1, "temp_budget_increase_nano": 10**9}
    caller = await gateway.grown(team=raised | {"temp_budget_expiry_at": time.time() + 3600})
    assert (await gateway.ask(caller)).status_code == 200
    caller = await gateway.grown(team=raised | {"temp_budget_expiry_at": time.time() - 1})
    assert error(await gateway.ask(caller)) == (429, "budget_exceeded")


async def test_money_is_counted_on_everybody_and_of_the_model_that_answered(gateway: Gateway) -> None:
    money = {"max_budget_nano": 10**9}
    caller = await gateway.grown(**dict.fromkeys(OWNERS, money))
    assert (await gateway.ask(caller)).status_code == 200
    name = hash_key(caller[0])[:12]
    store = gateway.running.store
    await eventually(lambda: not any(live.claims.windows for live in store._live.values()))
    mine = {key: counter.nano for key, counter in store._counters.items() if name in key}
    assert len(mine) == len(OWNERS)
    assert set(mine.values()) == {COST}
    (row,) = await gateway.running.rows(caller[0], at_least=1)
    assert {k: row[k] for k in ("user_id", "team_id", "organization_id", "end_user_id")} == {
        "user_id": f"u-{name}", "team_id": f"t-{name}", "organization_id": f"o-{name}", "end_user_id": f"e-{name}",
    }  # fmt: skip


async def test_who_is_not_known_costs_one_query_and_who_is_costs_none(gateway: Gateway) -> None:
    """On a machine too busy to read on for a second memory is asked about again: so the least of some tries counts."""
    assert gateway.running.gateway is not None
    closers = [getattr(closer, "__self__", None) for closer in gateway.running.gateway._closers]
    database = next(one for one in closers if isinstance(one, Database))

    async def queries(caller: tuple[str, dict[str, str]], calls: int = 8) -> int:
        with counted(database) as seen:
            answers = await asyncio.gather(*(gateway.ask(caller) for _ in range(calls)))
        assert {answer.status_code for answer in answers} == {200}
        return sum("FROM keys" in statement or "FROM principals" in statement for statement in seen)

    counts: list[list[int]] = []
    least: list[int] = []
    for _ in range(10):
        caller = await gateway.grown()
        plain: tuple[str, dict[str, str]] = (caller[0], {})
        # The key with all above it; nothing; end user and tag together; nothing.
        counts.append([await queries(plain), await queries(plain), await queries(caller), await queries(caller)])
        least = [min(column) for column in zip(*counts, strict=True)]
        if least == [1, 0, 1, 0]:
            break
    assert least == [1, 0, 1, 0], counts
    assert all(first >= 1 and third >= 1 for first, _, third, _ in counts)


async def test_a_call_under_the_whole_tree_is_two_commands_to_redis(tmp_path: Path, redis_url: str) -> None:
    """One to admit, one to settle; who calls is known."""
    async with fault_provider() as provider:
        top = {"models": models(provider.base_url), "store": {"redis_url": redis_url, "deadline_s": 5}}
        async with (
            served(tmp_path, provider.base_url, top=top) as running,
            opened(f"sqlite:///{tmp_path}/sidecar.db", migrated=False) as tree,
        ):
            gateway = Gateway(running, tree, provider)
            limits = {"rpm_limit": 9, "tpm_limit": 9000, "max_parallel_requests": 9, "max_budget_nano": 10**9}
            caller = await gateway.grown(**dict.fromkeys(OWNERS, limits))
            assert (await gateway.ask(caller)).status_code == 200  # seeds, loads scripts, fills memory
            async with Redis.from_url(redis_url) as client, client.monitor() as monitor:
                assert (await gateway.ask(caller)).status_code == 200
                await eventually(lambda: not _admission(running)._live)
                async with Redis.from_url(redis_url) as other:
                    await other.echo("the end")
                seen = []
                while "the end" not in (command := await monitor.next_command())["command"]:
                    if command["client_type"] != "lua" and "{sidecar}:x:" in command["command"]:
                        seen.append(command["command"].split()[0])
                    assert "sidecar:key:" not in command["command"]
            # The other scripts (leases) name no exchange as their record.
            assert [name for name in seen if name == "EVALSHA"] == ["EVALSHA"] * 2, json.dumps(seen)


def _admission(running: Running) -> Admission:
    assert running.gateway is not None
    owners = [getattr(closer, "__self__", None) for closer in running.gateway._closers]
    return next(owner for owner in owners if isinstance(owner, Admission))


def test_ids_of_members_are_made_of_both() -> None:
    assert member_id("t", "u") == "1:t:u"
