"""What a good configuration becomes: references, environment, defaults, secrets that show nowhere."""

from __future__ import annotations

import base64
from decimal import Decimal
from pathlib import Path
from urllib.parse import quote

import pytest

from sidecar.config import Config, load_config
from tests.config.support import REPO, faults_of, load

GOOD = """\
auth: {master_key: "${MASTER}"}
models:
  - name: claude
    deployments:
      - {provider: anthropic, model: claude-sonnet-4-5, api_key: "${KEY:-sk-ant-x}", weight: 3}
routing: {retries: 1}
"""


def test_references_are_replaced_and_escaped(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("sk-from-file\n")
    text = f"""\
auth: {{master_key: "${{file:{secret}}}"}}
log: {{level: "${{LEVEL:-debug}}"}}
server: {{port: "${{PORT}}"}}
store: {{journal_dir: "/var/${{A}}-${{B:-}}$1$$", database_url: "sqlite:///$${{x}}"}}
"""
    config = load(tmp_path, text, {"PORT": "81", "A": "a"})
    assert config.auth != "none"
    assert config.auth.master_key is not None
    assert config.auth.master_key.reveal() == "sk-from-file"
    assert config.log.level == "debug"
    assert config.store.database_url.reveal() == "sqlite:///${x}"
    assert config.server.port == 81
    assert config.store.journal_dir == "/var/a-$1$$"


def test_a_replaced_value_is_not_read_again(tmp_path: Path) -> None:
    config = load(tmp_path, 'store: {journal_dir: "${A}"}\n', {"A": "${B}", "B": "no"})
    assert config.store.journal_dir == "${B}"


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    env = {
        "MASTER": "sk-m",
        "SIDECAR_SERVER__PORT": "5000",
        "SIDECAR_STORE__REDIS_URL": "redis://127.0.0.1",
        "SIDECAR_ROUTING__FALLBACKS": '{"claude": ["claude-2"]}',
        "SIDECAR_ROUTING__ALIASES": '{"claude-2": "claude"}',
        "SIDECAR_BUDGET__MAX_USD": "0.1",
        "SIDECAR_LOG": '{"access": true}',
        "SIDECAR_LIMITS__RPM": "",
    }
    config = load(tmp_path, GOOD, env)
    assert config.server.port == 5000
    assert config.store.redis_url is not None
    assert config.store.redis_url.reveal() == "redis://127.0.0.1"
    assert config.models[0].deployments[0].weight == 3
    assert config.routing.retries == 1
    assert config.routing.fallbacks == {"claude": ["claude-2"]}
    assert config.budget.max_usd == Decimal("0.1")
    assert config.log.access
    assert config.limits.rpm is None


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, "sk-file"),
        ({"SIDECAR_MASTER_KEY": "sk-short"}, "sk-short"),
        ({"SIDECAR_MASTER_KEY": "sk-short", "SIDECAR_AUTH__MASTER_KEY": "sk-long"}, "sk-long"),
    ],
)
def test_the_master_key_of_the_environment_wins(tmp_path: Path, env: dict[str, str], expected: str) -> None:
    config = load(tmp_path, "auth: {master_key: sk-file, key_cache_s: 5}\n", env)
    assert config.auth != "none"
    assert config.auth.master_key is not None
    assert config.auth.master_key.reveal() == expected
    assert config.auth.key_cache_s == 5


def test_auth_none_and_a_master_key_contradict_each_other(tmp_path: Path) -> None:
    assert faults_of(tmp_path, "auth: none\n", {"SIDECAR_MASTER_KEY": "sk-x"}) == [
        "sidecar.yaml:1:7: 'auth: none' and SIDECAR_MASTER_KEY contradict each other; remove one"
    ]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("SIDECAR_STORE__REDIS_URI", "did you mean SIDECAR_STORE__REDIS_URL?"),
        ("SIDECAR_STORE_REDIS_URL", "did you mean SIDECAR_STORE__REDIS_URL?"),
        ("SIDECAR_SERVR", "did you mean SIDECAR_SERVER?"),
        ("SIDECAR_PORT", "did you mean SIDECAR_SERVER__PORT?"),
        ("SIDECAR_RPM", "did you mean SIDECAR_LIMITS__RPM?"),
        ("SIDECAR_MODELS__NAME", "did you mean SIDECAR_MODELS?"),
        ("SIDECAR_QQQQQQQQ", "remove it; docs/configuration.md lists them"),
    ],
)
def test_a_misspelt_variable_is_refused(tmp_path: Path, name: str, hint: str) -> None:
    faults = faults_of(tmp_path, GOOD, {"MASTER": "sk-m", name: "x"})
    assert faults == [f"environment: {name}: names no setting; {hint}"]


