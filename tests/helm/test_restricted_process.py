"""The real gateway as a restricted pod runs it: a user id nobody knows, no capability, one folder to write to."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helm.support import REPO, Helm, pod_of, sidecar_yaml
from tests.servers.ports import free_port

ID = 12345
READY_WITHIN_S = 120.0
MESSAGES = [{"role": "user", "content": "Hello"}]
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def volume() -> Iterator[Path]:
    """A folder whose `data` belongs to the user id; not below pytest's own, which is closed to other users."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    if hidden_folders() and not has_namespaces():
        pytest.skip(f"another user cannot reach {hidden_folders()[0][1]}, and no mount namespace can be made")
    folder = Path(tempfile.mkdtemp(prefix="sidecar-pod-"))
    try:
        folder.chmod(0o755)
        (folder / "data").mkdir()
        os.chown(folder / "data", ID, ID)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def hidden_folders() -> list[tuple[Path, Path]]:
    """What the gateway is run from, and the folder above it that is closed to other users (a root's home)."""
    found: list[tuple[Path, Path]] = []
    for path in {Path(sys.base_prefix), Path(sys.prefix), REPO}:
        for above in reversed(path.parents):
            if not above.stat().st_mode & 0o001:
                found.append((path, above))
                break
    return sorted(found, key=lambda pair: len(pair[0].parts))


def has_namespaces() -> bool:
    command = ["unshare", "--mount", "sh", "-c", "mount --make-rprivate / && mount -o remount,bind,ro /"]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False


def mounts(volume: Path, *, is_root_read_only: bool) -> list[str]:
    """Shell commands for a mount namespace of the gateway's own; the machine's mounts and modes stay as they are."""
    hidden = hidden_folders()
    lines = ["mount --make-rprivate /"]
    for i, (path, _) in enumerate(hidden):
        (volume / f"hold{i}").mkdir()
        lines.append(f"mount --rbind '{path}' '{volume}/hold{i}'")
    lines += [f"mount -t tmpfs -o mode=755 tmpfs '{above}'" for above in sorted({above for _, above in hidden})]
    lines += [f"mkdir -p '{path}' && mount --rbind '{volume}/hold{i}' '{path}'" for i, (path, _) in enumerate(hidden)]
    if is_root_read_only:
        lines += [f"mount --bind '{volume}/data' '{volume}/data'", "mount -o remount,bind,ro /"]
    return lines


def values_for(volume: Path, **more: Any) -> dict[str, Any]:
    store = {"database_url": f"sqlite:///{volume}/data/sidecar.db", "journal_dir": f"{volume}/data/journal"}
    return {**more, "config": {"server": {"port": free_port(), "grace_s": 5}, "store": store, **more.get("config", {})}}


@contextlib.contextmanager
def running(
    volume: Path, command: list[str], *, is_root_read_only: bool, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The container's command. `setpriv` takes away what a restricted pod does not have."""
    program = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
    line = [
        "setpriv", "--reuid", str(ID), "--regid", str(ID), "--clear-groups", "--no-new-privs", "--bounding-set=-all",
        "--inh-caps=-all", *program,
    ]  # fmt: skip
    if is_root_read_only or hidden_folders():
        script = " && ".join([*mounts(volume, is_root_read_only=is_root_read_only), 'exec "$@"'])
        line = ["unshare", "--mount", "sh", "-c", script, "sh", *line]
    with (volume / "log").open("wb") as log:
        process = subprocess.Popen(
            line,
            cwd="/",
            stdout=log,
            stderr=log,
            env={"PATH": os.defpath, "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1", **(env or {})},
            preexec_fn=lambda: _libc.prctl(_PR_SET_PDEATHSIG, 9),
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_ready(port: int, process: subprocess.Popen[bytes], log: Path) -> float:
    started = time.monotonic()
    while time.monotonic() - started < READY_WITHIN_S:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10):
            return time.monotonic() - started
        time.sleep(0.02)
    raise AssertionError(log.read_text())


def call(port: int, path: str, key: str, body: dict[str, Any]) -> tuple[int, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode())
    request.add_header("authorization", f"Bearer {key}")
    request.add_header("content-type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.mark.parametrize("is_root_read_only", [False, True], ids=["as another user", "with a read-only root"])
def test_the_gateway_gets_ready_as_an_unknown_user_with_one_folder_to_write_to(
    helm: Helm, volume: Path, is_root_read_only: bool
) -> None:
    if is_root_read_only and not has_namespaces():
        pytest.skip("needs leave to make a mount namespace")
    nowhere = {"provider": "vllm", "model": "m", "base_url": f"http://127.0.0.1:{free_port()}/v1", "price": "free"}
    values = values_for(volume, config={"models": [{"name": "m", "deployments": [nowhere]}]})
    port = values["config"]["server"]["port"]
    objects = helm.objects(values)
    (volume / "sidecar.yaml").write_text(sidecar_yaml(objects))
    command = [*pod_of(objects)["containers"][0]["command"][:-1], str(volume / "sidecar.yaml")]
    with running(volume, command, is_root_read_only=is_root_read_only) as process:
        ready_s = wait_ready(port, process, volume / "log")
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        assert status["Uid"].split() == [str(ID)] * 4
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
        roots = [
            m.split()[3] for m in Path(f"/proc/{process.pid}/mounts").read_text().splitlines() if m.split()[1] == "/"
        ]
        assert roots[-1].split(",")[0] == ("ro" if is_root_read_only else "rw")
        rss = psutil.Process(process.pid).memory_info().rss
        print(f"ready after {ready_s:.2f} s with {rss / 1e6:.0f} MB")
        master_key = (volume / "data" / "master_key").read_text().strip()
        _, made = call(port, "/key/generate", master_key, {})
        code, answer = call(port, "/v1/chat/completions", made["key"], {"model": "m", "messages": MESSAGES})
        assert (code, "error" in answer) == (502, True), answer
        process.terminate()
        assert process.wait(60) in (0, -15), (volume / "log").read_text()
    written = {p.name for p in (volume / "data").iterdir()}
    assert {"sidecar.db", "journal", "master_key"} <= written
    assert (volume / "data" / "master_key").stat().st_mode & 0o777 == 0o600


def test_probes_of_a_sidecar_tell_a_ready_gateway_from_none(helm: Helm, volume: Path, app_chart: Path) -> None:
    values = values_for(volume, mode="sidecar", existingSecret="", config={"auth": "none", "models": []})
    objects = helm.objects({"sidecar-gateway": values}, chart=app_chart)
    (container,) = pod_of(objects)["initContainers"]
    probes = [container[name]["exec"]["command"] for name in ("startupProbe", "livenessProbe")]

    def answers() -> list[bool]:
        lines = [[sys.executable, *probe[1:]] for probe in probes]
        return [subprocess.run(line, capture_output=True, timeout=60, check=False).returncode == 0 for line in lines]

    assert answers() == [False, False]
    (volume / "sidecar.yaml").write_text(sidecar_yaml(objects))
    command = [*container["command"][:-1], str(volume / "sidecar.yaml")]
    with running(volume, command, is_root_read_only=False) as process:
        wait_ready(values["config"]["server"]["port"], process, volume / "log")
        until = time.monotonic() + READY_WITHIN_S
        while answers() != [True, True]:  # a probe waits for two seconds only
            assert time.monotonic() < until
            time.sleep(0.1)
