"""`GET /exchanges/{request_id}`: what became of one request and why, for administrators and for whose key it was.

Neighbours: `sidecar.records` (this process' memory), `records_shared` (the other processes'), the ledger (older ones).
Rule: what is not the caller's does not exist for it; the operator's other deployments are for administrators.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from sidecar.admin.access import Reach
from sidecar.admin.endpoint import Call
from sidecar.admin.requests import ExchangeQuery
from sidecar.errors import NotFoundError
from sidecar.records import Shown, from_rows
from sidecar.spend.ledger import Ledger

MAX_ROWS = 200
Find = Callable[[str], Awaitable[Sequence[Shown]]]


class ExchangeAdmin:
    """`find` gives what processes remember under a name, the newest first."""

    def __init__(self, *, find: Find, ledger: Ledger) -> None:
        self._find = find
        self._ledger = ledger

    async def info(self, call: Call, query: ExchangeQuery) -> Mapping[str, Any]:
        """By the gateway's own id first: what a client sends as `x-request-id` may be anything."""
        name, reach = query.request_id, call.reach
        remembered = [shown for shown in await self._find(name) if sees(reach, shown["caller"])]
        by_id = next((shown for shown in remembered if shown["exchange_id"] == name), None)
        found = by_id or await self._stored(reach, exchange_id=name)
        found = found or next(iter(remembered), None) or await self._stored(reach, request_id=name)
        if found is not None:
            return found if reach.sees_all else _without_others(found)
        raise NotFoundError(
            "There is no such exchange, or it is not yours. One that was refused is remembered for a while, in the "
            "memory of the gateway's processes only.",
            param="request_id",
            code="exchange_not_found",
        )

    async def _stored(self, reach: Reach, **by: str) -> Shown | None:
        page = await self._ledger.logs(**by, limit=MAX_ROWS)  # type: ignore[arg-type]
        for exchange_id in dict.fromkeys(row.exchange_id for row in page.records):
            found = from_rows([row for row in page.records if row.exchange_id == exchange_id])
            if sees(reach, found["caller"]):
                return found
        return None


def sees(reach: Reach, caller: Mapping[str, Any] | None) -> bool:
    """As for the key: `Reach.sees_key`. An exchange nobody was identified for is for administrators."""
    if reach.sees_all:
        return True
    if caller is None:
        return False
    if caller["key_hash"] and caller["key_hash"] == reach.identity.key_hash:
        return True
    if caller["user_id"] is not None and caller["user_id"] == reach.user_id:
        return True
    return caller["team_id"] is not None and caller["team_id"] in reach.teams


def _without_others(shown: Shown) -> Shown:
    """Without the deployments that were not tried."""
    route = shown["route"]
    if route is None:
        return shown
    tried = [candidate for candidate in route["candidates"] if candidate["attempts"]]
    return {**shown, "route": {**route, "candidates": tried}}
