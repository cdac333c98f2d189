"""`sidecar keys …` against a small real HTTP server that plays the admin API."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from typer.testing import CliRunner, Result

from sidecar.cli import app

MASTER = "sk-master-canary-7d1f"
ROWS: list[dict[str, Any]] = [
    {"token": f"{i:02x}" * 32, "key_name": f"sk-...{i}", "key_alias": alias, "models": models, "spend": 0.00001}
    for i, (alias, models) in enumerate([("ci", ["claude"]), (None, []), ("[red]x\x1b[31m", ["a", "b"])])
]


class Admin:
    """Notes (method, path, query, body, authorization); answers what `answers` says for a path."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, dict[str, list[str]], Any, str | None]] = []
        self.answers: dict[str, tuple[int, bytes]] = {}
        admin = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                url = urlsplit(self.path)
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                admin.calls.append(
                    (
                        self.command,
                        url.path,
                        parse_qs(url.query),
                        json.loads(body) if body else None,
                        self.headers["authorization"],
                    )
                )
                status, answer = admin.answers.get(url.path, (404, b"{}"))
                self.send_response(status)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def says(self, path: str, answer: Any, status: int = 200) -> None:
        self.answers[path] = (status, answer if isinstance(answer, bytes) else json.dumps(answer).encode())


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Admin]:
    for name in ("SIDECAR_URL", "SIDECAR_MASTER_KEY", "SIDECAR_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    fake = Admin()
    fake.says("/key/list", {"keys": ROWS, "total_count": 3, "current_page": 1, "total_pages": 1})
    for path in ("/key/block", "/key/unblock", "/key/delete"):
        fake.says(path, {"is_effective_everywhere": True})
    thread = threading.Thread(target=fake.server.serve_forever, args=(0.02,))
    thread.start()
    yield fake
    fake.server.shutdown()
    thread.join()
    fake.server.server_close()


def run(admin: Admin, *arguments: str, env: dict[str, str] | None = None) -> Result:
    env = {"SIDECAR_URL": admin.url, "SIDECAR_MASTER_KEY": MASTER} if env is None else env
    result = CliRunner().invoke(app, ["keys", *arguments], env=env)
    assert MASTER not in result.output
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_create_sends_what_was_given_and_shows_the_key_once(admin: Admin) -> None:
    admin.says("/key/generate", {"key": "sk-new", "token": "00"})
    arguments = ["--alias", "ci", "--models", "a, b,", "--max-budget", "0.10", "--budget-duration", "1d"]
    arguments += ["--rpm-limit", "6", "--metadata", '{"x": 1}', "--user-id", "u"]
    result = run(admin, "create", *arguments)
    assert (result.exit_code, result.stdout) == (0, "sk-new\n")
    assert "not be shown again" in result.stderr
    ((method, path, _, body, authorization),) = admin.calls
    assert (method, path, authorization) == ("POST", "/key/generate", f"Bearer {MASTER}")
    assert body == {
        "key_alias": "ci",
        "models": ["a", "b"],
        "max_budget": "0.10",
        "budget_duration": "1d",
        "rpm_limit": 6,
        "metadata": {"x": 1},
        "user_id": "u",
    }


def test_create_prints_json_with_exact_numbers(admin: Admin) -> None:
    admin.says("/key/generate", b'{"key": "sk-new", "max_budget": 0.123456789123456789}')
    result = run(admin, "create", "--json")
    assert '"max_budget": 0.123456789123456789' in result.stdout
    assert json.loads(result.stdout)["key"] == "sk-new"
    assert admin.calls[0][3] == {}


def test_list_shows_every_key_masked_and_as_plain_text(admin: Admin) -> None:
    result = run(admin, "list")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) == 4
    assert "000000000000" in lines[1]
    assert "0.00001" in lines[1]
    assert "all" in lines[2]
    assert r"[red]x\x1b[31m" in lines[3]
    assert "\x1b[31m" not in result.stdout


def test_list_reads_all_pages(admin: Admin) -> None:
    admin.says("/key/list", {"keys": ROWS, "total_count": 6, "current_page": 1, "total_pages": 2})
    assert len(json.loads(run(admin, "list", "--json").stdout)) == 6
    assert [call[2]["page"] for call in admin.calls] == [["1"], ["2"]]


@pytest.mark.parametrize(
    ("command", "path", "field"),
    [("block", "/key/block", "key"), ("unblock", "/key/unblock", "key"), ("delete", "/key/delete", "keys")],
)
@pytest.mark.parametrize(
    ("named", "sent"),
    [("sk-abc", "sk-abc"), ("f" * 64, "f" * 64), ("ci", ROWS[0]["token"]), ("010101", ROWS[1]["token"])],
)
def test_a_key_is_named_by_itself_its_hash_its_alias_or_its_id(
    admin: Admin, command: str, path: str, field: str, named: str, sent: str
) -> None:
    result = run(admin, command, named)
    assert (result.exit_code, result.stdout) == (0, f"{command}{'d' if command == 'delete' else 'ed'}\n")
    assert admin.calls[-1][1] == path
    assert admin.calls[-1][3] == {field: [sent] if field == "keys" else sent}


