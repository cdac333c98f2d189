"""Opening rows of the ledger: what was spent there counts on here, exact to the nano-dollar and once only.

Each scope (key, team, …) has a total of its own, which need not agree with anybody else's. Its opening row therefore
names that scope alone, and rows of the same instant take away again what it would add to others: a window of any other
scope counts nothing. Keys count towards the whole, as requests do.

Rule: a second import writes the difference to what the first one wrote, as a further revision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from hashlib import sha256
from typing import Any

from sidecar.importing.database.rows import Spent
from sidecar.limits.windows import bounds
from sidecar.types import Budget, SpendRecord

PREFIX = "opening:"
Written = Mapping[str, Sequence[tuple[float, int, int]]]
"""Exchange id → (at, revision, nano-dollars) of what stands there already."""


@dataclass(frozen=True, slots=True)
class Want:
    """So much has to be counted in [start, end)."""

    start_at: float
    end_at: float
    nano: int


def exchange_id(kind: str, subject_id: str) -> str:
    """Sorts after every UUID, so that the rows have a place in the ledger's default partition."""
    return f"{PREFIX}{kind}:{sha256(subject_id.encode()).hexdigest()[:32]}"


def wants(spent: Spent, budgets: Sequence[Budget], *, has_own: bool, now: float, zone: tzinfo) -> list[Want]:
    """`budgets`: what counts for the scope; `has_own`: the first one is that of the money since the last reset."""
    found: list[Want] = []
    main = budgets[0] if has_own and budgets else Budget(0)
    if spent.reset_at is not None and spent.reset_at <= now and main.duration is not None:
        start, end = bounds(main, spent.reset_at - 1, zone)  # the window has ended; nobody set it to zero yet
    else:
        start, end = bounds(main, now, zone)
    found.append(Want(start, end, spent.nano))
    for budget, nano in zip(budgets[1:] if has_own else budgets, spent.by_window, strict=False):
        if nano is not None:
            found.append(Want(*bounds(budget, now, zone), nano))
    if spent.total is not None and main.duration is not None and spent.total > spent.nano:
        found.append(Want(0.0, float("inf"), spent.total))
    return found


def placed(wanted: Iterable[Want], there: Sequence[tuple[float, int]], now: float) -> list[tuple[float, int]]:
    """What to add, and when, so that each window holds what it has to: the shortest first, the rest before it."""
    found: list[tuple[float, int]] = []
    edge: float | None = None
    for want in sorted(wanted, key=lambda want: (-want.start_at, want.end_at)):
        at = float(int(now)) if want.end_at > now else want.end_at - 1
        if edge is not None and edge - 1 < at:
            if edge - 1 < want.start_at:
                continue  # the same window twice
            at = edge - 1
        missing = want.nano - sum(nano for when, nano in (*there, *found) if want.start_at <= when < want.end_at)
        if missing:
            found.append((at, missing))
        edge = want.start_at if edge is None else min(edge, want.start_at)
    return found


def records(spent: Spent, amounts: Sequence[tuple[float, int]], revision: int) -> list[SpendRecord]:
    """The rows of one scope; attempt 1 is its own, the others keep it out of everybody else's sums."""
    found = []
    for i, (at, nano) in enumerate(amounts):
        sides = _sides(spent.kind, spent.subject_id)
        for attempt, (sign, who) in enumerate(sides, start=1):
            found.append(
                SpendRecord(
                    exchange_id=exchange_id(spent.kind, spent.subject_id),
                    attempt=attempt,
                    revision=revision + i,
                    at=at,
                    status="settled",
                    outcome="ok",
                    cost_nano=sign * nano,
                    key_alias=spent.alias if attempt == 1 else None,
                    **{"key_hash": "", **who},
                )
            )
    return found


_COLUMN = {"team": "team_id", "user": "user_id", "organization": "organization_id", "end_user": "end_user_id"}


def _sides(kind: str, subject_id: str) -> list[tuple[int, dict[str, Any]]]:
    if kind == "key":
        return [(1, {"key_hash": subject_id})]
    if kind == "global":
        return [(1, {})]
    if kind == "member":  # `identity.row.member_id`
        length, _, both = subject_id.partition(":")
        team, user = both[: int(length)], both[int(length) + 1 :]
        return [(1, {"team_id": team, "user_id": user}), (-1, {"team_id": team}), (-1, {"user_id": user}), (1, {})]
    if kind == "tag":
        return [(1, {"tags": (subject_id,)}), (-1, {})]
    return [(1, {_COLUMN[kind]: subject_id}), (-1, {})]
