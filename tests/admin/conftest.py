"""The management API on a real database, driven in-process, with everything it answered or logged kept for a canary."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from datetime import UTC
from functools import partial
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette

from sidecar.admin import admin_table
from sidecar.admin.endpoint import Endpoint, routes_of
from sidecar.admin.models import ModelAdmin
from sidecar.config.build import build_catalog
from sidecar.config.load import load_config
from sidecar.config.stored import LiveCatalog, ModelTable
from sidecar.db import Database, migrate
from sidecar.db.vault import Vault
from sidecar.identity.feed import ChangeFeed
from sidecar.identity.keys import Keys
from sidecar.identity.subjects import Credentials
from sidecar.identity.table import KeyTable, PrincipalTable, Store
from sidecar.identity.tree import Tree
from sidecar.jobs.unknown import Unknown
from sidecar.records import Records
from sidecar.spend.ledger import Ledger
from sidecar.spend.price_loader import load_price
from sidecar.spend.prompts import find
from sidecar.types import Identity, Secret
from tests.identity.source import Clock

MASTER = "sk-master-" + "m" * 32


class Seeds:
    """Takes the place of `Admission` at its seam: notes who was seeded."""

    def __init__(self) -> None:
        self.identities: list[Identity] = []
        self.failure: Exception | None = None

    async def seed_identity(self, identity: Identity) -> None:
        if self.failure is not None:
            raise self.failure
        self.identities.append(identity)

    async def catch_up(self, identity: Identity) -> None:
        return


class Api:
    """A client with the master key; `minted` keys must not appear in any later answer."""

    def __init__(self, client: httpx2.AsyncClient, keys: Keys, tree: Tree, ledger: Ledger, clock: Clock) -> None:
        self.client = client
        self.keys = keys
        self.tree = tree
        self.table = tree.keys
        self.endpoints: list[Endpoint] = []
        self.app: Starlette
        self.ledger = ledger
        self.clock = clock
        self.seeds = Seeds()
        self.minted: list[str] = []

    async def call(self, method: str, path: str, key: str | None = MASTER, **options: Any) -> httpx2.Response:
        headers = dict(options.pop("headers", {}))
        if key is not None:
            headers.setdefault("authorization", f"Bearer {key}")
        answer = await self.client.request(method, path, headers=headers, **options)
        for minted in self.minted:
            assert minted not in answer.text, f"{method} {path} shows a whole key"
        return answer

    async def post(self, path: str, body: Any = None, **options: Any) -> httpx2.Response:
        return await self.call("POST", path, json=body, **options)

    async def get(self, path: str, **query: Any) -> httpx2.Response:
        return await self.call("GET", path, params=query)

    async def done(self, path: str, **body: Any) -> dict[str, Any]:
        """A POST of the master key that has to succeed."""
        answer = await self.post(path, body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def mint(self, **fields: Any) -> dict[str, Any]:
        answer = await self.post("/key/generate", fields)
        assert answer.status_code == 200, answer.text
        made: dict[str, Any] = answer.json()
        self.minted.append(made["key"])
        return made


async def _status() -> dict[str, Any]:
    return {"version": "0"}


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    await migrate(database_url)
    database = Database(database_url)
    await database.connect()
    clock = Clock()
    store, ledger = Store(database, clock=clock), Ledger(database)
    tree = Tree(KeyTable(store), PrincipalTable(store))
    keys = Keys(tree.keys, master_key=Secret(MASTER), clock=clock, deadline_s=60)
    feed = ChangeFeed(store, [keys], clock=clock, deadline_s=60)
    await feed.poll()
    seeds = Seeds()
    config = load_config(None, {})
    catalog, stored = build_catalog(config, {}), ModelTable(store, Vault(Secret("v" * 32)))
    live = LiveCatalog(catalog, stored, lambda more: build_catalog(config, {}, more), load_price)
    table = admin_table(
        keys=keys,
        tree=tree,
        ledger=ledger,
        status=_status,
        unknown=Unknown(ledger, None, zone=UTC),
        prompts=partial(find, database),
        exchanges=Records().found,
        models=ModelAdmin(table=stored, catalog=catalog, live=live, clock=clock),
        admission=seeds,
        tell=feed.poll,
        clock=clock,
        random_bytes=secrets.token_bytes,
    )
    routes = routes_of(table, Credentials(keys), tree.principals)
    app = Starlette(routes=routes)
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=True)
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        made = Api(client, keys, tree, ledger, clock)
        made.seeds = seeds
        made.endpoints = table
        made.app = app
        yield made
    await live.aclose()
    await keys.aclose()
    await database.aclose()
