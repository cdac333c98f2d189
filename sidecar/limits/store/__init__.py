"""Limit stores by URI scheme: `memory://`, `redis://`, `rediss://`, `unix://`."""

from __future__ import annotations

import time
from collections.abc import Callable

from sidecar.limits.store.base import LimitStore, StoreDownError
from sidecar.limits.store.memory import MemoryStore

__all__ = ["LimitStore", "MemoryStore", "StoreDownError", "open_store"]


def open_store(uri: str, *, clock: Callable[[], float] = time.time, deadline_s: float = 0.5) -> LimitStore:
    """Raises ValueError for an unknown scheme. `deadline_s` bounds every call of a store on the network."""
    scheme = uri.partition(":")[0]
    if scheme == "memory":
        return MemoryStore(clock)
    if scheme in ("redis", "rediss", "unix"):
        from sidecar.limits.store.redis import RedisStore

        return RedisStore(uri, deadline_s=deadline_s)
    raise ValueError(f"no limit store for '{scheme}://': use memory://, redis:// or rediss://")
