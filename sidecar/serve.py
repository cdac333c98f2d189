"""`sidecar serve`: uvicorn, one process or several, that leaves without losing anything.

SIGTERM: not ready at once; for `drain_s` connections are still taken, each for one answer only; then no more, requests
under way have `grace_s`; holds are settled, the journal is shipped, exit code 0. Ctrl-C skips `drain_s`.
Rule: of several workers none stops taking connections before all are told that they leave; one that starts meanwhile,
in the place of one that died, is never ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import multiprocessing
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from socket import socket
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from sidecar.gateway import Gateway

KEEP_ALIVE_S = 75
"""Longer than clients and load balancers keep an idle connection: none is closed just as its next request comes."""
HUNG_S = 30
"""A worker that does not answer its parent for so long is replaced; on a machine that crawls it may take a while."""
_gateways: list[Gateway] = []
"""The one of this process."""


def make_app(leaving: Connection | None = None) -> Gateway:
    """The app of one process, made on its event loop; its configuration is named by SIDECAR_CONFIG. It leaves as soon
    as there is something to read in `leaving`, which nobody ever takes out."""
    from sidecar.app import build_app
    from sidecar.cli import read_config

    gateway = build_app(read_config(None), migrate=True, owns_process=True)
    _gateways[:] = [gateway]
    if leaving is not None:
        if leaving.poll():
            gateway.leave()
        else:
            _leave_when_told(gateway, leaving)
    return gateway


def _leave_when_told(gateway: Gateway, leaving: Connection) -> None:
    loop = asyncio.get_running_loop()

    def told() -> None:
        loop.remove_reader(leaving)
        gateway.leave()

    with contextlib.suppress(NotImplementedError):  # Windows' loop watches no pipes
        loop.add_reader(leaving, told)


def run(*, workers: int, drain_s: float, grace_s: float, **options: Any) -> int:
    """Until told to stop; the exit code."""
    pipe = multiprocessing.Pipe(duplex=False) if workers > 1 else None
    config = uvicorn.Config(
        functools.partial(make_app, pipe[0]) if pipe is not None else make_app,
        factory=True,
        workers=workers,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=int(grace_s) or 1,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_worker_healthcheck=HUNG_S,
        **options,
    )
    if pipe is not None:
        return _Workers(config, [config.bind_socket()], pipe[1], drain_s).serve()
    server = _Server(config, drain_s)
    server.run()
    if not server.started:
        return STARTUP_FAILURE
    return 1 if getattr(server.lifespan, "shutdown_failed", False) else 0


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, drain_s: float) -> None:
        super().__init__(config)
        self._drain_s = drain_s
        self._closes_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        for gateway in _gateways:
            gateway.leave()
        if sig == signal.SIGINT or not self.started:
            super().handle_exit(sig, frame)
        elif self._closes_at is None:
            self._closes_at = time.monotonic() + self._drain_s

    async def on_tick(self, counter: int) -> bool:
        if self._closes_at is not None and time.monotonic() >= self._closes_at:
            self.should_exit = True
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            try:
                yield
            finally:
                self._captured_signals.clear()  # being told to stop is no failure: exit code 0, not 143


class _Workers(Multiprocess):
    def __init__(self, config: uvicorn.Config, sockets: list[socket], tell: Connection, drain_s: float) -> None:
        super().__init__(config, sockets)
        self._tell = tell
        self._drain_s = drain_s
        self._closes_at: float | None = None
        signal.signal(signal.SIGTERM, self._leave)

    def serve(self) -> int:
        self.run()
        return max((process.exitcode for process in self.processes if process.exitcode == STARTUP_FAILURE), default=0)

    def _leave(self, *_: Any) -> None:
        if self._closes_at is None:
            self._closes_at = time.monotonic() + self._drain_s
            self._tell.send_bytes(b".")

    def handle_signals(self) -> None:
        super().handle_signals()
        if self._closes_at is not None and time.monotonic() >= self._closes_at:
            self.should_exit.set()

    def terminate_all(self) -> None:
        super().terminate_all()
        for listener in self.sockets:
            listener.close()  # else the kernel goes on taking connections nobody serves
