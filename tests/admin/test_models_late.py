"""A reading of the stored models that arrives late does not bring back what was deleted meanwhile; one that never
arrives is not waited for."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.config.build import build_catalog
from sidecar.config.models import Config
from sidecar.config.stored import LiveCatalog, ModelTable, StoredModel, checked
from sidecar.db import Database, migrate
from sidecar.db.vault import Vault
from sidecar.identity.table import Store
from sidecar.spend.price_loader import load_price
from sidecar.types import Secret
from tests.promises.support import eventually
from tests.servers.relay import relayed

pytestmark = pytest.mark.anyio
CONFIG = Config.model_validate({"models": []})
VAULT = Vault(Secret("correct-horse-battery-staple"))
SETTINGS = checked("fresh", {"provider": "openai", "model": "gpt-x", "api_key": "sk-x", "price": "free"})


async def test_held_up_after_any_packet(postgres_url: str) -> None:
    await migrate(postgres_url)
    async with relayed(postgres_url) as (relay, url):
        away, here = Database(url), Database(postgres_url)
        slow, quick = ModelTable(Store(away), VAULT), ModelTable(Store(here), VAULT)
        catalog = build_catalog(CONFIG, {})
        live = LiveCatalog(catalog, slow, lambda more: build_catalog(CONFIG, {}, more), load_price)
        await live.reload()
        is_whole, pieces = False, 0
        while not is_whole:
            model = StoredModel(f"m{pieces}", "fresh", SETTINGS)
            await quick.create(model, by="a")
            relay.freeze_after(pieces)
            late = asyncio.ensure_future(live.reload())
            is_whole = not await relay.holds_up(late)
            await quick.delete(model, by="a")
            live._table = quick  # on another connection than the one that is held up
            await live.reload()
            live._table = slow
            relay.thaw()
            await late
            assert [d.deployment_id for d in catalog.deployments] == [], f"after {pieces} pieces"
            pieces += 1
        assert pieces > 5
        for database in (away, here):
            await database.aclose()


async def test_a_reading_that_is_never_answered_is_given_up(postgres_url: str) -> None:
    """The connection stands still for ever, a new one would be answered: nothing changed later was ever noticed."""
    await migrate(postgres_url)
    async with relayed(postgres_url) as (relay, url):
        away, here = Database(url), Database(postgres_url)
        catalog = build_catalog(CONFIG, {})
        live = LiveCatalog(
            catalog,
            ModelTable(Store(away), VAULT),
            lambda more: build_catalog(CONFIG, {}, more),
            load_price,
            deadline_s=0.5,
        )
        await live.reload()
        await ModelTable(Store(here), VAULT).create(StoredModel("m", "fresh", SETTINGS), by="a")
        relay.freeze()
        live.forget_all(1)
        await asyncio.sleep(0.1)
        relay.move_on()
        await eventually(lambda: [d.deployment_id for d in catalog.deployments] == ["m"])
        await live.aclose()
        for database in (away, here):
            await database.aclose()
