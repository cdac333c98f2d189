"""The management API on a real database, driven in-process, with everything it answered or logged kept for a canary."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette

from sidecar.admin import build_admin
from sidecar.db import Database, migrate
from sidecar.identity.keys import Keys
from sidecar.identity.table import KeyTable, Store
from sidecar.spend.ledger import Ledger
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


class Api:
    """A client with the master key; `minted` keys must not appear in any later answer."""

    def __init__(self, client: httpx2.AsyncClient, keys: Keys, table: KeyTable, ledger: Ledger, clock: Clock) -> None:
        self.client = client
        self.keys = keys
        self.table = table
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

    async def mint(self, **fields: Any) -> dict[str, Any]:
        answer = await self.post("/key/generate", fields)
        assert answer.status_code == 200, answer.text
        made: dict[str, Any] = answer.json()
        self.minted.append(made["key"])
        return made


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    await migrate(database_url)
    database = Database(database_url)
    await database.connect()
    clock = Clock()
    table, ledger = KeyTable(Store(database)), Ledger(database)
    keys = Keys(table, master_key=Secret(MASTER), clock=clock)
    seeds = Seeds()
    routes = build_admin(
        keys=keys, table=table, ledger=ledger, admission=seeds, clock=clock, random_bytes=secrets.token_bytes
    )
    transport = httpx2.ASGITransport(app=Starlette(routes=routes), raise_app_exceptions=True)
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        made = Api(client, keys, table, ledger, clock)
        made.seeds = seeds
        yield made
    await keys.aclose()
    await database.aclose()
