"""What the daily totals have to be: added up in Python from the records, independently of the ledger's SQL."""

from __future__ import annotations

from collections.abc import Iterable

from sidecar.db import Database
from sidecar.db.schema import TOTALS, spend_daily, spend_daily_whole
from sidecar.types import SpendRecord

DAY_S = 86_400
MANY = ("key", "user", "member", "end_user")
WHOLE = ("all providers", "all models")
"""As these the totals of `spend_daily_whole` stand among the others."""
Key = tuple[str, int, str, str, str]


def expected(records: Iterable[SpendRecord]) -> dict[Key, tuple[int, ...]]:
    found: dict[Key, list[int]] = {}
    for record in records:
        names: list[tuple[str, str]] = [
            ("all", ""),
            ("key", record.key_hash),
            ("group", record.group),
            ("user", record.user_id or ""),
            ("team", record.team_id or ""),
            ("organization", record.organization_id or ""),
            ("end_user", record.end_user_id or ""),
            *(("tag", tag) for tag in set(record.tags)),
        ]
        if record.team_id is not None and record.user_id is not None:
            names.append(("member", f"{len(record.team_id)}:{record.team_id}:{record.user_id}"))
        is_first = record.revision == 0
        values = [
            record.cost_nano,
            record.cost_nano if record.status == "estimated" else 0,
            record.cost_nano if record.status == "unknown" else 0,
            int(is_first),
            int(is_first and record.outcome != "ok"),
            int(is_first and record.status == "unpriced"),
            *(getattr(record.usage, name.removesuffix("_tokens")) or 0 for name in TOTALS[6:]),
        ]
        day = int(record.at // DAY_S) * DAY_S * 1_000_000
        keys = [(dimension, day, name, record.provider, record.model) for dimension, name in names]
        keys += [(dimension, day, name, *WHOLE) for dimension, name in names if dimension in MANY]
        for key in keys:
            sums = found.setdefault(key, [0] * len(TOTALS))
            for index, value in enumerate(values):
                sums[index] += value
    return {key: tuple(sums) for key, sums in found.items()}


async def stored(database: Database) -> dict[Key, tuple[int, ...]]:
    async with database.engine.connect() as connection:
        rows = (await connection.execute(spend_daily.select())).all()
        whole = (await connection.execute(spend_daily_whole.select())).all()
    found = {tuple(row[:5]): tuple(row[5:]) for row in rows}
    return found | {(*row[:3], *WHOLE): tuple(row[3:]) for row in whole}
