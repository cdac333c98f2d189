"""`python -m bench.identity [--quick]`: who calls, in figures. 100,000 keys and 1,000 teams in a real PostgreSQL: what
a cached and an uncached identity cost, that memory is bounded, and that a start knows nothing of them. CPU is the
process's own; nothing is judged."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sidecar.db import Database, migrate
from sidecar.identity.callers import Callers
from sidecar.identity.keys import Keys
from sidecar.identity.row import member_id
from sidecar.identity.subjects import Credentials
from sidecar.identity.table import KeyTable, PrincipalTable, Store
from sidecar.identity.tokens import hash_key, new_key

ROOT = Path(__file__).parent.parent
MEMBERS = 10
"""Users a team has; each is a member, with a tenth of the team's keys."""


def rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def token(number: int) -> str:
    return new_key(lambda n: number.to_bytes(n, "big"))


async def fill(url: str, keys: int, teams: int) -> float:
    """Rows as the management API would write them, by COPY. Seconds."""
    import asyncpg

    began = time.perf_counter()
    policy = {
        "models": '["gpt","openai/*"]', "budget_windows": "[]", "model_limits": '{"gpt":{"rpm":50}}', "metadata": "{}",
        "max_budget_nano": 10**12, "budget_duration": "1mo", "rpm_limit": 1000, "tpm_limit": 10**6,
        "budget_anchor_at": 0, "blocked": False, "created_at": 0, "updated_at": 0,
    }  # fmt: skip

    def user(team: int, member: int) -> str:
        return f"user-{team}-{member}"

    principals: list[dict[str, Any]] = []
    for team in range(teams):
        organization = f"organization-{team % 20}"
        if team < 20:
            principals.append({"kind": "organization", "principal_id": organization})
        principals.append({"kind": "team", "principal_id": f"team-{team}", "organization_id": organization})
        for member in range(MEMBERS):
            name = user(team, member)
            principals.append({"kind": "user", "principal_id": name, "role": "internal_user"})
            ids = {"team_id": f"team-{team}", "user_id": name}
            principals.append({"kind": "member", "principal_id": member_id(f"team-{team}", name), **ids})
    rows = (
        {
            "key_hash": hash_key(token(number)), "key_name": "sk-...", "key_alias": f"key-{number}", "tags": "[]",
            "team_id": f"team-{number % teams}", "user_id": user(number % teams, number // teams % MEMBERS),
        }
        for number in range(keys)
    )  # fmt: skip
    connection = await asyncpg.connect(url)
    try:
        await copy(connection, "principals", [policy | row for row in principals])
        await copy(connection, "keys", [policy | row for row in rows])
        await connection.execute("ANALYZE")
    finally:
        await connection.close()
    return time.perf_counter() - began


async def copy(connection: Any, table: str, rows: list[dict[str, Any]]) -> None:
    types = await connection.fetch(
        "SELECT column_name, data_type, is_nullable FROM information_schema.columns WHERE table_name = $1", table
    )
    names = list(dict.fromkeys(name for row in rows for name in row))
    kinds = {row["column_name"]: row["data_type"] for row in types}
    unset = {r["column_name"] for r in types if r["is_nullable"] == "NO"} - set(names)
    assert not unset, f"{table} has new columns that must be given: {unset}"

    def value(row: dict[str, Any], name: str) -> Any:
        found = row.get(name)
        return int(found) if isinstance(found, bool) and kinds[name] != "boolean" else found

    records = [tuple(value(row, name) for name in names) for row in rows]
    await connection.copy_records_to_table(table, records=records, columns=names)


def cpu_us(call: Callable[[], object], times: int) -> float:
    for _ in range(times // 10):
        call()
    began = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - began) / times * 1e6


async def async_cpu_us(call: Callable[[], Awaitable[object]], times: int) -> float:
    for _ in range(times // 10):
        await call()
    began = time.process_time()
    for _ in range(times):
        await call()
    return (time.process_time() - began) / times * 1e6


async def lookups(url: str, keys: int, times: int) -> None:
    import sqlalchemy as sa

    database = Database(url)
    store = Store(database)
    known = Keys(KeyTable(store), master_key=None, clock=time.time, hard_age_s=3600, deadline_s=60)
    callers = Callers(PrincipalTable(store), clock=time.time, hard_age_s=3600)
    statements = 0

    def count(*_: object) -> None:
        nonlocal statements
        statements += 1

    sa.event.listen(database.engine.sync_engine, "before_cursor_execute", count)
    await known.lookup(token(0))
    statements = 0
    sample = [token(number * (keys // times) % keys) for number in range(1, times + 1)]
    began_cpu, waits = time.process_time(), []
    for one in sample:
        began = time.perf_counter()
        await known.lookup(one)
        waits.append((time.perf_counter() - began) * 1e3)
    cpu = (time.process_time() - began_cpu) / times * 1e6
    waits.sort()
    print(f"uncached identity: {statements / times:.2f} queries, p50 {waits[times // 2]:.2f} ms, "
          f"p99 {waits[times * 99 // 100]:.2f} ms, {cpu:.0f} µs CPU")  # fmt: skip
    known.confirm(time.time() + 3600)  # as the feed does
    callers.confirm(time.time() + 3600)
    first = sample[-1]
    identity = known.cached(first)
    assert identity is not None
    names = [p.kind for p in identity.principals]
    credentials = Credentials(known)
    print(f"cached identity below {', '.join(names)}: {cpu_us(lambda: known.cached(first), 200_000):.2f} µs CPU; "
          f"by way of Credentials {cpu_us(lambda: credentials.cached(first), 200_000):.2f} µs")  # fmt: skip
    await callers.of(identity, "customer", ("a", "b"))
    statements = 0
    cost = await async_cpu_us(lambda: callers.of(identity, "customer", ("a", "b")), 50_000)
    print(f"end user and two tags, cached: {cost:.2f} µs CPU, {statements} queries")

    print(f"memory: {rss_mb():.0f} MB before", end="")
    bound = 10_000
    many = min(keys, 4 * bound)
    for done in range(0, many, 10):
        await asyncio.gather(*(known.lookup(token(number)) for number in range(done, done + 10)))
        if (done + 10) % bound == 0 or done + 10 == many:
            print(f", {rss_mb():.0f} MB after {done + 10:,} keys", end="", flush=True)
    print(f"; {len(known._known):,} kept (bound {bound:,}), {len(known._principals):,} principals shared by them")
    changed = time.process_time()
    for number in range(1000):
        known.changed(number + 1, "team", f"team-{number}")
    spent = (time.process_time() - changed) * 1e6 / 1000
    print(f"a change of a team: {spent:.1f} µs CPU, drops the keys below it only")
    assert replace(identity) == identity
    await known.aclose()
    await database.aclose()


def start(url: str) -> dict[str, float]:
    """A gateway in a process of its own, from its first line to the end of its start."""
    child = subprocess.run(
        [sys.executable, "-m", "bench.identity", "--child", url],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    found: dict[str, float] = json.loads(child.stdout.splitlines()[-1])
    return found


async def child(url: str) -> None:
    from sidecar.app import build_app
    from sidecar.config import load_config

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sidecar.yaml"
        store = {"database_url": url, "journal_dir": f"{folder}/journal"}
        file.write_text(json.dumps({"auth": {"master_key": "sk-master-0123456789"}, "store": store, "models": []}))
        began, began_cpu = time.perf_counter(), time.process_time()
        gateway = build_app(load_config(file, {}), migrate=True, env={})
        await gateway.start()
        wall, cpu = time.perf_counter() - began, time.process_time() - began_cpu
        print(json.dumps({"wall_ms": wall * 1e3, "cpu_ms": cpu * 1e3, "mb": rss_mb()}))
        await gateway.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.identity")
    parser.add_argument("--quick", action="store_true", help="5,000 keys, 50 teams")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        asyncio.run(child(options.child))
        return
    from tests.servers.postgres import _execute, _server

    keys, teams, times = (5_000, 50, 500) if options.quick else (100_000, 1_000, 2_000)
    with tempfile.TemporaryDirectory(prefix="sidecar-bench-postgres-") as name:
        folder = Path(name)
        with _server(folder) as server:
            urls = {}
            for which in ("bare", "filled"):
                _execute(server, f"CREATE DATABASE {which}")
                urls[which] = f"{server}/{which}"
                asyncio.run(migrate(urls[which]))
            print(f"{keys:,} keys, {teams:,} teams, {teams * MEMBERS:,} users and members: "
                  f"filled in {asyncio.run(fill(urls['filled'], keys, teams)):.1f} s")  # fmt: skip
            for which in ("bare", "filled", "bare", "filled"):
                seen = start(urls[which])
                print(f"start, {which} database: {seen['wall_ms']:.0f} ms, {seen['cpu_ms']:.0f} ms CPU, "
                      f"{seen['mb']:.0f} MB")  # fmt: skip
            asyncio.run(lookups(urls["filled"], keys, times))


if __name__ == "__main__":
    main()
