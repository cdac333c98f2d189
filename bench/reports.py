"""`python -m bench.reports [--rows N] [--json]`: how long reports, pages of rows and seeding take on a big ledger.

Makes N rows (10,000,000: some ten minutes and 10 GB of disk) of a quarter of a year in a PostgreSQL of its own, by
`generate_series`, with daily totals added up by the gateway's own statements; then asks as the admin API and
`sidecar spend report` do. Times are medians of five, of the first call separately.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bench.ledger import START, hashed
from sidecar.db import Database
from sidecar.db.schema import TOTALS
from sidecar.spend import reports
from sidecar.spend.ledger import Ledger
from sidecar.spend.rollups import KEY, ORDER, ORDER_WHOLE, WHOLE, added_up

DAYS, KEYS, USERS, TEAMS, END_USERS, CHUNK = 90, 2000, 500, 50, 1000, 1_000_000
DAY = 86_400.0
_MODELS = "ARRAY['gpt-4o', 'gpt-4o-mini', 'o3', 'gpt-5', 'claude-sonnet-4-5', 'claude-haiku-4-5', 'gemini-2.5-pro']"

# Everything about row n follows from a number that looks random but is always the same.
_ROWS = f"""
INSERT INTO spend SELECT
  substr(ms, 1, 8) || '-' || substr(ms, 9, 4) || '-7000-8000-' || lpad(to_hex(n), 12, '0'), 1, 0, at,
  encode(sha256((r % {KEYS})::text::bytea), 'hex'), status, CASE status WHEN 'unknown' THEN 'error' ELSE 'ok' END,
  1000 * (r % 20000), model, model || '-1',
  CASE WHEN model LIKE 'claude%%' THEN 'anthropic' WHEN model LIKE 'gemini%%' THEN 'gemini' ELSE 'openai' END, model,
  'key-' || r % {KEYS}, 'user-' || r % {USERS}, 'team-' || r % {TEAMS}, 'org-' || r % 3,
  'eu-' || (r / 7) % {END_USERS}, 'req-' || n,
  r % 4000, r % 2000, NULL, NULL, r % 800, NULL, NULL, NULL, NULL, NULL,
  200, r % 2 = 0, 900, NULL, '[]', '[]', CASE WHEN n % 3 = 0 THEN '["batch"]' ELSE '[]' END
FROM (SELECT n, r, at, lpad(to_hex(at / 1000), 12, '0') AS ms, ({_MODELS})[1 + (r / 3) % 7] AS model,
  CASE WHEN r % 100 = 0 THEN 'unknown' WHEN r % 50 = 1 THEN 'estimated' ELSE 'settled' END AS status
  FROM (SELECT n, abs(hashint8(n)::bigint) AS r,
    {int(START * 1e6)} + (n * {DAYS * 86_400_000_000}::numeric / $1)::bigint AS at
  FROM generate_series($2::bigint, $3::bigint) AS n) AS numbers) AS rows
