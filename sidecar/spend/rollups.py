"""Daily totals of the ledger: for each UTC day and each dimension (a key, a team, a model, …) what its rows add up to.

`ledger_postgres` and `ledger_sqlite` add newly inserted rows in the insertion's own transaction, `ledger` and `reports`
read them. `spend_daily` splits a name's day by provider and model; `spend_daily_whole` does not, for dimensions of many
names (`WHOLE`), so that a report by key reads one total a day and key. Rules: only sums, so rows may come in any order
and a correction is added like any row; for every dimension but `member` and `tag` the totals of a day are those of all
its rows (who has no team stands under the name ""). Pure text: SQL for both databases (`rollups_postgres`: the quick
way of one of them).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sidecar.db.schema import TOKEN_CLASSES, TOTALS
from sidecar.spend.rows import micros

DAY = 86_400_000_000
"""Microseconds of a day."""

MEMBER = (
    "CASE WHEN s.team_id IS NOT NULL AND s.user_id IS NOT NULL"
    " THEN CAST(length(s.team_id) AS TEXT) || ':' || s.team_id || ':' || s.user_id END"
)
"""As `identity.row.member_id` writes it."""

NAMES = {
    "user": "coalesce(s.user_id, '')",
    "team": "coalesce(s.team_id, '')",
    "tag": "t.value",
    "organization": "coalesce(s.organization_id, '')",
    "member": MEMBER,
    "key": "s.key_hash",
    "group": "s.model_group",
    "end_user": "coalesce(s.end_user_id, '')",
    "all": "''",
}
"""Each dimension's name as SQL on a row `s` (and one of its tags, `t`). `all` has one name, "": everybody's spend."""

WHOLE = ("user", "member", "key", "end_user")
"""Dimensions that may have many names: added up by day alone, too."""

KEY = ("dimension", "day_at", "name", "provider", "model")
ORDER = "dimension DESC, day_at, name, provider, model"
"""In which totals are locked: one order for everybody, so that two writers wait for each other at most. What all
writers share (`all`) comes last, so that it is held for the shortest time. The whole ones are locked after these."""
ORDER_WHOLE = "dimension DESC, day_at, name"

_MAX = 9223372036854775807
DAY_AT = f"s.at - (s.at % {DAY} + {DAY}) % {DAY}"
_PARTS = {
    "cost_nano": "s.cost_nano",
    "estimated_nano": "CASE WHEN s.status = 'estimated' THEN s.cost_nano ELSE 0 END",
    "unknown_nano": "CASE WHEN s.status = 'unknown' THEN s.cost_nano ELSE 0 END",
    "attempts": "CASE WHEN s.revision = 0 THEN 1 ELSE 0 END",
    "failed": "CASE WHEN s.revision = 0 AND s.outcome <> 'ok' THEN 1 ELSE 0 END",
    "unpriced": "CASE WHEN s.revision = 0 AND s.status = 'unpriced' THEN 1 ELSE 0 END",
    **{f"{name}_tokens": f"coalesce(s.{name}_tokens, 0)" for name in TOKEN_CLASSES},
}
assert tuple(_PARTS) == TOTALS


def added_up(
    source: str,
    *,
    dialect: str,
    dimensions: tuple[str, ...] = tuple(NAMES),
    where: str = "",
    is_whole: bool = False,
    is_read: bool = True,
) -> str:
    """A query for the totals of the rows in `source` that meet `where`, in the columns of `spend_daily`; `is_whole`:
    for `spend_daily_whole`, providers and models empty. Not `is_read`: on SQLite a sum beyond 64 bits is an error."""
    add = summed if is_read and dialect == "sqlite" else _sum
    sums = ", ".join(f"{add(part, dialect)} AS {name}" for name, part in _PARTS.items())
    split = "'' AS provider, '' AS model" if is_whole else "s.provider AS provider, s.model AS model"
    return " UNION ALL ".join(
        f"SELECT '{dimension}' AS dimension, {DAY_AT} AS day_at, {NAMES[dimension]} AS name, {split}, {sums}"  # noqa: S608 - ours
        f" FROM {source} s{_tags(dimension, dialect)}{_where(dimension, where)}"
        f" GROUP BY 2, 3{'' if is_whole else ', 4, 5'}"
        for dimension in dimensions
    )


def upsert(source: str, *, dialect: str, is_whole: bool = False, after: str = "true") -> str:
    """The statement that adds the rows in `source` to the totals, or to the whole ones, if `after` is true."""
    if dialect == "postgresql":
        kept = [f"least(greatest(d.{n}::numeric + excluded.{n}, -{_MAX}), {_MAX})" for n in TOTALS]
    else:
        kept = [f"min(max(d.{n} + excluded.{n}, -{_MAX}), {_MAX})" for n in TOTALS]
    dimensions = WHOLE if is_whole else tuple(NAMES)
    added = added_up(source, dialect=dialect, dimensions=dimensions, is_whole=is_whole, is_read=False)
    return insert_of(f"({added}) AS added WHERE {after}", kept, is_whole=is_whole)


def insert_of(added: str, kept: Sequence[str], *, is_whole: bool) -> str:
    """The upsert of what `SELECT … FROM` `added` finds; `kept` are the sums of a total (`d`) that is there already."""
    table, key, order = ("spend_daily_whole", KEY[:3], ORDER_WHOLE) if is_whole else ("spend_daily", KEY, ORDER)
    names = ", ".join((*key, *TOTALS))
    changes = ", ".join(f"{name} = {value}" for name, value in zip(TOTALS, kept, strict=True))
    return (
        f"INSERT INTO {table} AS d ({names}) SELECT {names} FROM {added} ORDER BY {order}"  # noqa: S608 - all of it is ours
        f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET {changes}"
    )


@dataclass(frozen=True, slots=True)
class Span:
    """A window as whole days (`first` inclusive, `last` exclusive, microseconds; none if equal) and the parts of days
    before and after them, `[from, to)`. `None` is no bound."""

    first: int | None
    last: int | None
    parts: tuple[tuple[int | None, int | None], ...]


def span(since_at: float | None, until_at: float | None, rows_since: int = 0) -> Span:
    """The window `[since_at, until_at)`. A part of a day whose rows may be gone (before `rows_since`) counts as the
    whole day: a budget then counts too much rather than too little."""
    since = None if since_at is None or since_at == -math.inf else micros(since_at)
    until = None if until_at is None or until_at == math.inf else micros(until_at)
    if since is not None and until is not None and until <= since:
        return Span(0, 0, ())
    if since is not None and since % DAY and since < rows_since:
        since -= since % DAY
    if until is not None and until % DAY and until < rows_since:
        until += -until % DAY
    first = None if since is None else since + -since % DAY
    last = None if until is None else until - until % DAY
    if first is not None and last is not None and first >= last:
        return Span(0, 0, ((since, until),))
    parts: list[tuple[int | None, int | None]] = []
    if since is not None and since != first:
        parts.append((since, first))
    if until is not None and until != last:
        parts.append((last, until))
    return Span(first, last, tuple(parts))


def totals_of(
    dimension: str,
    window: Span,
    *,
    dialect: str,
    is_named: bool = False,
    is_split: bool = True,
    prefix: str = "",
    only: str = "",
) -> tuple[str, dict[str, object]]:
    """A query for the totals of a window in the columns of `spend_daily` (several rows for one name), and its
    parameters (`prefix` before their names, for several of these in one statement); `is_named` adds the condition
    `name IN :names`, without `is_split` providers and models may be empty. Whole days are read from the totals, parts
    of days from the rows; of these, `only` those that meet that condition on `s`."""
    columns = ", ".join((*KEY, *TOTALS))
    is_whole = not is_split and dimension in WHOLE
    where = "dimension = :dimension"
    values: dict[str, object] = {"dimension": dimension}
    if window.first is not None:
        where, values[f"{prefix}first"] = where + f" AND day_at >= :{prefix}first", window.first
    if window.last is not None:
        where, values[f"{prefix}last"] = where + f" AND day_at < :{prefix}last", window.last
    if is_named:
        where += " AND name IN :names"
    if is_whole:
        found = ", ".join((*KEY[:3], "'' AS provider, '' AS model", *TOTALS))
        queries = [f"SELECT {found} FROM spend_daily_whole WHERE {where}"]  # noqa: S608
    else:
        queries = [f"SELECT {columns} FROM spend_daily WHERE {where}"]  # noqa: S608
    for number, (start, end) in enumerate(window.parts):
        bounds = [f"({only})"] if only else []
        if start is not None:
            bounds.append(f"s.at >= :{prefix}from{number}")
            values[f"{prefix}from{number}"] = start
        if end is not None:
            bounds.append(f"s.at < :{prefix}to{number}")
            values[f"{prefix}to{number}"] = end
        if is_named:
            bounds.append(f"{NAMES[dimension]} IN :names")
        beside = " AND ".join(bounds)
        part = added_up("spend", dialect=dialect, dimensions=(dimension,), where=beside, is_whole=is_whole)
        queries.append(f"SELECT {columns} FROM ({part}) AS part{number}")  # noqa: S608
    return " UNION ALL ".join(queries), values


def summed(part: str, dialect: str) -> str:
    """The sum of a column to read. SQLite's own fails beyond 64 bits, and then nobody could read anything that a
    vendor's absurd count is in: halves are added up, and what is too large counts as the largest number there is.
    https://www.sqlite.org/lang_aggfunc.html#sumunc"""
    if dialect == "postgresql":
        return f"sum({part})"
    halves = f"sum(({part}) >> 31) * 2147483648 + sum(({part}) & 2147483647)"
    return f"min(max({halves}, -{_MAX}), {_MAX})"


def _sum(part: str, dialect: str) -> str:
    if dialect == "postgresql":
        return f"least(greatest(sum({part}), -{_MAX}), {_MAX})::bigint"
    return f"sum({part})"  # beyond 64 bits an error: `ledger_sqlite` then adds row by row


def _tags(dimension: str, dialect: str) -> str:
    if dimension != "tag":
        return ""
    if dialect == "postgresql":
        each = "SELECT DISTINCT value FROM jsonb_array_elements_text(s.tags::jsonb) AS each(value)"
        return f" CROSS JOIN LATERAL ({each}) AS t"
    # Each tag once, also if a row names it twice.
    again = "SELECT 1 FROM json_each(s.tags) AS u WHERE u.value = t.value AND u.key < t.key"
    return f" JOIN json_each(s.tags) AS t ON NOT EXISTS ({again})"


def _where(dimension: str, where: str) -> str:
    conditions = [where] if where else []
    if dimension == "tag":
        conditions.append("s.tags <> '[]'")
    if dimension == "member":
        conditions.append("s.team_id IS NOT NULL AND s.user_id IS NOT NULL")
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""
