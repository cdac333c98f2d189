"""`sidecar config …`, `version` and `--help`: output, exit codes, no secret, no stack trace."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner, Result

from sidecar import __version__
from sidecar.cli import app
from tests.config.support import REPO

CANARY = "sk-canary-plain-7d1f"
ENV = {"SIDECAR_MASTER_KEY": CANARY, "ANTHROPIC_API_KEY": CANARY, "OPENAI_API_KEY": CANARY}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("SIDECAR_") or name.endswith("_API_KEY"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
    result = CliRunner().invoke(app, list(arguments), env=env)
    assert CANARY not in result.output
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_check_lists_what_can_be_called_and_shows_no_secret() -> None:
    result = run("config", "check", str(REPO / "examples" / "sidecar.yaml"), env=ENV)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == (
        "claude  ->  anthropic/claude-sonnet-4-5 at https://api.anthropic.com  (USD per million tokens: 3 in, 15 out)"
    )
    assert lines[3] == "openai/*  ->  openai/* at https://api.openai.com  (priced by model)"
    assert lines[4].endswith("(free)")
    assert lines[-1] == "ok"


def test_check_tells_every_fault_on_stderr_and_exits_2(tmp_path: Path) -> None:
    (tmp_path / "sidecar.yaml").write_text("server: {prot: 1}\nauth: {master_key: '${KEY} ${NOPE}'}\nlog: {level: x}\n")
    result = run("config", "check", "sidecar.yaml", env={"KEY": CANARY})
    assert result.exit_code == 2
    assert result.stdout == ""
    assert [line.split(": ")[0] for line in result.stderr.splitlines()] == [
        "sidecar.yaml:1:10",
        "sidecar.yaml:2:20",
        "sidecar.yaml:3:14",
    ]


def test_check_takes_the_file_of_the_environment(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("log: {level: x}\n")
    result = run("config", "check", env={"SIDECAR_CONFIG": "other.yaml"})
    assert (result.exit_code, result.stderr.split(": ")[0]) == (2, "other.yaml:1:14")
    assert run("config", "check", "none.yaml").exit_code == 2


def test_check_without_a_file_uses_the_keys_of_the_environment() -> None:
    result = run("config", "check", env={"OPENAI_API_KEY": CANARY})
    assert result.stdout.startswith("openai/*  ->  openai/* at https://api.openai.com  (priced by model)\n")
    assert "no models" in run("config", "check").stdout


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("server: {workers: 2}\n", "2 workers without store.redis_url"),
        (
            "models: [{name: a, deployments: [{provider: vllm, model: zz}]}]\n",
            "no price known: refused under a budget; give it a price, or price: free",
        ),
        (
            "server: {workers: 2}\nmodels: [{name: a, deployments: [{provider: vllm, model: zz, limits: {rpm: 1}}]}]\n",
            "limits of deployments hold per worker without store.redis_url",
        ),
    ],
)
def test_check_notes_what_is_probably_not_meant(tmp_path: Path, text: str, note: str) -> None:
    (tmp_path / "sidecar.yaml").write_text(text)
    result = run("config", "check", "sidecar.yaml")
    assert result.exit_code == 0
    assert note in result.stdout


def test_schema_prints_a_valid_schema() -> None:
    result = run("config", "schema")
    jsonschema.Draft202012Validator.check_schema(json.loads(result.stdout))


def test_version_prints_the_version() -> None:
    assert run("version").stdout == f"{__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["keys", "--help"], ["serve", "--help"], ["keys", "create", "--help"]]
)
def test_help_needs_no_heavy_import(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom sidecar.cli import app\n"
        f"try: app({arguments!r})\nexcept SystemExit as e: assert not e.code\n"
        "heavy = {'sqlalchemy', 'starlette', 'httpx2', 'uvicorn', 'redis', 'rich', 'ruamel'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--config", "none.yaml"], "cannot be read"),
        (["serve", "--port", "99999"], "--port"),
        (["serve", "--workers", "0"], "--workers"),
        (["bogus"], "bogus"),
    ],
)
def test_a_wrong_command_line_exits_2_with_a_message_on_stderr(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_serve_refuses_no_auth_on_a_public_address() -> None:
    result = run("serve", "--host", "0.0.0.0", env={"SIDECAR_AUTH": "none"})
    assert result.exit_code == 2
    assert "'auth: none' serves loopback only" in result.stderr


def test_serve_says_where_the_master_key_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("serve", env={"SIDECAR_STORE__JOURNAL_DIR": "file/journal"})
    assert result.exit_code == 2
    assert "set SIDECAR_MASTER_KEY" in result.stderr
