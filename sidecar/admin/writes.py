"""What every write of this API does besides writing: the instant it happens at, the budget it names, who learns of it.

Neighbours: `keys.py` and `subjects.py` write. Rule: a write that is done is told to this process at once; a budget that
was made or changed starts with what was spent before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncConnection

from sidecar.admin.policy import MONEY_FIELDS
from sidecar.errors import NotFoundError, UnavailableError
from sidecar.identity.row import KeyRow, Policy, PrincipalRow
from sidecar.identity.tree import Tree
from sidecar.types import Identity

_GIVES_BUDGET = MONEY_FIELDS | {"budget_id"}


class Seeder(Protocol):
    """What this API needs of `limits.admission.Admission`."""

    async def seed_identity(self, identity: Identity) -> None: ...

    async def catch_up(self, identity: Identity) -> None: ...


class Writes:
    """`admission` learns of budgets; `tell` makes this process read what changed (`feed.ChangeFeed.poll`)."""

    def __init__(
        self,
        *,
        tree: Tree,
        admission: Seeder | None,
        tell: Callable[[], Awaitable[None]] | None,
        clock: Callable[[], float],
    ) -> None:
        self._tree = tree
        self._admission = admission
        self._tell = tell
        self._clock = clock

    def now(self) -> float:
        # As the database keeps it: an anchor that changed by a fraction would be another budget window.
        return round(self._clock() * 1_000_000) / 1_000_000

    async def told(self) -> None:
        """Everybody in this process learns what was just written; the others within a moment anyway."""
        if self._tell is not None:
            try:
                await self._tell()
            except (UnavailableError, TimeoutError):
                pass

    async def check_budget(self, connection: AsyncConnection, row: Policy, named: Collection[str]) -> None:
        """Raises `NotFoundError` if the row is given a shared budget that does not exist."""
        if "budget_id" in named and row.budget_id is not None and await self._tree.shared(connection, row) is None:
            raise NotFoundError("'budget_id' names no budget.", param="budget_id", code="budget_not_found")

    async def seed_key(self, row: KeyRow, *, strict: bool = True, named: Collection[str] = ()) -> None:
        """`named`: the request's fields."""
        await self._seed(
            row, lambda shared: row.identity((), shared), strict, is_given=not _GIVES_BUDGET.isdisjoint(named)
        )

    async def seed_principal(self, row: PrincipalRow) -> None:
        def identity(shared: PrincipalRow | None) -> Identity:
            return Identity(key_hash="", principals=(row.principal(shared),))

        await self._seed(row, identity, strict=False, is_given=True)

    async def _seed(
        self, row: Policy, of: Callable[[PrincipalRow | None], Identity], strict: bool, *, is_given: bool
    ) -> None:
        try:
            identity = of(await self._tree.budgets(row) if row.budget_id is not None else None)
            if self._admission is None or not identity.has_budget:
                return
            await self._admission.seed_identity(identity)
            if is_given:
                await self._admission.catch_up(identity)
        except UnavailableError:
            if strict:
                raise
