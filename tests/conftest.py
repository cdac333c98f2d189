"""Fixtures every test may use: real servers from wheels and the fault provider. asyncio only, as in production."""

import atexit
import functools
import gc
import os
import tempfile
import time
from itertools import groupby

import pytest
import trustme
import typer.testing
from hypothesis import HealthCheck, settings

# How fast the machine is says nothing about the code. In CI each run tries the same, and fails for what changed only.
settings.register_profile(
    "tests", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("tests")

# Every client of an SDK reads the authorities it trusts, 20 ms for a system's; here all is loopback.
_, os.environ["SSL_CERT_FILE"] = tempfile.mkstemp(prefix="sidecar-authority-", suffix=".pem")
trustme.CA().cert_pem.write_to_path(os.environ["SSL_CERT_FILE"])
atexit.register(os.unlink, os.environ["SSL_CERT_FILE"])

pytest_plugins = ["tests.servers.redis", "tests.servers.postgres", "tests.faults.plugin"]

LONG = (
    "tests/promises/", "tests/jobs/", "tests/importing/", "tests/db/", "tests/spend/", "tests/e2e/", "tests/helm/",
    "tests/routing/test_simulation.py", "tests/routing/test_waiting.py", "tests/routing/test_hedged_route.py",
    "tests/upstream/test_flow.py", "tests/identity/test_memory.py", "tests/translate/test_fuzz.py",
    "tests/translate/test_linear.py", "tests/translate/test_conformance.py", "tests/translate/test_properties.py",
    "tests/admin/test_openapi.py", "tests/docs/test_readme.py",
)  # fmt: skip
"""Folders and files that take long for the number of their tests."""


gc.disable()  # until all tests are collected: nothing of that is garbage, and looking for it takes a third of the time


def pytest_collection_finish(session: pytest.Session) -> None:
    """Twenty thousand tests stay as they are: the collector, which tests call, need not look at them again."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_runtest_setup() -> None:
    """Budgets have windows by the hour, day and month: no test begins where one ends, and counts in two."""
    left_s = 3600 - time.time() % 3600
    if left_s < 10:
        time.sleep(left_s + 0.1)


# Made once, not for every command a test types: that was most of its CPU.
typer.testing._get_command = functools.cache(typer.testing._get_command)  # type: ignore[attr-defined]


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
