"""What changed is told: once, in order, whatever is lost – numbers nobody used, polls that failed, a log that was cut,
a database that was put back – and as long as it cannot be read, nobody trusts memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import sqlalchemy as sa

from sidecar.db import Database
from sidecar.db.schema import changes
from sidecar.errors import AuthenticationError, ConflictError, UnavailableError
from sidecar.identity.feed import Change, ChangeFeed, ChangeSource, Follower
from sidecar.identity.keys import Keys, hash_key, new_key
from sidecar.identity.row import PrincipalRow
from tests.identity.making import Tree, opened
from tests.identity.source import Clock
from tests.promises.support import eventually
from tests.servers.relay import relayed

pytestmark = pytest.mark.anyio


class Told:
    """A follower that writes everything down."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.forgotten: list[int] = []
        self.confirmed: list[float] = []
        self.fails = 0

    def changed(self, seq: int, kind: str, subject_id: str) -> None:
        if self.fails:
            self.fails -= 1
            raise ValueError("a follower's own fault")
        self.changes.append((seq, kind, subject_id))

    def forget_all(self, seq: int) -> None:
        self.forgotten.append(seq)

    def confirm(self, at: float) -> None:
        self.confirmed.append(at)

    @property
    def names(self) -> list[str]:
        return [name for _, _, name in self.changes]


class Log:
    """A change source whose answers a test sets."""

    def __init__(self, *found: Change) -> None:
        self.log = list(found)
        self.is_down = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = 0

    async def changes_since(self, seq: int, limit: int) -> tuple[list[Change], int | None]:
        self.asked += 1
        if self.is_down:
            raise UnavailableError("down")
        found = [change for change in self.log if change[0] > seq][:limit]
        await self.gate.wait()
        return found, None

    async def last_change(self) -> int:
        self.asked += 1
        if self.is_down:
            raise UnavailableError("down")
        await self.gate.wait()
        return self.log[-1][0] if self.log else 0


@pytest.fixture
async def tree(database_url: str) -> AsyncIterator[Tree]:
    async with opened(database_url) as tree:
        yield tree


def feed_of(source: ChangeSource, *followers: Follower, **options: float) -> ChangeFeed:
    return ChangeFeed(source, followers, clock=Clock(), **{"deadline_s": 60.0} | options)


@asynccontextmanager
async def running(feed: ChangeFeed) -> AsyncIterator[ChangeFeed]:
    await feed.start()
    try:
        yield feed
    finally:
        await feed.aclose()


async def test_every_write_is_told_once_in_its_order(tree: Tree) -> None:
    told = Told()
    feed = feed_of(tree.store, told)
    await tree.add("team", "before")
    await feed.poll()
    assert (told.changes, len(told.forgotten)) == ([], 1)
    await tree.add("team", "t")
    await tree.change("team", "t", blocked=True)
    key = await tree.key("k", team_id="t")
    await feed.poll()
    await feed.poll()
    await tree.principals.delete([("team", "t")])
    await feed.poll()
    assert [(kind, name) for _, kind, name in told.changes] == [
        ("team", "t"), ("team", "t"), ("key", key.key_hash), ("team", "t"),
    ]  # fmt: skip
    assert len(told.forgotten) == 1


async def test_numbers_of_writers_who_gave_up_are_no_gap(tree: Tree) -> None:
    told = Told()
    feed = feed_of(tree.store, told)
    await feed.poll()

    async def given_up(row: PrincipalRow) -> None:
        """Fails after its change was noted: on PostgreSQL its number is used up."""
        async with tree.store.write() as connection:
            await tree.principals.insert(connection, row, by="")
            raise ConflictError("no")

    for number in range(5):
        await tree.add("team", f"t{number}")
        with pytest.raises(ConflictError):
            await given_up(PrincipalRow(kind="team", principal_id=f"gone{number}"))
        await feed.poll()
    assert told.names == [f"t{number}" for number in range(5)]
    assert len(told.forgotten) == 1


async def test_writers_at_the_same_time_are_all_told(database_url: str) -> None:
    """Several processes write while one reads on: no change becomes visible after a later one was told."""
    told = Told()
    async with opened(database_url) as tree:
        await tree.add("team", "first")  # an empty log has no place to go on from
        feed = feed_of(tree.store, told)
        await feed.poll()
        is_over = False

        async def read_on() -> None:
            while not is_over:
                await feed.poll()
                await asyncio.sleep(0)

        async def write(writer: int) -> None:
            async with opened(database_url, migrated=False) as other:
                for number in range(15):
                    await other.add("team", f"{writer}-{number}")

        reading = asyncio.ensure_future(read_on())
        await asyncio.gather(*(write(writer) for writer in range(4)))
        is_over = True
        await reading
        await feed.poll()
    assert sorted(told.names) == sorted(f"{w}-{n}" for w in range(4) for n in range(15))
    numbers = [seq for seq, _, _ in told.changes]
    assert numbers == sorted(set(numbers))
    assert len(told.forgotten) == 1


