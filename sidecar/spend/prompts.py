"""What was asked and answered, kept only if the operator turned it on (`spend.store_prompts`): a table of its own, by
exchange, with a retention of its own.

`middleware/prompts.py` offers texts, the management API shows one at a time, `retention` drops old ones. Rules: nothing
of it is in the ledger, in a sink or in a log; a request never waits for it, and what does not fit into the queue is
dropped and counted; each text is cut at a bound, and says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from sidecar.errors import UnavailableError
from sidecar.spend.ledger import stored_text
from sidecar.spend.rows import micros
from sidecar.spend.writing import translated

if TYPE_CHECKING:
    from sidecar.db import Database

QUEUE = 1000
QUEUE_BYTES = 32 * 1024 * 1024
BATCH = 100
EVERY_S = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prompt:
    """The client's request and the answer as the client got it, streamed or not; `*_cut`: there was more."""

    exchange_id: str
    at: float
    key_hash: str
    request: str
    answer: str
    request_cut: bool = False
    answer_cut: bool = False


def prompt_of(exchange_id: str, at: float, key_hash: str, request: bytes, answer: bytes, max_bytes: int) -> Prompt:
    """`answer` may be longer than the bound by its last piece."""
    return Prompt(
        exchange_id,
        at,
        key_hash,
        _text(request[:max_bytes]),
        _text(answer[:max_bytes]),
        len(request) > max_bytes,
        len(answer) > max_bytes,
    )


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace").replace("\0", "\ufffd")


class Prompts:
    """A bounded queue in front of the table, written by a task that begins with the first text."""

    def __init__(self, database: Database, *, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.dropped = 0
        self._database = database
        self._waiting: deque[Prompt] = deque()
        self._bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    def offer(self, prompt: Prompt) -> None:
        size = len(prompt.request) + len(prompt.answer)
        if len(self._waiting) >= QUEUE or self._bytes + size > QUEUE_BYTES:
            self.dropped += 1
            if self.dropped in (1, 100) or self.dropped % 10_000 == 0:
                _log.warning("%d prompts were not stored: the database does not keep up", self.dropped)
            return
        self._waiting.append(prompt)
        self._bytes += size
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def flush(self) -> None:
        """Writes what waits. Raises `UnavailableError`; then it waits on."""
        while self._waiting:
            batch = [self._waiting[number] for number in range(min(BATCH, len(self._waiting)))]
            await insert(self._database, batch)
            for prompt in batch:
                self._waiting.popleft()
                self._bytes -= len(prompt.request) + len(prompt.answer)

    async def _run(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._stopping.wait()
            try:
                await self.flush()
            except UnavailableError:
                continue
            except Exception:  # noqa: BLE001 - the task must live
                _log.exception("prompts were not stored")
                self.dropped += len(self._waiting)
                self._waiting.clear()
                self._bytes = 0

    async def aclose(self) -> None:
        self._stopping.set()
        if self._task is not None:
            done, _ = await asyncio.wait({self._task}, timeout=5.0)
            if not done:
                self._task.cancel()
                await asyncio.wait({self._task}, timeout=1.0)


async def insert(database: Database, prompts: Sequence[Prompt]) -> None:
    """One that is there already stays. Raises `UnavailableError`."""
    import sqlalchemy as sa

    from sidecar.db.schema import prompts as table

    names = ", ".join(column.name for column in table.columns)
    values = ", ".join(f":{column.name}" for column in table.columns)
    query = sa.text(f"INSERT INTO prompts ({names}) VALUES ({values}) ON CONFLICT DO NOTHING")  # noqa: S608 - ours
    rows = [asdict(prompt) | {"at": micros(prompt.at)} for prompt in prompts]
    async with translated():
        with database.breaker.watch():
            async with database.engine.begin() as connection:
                await connection.execute(query, rows)


async def find(database: Database, exchange_id: str) -> Prompt | None:
    """Raises `UnavailableError`."""
    import sqlalchemy as sa

    from sidecar.db.schema import prompts as table

    async with translated():
        with database.breaker.watch():
            async with database.engine.connect() as connection:
                query = sa.select(table).where(table.c.exchange_id == stored_text(exchange_id))
                found = await connection.execute(query)
                row = found.mappings().first()
    return None if row is None else Prompt(**{**row, "at": row["at"] / 1_000_000})
