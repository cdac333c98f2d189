"""`/spend/*`: the ledger's rows, a page at a time, and what each key spent.

`spend.ledger` reads the rows; keys are shown by hash and mask only. Money is USD as exact JSON numbers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from sidecar.admin.access import Reach
from sidecar.admin.endpoint import Call
from sidecar.admin.policy import shown_at, usd
from sidecar.admin.requests import KeyTotalsQuery, LogsQuery, PromptQuery, ReportQuery, ResolveUnknown, TotalsQuery
from sidecar.errors import NotFoundError, PermissionDeniedError, UnavailableError
from sidecar.identity.changes import Event
from sidecar.identity.row import KeyRow
from sidecar.identity.tree import Tree
from sidecar.limits.store import StoreDownError
from sidecar.spend.ledger import Ledger, Total
from sidecar.spend.prompts import Prompt
from sidecar.spend.reports import Line, Sums, key_aliases, report
from sidecar.types import NANO, SpendRecord

_FILTERS = (
    "status", "outcome", "user_id", "team_id", "organization_id", "end_user_id", "tag", "model", "provider",
    "deployment_id",
)  # fmt: skip


class Resolver(Protocol):
    """What this API needs of `jobs.unknown.Unknown`."""

    async def resolve(self, exchange_id: str, cost_nano: int, *, attempt: int | None = None) -> list[SpendRecord]: ...


FindPrompt = Callable[[str], Awaitable[Prompt | None]]


class SpendAdmin:
    """The handlers of `/spend/*`."""

    def __init__(
        self, *, ledger: Ledger, tree: Tree, unknown: Resolver | None = None, prompts: FindPrompt | None = None
    ) -> None:
        self._ledger = ledger
        self._prompts = prompts
        self._tree = tree
        self._unknown = unknown

    async def logs(self, call: Call, query: LogsQuery) -> Mapping[str, Any]:
        """Rows newest first; `next_cursor` is null on the last page."""
        page = await self._ledger.logs(
            key_hash=await self._whose(call.reach, query.key),
            since_at=query.since,
            until_at=query.until,
            exchange_id=query.exchange_id,
            request_id=query.request_id,
            group=query.model_group,
            **{name: getattr(query, name) for name in _FILTERS},
            limit=query.limit,
            cursor=query.cursor,
        )
        return {"data": [described_record(record) for record in page.records], "next_cursor": page.next_cursor}

    async def resolve(self, call: Call, body: ResolveUnknown) -> Mapping[str, Any]:
        """The rows that correct an unknown cost; counters follow."""
        assert self._unknown is not None
        try:
            rows = await self._unknown.resolve(body.exchange_id, int(body.cost * NANO), attempt=body.attempt)
        except StoreDownError as error:
            raise UnavailableError(
                "The limit store does not answer: see `sidecar spend verify`.", code="limit_store_unavailable"
            ) from error
        corrections = [{"attempt": row.attempt, "status": row.status, "cost_nano": row.cost_nano} for row in rows]
        event = Event(call.actor, "resolve", "spend", body.exchange_id, None, {"corrections": corrections})
        store = self._tree.principals.store
        async with store.write() as connection:
            await store.note(connection, event)
        return {"data": [described_record(row) for row in rows]}

    async def prompt(self, call: Call, query: PromptQuery) -> Mapping[str, Any]:
        """What was asked and answered, if it was stored; who looked is in the audit."""
        assert self._prompts is not None
        if not call.reach.changes_all:
            raise PermissionDeniedError(
                "The gateway refused the call: prompts are for administrators.", code="role_not_allowed"
            )
        found = await self._prompts(query.exchange_id)
        if found is None:
            raise NotFoundError("No prompt is stored for this exchange.", param="exchange_id")
        store = self._tree.principals.store
        async with store.write() as connection:
            await store.note(connection, Event(call.actor, "read", "prompt", query.exchange_id))
        return {
            "exchange_id": found.exchange_id,
            "at": shown_at(found.at),
            "token": found.key_hash,
            "request": found.request,
            "request_cut": found.request_cut,
            "answer": found.answer,
            "answer_cut": found.answer_cut,
        }

    async def keys(self, call: Call, query: KeyTotalsQuery) -> Mapping[str, Any]:
        """What each key spent, the dearest first. A deleted key keeps its spend and has no name."""
        totals = await self._ledger.totals(
            key_hash=await self._whose(call.reach, query.key),
            since_at=query.since,
            until_at=query.until,
            limit=query.limit,
        )
        rows = await self._tree.spenders([total.name for total in totals])
        return {"data": [_described_key(total, rows.get(total.name)) for total in totals]}

    async def users(self, call: Call, query: TotalsQuery) -> Mapping[str, Any]:
        totals = await self._ledger.totals(by="user_id", since_at=query.since, until_at=query.until, limit=query.limit)
        return {"data": [{"user_id": total.name or None, **_described(total)} for total in totals]}

    async def teams(self, call: Call, query: TotalsQuery) -> Mapping[str, Any]:
        totals = await self._ledger.totals(by="team_id", since_at=query.since, until_at=query.until, limit=query.limit)
        return {"data": [{"team_id": total.name or None, **_described(total)} for total in totals]}

    async def report(self, call: Call, query: ReportQuery) -> Mapping[str, Any]:
        """Lines the dearest first (by day, the newest), with the total of all; a part of the money may be uncertain."""
        by = [name.strip() for name in query.by.split(",")]
        names = {"user_id": "user", "team_id": "team", "organization_id": "organization", "end_user_id": "end_user"}
        names |= {"model_group": "group"} | {name: name for name in ("tag", "model", "provider")}
        where = {names[name]: value for name in names if (value := getattr(query, name)) is not None}
        if query.key is not None:
            where["key"] = await self._whose(call.reach, query.key) or query.key
        found = await report(
            self._ledger,
            by=by,
            since_at=query.since,
            until_at=query.until,
            where=where,
            limit=query.limit,
            offset=query.offset,
        )
        keys = [line.names[by.index("key")] for line in found.lines] if "key" in by else []
        aliases = await key_aliases(self._ledger, keys)
        return {
            "by": by,
            "data": [_described_line(by, line, aliases) for line in found.lines],
            "total": described_sums(found.total),
            "next_offset": found.next_offset,
        }

    async def _whose(self, reach: Reach, key: str | None) -> str | None:
        """Under which name the ledger has this key. Who does not see all sees one key: its own unless it names one."""
        row = await self._tree.keys.get(key) if key is not None else None
        if reach.sees_all:
            return key if row is None else row.spends_as
        if key is None:
            return reach.identity.key_hash
        if row is None or not reach.sees_key(row):
            raise NotFoundError("'key' names no key of this gateway.", param="key", code="key_not_found")
        return row.spends_as


def _described_line(by: Sequence[str], line: Line, aliases: Mapping[str, str]) -> dict[str, Any]:
    shown: dict[str, Any] = dict(zip(by, line.names, strict=True))
    if "key" in shown:
        shown["key_alias"] = aliases.get(shown["key"])
    return shown | described_sums(line.sums)


def described_sums(sums: Sums) -> dict[str, Any]:
    """`estimated` and `unknown` are parts of `spend`."""
    return {
        "spend": usd(sums.cost_nano),
        "estimated": usd(sums.estimated_nano),
        "unknown": usd(sums.unknown_nano),
        "attempts": sums.attempts,
        "failed": sums.failed,
        "unpriced": sums.unpriced,
        "prompt_tokens": sums.input_tokens,
        "completion_tokens": sums.output_tokens,
    }


def _described_key(total: Total, row: KeyRow | None) -> dict[str, Any]:
    return {
        "token": total.name,
        "key_name": row.key_name if row else None,
        "key_alias": row.key_alias if row else None,
        "user_id": row.user_id if row else None,
        "team_id": row.team_id if row else None,
        "max_budget": None if row is None or row.max_budget_nano is None else usd(row.max_budget_nano),
        **_described(total),
    }


def _described(total: Total) -> dict[str, Any]:
    return {
        "spend": usd(total.cost_nano),
        "requests": total.rows,
        "prompt_tokens": total.input_tokens,
        "completion_tokens": total.output_tokens,
    }


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
