"""The named templates that other charts include, and what the documentation shows of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from sidecar.config import load_config
from tests.helm.support import CHART, REPO, Helm, of_kind, pod_of, sidecar_yaml
from tests.helm.test_objects import KUBERNETES, faults_of_pod

DOC = REPO / "docs" / "kubernetes.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOC.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("version", KUBERNETES)
def test_a_pod_of_another_chart_takes_the_gateway_as_a_native_sidecar(
    helm: Helm, app_chart: Path, tmp_path: Path, version: str
) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="`make test` installs it")
    objects = helm.objects({}, chart=app_chart)
    assert sorted(o["kind"] for o in objects) == ["ConfigMap", "Deployment"]
    for item in objects:
        kubernetes_validate.validate(item, version, strict=True)
    pod = pod_of(objects)
    assert faults_of_pod(pod) == []
    (gateway,) = pod["initContainers"]
    assert gateway["restartPolicy"] == "Always"
    assert gateway["envFrom"] == [{"secretRef": {"name": "llm-keys"}}]
    mounted = {mount["name"] for mount in gateway["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    name = of_kind(objects, "ConfigMap")["metadata"]["name"]
    assert {"name": "sidecar-config", "configMap": {"name": name}} in pod["volumes"]
    (tmp_path / "sidecar.yaml").write_text(sidecar_yaml(objects))
    config = load_config(tmp_path / "sidecar.yaml", {"ANTHROPIC_API_KEY": "sk-ant"})
    assert (config.auth, config.server.host) == ("none", "127.0.0.1")
    url = next(e["value"] for e in pod["containers"][0]["env"] if e["name"] == "OPENAI_BASE_URL")
    assert url == f"http://{config.server.host}:{config.server.port}/v1"


def test_the_documented_manifest_is_what_the_example_renders(helm: Helm, app_chart: Path) -> None:
    shown = [d for block in blocks("yaml") if "restartPolicy: Always" in block for d in load_all(block)]
    rendered = helm.objects({}, chart=app_chart)
    assert shown == [pod_template_without_checksum(of_kind(rendered, "Deployment"))]


def pod_template_without_checksum(deployment: dict[str, Any]) -> Any:
    template = deployment["spec"]["template"]
    assert list(template["metadata"].pop("annotations")) == ["checksum/config"]
    return deployment


def load_all(text: str) -> list[Any]:
    return list(YAML(typ="safe", pure=True).load_all(text))


def test_the_documented_lines_of_a_users_chart_are_those_of_the_example() -> None:
    files = [p.read_text() for p in sorted((REPO / "tests" / "helm" / "app").rglob("*.yaml"))]
    lines = [line.strip() for text in files for line in text.splitlines()]
    (block,) = [b for b in blocks("yaml") if "sidecarContainer" in b]
    wanted = [line.strip() for line in block.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert wanted
    assert [line for line in wanted if line not in lines] == []


def test_the_documentation_names_every_value_and_no_other() -> None:
    values = YAML(typ="safe", pure=True).load((CHART / "values.yaml").read_text())
    table = DOC.read_text().partition("## Values")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([A-Za-z]+)", row)]
    assert sorted(set(named)) == sorted(values)
    assert len(named) == len(set(named))


def test_the_values_shown_in_the_documentation_are_taken(helm: Helm) -> None:
    shown = [v for block in blocks("yaml") for v in load_all_if_values(block)]
    assert shown
    for values in shown:
        assert helm.objects(values)


def load_all_if_values(block: str) -> list[Any]:
    if "{{" in block or "kind:" in block:
        return []
    return [v for v in load_all(block) if "sidecar-gateway" not in v]
