"""Runs the real Helm, without network and with a home of its own. Values go in and objects come out as plain data."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

REPO = Path(__file__).parents[2]
CHART = REPO / "helm"
Values = Mapping[str, Any]
Objects = list[dict[str, Any]]

MODELS: list[Any] = [
    {
        "name": "claude",
        "deployments": [
            {"provider": "anthropic", "model": "claude-sonnet-4-5", "api_key": "${ANTHROPIC_API_KEY}"},
            {
                "provider": "vllm",
                "model": "llama",
                "base_url": "http://vllm.ai.svc:8000/v1",
                "price": "free",
                "order": 2,
            },
        ],
    },
]
DATABASE: dict[str, Any] = {"database_url": "${DATABASE_URL}", "redis_url": "redis://:${REDIS_PASSWORD}@redis:6379/0"}
MANY: dict[str, Any] = {
    "existingSecret": "llm-keys",
    "replicaCount": 3,
    "config": {"store": DATABASE, "models": MODELS},
}
EVERYTHING: dict[str, Any] = {
    "fullnameOverride": "llm",
    "image": {"repository": "registry.example.com/sidecar", "digest": f"sha256:{'0' * 64}"},
    "imagePullSecrets": [{"name": "registry"}],
    "secret": {
        "SIDECAR_MASTER_KEY": "sk-0123456789abcdef",
        "ANTHROPIC_API_KEY": "sk-ant",
        "DATABASE_URL": "postgresql://sidecar:pw@postgres/sidecar",
        "REDIS_PASSWORD": "pw",
    },
    "config": {
        **MANY["config"],
        "server": {"port": 4100, "workers": 2, "grace_s": 90.5},
        "limits": {"rpm": 2_000_000, "tpm": 10**12},
        "budget": {"max_usd": 1e-9, "duration": "1mo"},
        "log": {"access": True},
    },
    "extraEnv": [{"name": "SSL_CERT_FILE", "value": "/ca/ca.pem"}],
    "extraEnvFrom": [{"secretRef": {"name": "more"}}],
    "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
    "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca", "readOnly": True}],
    "service": {"type": "LoadBalancer", "port": 80, "annotations": {"a": "b"}},
    "ingress": {
        "enabled": True,
        "className": "nginx",
        "hosts": [{"host": "llm.example.com"}, {"host": "two.example.com", "paths": ["/v1", "/key"]}],
        "tls": [{"secretName": "tls", "hosts": ["llm.example.com"]}],
    },
    "autoscaling": {"enabled": True, "behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}}},
    "podDisruptionBudget": {"enabled": True, "maxUnavailable": "25%"},
    "networkPolicy": {
        "enabled": True,
        "ingressFrom": [{"namespaceSelector": {}}],
        "egress": [{"ports": [{"port": 443, "protocol": "TCP"}]}],
    },
    "serviceMonitor": {"enabled": True, "interval": "15s", "labels": {"release": "prometheus"}},
    "serviceAccount": {"name": "llm-account", "annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/r"}},
    "podAnnotations": {"x": "y"},
    "podLabels": {"team": "ml"},
    "commonLabels": {"cost-center": "7"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "llm", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
    "priorityClassName": "high",
}
VALUES: dict[str, Values] = {
    "defaults": {},
    "everything": EVERYTHING,
    "existing secret": MANY,
    "persistent": {
        **MANY,
        "persistence": {"enabled": True, "storageClassName": "fast"},
        "autoscaling": {"enabled": True},
    },
    "sidecar": {"mode": "sidecar", "config": {"auth": "none", "models": []}},
}
ENVIRONMENT = {
    "SIDECAR_MASTER_KEY": "sk-0123456789abcdef",
    "ANTHROPIC_API_KEY": "sk-ant",
    "DATABASE_URL": "postgresql://sidecar:pw@postgres/sidecar",
    "REDIS_PASSWORD": "pw",
}
"""What the Secret of the value sets above holds."""


@dataclass(frozen=True)
class Helm:
    program: Path
    home: Path

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": os.defpath,
            "HOME": str(self.home),
            "HELM_CACHE_HOME": str(self.home / "cache"),
            "HELM_CONFIG_HOME": str(self.home / "config"),
            "HELM_DATA_HOME": str(self.home / "data"),
            "KUBECONFIG": "/dev/null",
            "HTTPS_PROXY": "http://127.0.0.1:9",  # a way to the network would fail at once
            "HTTP_PROXY": "http://127.0.0.1:9",
        }
        return subprocess.run(
            [self.program, *arguments], capture_output=True, text=True, env=environment, timeout=120, check=False
        )

    def template(self, values: Values, *arguments: str | Path, chart: Path = CHART) -> subprocess.CompletedProcess[str]:
        file = self.home / "values.json"
        file.write_text(json.dumps(values))
        return self.run("template", "demo", chart, "--namespace", "ai", "--values", file, *arguments)

    def objects(self, values: Values, *, chart: Path = CHART) -> Objects:
        done = self.template(values, chart=chart)
        assert done.returncode == 0, done.stderr
        return [document for document in YAML(typ="safe", pure=True).load_all(done.stdout) if document]

    def refusal(self, values: Values) -> str:
        """What Helm says against `values`; fails the test if it takes them."""
        done = self.template(values)
        assert done.returncode != 0, f"taken: {values}"
        assert done.stdout == ""
        return done.stderr


def of_kind(objects: Objects, *kinds: str) -> dict[str, Any]:
    """The only object of these kinds."""
    found = [o for o in objects if o["kind"] in kinds]
    assert len(found) == 1, [(o["kind"], o["metadata"]["name"]) for o in objects]
    return found[0]


def pod_of(objects: Objects) -> dict[str, Any]:
    """The pod template's spec."""
    spec: dict[str, Any] = of_kind(objects, "Deployment", "StatefulSet")["spec"]["template"]["spec"]
    return spec


def sidecar_yaml(objects: Objects) -> str:
    text: str = of_kind(objects, "ConfigMap")["data"]["sidecar.yaml"]
    return text
