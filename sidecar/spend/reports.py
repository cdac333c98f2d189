"""What was spent, by whom and on what: sums from the daily totals, with the part of them that is not certain.

The management API and `sidecar spend report` show them. Rules: whole UTC days are read from the daily totals and
never from the rows (unless a caller wants some of these only), so a report over years costs what its days cost; money
is nano-dollars, instants are Unix seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sidecar.db.schema import TOKEN_CLASSES, TOTALS
from sidecar.errors import BadRequestError
from sidecar.spend.ledger import Ledger, stored_text, window_of
from sidecar.spend.rollups import NAMES, Span, summed, totals_of
from sidecar.spend.rows import micros
from sidecar.types import Usage

ENTITIES = tuple(name for name in NAMES if name != "all")
"""Whom a report may be by or about: at most one of them at once."""
COLUMNS = {"day": "day_at", "model": "model", "provider": "provider"}
BY = (*sorted(ENTITIES), *COLUMNS)
"""Everything a report may be by. `model` is the provider's name of it, `group` the name clients call."""
INPUT = ("input", "cached_input", "cache_write_5m", "cache_write_1h", "audio_input", "image_input")


@dataclass(frozen=True, slots=True)
class Sums:
    """`estimated_nano` and `unknown_nano` are the parts of `cost_nano` that the gateway counted itself, and that it
    charged without knowing (see docs/spend.md). `attempts` leaves corrections out; of them `failed` did not end well
    and `unpriced` have no known cost."""

    cost_nano: int = 0
    estimated_nano: int = 0
    unknown_nano: int = 0
    attempts: int = 0
    failed: int = 0
    unpriced: int = 0
    usage: Usage = Usage(*([0] * len(TOKEN_CLASSES)))

    @property
    def input_tokens(self) -> int:
        return sum(getattr(self.usage, name) for name in INPUT)

    @property
    def output_tokens(self) -> int:
        return sum(getattr(self.usage, name) for name in TOKEN_CLASSES if name not in INPUT)


@dataclass(frozen=True, slots=True)
class Line:
    """`names` in the order of the report's `by`; a day is `YYYY-MM-DD`, who has no team is under the team ""."""

    names: tuple[str, ...]
    sums: Sums


@dataclass(frozen=True, slots=True)
class Report:
    """The dearest first – by day, the newest first. `total` is of all lines, those past `limit` included; by tag or
    member it counts what has several, or none, several times or not at all."""

    by: tuple[str, ...]
    lines: list[Line]
    total: Sums
    next_offset: int | None

    @property
    def rows(self) -> list[Line]:
        return self.lines


async def report(
    ledger: Ledger,
    *,
    by: Sequence[str],
    since_at: float | None = None,
    until_at: float | None = None,
    where: Mapping[str, str] | None = None,
    limit: int = 1000,
    offset: int = 0,
    only: str = "",
) -> Report:
    """`by` are names of `BY`; `where` gives values they have to have (an entity, `provider`, `model`). With
    `only`, SQL on a row `s`, the rows that meet it are read instead of the totals. Raises `BadRequestError`,
    `UnavailableError`."""
    import sqlalchemy as sa

    names = tuple(by)
    async with ledger.connection() as connection:
        query, values = await _query(ledger, connection, names, since_at, until_at, dict(where or {}), only)
        columns = ", ".join(_columns(names))
        sums = ", ".join(f"{summed(name, ledger.database.dialect)} AS {name}" for name in TOTALS)
        order = f"{'day_at DESC, ' if names[0] == 'day' else ''}cost_nano DESC, {columns}"
        blanks = ", ".join("NULL" for _ in names)
        # One reading of the totals: the lines, a page of them, and last the sum of all.
        text = (
            f"WITH lines AS MATERIALIZED (SELECT {columns}, {sums} FROM ({query}) AS totals GROUP BY {columns})"  # noqa: S608 - ours
            f" SELECT * FROM (SELECT * FROM lines ORDER BY {order} LIMIT :limit OFFSET :offset) AS page"
            f" UNION ALL SELECT {blanks}, {sums} FROM lines"
        )
        found = (await connection.execute(sa.text(text), {**values, "limit": limit + 1, "offset": offset})).all()
    *page, total = found
    lines = [Line(_shown(names, row), _sums(row[len(names) :])) for row in page[:limit]]
    return Report(names, lines, _sums(total[len(names) :]), offset + limit if len(page) > limit else None)


