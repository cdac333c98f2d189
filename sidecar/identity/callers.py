"""The caller of one request: a key's identity together with the end user and the tags the request names.

Neighbours: `table.PrincipalTable` (their rows), `feed` (which tells of changes). Rule: most end users and tags have no
row, and that is remembered too, so a name costs one query as long as nothing changes. Memory is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from sidecar.errors import PermissionDeniedError, UnavailableError
from sidecar.identity.deadline import Deadline
from sidecar.identity.row import PrincipalRow
from sidecar.types import Identity, Principal

MAX_TAGS = 20
_Wanted = tuple[str, str]


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
        max_entries: int = 10_000,
    ) -> None:
        self._source = source
        self._clock = clock
        self._end_user_budget_id = end_user_budget_id
        self._fresh_s = fresh_s
        self._hard_age_s = hard_age_s
        self._deadline = Deadline(deadline_s)
        self._max_entries = max_entries
        self._fed_until = 0.0
        self._epoch = 0
        self._known: dict[_Wanted, tuple[Principal | None, float]] = {}
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
        missing = [w for w in wanted if not self._is_good(w, now, until)]
        if missing:
            await self._load(missing, now)
        found: list[Principal] = []
        for name in wanted:
            known = self._known.get(name)
            principal = known[0] if known is not None else None
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

    async def _load(self, missing: list[_Wanted], now: float) -> None:
        wanted = list(missing)
        if self._end_user_budget_id is not None:
            wanted.append(("budget", self._end_user_budget_id))
        epoch = self._epoch
        try:
            rows = await self._deadline.run(self._source.find(wanted))
        except (UnavailableError, TimeoutError) as error:
            if all(w in self._known and now < self._known[w][1] + self._hard_age_s for w in missing):
                return  # what is known is young enough
            raise UnavailableError(
                "The gateway cannot check the request's end user or tags now: its database does not answer.",
                code="key_store_unavailable",
                retry_after_s=1.0,
            ) from error
        by_name = {(row.kind, row.principal_id): row for row in rows}
        for name in missing:
            row = by_name.get(name)
            if row is None and name[0] == "end_user" and self._end_user_budget_id is not None:
                row = PrincipalRow(kind="end_user", principal_id=name[1], budget_id=self._end_user_budget_id)
            shared = by_name.get(("budget", row.budget_id)) if row is not None and row.budget_id is not None else None
            if len(self._known) >= self._max_entries:
                self._known.pop(next(iter(self._known)))
            self._known.pop(name, None)
            # Read before a change we were told of meanwhile: used now, asked again next time.
            loaded_at = now if epoch == self._epoch else 0.0
            self._known[name] = (row.principal(shared) if row is not None else None, loaded_at)

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
        if kind in ("end_user", "tag", "budget"):
            self.forget_all(seq)

    def forget_all(self, seq: int) -> None:
        self._epoch += 1
        self._known.clear()
        self._made.clear()

    def confirm(self, at: float) -> None:
        self._fed_until = at + self._fresh_s
