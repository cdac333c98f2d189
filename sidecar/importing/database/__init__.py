"""LiteLLM's PostgreSQL tables → our database: existing keys go on working, budgets go on from the spend so far.

`source.py` reads, `rows.py` and `policy.py` say what becomes what, `opening.py` how spend is carried over, `target.py`
writes, `book.py` keeps account.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, tzinfo

from sidecar.db import Database
from sidecar.importing.database.book import Book, Entry
from sidecar.importing.database.rows import READ, Reader
from sidecar.importing.database.source import open_source, report_not_read
from sidecar.importing.database.target import Target
from sidecar.types import Budget

__all__ = ["Book", "Entry", "import_database"]


def _place(url: str) -> str:
    """Without user and password."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"


async def import_database(
    source_url: str,
    target_url: str | None,
    *,
    clock: Callable[[], float],
    zone: tzinfo = UTC,
    whole: Budget | None = None,
    masters: frozenset[str] = frozenset(),
    is_update: bool = False,
) -> Book:
    """`target_url=None` only reads and reports. `whole`: the budget of the whole gateway; `masters`: hashes of master
    keys. Raises `ValueError` for a URL that is none, `UnavailableError` when a database fails."""
    book = Book()
    now = clock()
    async with open_source(source_url) as source:
        if not source.tables:
            raise ValueError("--database-url: there are no tables of LiteLLM in it; check the database and its schema")
        found = await Reader(source, book, zone=zone, now=now, masters=masters).read()
        report_not_read(source, book, READ)
    if target_url is None:
        return book
    database = Database(target_url)
    try:
        await database.migrate()
        target = Target(database, book, now=now, is_update=is_update)
        # Spend first: no key works without what it has spent already.
        await target.write_spend(found, whole=whole or Budget(0), zone=zone)
        await target.write_rows(found)
    finally:
        await database.aclose()
    as_of = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
    book.notes.append(f"spend was carried over into {_place(target_url)} as of {as_of}")
    return book