async def test_a_backlog_of_many_pages_is_told_in_one_go(tree: Tree) -> None:
    told = Told()
    feed = feed_of(tree.store, told)
    await feed.poll()
    rows = [{"kind": "team", "subject_id": str(n), "at": 2 * 10**15} for n in range(2500)]
    async with tree.database.engine.begin() as connection:
        await connection.execute(sa.insert(changes), rows)
    await feed.poll()
    assert told.names == [str(n) for n in range(2500)]
    assert len(told.forgotten) == 1


@pytest.mark.parametrize("kept", [0, 1, 2])
async def test_who_slept_longer_than_changes_are_kept_starts_over(tree: Tree, kept: int) -> None:
    told = Told()
    feed = feed_of(tree.store, told)
    await tree.add("team", "a")
    await feed.poll()
    for name in "bcdef":
        await tree.add("team", name)
    newest = await tree.store.last_change()
    async with tree.database.engine.begin() as connection:
        await connection.execute(sa.delete(changes).where(changes.c.seq <= newest - kept))
    await feed.poll()
    assert told.changes == []
    assert told.forgotten[1:] == [newest if kept else 0]
    await feed.poll()
    assert len(told.forgotten) == 2
    await tree.add("team", "g")
    await feed.poll()
    # With an empty log the next number cannot be told from one after a hole: starting over once more is right too.
    assert told.names == ["g"] or len(told.forgotten) == 3


async def test_a_database_put_back_starts_over(tree: Tree) -> None:
    told = Told()
    feed = feed_of(tree.store, told)
    await tree.add("team", "a")
    feed.seq = 10**6
    await feed.poll()
    assert told.forgotten == [await tree.store.last_change()]
    await tree.add("team", "b")
    await feed.poll()
    assert told.names == ["b"]


@pytest.mark.parametrize("more", [1, 2, 3])
async def test_a_database_put_back_and_written_to_since_starts_over(tree: Tree, more: int) -> None:
    """A standby that had not got the last changes takes over, and others write before we ask again: the numbers we know
    stand for other changes now."""
    told = Told()
    feed = feed_of(tree.store, told)
    for number in range(3):
        await tree.add("team", f"lost{number}")
        await feed.poll()
    newest = await tree.store.last_change()
    async with tree.database.engine.begin() as connection:
        await connection.execute(sa.delete(changes).where(changes.c.seq > newest - 2))
        if tree.database.dialect == "postgresql":
            await connection.exec_driver_sql(f"SELECT setval('changes_seq_seq', {newest - 2})")
        else:
            await connection.exec_driver_sql(f"UPDATE sqlite_sequence SET seq = {newest - 2} WHERE name = 'changes'")
    for number in range(more):
        await tree.add("team", f"since{number}")
    before = len(told.forgotten)
    await feed.poll()
    assert len(told.forgotten) == before + 1
    await tree.add("team", "next")
    await feed.poll()
    assert (told.names[-1], len(told.forgotten)) == ("next", before + 1)


async def test_what_is_confirmed_is_what_was_known_when_asking() -> None:
    """A change that comes while the answer is on its way was not told."""
    log, told, clock = Log((1, "team", "a")), Told(), Clock()
    feed = ChangeFeed(log, [told], clock=clock, deadline_s=60)
    await feed.poll()
    log.gate.clear()
    asked_at = clock.now
    asking = asyncio.ensure_future(feed.poll())
    await eventually(lambda: log.asked == 2)
    clock.now += 0.7
    log.log.append((2, "team", "b"))
    log.gate.set()
    await asking
    assert (told.changes, told.confirmed[-1]) == ([], asked_at)


async def test_two_who_ask_at_once_tell_in_order() -> None:
    """The management API asks after each write, besides the feed itself."""
    log, told = Log((1, "key", "a")), Told()
    feed = feed_of(log, told)
    await feed.poll()
    log.log.append((2, "key", "a"))
    log.gate.clear()
    first = asyncio.ensure_future(feed.poll())
    await eventually(lambda: log.asked == 2)
    log.log.append((3, "key", "a"))
    second = asyncio.ensure_future(feed.poll())
    await asyncio.sleep(0)
    log.gate.set()
    await asyncio.gather(first, second)
    assert [seq for seq, _, _ in told.changes] == [2, 3]


