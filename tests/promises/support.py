"""What the promises' tests share: the whole gateway under uvicorn, on the test's loop or as a process of its own, in
front of the fault provider in both dialects, with keys minted through its admin API.

Rule: everything is seen from outside (sockets, admin API, ledger rows); only leak counts look inside.
Clients here say `verify=False`: all is plain HTTP on loopback, and each would read the whole list of authorities first.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from sidecar.app import build_app
from sidecar.asgi import ASGIApp
from sidecar.config import load_config
from sidecar.db import migrate
from sidecar.gateway import Gateway
from sidecar.limits.admission import Admission
from sidecar.limits.store.memory import MemoryStore
from sidecar.simulated import serve
from tests.servers.migrated import migrated_sqlite

MASTER = "sk-master-of-the-promises-0123456789abcdef"
PROVIDER_KEY = "sk-provider-credential-of-the-promises"
MODELS = ("gpt", "claude")
"""Model groups of every config here: the same fault provider in OpenAI's and in Anthropic's dialect."""
DIALECTS = {"gpt": "openai", "claude": "anthropic"}


PATIENCE_S = 60.0
"""Ends what hangs; a machine that stands still for seconds, or is five times slower, needs far less."""


def config_file(
    folder: Path,
    provider_url: str,
    *,
    top: dict[str, Any] | None = None,
    deployment: dict[str, Any] | None = None,
    impatient: dict[str, Any] | None = None,
) -> Path:
    """A `sidecar.yaml` (JSON is YAML) with SQLite and journal in `folder`. `top` replaces whole top-level keys; a
    `store` is merged. `deployment` is merged into both deployments. With `impatient` there are `gpt-impatient` and
    `claude-impatient` too, which have these `timeouts`."""
    base_urls = {"gpt": f"{provider_url}/v1", "claude": provider_url}
    extra = {"price": {"input": 1, "output": 2}, "max_output_tokens": 64, **(deployment or {})}
    kinds: dict[str, dict[str, Any]] = {"": extra}
    if impatient is not None:
        kinds["-impatient"] = {**extra, "timeouts": impatient}
    config: dict[str, Any] = {
        "auth": {"master_key": MASTER},
        "routing": {"retries": 0, "cooldown_s": 0.001},
        "spend": {"flush_s": 0.05},
        "models": [
            {
                "name": name + kind,
                "deployments": [
                    {"provider": DIALECTS[name], "model": f"{name}-1", "api_key": PROVIDER_KEY,
                     "base_url": base_urls[name], **more}
                ],
            }
            for name in MODELS
            for kind, more in kinds.items()
        ],
        **(top or {}),
    }  # fmt: skip
    own_store = {
        "database_url": f"sqlite:///{folder}/sidecar.db", "journal_dir": f"{folder}/journal", "deadline_s": 30,
    }  # fmt: skip
    config["store"] = own_store | config.get("store", {})
    file = folder / "sidecar.yaml"
    file.write_text(json.dumps(config, indent=1))
    return file


def model_for(kind: str, model: str) -> str:
    """Faults that a time-out of ours ends have models of their own: a slow machine trips it nowhere else."""
    return f"{model}-impatient" if kind in ("stall", "silent") else model


def is_busy(answer: httpx2.Response) -> bool:
    """Refused because a store was too slow, though nobody made it so: to be asked again."""
    return answer.status_code == 503 and str(answer.json()["error"]["code"]).endswith("_unavailable")


def body(model: str = "gpt", *, stream: bool = False, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": stream} | more


@dataclass
class Running:
    """A gateway that serves. `url` has no `/v1`; `prefix` is where it is mounted."""

    url: str
    http: httpx2.AsyncClient
    gateway: Gateway | None = None
    process: subprocess.Popen[bytes] | None = None
    output: Path | None = None
    prefix: str = ""
    folder: Path = field(default_factory=Path)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.split("//")[1].split("/")[0].split(":")
        return host, int(port)

    async def admin(self, path: str, payload: Any = None, **query: Any) -> Any:
        headers = {"authorization": f"Bearer {MASTER}"}
        for _ in range(30):  # a busy machine may hold up the database
            if payload is None:
                answer = await self.http.get(self.url + path, headers=headers, params=query)
            else:
                answer = await self.http.post(self.url + path, headers=headers, json=payload)
            if not is_busy(answer):
                break
            await asyncio.sleep(float(answer.headers.get("retry-after", 1)))
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def mint(self, **fields: Any) -> str:
        key: str = (await self.admin("/key/generate", fields))["key"]
        return key

    async def chat(self, key: str | None, payload: Any, **more: Any) -> httpx2.Response:
        headers = {"authorization": f"Bearer {key}"} if key is not None else {}
        return await self.http.post(
            f"{self.url}/v1/chat/completions", headers=headers | more.pop("headers", {}), json=payload, **more
        )

    async def rows(
        self, key: str | None = None, *, at_least: int = 0, timeout_s: float = PATIENCE_S
    ) -> list[dict[str, Any]]:
        """Ledger rows, oldest first, once there are `at_least` so many."""
        found: list[dict[str, Any]] = []

        async def there() -> bool:
            query: dict[str, Any] = {"limit": 1000} | ({"key": key} if key else {})
            page = await self.admin("/spend/logs", **query)
            found[:] = page["data"]
            while page["next_cursor"]:
                page = await self.admin("/spend/logs", **query, cursor=page["next_cursor"])
                found.extend(page["data"])
            return len(found) >= at_least

        await eventually(there, timeout_s, lambda: f"{at_least} rows, there are {len(found)}")
        return found[::-1]

    async def spend(self, key: str) -> float:
        return float((await self.admin("/key/info", key=key))["info"]["spend"])

    async def is_free(self, key: str, timeout_s: float = PATIENCE_S, model: str = "gpt") -> None:
        """A key with `max_parallel_requests=1`, or a budget for one call, works again."""
        last: list[httpx2.Response] = []

        async def works() -> bool:
            last[:] = [await self.chat(key, body(model))]
            return last[0].status_code == 200

        await eventually(works, timeout_s, lambda: f"a free slot: {last[0].text}")

    @property
    def store(self) -> MemoryStore:
        """The in-memory limit store (same-loop gateways only)."""
        assert self.gateway is not None
        owners = [getattr(closer, "__self__", None) for closer in self.gateway._closers]
        found = next(owner for owner in owners if isinstance(owner, Admission)).store
        assert isinstance(found, MemoryStore)
        return found

    @property
    def live_exchanges(self) -> int:
        """How many exchanges still hold slots or money."""
        return len(self.store._live)

    @property
    def counted_nano(self) -> int:
        """Spent and held nano-dollars over all budget windows."""
        return sum(counter.nano for counter in self.store._counters.values())

    @property
    def taken_slots(self) -> int:
        return sum(self.store._slots.values())


_MIGRATING = threading.Lock()


def migrated(database_url: str) -> None:
    """One after the other: Alembic keeps what it works on in globals."""
    with _MIGRATING:
        asyncio.run(migrate(database_url))


async def migrated_in(folder: Path, top: dict[str, Any] | None) -> None:
    """The folder's own database, if the configuration names no other, at a fraction of what a migration costs."""
    file = folder / "sidecar.db"
    if "database_url" in (top or {}).get("store", {}) or file.exists():
        return
    file.write_bytes(await asyncio.to_thread(migrated_sqlite))


