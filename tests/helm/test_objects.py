"""What the chart renders for several sets of values: valid objects, restricted pods, a configuration that loads."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from sidecar.config import load_config
from sidecar.config.models import Config
from tests.helm.support import (
    CHART,
    ENVIRONMENT,
    EVERYTHING,
    MANY,
    VALUES,
    Helm,
    Objects,
    of_kind,
    pod_of,
    sidecar_yaml,
)

KUBERNETES = ("1.30", "1.37")
"""The oldest version that Chart.yaml allows, and the newest whose schemas are here."""
SIX = ["Deployment", "HorizontalPodAutoscaler", "Ingress", "NetworkPolicy", "PodDisruptionBudget", "ServiceMonitor"]
# https://prometheus-operator.dev/docs/api-reference/api/#monitoring.coreos.com/v1.ServiceMonitor
SERVICE_MONITOR = {
    "type": "object",
    "additionalProperties": False,
    "required": ["selector", "endpoints"],
    "properties": {
        "selector": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"matchLabels": {"type": "object"}},
        },
        "namespaceSelector": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"matchNames": {"type": "array", "items": {"type": "string"}}},
        },
        "endpoints": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "port": {"type": "string"},
                    "path": {"const": "/metrics"},
                    "interval": {
                        "type": "string",
                        "pattern": "^(0|(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)s)?(([0-9]+)ms)?)$",
                    },
                },
            },
        },
    },
}


def faults_of_pod(pod: dict[str, Any]) -> list[str]:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted and, beyond it, a read-only root
    and no token of the Kubernetes API."""
    faults = [name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    faults += [] if pod.get("automountServiceAccountToken") is False else ["automountServiceAccountToken"]
    allowed = {"name", "configMap", "emptyDir", "secret", "projected", "persistentVolumeClaim", "csi", "ephemeral"}
    faults += [f"volume {v['name']}" for v in pod.get("volumes", []) if set(v) - allowed]
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        if container["name"] == "app":
            continue  # the user's own
        mine = container.get("securityContext", {})
        both = {**pod.get("securityContext", {}), **mine}
        faults += [] if mine.get("allowPrivilegeEscalation") is False else ["allowPrivilegeEscalation"]
        faults += [] if mine.get("readOnlyRootFilesystem") is True else ["readOnlyRootFilesystem"]
        faults += [] if mine.get("capabilities") == {"drop": ["ALL"]} else ["capabilities"]
        faults += [] if both.get("runAsNonRoot") is True else ["runAsNonRoot"]
        faults += [] if both.get("runAsUser", 1) != 0 else ["runAsUser"]
        faults += [] if both.get("seccompProfile") == {"type": "RuntimeDefault"} else ["seccompProfile"]
        faults += ["privileged"] if mine.get("privileged") else []
        faults += [name for name in ("procMount", "seLinuxOptions", "sysctls") if both.get(name)]
        faults += ["hostPort" for port in container.get("ports", []) if port.get("hostPort")]
    return faults


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_every_object_fits_the_schema_of_kubernetes(helm: Helm, values: dict[str, Any], version: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="`make test` installs it")
    objects = helm.objects(values)
    assert objects
    for item in objects:
        if item["kind"] == "ServiceMonitor":
            jsonschema.validate(item["spec"], SERVICE_MONITOR)
            continue
        kubernetes_validate.validate(item, version, strict=True)
    broken = copy.deepcopy(of_kind(objects, "ConfigMap")) | {"dataa": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, version, strict=True)


@pytest.mark.parametrize("values", [v for v in VALUES.values() if v.get("mode") != "sidecar"])
def test_a_pod_of_the_chart_passes_the_restricted_rules(helm: Helm, values: dict[str, Any]) -> None:
    assert faults_of_pod(pod_of(helm.objects(values))) == []


@pytest.mark.parametrize(
    ("fault", "change"),
    [
        ("hostNetwork", lambda pod: pod.update(hostNetwork=True)),
        ("automountServiceAccountToken", lambda pod: pod.pop("automountServiceAccountToken")),
        ("volume host", lambda pod: pod["volumes"].append({"name": "host", "hostPath": {"path": "/"}})),
        ("runAsUser", lambda pod: pod["securityContext"].update(runAsUser=0)),
        ("capabilities", lambda pod: pod["containers"][0]["securityContext"].pop("capabilities")),
        ("seccompProfile", lambda pod: pod["containers"][0]["securityContext"].update(seccompProfile={})),
        ("hostPort", lambda pod: pod["containers"][0]["ports"][0].update(hostPort=1)),
        ("readOnlyRootFilesystem", lambda pod: pod["containers"][0].pop("securityContext")),
    ],
)
def test_the_rules_see_a_fault(helm: Helm, fault: str, change: Callable[[Any], Any]) -> None:
    pod = pod_of(helm.objects({}))
    change(pod)
    assert fault in faults_of_pod(pod)


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_the_rendered_configuration_loads_with_the_variables_it_names(
    helm: Helm, tmp_path: Path, values: dict[str, Any]
) -> None:
    objects = helm.objects(values)
    file = tmp_path / "sidecar.yaml"
    file.write_text(sidecar_yaml(objects))
    config = load_config(file, {} if values.get("mode") == "sidecar" else ENVIRONMENT)
    assert config.server.host == ("127.0.0.1" if values.get("mode") == "sidecar" else "0.0.0.0")
    assert config.store.journal_dir == "/data/journal"
    if values is EVERYTHING:
        assert (config.limits.rpm, config.limits.tpm) == (2_000_000, 10**12)
        assert str(config.budget.max_usd) == "1E-9"
        container = pod_of(objects)["containers"][0]
        assert container["ports"][0]["containerPort"] == config.server.port == 4100


def test_dates_and_words_in_values_stay_text(helm: Helm, tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(
        "existingSecret: keys\n"
        "config:\n"
        "  models:\n"
        "    - name: 'on'\n"
        "      deployments:\n"
        "        - {provider: openai, model: '1e3', api_key: '${OPENAI_KEY}',\n"
        "           params: {since: 2024-10-21, flag: 'yes'}}\n"
    )
    done = helm.template({}, "--values", file, "--show-only", "templates/config.yaml")
    assert done.returncode == 0, done.stderr
    (tmp_path / "out.yaml").write_text(done.stdout.partition("sidecar.yaml: |")[2].replace("\n    ", "\n"))
    config = load_config(tmp_path / "out.yaml", {"OPENAI_KEY": "sk-open"})
    (model,) = config.models
    assert (model.name, model.deployments[0].model) == ("on", "1e3")
    assert model.deployments[0].params == {"since": "2024-10-21", "flag": "yes"}


def test_each_option_adds_its_object_and_the_defaults_add_none(helm: Helm) -> None:
    kinds = sorted(o["kind"] for o in helm.objects({}))
    assert kinds == ["ConfigMap", "Deployment", "Service", "ServiceAccount"]
    kinds = [o["kind"] for o in helm.objects(EVERYTHING)]
    assert [kind for kind in SIX if kind not in kinds] == []
    assert "replicas" not in of_kind(helm.objects(EVERYTHING), "Deployment")["spec"]


def test_a_volume_for_each_pod_makes_a_stateful_set(helm: Helm) -> None:
    objects = helm.objects(VALUES["persistent"])
    stateful = of_kind(objects, "StatefulSet")
    (claim,) = stateful["spec"]["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "sidecar-data"
    assert "sidecar-data" not in [v["name"] for v in pod_of(objects)["volumes"]]
    assert pod_of(objects)["securityContext"]["fsGroup"] == 65532
    services = {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "Service"}
    assert services[stateful["spec"]["serviceName"]]["clusterIP"] == "None"
    target = of_kind(objects, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("StatefulSet", stateful["metadata"]["name"])
    assert "fsGroup" not in pod_of(helm.objects({"persistence": {"enabled": True, "fsGroup": None}}))["securityContext"]


def test_secrets_reach_the_pod_by_environment_and_stand_in_no_config_map(helm: Helm) -> None:
    objects = helm.objects(EVERYTHING)
    everything_else = json.dumps([o for o in objects if o["kind"] != "Secret"])
    for name, value in EVERYTHING["secret"].items():
        assert of_kind(objects, "Secret")["stringData"][name] == value
        assert len(value) < 6 or value not in everything_else, name
    assert pod_of(objects)["containers"][0]["envFrom"] == [
        {"secretRef": {"name": "llm"}},
        {"secretRef": {"name": "more"}},
    ]
    objects = helm.objects(MANY)
    assert "Secret" not in [o["kind"] for o in objects]
    assert pod_of(objects)["containers"][0]["envFrom"] == [{"secretRef": {"name": "llm-keys"}}]


def test_a_changed_configuration_or_secret_rolls_the_pods_and_nothing_else_does(helm: Helm) -> None:
    def annotations(**values: Any) -> Any:
        workload = of_kind(helm.objects({"secret": {"A": "1"}, **values}), "Deployment")
        return workload["spec"]["template"]["metadata"]["annotations"]

    first = annotations()
    assert annotations(service={"port": 80}) == first
    assert annotations(config={"limits": {"rpm": 1}})["checksum/config"] != first["checksum/config"]
    assert annotations(secret={"A": "2"})["checksum/secret"] != first["checksum/secret"]


@pytest.mark.parametrize("grace_s", [0.5, 30, 90.5, 3600])
@pytest.mark.parametrize("drain_s", [0, 5])
def test_kubernetes_waits_longer_than_the_gateway_drains(helm: Helm, grace_s: float, drain_s: int) -> None:
    objects = helm.objects({"config": {"server": {"grace_s": grace_s, "drain_s": drain_s}}})
    pod = pod_of(objects)
    # The gateway drains by itself: a sleep before SIGTERM would keep it ready meanwhile.
    assert "lifecycle" not in pod["containers"][0]
    server = server_of(objects)
    assert (server["drain_s"], server["grace_s"]) == (drain_s, grace_s)
    assert pod["terminationGracePeriodSeconds"] > drain_s + grace_s + 10
    strategy = of_kind(objects, "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert strategy["maxUnavailable"] == 0


def test_a_sidecar_ends_after_its_app_and_has_nobody_to_wait_for(helm: Helm) -> None:
    assert server_of(helm.objects({}))["drain_s"] == 5
    assert server_of(helm.objects({"mode": "sidecar"}))["drain_s"] == 0
    assert server_of(helm.objects({"mode": "sidecar", "config": {"server": {"drain_s": 7.5}}}))["drain_s"] == 7.5


def server_of(objects: Objects) -> dict[str, Any]:
    server: dict[str, Any] = YAML(typ="safe").load(sidecar_yaml(objects))["server"]
    return server


def test_selectors_meet_the_pods_and_the_monitor_meets_one_service(helm: Helm) -> None:
    values = {**VALUES["persistent"], "serviceMonitor": {"enabled": True}, "podDisruptionBudget": {"enabled": True}}
    objects = helm.objects({**values, "networkPolicy": {"enabled": True}})
    labels = of_kind(objects, "StatefulSet")["spec"]["template"]["metadata"]["labels"].items()

    def meets(selector: dict[str, str]) -> bool:
        return bool(selector) and selector.items() <= labels

    assert meets(of_kind(objects, "StatefulSet")["spec"]["selector"]["matchLabels"])
    assert meets(of_kind(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"])
    assert meets(of_kind(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"])
    assert meets(pod_of(objects)["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"])
    services = [o for o in objects if o["kind"] == "Service"]
    assert len(services) == 2
    assert all(meets(o["spec"]["selector"]) for o in services)
    scraped = of_kind(objects, "ServiceMonitor")["spec"]["selector"]["matchLabels"].items()
    assert [o["metadata"]["name"] for o in services if scraped <= o["metadata"]["labels"].items()] == [
        "demo-sidecar-gateway"
    ]


def test_long_names_stay_within_what_kubernetes_takes(helm: Helm) -> None:
    objects = helm.objects({"fullnameOverride": "a" * 51 + "-b", "persistence": {"enabled": True}})
    assert max(len(o["metadata"]["name"]) for o in objects) <= 63
    assert all(not o["metadata"]["name"].endswith("-") for o in objects)


def test_the_values_schema_knows_every_section_of_the_configuration() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    sections = set(schema["properties"]["config"]["properties"])
    assert sections == set(Config.model_fields), "name the new section in helm/values.schema.json, under config"
