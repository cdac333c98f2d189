"""`sidecar serve`: uvicorn, one process or several, that leaves without losing anything.

SIGTERM: not ready at once; for `drain_s` connections are still taken, each for one answer only; then no more, requests
under way have `grace_s`; holds are settled, the journal is shipped, exit code 0. Ctrl-C skips `drain_s`.
Rule: of several workers none stops taking connections before all are told that they leave.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from socket import socket
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from sidecar.gateway import Gateway

_TELLS = getattr(signal, "SIGURG", None)
"""From the parent to its workers: we leave, go on. Ignored by who has not started yet."""
_gateways: list[Gateway] = []
"""The one of this process."""


def make_app() -> Gateway:
    """The app of one process; its configuration is named by SIDECAR_CONFIG."""
    from sidecar.app import build_app
    from sidecar.cli import read_config

    gateway = build_app(read_config(None), migrate=True, owns_process=True)
    _gateways[:] = [gateway]
    if _TELLS is not None:
        signal.signal(_TELLS, lambda *_: gateway.leave())
    return gateway


def run(*, workers: int, drain_s: float, grace_s: float, **options: Any) -> int:
    """Until told to stop; the exit code."""
    config = uvicorn.Config(
        "sidecar.serve:make_app",
        factory=True,
        workers=workers,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=int(grace_s) or 1,
        **options,
    )
    if workers > 1:
        return _Workers(config, [config.bind_socket()], drain_s).serve()
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
    def __init__(self, config: uvicorn.Config, sockets: list[socket], drain_s: float) -> None:
        super().__init__(config, sockets)
        self._drain_s = drain_s
        self._closes_at: float | None = None
        signal.signal(signal.SIGTERM, self._leave)

    def serve(self) -> int:
        self.run()
        return max((process.exitcode for process in self.processes if process.exitcode == STARTUP_FAILURE), default=0)

    def _leave(self, *_: Any) -> None:
        if self._closes_at is not None:
            return
        self._closes_at = time.monotonic() + self._drain_s
        for process in self.processes:
            if _TELLS is not None and process.pid is not None and process.process.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, _TELLS)

    def handle_signals(self) -> None:
        super().handle_signals()
        if self._closes_at is not None and time.monotonic() >= self._closes_at:
            self.should_exit.set()

    def terminate_all(self) -> None:
        super().terminate_all()
        for listener in self.sockets:
            listener.close()  # else the kernel goes on taking connections nobody serves