"""


async def fill(database: Database, count: int) -> None:
    async with database.engine.connect() as connection:
        raw = (await connection.get_raw_connection()).driver_connection
        assert raw is not None
        await raw.execute("SET synchronous_commit = off")
        for first in range(0, count, CHUNK):
            last = min(first + CHUNK, count) - 1
            await raw.execute(_ROWS.replace("%%", "%"), count, first, last, timeout=3600)
            print(f"{last + 1} rows", file=sys.stderr)
        await raw.execute("SET work_mem = '256MB'")
        names, whole = ", ".join((*KEY, *TOTALS)), ", ".join((*KEY[:3], *TOTALS))
        totals = f"SELECT {names} FROM ({added_up('spend', dialect='postgresql')}) AS found ORDER BY day_at, {ORDER}"
        await raw.execute(f"INSERT INTO spend_daily ({names}) {totals}", timeout=3600)  # day after day, as flushers do
        sums = ", ".join(f"sum({name})" for name in TOTALS)
        totals = f"SELECT dimension, day_at, name, {sums} FROM spend_daily WHERE dimension = ANY($1) GROUP BY 1, 2, 3"
        query = f"INSERT INTO spend_daily_whole ({whole}) {totals} ORDER BY day_at, {ORDER_WHOLE}"
        await raw.execute(query, list(WHOLE), timeout=3600)
        await raw.execute("VACUUM ANALYZE", timeout=3600)


async def timed(what: Callable[[], Awaitable[Any]]) -> dict[str, float]:
    """Milliseconds of the first call and the median of five more."""
    took = []
    for _ in range(6):
        started = time.perf_counter()
        await what()
        took.append((time.perf_counter() - started) * 1000)
    return {"first_ms": round(took[0], 1), "ms": round(statistics.median(took[1:]), 1)}


def questions(ledger: Ledger, count: int) -> dict[str, Callable[[], Awaitable[Any]]]:
    end = START + DAYS * DAY
    quarter: dict[str, Any] = {"since_at": START, "until_at": end}
    week: dict[str, Any] = {"since_at": end - 7 * DAY, "until_at": end}
    odd: dict[str, Any] = {"since_at": START + 3600, "until_at": end - 3600}

    async def pages(number: int, **filters: Any) -> None:
        cursor = None
        for _ in range(number):
            page = await ledger.logs(cursor=cursor, **filters)
            cursor = page.next_cursor
            if cursor is None:
                return

    asked: dict[str, Callable[[], Awaitable[Any]]] = {
        f"report by {' and '.join(by)}, {name}": lambda by=by, window=window: reports.report(  # type: ignore[misc]
            ledger, by=by, limit=100, **window
        )
        for by in (("model",), ("key",), ("team", "day"), ("user", "model"), ("end_user",), ("tag",), ("day",))
        for name, window in (("90 days", quarter), ("7 days", week))
    }
    asked |= {
        "report by model, 90 days less two hours": lambda: reports.report(ledger, by=("model",), **odd),
        "report by key, of one key, by day": lambda: reports.report(
            ledger, by=("key", "day"), where={"key": hashed(1)}, **quarter
        ),
        "report by model, of one team": lambda: reports.report(
            ledger, by=("model",), where={"team": "team-7"}, **quarter
        ),
        "the newest 100 rows": lambda: pages(1),
        "100 pages of 100": lambda: pages(100),
        "a page after nine tenths of all rows": lambda: pages(1, until_at=START + DAYS * DAY / 10),
    }
    filters: dict[str, dict[str, Any]] = {
        "one key": {"key_hash": hashed(1)},
        "one user": {"user_id": "user-7"},
        "one team": {"team_id": "team-7"},
        "one organization": {"organization_id": "org-1"},
        "one end user": {"end_user_id": "eu-7"},
        "one model": {"model": "o3"},
        "one group": {"group": "o3"},
        "status unknown": {"status": "unknown"},
        "one tag": {"tag": "batch"},
        "one request id": {"request_id": f"req-{count // 2}"},
        "one key, one model, a week": {"key_hash": hashed(1), "model": "o3", **week},
        "a status that no row has": {"status": "free"},
        "an outcome that no row has": {"outcome": "client_left"},
        "a deployment that no row has": {"deployment_id": "nobody"},
        "a group, of a status that it has not": {"group": "o3", "status": "free"},
        "a key, of a status that it has not": {"key_hash": hashed(1), "status": "free"},
    }
    asked |= {f"rows of {name}": lambda f=found: pages(1, **f) for name, found in filters.items()}  # type: ignore[misc]
    for name in ("key_hash", "user_id", "team_id", "end_user_id", "tag", "model"):
        asked[f"rows of a {name} that does not exist"] = lambda name=name: ledger.logs(**{name: "nobody"})  # type: ignore[misc]
    asked["seeding a key's month"] = lambda: ledger.sum_before("key", hashed(1), START + 60 * DAY, end - DAY / 2)
    asked["seeding everybody's month"] = lambda: ledger.sum_before("global", "", START + 60 * DAY, end - DAY / 2)
    return asked


async def measure(url: str, count: int) -> dict[str, Any]:
    database = Database(url, clock=lambda: START)
    await database.migrate()
    ledger = Ledger(database)
    started = time.perf_counter()
    async with ledger.connection() as connection:
        is_empty = (await connection.exec_driver_sql("SELECT 1 FROM spend LIMIT 1")).scalar() is None
    if is_empty:
        await fill(database, count)
    result: dict[str, Any] = {"rows": count, "made_in_s": round(time.perf_counter() - started)}
    async with ledger.connection() as connection:
        found = await connection.exec_driver_sql(
            "SELECT (SELECT count(*) FROM spend_daily), (SELECT count(*) FROM spend_daily_whole),"
            " pg_database_size(current_database()) / 1048576"
        )
        result["daily_totals"], result["whole_totals"], result["database_mb"] = map(int, found.one())
    for name, ask in questions(ledger, count).items():
        result[name] = await timed(ask)
        print(name, result[name], file=sys.stderr)
    await database.aclose()
    return result


def main() -> None:
    from tests.servers.postgres import server

    parser = argparse.ArgumentParser(prog="python -m bench.reports")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--url", help="a database, empty or filled by this before, instead of a server of its own")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        if arguments.url:
            result = asyncio.run(measure(arguments.url, arguments.rows))
        else:
            with server(folder) as url:
                result = asyncio.run(measure(f"{url}/postgres", arguments.rows))
    if arguments.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key:45} {value}")


if __name__ == "__main__":
    main()
