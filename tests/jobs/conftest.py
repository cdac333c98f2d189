"""A database with keys, ledger and tree, a clock a test sets, and a webhook on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from sidecar.db import Database, migrate
from sidecar.identity.keys import Keys
from sidecar.identity.row import KeyRow, PrincipalRow
from sidecar.identity.table import KeyTable, PrincipalTable, Store
from sidecar.identity.tokens import hash_key, mask_key
from sidecar.identity.tree import Tree
from sidecar.jobs.leader import Leader
from sidecar.jobs.locks import RowLock
from sidecar.metrics import Metrics
from sidecar.spend.ledger import Ledger
from sidecar.spend.sinks.delivery import Delivery
from sidecar.types import Secret, SpendRecord
from tests.identity.source import Clock
from tests.servers.migrated import database_url, migrated_name, postgres_url  # noqa: F401 - fixtures

NOW = 1_800_000_000.0
"""A Friday: 2027-01-15 08:00 UTC."""


@dataclass
class Webhook:
    """Notes what it gets; answers what `answers` says next, else 200."""

    url: str = ""
    seen: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    clients: list[Delivery] = field(default_factory=list)
    """Closed at the end."""
    connections: set[asyncio.Task[Any]] = field(default_factory=set)

    def delivery(self, attempts: int = 1) -> Delivery:
        self.clients.append(Delivery(self.url, {}, attempts=attempts, pause_s=0.001, timeout_s=60))
        return self.clients[-1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.connections.add(task)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.seen.append((headers, body))
                status = self.answers.pop(0) if self.answers else 200
                writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n".encode())
                await writer.drain()
        writer.close()

    @property
    def texts(self) -> list[str]:
        return [json.loads(body)["text"] for _, body in self.seen]


@pytest.fixture
async def webhook() -> AsyncIterator[Webhook]:
    found = Webhook()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/secret-path"
    yield found
    for client in found.clients:
        await client.aclose()
    server.close()
    if found.connections:
        await asyncio.wait(found.connections, timeout=60)


@dataclass
class World:
    store: Store
    ledger: Ledger
    tree: Tree
    keys: Keys
    clock: Clock
    leader: Leader
    metrics: Metrics
    numbers: int = 0

    async def key(self, token: str, **values: Any) -> KeyRow:
        row = KeyRow(key_hash=hash_key(token), key_name=mask_key(token), **values)
        await self.tree.keys.create(row)
        return row

    async def add(self, kind: str, name: str, **values: Any) -> PrincipalRow:
        row = PrincipalRow(kind=kind, principal_id=name, **values)
        await self.tree.principals.create(row)
        return row

    async def spend(self, usd: float, *, at: float | None = None, **values: Any) -> None:
        self.numbers += 1
        fields: dict[str, Any] = {
            "exchange_id": f"0197b3c1-0000-7000-8000-{self.numbers:012x}", "attempt": 1, "revision": 0,
            "at": self.clock() if at is None else at, "key_hash": "nobody", "status": "settled", "outcome": "ok",
            "cost_nano": round(usd * 1e9), "group": "gpt", "model": "gpt-4o", "provider": "openai",
        }  # fmt: skip
        await self.ledger.insert([SpendRecord(**(fields | values))])


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:  # noqa: F811
    await migrate(database_url)
    clock = Clock(NOW)
    database = Database(database_url, clock=clock)
    store = Store(database, clock=clock)
    tree = Tree(KeyTable(store), PrincipalTable(store))
    keys = Keys(tree.keys, master_key=Secret("sk-master-" + "m" * 32), clock=clock)
    leader = Leader(RowLock(store, holder="test", lease_s=600.0, clock=clock), lease_s=600.0)
    assert await leader.take()
    yield World(store, Ledger(database, retention_days=None), tree, keys, clock, leader, Metrics())
    await leader.aclose()
    await keys.aclose()
    await database.aclose()
