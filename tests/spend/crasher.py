"""A process that records spend until it is killed: `… -m tests.spend.crasher JOURNAL DATABASE_URL NAME DURABILITY`.

Prints a line for everything that was promised to it: `I <exchange_id>` when an intent returned, `R <exchange_id>` when
a record did. Now and then it leaves an intent open.
"""

from __future__ import annotations

import asyncio
import os
import sys
import uuid

from sidecar.db import Database
from sidecar.spend.journal import Journal
from sidecar.spend.ledger import Ledger
from sidecar.spend.recorder import Recorder
from tests.spend.rows import held, row


def say(letter: str, exchange_id: str) -> None:
    os.write(1, f"{letter} {exchange_id}\n".encode())


async def main() -> None:
    folder, url, name, durability = sys.argv[1:]
    journal = Journal(folder, durability=durability, max_segment_bytes=50_000)  # type: ignore[arg-type]
    recorder = Recorder(journal, Ledger(Database(url)), interval_s=0.02, adopt_s=0.05)
    await recorder.start()

    async def client(number: int) -> None:
        count = 0
        while True:
            count += 1
            exchange_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{name}/{number}/{count}"))
            record = row(count % 1000, exchange_id=exchange_id, key_hash=name)
            await recorder.intent(held(record, 5_000))
            say("I", exchange_id)
            await asyncio.sleep(0.001)
            if count % 10:
                await recorder.record(record)
                say("R", exchange_id)

    await asyncio.gather(*(client(number) for number in range(16)))


asyncio.run(main())
