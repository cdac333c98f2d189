"""`faults`: a fault-injecting provider on the test's own loop; `first` and `second`: a file's two."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.faults.provider import FaultProvider, fault_provider


@pytest.fixture
async def faults(anyio_backend: str) -> AsyncIterator[FaultProvider]:
    async with fault_provider() as provider:
        yield provider


@pytest.fixture(scope="module")
async def pair(anyio_backend: str) -> AsyncIterator[tuple[FaultProvider, FaultProvider]]:
    async with fault_provider() as first, fault_provider() as second:
        yield first, second


@pytest.fixture
def first(pair: tuple[FaultProvider, FaultProvider]) -> FaultProvider:
    pair[0].reset()
    return pair[0]


@pytest.fixture
def second(pair: tuple[FaultProvider, FaultProvider]) -> FaultProvider:
    pair[1].reset()
    return pair[1]
