"""The connection breaks after any packet while a delivered key is written: it is there, and nobody calls it void."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from sidecar.db import Database, migrate
from sidecar.db.breaker import Breaker
from sidecar.errors import UnavailableError
from sidecar.identity.keys import Keys
from sidecar.identity.table import KeyTable, PrincipalTable, Store
from sidecar.identity.tokens import hash_key
from sidecar.identity.tree import Tree
from sidecar.jobs.leader import Leader
from sidecar.jobs.locks import RowLock
from sidecar.metrics import Metrics
from sidecar.spend.ledger import Ledger
from sidecar.types import Secret
from tests.identity.source import Clock
from tests.jobs.conftest import NOW, Webhook, World
from tests.jobs.test_rotation import rotation
from tests.servers.relay import relayed

pytestmark = pytest.mark.anyio


async def test_whatever_answer_of_the_database_is_lost(postgres_url: str, webhook: Webhook) -> None:
    await migrate(postgres_url)
    clock = Clock(NOW)
    here = KeyTable(Store(Database(postgres_url)))
    async with relayed(postgres_url) as (relay, url):
        database = Database(url, clock=clock)
        database.breaker = Breaker(pause_s=0.0)
        store = Store(database, clock=clock)
        tree = Tree(KeyTable(store), PrincipalTable(store))
        keys = Keys(tree.keys, master_key=Secret("sk-master-" + "m" * 32), clock=clock)
        leader = Leader(RowLock(here.store, holder="test", lease_s=600.0, clock=clock), lease_s=600.0)
        assert await leader.take()
        world = World(store, Ledger(database), tree, keys, clock, leader, Metrics())
        is_whole, cuts = False, 0
        while not is_whole:
            old = await world.key(f"sk-old-{cuts:016}", rotation_interval="30d", rotates_at=NOW - 1)
            run = asyncio.ensure_future(rotation(world, webhook, pause_s=0.02).run(leader))
            while len(webhook.seen) == cuts:
                await asyncio.sleep(0.001)
            relay.freeze_after(cuts)
            is_whole = not await relay.holds_up(run)
            relay.hang_up()
            relay.thaw()
            await asyncio.sleep(0.005)
            relay.come_back()
            with contextlib.suppress(UnavailableError):  # what comes after it
                await run
            delivered = json.loads(webhook.seen[-1][1])["data"]["key"]
            before = await here.get(old.key_hash)
            assert before is not None
            assert before.successor_hash == hash_key(delivered), f"after {cuts} pieces"
            cuts += 1
            assert len(webhook.seen) == cuts
        assert cuts > 10
        await leader.aclose()
        await keys.aclose()
        await database.aclose()
        await here.store.database.aclose()
