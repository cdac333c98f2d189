"""*Revocation within a second* on every worker and replica, with streams in flight; nothing writes an old key back.

Replicas of `sidecar serve` (one of them with two workers) share a database, with and without Redis. Clients never stop
calling with a key while it is blocked, deleted, or loses its team or user. Measured and printed: from the answer to
whoever revoked until the start of the last call any process still admitted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from sidecar.identity.keys import hash_key, new_key
from sidecar.identity.row import member_id
from tests.faults.provider import Fault, FaultProvider
from tests.identity.making import Tree, opened
from tests.promises.sizes import measured, size
from tests.promises.support import MASTER, Running, body, eventually, is_busy, process

pytestmark = pytest.mark.anyio
BOUND_S = 60.0
"""What fails a test: machines stand still for seconds. The promise is a second; the figure printed is what was
measured. No process finds out by itself in that time: `auth.key_cache_s` is an hour here."""
AFTER_S = size("PROMISE_8_SECONDS", 1, full=5)
"""How long clients go on after the last call that was admitted: an old key that comes back would be seen."""


@dataclass
class Call:
    replica: int
    connection: int
    began_at: float
    ended_at: float
    status: int
    code: str | None


@dataclass
class Replicas:
    running: list[Running]
    tree: Tree
    faults: FaultProvider

    async def key(self, **values: object) -> str:
        token = new_key(os.urandom)
        await self.tree.key(token, **values)
        return token

    async def stream(self, running: Running, key: str) -> str:
        while is_busy(answer := await running.chat(key, body(stream=True), timeout=240)):
            await asyncio.sleep(0.5)
        assert answer.status_code == 200, answer.text
        return answer.text


@contextlib.asynccontextmanager
async def replicas_on(
    folder: Path, database_url: str, faults: FaultProvider, redis_url: str | None, workers: tuple[int, ...]
) -> AsyncIterator[Replicas]:
    store: dict[str, Any] = {"database_url": database_url}
    if redis_url is not None:
        store["redis_url"] = redis_url
    async with contextlib.AsyncExitStack() as stack:
        tree = await stack.enter_async_context(opened(database_url))
        starting = []
        for number, count in enumerate(workers):
            own = folder / str(number)
            own.mkdir()
            auth = {"master_key": MASTER, "key_cache_s": 3600}
            top = {"store": store, "server": {"workers": count}, "auth": auth}
            starting.append(stack.enter_async_context(process(own, faults.base_url, top=top)))
        running = list(await asyncio.gather(*starting))
        for one, count in zip(running, workers, strict=True):
            # Several workers: the address is printed before they listen.
            await eventually(lambda: started(one) == count, 240, lambda: f"{count} workers")  # noqa: B023
            assert len(workers_of(one)) == count
        yield Replicas(running, tree, faults)


def started(running: Running) -> int:
    assert running.output is not None
    return running.output.read_text(errors="replace").count("Application startup complete")


class Clients:
    """Connections to every process, each calling with the same key again and again, until told to stop."""

    def __init__(self, replicas: Replicas, key: str) -> None:
        self.calls: list[Call] = []
        self.is_over = False
        self._replicas = replicas
        self._key = key
        self._loops: list[asyncio.Future[None]] = []

    async def start(self) -> None:
        """Three per replica, and more until each of its workers has one: the kernel deals them out."""
        for number, running in enumerate(self._replicas.running):
            for connection in range(40):
                if connection >= 3 and all(accepted(worker, running) for worker in workers_of(running)):
                    break
                self._loops.append(asyncio.ensure_future(self._go_on(number, running, connection)))
                wanted = len(self._loops)
                await eventually(lambda: self._let_in() >= wanted, name=lambda: f"call {wanted} let in")  # noqa: B023
            else:
                raise AssertionError("a worker got none of 40 connections")

    def _let_in(self) -> int:
        assert all(call.status == 200 for call in self.calls), self.calls[-1]
        return len(self.connected())

    def connected(self) -> set[tuple[int, int]]:
        return {(c.replica, c.connection) for c in self.calls}

    def refused(self) -> set[tuple[int, int]]:
        return {(c.replica, c.connection) for c in self.calls if c.status != 200}

    async def _go_on(self, replica: int, running: Running, connection: int) -> None:
        headers = {"authorization": f"Bearer {self._key}"}
        async with httpx2.AsyncClient(timeout=240, trust_env=False, verify=False) as http:
            while not self.is_over:
                began_at = time.monotonic()
                answer = await http.post(f"{running.url}/v1/chat/completions", headers=headers, json=body())
                if is_busy(answer):
                    continue
                code = None if answer.status_code == 200 else answer.json()["error"]["code"]
                ended_at = time.monotonic()
                self.calls.append(Call(replica, connection, began_at, ended_at, answer.status_code, code))
                await asyncio.sleep(0.04)

    async def stop(self) -> list[Call]:
        self.is_over = True
        await asyncio.gather(*self._loops)
        return self.calls

    def last_admitted(self) -> float:
        return max((call.began_at for call in self.calls if call.status == 200), default=0.0)


def workers_of(running: Running) -> list[psutil.Process]:
    assert running.process is not None
    parent = psutil.Process(running.process.pid)
    return [child for child in parent.children() if "multiprocessing.spawn" in " ".join(child.cmdline())] or [parent]


def accepted(worker: psutil.Process, running: Running) -> bool:
    return any(c.laddr.port == running.address[1] and c.status == "ESTABLISHED" for c in worker.net_connections())


Revoke = Callable[[Replicas, str], Awaitable[None]]


async def block(replicas: Replicas, key: str) -> None:
    await replicas.running[0].admin("/key/block", {"key": key})


async def delete(replicas: Replicas, key: str) -> None:
    await replicas.running[0].admin("/key/delete", {"keys": [key]})


async def block_team(replicas: Replicas, key: str) -> None:
    await replicas.tree.change("team", f"t-{hash_key(key)[:8]}", blocked=True)


async def block_member(replicas: Replicas, key: str) -> None:
    name = hash_key(key)[:8]
    await replicas.tree.change("member", member_id(f"t-{name}", f"u-{name}"), blocked=True)


async def block_organization(replicas: Replicas, key: str) -> None:
    await replicas.tree.change("organization", f"o-{hash_key(key)[:8]}", blocked=True)


async def delete_user(replicas: Replicas, key: str) -> None:
    """With the keys that are only theirs, as the management API does."""
    from sidecar.identity.tree import Tree as Deleting

    deleting = Deleting(replicas.tree.keys, replicas.tree.principals)
    gone = await deleting.delete("user", [f"u-{hash_key(key)[:8]}"], by="test", param="user_ids")
    assert [row.key_hash for row in gone.keys] == [hash_key(key)]


WAYS: dict[str, tuple[Revoke, int, str]] = {
    "key blocked": (block, 401, "key_blocked"),
    "key deleted": (delete, 401, "invalid_api_key"),
    "team blocked": (block_team, 403, "team_blocked"),
    "member blocked": (block_member, 403, "member_blocked"),
    "organization blocked": (block_organization, 403, "organization_blocked"),
    "user deleted": (delete_user, 401, "invalid_api_key"),
}


async def grown_key(replicas: Replicas) -> str:
    """A key with everybody above it."""
    token = new_key(os.urandom)
    name = hash_key(token)[:8]
    tree = replicas.tree
    await tree.add("organization", f"o-{name}")
    await tree.add("team", f"t-{name}", organization_id=f"o-{name}")
    await tree.add("user", f"u-{name}")
    await tree.member(f"t-{name}", f"u-{name}")
    await tree.key(token, team_id=f"t-{name}", user_id=f"u-{name}")
    return token


async def revoked(replicas: Replicas, way: str) -> float:
    """Seconds until the last process knew."""
    revoke, status, code = WAYS[way]
    key = await grown_key(replicas)
    faults = replicas.faults
    # Streams first: their answers are the next the provider gives, and go on until it is told to end them.
    faults.script(*[Fault("held", drip_s=0.1)] * len(replicas.running))
    streams = [asyncio.ensure_future(replicas.stream(running, key)) for running in replicas.running]

    def are_flowing() -> bool:
        for stream in streams:
            if stream.done():
                stream.result()
        return sum(seen.fault.kind == "held" and seen.events_sent > 3 for seen in faults.requests) == len(streams)

    await eventually(are_flowing, name=lambda: f"{way}: streams, there are {len(faults.requests)}")
    clients = Clients(replicas, key)
    await clients.start()
    assert not any(stream.done() for stream in streams)
    await revoke(replicas, key)
    revoked_at = time.monotonic()
    # A connection belongs to one process: each was refused, and nobody was let in for a while.
    await eventually(
        lambda: clients.refused() == clients.connected(), BOUND_S, lambda: f"{way}: {clients.refused()} refused"
    )
    await eventually(lambda: time.monotonic() > max(clients.last_admitted(), revoked_at) + AFTER_S, BOUND_S + AFTER_S)
    calls = await clients.stop()
    # What had begun is answered to its end; nothing is cut.
    assert not any(stream.done() for stream in streams)
    faults.release()
    for stream in await asyncio.gather(*streams):
        assert stream.endswith("data: [DONE]\n\n")
        assert '"finish_reason":"stop"' in stream.replace(" ", "")
    refused = [call for call in calls if call.status != 200]
    assert {(call.status, call.code) for call in refused} == {(status, code)}
    # Once a process knows, it never forgets again.
    for replica, connection in {(c.replica, c.connection) for c in calls}:
        ordered = [c.status for c in calls if (c.replica, c.connection) == (replica, connection)]
        first = ordered.index(status)
        assert 200 not in ordered[first:], (way, replica, connection)
    # A stream that ended after the revocation wrote nothing back either.
    for running in replicas.running:
        while is_busy(answer := await running.chat(key, body())):
            await asyncio.sleep(0.5)
        assert answer.status_code == status
    latency = max(0.0, clients.last_admitted() - revoked_at)
    assert latency < BOUND_S, way
    faults.reset()
    return latency


async def all_ways(replicas: Replicas, where: str) -> None:
    found = {way: await revoked(replicas, way) for way in WAYS}
    measured(8, f"{where}: at most {max(found.values()) * 1000:.0f} ms, {max(found, key=lambda way: found[way])}")


async def test_revocation_over_replicas_on_sqlite(tmp_path: Path, faults: FaultProvider) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    async with replicas_on(tmp_path, url, faults, None, (1, 2)) as replicas:
        await all_ways(replicas, "SQLite, 2 replicas, 3 processes")


async def test_revocation_over_replicas_on_postgresql(tmp_path: Path, faults: FaultProvider, postgres_url: str) -> None:
    async with replicas_on(tmp_path, postgres_url, faults, None, (1, 1, 2)) as replicas:
        await all_ways(replicas, "PostgreSQL, 3 replicas, 4 processes")


async def test_revocation_over_replicas_that_share_rows_in_redis(
    tmp_path: Path, faults: FaultProvider, postgres_url: str, redis_url: str
) -> None:
    async with replicas_on(tmp_path, postgres_url, faults, redis_url, (1, 1, 1)) as replicas:
        await all_ways(replicas, "PostgreSQL and Redis, 3 replicas")