async def test_lost_polls_lose_no_change() -> None:
    log, told = Log((1, "team", "a")), Told()
    feed = feed_of(log, told)
    await feed.poll()
    log.is_down = True
    for number in range(2, 6):
        log.log.append((number, "team", str(number)))
        with pytest.raises(UnavailableError):
            await feed.poll()
    assert len(told.confirmed) == 1
    log.is_down = False
    await feed.poll()
    assert told.names == ["2", "3", "4", "5"]


async def test_a_source_that_hangs_is_left_and_asked_again() -> None:
    log, told = Log((1, "team", "a")), Told()
    feed = feed_of(log, told, interval_s=0.01, deadline_s=0.05)
    async with running(feed):
        log.gate.clear()
        log.log.append((2, "team", "b"))
        asked = log.asked
        await eventually(lambda: log.asked >= asked + 3)
        assert told.changes == []
        log.gate.set()
        await eventually(lambda: told.names == ["b"])


async def test_a_follower_that_fails_ends_nothing_and_all_start_over(caplog: pytest.LogCaptureFixture) -> None:
    log, broken, well = Log((1, "team", "a")), Told(), Told()
    feed = feed_of(log, broken, well, interval_s=0.01)
    with caplog.at_level(logging.CRITICAL):
        async with running(feed):
            broken.fails = 2
            log.log.append((2, "team", "b"))
            await eventually(lambda: len(well.forgotten) == 2)
            log.log.append((3, "team", "c"))
            await eventually(lambda: len(well.forgotten) == 3)
            log.log.append((4, "team", "d"))
            await eventually(lambda: broken.names == ["d"])
            await eventually(lambda: well.names == ["d"])


async def test_a_start_waits_for_the_first_answer_but_not_for_a_database_that_is_down() -> None:
    log, told = Log((7, "team", "a")), Told()
    async with running(feed_of(log, told)):
        assert told.forgotten == [7]
    log.is_down = True
    late = Told()
    async with running(feed_of(log, late, interval_s=0.01)):
        assert late.forgotten == []
        log.is_down = False
        await eventually(lambda: late.forgotten == [7])


@pytest.mark.parametrize("how", ["frozen", "gone"])
async def test_a_database_that_fails_and_comes_back(how: str, postgres_url: str) -> None:
    """Meanwhile a key is blocked by a process that reaches it: it works here from memory only as long as nobody can
    tell, and no longer as soon as somebody can."""
    import time

    token, other = (new_key(lambda n, i=i: bytes([i]) * n) for i in (1, 2))
    async with opened(postgres_url) as tree, relayed(postgres_url) as (relay, url):
        for one in (token, other):
            await tree.key(one)
        async with opened(url, migrated=False) as far:
            keys = Keys(far.keys, master_key=None, clock=time.time, deadline_s=2.0, retry_s=0.1, hard_age_s=600)
            feed = ChangeFeed(far.store, [keys], clock=time.time, interval_s=0.05, deadline_s=2.0)
            async with running(feed):
                for one in (token, other):
                    await keys.lookup(one)
                (relay.freeze if how == "frozen" else relay.hang_up)()
                await tree.keys.set_blocked(hash_key(token), True, at=0.0)
                await asyncio.sleep(1.1)
                assert keys.cached(token) is None  # nobody could say that it is still good
                assert (await keys.lookup(token)).key_hash == hash_key(token)  # the hard age has not passed
                (relay.thaw if how == "frozen" else relay.come_back)()

                async def is_refused() -> bool:
                    try:
                        await keys.lookup(token)
                    except AuthenticationError as refused:
                        return refused.code == "key_blocked"
                    except UnavailableError:
                        pass  # not back yet
                    return False

                await eventually(is_refused)
                await eventually(lambda: keys.cached(other) is not None)
                await tree.keys.set_blocked(hash_key(other), True, at=0.0)
                await eventually(lambda: keys.cached(other) is None)
            await keys.aclose()


async def test_a_poll_that_nobody_waits_for_any_more_leaves_no_task(tree: Tree) -> None:
    feed = feed_of(tree.store, Told())
    before = asyncio.all_tasks()
    async with running(feed):
        pass
    await eventually(lambda: asyncio.all_tasks() <= before)


async def test_a_database_closed_under_the_feed_is_unavailable(tmp_path: object) -> None:
    database = Database(f"sqlite:///{tmp_path}/nothing-there.db")
    feed = feed_of(Tree(database).store, Told())
    with pytest.raises(UnavailableError):
        await feed.poll()
    await database.aclose()
