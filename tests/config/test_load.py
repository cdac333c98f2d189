"""Configuration errors say file, line, column, what is wrong and the fix; secrets never show."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.config import ConfigError, load_config
from sidecar.config.schema import json_schema

GOOD = """\
auth: {master_key: "${MASTER}"}
models:
  - name: claude
    deployments:
      - {provider: anthropic, model: claude-sonnet-4-5, api_key: "${KEY:-sk-ant-x}", weight: 3}
routing: {retries: 1}
"""

BAD = [
    ("serve: {}\n", "1:1: unknown key 'serve'; did you mean 'server'?"),
    ("server:\n  prot: 1\n", "2:3: unknown key 'server.prot'; did you mean 'port'?"),
    ("server: {port: many}\n", "1:16: 'server.port': input should be a valid integer"),
    ("server: {port: 1}\nserver: {port: 2}\n", '2:1: the key "server" stands here a second time'),
    ("auth: {master_key: ${NOPE}}\n", "not valid YAML"),
    ('auth: {master_key: "${NOPE}"}\n', "1:20: the environment variable NOPE is not set"),
    ('auth: {master_key: "${file:/no/such}"}\n', "1:20: cannot read the file /no/such"),
    ('auth: {master_key: "${1x}"}\n', "must hold NAME, NAME:-default or file:/path"),
    ("routing: {fallbacks: {gpt: [x]}}\n", "fallbacks name the model 'gpt', which does not exist"),
    ("budget: {max_usd: .nan}\n", "1:19: 'budget.max_usd'"),
    ("budget: {max_usd: -1}\n", "1:19: 'budget.max_usd': input should be greater than or equal to 0"),
    ("budget: {max_usd: 1, duration: 3y}\n", "'3y' is not a duration"),
    ("budget: {timezone: Mars}\n", "not a timezone"),
    ("server: {host: 0.0.0.0}\nauth: none\n", "2:7: 'auth: none' needs server.host 127.0.0.1"),
    ("store: {database_url: mysql://x}\n", "must begin with sqlite:/// or postgresql://"),
    ("- a\n", "1:1: must be a mapping"),
    ("models: [{name: a, deployments: [{provider: antropic, model: m}]}]\n", "did you mean 'anthropic'?"),
    ("models: [{name: a, deployments: [{provider: openai, model: m}]}]\n", "needs api_key"),
    (
        "models: [{name: a, deployments: [{provider: openai, model: m, api_key: k, base_url: 'http://u:p@h/'}]}]\n",
        "must not hold a credential",
    ),
    ("models: [{name: a, deployments: []}]\n", "'models.0.deployments'"),
    ("models: [{name: a}]\n", "'models.0.deployments' is missing; add it"),
]


def load(tmp_path: Path, text: str, env: dict[str, str] | None = None):
    file = tmp_path / "sidecar.yaml"
    file.write_text(text)
    return load_config(file, env or {})


@pytest.mark.parametrize(("text", "expected"), BAD, ids=[b[1][:40] for b in BAD])
def test_a_bad_file_is_refused_with_place_and_fix(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text)
    assert expected in str(error.value)
    assert str(tmp_path / "sidecar.yaml") in str(error.value)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, "server: {prot: 1, port: x}\nrouting: {retries: 99}\n")
    assert len(error.value.faults) == 3


def test_references_are_replaced_and_escaped(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("sk-from-file\n")
    text = f'auth: {{master_key: "${{file:{secret}}}"}}\nlog: {{level: "${{LEVEL:-debug}}"}}\nspend: {{jsonl: "$${{x}}"}}\n'
    config = load(tmp_path, text)
    assert config.auth.master_key.reveal() == "sk-from-file"
    assert config.log.level == "debug"
    assert config.spend.jsonl == "${x}"


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    env = {"MASTER": "sk-m", "SIDECAR_SERVER__PORT": "5000", "SIDECAR_STORE__REDIS_URL": "redis://127.0.0.1"}
    config = load(tmp_path, GOOD, env)
    assert config.server.port == 5000
    assert config.store.redis_url.reveal() == "redis://127.0.0.1"
    assert config.models[0].deployments[0].weight == 3


@pytest.mark.parametrize(
    ("name", "hint"),
    [("SIDECAR_STORE__REDIS_URI", "SIDECAR_STORE__REDIS_URL"), ("SIDECAR_SERVR", "SIDECAR_SERVER")],
)
def test_a_misspelt_variable_is_refused(tmp_path: Path, name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, GOOD, {"MASTER": "sk-m", name: "x"})
    assert f"{name} names no setting; did you mean {hint}?" in str(error.value)


def test_a_bad_variable_is_blamed_on_the_environment(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, GOOD, {"MASTER": "sk-m", "SIDECAR_SERVER__PORT": "x"})
    assert "environment: SIDECAR_SERVER__PORT" in str(error.value)


def test_secrets_show_nowhere(tmp_path: Path) -> None:
    canary = "sk-canary-7d1f"
    config = load(tmp_path, GOOD, {"MASTER": canary, "KEY": canary})
    assert canary not in repr(config)
    assert canary not in str(config.model_dump())
    with pytest.raises(ConfigError) as error:
        load(tmp_path, GOOD + "server: {port: '${KEY}'}\n", {"MASTER": canary, "KEY": canary})
    assert canary not in str(error.value)


def test_without_a_file_the_defaults_hold() -> None:
    config = load_config(None, {})
    assert config.server.host == "127.0.0.1"
    assert config.store.database_url.reveal() == "sqlite:///.sidecar/sidecar.db"


def test_the_schema_is_valid_and_takes_references() -> None:
    import jsonschema

    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid({"server": {"port": "${PORT}"}})
    assert not validator.is_valid({"server": {"prot": 1}})
    assert not validator.is_valid({"server": {"port": "x"}})
