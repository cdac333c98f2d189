"""The `changes` and `audit` tables: what was written, when, by whom – noted in the transaction it belongs to.

`table.py` notes, `feed.py` reads on. Rule: on PostgreSQL writers take one advisory lock before they take a number, so
numbers become visible in their order; SQLite has one writer anyway. Secrets in what is audited are masked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from sidecar.db.schema import audit, changes
from sidecar.identity.feed import KEPT_S

_WRITERS_LOCK = 0x51DECA6
_SECRET = re.compile(r"secret|passw|token|api[-_]?key|credential|authorization|private", re.IGNORECASE)
MASK = "***"


@dataclass(frozen=True, slots=True)
class Event:
    """One write: `before` and `after` are the row as the management API shows it, `None` where there is none."""

    actor: str
    action: str
    kind: str
    subject_id: str
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None


async def lock_writers(connection: AsyncConnection) -> None:
    """First in every transaction that notes a change. What is read after it stays true until the end of it."""
    if connection.dialect.name == "postgresql":
        # Whoever is cut off before COMMIT has the lock for no longer than this.
        await connection.exec_driver_sql(
            "SELECT set_config('idle_in_transaction_session_timeout', '10s', true),"
            f" pg_advisory_xact_lock({_WRITERS_LOCK})"
        )
    else:
        await connection.exec_driver_sql("BEGIN IMMEDIATE")


async def note(connection: AsyncConnection, event: Event, *, at: float, audit_id: str) -> None:
    micros = round(at * 1_000_000)
    await connection.execute(sa.insert(changes).values(kind=event.kind, subject_id=event.subject_id, at=micros))
    await connection.execute(sa.delete(changes).where(changes.c.at < micros - round(KEPT_S * 1_000_000)))
    await connection.execute(
        sa.insert(audit).values(
            audit_id=audit_id,
            at=micros,
            actor=event.actor,
            action=event.action,
            kind=event.kind,
            subject_id=event.subject_id,
            before=_text(event.before),
            after=_text(event.after),
        )
    )


Noted = tuple[int, str, str, int]
"""A change and its instant, in microseconds."""


async def since(
    connection: AsyncConnection, seq: int, limit: int, at: int | None = None
) -> tuple[list[Noted], tuple[int, int] | None]:
    """As `feed.ChangeSource.changes_since`, each with its instant. Numbers have gaps where writers gave up, so a gap
    alone says nothing: as long as `seq` itself is still kept, so is everything after it. `at`: the instant noted with
    `seq`, if known; a database that was put back gives the same numbers to other changes."""
    query = sa.select(changes.c.seq, changes.c.kind, changes.c.subject_id, changes.c.at).where(changes.c.seq >= seq)
    rows = await connection.execute(query.order_by(changes.c.seq).limit(limit + 1))
    found: list[Noted] = [(row[0], row[1], row[2], row[3]) for row in rows]
    if found and found[0][0] == seq and at in (None, found[0][3]):
        return found[1:], None
    if found and found[0][0] == seq + 1:
        return found[:limit], None
    newest = await last(connection)
    return [], newest if found or newest[0] != seq else None


async def last(connection: AsyncConnection) -> tuple[int, int]:
    """The newest change's number and instant."""
    query = sa.select(changes.c.seq, changes.c.at).order_by(changes.c.seq.desc()).limit(1)
    row = (await connection.execute(query)).first()
    return (0, 0) if row is None else (row[0], row[1])


async def page(
    connection: AsyncConnection,
    *,
    kind: str | None = None,
    subject_id: str | None = None,
    actor: str | None = None,
    action: str | None = None,
    since_at: float | None = None,
    until_at: float | None = None,
    limit: int,
    offset: int,
) -> tuple[list[dict[str, Any]], int]:
    """Audited events, newest first, and how many match in all; `since_at` is included, `until_at` is not."""
    equal = {"kind": kind, "subject_id": subject_id, "actor": actor, "action": action}
    where = [audit.c[name] == value for name, value in equal.items() if value is not None]
    if since_at is not None:
        where.append(audit.c.at >= round(since_at * 1_000_000))
    if until_at is not None:
        where.append(audit.c.at < round(until_at * 1_000_000))
    total = (await connection.execute(sa.select(sa.func.count()).select_from(audit).where(*where))).scalar_one()
    query = sa.select(audit).where(*where).order_by(audit.c.at.desc(), audit.c.audit_id.desc())
    rows = (await connection.execute(query.limit(limit).offset(offset))).mappings()
    found = [
        {
            **row,
            "at": row["at"] / 1_000_000,
            "before": None if row["before"] is None else json.loads(row["before"]),
            "after": None if row["after"] is None else json.loads(row["after"]),
        }
        for row in rows
    ]
    return found, int(total)


def _text(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else json.dumps(masked(value), ensure_ascii=False, separators=(",", ":"))


def masked(value: Any) -> Any:
    """The same with every value masked whose name says it is a secret."""
    if isinstance(value, Mapping):
        return {
            name: MASK if isinstance(item, str) and _SECRET.search(str(name)) else masked(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [masked(item) for item in value]
    return value
