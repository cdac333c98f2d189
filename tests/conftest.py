"""Fixtures every test may use: real servers from wheels and the fault provider. asyncio only, as in production."""

from itertools import groupby

import pytest

pytest_plugins = ["tests.servers.redis", "tests.servers.postgres", "tests.faults.plugin"]

LONG = ("tests/promises/", "tests/jobs/", "tests/importing/", "tests/db/")
"""Folders whose files take long though they have few tests."""


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first, each followed by short ones: no worker is left alone with them at the end."""
    files = [list(tests) for _, tests in groupby(items, key=lambda item: item.nodeid.partition("::")[0])]
    long = [file for file in files if file[0].nodeid.startswith(LONG)]
    short = [file for file in files if not file[0].nodeid.startswith(LONG)]
    between = len(short) // (2 * len(long)) if long else 0
    ordered: list[pytest.Item] = []
    for file in long:
        ordered += file
        for other in short[:between]:
            ordered += other
        del short[:between]
    items[:] = ordered + [item for file in short for item in file]
