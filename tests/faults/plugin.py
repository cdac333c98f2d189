"""The `faults` fixture: a fault-injecting provider on the test's own loop."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.faults.provider import FaultProvider, fault_provider


@pytest.fixture
async def faults(anyio_backend: str) -> AsyncIterator[FaultProvider]:
    async with fault_provider() as provider:
        yield provider
