"""Closing the database while somebody who was cancelled still gives a connection back."""

from __future__ import annotations

import asyncio
import gc
import threading
from pathlib import Path

import pytest

from sidecar.db import Database
from sidecar.identity.deadline import Deadline
from tests.servers.relay import relayed

pytestmark = pytest.mark.anyio


def alive() -> int:
    return sum(thread.name.endswith("(_connection_worker_thread)") for thread in threading.enumerate())


async def test_a_connection_lent_to_whoever_was_cancelled_is_closed_too(tmp_path: Path) -> None:
    before = alive()
    for number in range(20):
        database = Database(f"sqlite:///{tmp_path}/{number}.db")
        began = asyncio.Event()

        async def reads(database: Database = database, began: asyncio.Event = began) -> None:
            async with database.engine.connect() as connection:
                began.set()
                while True:
                    await connection.exec_driver_sql("SELECT 1")

        caller = asyncio.create_task(Deadline(60).run(reads()))
        await began.wait()
        await asyncio.sleep(0.001 * number)
        caller.cancel()
        await asyncio.wait({caller})  # the reading itself is left to clean up
        await database.aclose()
    gc.collect()
    for _ in range(6000):
        if alive() <= before:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{alive() - before} connections were left open")


async def test_a_server_that_stands_still_does_not_hold_up_the_end(postgres_url: str) -> None:
    async with relayed(postgres_url) as (relay, url):
        database = Database(url)
        await database.connect()
        relay.freeze()
        async with asyncio.timeout(60):
            await database.aclose()
