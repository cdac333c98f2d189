"""What runs beside requests: leases renewed, rows of silent owners, counters read again after the store lost them,
metrics drained; and what seeds a cold counter.

`app.py` makes and starts these.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from sidecar.db.breaker import Breaker, KnownDownError
from sidecar.errors import UnavailableError
from sidecar.identity.deadline import Deadline
from sidecar.limits.admission import Admission
from sidecar.limits.claims import SilentHold
from sidecar.limits.windows import BudgetWindow
from sidecar.metrics import Metrics
from sidecar.spend.ledger import Ledger
from sidecar.spend.recorder import Recorder
from sidecar.tasks import end
from sidecar.types import SpendRecord

RESEED_PAUSE_S = 0.2
_log = logging.getLogger(__name__)


class LedgerSeed:
    """What was spent in a budget window, summed from the ledger after everything journalled has been shipped. A silent
    database costs a request `deadline_s` once; then it is a `TimeoutError` at once, but for one probe a second."""

    def __init__(self, recorder: Recorder, ledger: Ledger, *, deadline_s: float = 3.0) -> None:
        self._recorder = recorder
        self._ledger = ledger
        self._deadline = Deadline(deadline_s)
        self._breaker = Breaker()

    async def __call__(self, windows: Sequence[BudgetWindow]) -> Mapping[str, int]:
        if self._ledger.database.breaker.is_open:
            raise KnownDownError
        with self._breaker.watch():
            return await self._deadline.run(self._sums(windows))

    async def _sums(self, windows: Sequence[BudgetWindow]) -> Mapping[str, int]:
        await self._recorder.flush()
        return await sums_of(self._ledger, windows)


async def sums_of(ledger: Ledger, windows: Sequence[BudgetWindow]) -> dict[str, int]:
    """By counter. Not those that end amid a day whose rows may be gone."""
    sums: dict[str, int] = {}
    for window in windows:
        until_at = window.end_at if window.end_at != float("inf") else None
        total = await ledger.sum_before(window.kind, window.scope_id, window.start_at, until_at)
        if total is not None:
            sums[window.key] = total
    return sums


class Ticker:
    """Renews leases and drains the metrics every `every_s` (a third of a lease), writes the rows of silent owners'
    holds, and reads counters again when that is due. These two wait for a database, so they have tasks of their own:
    renewing never waits for it."""

    def __init__(self, admission: Admission, recorder: Recorder, metrics: Metrics, *, every_s: float) -> None:
        self._admission = admission
        self._recorder = recorder
        self._metrics = metrics
        self._every_s = every_s
        self._silent: dict[str, SilentHold] = {}  # by exchange; what is told of it later is what counts
        self._has_silent = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        if not self._tasks:
            if (bound := self._admission.bound_while_down()) is not None:
                _log.warning(bound)
            self._tasks = [asyncio.create_task(part()) for part in (self._renew, self._write, self._reseed)]

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            try:
                self._metrics.drain()
                for hold in await self._admission.tick():
                    self._silent[hold.exchange_id] = hold
                    self._has_silent.set()
            except Exception:  # noqa: BLE001
                # Whatever it was, the next tick is due: without it every lease of this process would run out.
                _log.exception("a tick failed")

    async def _write(self) -> None:
        while True:
            await self._has_silent.wait()
            while self._silent:
                hold = self._silent.pop(next(iter(self._silent)))
                try:
                    record = silent_record(hold)
                    await (self._recorder.heard(record) if hold.is_over else self._recorder.silent(record))
                except Exception as error:  # noqa: BLE001 - it is tried again, and the others are not to wait for it
                    if not isinstance(error, UnavailableError):
                        _log.exception("the row of a silent owner's hold was not written")
                    self._silent.setdefault(hold.exchange_id, hold)
                    await asyncio.sleep(self._every_s)
                else:
                    self._admission.reseed_due.set()
                    await self._admission.written(hold)
            self._has_silent.clear()

    async def _reseed(self) -> None:
        while True:
            await self._admission.reseed_due.wait()
            await asyncio.sleep(RESEED_PAUSE_S)  # more of the kind comes along
            try:
                await self._admission.reseed()
            except UnavailableError:
                await asyncio.sleep(self._every_s)
            except Exception:  # noqa: BLE001
                _log.exception("the counters were not read again")
                await asyncio.sleep(self._every_s)

    async def aclose(self) -> None:
        tasks, self._tasks = self._tasks, []
        await end(tasks)


_FIELD = {"team": "team_id", "user": "user_id", "organization": "organization_id", "end_user": "end_user_id"}


def silent_record(hold: SilentHold) -> SpendRecord:
    """The `unknown` row of a hold that stays charged. Whose it was is read from the budget windows it is charged on, so
    that each of them goes on being the sum of its rows."""
    who: dict[str, Any] = {}
    tags: list[str] = []
    for key in hold.windows:
        kind, _, rest = key.partition(":")
        scope_id = rest.rsplit(":", 2)[0]
        if kind == "tag":
            tags.append(scope_id)
        elif kind == "member":  # `identity.row.member_id`
            length, _, both = scope_id.partition(":")
            if length.isdecimal():  # a host application may call its members otherwise
                who |= {"team_id": both[: int(length)], "user_id": both[int(length) + 1 :]}
        elif kind in _FIELD:
            who[_FIELD[kind]] = scope_id
    return SpendRecord(
        exchange_id=hold.exchange_id,
        attempt=0,
        revision=0,
        at=hold.at,
        key_hash=hold.key_hash,
        status="unknown",
        outcome="incomplete",
        cost_nano=hold.hold_nano,
        budget_keys=hold.windows,
        tags=tuple(tags),
        **who,
    )
