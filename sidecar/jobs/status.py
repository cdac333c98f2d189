"""What `GET /status` and `sidecar status` show: this process, who leads, every job, database, store, sinks.

Rule: it answers when the database does not; nothing secret is in it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from sidecar.db import Database
from sidecar.errors import UnavailableError
from sidecar.jobs.build import Jobs
from sidecar.jobs.state import JobState
from sidecar.limits.admission import Admission
from sidecar.spend.recorder import Recorder

DEADLINE_S = 3.0


class Status:
    """`store_kind`: of the limits, for people."""

    def __init__(
        self,
        jobs: Jobs,
        recorder: Recorder,
        admission: Admission,
        database: Database,
        *,
        store_kind: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._jobs = jobs
        self._recorder = recorder
        self._admission = admission
        self._database = database
        self._store_kind = store_kind
        self._clock = clock
        self._started_at = clock()

    async def __call__(self) -> Mapping[str, Any]:
        from sidecar import __version__

        state, leader, states = await self._stored()
        dropped = self._recorder.dropped_by_sink()
        return {
            "version": __version__,
            "at": _shown(self._clock()),
            "process": {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "started_at": _shown(self._started_at),
                "is_leader": self._jobs.runner.leader.leads,
            },
            "leader": leader,
            "database": {
                "kind": self._database.dialect,
                "state": state,
                "failed_shippings": self._recorder.failures,
            },
            "store": {"kind": self._store_kind, "state": await self._store()},
            "journal": self._journal(),
            "sinks": [{"sink": name, "dropped": count} for name, count in dropped.items()],
            "jobs": [
                self._flush(),
                *(self._job(job.name, job.says, job.off, states.get(job.name)) for job in self._jobs.runner.jobs),
            ],
        }

    async def _stored(self) -> tuple[str, dict[str, Any] | None, Mapping[str, JobState]]:
        try:
            async with asyncio.timeout(DEADLINE_S):
                states = await self._jobs.runner.table.all()
                found = await self._jobs.runner.table.leader()
        except (UnavailableError, TimeoutError):
            return "down", None, {}
        if found is None or found.until_at < self._clock() * 1_000_000:
            return "up", None, states
        return "up", {"holder": found.holder, "since": _instant(found.since_at)}, states

    async def _store(self) -> str:
        try:
            async with asyncio.timeout(DEADLINE_S):
                await self._admission.store.spent(["status"])
        except Exception:  # noqa: BLE001 - whatever it raises, the answer is the same
            return "down"
        return "up"

    def _journal(self) -> dict[str, Any]:
        journal = self._recorder.journal
        return {"state": "down" if journal.failures else "up", "refused": journal.refused}

    def _flush(self) -> dict[str, Any]:
        """Every process ships its own rows, whoever leads: this is how it goes in this one."""
        told = self._recorder.flushes
        return {
            "name": "flush",
            "does": "ships spend rows from this process's journal to the ledger",
            "state": "failed" if told.error is not None else "waiting" if told.runs else "due",
            "why": None,
            "last_run": _shown(told.ended_at) if told.ended_at is not None else None,
            "last_good_run": _shown(told.ok_at) if told.ok_at is not None else None,
            "last_error": told.error,
            "next_run": None,
            "runs": told.runs,
            "failures": told.failures,
        }

    def _job(self, name: str, says: str, off: str | None, state: JobState | None) -> dict[str, Any]:
        if not self._jobs.is_enabled and off is None:
            off = "switched off in this process"
        shown: dict[str, Any] = {
            "name": name,
            "does": says,
            "state": "off" if off is not None else "due",
            "why": off,
            "last_run": None,
            "last_good_run": None,
            "last_error": None,
            "next_run": None,
            "runs": 0,
            "failures": 0,
        }
        if state is None:
            return shown
        if off is None:
            is_running = state.running_by is not None
            shown["state"] = "running" if is_running else "failed" if state.error is not None else "waiting"
            shown["next_run"] = None if is_running else _instant(state.next_at)
        return shown | {
            "last_run": _instant(state.ended_at),
            "last_good_run": _instant(state.ok_at),
            "last_error": state.error,
            "runs": state.runs,
            "failures": state.failures,
        }


def _instant(micros: int | None) -> str | None:
    return _shown(micros / 1_000_000) if micros is not None else None


def _shown(instant: float) -> str:
    return datetime.fromtimestamp(instant, UTC).isoformat(timespec="seconds")
