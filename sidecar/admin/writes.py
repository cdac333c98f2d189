"""What every write of this API does besides writing: the instant it happens at, the budget it names, who learns of it.

Neighbours: `keys.py` and `subjects.py` write. Rule: a write that is done is told to this process at once; a budget that
was made or changed starts with what was spent before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncConnection

from sidecar.errors import NotFoundError, UnavailableError
from sidecar.identity.row import KeyRow, Policy, PrincipalRow
from sidecar.identity.tree import Tree
from sidecar.types import Identity


class Seeder(Protocol):
    """What this API needs of `limits.admission.Admission`."""

    async def seed_identity(self, identity: Identity) -> None: ...


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

    async def seed_key(self, row: KeyRow, *, strict: bool = True) -> None:
        shared = await self._tree.budgets(row) if row.budget_id is not None else None
        await self._seed(row.identity((), shared), strict)

    async def seed_principal(self, row: PrincipalRow) -> None:
        shared = await self._tree.budgets(row) if row.budget_id is not None else None
        await self._seed(Identity(key_hash="", principals=(row.principal(shared),)), strict=False)

    async def _seed(self, identity: Identity, strict: bool) -> None:
        if self._admission is None or not identity.has_budget:
            return
        try:
            await self._admission.seed_identity(identity)
        except UnavailableError:
            if strict:
                raise
