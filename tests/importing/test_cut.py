"""An import that is broken off between two batches of opening rows is ended by the next one."""

from __future__ import annotations

import asyncio
import sqlite3
from datetime import UTC
from pathlib import Path

import pytest

from sidecar.db import Database
from sidecar.identity.row import PrincipalRow, member_id
from sidecar.importing.database.book import Book
from sidecar.importing.database.rows import Gathered, Spent
from sidecar.importing.database.target import BATCH, Target
from sidecar.spend.ledger import Ledger
from sidecar.types import Budget

pytestmark = pytest.mark.anyio
NOW = 1_800_000_000.0


async def test_each_scope_has_all_its_rows_or_none(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    database = Database(f"sqlite:///{file}")
    await database.migrate()
    found = Gathered()
    found.spent.append(Spent("user", "somebody", 10))
    for number in range(BATCH - 1):
        name = member_id("red", f"u{number}")
        found.principals["member", name] = PrincipalRow(
            kind="member", principal_id=name, team_id="red", user_id=f"u{number}", max_budget_nano=10**12,
            budget_duration="30d",
        )  # fmt: skip
        found.spent.append(Spent("member", name, 10, total=25))

    def run() -> asyncio.Task[None]:
        target = Target(database, Book(), now=NOW, is_update=False)
        return asyncio.ensure_future(target.write_spend(found, whole=Budget(0), zone=UTC))

    def rows() -> int:
        with sqlite3.connect(file) as connection:
            return int(connection.execute("SELECT count(*) FROM spend").fetchone()[0])

    cut = run()
    while not rows():
        await asyncio.sleep(0)
    cut.cancel()
    await asyncio.wait({cut})
    await run()
    ledger = Ledger(database)
    sums = {
        name: {await ledger.sum_of(kind, each, None, None) for each in ids}
        for name, kind, ids in (
            ("members", "member", [spent.subject_id for spent in found.spent[1:]]),
            ("team", "team", ["red"]),
            ("users", "user", [f"u{number}" for number in range(BATCH - 1)]),
            ("user", "user", ["somebody"]),
        )
    }
    assert sums == {"members": {25}, "team": {0}, "users": {0}, "user": {10}}
    assert await ledger.sum_all() == 0
    await database.aclose()
