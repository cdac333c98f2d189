"""`/spend/*`: the ledger's rows, a page at a time, and what each key spent.

`spend.ledger` reads the rows; keys are shown by hash and mask only. Money is USD as exact JSON numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sidecar.admin.bodies import LogsQuery, TotalsQuery, validated
from sidecar.admin.endpoint import Call
from sidecar.admin.keys import usd
from sidecar.identity.table import KeyTable
from sidecar.spend.ledger import Ledger
from sidecar.types import SpendRecord


class SpendAdmin:
    """The handlers of `/spend/*`."""

    def __init__(self, *, ledger: Ledger, table: KeyTable) -> None:
        self._ledger = ledger
        self._table = table

    async def logs(self, call: Call) -> Mapping[str, Any]:
        """Rows newest first; `next_cursor` is null on the last page."""
        query = validated(LogsQuery, call.query)
        page = await self._ledger.logs(
            key_hash=query.key,
            since_at=query.since,
            until_at=query.until,
            exchange_id=query.exchange_id,
            request_id=query.request_id,
            limit=query.limit,
            cursor=query.cursor,
        )
        return {"data": [described_record(record) for record in page.records], "next_cursor": page.next_cursor}

    async def keys(self, call: Call) -> Mapping[str, Any]:
        """What each key spent, the dearest first. A deleted key keeps its spend and has no name."""
        query = validated(TotalsQuery, call.query)
        totals = await self._ledger.totals(since_at=query.since, until_at=query.until, limit=query.limit)
        rows = {row.key_hash: row for row in await self._table.find(hashes=[total.name for total in totals])}
        data = []
        for total in totals:
            row = rows.get(total.name)
            data.append(
                {
                    "token": total.name,
                    "key_name": row.key_name if row else None,
                    "key_alias": row.key_alias if row else None,
                    "user_id": row.user_id if row else None,
                    "team_id": row.team_id if row else None,
                    "max_budget": None if row is None or row.max_budget_nano is None else usd(row.max_budget_nano),
                    "spend": usd(total.cost_nano),
                    "requests": total.rows,
                    "prompt_tokens": total.input_tokens,
                    "completion_tokens": total.output_tokens,
                }
            )
        return {"data": data}


def described_record(record: SpendRecord) -> dict[str, Any]:
    """A ledger row as the answers show it; `usage` holds the known token classes only, an unpriced row's `spend` is
    null."""
    return {
        "exchange_id": record.exchange_id,
        "attempt": record.attempt,
        "revision": record.revision,
        "at": datetime.fromtimestamp(record.at, UTC).isoformat(timespec="milliseconds"),
        "token": record.key_hash,
        "key_alias": record.key_alias,
        "user_id": record.user_id,
        "team_id": record.team_id,
        "organization_id": record.organization_id,
        "end_user_id": record.end_user_id,
        "request_id": record.request_id,
        "status": record.status,
        "outcome": record.outcome,
        "spend": usd(record.cost_nano) if record.status != "unpriced" else None,
        "model_group": record.group,
        "deployment_id": record.deployment_id,
        "provider": record.provider,
        "model": record.model,
        "usage": record.usage.as_dict(),
        "prompt_tokens": record.usage.total_input if record.usage.is_known else None,
        "completion_tokens": record.usage.total_output if record.usage.is_known else None,
        "total_tokens": record.usage.total if record.usage.is_known else None,
        "http_status": record.http_status,
        "stream": record.is_stream,
        "duration_ms": record.duration_ms,
        "first_byte_ms": record.first_byte_ms,
        "dropped": list(record.dropped),
    }
