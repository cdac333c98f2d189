"""`GET /audit`: who wrote what, when, what it was before and is since. `identity.changes` notes it with each write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sidecar.admin.endpoint import Call
from sidecar.admin.policy import shown_at
from sidecar.admin.requests import AuditQuery
from sidecar.identity import changes
from sidecar.identity.table import Store


class AuditAdmin:
    """The handler of `/audit`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def page(self, call: Call, query: AuditQuery) -> Mapping[str, Any]:
        """Newest first. Rows are as stored: money in nano-dollars, instants in Unix seconds, secrets as `***`."""
        async with self._store.read() as connection:
            found, total = await changes.page(
                connection,
                kind=query.kind,
                subject_id=query.subject_id,
                actor=query.actor,
                action=query.action,
                since_at=query.since,
                until_at=query.until,
                limit=query.size,
                offset=(query.page - 1) * query.size,
            )
        return query.page_of("events", [event | {"at": shown_at(event["at"])} for event in found], total)
