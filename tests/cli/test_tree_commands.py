"""`sidecar users|teams|organizations|customers|budgets|tags|models|audit` and the wider `keys`, against a gateway that
runs as a process of its own."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sidecar.cli import app
from tests.promises.support import MASTER, process

Run = Callable[..., str]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway whose provider does not exist: nothing here calls a model."""
    folder = tmp_path_factory.mktemp("gateway")
    found: list[str] = []
    is_up, is_over = threading.Event(), threading.Event()

    async def main() -> None:
        env = {"SIDECAR_STORE__ENCRYPTION_KEY": "a-passphrase-of-these-tests"}
        async with process(folder, "http://127.0.0.1:9", env=env) as running:
            found.append(running.url)
            is_up.set()
            await asyncio.to_thread(is_over.wait)

    loop = threading.Thread(target=lambda: asyncio.run(main()))
    loop.start()
    while not is_up.wait(0.05):
        assert loop.is_alive(), "the gateway did not start"
    yield found[0]
    is_over.set()
    loop.join()


@pytest.fixture
def run(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, code: int = 0, key: str = MASTER) -> str:
        done = CliRunner().invoke(app, list(arguments), env={"SIDECAR_URL": url, "SIDECAR_MASTER_KEY": key})
        assert done.exit_code == code, done.output
        assert MASTER not in done.output
        assert "Traceback" not in done.output
        return done.output if code else done.stdout

    return call


def load(run: Run, *arguments: str) -> Any:
    return json.loads(run(*arguments, "--json"))


def test_a_team_from_the_first_to_the_last(run: Run) -> None:
    run("organizations", "create", "acme", "--alias", "Acme", "--max-budget", "1000")
    assert run(
        "teams", "create", "search", "--alias", "Search", "--organization-id", "acme", "--max-budget", "500.25",
        "--budget-duration", "1mo", "--rpm-limit", "600", "--models", "gpt,claude", "--model-rpm-limit", '{"gpt": 10}',
    ) == "search\n"  # fmt: skip
    run("users", "create", "alice", "--email", "alice@example.com")
    run("teams", "add-member", "search", "alice", "--role", "admin", "--max-budget", "50")
    team = load(run, "teams", "info", "search")
    told = json.dumps(team)
    for wanted in ("500.25", "1mo", "alice", "Search", '"gpt": 10'):
        assert wanted in told, team
    shown = run("teams", "info", "search")
    assert "500.25" in shown
    assert "alice" in shown
    table = run("teams", "list", "--organization-id", "acme")
    assert "500.25 / 1mo" in table
    assert "search" in table
    assert "search" not in run("teams", "list", "--organization-id", "nobody")
    run("teams", "update", "search", "--set", 'budget_limits=[{"budget_duration": "1d", "max_budget": 40}]',
        "--unset", "rpm_limit")  # fmt: skip
    after = json.dumps(load(run, "teams", "info", "search"))
    assert '"max_budget": 40' in after
    assert '"rpm_limit": null' in after
    run("teams", "update-member", "search", "alice", "--role", "user")
    run("teams", "block", "search")
    assert load(run, "teams", "list")[0]["blocked"] is True
    run("teams", "unblock", "search")
    run("teams", "remove-member", "search", "alice")
    assert "organization 'acme' is used" in run("organizations", "delete", "acme", code=1)
    run("teams", "delete", "search")
    run("organizations", "delete", "acme")
    assert "no team" in run("teams", "info", "search", code=1)


def test_a_key_from_the_first_to_the_last(run: Run) -> None:
    run("users", "create", "bob")
    key = run("keys", "create", "--alias", "bobs", "--user-id", "bob", "--max-budget", "5", "--duration", "30d").strip()
    assert key.startswith("sk-")
    assert "bobs" in run("keys", "list", "--user-id", "bob")
    assert "bobs" not in run("keys", "list", "--user-id", "alice")
    run("keys", "update", "bobs", "--rpm-limit", "7", "--unset", "max_budget")
    info = load(run, "keys", "info", "bobs")["info"]
    assert (info["rpm_limit"], info["max_budget"]) == (7, None)
    assert key not in run("keys", "info", key)
    new = run("keys", "regenerate", "bobs", "--grace-period", "1h").strip()
    assert new.startswith("sk-")
    assert new != key
    assert load(run, "keys", "info", new)["info"]["rpm_limit"] == 7
    run("keys", "block", "bobs")
    assert "bobs" in run("keys", "list", "--blocked")
    assert "bobs" not in run("keys", "list", "--no-blocked")
    run("keys", "delete", new)
    assert "bobs" not in run("keys", "list")


