"""What is deleted with a team, user or member leaves no key behind that was being made meanwhile, and a key that was
made is told to who asked for it."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.admin.writes import Writes
from sidecar.errors import UnavailableError
from sidecar.identity.tree import Tree
from tests.admin.conftest import Api, Seeds
from tests.admin.world import World
from tests.identity.making import opened
from tests.identity.source import Clock
from tests.servers.relay import relayed

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("gone", ["user", "team", "member"])
async def test_a_key_that_was_deleted_with_what_is_above_it_makes_no_other(api: Api, gone: str) -> None:
    """Another process deletes; this one has not read of it yet. The new key would outlive them, without limits."""
    world = await World(api).build()
    await world.make("ivan in t", user_id="ivan", team_id="t")
    await world.ok("ivan in t", "/key/generate")
    name = {"user": "ivan", "team": "t", "member": "1:t:ivan"}[gone]
    await api.tree.delete(gone, [name], by="elsewhere", param="id")
    assert api.keys.cached(world.keys["ivan in t"]) is not None
    answer = await world.post("ivan in t", "/key/generate")
    assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")
    left, _ = await api.tree.keys.list(limit=100, user_id="ivan", team_id="t")
    assert left == []


@pytest.mark.parametrize("gone", ["team", "member"])
async def test_a_key_for_a_team_that_is_deleted_meanwhile_is_not_made(api: Api, gone: str) -> None:
    """Between the look at what the caller administers and the writing."""
    world = await World(api).build()
    await world.ok("tina", "/key/generate", team_id="t")
    rows = api.tree.principals
    async with rows.store.write() as connection:
        for kind, name in [("member", "1:t:tina"), ("team", "t")][: 2 if gone == "team" else 1]:
            row = await rows.one(connection, kind, name)
            assert row is not None
            await rows.remove(connection, row, by="elsewhere")
        asking = asyncio.ensure_future(world.post("tina", "/key/generate", team_id="t"))
        await asyncio.sleep(0.3)
    answer = await asking
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "team_not_found")


async def test_a_key_whose_spend_cannot_be_read_is_not_regenerated(api: Api) -> None:
    """The ledger fails, the keys do not: the old key was gone and the new one was told to nobody."""
    made = await api.mint(key_alias="k")
    async with api.tree.principals.store.write() as connection:
        await connection.exec_driver_sql("ALTER TABLE spend_daily_whole RENAME TO spend_away")
    answer = await api.post("/key/regenerate", {"key": made["key"]})
    assert answer.status_code == 503
    assert (await api.keys.lookup(made["key"])).key_alias == "k"
    async with api.tree.principals.store.write() as connection:
        await connection.exec_driver_sql("ALTER TABLE spend_away RENAME TO spend_daily_whole")
    api.minted.append((await api.post("/key/regenerate", {"key": made["key"]})).json()["key"])


async def test_a_key_with_a_shared_budget_is_told_though_the_database_fails_now(postgres_url: str) -> None:
    """It is written; what is looked up afterwards only warms counters."""
    async with opened(postgres_url), relayed(postgres_url) as (relay, url), opened(url, migrated=False) as far:
        tree, seeds = Tree(far.keys, far.principals), Seeds()
        writes = Writes(tree=tree, admission=seeds, tell=None, clock=Clock())
        await far.add("budget", "b", max_budget_nano=5)
        row = await far.key("k", budget_id="b")
        await writes.seed_key(row, strict=False)
        assert len(seeds.identities) == 1
        relay.hang_up()
        await writes.seed_key(row, strict=False)
        with pytest.raises(UnavailableError):
            await writes.seed_key(row)
        assert len(seeds.identities) == 1
