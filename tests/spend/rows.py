"""Spend records for tests, and a ledger in memory that a test can break."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sidecar.errors import UnavailableError
from sidecar.spend.rows import Row, record_of
from sidecar.types import SpendRecord, Usage

AT = 1_800_000_000.0


def exchange_id(number: int, at: float = AT) -> str:
    """A UUIDv7 of that millisecond."""
    digits = f"{int(at * 1000) + number:012x}"
    return f"{digits[:8]}-{digits[8:]}-7000-8000-{number:012x}"


def row(number: int = 0, **fields: Any) -> SpendRecord:
    """A settled row costing `number` + 1 nano-dollars."""
    made = SpendRecord(
        exchange_id=exchange_id(number),
        attempt=1,
        revision=0,
        at=AT + number / 1000,
        key_hash="k" * 64,
        status="settled",
        outcome="ok",
        cost_nano=number + 1,
        group="gpt",
        deployment_id="d1",
        provider="openai",
        model="gpt-4o-mini",
        usage=Usage(input=10, output=number),
        http_status=200,
        duration_ms=5,
    )
    return replace(made, **fields)


def held(record: SpendRecord, hold_nano: int = 1_000_000) -> SpendRecord:
    """The intent of a row."""
    return replace(record, status="unknown", outcome="incomplete", cost_nano=hold_nano, usage=Usage(), http_status=0)


class MemoryLedger:
    """Rows by ledger key. `is_down` refuses, `gate` holds an insertion back."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int, int], SpendRecord] = {}
        self.is_down = False
        self.batches: list[int] = []
        self.gate: asyncio.Event | None = None

    async def insert_rows(self, rows: Sequence[Row]) -> list[Row]:
        if self.gate is not None:
            await self.gate.wait()
        if self.is_down:
            raise UnavailableError("down")
        self.batches.append(len(rows))
        for record in map(record_of, rows):
            self.rows.setdefault((record.exchange_id, record.attempt, record.revision), record)
        return []

    async def rows_of(self, exchange_id: str) -> list[SpendRecord]:
        if self.is_down:
            raise UnavailableError("down")
        return sorted(
            (r for r in self.rows.values() if r.exchange_id == exchange_id), key=lambda r: (r.attempt, r.revision)
        )

    async def costs_of(self, exchange_ids: Sequence[str]) -> dict[str, int]:
        found = {name: [row for row in await self.rows_of(name) if row.attempt] for name in exchange_ids}
        return {name: sum(row.cost_nano for row in rows) for name, rows in found.items() if rows}

    async def maintain(self) -> None:
        if self.is_down:
            raise UnavailableError("down")

    @property
    def records(self) -> list[SpendRecord]:
        return sorted(self.rows.values(), key=lambda r: (r.exchange_id, r.attempt, r.revision))
