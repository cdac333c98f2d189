"""Fixtures every test may use: real servers from wheels and the fault provider. asyncio only, as in production."""

import pytest

pytest_plugins = ["tests.servers.redis", "tests.servers.postgres", "tests.faults.plugin"]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
