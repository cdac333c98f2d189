"""The stores of the contract suite, on clocks the tests set, and short ways to make claims."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from sidecar.limits.store import LimitStore, open_store
from sidecar.limits.store.memory import MemoryStore
from tests.limits.making import NOW


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "redis", "valkey"])
def store_uri(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return "memory://"
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
async def open_stores() -> AsyncIterator[Callable[..., LimitStore]]:
    """`open_stores(uri)` opens a store that is closed after the test, and is patient."""
    opened: list[LimitStore] = []

    def start(uri: str, **options: float) -> LimitStore:
        opened.append(open_store(uri, **({"deadline_s": 30.0} | options)))  # type: ignore[arg-type]
        return opened[-1]

    yield start
    for store in opened:
        await store.aclose()


@pytest.fixture
async def store(store_uri: str, open_stores: Callable[..., LimitStore], clock: Clock) -> LimitStore:
    if store_uri == "memory://":
        return MemoryStore(clock)
    return open_stores(store_uri)


@pytest.fixture
async def shared(redis_like_url: str, open_stores: Callable[..., LimitStore]) -> LimitStore:
    return open_stores(redis_like_url)
