"""One fault provider and one gateway per file: starting a gateway migrates a database, which costs more than a test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.faults.provider import FaultProvider, fault_provider
from tests.promises.sizes import ended, lines
from tests.promises.support import Running, served


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    ended(report)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in lines:
        terminalreporter.write_line(line)


@pytest.fixture(scope="module")
async def provider_of_file(anyio_backend: str) -> AsyncIterator[FaultProvider]:
    async with fault_provider() as provider:
        yield provider


@pytest.fixture(scope="module")
async def gateway_of_file(
    provider_of_file: FaultProvider, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    async with served(tmp_path_factory.mktemp("gateway"), provider_of_file.base_url) as running:
        yield running


@pytest.fixture
def faults(provider_of_file: FaultProvider) -> FaultProvider:
    """The file's provider with an empty script and log."""
    provider_of_file.reset()
    return provider_of_file


@pytest.fixture
def gateway(gateway_of_file: Running) -> Running:
    return gateway_of_file
