"""A writer that is cut off amid its transaction keeps the others waiting for seconds, not for minutes or hours."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from sidecar.errors import UnavailableError
from tests.identity.making import opened
from tests.servers.relay import relayed

pytestmark = pytest.mark.anyio


async def test_a_writer_that_is_cut_off_does_not_keep_the_lock(postgres_url: str) -> None:
    async with opened(postgres_url) as here, relayed(postgres_url) as (relay, url):
        async with here.database.engine.begin() as connection:  # by the operator, or as behind a pooler
            name = (await connection.exec_driver_sql("SELECT current_database()")).scalar()
            await connection.exec_driver_sql(f"ALTER DATABASE {name} SET idle_in_transaction_session_timeout = '1h'")
        async with opened(url, migrated=False) as far:

            async def cut_off() -> None:
                with contextlib.suppress(UnavailableError):
                    async with far.store.write():
                        relay.freeze()
                        await asyncio.sleep(3600)

            writing = asyncio.ensure_future(cut_off())
            await relay.stands_still.wait()
            async with asyncio.timeout(45):
                await here.add("team", "t")
            relay.thaw()
            writing.cancel()
            await asyncio.wait({writing})
