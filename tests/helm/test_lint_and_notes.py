"""`helm lint --strict`, and the notes a user sees after `helm install`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar import __version__
from tests.helm.support import CHART, MANY, VALUES, Helm


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_the_chart_passes_lint(helm: Helm, values: dict[str, Any]) -> None:
    file = helm.home / "values.json"
    file.write_text(json.dumps(values))
    done = helm.run("lint", "--strict", CHART, "--values", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 chart(s) failed" in done.stdout


def notes(helm: Helm, values: dict[str, Any]) -> str:
    file = helm.home / "values.json"
    file.write_text(json.dumps(values))
    done = helm.run("install", "demo", CHART, "--dry-run=client", "--namespace", "ai", "--values", file)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("\nNOTES:\n")[2]


def test_the_notes_of_a_trial_say_where_the_key_is_and_what_ends_with_the_pod(helm: Helm) -> None:
    text = notes(helm, {})
    assert "http://demo-sidecar-gateway.ai:4000/v1" in text
    assert "logs deployment/demo-sidecar-gateway" in text
    assert "SQLite file that ends with the pod" in text
    assert "redis_url" not in text


def test_the_notes_warn_of_limits_by_replica_and_of_nothing_when_all_is_shared(helm: Helm) -> None:
    assert "WARNING" not in notes(helm, MANY)
    lonely = json.loads(json.dumps(MANY))
    del lonely["config"]["store"]["redis_url"]
    assert "each replica counts limits and budgets by itself" in notes(helm, lonely)


def test_the_notes_of_a_sidecar_name_its_address(helm: Helm) -> None:
    assert "OPENAI_BASE_URL=http://127.0.0.1:4000/v1" in notes(helm, dict(VALUES["sidecar"]))


def test_the_chart_and_the_package_have_one_version(helm: Helm) -> None:
    chart = helm.run("show", "chart", CHART).stdout
    assert f"appVersion: {__version__}\n" in chart