def test_variables_kubernetes_makes_for_a_service_are_not_ours(tmp_path: Path) -> None:
    env = {
        "MASTER": "sk-m",
        "SIDECAR_SERVICE_HOST": "10.0.0.1",
        "SIDECAR_SERVICE_PORT": "4000",
        "SIDECAR_SERVICE_PORT_HTTP": "4000",
        "SIDECAR_PORT": "tcp://10.0.0.1:4000",
        "SIDECAR_PORT_4000_TCP": "tcp://10.0.0.1:4000",
        "SIDECAR_PORT_4000_TCP_ADDR": "10.0.0.1",
        "SIDECAR_GATEWAY_SERVICE_HOST": "10.0.0.1",
        "SIDECAR_GATEWAY_PORT": "tcp://10.0.0.1:4000",
    }
    assert load(tmp_path, GOOD, env).server.port == 4000


@pytest.mark.parametrize(
    ("env", "fault"),
    [
        ({"SIDECAR_SERVER__PORT": "x"}, "environment: SIDECAR_SERVER__PORT: 'server.port': must be a whole number"),
        ({"SIDECAR_MODELS": "[1"}, "environment: SIDECAR_MODELS: must be JSON, for it is a list or a mapping"),
        (
            {"SIDECAR_LIMITS": '{"rmp": 1}'},
            "environment: SIDECAR_LIMITS: unknown key 'limits.rmp'; did you mean 'rpm'?",
        ),
        ({"SIDECAR_STORE__REDIS_URL": "x"}, "environment: SIDECAR_STORE__REDIS_URL: must begin with redis://"),
        ({"SIDECAR_AUTH": "none", "SIDECAR_SERVER__HOST": "::"}, "environment: SIDECAR_AUTH: 'auth: none' needs"),
        ({"SIDECAR_MASTER_KEY": "a b"}, "environment: SIDECAR_MASTER_KEY: 'auth.master_key': holds a character"),
        ({"OPENAI_API_KEY": "a\nb"}, "environment: OPENAI_API_KEY: holds a character no credential has"),
    ],
)
def test_a_bad_variable_is_blamed_on_the_environment(tmp_path: Path, env: dict[str, str], fault: str) -> None:
    faults = faults_of(tmp_path, "", env)
    assert len(faults) == 1
    assert faults[0].startswith(fault)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/v1/", "http://10.0.0.7", "http://[::1]:8000", "http://ollama:1/", "http://x.svc"]
)
def test_plain_http_is_for_private_places(tmp_path: Path, url: str) -> None:
    text = "models: [{name: a, deployments: [{provider: vllm, model: m, base_url: '%s'}]}]\n"
    assert load(tmp_path, text % url).models[0].deployments[0].base_url == url.rstrip("/")


def test_plain_http_elsewhere_must_be_wanted(tmp_path: Path) -> None:
    text = "models: [{name: a, deployments: [{provider: vllm, model: m, base_url: 'http://x.io', %s: true}]}]"
    assert load(tmp_path, text % "allow_plain_http").models[0].deployments[0].base_url == "http://x.io"


def test_names_may_be_served_by_a_wildcard(tmp_path: Path) -> None:
    text = """\
models:
  - name: openai/*
    deployments: [{provider: openai, model: "*", api_key: k}]
routing: {aliases: {fast: openai/gpt-4o-mini}, fallbacks: {fast: [openai/gpt-4o]}}
"""
    assert load(tmp_path, text).routing.aliases == {"fast": "openai/gpt-4o-mini"}
    env = {"OPENAI_API_KEY": "sk-x"}
    assert load(tmp_path, "routing: {aliases: {fast: openai/gpt-4o}}\n", env).routing.aliases
    assert faults_of(tmp_path, "routing: {aliases: {fast: openai/gpt-4o}}\n")


