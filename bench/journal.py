"""`python -m bench.journal [--json]`: CPU of this process that the journal costs a request, an intent and a record.

Many requests at a time, on the loop that serves. Short slices and their medians: a neighbour on the machine spoils a
few of them. Between them the same machine's speed, twice: a turn of a plain Python loop, and the bare `os.write` of as
many bytes, which is in the journal's figure. Instructions are Python's, in the gateway's own code; they are the same
on every machine.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from bench.ledger import records
from bench.steps import Steps
from sidecar.spend.journal import Journal
from sidecar.types import SpendRecord

SLICES, REQUESTS, BURST = 25, 2000, 50
LOOP_TURNS = 50_000


async def requests(folder: Path, made: list[SpendRecord], steps: Steps | None = None) -> tuple[float, bytes]:
    """CPU seconds of these requests' two lines, `BURST` requests under way at a time; and what was written."""
    journal = Journal(folder)
    await journal.intent(made[0])

    async def client(own: list[SpendRecord]) -> None:
        for record in own:
            await journal.intent(record)
            await journal.record(record)

    clients = [client(made[number::BURST]) for number in range(BURST)]
    if steps is not None:
        with steps:
            await asyncio.gather(*clients)
    started = time.process_time()
    if steps is None:
        await asyncio.gather(*clients)
    spent = time.process_time() - started
    data = _read(folder)
    await journal.aclose()
    return spent, data


def _read(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.glob("*.seg"))


def python_loop() -> float:
    """CPU seconds of a turn of the plainest loop."""
    total, started = 0, time.process_time()
    for number in range(LOOP_TURNS):
        total += number
    return (time.process_time() - started) / LOOP_TURNS


def bare_writes(path: Path, data: bytes) -> float:
    """CPU seconds of writing `data` in as many pieces as the journal does."""
    size = len(data) * BURST // (2 * REQUESTS)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    started = time.process_time()
    for piece in pieces:
        os.write(descriptor, piece)
    spent = time.process_time() - started
    os.close(descriptor)
    path.unlink()
    return spent


def measure(folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    made = list(records(REQUESTS, 1))
    journals, loops, writes = [], [], []
    gc.collect()
    gc.freeze()  # as `sidecar serve` does
    gc.set_threshold(50_000, 20, 100)
    for number in range(SLICES):
        loops.append(python_loop() * 1e9)
        spent, data = uvloop.run(requests(folder / str(number), made))
        journals.append(spent * 1e6 / REQUESTS)
        writes.append(bare_writes(folder / "bare", data) * 1e6 / REQUESTS)
    steps = Steps()
    uvloop.run(requests(folder / "steps", made, steps))
    own = [(code, count) for code, count in steps.instructions.items() if "sidecar" in Path(code.co_filename).parts]
    return {
        "journal_us_per_request": round(median(journals), 1),
        "journal_us_best_slice": round(min(journals), 1),
        "of_it_bare_os_write_us": round(median(writes), 2),
        "journal_bytes_per_request": round(len(data) / REQUESTS),
        "journal_instructions_per_request": round(sum(count for _, count in own) / REQUESTS),
        "python_loop_turn_ns": round(median(loops), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.journal")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as name:
        result = measure(Path(name))
    if arguments.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key:34} {value}")


if __name__ == "__main__":
    main()
