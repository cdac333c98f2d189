"""`sidecar explain`: the provider's request from the configuration alone, nothing sent, no credential shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from sidecar.cli import app

SECRET = "sk-canary-of-explain-5e1d"
REQUEST = {"model": "any", "messages": [{"role": "user", "content": "hi"}], "logit_bias": {"5": 1}}
CONFIG = {
    "models": [
        {
            "name": "claude",
            "deployments": [
                {"provider": "anthropic", "model": "claude-sonnet-4-5", "api_key": SECRET, "drop_params": True,
                 "headers": {"anthropic-beta": "b-1"}},
                {"provider": "bedrock", "model": "amazon.nova-lite-v1:0", "region": "eu-west-1", "order": 2},
            ],
        },
        {"name": "strict", "deployments": [{"provider": "anthropic", "model": "claude-sonnet-4-5", "api_key": SECRET}]},
    ]
}  # fmt: skip


@pytest.fixture(autouse=True)
def _a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SIDECAR_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("sidecar.yaml").write_text(json.dumps(CONFIG))
    Path("request.json").write_text(json.dumps(REQUEST))


def run(*arguments: str, **more: Any) -> Result:
    result = CliRunner().invoke(app, ["explain", *arguments], **more)
    assert SECRET not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_it_prints_request_losses_and_candidates() -> None:
    result = run("request.json", "--model", "claude", "--config", "sidecar.yaml")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "POST https://api.anthropic.com/v1/messages"
    assert {"x-api-key: ***", "anthropic-beta: ***", "anthropic-version: 2023-06-01"} <= set(lines)
    assert '  "model": "claude-sonnet-4-5",' in lines
    at = lines.index("losses:")
    assert [line.split()[:2] for line in lines[at + 1 : at + 3]] == [
        ["dropped", "logit_bias:"],
        ["capped", "max_tokens:"],
    ]
    first, second = lines[-2:]
    assert first.startswith("* claude#0:anthropic  anthropic/claude-sonnet-4-5  level 1, weight 1, healthy")
    assert second.startswith("  claude#1:bedrock  bedrock/amazon.nova-lite-v1:0  level 2")


def test_who_serves_only_after_an_error_is_listed_with_it() -> None:
    routing = {"context_window_fallbacks": {"claude": ["strict"]}}
    Path("sidecar.yaml").write_text(json.dumps({**CONFIG, "routing": routing}))
    result = run("request.json", "-m", "claude", "-c", "sidecar.yaml")
    assert result.stdout.splitlines()[-1] == (
        "  strict#0:anthropic  anthropic/claude-sonnet-4-5  level 1, weight 1, healthy, after a context_window error"
    )


def test_it_reads_standard_input_and_prints_json() -> None:
    result = run("-", "-m", "claude", "-c", "sidecar.yaml", "--json", input=json.dumps(REQUEST))
    shown = json.loads(result.stdout)
    assert shown["request"]["url"] == "https://api.anthropic.com/v1/messages"
    assert [row["is_chosen"] for row in shown["candidates"]] == [True, False]
    assert {path.name for path in Path.cwd().iterdir()} == {"sidecar.yaml", "request.json"}  # no journal, no database


def test_a_cloud_without_a_key_says_that_it_signs_when_sent() -> None:
    config = {"models": [{"name": "nova", "deployments": [CONFIG["models"][0]["deployments"][1]]}]}  # type: ignore[index]
    Path("sidecar.yaml").write_text(json.dumps(config))
    del (request := dict(REQUEST))["logit_bias"]
    Path("request.json").write_text(json.dumps(request))
    shown = json.loads(run("request.json", "-m", "nova", "-c", "sidecar.yaml", "--json").stdout)
    assert shown["request"]["headers"]["authorization"] == "*** (AWS signature, made when sent)"
    assert shown["request"]["url"].endswith(".eu-west-1.amazonaws.com/model/amazon.nova-lite-v1%3A0/converse")


def test_the_files_budget_bounds_an_output_nobody_bounded() -> None:
    Path("sidecar.yaml").write_text(json.dumps({**CONFIG, "budget": {"max_usd": 5, "default_output_tokens": 700}}))
    shown = json.loads(run("request.json", "-m", "claude", "-c", "sidecar.yaml", "--json").stdout)
    assert shown["request"]["body"]["max_tokens"] == 700
    assert [loss["what"][:4] for loss in shown["losses"] if loss["kind"] == "capped"] == ["700,"]
    Path("sidecar.yaml").write_text(json.dumps({**CONFIG, "budget": {"max_usd": 5, "no_max_tokens": "refuse"}}))
    result = run("request.json", "-m", "claude", "-c", "sidecar.yaml")
    assert (result.exit_code, "'max_tokens'" in result.stderr) == (1, True)


def test_a_credential_in_the_body_is_masked_too() -> None:
    params = {"metadata": {"user_id": "u"}, "mcp_servers": [{"url": "https://m", "authorization_token": "abc"}]}
    params["note"] = f"as {SECRET} says"  # type: ignore[assignment]
    deployment = {"provider": "anthropic", "model": "claude-sonnet-4-5", "api_key": SECRET, "params": params}
    Path("sidecar.yaml").write_text(json.dumps({"models": [{"name": "m", "deployments": [deployment]}]}))
    Path("request.json").write_text(json.dumps({"messages": REQUEST["messages"], "max_tokens": 9}))
    body = json.loads(run("request.json", "-m", "m", "-c", "sidecar.yaml", "--json").stdout)["request"]["body"]
    assert body["mcp_servers"] == [{"url": "https://m", "authorization_token": "***"}]
    assert (body["note"], body["max_tokens"], body["metadata"]) == ("as *** says", 9, {"user_id": "u"})


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["request.json", "-m", "strict", "-c", "sidecar.yaml"], 1, "provider anthropic does not support 'logit_bias'"),
        (["request.json", "-m", "nobody", "-c", "sidecar.yaml"], 1, "does not know the model 'nobody'"),
        (["nowhere.json", "-m", "claude", "-c", "sidecar.yaml"], 2, "nowhere.json: No such file"),
        (["sidecar.yaml", "-c", "sidecar.yaml"], 2, "no model"),
        (["bad.json", "-m", "claude", "-c", "sidecar.yaml"], 2, "bad.json: not JSON"),
        (["list.json", "-m", "claude", "-c", "sidecar.yaml"], 2, "not a JSON object"),
        (["request.json", "-m", "claude", "-c", "elsewhere.yaml"], 2, "elsewhere.yaml"),
        ([], 2, "give the file of a chat request"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: list[str], code: int, says: str) -> None:
    Path("bad.json").write_text("{")
    Path("list.json").write_text("[]")
    result = run(*arguments)
    assert result.exit_code == code
    assert says in result.stderr
    assert "Traceback" not in result.output


def test_a_refusal_as_json_is_the_error_a_client_would_get() -> None:
    result = run("request.json", "-m", "strict", "-c", "sidecar.yaml", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["param"] == "logit_bias"
