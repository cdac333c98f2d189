"""Keys whose rotation is due get a successor, and their owner's webhook its secret.

`identity/tree.py` regenerates, `post.py` delivers. Rules: the secret is delivered first, and nothing changes before the
receiver has taken it; the old key goes on working for the grace period. A secret exists in memory and in the one body.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from sidecar.db.schema import keys as k
from sidecar.errors import UnavailableError
from sidecar.identity.keys import Keys
from sidecar.identity.row import KeyRow
from sidecar.identity.tokens import hash_key, new_key
from sidecar.identity.tree import Tree, succession
from sidecar.jobs.leader import Leader
from sidecar.jobs.post import Events, iso
from sidecar.jobs.runner import JobError
from sidecar.metrics import JobMetrics

EVENT = "key.rotated"
PAGE = 100
MAX_FAILURES = 3
"""So many receivers' refusals in a row end a run: the next ones would fail, too."""
WRITE_ATTEMPTS = 5
ACTOR = "job:key_rotation"
_log = logging.getLogger(__name__)


class _ChangedError(Exception):
    """The key is not what it was when its successor was delivered."""


class _WrittenError(Exception):
    """By an attempt whose answer was lost."""


class Rotation:
    """`events` is `None` where no webhook is configured: overdue keys are counted, and nothing rotates."""

    def __init__(
        self,
        *,
        tree: Tree,
        keys: Keys,
        events: Events | None,
        metrics: JobMetrics,
        grace_s: float,
        clock: Callable[[], float],
        random_bytes: Callable[[int], bytes],
        pause_s: float = 1.0,
    ) -> None:
        self._tree = tree
        self._keys = keys
        self._events = events
        self._metrics = metrics
        self._grace_s = grace_s
        self._clock = clock
        self._random_bytes = random_bytes
        self._pause_s = pause_s
        self._warned = 0

    async def run(self, leader: Leader) -> None:
        """Raises `JobError` if some key was not rotated, `UnavailableError`."""
        if self._events is None:
            await self._count()
            return
        why = ""
        failed = in_a_row = 0
        after: tuple[int, str] | None = None
        while in_a_row < MAX_FAILURES and (found := await self._due(after)):
            for rotates_at, key_hash in found:
                after = (rotates_at, key_hash)
                try:
                    await self._rotate(leader, self._events, key_hash)
                    in_a_row = 0
                except JobError as error:
                    why = str(error)
                    failed += 1
                    in_a_row += 1
                    if in_a_row == MAX_FAILURES:
                        break
        overdue = await self._count(is_quiet=True)
        if failed:
            raise JobError(f"{overdue} keys are overdue for rotation: {why}")

    async def _rotate(self, leader: Leader, events: Events, key_hash: str) -> None:
        row = await self._tree.keys.get(key_hash)
        now = self._clock()
        if row is None or not _is_due(row, now):
            return
        token = new_key(self._random_bytes)
        after, changes = succession(row, token, now=now, until=now + self._grace_s)
        await leader.confirm()
        await events.send(EVENT, _described(row, after, token, changes))
        if not await self._written(leader, row, token, now):
            _log.error("the key %s changed while its successor was delivered; the delivered key is void", row.key_name)
            raise JobError("a key changed while its successor was delivered")

    async def _written(self, leader: Leader, row: KeyRow, token: str, now: float) -> bool:
        """The receiver has the new key already: a database that fails now is asked again, as long as we lead."""

        key_hash = hash_key(token)

        def new(found: KeyRow) -> tuple[KeyRow, Mapping[str, Any]]:
            if found.successor_hash == key_hash:
                raise _WrittenError
            if found.successor_hash is not None or found.rotates_at != row.rotates_at or found.blocked:
                raise _ChangedError
            return succession(found, token, now=now, until=now + self._grace_s)

        for attempt in range(WRITE_ATTEMPTS):
            leader.check()
            try:
                done = await self._tree.regenerate(row.key_hash, new, by=ACTOR)
            except _WrittenError:
                break
            except _ChangedError:
                return False
            except UnavailableError:
                if await self._is_written(key_hash):
                    break
                if attempt + 1 == WRITE_ATTEMPTS:
                    raise
                await asyncio.sleep(self._pause_s * 2**attempt)
            else:
                if done is None:
                    return False
                break
        await self._keys.revoke(row.key_hash)
        self._keys.forget(key_hash)
        return True

    async def _is_written(self, key_hash: str) -> bool:
        """Of a commit nobody confirmed: whether it happened."""
        try:
            return await self._tree.keys.get(key_hash) is not None
        except UnavailableError:
            return False

    def _overdue(self) -> tuple[sa.ColumnElement[bool], ...]:
        now = round(self._clock() * 1_000_000)
        return (
            k.c.rotates_at <= now,
            k.c.successor_hash.is_(None),
            k.c.blocked.is_(False),
            sa.or_(k.c.expires_at.is_(None), k.c.expires_at > now),
        )

    async def _due(self, after: tuple[int, str] | None) -> list[tuple[int, str]]:
        """The next page: (when it was due, hash)."""
        query = sa.select(k.c.rotates_at, k.c.key_hash).where(*self._overdue())
        if after is not None:
            query = query.where(sa.tuple_(k.c.rotates_at, k.c.key_hash) > sa.tuple_(*after))
        async with self._tree.keys.store.read() as connection:
            rows = await connection.execute(query.order_by(k.c.rotates_at, k.c.key_hash).limit(PAGE))
            return [(row[0], row[1]) for row in rows]

    async def _count(self, *, is_quiet: bool = False) -> int:
        async with self._tree.keys.store.read() as connection:
            query = sa.select(sa.func.count()).select_from(k).where(*self._overdue())
            found = int((await connection.execute(query)).scalar_one())
        self._metrics.overdue(found)
        if found > self._warned and not is_quiet:
            _log.warning("%d keys are due for rotation, and jobs.rotation.webhook is not configured", found)
        self._warned = found
        return found


def _is_due(row: KeyRow, now: float) -> bool:
    return (
        row.rotates_at is not None
        and row.rotates_at <= now
        and row.successor_hash is None
        and not row.blocked
        and (row.expires_at is None or row.expires_at > now)
    )


def _described(row: KeyRow, after: KeyRow, token: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "key": token,
        "token": after.key_hash,
        "key_name": after.key_name,
        "key_alias": row.key_alias,
        "user_id": row.user_id,
        "team_id": row.team_id,
        "organization_id": row.organization_id,
        "expires": iso(after.expires_at) if after.expires_at is not None else None,
        "next_rotation": iso(after.rotates_at) if after.rotates_at is not None else None,
        "previous_token": row.key_hash,
        "previous_key_name": row.key_name,
        "previous_expires": iso(changes["expires_at"]),
    }
