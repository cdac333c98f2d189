"""The whole way as an operator goes it: import a configuration and a real PostgreSQL, serve what came out.

Clients notice nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner, Result

from sidecar.cli import app
from tests.faults.provider import FaultProvider
from tests.importing.litellm_tables import Company, hashed, in_days, next_month
from tests.promises.support import body, eventually

pytestmark = pytest.mark.anyio

MASTER = "sk-master-of-the-old-gateway-0001"
CONFIG = """
model_list:
  - model_name: gpt
    litellm_params:
      model: openai/gpt-1
      api_base: {url}/v1
      api_key: os.environ/OLD_PROVIDER_KEY
      input_cost_per_token: 0.000001
      output_cost_per_token: 0.000002
      max_tokens: 64
  - model_name: claude
    litellm_params:
      model: anthropic/claude-1
      api_base: {url}
      api_key: os.environ/OLD_PROVIDER_KEY
      input_cost_per_token: 0.000001
      output_cost_per_token: 0.000002
      max_tokens: 64
general_settings:
  master_key: os.environ/LITELLM_MASTER_KEY
"""
ENV = {"OLD_PROVIDER_KEY": "sk-provider-credential-0001", "LITELLM_MASTER_KEY": MASTER}


@dataclass
class Operator:
    folder: Path

    async def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(
            subprocess.run, [sys.executable, "-m", "sidecar", *arguments], capture_output=True, text=True, timeout=120,
            cwd=self.folder, env=self.env,
        )  # fmt: skip

    async def types(self, *arguments: str) -> Result:
        """The same without a process of its own."""
        return await asyncio.to_thread(CliRunner().invoke, app, list(arguments), env=ENV)

    @property
    def env(self) -> dict[str, str]:
        return os.environ | ENV

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[Clients]:
        output = self.folder / "output.log"
        with output.open("wb") as sink:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "sidecar", "serve", "--config", "sidecar.yaml", "--port", "0",
                stdout=sink, stderr=sink, cwd=self.folder, env=self.env,
            )  # fmt: skip
        found: list[str] = []

        def is_up() -> bool:
            text = output.read_text(errors="replace")
            assert process.returncode is None, text
            found[:] = re.findall(r"running on (http://127\.0\.0\.1:\d+)", text)
            return bool(found)

        try:
            await eventually(is_up, 60, lambda: output.read_text(errors="replace"))
            async with httpx2.AsyncClient(timeout=60, trust_env=False, base_url=found[0]) as http:
                yield Clients(http)
        finally:
            if process.returncode is None:
                process.terminate()
            await asyncio.wait_for(process.wait(), 90)


@dataclass
class Clients:
    http: httpx2.AsyncClient

    async def ask(self, key: str, model: str = "gpt", **more: Any) -> tuple[int, str]:
        """Status and error code."""
        answer = await self.http.post(
            "/v1/chat/completions", headers={"authorization": f"Bearer {key}"}, json=body(model, **more)
        )
        return answer.status_code, str((answer.json().get("error") or {}).get("code") or "")

    async def admin(self, path: str, key: str = MASTER) -> Any:
        answer = await self.http.get(path, headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
def operator(tmp_path: Path, faults: FaultProvider, monkeypatch: pytest.MonkeyPatch) -> Operator:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("SIDECAR_", "OPENAI_", "LITELLM_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "config.yaml").write_text(CONFIG.format(url=faults.base_url))
    return Operator(tmp_path)


def key(name: str) -> str:
    return f"sk-old-key-of-{name}-0123456789"


def a_company(url: str) -> Company:
    company = Company(url)
    company.add("BudgetTable", budget_id="tight", max_budget=1.0)
    company.add("TeamTable", team_id="red", models=["gpt"], max_budget=20.0, spend=3.0, budget_duration="30d",
                budget_reset_at=next_month(), members_with_roles=[{"role": "user", "user_id": "ann"}])  # fmt: skip
    company.add("TeamTable", team_id="blue", models=[], blocked=True)
    company.add("TeamTable", team_id="broke", models=[], max_budget=5.0, spend=5.0)
    company.add("TeamMembership", team_id="red", user_id="bob", spend=1.0, budget_id="tight")
    company.add("UserTable", user_id="ann", models=["no-default-models"], user_role="internal_user")
    company.add("EndUserTable", user_id="troll", blocked=True)
    company.key(key("plain"), models=[], spend=0.5, max_budget=10.0)
    company.key(key("team"), models=["all-team-models"], team_id="red", user_id="ann")
    company.key(key("claude"), models=["claude"])
    company.key(key("nobody"), models=["no-default-models"])
    company.key(key("blocked"), models=[], blocked=True)
    company.key(key("expired"), models=[], expires=in_days(-1))
    company.key(key("spent"), models=[], max_budget=2.0, spend=2.0)
    company.key(key("blue"), models=[], team_id="blue")
    company.key(key("broke"), models=[], team_id="broke")
    company.key(key("member"), models=[], team_id="red", user_id="bob")
    company.key(key("shared"), models=[], budget_id="tight", spend=1.0)
    company.key(key("slow"), models=[], rpm_limit=1)
    new = company.key(key("new"), models=[])
    company.add("DeprecatedVerificationToken", id="1", token=hashed(key("old")), active_token_id=new,
                revoke_at=in_days(1))  # fmt: skip
    return company


async def test_keys_budgets_and_blocks_go_on_where_they_were(operator: Operator, postgres_url: str) -> None:
    await a_company(postgres_url).write()
    done = await operator.run("import", "litellm", "--config", "config.yaml", "--database-url", postgres_url)
    assert done.returncode == 0, done.stderr
    assert "14 keys created" in done.stdout
    for name in ("plain", "old"):
        assert key(name) not in done.stdout
    async with operator.serve() as clients:
        assert await clients.ask(key("plain")) == (200, "")
        assert await clients.ask(key("plain"), "claude") == (200, "")
        assert await clients.ask(key("plain"), user="troll") == (403, "end_user_blocked")
        assert await clients.ask(key("team")) == (200, ""), "a user's models bind no team key"
        assert (await clients.ask(key("team"), "claude"))[0] == 403
        assert await clients.ask(key("claude"), "claude") == (200, "")
        assert (await clients.ask(key("claude"), "gpt"))[0] == 403
        assert (await clients.ask(key("nobody")))[0] == 403
        assert await clients.ask(key("blocked")) == (401, "key_blocked")
        assert await clients.ask(key("expired")) == (401, "expired_key")
        assert (await clients.ask(key("blue")))[0] == 403
        for name in ("spent", "broke", "member", "shared"):
            assert await clients.ask(key(name)) == (429, "budget_exceeded"), name
        assert [await clients.ask(key("slow")) for _ in "12"] == [(200, ""), (429, "requests_limit_exceeded")]
        assert await clients.ask(key("old")) == (200, "")
        assert await clients.ask(key("new")) == (200, "")
        assert (await clients.ask(key("never-there")))[0] == 401
        info = await clients.admin(f"/key/info?key={hashed(key('plain'))}")
        assert info["info"]["spend"] >= 0.5
        assert (await clients.ask(MASTER))[0] == 200


async def test_a_dry_run_touches_nothing_and_tells_as_json(operator: Operator, postgres_url: str) -> None:
    await a_company(postgres_url).write()
    done = await operator.types(
        "import", "litellm", "--config", "config.yaml", "--database-url", postgres_url, "--dry-run", "--json"
    )
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["database"]["written"] == {}
    entries = {(e["table"], e["column"], e["status"]): e["rows"] for e in report["database"]["entries"]}
    assert entries["LiteLLM_VerificationToken", "token", "taken"] == 13
    assert entries["LiteLLM_VerificationToken", "blocked", "taken"] == 1
    assert sorted(file.name for file in operator.folder.iterdir()) == ["config.yaml"]


async def test_a_second_run_keeps_the_file_and_writes_nothing_twice(operator: Operator, postgres_url: str) -> None:
    await a_company(postgres_url).write()
    line = ("import", "litellm", "--config", "config.yaml", "--database-url", postgres_url)
    assert (await operator.types(*line)).exit_code == 0
    file = operator.folder / "sidecar.yaml"
    file.write_text(file.read_text() + "# mine\n")
    again = await operator.types(*line)
    assert again.exit_code == 0, again.stderr
    assert "# mine" in file.read_text()
    assert "created" not in again.stdout
    assert "spend totals of" not in again.stdout
    assert "14 keys unchanged" in again.stdout


async def test_our_database_may_be_named(operator: Operator, postgres_url: str) -> None:
    company = Company(postgres_url)
    company.key(key("plain"), models=[], spend=0.5)
    await company.write()
    line = ("import", "litellm", "--config", "config.yaml", "--database-url", postgres_url)
    there = await operator.types(*line, "--into", f"sqlite:///{operator.folder}/named.db", "--strict")
    assert there.exit_code == 0, there.stdout
    assert (operator.folder / "named.db").exists()
    assert f"carried over into sqlite:///{operator.folder}/named.db" in there.stdout
    assert not (operator.folder / ".sidecar").exists()


async def test_without_its_variables_the_file_names_no_database(operator: Operator, postgres_url: str) -> None:
    company = Company(postgres_url)
    company.key(key("plain"), models=[])
    await company.write()
    config = operator.folder / "config.yaml"
    config.write_text(config.read_text() + "  database_url: os.environ/NOT_SET_HERE\n")
    done = await operator.types("import", "litellm", "--config", "config.yaml", "--database-url", postgres_url)
    assert done.exit_code == 2
    assert "NOT_SET_HERE" in done.stderr
    assert "--into" in done.stderr


@pytest.mark.parametrize(
    ("url", "fault", "code"),
    [
        ("sqlite:///x.db", "has to begin with postgresql://", 2),
        ("postgresql://nobody:canary-password@127.0.0.1:1/x", "does not answer", 1),
    ],
)
async def test_a_database_that_cannot_be_read_is_told(operator: Operator, url: str, fault: str, code: int) -> None:
    done = await operator.types("import", "litellm", "--config", "config.yaml", "--database-url", url)
    assert done.exit_code == code
    assert fault in done.stderr
    assert "canary" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


async def test_a_database_without_their_tables_is_told(operator: Operator, bare_postgres_url: str) -> None:
    done = await operator.types("import", "litellm", "--config", "config.yaml", "--database-url", bare_postgres_url)
    assert (done.exit_code, "no tables of LiteLLM" in done.stderr) == (2, True)
