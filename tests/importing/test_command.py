"""`sidecar import litellm` as typed: files, exit codes, report as text and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sidecar.cli import app
from sidecar.config import load_config
from tests.importing.support import CONFIGS


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def run(name: str | Path, *more: str) -> Result:
    file = CONFIGS / f"{name}.yaml" if isinstance(name, str) else name
    result = CliRunner().invoke(app, ["import", "litellm", "--config", str(file), *more])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "canary" not in result.output
    return result


def test_it_writes_sidecar_yaml_and_prints_the_report(tmp_path: Path) -> None:
    result = run("minimal")
    assert result.exit_code == 0
    config = load_config(tmp_path / "sidecar.yaml", {"OPENAI_API_KEY": "sk-0123456789abcdef"})
    assert config.models[0].name == "helper"
    assert result.stdout.splitlines()[0].endswith("minimal.yaml:2: model_list[0].model_name: taken -> models.name")
    assert result.stdout.splitlines()[-1] == "3 taken, 0 changed, 0 no equivalent"
    assert [file.name for file in tmp_path.iterdir()] == ["sidecar.yaml"]


def test_a_file_that_is_there_is_kept_unless_forced(tmp_path: Path) -> None:
    there = tmp_path / "mine.yaml"
    there.write_text("# mine\n")
    refused = run("minimal", "--out", "mine.yaml")
    assert (refused.exit_code, refused.stderr) == (
        2,
        "mine.yaml: exists; give another --out, or --force to write over it\n",
    )
    assert there.read_text() == "# mine\n"
    assert run("minimal", "--out", "mine.yaml", "--force").exit_code == 0
    assert "helper" in there.read_text()


def test_the_source_itself_is_never_written_over(tmp_path: Path) -> None:
    source = tmp_path / "config.yaml"
    source.write_text((CONFIGS / "minimal.yaml").read_text())
    result = run(source, "--out", "config.yaml", "--force")
    assert result.exit_code == 2
    assert "is the source itself" in result.stderr
    assert source.read_text() == (CONFIGS / "minimal.yaml").read_text()


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    result = run("small_team", "--dry-run")
    assert result.exit_code == 0
    assert "6 no equivalent" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_to_standard_output_the_report_goes_to_standard_error(tmp_path: Path) -> None:
    result = run("minimal", "--out", "-")
    (tmp_path / "piped.yaml").write_text(result.stdout)
    assert load_config(tmp_path / "piped.yaml", {"OPENAI_API_KEY": "sk-0123456789abcdef"}).models[0].name == "helper"
    assert "3 taken" in result.stderr


def test_the_report_as_json() -> None:
    report = json.loads(run("small_team", "--json", "--dry-run").stdout)
    assert report["counts"]["no equivalent"] == 6
    assert len(report["lines"]) == sum(report["counts"].values())
    line = next(line for line in report["lines"] if line["key"] == "litellm_settings.budget_duration")
    assert (line["line"], line["status"], line["to"]) == (38, "changed", "budget.duration")
    assert {variable["name"] for variable in report["environment"]} >= {"TEAM_ANTHROPIC_KEY", "SIDECAR_MASTER_KEY"}


def test_strict_fails_if_something_has_no_equivalent() -> None:
    assert run("minimal", "--strict", "--dry-run").exit_code == 0
    assert run("small_team", "--strict", "--dry-run").exit_code == 1


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("model_list: [{model_name: a}]\n", "1:14: an entry of 'model_list' needs litellm_params, a mapping"),
        ("model_list: {a: 1}\n", "'model_list' must be a list"),
        ("- a\n", "must be a mapping with keys such as model_list"),
        ("a: &a {b: *a}\n", "too many values or too deep"),
        ("a: 1\na: 2\n", "2:1: this key stands here again"),
        ("a: [\n", "not valid YAML"),
        ("a: !!python/object/apply:os.system [x]\n", "a value with a tag of its own"),
        ("include: [gone.yaml]\n", "the included file cannot be read"),
        ("include: [config.yaml]\n", "this file includes itself"),
        ("", "is empty"),
    ],
)
def test_a_source_that_cannot_be_read_is_told_with_its_place(tmp_path: Path, text: str, fault: str) -> None:
    source = tmp_path / "config.yaml"
    source.write_text(text)
    result = run(source)
    assert result.exit_code == 2
    assert fault in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "sidecar.yaml").exists()
