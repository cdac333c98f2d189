"""`sidecar spend …` on a real database and a real Redis: what agrees, what differs, and how it is told."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from sidecar.cli import app
from sidecar.cli.spend import redis_counters
from sidecar.db import Database, migrate
from sidecar.limits.admission import Admission
from sidecar.limits.store import open_store
from sidecar.spend import reconcile
from sidecar.spend.ledger import Ledger
from sidecar.spend.verify import totals_that_differ
from sidecar.types import Budget, Identity, SpendRecord
from tests.spend.rows import exchange_id, row
from tests.spend.test_reports import ANTHROPIC_COST

pytestmark = pytest.mark.anyio
USD = 10**9
Command = Callable[..., Result]


@pytest.fixture
def sidecar(database_url: str, redis_url: str, tmp_path: Path) -> Command:
    file = tmp_path / "sidecar.yaml"

    def run(*arguments: str, redis: bool = True) -> Result:
        lines = [f"database_url: {database_url}", f"journal_dir: {tmp_path}/journal"]
        lines += [f"redis_url: {redis_url}"] if redis else []
        file.write_text("store:\n" + "".join(f"  {line}\n" for line in lines))
        return CliRunner().invoke(app, ["spend", *arguments, "--config", str(file)])

    return run


async def insert(url: str, *records: SpendRecord) -> None:
    database = Database(url)
    await Ledger(database).insert(records)
    await database.aclose()


async def test_counters_of_settled_and_running_exchanges_agree_with_the_ledger(
    database_url: str, redis_url: str
) -> None:
    await migrate(database_url)
    ledger = Ledger(Database(database_url))

    async def seed(windows: object) -> dict[str, int]:
        return {w.key: await ledger.sum_of(w.kind, w.scope_id, w.start_at, w.end_at) for w in windows}  # type: ignore[attr-defined]

    admission = Admission(open_store(redis_url, deadline_s=30), seed=seed, timezone="Europe/Berlin")  # type: ignore[arg-type]
    budgets = tuple(Budget(100 * USD, duration) for duration in ("1h", "1d", "1w", "1mo", "30d", None))
    identity = Identity(key_hash="k" * 64, budgets=budgets)
    for number in range(3):
        grant = await admission.acquire(exchange_id(number), identity, "m", tokens=0, hold_nano=2 * USD)
        if number < 2:
            await admission.settle(grant, tokens=0, cost_nano=USD)
            await ledger.insert([row(number, at=grant.at, cost_nano=USD)])
    counters = await redis_counters(redis_url, "Europe/Berlin")
    assert len(counters) == 6
    for counter in counters:
        assert (counter.nano, counter.held_nano) == (4 * USD, 2 * USD)
        assert counter.start_at <= grant.at < counter.end_at
        assert await ledger.sum_of(counter.kind, counter.scope_id, counter.start_at, counter.end_at) == 2 * USD
    assert {counter.end_at for counter in counters} == {window.end_at for window in grant.windows}
    await admission.aclose()
    await ledger.database.aclose()


def test_agreement_and_every_difference_are_told(
    sidecar: Command, database_url: str, redis_url: str, anyio_backend: str
) -> None:

    asyncio.run(migrate(database_url))
    asyncio.run(insert(database_url, row(0, cost_nano=5, team_id="red")))

    async def counted(key: str, nano: int) -> None:
        client = Redis.from_url(redis_url)
        await client.set(f"{{sidecar}}:b:{key}", nano)
        await client.aclose()

    asyncio.run(counted(f"key:{'k' * 64}:life:0", 5))
    asyncio.run(counted("team:red:1mo:1798761600", 5))
    agreed = sidecar("verify", "--wait", "0")
    assert agreed.exit_code == 0, agreed.output
    assert "counters: 0 of 2 differ" in agreed.output

    asyncio.run(counted("team:red:1mo:1798761600", 7))
    differs = sidecar("verify", "--wait", "0")
    assert differs.exit_code == 1
    assert "team:red:1mo:1798761600" in differs.output
    assert "$0.000000002 apart" in differs.output
    assert sidecar("verify", redis=False).exit_code == 0

    async def spoil() -> None:
        database = Database(database_url)
        async with database.engine.begin() as connection:
            await connection.exec_driver_sql("UPDATE spend_daily SET cost_nano = 6 WHERE dimension = 'user'")
        (found,) = await totals_that_differ(Ledger(database))
        assert (found.dimension, found.by) == ("user", {"cost_nano": 1})
        await database.aclose()

    asyncio.run(spoil())
    spoiled = sidecar("verify", redis=False)
    assert spoiled.exit_code == 1
    assert "cost_nano by 1" in spoiled.output


def test_names_that_clients_choose_neither_run_in_a_spreadsheet_nor_move_a_terminal(
    sidecar: Command, database_url: str
) -> None:
    asyncio.run(migrate(database_url))
    names = ['=HYPERLINK("http://x")', "@SUM(A1)", "+1", "-2+3", "\tx", "-7", "a\x1b[2Jb\nc", "plain"]
    asyncio.run(insert(database_url, *(row(n, end_user_id=name) for n, name in enumerate(names))))
    asyncio.run(insert(database_url, row(3, revision=1, cost_nano=-USD, end_user_id="-2+3")))
    window = ("--by", "end_user", "--from", "2027-01-15", "--to", "2027-01-15")
    rows = list(csv.DictReader(io.StringIO(sidecar("report", "--csv", *window).output, newline="")))
    assert {line["end_user"] for line in rows} == {
        '\'=HYPERLINK("http://x")', "'@SUM(A1)", "'+1", "'-2+3", "'\tx", "-7", "a\x1b[2Jb\nc", "plain",
    }  # fmt: skip
    assert [line["usd"] for line in rows if line["end_user"] == "'-2+3"] == ["-0.999999996"]
    table = sidecar("report", *window).output
    assert r"a\x1b[2Jb\nc" in table
    assert "\x1b" not in table


def test_a_report_is_a_table_csv_or_json(sidecar: Command, database_url: str) -> None:
    asyncio.run(migrate(database_url))
    records = [row(n, team_id=("red", "blue")[n % 2], cost_nano=(n + 1) * USD, status="unknown") for n in range(4)]
    asyncio.run(insert(database_url, *records))
    window = ("--from", "2027-01-15", "--to", "2027-01-15")
    table = sidecar("report", "--by", "team", *window)
    assert table.exit_code == 0, table.output
    assert [line.split()[:3] for line in table.output.splitlines()[:4]] == [
        ["team", "usd", "attempts"], ["blue", "6", "2"], ["red", "4", "2"], ["total", "10", "4"],
    ]  # fmt: skip
    assert "unknown: $10 of the total" in table.output
    rows = list(csv.DictReader(io.StringIO(sidecar("report", "--by", "key,day", "--csv", *window).output)))
    assert [(line["key"], line["day"], line["usd"]) for line in rows] == [("k" * 64, "2027-01-15", "10")]
    found = json.loads(sidecar("report", "--by", "model", "--where", "team=red", "--json", *window).output)
    assert [(line["model"], line["usd"]) for line in found["data"]] == [("gpt-4o-mini", "4")]
    assert found["total"]["attempts"] == 2
    assert sidecar("report", "--to", "2027-01-14").output.splitlines()[-1].split()[1] == "0"
    assert sidecar("report", "--from", "soon").exit_code == 2
    assert sidecar("report", "--from", "2027-01-15", "--to", "2027-01-14").exit_code == 2
    assert sidecar("report", "--where", "team").exit_code == 2
    assert sidecar("report", "--by", "key,team").exit_code == 1


def test_an_invoice_is_compared_and_the_exit_code_says_whether_it_is_explained(
    sidecar: Command, database_url: str, tmp_path: Path
) -> None:
    asyncio.run(migrate(database_url))
    at = 1_800_000_000.0
    haiku = row(0, provider="anthropic", model="claude-haiku-4-5", cost_nano=1_750_000_000, at=at)
    asyncio.run(insert(database_url, haiku))
    file = tmp_path / "costs.csv"
    file.write_text(ANTHROPIC_COST)
    short = sidecar("reconcile", "--invoice", str(file))
    assert short.exit_code == 1, short.output
    assert short.output.splitlines()[0] == "anthropic cost, 2027-01-15 to 2027-01-16"
    asyncio.run(insert(database_url, row(1, provider="anthropic", model="claude-sonnet-4-5", cost_nano=3 * USD, at=at)))
    whole = sidecar("reconcile", "--invoice", str(file), "--json")
    assert whole.exit_code == 0, whole.output
    first = json.loads(whole.output)["data"][0]
    assert (first["provider"], first["ledger"], first["delta"]) == ("4.75", "4.75", "0")
    other = sidecar("reconcile", "--invoice", str(file), "--json", "--where", "group=other")
    assert (other.exit_code, json.loads(other.output)["data"][0]["ledger"]) == (1, "0")
    assert sidecar("reconcile", "--invoice", str(file), "--where", "group").exit_code == 2
    assert sidecar("reconcile", "--invoice", str(tmp_path / "none.csv")).exit_code == 2


def test_models_that_differ_one_up_one_down_are_not_explained_by_their_sum(
    sidecar: Command, database_url: str, tmp_path: Path
) -> None:
    asyncio.run(migrate(database_url))
    costs = {"claude-haiku-4-5": 4_750_000_000, "claude-sonnet-4-5": 0}
    rows = [row(n, provider="anthropic", model=m, cost_nano=nano) for n, (m, nano) in enumerate(costs.items())]
    asyncio.run(insert(database_url, *rows))
    file = tmp_path / "costs.csv"
    file.write_text(ANTHROPIC_COST)
    found = sidecar("reconcile", "--invoice", str(file), "--json")
    assert [line["delta"] for line in json.loads(found.output)["data"]] == ["0", "-3", "3"]
    assert found.exit_code == 1


def test_a_file_without_end_is_read_as_far_as_an_export_may_be_long(
    sidecar: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "MAX_BYTES", 1 << 20)
    found = sidecar("reconcile", "--invoice", "/dev/zero")
    assert (found.exit_code, found.output) == (2, "/dev/zero: The file has more than 1 MB; export a shorter time.\n")
    (tmp_path / "latin.csv").write_bytes(b"\xff")
    assert "no text in UTF-8" in sidecar("reconcile", "--invoice", str(tmp_path / "latin.csv")).output
