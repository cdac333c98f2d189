"""`python -m bench.ledger [--rows N] [--json]`: what the ledger costs and how fast it is, on a PostgreSQL of its own.

Journal: see `bench.journal`. Flusher: rows per second into
PostgreSQL, this process and the server on one core together – by the clock, and by CPU time, which other work on the
machine does not change as much; of sixty days (each batch begins new totals) and of one (each adds to those that are
there, as a gateway under load does). Reports: time and the tables PostgreSQL's plan reads.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sidecar.db import Database
from sidecar.spend import reports
from sidecar.spend.ledger import Ledger
from sidecar.spend.rows import Row, row_of
from sidecar.types import SpendRecord, Usage

START = datetime(2026, 10, 1, tzinfo=UTC).timestamp()
KEYS, USERS, TEAMS, MODELS = 200, 100, 20, ("gpt-4o", "gpt-4o-mini", "o3", "claude-sonnet-4-5", "claude-haiku-4-5")


def hashed(key: int) -> str:
    return hashlib.sha256(str(key).encode()).hexdigest()


def records(count: int, days: int, seed: int = 1) -> Iterator[SpendRecord]:
    """Rows of a company: each key has an owner, each owner a team; evenly over some days, in the order of time."""
    chosen = random.Random(seed)
    for number in range(count):
        at = START + number * days * 86_400 / count
        digits = f"{int(at * 1000):012x}"
        key = chosen.randrange(KEYS)
        model = chosen.choice(MODELS)
        yield SpendRecord(
            exchange_id=f"{digits[:8]}-{digits[8:]}-7{seed:03x}-8000-{number:012x}",
            attempt=1,
            revision=0,
            at=at,
            key_hash=hashed(key),
            status="settled",
            outcome="ok",
            cost_nano=chosen.randrange(10_000_000),
            group=model,
            deployment_id=f"{model}-1",
            provider="anthropic" if model.startswith("claude") else "openai",
            model=model,
            key_alias=f"key-{key}",
            user_id=f"user-{key % USERS}",
            team_id=f"team-{key % TEAMS}",
            organization_id="org",
            request_id=digits,
            usage=Usage(
                input=chosen.randrange(4000), output=chosen.randrange(800), cached_input=chosen.randrange(2000)
            ),
            http_status=200,
            duration_ms=900,
            budget_keys=(f"key:{hashed(key)}:1mo:{int(START)}",),
            tags=("batch",) if number % 3 == 0 else (),
        )


def cpu_us(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1000


async def flushed(ledger: Ledger, rows: list[Row], batch: int) -> tuple[float, float, float]:
    """Rows per second of the clock; CPU microseconds a row of this process and of the server's."""
    async with ledger.connection() as connection:
        server = (await connection.exec_driver_sql("SELECT pg_backend_pid()")).scalar_one()
    started, ours, theirs = time.perf_counter(), time.process_time(), cpu_us(server)
    for start in range(0, len(rows), batch):
        await ledger.insert_rows(rows[start : start + batch])
    speed = len(rows) / (time.perf_counter() - started)
    return speed, (time.process_time() - ours) * 1e6 / len(rows), (cpu_us(server) - theirs) / len(rows)


async def measure(url: str, count: int) -> dict[str, Any]:
    database = Database(url, clock=lambda: START)
    await database.migrate()
    ledger = Ledger(database)
    result: dict[str, Any] = {}
    made = list(records(count, 60))
    rows = [row_of(record) for record in made]
    speed, ours, theirs = await flushed(ledger, rows, 3000)
    result |= {"rows": count, "flushed_rows_per_s": round(speed), "flusher_us_per_row": round(ours, 1)}
    result |= {"server_us_per_row": round(theirs, 1), "flushed_rows_per_core_s": round(1e6 / (ours + theirs))}
    assert await ledger.sum_all() == sum(record.cost_nano for record in made)
    speed, _, _ = await flushed(ledger, rows[: count // 4], 3000)
    result["repeated_rows_per_s"] = round(speed)
    async with ledger.connection() as connection:
        await connection.exec_driver_sql("ANALYZE")
    since, until = datetime.fromtimestamp(START, UTC), datetime.fromtimestamp(START, UTC) + timedelta(days=60)
    for by in (("key",), ("model",), ("team", "day")):
        started = time.perf_counter()
        report = await reports.report(ledger, by=by, since_at=since.timestamp(), until_at=until.timestamp())
        took = time.perf_counter() - started
        assert report.total.cost_nano == sum(record.cost_nano for record in made)
        plan = await reports.plan(ledger, by=by, since_at=since.timestamp(), until_at=until.timestamp())
        tables = sorted({word for word in plan.replace("(", " ").split() if word.startswith("spend")})
        result[f"report_by_{'_'.join(by)}"] = {"ms": round(took * 1000, 1), "rows": len(report.rows), "reads": tables}
    started = time.perf_counter()
    await ledger.sum_of("key", hashed(1), START + 3600, START + 30 * 86_400 + 3600)
    result["budget_seed_ms"] = round((time.perf_counter() - started) * 1000, 1)
    busy = [row_of(record) for record in records(count // 2, 1, seed=2)]
    speed, ours, theirs = await flushed(ledger, busy, 3000)
    result["one_day"] = {"rows_per_s": round(speed), "rows_per_core_s": round(1e6 / (ours + theirs))}
    await database.aclose()
    return result


def main() -> None:
    from bench import journal
    from tests.servers.postgres import server

    parser = argparse.ArgumentParser(prog="python -m bench.ledger")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # the server, a child, shares this one core
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        with server(folder) as url:
            result = journal.measure(folder / "journal")
            result |= asyncio.run(measure(f"{url}/postgres", arguments.rows))
    if arguments.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key:34} {value}")


if __name__ == "__main__":
    main()