def test_a_name_that_fits_no_key_or_several_changes_nothing(admin: Admin) -> None:
    rows = [{**ROWS[0], "token": "ab" * 6 + end * 52} for end in "01"]
    admin.says("/key/list", {"keys": rows, "total_count": 2, "total_pages": 1})
    assert "is the beginning of 2 ids" in run(admin, "delete", "ababab").stderr
    assert "no key has the alias or id" in run(admin, "delete", "nobody").stderr
    assert "no key has the alias or id" in run(admin, "delete", "a").stderr
    assert {call[1] for call in admin.calls} == {"/key/list"}


def test_a_revocation_that_is_not_everywhere_yet_is_told(admin: Admin) -> None:
    admin.says("/key/block", {"is_effective_everywhere": False})
    assert "repeat the command" in run(admin, "block", "sk-x").stderr


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (401, {"error": {"message": "The gateway refused the API key."}}, "The gateway refused the API key."),
        (400, {"error": "odd"}, "answered 400"),
        (500, [], "answered 500"),
        (502, b"<html>", "answered 502 without JSON"),
        (302, {}, "answered 302"),
        (200, [], "something else than expected"),
        (200, {"x": 1}, "something else than expected"),
    ],
)
def test_a_refusal_is_told_on_stderr_with_exit_code_1(admin: Admin, status: int, answer: Any, message: str) -> None:
    admin.says("/key/generate", answer, status)
    result = run(admin, "create")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert message in result.stderr


def test_a_gateway_that_does_not_run_is_told(admin: Admin) -> None:
    result = run(admin, "list", env={"SIDECAR_URL": "http://127.0.0.1:1", "SIDECAR_MASTER_KEY": MASTER})
    assert result.exit_code == 1
    assert "is `sidecar serve` running?" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", "--max-budget", "much"], "--max-budget must be an amount"),
        (["create", "--max-budget", "NaN"], "--max-budget must be an amount"),
        (["create", "--max-budget", "-1"], "--max-budget must be an amount"),
        (["create", "--metadata", "[]"], "--metadata must be a JSON object"),
        (["list", "--url", "localhost:4000"], "--url must be the gateway's address"),
        (["list", "--url", "http://h:x"], "--url must be the gateway's address"),
        (["block"], "KEY"),
    ],
)
def test_a_wrong_argument_exits_2_and_calls_nothing(admin: Admin, arguments: list[str], message: str) -> None:
    result = run(admin, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not admin.calls


def test_the_local_master_key_is_used_for_a_gateway_on_this_machine(admin: Admin, tmp_path: Path) -> None:
    folder = tmp_path / ".sidecar"
    folder.mkdir()
    (folder / "master_key").write_text(MASTER + "\n")
    assert run(admin, "list", env={"SIDECAR_URL": admin.url}).exit_code == 0
    assert admin.calls[0][4] == f"Bearer {MASTER}"


def test_the_master_key_of_the_configuration_is_used_too(admin: Admin, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(f"auth: {{master_key: {MASTER}}}\n")
    assert run(admin, "list", env={"SIDECAR_URL": admin.url, "SIDECAR_CONFIG": "s.yaml"}).exit_code == 0
    (tmp_path / "s.yaml").write_text("store: {journal_dir: data/journal}\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "master_key").write_text(MASTER)
    assert run(admin, "list", env={"SIDECAR_URL": admin.url, "SIDECAR_CONFIG": "s.yaml"}).exit_code == 0
    assert {call[4] for call in admin.calls} == {f"Bearer {MASTER}"}


def test_the_local_master_key_is_never_sent_elsewhere(admin: Admin, tmp_path: Path) -> None:
    folder = tmp_path / ".sidecar"
    folder.mkdir()
    (folder / "master_key").write_text(MASTER)
    result = run(admin, "list", env={"SIDECAR_URL": "http://gateway.example.com"})
    assert result.exit_code == 2
    assert "needs --master-key" in result.stderr


def test_a_proxy_of_the_environment_does_not_see_a_local_master_key(
    admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert run(admin, "list").exit_code == 0


def test_without_any_master_key_the_fix_is_told(admin: Admin) -> None:
    result = run(admin, "list", env={"SIDECAR_URL": admin.url})
    assert result.exit_code == 2
    assert "set SIDECAR_MASTER_KEY" in result.stderr