async def eventually(
    what: Callable[[], Any], timeout_s: float = PATIENCE_S, name: Callable[[], str] = lambda: "the condition"
) -> None:
    """Poll until `what()` (maybe awaitable) is true."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout_s
    pause_s = 0.005
    while True:
        result = what()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return
        assert loop.time() < end, f"waited {timeout_s} s for {name()}"
        await asyncio.sleep(pause_s)
        pause_s = min(1.25 * pause_s, 0.1)


async def at_best(bound_s: float, once: Callable[[], Awaitable[float]], *tried: float, tries: int = 5) -> float:
    """The least of the seconds `once` gives, which are to be within the bound; it is asked again until they are. A
    machine that stands still makes any of them late, what is wrong with the gateway all. `tried`: what was found so
    far."""
    took = list(tried)
    while min(took, default=bound_s + 1) > bound_s:
        assert len(took) < tries, f"each time later than {bound_s} s: {took}"
        took.append(await once())
    return min(took)


@contextlib.asynccontextmanager
async def served(
    folder: Path,
    provider_url: str,
    *,
    mount: Callable[[Gateway], ASGIApp] | None = None,
    prefix: str = "",
    **config: Any,
) -> AsyncIterator[Running]:
    """The gateway under uvicorn on the test's own loop. `mount` wraps it (a host app); then `prefix` is where."""
    await migrated_in(folder, config.get("top"))
    gateway = build_app(load_config(config_file(folder, provider_url, **config), {}), migrate=True, env={})
    async with httpx2.AsyncClient(timeout=PATIENCE_S, trust_env=False, verify=False) as http:
        try:
            async with serve(mount(gateway) if mount is not None else gateway) as url:
                await gateway.start()
                yield Running(url + prefix, http, gateway, prefix=prefix, folder=folder)
        finally:
            await gateway.aclose()


@contextlib.asynccontextmanager
async def process(
    folder: Path, provider_url: str, *, env: dict[str, str] | None = None, stop: int = signal.SIGTERM, **config: Any
) -> AsyncIterator[Running]:
    """`sidecar serve --config …` as a process of its own; its stdout and stderr go to `output`. A database of the
    folder's own is migrated before: here that costs nothing, there a process of each worker's."""
    file = config_file(folder, provider_url, **config)
    await migrated_in(folder, config.get("top"))
    output = folder / "output.log"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SIDECAR_", "OPENAI_", "ANTHROPIC_"))}
    with output.open("wb") as sink:
        running = subprocess.Popen(  # noqa: ASYNC220 - quick, and waited for in a thread
            [sys.executable, "-m", "sidecar", "serve", "--config", str(file), "--port", "0"],
            stdout=sink, stderr=subprocess.STDOUT, env=environment | (env or {}), cwd=folder,
        )  # fmt: skip
    try:
        found: list[str] = []

        def is_up() -> bool:
            text = output.read_text(errors="replace")
            assert running.poll() is None, text
            found[:] = re.findall(r"running on (http://127\.0\.0\.1:\d+)", text)
            return bool(found)

        await eventually(is_up, 2 * PATIENCE_S, lambda: f"the process: {output.read_text(errors='replace')}")
        async with httpx2.AsyncClient(timeout=PATIENCE_S, trust_env=False, verify=False) as http:
            yield Running(found[0], http, process=running, output=output, folder=folder)
    finally:
        if running.poll() is None:
            running.send_signal(stop)
            try:
                await asyncio.to_thread(running.wait, 2 * PATIENCE_S)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()
                raise


async def raw(address: tuple[str, int], data: bytes, *, timeout_s: float = PATIENCE_S) -> bytes:
    """Send bytes as they are, read until the server closes or is silent with nothing more to say."""
    reader, writer = await asyncio.open_connection(*address)
    answer = b""
    try:
        writer.write(data)
        with contextlib.suppress(ConnectionError, TimeoutError):
            await writer.drain()
            async with asyncio.timeout(timeout_s):
                while piece := await reader.read(65536):
                    answer += piece
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return answer
