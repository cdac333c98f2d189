"""The frame holds: import rules by layer, public names, file sizes, no global side effects at import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sidecar

PACKAGE = Path(sidecar.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
PURE_FORBIDDEN = {
    "anyio", "asyncio", "httpx2", "httptools", "redis", "os", "time", "random", "socket", "starlette",
    "sqlalchemy", "asyncpg", "threading",
}  # fmt: skip
LAYER_2_FOLDERS = {"upstream", "identity", "limits", "spend", "db"}


def name_of(path: Path) -> str:
    parts = ["sidecar", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(p for p in parts if p != "__init__")


def layer_of(module: str) -> int:
    """The layer DESIGN's table gives a module; a name not yet an attribute counts as its module."""
    parts = module.split(".")
    if len(parts) == 1:
        return 0
    top, rest = parts[1], parts[2:]
    if top in ("types", "errors", "tasks"):
        return 0
    if top in ("translate", "routing"):
        return 1
    if top == "limits":
        return 1 if rest[:1] in ([], ["scopes"], ["windows"], ["claims"], ["base"]) else 2
    if top == "spend":
        return 1 if rest[:1] in ([], ["cost"], ["prices"]) else 2
    if top in ("upstream", "identity", "db"):
        return 2
    if top in ("exchange", "asgi", "admit", "attempts", "race", "continuation", "waiting", "heartbeat"):
        return 3
    if top in ("middleware", "metrics", "inprocess", "response_ids"):
        return 3
    return 4


def imports_of(path: Path) -> set[str]:
    """Absolute names of everything imported at run time (annotations under TYPE_CHECKING do not count)."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found.update(
                f"{node.module}.{alias.name}" for alias in node.names if is_module(f"{node.module}.{alias.name}")
            )
    return found


def is_module(name: str) -> bool:
    base = PACKAGE.joinpath(*name.split(".")[1:])
    return name.startswith("sidecar.") and (base.with_suffix(".py").exists() or (base / "__init__.py").exists())


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_module_imports_only_what_its_layer_may(path: Path) -> None:
    module = name_of(path)
    layer = layer_of(module)
    imports = imports_of(path)
    ours = {i for i in imports if i.split(".")[0] == "sidecar" and i != "sidecar"}
    third = {i.split(".")[0] for i in imports} - {"sidecar"}
    folder = module.split(".")[1] if "." in module else ""
    for name in ours:
        assert layer_of(name) <= layer, f"{module} (layer {layer}) imports {name} (layer {layer_of(name)})"
    if layer == 0 and module != "sidecar":
        assert third <= set(sys.stdlib_module_names), f"{module} imports third parties: {third}"
    if layer == 1:
        assert not third & PURE_FORBIDDEN, f"{module} is pure but imports {third & PURE_FORBIDDEN}"
        tree = ast.parse(path.read_text())
        assert not [n for n in ast.walk(tree) if isinstance(n, ast.AsyncFunctionDef)], f"{module} is pure: no async def"
        for name in ours:
            assert layer_of(name) == 0 or name.split(".")[1] == folder, f"{module} imports another folder: {name}"
    if layer == 2:
        assert "starlette" not in third
        for name in ours:
            other = name.split(".")[1]
            if layer_of(name) == 2 and other != folder:
                assert other == "db", f"{module} imports another I/O folder: {name}"
    if folder == "middleware":
        siblings = {n for n in ours if n.startswith("sidecar.middleware.")}
        assert not siblings, f"{module}: a middleware never imports a middleware"
    if layer <= 3:
        assert not [n for n in ours if n.startswith("sidecar.config")], f"{module} reads configuration"


def test_every_public_name_loads_and_all_is_complete() -> None:
    assert sorted(sidecar.__all__) == sidecar.__all__
    assert set(sidecar.__all__) == set(sidecar._WHERE)
    for name in sidecar.__all__:
        assert getattr(sidecar, name).__module__.startswith("sidecar.")
    with pytest.raises(AttributeError, match="nonsense"):
        sidecar.nonsense  # noqa: B018


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_is_over_600_lines_and_each_says_what_it_is_for(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 600
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), f"{path} has no module docstring"


def test_tests_and_benchmarks_keep_to_600_lines_too() -> None:
    root = PACKAGE.parent
    files = [path for folder in ("tests", "bench", "examples") for path in (root / folder).rglob("*.py")]
    assert len(files) > 100
    assert [str(path) for path in files if path.read_text().count("\n") > 600] == []


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, sidecar; print(sorted({m.split('.')[0] for m in sys.modules} & set(sys.argv[1:])))"
    heavy = ["redis", "sqlalchemy", "alembic", "pydantic", "starlette", "httpx2", "asyncio", "genai_prices", "typer"]
    out = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_gateway_on_the_embedded_defaults_loads_only_what_it_uses(tmp_path: Path) -> None:
    code = """
import asyncio, sys
from pathlib import Path
from sidecar.app import build_app
from sidecar.config import load_config
file = Path("sidecar.yaml")
file.write_text("auth: {master_key: sk-master-of-the-layout-0123456789}")
async def main():
    async with build_app(load_config(file, {}), migrate=False, env={}).lifespan():
        pass
try:
    asyncio.run(main())
except Exception as error:
    assert "schema" in str(error), error  # nobody has migrated it: what it loads until then is what counts
print(sorted({m.split(".")[0] for m in sys.modules} & set(sys.argv[1:])))
"""
    heavy = ["redis", "asyncpg", "alembic", "httpx2", "httpcore2", "genai_prices", "typer", "cryptography", "h2"]
    run = subprocess.run(
        [sys.executable, "-c", code, *heavy], capture_output=True, text=True, cwd=tmp_path, env={"HOME": str(tmp_path)}
    )
    assert run.stdout.strip() == "[]", run.stdout + run.stderr
