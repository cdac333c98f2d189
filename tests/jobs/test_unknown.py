"""What an attempt of unknown cost really cost, by hand or written off: two rows more, and counters that follow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC

import pytest

from sidecar.db import Database, migrate
from sidecar.errors import ConflictError, NotFoundError
from sidecar.jobs.unknown import Unknown
from sidecar.limits.admission import Admission, Grant
from sidecar.limits.store import open_store
from sidecar.spend.ledger import Ledger
from sidecar.spend.verify import totals_that_differ
from sidecar.types import Budget, Identity, Principal
from tests.spend.rows import exchange_id, row

pytestmark = pytest.mark.anyio
HELD, REAL = 7_000_000, 1_500_000
CALLER = Identity(
    key_hash="k" * 64,
    team_id="a:b",
    user_id="u",
    tags=("t",),
    budgets=(Budget(10**9, "1d"), Budget(10**9)),
    principals=tuple(
        Principal(kind, name, budgets=(Budget(10**9, "30d"),))
        for kind, name in (("team", "a:b"), ("user", "u"), ("member", "3:a:b:u"), ("tag", "t"))
    ),
)


@dataclass
class Books:
    ledger: Ledger
    admission: Admission
    unknown: Unknown

    async def spend(self, number: int, *statuses: str, identity: Identity = CALLER) -> Grant:
        """One exchange with an attempt for each status."""
        name = exchange_id(number)
        grant = await self.admission.acquire(name, identity, "m", tokens=0, hold_nano=HELD * len(statuses))
        await self.admission.settle(grant, tokens=0, cost_nano=HELD * len(statuses))
        await self.ledger.insert(
            [
                row(
                    number, at=grant.at, attempt=i, status=status, outcome="incomplete", cost_nano=HELD,
                    key_hash=identity.key_hash, team_id=identity.team_id, user_id=identity.user_id, tags=identity.tags,
                )
                for i, status in enumerate(statuses, 1)
            ]
        )  # fmt: skip
        return grant

    async def counters(self, grant: Grant) -> set[int]:
        found = await self.admission.store.spent([w.key for w in grant.windows])
        for window in grant.windows:
            ledger = await self.ledger.sum_of(window.kind, window.scope_id, window.start_at, window.end_at)
            assert found[window.key] == ledger, window
        return set(found.values())


@pytest.fixture(params=["memory", "redis"])
async def books(request: pytest.FixtureRequest, database_url: str) -> AsyncIterator[Books]:
    url = "memory://" if request.param == "memory" else request.getfixturevalue("redis_url")
    await migrate(database_url)
    ledger = Ledger(Database(database_url))
    admission = Admission(open_store(url, deadline_s=30), global_budgets=[Budget(10**10)])
    yield Books(ledger, admission, Unknown(ledger, admission.store, zone=UTC))
    assert await totals_that_differ(ledger) == []
    await admission.aclose()
    await ledger.database.aclose()


async def test_by_hand_the_held_cost_is_taken_back_and_the_real_one_put_in_its_place(books: Books) -> None:
    grant = await books.spend(1, "unknown")
    assert await books.counters(grant) == {HELD}
    made = await books.unknown.resolve(exchange_id(1), REAL)
    assert [(r.revision, r.status, r.cost_nano) for r in made] == [(1, "unknown", -HELD), (2, "settled", REAL)]
    assert {r.at for r in await books.ledger.rows_of(exchange_id(1))} == {made[0].at}
    assert await books.counters(grant) == {REAL}
    with pytest.raises(NotFoundError):
        await books.unknown.resolve(exchange_id(1), REAL)
    assert await books.counters(grant) == {REAL}


async def test_of_several_unknown_attempts_one_is_named(books: Books) -> None:
    grant = await books.spend(1, "unknown", "settled", "unknown")
    with pytest.raises(ConflictError, match="1, 3"):
        await books.unknown.resolve(exchange_id(1), REAL)
    with pytest.raises(NotFoundError):
        await books.unknown.resolve(exchange_id(1), REAL, attempt=2)
    await books.unknown.resolve(exchange_id(1), REAL, attempt=3)
    await books.unknown.resolve(exchange_id(1), 0)  # one is left
    assert await books.counters(grant) == {HELD + REAL}


async def test_two_who_resolve_the_same_at_once_leave_one_cost(books: Books) -> None:
    grant = await books.spend(1, "unknown")
    other = Unknown(books.ledger, books.admission.store if books.admission.store.is_shared else None, zone=UTC)
    await asyncio.gather(
        books.unknown.resolve(exchange_id(1), REAL), other.resolve(exchange_id(1), 2 * REAL), return_exceptions=True
    )
    rows = await books.ledger.rows_of(exchange_id(1))
    assert len(rows) == 3
    assert sum(r.cost_nano for r in rows) in (REAL, 2 * REAL)
    if books.admission.store.is_shared:
        assert await books.counters(grant) in ({REAL}, {2 * REAL})


async def test_what_is_older_than_the_policy_says_is_written_off_and_nothing_else(books: Books) -> None:
    first = await books.spend(1, "unknown", "settled")
    await books.spend(2, "settled")
    now = first.at
    assert await books.unknown.write_off(now - 3600) == 0
    assert await books.unknown.write_off(now + 3600) == 1
    assert await books.unknown.write_off(now + 3600) == 0
    rows = await books.ledger.rows_of(exchange_id(1))
    assert [(r.status, r.cost_nano) for r in rows if r.revision] == [("unknown", -HELD), ("estimated", 0)]
    assert await books.counters(first) == {2 * HELD}


async def test_two_that_write_off_the_same_at_once_both_get_to_the_end(books: Books) -> None:
    for number in range(1, 8):
        await books.spend(number, "unknown")
    told: list[tuple[int, int]] = []
    others = [
        Unknown(books.ledger, None, zone=UTC, tell=lambda row: told.append((row.revision, row.cost_nano)))
        for _ in range(2)
    ]
    now = books.admission._clock() + 3600
    found = await asyncio.gather(*(other.write_off(now) for other in others))
    assert sum(found) >= 7
    assert await books.ledger.sum_all() == 0
    assert set(told) == {(1, -HELD), (2, 0)}


async def test_a_counter_of_somebody_else_stays_as_it_is(books: Books) -> None:
    stranger = Identity(key_hash="s" * 64, budgets=(Budget(10**9, "1d"),))
    theirs = await books.spend(1, "unknown", identity=stranger)
    await books.spend(2, "unknown")
    await books.unknown.resolve(exchange_id(2), 0)
    key = next(w.key for w in theirs.windows if w.kind == "key")
    assert (await books.admission.store.spent([key]))[key] == HELD
