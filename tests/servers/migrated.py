"""Databases that have the schema already: copies of one that is migrated once a run, for folders whose tests are about
what stands in it. A folder's conftest imports these over the empty ones; partitions are each test's own."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sidecar.db import Database
from tests.servers.postgres import fresh_database
from tests.servers.postgres import postgres_url as bare_postgres_url

__all__ = ["bare_postgres_url", "database_url", "migrated_name", "migrated_sqlite", "postgres_url"]


_one_at_a_time = threading.Lock()  # Alembic keeps what it works on in globals
_content: list[bytes] = []


def _migrate(url: str) -> None:
    async def run() -> None:
        database = Database(url)
        await (database._migrate_sqlite() if database.dialect == "sqlite" else database._migrate_postgresql())
        await database.aclose()

    with ThreadPoolExecutor(1) as pool:  # the test's event loop stays as it is
        pool.submit(asyncio.run, run()).result()


def migrated_sqlite() -> bytes:
    """The content of the file."""
    with _one_at_a_time:
        if not _content:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "sidecar.db"
                _migrate(f"sqlite:///{file}")
                assert [one.name for one in Path(folder).iterdir()] == [file.name], "all of it is in the file"
                _content.append(file.read_bytes())
        return _content[0]


@pytest.fixture(scope="session")
def migrated_name(postgres_server: str) -> Iterator[str]:
    with fresh_database(postgres_server) as url:
        _migrate(url)
        yield url.rpartition("/")[2]


@pytest.fixture
def postgres_url(postgres_server: str, migrated_name: str) -> Iterator[str]:
    with fresh_database(postgres_server, migrated_name) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        url: str = request.getfixturevalue("postgres_url")
        return url
    (tmp_path / "test.db").write_bytes(migrated_sqlite())
    return f"sqlite:///{tmp_path}/test.db"