def test_the_other_kinds_are_made_shown_changed_and_deleted(run: Run) -> None:
    run("budgets", "create", "trial", "--max-budget", "1", "--budget-duration", "1d", "--rpm-limit", "5")
    run("customers", "create", "c-1", "--alias", "First", "--budget-id", "trial")
    run("tags", "create", "batch", "--description", "nightly", "--max-budget", "3")
    assert "1 / 1d" in run("budgets", "list")
    assert "First" in run("customers", "list")
    assert "nightly" in run("tags", "list")
    assert load(run, "customers", "info", "c-1")["budget_id"] == "trial"
    run("customers", "update", "c-1", "--rpm-limit", "3")
    run("customers", "block", "c-1")
    assert "c-1" in run("customers", "list", "--blocked")
    run("customers", "unblock", "c-1")
    run("tags", "block", "batch")
    assert load(run, "tags", "info", "batch")["blocked"] is True
    run("tags", "update", "batch", "--unset", "max_budget")
    assert "used by" in run("budgets", "delete", "trial", code=1)
    run("customers", "delete", "c-1")
    run("budgets", "delete", "trial")
    run("tags", "delete", "batch")
    for group in ("customers", "budgets", "tags"):
        assert load(run, group, "list") == []


def test_models_are_added_and_taken_away_at_run_time(run: Run) -> None:
    made = run(
        "models", "add", "mini", "--provider", "openai", "--model", "gpt-4o-mini", "--api-key", "sk-canary-of-a-model",
        "--set", 'price={"input": 1, "output": 2}',
    ).strip()  # fmt: skip
    listed = run("models", "list")
    assert "mini" in listed
    assert made in listed
    assert "sk-canary-of-a-model" not in run("models", "list", "--json")
    run("models", "update", made, "--name", "small")
    assert "small" in run("models", "list")
    run("models", "delete", made)
    assert "small" not in run("models", "list")


def test_the_audit_names_who_did_what(run: Run) -> None:
    run("users", "create", "eve")
    run("users", "block", "eve")
    events = load(run, "audit", "--kind", "user", "--subject", "eve")
    assert [event["action"] for event in events] == ["update", "create"]
    assert len(load(run, "audit", "--limit", "1")) == 1
    assert "eve" in run("audit", "--subject", "eve")


def test_another_key_sees_only_its_own(run: Run) -> None:
    run("users", "create", "carol")
    key = run("keys", "create", "--alias", "carols", "--user-id", "carol").strip()
    assert "carols" in run("keys", "list", key=key)
    run("keys", "create", "--alias", "others")
    assert "others" not in run("keys", "list", key=key)
    assert "takes the master key" in run("teams", "create", "mine", key=key, code=1)
    assert "it is unknown" in run("keys", "list", key="sk-" + "x" * 43, code=1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("teams", "create", "--max-budget", "much"), "--max-budget must be an amount"),
        (("teams", "create", "--metadata", "[]"), "--metadata must be a JSON object"),
        (("teams", "create", "--set", "no value"), "--set must be name=JSON"),
        (("teams", "create", "--rpm-limit", "-1"), "rpm-limit"),
        (("teams", "update"), "Missing argument"),
    ],
)
def test_a_wrong_command_line_is_refused_before_anything_is_sent(
    run: Run, arguments: tuple[str, ...], said: str
) -> None:
    assert said in run(*arguments, code=2)


def test_a_field_the_api_does_not_take_is_named(run: Run) -> None:
    assert "colour" in run("teams", "create", "--set", "colour=red", code=1)