def test_a_date_and_numbers_are_plain_values(tmp_path: Path) -> None:
    text = "models: [{name: a, deployments: [{provider: openai, model: 2024-10-21, api_key: k, params: {%s}}]}]"
    deployment = load(tmp_path, text % "t: 0.5, n: 0x10").models[0].deployments[0]
    assert deployment.model == "2024-10-21"
    assert [type(v) for v in deployment.params.values()] == [float, int]


CANARY = "sk-canary/7d1f+ü-9e"
PLACES = [
    "server: {host: '${KEY}'}",
    "server: {port: '${KEY}'}",
    "auth: '${KEY}'",
    "auth: {master_key: '${KEY}'}",
    "store: {database_url: '${KEY}', redis_url: '${KEY}', durability: '${KEY}', deadline_s: '${KEY}'}",
    "models: [{name: '${KEY}', deployments: '${KEY}'}]",
    "models: [{name: a, deployments: [{provider: '${KEY}', model: '${KEY}', price: '${KEY}', base_url: '${KEY}'}]}]",
    "models: [{name: a, deployments: [{provider: vllm, model: m, headers: {x: 'é${KEY}'}, params: '${KEY}'}]}]",
    "models: [{name: a, deployments: [{provider: vllm, model: m, base_url: 'https://u:${KEY}@h'}]}]",
    "routing: {strategy: '${KEY}', fallbacks: {a: ['${KEY}']}, aliases: {b: '${KEY}'}}",
    "budget: {timezone: '${KEY}', max_usd: '${KEY}', duration: '${KEY}', unpriced: '${KEY}'}",
    "upstream: {ca_file: '${KEY}', proxy: '${KEY}'}",
    "log: {level: 'x${KEY}y'}\nbogus: '${KEY}'",
]


@pytest.mark.parametrize("text", PLACES)
@pytest.mark.parametrize("canary", [CANARY, "sk-canary-plain-7d1f"])
def test_no_fault_shows_a_secret(tmp_path: Path, text: str, canary: str) -> None:
    faults = "\n".join(faults_of(tmp_path, text, {"KEY": canary}))
    for form in (canary, canary[4:12], quote(canary), base64.b64encode(canary.encode()).decode()):
        assert form not in faults


def test_a_bad_override_does_not_show_its_value(tmp_path: Path) -> None:
    names = ["SIDECAR_STORE__REDIS_URL", "SIDECAR_BUDGET__TIMEZONE", "SIDECAR_AUTH", "SIDECAR_MODELS", "SIDECAR_BOGUS"]
    faults = faults_of(tmp_path, "", dict.fromkeys(names, CANARY))
    assert len(faults) == len(names)
    assert not any(CANARY in fault for fault in faults)


def test_a_loaded_configuration_does_not_print_its_secrets(tmp_path: Path) -> None:
    text = """\
auth: {master_key: "${KEY}"}
store: {database_url: "postgresql://u:${KEY}@h/d", redis_url: "redis://:${KEY}@h"}
upstream: {proxy: "http://u:${KEY}@proxy"}
models: [{name: a, deployments: [{provider: openai, model: m, api_key: "${KEY}", headers: {x-token: "${KEY}"}}]}]
"""
    canary = "sk-canary-plain-7d1f"
    config = load(tmp_path, text, {"KEY": canary})
    assert canary not in repr(config) + str(config) + str(config.model_dump())


def test_without_a_file_the_defaults_hold() -> None:
    config = load_config(None, {})
    assert config == Config()
    assert config.server.host == "127.0.0.1"
    assert config.store.database_url.reveal() == "sqlite:///.sidecar/sidecar.db"


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    for text in ("", "# nothing yet\n", "{}\n", "\ufeff{}\n"):
        assert load(tmp_path, text) == Config()


def test_the_example_is_valid() -> None:
    env = {"SIDECAR_MASTER_KEY": "sk-m", "ANTHROPIC_API_KEY": "sk-a", "OPENAI_API_KEY": "sk-o"}
    config = load_config(REPO / "examples" / "sidecar.yaml", env)
    assert [model.name for model in config.models] == ["claude", "gpt-4o", "openai/*", "local"]
