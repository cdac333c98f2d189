"""Nothing writes an old key back: lookups, revocations, changes above, the feed and a shared cache in every order a
seeded scheduler finds. Replicas share one database and one Redis-like cache; answers may arrive long after they were
read. Rule checked: a lookup that begins after its process was told of a change never sees what was before it.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from sidecar.errors import AuthenticationError, PermissionDeniedError
from sidecar.identity.feed import Change, ChangeFeed
from sidecar.identity.keys import Keys, hash_key, new_key
from sidecar.identity.row import KeyRow, PrincipalRow, StoredKey, member_id
from tests.identity.source import Clock, Shared, Source

pytestmark = pytest.mark.anyio
BLOCKS = int(os.environ.get("IDENTITY_RACES", "10"))
TEAMS, USERS = ("t0", "t1"), ("u0", "u1")


@dataclass
class World:
    """One database: rows now, and the log of changes. Every row's `rpm_limit` is the number of its last change, so an
    identity tells which state it was made of."""

    seq: int = 0
    keys: dict[str, KeyRow] = field(default_factory=dict)
    above: dict[tuple[str, str], PrincipalRow] = field(default_factory=dict)
    log: list[Change] = field(default_factory=list)

    def write(self, kind: str, name: str, row: KeyRow | PrincipalRow | None) -> None:
        rows: dict[object, object] = self.keys if kind == "key" else self.above  # type: ignore[assignment]
        rows.pop(name if kind == "key" else (kind, name), None)
        if row is not None:
            rows[name if kind == "key" else (kind, name)] = row
        self.log.append((self.seq, kind, name))

    def read(self, key_hash: str) -> StoredKey | None:
        row = self.keys.get(key_hash)
        if row is None:
            return None
        names = [("team", row.team_id), ("user", row.user_id)]
        if row.team_id is not None and row.user_id is not None:
            names.insert(1, ("member", member_id(row.team_id, row.user_id)))
        return StoredKey(row, tuple(self.above[n] for n in names if n in self.above))  # type: ignore[index]


class Scheduler:
    """Calls that were made and wait for their turn to go on."""

    def __init__(self, picks: random.Random) -> None:
        self.picks = picks
        self.waiting: list[asyncio.Future[None]] = []
        self.is_over = False

    async def turn(self) -> None:
        if not self.is_over:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.waiting.append(future)
            await future

    def let_go(self) -> None:
        if self.waiting:
            future = self.waiting.pop(self.picks.randrange(len(self.waiting)))
            if not future.done():
                future.set_result(None)

    async def finish(self) -> None:
        self.is_over = True
        for _ in range(200):
            while self.waiting:
                self.let_go()
            await asyncio.sleep(0)


class Replica:
    def __init__(self, world: World, shared: dict[str, bytes], scheduler: Scheduler, clock: Clock) -> None:
        self.world, self.shared, self.scheduler = world, shared, scheduler
        self.told = 0
        self.keys = Keys(self, master_key=None, clock=clock, shared_cache=self, deadline_s=60, max_entries=3)
        self.feed = ChangeFeed(self, [self.keys, self], clock=clock, deadline_s=60)

    # the database: read at one instant, answered at another
    async def resolve(self, key_hash: str) -> StoredKey | None:
        await self.scheduler.turn()
        found = self.world.read(key_hash)
        await self.scheduler.turn()
        return found

    async def changes_since(self, seq: int, limit: int) -> tuple[list[Change], int | None]:
        await self.scheduler.turn()
        found = [change for change in self.world.log if change[0] > seq]
        await self.scheduler.turn()
        return found, None

    async def last_change(self) -> int:
        found = self.world.seq
        await self.scheduler.turn()
        return found

    # the shared cache, with the rule of NX and tombstones
    async def get(self, key_hash: str) -> bytes | None:
        await self.scheduler.turn()
        found = self.shared.get(key_hash)
        await self.scheduler.turn()
        return found or None

    async def set(self, key_hash: str, value: bytes) -> None:
        await self.scheduler.turn()
        self.shared.setdefault(key_hash, value)

    async def delete(self, key_hash: str) -> bool:
        await self.scheduler.turn()
        self.shared[key_hash] = b""
        return True

    # a follower beside the keys
    def changed(self, seq: int, kind: str, subject_id: str) -> None:
        self.told = seq

    def forget_all(self, seq: int) -> None:
        self.told = seq

    def confirm(self, at: float) -> None: ...


@dataclass
class Seen:
    """One lookup: what its process had been told when it began, and the newest change of each row it saw."""

    replica: int
    token: str
    told_at_start: int
    result: dict[tuple[str, str], int] | None


class Story:
    def __init__(self, seed: int) -> None:
        self.picks = random.Random(seed)
        self.clock = Clock()
        self.world = World()
        self.scheduler = Scheduler(self.picks)
        shared: dict[str, bytes] = {}
        self.replicas = [Replica(self.world, shared, self.scheduler, self.clock) for _ in range(3)]
        self.tokens = [new_key(lambda n, i=i: bytes([seed % 256, i]) * (n // 2)) for i in range(4)]
        self.history: dict[tuple[str, str], list[tuple[int, bool]]] = {}
        self.tasks: deque[asyncio.Task[None]] = deque()
        self.seen: list[Seen] = []

    def set(self, kind: str, name: str, *, is_good: bool) -> None:
        world = self.world
        world.seq += self.picks.choice((1, 1, 3))  # numbers of writers who gave up are missing
        row: KeyRow | PrincipalRow | None
        if kind == "key":
            number = [hash_key(token) for token in self.tokens].index(name)
            is_gone = not is_good and self.picks.random() < 0.5
            row = None if is_gone else KeyRow(
                key_hash=name, team_id=TEAMS[number % 2], user_id=USERS[number // 2], blocked=not is_good,
                rpm_limit=world.seq,
            )  # fmt: skip
        else:
            row = PrincipalRow(kind=kind, principal_id=name, blocked=not is_good, rpm_limit=world.seq)
        world.write(kind, name, row)
        self.history.setdefault((kind, name), []).append((world.seq, is_good))

    def newest(self, name: tuple[str, str], known: int) -> tuple[int, bool]:
        return [entry for entry in self.history[name] if entry[0] <= known][-1]

    def start(self, coroutine: object) -> None:
        self.tasks.append(asyncio.ensure_future(coroutine))  # type: ignore[arg-type]

    async def lookup(self, number: int, token: str) -> None:
        replica = self.replicas[number]
        told = replica.told
        result: dict[tuple[str, str], int] | None
        try:
            identity = replica.keys.cached(token) or await replica.keys.lookup(token)
            result = {("key", identity.key_hash): identity.limits.rpm or 0}
            result |= {(p.kind, p.principal_id): p.limits.rpm or 0 for p in identity.principals}
        except (AuthenticationError, PermissionDeniedError):
            result = None
        self.seen.append(Seen(number, token, told, result))

    async def block_here(self, number: int, token: str) -> None:
        """As the management API of this replica does: written, then told to memory and the shared cache."""
        self.set("key", hash_key(token), is_good=False)
        await self.replicas[number].keys.revoke(hash_key(token))

    async def poll(self, number: int) -> None:
        await self.replicas[number].feed.poll()

    async def tell(self) -> None:
        picks = self.picks
        names: Sequence[tuple[str, str]] = [("team", t) for t in TEAMS] + [("user", u) for u in USERS]
        members = [("member", member_id(t, u)) for t in TEAMS for u in USERS]
        for kind, name in (*names, *members, *(("key", hash_key(token)) for token in self.tokens)):
            self.set(kind, name, is_good=True)
        for number in range(3):
            self.start(self.poll(number))
        for _ in range(60):
            self.scheduler.let_go()
            await asyncio.sleep(0)
        for _ in range(250):
            chance = picks.random()
            number, token = picks.randrange(3), picks.choice(self.tokens)
            if chance < 0.35:
                self.start(self.lookup(number, token))
            elif chance < 0.45:
                self.start(self.poll(number))
            elif chance < 0.53:
                kind, name = picks.choice((*names, *members, ("key", hash_key(token))))
                self.set(kind, name, is_good=picks.random() < 0.5)
            elif chance < 0.57:
                self.start(self.block_here(number, token))
            elif chance < 0.62:
                self.clock.now += picks.choice((0.1, 0.5, 1.0, 5.0))
            else:
                self.scheduler.let_go()
            await asyncio.sleep(0)
        await self.scheduler.finish()
        await asyncio.gather(*self.tasks)

    def check(self) -> int:
        """How many lookups were let in."""
        for seen in self.seen:
            if seen.result is None:
                continue
            for name, version in seen.result.items():
                known, is_good = self.newest(name, seen.told_at_start)
                assert version >= known, (seen, name, self.history[name])
                if version == known:
                    assert is_good, (seen, name, self.history[name])
        return sum(seen.result is not None for seen in self.seen)


@pytest.mark.parametrize("block", range(BLOCKS))
async def test_nothing_writes_an_old_key_back(block: int) -> None:
    let_in = refused = 0
    for seed in range(block * 20, block * 20 + 20):
        story = Story(seed)
        await story.tell()
        admitted = story.check()
        let_in += admitted
        refused += len(story.seen) - admitted
        # Once all is told, every replica says what the database says.
        for number in range(3):
            await story.poll(number)
        for token in story.tokens:
            stored = story.world.read(hash_key(token))
            is_good = stored is not None and not stored.row.blocked and not any(p.blocked for p in stored.above)
            for number in range(3):
                # A refusal is remembered for the freshness.
                story.clock.now += 1.0
                story.seen.clear()
                await story.lookup(number, token)
                assert (story.seen[0].result is not None) == is_good, (seed, number, token)
        for replica in story.replicas:
            await replica.keys.aclose()
    assert let_in > 30
    assert refused > 30


async def test_a_shared_row_of_a_database_that_was_put_back_is_not_used() -> None:
    """Its number is above all that are given since, a team's block among them."""
    clock, source, shared = Clock(), Source(), Shared()
    here, there = (Keys(source, master_key=None, clock=clock, shared_cache=shared) for _ in range(2))
    token = source.add(team_id="t")
    for keys in (here, there):
        keys.forget_all(600)
        keys.confirm(clock.now)
    await there.lookup(token)
    await here.lookup(token)
    assert len(source.queries) == 1  # shared
    here.forget_all(95)
    here.changed(96, "team", "t")
    await here.lookup(token)
    assert len(source.queries) == 2