async def key_aliases(ledger: Ledger, names: Sequence[str]) -> dict[str, str]:
    """What people call the keys with these hashes; deleted and unnamed ones are missing. Raises `UnavailableError`."""
    import sqlalchemy as sa

    from sidecar.db.schema import keys

    spends_as = sa.func.coalesce(keys.c.key_id, keys.c.key_hash)
    found: dict[str, str] = {}
    async with ledger.connection() as connection:
        for start in range(0, len(names), 500):
            some = names[start : start + 500]
            query = sa.select(spends_as, keys.c.key_alias).where(spends_as.in_(some), keys.c.key_alias.is_not(None))
            found.update((name, alias) for name, alias in await connection.execute(query))
    return found


async def plan(
    ledger: Ledger, *, by: Sequence[str], since_at: float | None = None, until_at: float | None = None
) -> str:
    """How the database reads a report: its EXPLAIN."""
    import sqlalchemy as sa

    async with ledger.connection() as connection:
        query, values = await _query(ledger, connection, tuple(by), since_at, until_at, {})
        word = "EXPLAIN" if ledger.database.dialect == "postgresql" else "EXPLAIN QUERY PLAN"
        found = await connection.execute(sa.text(f"{word} {query}"), values)
        return "\n".join(str(row[-1]) for row in found)


async def _query(
    ledger: Ledger,
    connection: Any,
    by: tuple[str, ...],
    since_at: float | None,
    until_at: float | None,
    where: dict[str, str],
    only: str = "",
) -> tuple[str, dict[str, object]]:
    unknown = [name for name in (*by, *where) if name not in BY or (name in where and name == "day")]
    if unknown or not by or len(set(by)) < len(by):
        raise BadRequestError(f"A report is by one or more of {', '.join(BY)}, each once.", param="by")
    entities = {name for name in (*by, *where) if name in ENTITIES}
    if len(entities) > 1:
        raise BadRequestError(
            f"A report is by or about one of {', '.join(sorted(ENTITIES))} at once, not several.",
            param="by",
        )
    dimension = entities.pop() if entities else "all"
    window = await window_of(connection, since_at, until_at)
    if only:
        bounds = (
            since_at if since_at is None else micros(since_at),
            until_at if until_at is None else micros(until_at),
        )
        window = Span(0, 0, (bounds,))
    query, values = totals_of(
        dimension,
        window,
        dialect=ledger.database.dialect,
        is_split=any(name in COLUMNS and name != "day" for name in (*by, *where)),
        only=only,
    )
    conditions = []
    for name, value in where.items():
        conditions.append(f"{COLUMNS.get(name, 'name')} = :is_{name}")
        values[f"is_{name}"] = stored_text(value)
    if conditions:
        query = f"SELECT * FROM ({query}) AS found WHERE {' AND '.join(conditions)}"  # noqa: S608 - ours
    return query, values


def _columns(by: tuple[str, ...]) -> list[str]:
    return [COLUMNS.get(name, "name") for name in by]


def _shown(by: tuple[str, ...], row: Sequence[Any]) -> tuple[str, ...]:
    return tuple(
        datetime.fromtimestamp(value / 1_000_000, UTC).date().isoformat() if name == "day" else value
        for name, value in zip(by, row, strict=False)
    )


def _sums(row: Sequence[Any]) -> Sums:
    counts = dict(zip(TOTALS, (int(value or 0) for value in row), strict=True))
    usage = Usage(**{name: counts.pop(f"{name}_tokens") for name in TOKEN_CLASSES})
    return Sums(usage=usage, **counts)
