import pytest


@pytest.fixture
def anyio_backend() -> str:
    """One loop is enough here; the contract suite above runs over all transports."""
    return "asyncio"
