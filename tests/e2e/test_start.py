"""A gateway whose database stands still while it starts: it gives up, and starts once the database is back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sidecar import app
from sidecar.app import build_app
from sidecar.config.load import load_config
from sidecar.db import Database
from sidecar.errors import UnavailableError
from tests.promises.support import config_file
from tests.servers.relay import relayed

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("pieces", [9, 30, 45])
async def test_a_database_that_stands_still_at_the_start_is_asked_anew(
    pieces: int, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to what it was asked may never come: the machine it came from is gone, and no word of that either."""
    database = Database(postgres_url)
    await database.migrate()
    await database.aclose()
    monkeypatch.setattr(app, "OPEN_S", 1.0)
    # asyncpg tells the loop of a connection that is lost after its opening was cancelled.
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    async with relayed(postgres_url) as (relay, url):
        top = {"store": {"database_url": url}}
        gateway = build_app(load_config(config_file(tmp_path, "http://127.0.0.1:1", top=top), {}), migrate=True, env={})
        relay.freeze_after(pieces)
        async with asyncio.timeout(60):
            with pytest.raises(TimeoutError):
                await gateway.start()
        relay.thaw()
        monkeypatch.setattr(app, "OPEN_S", 60.0)
        async with asyncio.timeout(120):
            while True:
                try:
                    await gateway.start()
                    break
                except UnavailableError:  # a second's pause after one that failed
                    await asyncio.sleep(0.2)
        await gateway.aclose()
