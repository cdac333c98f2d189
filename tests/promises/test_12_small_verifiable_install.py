"""*Small, verifiable install.* The wheel holds the package and its licence, nothing that runs by itself; everything it
needs is locked by hash; `import sidecar` loads next to nothing; a start calls nobody.
"""

from __future__ import annotations

import asyncio
import base64
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import psutil
import pytest

from tests.promises.support import body, eventually, process

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")

WATCH = """\
import os, sys
sys.modules["uvloop"] = None  # its sockets are C and raise no audit events; asyncio's do

def _watch(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
        if not isinstance(address, tuple) or str(address[0]) in ("127.0.0.1", "::1"):
            return
        said = f"{event} {address}"
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = args[0].decode() if isinstance(args[0], bytes) else args[0]
        if host in (None, "", "127.0.0.1", "::1", "localhost"):
            return
        said = f"{event} {host}"
    elif event in ("urllib.Request", "http.client.connect"):
        said = f"{event} {args[:2]}"
    else:
        return
    with open(os.environ["OUTBOUND_LOG"], "a") as log:
        log.write(said + "\\n")

sys.addaudithook(_watch)
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel, built twice from a copy of what it is made of."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "sidecar", source / "sidecar", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, source / name)
    built = []
    for out in (folder / "first", folder / "second"):
        done = subprocess.run(
            [UV, "build", "--wheel", "--quiet", "--out-dir", out, source], capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        (wheel,) = out.glob("*.whl")
        built.append(wheel)
    return built[0], built[1]


def test_the_wheel_holds_the_package_and_its_licence_and_nothing_else(wheels: tuple[Path, Path]) -> None:
    wheel = zipfile.ZipFile(wheels[0])
    names = set(wheel.namelist())
    info = next(name.split("/")[0] for name in names if ".dist-info/" in name)
    about = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    source = wheels[0].parents[1] / "source"
    package = {str(file.relative_to(source)) for file in (source / "sidecar").rglob("*") if file.is_file()}
    assert names == package | about
    assert {Path(name).suffix for name in package} <= {".py", ".typed", ".lua"}, "no .pth, no binary, no data"
    assert wheel.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert b"Root-Is-Purelib: true" in wheel.read(f"{info}/WHEEL")
    assert wheel.read(f"{info}/entry_points.txt") == b"[console_scripts]\nsidecar = sidecar.cli:main\n"
    size = wheels[0].stat().st_size
    print(f"the wheel: {len(names)} files, {size / 1000:.0f} kB")
    assert size < 1_000_000


def test_every_file_of_the_wheel_has_its_hash_and_a_second_build_is_the_same_file(wheels: tuple[Path, Path]) -> None:
    wheel = zipfile.ZipFile(wheels[0])
    (record,) = (name for name in wheel.namelist() if name.endswith("/RECORD"))
    rows = {name: digest for name, digest, _ in csv.reader(wheel.read(record).decode().splitlines())}
    assert rows.keys() == set(wheel.namelist())
    for name, digest in rows.items():
        if name != record:
            found = base64.urlsafe_b64encode(hashlib.sha256(wheel.read(name)).digest()).rstrip(b"=").decode()
            assert digest == f"sha256={found}", name
    assert wheels[0].read_bytes() == wheels[1].read_bytes()


def test_every_dependency_is_locked_to_files_with_a_sha256() -> None:
    done = subprocess.run([UV, "lock", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"uv.lock does not belong to pyproject.toml: {done.stderr}"
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    packages = {package["name"]: package for package in lock["package"]}
    own = packages.pop("sidecar-gateway")
    assert own["source"] == {"editable": "."}
    for name, package in packages.items():
        assert package["source"].keys() == {"registry"}, f"{name} comes from elsewhere than a package index"
        files = [*package.get("wheels", ()), *([package["sdist"]] if "sdist" in package else ())]
        assert files, name
        for file in files:
            algorithm, _, digest = file["hash"].partition(":")
            assert (algorithm, len(digest)) == ("sha256", 64), (name, file["url"])
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert len(own["dependencies"]) == len(wanted)


IMPORT = """\
import sys
before = set(sys.modules)
{statement}
loaded = sorted(set(sys.modules) - before)
import json, resource
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([used.ru_utime + used.ru_stime, loaded]))
"""


def imported(statement: str, *, times: int = 1) -> tuple[float, list[str]]:
    """(least CPU seconds of the whole process in so many runs, modules it loaded)"""
    runs = [
        json.loads(subprocess.check_output([sys.executable, "-c", IMPORT.format(statement=statement)], cwd=ROOT))
        for _ in range(times)
    ]
    return min(cpu_s for cpu_s, _ in runs), runs[0][1]


def test_import_sidecar_loads_no_third_party_package() -> None:
    bare_s, _ = imported("pass", times=5)
    own_s, modules = imported("import sidecar", times=5)
    print(f"import sidecar: {1000 * own_s:.0f} ms CPU with the interpreter, {1000 * bare_s:.0f} ms without")
    roots = {name.split(".")[0] for name in modules}
    assert roots <= set(sys.stdlib_module_names) | {"sidecar"}
    assert [name for name in modules if name.startswith("sidecar")] == ["sidecar"]
    assert len(modules) <= 40
    assert own_s < 5 * bare_s


def test_every_public_name_loads_and_the_middlewares_need_neither_database_nor_settings() -> None:
    import sidecar

    for name in sidecar.__all__:
        assert getattr(sidecar, name) is not None
    names = [name for name in sidecar.__all__ if name not in ("build_app", "InProcess")]
    _, modules = imported(f"from sidecar import {', '.join(names)}")
    heavy = {"redis", "alembic", "sqlalchemy", "httpx2", "pydantic", "typer", "openai"}
    assert heavy.isdisjoint(name.split(".")[0] for name in modules)


@pytest.mark.anyio
async def test_a_start_calls_nobody(tmp_path: Path) -> None:
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(WATCH)
    log = tmp_path / "outbound.log"
    log.touch()
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path / "hook"), str(ROOT)]), "OUTBOUND_LOG": str(log)}
    upstream = "http://nobody.sidecar.invalid:9"
    async with process(tmp_path, upstream, env=env, deployment={"allow_plain_http": True}) as gateway:

        async def is_ready() -> bool:
            return (await gateway.http.get(f"{gateway.url}/readyz")).status_code == 200

        await eventually(is_ready)
        key = await gateway.mint(max_budget=1)
        assert gateway.process is not None
        running = psutil.Process(gateway.process.pid)
        # Idle long enough for the tickers (leases, key changes, the ledger's flusher) to have run.
        for _ in range(8):
            for connection in running.net_connections():
                assert not connection.raddr or connection.raddr.ip in ("127.0.0.1", "::1")
            await asyncio.sleep(0.5)
        assert log.read_text() == ""
        # The hook sees the gateway's own way out.
        assert (await gateway.chat(key, body())).status_code >= 500
        assert "nobody.sidecar.invalid" in log.read_text()
