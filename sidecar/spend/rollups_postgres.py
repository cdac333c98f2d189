"""How PostgreSQL adds a batch of new rows to the daily totals quickly: one reading of the rows for all dimensions.

`ledger_postgres` uses it; `rollups` says the same one dimension at a time and for every number. Rules: sums are of 32
bits, of money's halves, because PostgreSQL adds wider ones up as decimals; whatever does not fit is an error (22003),
never a wrong sum, and then the batch goes the slow way.
https://www.postgresql.org/docs/current/queries-table-expressions.html#QUERIES-GROUPING-SETS
"""

from __future__ import annotations

from sidecar.db.schema import TOKEN_CLASSES, TOTALS
from sidecar.spend.rollups import DAY_AT, NAMES, WHOLE, insert_of

_SINGLE = tuple(dimension for dimension in NAMES if dimension not in ("tag", "all"))
"""Dimensions in which a row has one name, a column of its own here."""


def _money(where: str = "") -> str:
    """A 64-bit sum from the numbers' upper and lower bits."""
    only = f" FILTER (WHERE {where})" if where else ""
    upper, lower = f"sum((cost_nano >> 31)::int){only}", f"sum((cost_nano & 2147483647)::int){only}"
    return f"coalesce({upper} * 2147483648 + {lower}, 0)"


_SUMS = {
    "cost_nano": _money(),
    "estimated_nano": _money("status = 'estimated'"),
    "unknown_nano": _money("status = 'unknown'"),
    "attempts": "count(*) FILTER (WHERE revision = 0)",
    "failed": "count(*) FILTER (WHERE revision = 0 AND outcome <> 'ok')",
    "unpriced": "count(*) FILTER (WHERE revision = 0 AND status = 'unpriced')",
    **{f"{name}_tokens": f"coalesce(sum({name}_tokens::int), 0)" for name in TOKEN_CLASSES},
}
assert tuple(_SUMS) == TOTALS


def add_all(source: str) -> str:
    """The statement that adds all rows of `source` to `spend_daily`, then to `spend_daily_whole`."""
    columns = {dimension: f"in_{dimension}" for dimension in _SINGLE} | {"tags": "tags"}
    named = ", ".join(f"{NAMES[dimension]} AS {columns[dimension]}" for dimension in _SINGLE)
    used = ", ".join(("cost_nano", "status", "outcome", "revision", *(f"{n}_tokens" for n in TOKEN_CLASSES)))
    sets = [f"(day_at, {column}, provider, model)" for column in columns.values()] + ["(day_at, provider, model)"]
    sets += [f"(day_at, {columns[dimension]})" for dimension in WHOLE]
    sums = ", ".join(f"{value} AS {name}" for name, value in _SUMS.items())
    again = ", ".join(f"sum({name})::bigint" for name in TOTALS)
    kept = [f"d.{name} + excluded.{name}" for name in TOTALS]
    daily = insert_of("added WHERE NOT is_whole", kept, is_whole=False)
    # That the first upsert is over is a condition of the second: the order of locks is not left to the planner.
    whole = insert_of("added WHERE is_whole AND (SELECT count(*) FROM daily) >= 0", kept, is_whole=True)
    tags = "SELECT DISTINCT value FROM jsonb_array_elements_text(g.name::jsonb) AS each(value)"
    return (
        f"WITH parts AS (SELECT {DAY_AT} AS day_at, provider, model, {named}, nullif(tags, '[]') AS tags, {used}"  # noqa: S608 - all of it is ours
        f" FROM {source} s),"
        f" grouped AS (SELECT {_case(columns, quoted=True)} AS dimension, day_at, {_case(columns)} AS name,"
        f" provider, model, GROUPING(model) = 1 AS is_whole, {sums}"
        f" FROM parts GROUP BY GROUPING SETS ({', '.join(sets)})),"
        f" added AS (SELECT * FROM grouped WHERE dimension <> 'tags' AND name IS NOT NULL"
        f" UNION ALL SELECT 'tag', day_at, t.value, provider, model, false, {again} FROM grouped g CROSS JOIN LATERAL"
        f" ({tags}) AS t WHERE dimension = 'tags' AND name IS NOT NULL GROUP BY 2, 3, 4, 5),"
        f" daily AS ({daily} RETURNING 1) {whole}"
    )


def _case(columns: dict[str, str], *, quoted: bool = False) -> str:
    """Which grouping set a line is of, or its name in it."""
    found = {column: f"'{dimension}'" if quoted else column for dimension, column in columns.items()}
    cases = " ".join(f"WHEN GROUPING({column}) = 0 THEN {value}" for column, value in found.items())
    return f"CASE {cases} ELSE '{'all' if quoted else ''}' END"
