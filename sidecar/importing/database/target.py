"""Writes what was read into our database: keys and everybody above through `identity/table.py`, audited; spend through
the ledger.

Rule: an import never undoes what was done here: a row that is there stays as it is (unless `is_update`), a key blocked
here stays blocked, what was deleted here is not brought back. Only a block made there is carried over in any case.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import tzinfo
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa

from sidecar.db import Database
from sidecar.db.schema import audit, keys, principals, spend
from sidecar.errors import UnavailableError
from sidecar.identity.row import KeyRow, Policy, PrincipalRow
from sidecar.identity.table import KeyTable, PrincipalTable, Rows, Store
from sidecar.importing.database import opening
from sidecar.importing.database.book import Book
from sidecar.importing.database.opening import PREFIX, placed, records, wants
from sidecar.importing.database.rows import KEYS, Gathered, Spent
from sidecar.spend.ledger import BATCH_ROWS, Ledger
from sidecar.types import Budget, SpendRecord

ACTOR = "import litellm"
BATCH = 200
_NOT_COMPARED = frozenset({"created_at", "updated_at", "last_used_at", "key_id"})

R = TypeVar("R", bound=Policy)
T = TypeVar("T")


class Target:
    def __init__(self, database: Database, book: Book, *, now: float, is_update: bool) -> None:
        self._database = database
        self._store = Store(database, clock=lambda: now)
        self._keys = KeyTable(self._store)
        self._principals = PrincipalTable(self._store)
        self._ledger = Ledger(database)
        self._book = book
        self._now = now
        self._is_update = is_update

    async def write_rows(self, found: Gathered) -> None:
        """Budgets and whoever stands above come before keys, so that no key works without them."""
        for some in _batches(list(found.principals.values())):
            await self._write(self._principals, some)
        for batch in _batches(list(found.keys.values())):
            await self._write(self._keys, batch)

    async def _write(self, table: Rows[R], rows: Sequence[R]) -> None:
        async with self._store.write() as connection:
            there = {_name(row): row for row in await table.some(connection, _are(rows))}
            missing = [row for row in rows if _name(row) not in there]
            gone = {
                (str(kind), str(name))
                for kind, name in await connection.execute(
                    sa.select(audit.c.kind, audit.c.subject_id).where(
                        audit.c.action == "delete", audit.c.subject_id.in_([_name(row)[1] for row in missing])
                    )
                )
            }
            aliases = await self._aliases(connection, missing)
            for row in rows:
                before = there.get(_name(row))
                if before is not None:
                    await self._keep(connection, table, before, row)
                elif _name(row) in gone:
                    self._book.count(f"{_kind(row)}s deleted here, not brought back")
                else:
                    await table.insert(connection, self._renamed(row, aliases), by=ACTOR)
                    self._book.count(f"{_kind(row)}s created")

    async def _keep(self, connection: Any, table: Rows[R], before: R, row: R) -> None:
        fields = {name: getattr(row, name) for name in row.__struct_fields__ if name not in _NOT_COMPARED}
        changes = {name: value for name, value in fields.items() if getattr(before, name) != value}
        if before.blocked:
            changes.pop("blocked", None)
        if isinstance(before, KeyRow) and before.key_alias == _with_hash(row):
            changes.pop("key_alias", None)
        if not changes:
            self._book.count(f"{_kind(row)}s unchanged")
            return
        if not self._is_update:
            changes = {name: value for name, value in changes.items() if name == "blocked"}
        if not changes:
            self._book.count(f"{_kind(row)}s kept as they are here")
            return
        await table.change(connection, before, {**changes, "updated_at": self._now}, ACTOR)
        self._book.count(f"{_kind(row)}s updated")

    async def _aliases(self, connection: Any, rows: Sequence[Policy]) -> frozenset[str]:
        """Aliases that keys of ours have already."""
        names = [row.key_alias for row in rows if isinstance(row, KeyRow) and row.key_alias is not None]
        query = sa.select(keys.c.key_alias).where(keys.c.key_alias.in_(names))
        return frozenset((await connection.execute(query)).scalars()) if names else frozenset()

    def _renamed(self, row: R, aliases: frozenset[str]) -> R:
        if not isinstance(row, KeyRow) or row.key_alias not in aliases:
            return row
        self._book.add(
            KEYS, "key_alias", "changed", to="key_alias", name=row.key_alias or "",
            text="a key here has it already; a piece of the hash was appended",
        )  # fmt: skip
        return msgspec.structs.replace(row, key_alias=_with_hash(row))

    # Spend

    async def write_spend(self, found: Gathered, *, whole: Budget, zone: tzinfo) -> None:
        """`whole`: the budget of the whole gateway."""
        scopes = [spent for spent in found.spent if spent.kind != "global"]
        for batch in _batches(scopes):
            ids = [opening.exchange_id(spent.kind, spent.subject_id) for spent in batch]
            there = await self._there(spend.c.exchange_id.in_(ids), spend.c.attempt == 1)
            found_rows: list[SpendRecord] = []
            for spent, name in zip(batch, ids, strict=True):
                budgets, has_own = _budgets(found, spent)
                wanted = wants(spent, budgets, has_own=has_own, now=self._now, zone=zone)
                its = self._missing(spent, wanted, there.get(name, []), there.get(name, []))
                if len(found_rows) + len(its) > BATCH_ROWS[self._database.dialect]:
                    # A scope's rows go together: the next run looks at the first of them alone.
                    await self._insert(found_rows)
                    found_rows = []
                found_rows += its
            await self._insert(found_rows)
        for spent in found.spent:
            if spent.kind == "global":
                everything = await self._there(sa.and_(spend.c.exchange_id >= PREFIX, spend.c.exchange_id < "opening;"))
                own = everything.get(opening.exchange_id("global", spent.subject_id), [])
                wanted = wants(spent, [whole], has_own=True, now=self._now, zone=zone)
                every = [row for rows in everything.values() for row in rows]
                await self._insert(self._missing(spent, wanted, every, own))

    def _missing(
        self, spent: Spent, wanted: list[opening.Want], counted: list[tuple[float, int, int]], own: list[Any]
    ) -> list[SpendRecord]:
        amounts = placed(wanted, [(at, nano) for at, _, nano in counted], self._now)
        if amounts:
            self._book.count(f"spend totals of {spent.kind}s carried over")
        return records(spent, amounts, 1 + max((revision for _, revision, _ in own), default=0))

    async def _there(self, *where: sa.ColumnElement[bool]) -> dict[str, list[tuple[float, int, int]]]:
        query = sa.select(spend.c.exchange_id, spend.c.at, spend.c.revision, spend.c.cost_nano).where(*where)
        found: dict[str, list[tuple[float, int, int]]] = {}
        async with self._store.read() as connection:
            for name, at, revision, nano in await connection.execute(query):
                found.setdefault(name, []).append((at / 1_000_000, int(revision), int(nano)))
        return found

    async def _insert(self, rows: list[SpendRecord]) -> None:
        refused = await self._ledger.insert(rows) if rows else []
        if refused:
            raise UnavailableError(
                f"The ledger refused {len(refused)} opening rows; run the import again.", code="ledger_unavailable"
            )


def _budgets(found: Gathered, spent: Spent) -> tuple[Sequence[Budget], bool]:
    """What counts for a scope, and whether the first one is that of the money since the last reset."""
    row: Policy | None = found.keys.get(spent.subject_id) if spent.kind == "key" else None
    if row is None:
        row = found.principals.get((spent.kind, spent.subject_id))
    if row is None:
        return (), False
    shared = found.principals.get(("budget", row.budget_id)) if row.budget_id is not None else None
    has_own = row.max_budget_nano is not None or (shared is not None and shared.max_budget_nano is not None)
    return row.budgets(shared), has_own


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


def _with_hash(row: Policy) -> str:
    assert isinstance(row, KeyRow)
    return f"{row.key_alias}-{row.key_hash[:6]}"


def _kind(row: Policy) -> str:
    return row.kind.replace("_", " ") if isinstance(row, PrincipalRow) else "key"


def _name(row: Policy) -> tuple[str, str]:
    if isinstance(row, PrincipalRow):
        return row.kind, row.principal_id
    assert isinstance(row, KeyRow)
    return "key", row.key_hash


def _are(rows: Sequence[Policy]) -> sa.ColumnElement[bool]:
    grouped: dict[str, list[str]] = {}
    for row in rows:
        kind, name = _name(row)
        grouped.setdefault(kind, []).append(name)
    if "key" in grouped:
        return keys.c.key_hash.in_(grouped["key"])
    return sa.or_(
        *(sa.and_(principals.c.kind == kind, principals.c.principal_id.in_(some)) for kind, some in grouped.items())
    )
