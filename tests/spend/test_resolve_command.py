"""`sidecar spend resolve` on a real database and a real Redis."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sidecar.cli import app
from sidecar.db import Database, migrate
from sidecar.limits.admission import Admission
from sidecar.limits.store import open_store
from sidecar.spend.ledger import Ledger
from sidecar.types import Budget, Identity
from tests.spend.rows import exchange_id, row

USD = 10**9


async def spent(database_url: str, redis_url: str) -> None:
    """One exchange of unknown cost, counted by Redis."""
    await migrate(database_url)
    ledger = Ledger(Database(database_url))

    async def seed(windows: object) -> dict[str, int]:
        return {}

    admission = Admission(open_store(redis_url, deadline_s=30), seed=seed)
    grant = await admission.acquire(
        exchange_id(1), Identity(key_hash="k" * 64, budgets=(Budget(100 * USD, "1d"),)), "m", tokens=0, hold_nano=USD
    )
    await admission.settle(grant, tokens=0, cost_nano=USD)
    await ledger.insert([row(1, at=grant.at, status="unknown", outcome="incomplete", cost_nano=USD)])
    await admission.aclose()
    await ledger.database.aclose()


@pytest.mark.parametrize("with_redis", [True, False])
def test_the_real_cost_is_put_in_place_and_everything_agrees(
    database_url: str, redis_url: str, tmp_path: Path, with_redis: bool
) -> None:
    asyncio.run(spent(database_url, redis_url))
    file = tmp_path / "sidecar.yaml"
    redis = f"  redis_url: {redis_url}\n" if with_redis else ""
    file.write_text(f"store:\n  database_url: {database_url}\n  journal_dir: {tmp_path}/journal\n{redis}")

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["spend", *arguments, "--config", str(file)])

    done = run("resolve", exchange_id(1), "--cost", "0.25")
    assert done.exit_code == 0, done.output
    assert "attempt 1 revision 1: unknown -$1\n" in done.output
    assert "attempt 1 revision 2: settled $0.25\n" in done.output
    assert ("note: no Redis" in done.output) is not with_redis
    verified = run("verify", "--wait", "0")
    assert verified.exit_code == 0, verified.output
    again = run("resolve", exchange_id(1), "--cost", "0.25")
    assert again.exit_code == 1
    assert "has no attempt of unknown cost" in again.output


@pytest.mark.parametrize("cost", ["-1", "NaN", "Infinity", "a lot", "9000001"])
def test_a_cost_that_is_none_is_refused(tmp_path: Path, cost: str) -> None:
    done = CliRunner().invoke(app, ["spend", "resolve", exchange_id(1), f"--cost={cost}"])
    assert done.exit_code == 2
    assert "--cost" in done.output
