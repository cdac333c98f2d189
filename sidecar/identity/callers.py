"""The caller of one request: a key's identity together with the end user and the tags the request names.

Neighbours: `table.PrincipalTable` (their rows), `feed` (which tells of changes). Rule: most end users and tags have no
row, and that is remembered too, so a name costs one query as long as nothing changes. Memory is bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from sidecar.errors import PermissionDeniedError, UnavailableError
from sidecar.identity.deadline import Deadline
from sidecar.identity.row import PrincipalRow
from sidecar.tasks import end
from sidecar.types import Identity, Principal

MAX_TAGS = 20
_Wanted = tuple[str, str]
_Found = dict[_Wanted, Principal | None]


class PrincipalSource(Protocol):
    """Raises `UnavailableError` when it cannot tell."""

    async def find(self, wanted: Sequence[tuple[str, str]]) -> Sequence[PrincipalRow]: ...


class Callers:
    """`end_user_budget_id` names the budget of end users who have no row. A `feed.Follower`."""

    def __init__(
        self,
        source: PrincipalSource,
        *,
        clock: Callable[[], float],
        end_user_budget_id: str | None = None,
        fresh_s: float = 1.0,
        hard_age_s: float = 30.0,
        deadline_s: float = 2.0,
        retry_s: float = 0.5,
        max_entries: int = 10_000,
    ) -> None:
        self._source = source
        self._clock = clock
        self._end_user_budget_id = end_user_budget_id
        self._fresh_s = fresh_s
        self._hard_age_s = hard_age_s
        self._deadline = Deadline(deadline_s)
        self._retry_s = retry_s
        self._max_entries = max_entries
        self._failed_at: float | None = None
        self._fed_until = 0.0
        self._epoch = 0
        self._known: dict[_Wanted, tuple[Principal | None, float]] = {}
        self._flights: dict[_Wanted, asyncio.Task[_Found]] = {}
        self._made: dict[tuple[int, tuple[_Wanted, ...]], tuple[Identity, tuple[Principal, ...], Identity]] = {}

    async def of(self, identity: Identity, end_user_id: str | None, tags: tuple[str, ...]) -> Identity:
        """`identity` with the principals of this end user and these tags above it. Raises `PermissionDeniedError` if
        one is blocked, `UnavailableError` if that cannot be told."""
        wanted: list[_Wanted] = [("tag", tag) for tag in dict.fromkeys((*identity.tags, *tags))]
        if end_user_id is not None:
            wanted.append(("end_user", end_user_id))
        if not wanted:
            return identity
        now = self._clock()
        until = max(now, self._fed_until)
        known = {name: self._known[name][0] for name in wanted if self._is_good(name, now, until)}
        if len(known) < len(wanted):
            # Kept apart from memory: what was known may have to make room for what is new.
            known |= await self._load([name for name in wanted if name not in known])
        found: list[Principal] = []
        for name in wanted:
            principal = known[name]
            if principal is None:
                continue
            if principal.is_blocked:
                raise PermissionDeniedError(
                    f"The gateway refused the request: its {principal.kind.replace('_', ' ')} is blocked.",
                    code=f"{principal.kind}_blocked",
                )
            found.append(principal)
        if not found:
            return identity
        return self._with(identity, tuple(found))

    def _is_good(self, wanted: _Wanted, now: float, fed_until: float) -> bool:
        known = self._known.get(wanted)
        if known is None:
            return False
        loaded_at = known[1]
        if not loaded_at <= now < loaded_at + self._hard_age_s:
            return False
        return now < loaded_at + self._fresh_s or now < fed_until

    async def _load(self, missing: list[_Wanted]) -> _Found:
        """All who miss the same name wait for one query. What was read before a change told of meanwhile is read
        again; under a stream of changes the third reading has to do."""
        found: _Found = {}
        for _ in range(3):
            epoch, now = self._epoch, self._clock()
            new = [name for name in missing if name not in self._flights]
            if new:
                if self._failed_at is not None and self._failed_at <= now < self._failed_at + self._retry_s:
                    return self._spare(missing, now, None)
                task = asyncio.get_running_loop().create_task(self._ask(new))
                task.add_done_callback(_collect)
                self._flights.update(dict.fromkeys(new, task))
            try:
                for task in {self._flights[name] for name in missing}:
                    found |= await asyncio.shield(task)
            except (UnavailableError, TimeoutError) as error:
                return self._spare(missing, now, error)
            if epoch == self._epoch:
                break
        return found

    async def _ask(self, names: list[_Wanted]) -> _Found:
        epoch, now = self._epoch, self._clock()
        task = asyncio.current_task()
        try:
            # A name the database cannot hold has no row.
            wanted = [name for name in names if _is_storable(name[1])]
            if self._end_user_budget_id is not None:
                wanted.append(("budget", self._end_user_budget_id))
            rows = await self._deadline.run(self._source.find(wanted)) if wanted else ()
            self._failed_at = None
        except (UnavailableError, TimeoutError):
            self._failed_at = self._clock()
            raise
        finally:
            for name in names:
                if self._flights.get(name) is task:
                    del self._flights[name]
        by_name = {(row.kind, row.principal_id): row for row in rows}
        found: _Found = {}
        for name in names:
            row = by_name.get(name)
            if row is None and name[0] == "end_user" and self._end_user_budget_id is not None:
                row = PrincipalRow(kind="end_user", principal_id=name[1], budget_id=self._end_user_budget_id)
            shared = by_name.get(("budget", row.budget_id)) if row is not None and row.budget_id is not None else None
            found[name] = row.principal(shared) if row is not None else None
            if epoch == self._epoch:
                self._known.pop(name, None)
                while len(self._known) >= max(1, self._max_entries):
                    del self._known[next(iter(self._known))]
                self._known[name] = (found[name], now)
        return found

    def _spare(self, names: list[_Wanted], now: float, error: Exception | None) -> _Found:
        """What is known of them and young enough to be used while the database fails."""
        found: _Found = {}
        for name in names:
            known = self._known.get(name)
            if known is None or not known[1] <= now < known[1] + self._hard_age_s:
                raise UnavailableError(
                    "The gateway cannot check the request's end user or tags now: its database does not answer. Try "
                    "again shortly.",
                    code="key_store_unavailable",
                    retry_after_s=1.0,
                ) from error
            found[name] = known[0]
        return found

    def _with(self, identity: Identity, found: tuple[Principal, ...]) -> Identity:
        key = (id(identity), tuple((p.kind, p.principal_id) for p in found))
        made = self._made.get(key)
        if made is None or made[0] is not identity or made[1] != found:
            while len(self._made) >= self._max_entries:
                self._made.pop(next(iter(self._made)))
            caller = replace(identity, principals=(*identity.principals, *found), cache={})
            made = self._made[key] = (identity, found, caller)
        return made[2]

    # feed.Follower

    def changed(self, seq: int, kind: str, subject_id: str) -> None:
        if kind == "budget":
            self.forget_all(seq)
        elif kind in ("end_user", "tag"):
            self._epoch += 1
            self._flights.clear()
            self._known.pop((kind, subject_id), None)

    def forget_all(self, seq: int) -> None:
        self._epoch += 1
        self._flights.clear()
        self._known.clear()
        self._made.clear()

    def confirm(self, at: float) -> None:
        self._fed_until = at + self._fresh_s

    async def aclose(self) -> None:
        """Ends lookups in progress."""
        tasks = {*self._flights.values()}
        self._flights.clear()
        await end(tasks)


def _is_storable(name: str) -> bool:
    try:
        return "\0" not in name and bool(name.encode())
    except UnicodeEncodeError:
        return False


def _collect(task: asyncio.Task[_Found]) -> None:
    # All who waited may have left; a failure nobody asked about any more is not an event.
    if not task.cancelled():
        task.exception()
