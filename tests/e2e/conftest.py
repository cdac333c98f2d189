"""The gateway as `sidecar serve` and mounted in an app, one of each per file, in front of the fault provider; for files
that ask for it, in-process too.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from sidecar import InProcess, build_app
from sidecar.config import load_config
from tests.faults.provider import FaultProvider, fault_provider
from tests.promises.support import Running, config_file, process, served


@pytest.fixture(scope="module")
async def provider_of_file(anyio_backend: str) -> AsyncIterator[FaultProvider]:
    async with fault_provider() as provider:
        yield provider


IN_PROCESS = "http://in-process"


@contextlib.asynccontextmanager
async def running_as(kind: str, folder: Path, provider_url: str) -> AsyncIterator[Running]:
    if kind == "serve":
        async with process(folder, provider_url) as running:
            yield running
    elif kind == "mounted":
        mounted = served(
            folder, provider_url, mount=lambda gateway: Starlette(routes=[Mount("/llm", app=gateway)]), prefix="/llm"
        )
        async with mounted as running:
            yield running
    else:
        gateway = build_app(load_config(config_file(folder, provider_url), {}), migrate=True, env={})
        async with httpx2.AsyncClient(transport=InProcess(gateway), timeout=30) as http:
            try:
                yield Running(IN_PROCESS, http, gateway, folder=folder)
            finally:
                await gateway.aclose()


@pytest.fixture(scope="module", params=["serve", "mounted"])
async def gateway_of_file(
    request: pytest.FixtureRequest, provider_of_file: FaultProvider, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    async with running_as(request.param, tmp_path_factory.mktemp("gateway"), provider_of_file.base_url) as running:
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
