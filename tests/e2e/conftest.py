"""The gateway as `sidecar serve` and mounted in an app, one of each per file, in front of the fault provider."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.faults.provider import FaultProvider, fault_provider
from tests.promises.support import Running, process, served


@pytest.fixture(scope="module")
async def provider_of_file(anyio_backend: str) -> AsyncIterator[FaultProvider]:
    async with fault_provider() as provider:
        yield provider


@pytest.fixture(scope="module", params=["serve", "mounted"])
async def gateway_of_file(
    request: pytest.FixtureRequest, provider_of_file: FaultProvider, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("gateway")
    if request.param == "serve":
        async with process(folder, provider_of_file.base_url) as running:
            yield running
    else:
        async with served(
            folder,
            provider_of_file.base_url,
            mount=lambda gateway: Starlette(routes=[Mount("/llm", app=gateway)]),
            prefix="/llm",
        ) as running:
            yield running


@pytest.fixture
def faults(provider_of_file: FaultProvider) -> FaultProvider:
    """The file's provider with an empty script and log."""
    provider_of_file.reset()
    return provider_of_file


@pytest.fixture
def gateway(gateway_of_file: Running, caplog: pytest.LogCaptureFixture) -> Iterator[Running]:
    """The gateway; after the test its log holds no stack trace of it."""
    caplog.set_level(logging.INFO)
    output = gateway_of_file.output
    before = output.stat().st_size if output is not None else 0
    yield gateway_of_file
    text = output.read_bytes()[before:].decode(errors="replace") if output is not None else caplog.text
    assert "Traceback" not in text, text
    assert "Exception" not in text, text
