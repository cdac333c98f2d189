"""What the chart refuses: unknown and unfit values, and secrets that would stand in a ConfigMap."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from sidecar.config.models import Config
from sidecar.types import Secret
from tests.helm.support import MANY, Helm

CANARY = "sk-canary-93b1"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"replicas": 3}, "replicas"),
        ({"mode": "both"}, "mode"),
        ({"replicaCount": "3"}, "replicaCount"),
        ({"replicaCount": -1}, "replicaCount"),
        ({"config": {"severs": {}}}, "severs"),
        ({"config": {"server": {"prot": 1}}}, "prot"),
        ({"config": {"server": {"port": 80}}}, "port"),
        ({"config": {"server": {"port": "4000"}}}, "port"),
        ({"config": {"store": {"database_url": None}}}, "database_url"),
        ({"image": {"repository": ""}}, "repository"),
        ({"image": {"digest": "sha256:12"}}, "digest"),
        ({"secret": {"A": 1}}, "secret"),
        ({"secret": {"not a name": "x"}}, "not a name"),
        ({"existingSecret": "Not_A_Name"}, "existingSecret"),
        ({"persistence": {"enabled": True, "size": "much"}}, "size"),
        ({"service": {"type": "ExternalName"}}, "type"),
        ({"ingress": {"enabled": True}}, "hosts"),
        ({"networkPolicy": {"enabled": True, "ingressFrom": []}}, "ingressFrom"),
        ({"podDisruptionBudget": {"enabled": True, "maxUnavailable": "half"}}, "maxUnavailable"),
        ({"probes": {"startup": {"httpGet": {"path": "/x"}}}}, "httpGet"),
        ({"resources": {"limit": {}}}, "limit"),
        ({"podAnnotations": {"a": 1}}, "podAnnotations"),
    ],
)
def test_the_schema_refuses_a_value_and_names_it(helm: Helm, values: dict[str, Any], words: str) -> None:
    said = helm.refusal(values)
    assert words in said
    assert "schema" in said.lower()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"existingSecret": "a", "secret": {"A": "b"}}, "not both"),
        ({"config": {"auth": "none"}}, "mode sidecar"),
        ({"config": {"auth": "none", "server": {"host": "127.0.0.1"}}}, "which no Service reaches"),
        ({"mode": "sidecar", "config": {"auth": "none", "server": {"host": "0.0.0.0"}}}, "serves loopback only"),
        ({"replicaCount": 2, "existingSecret": "a"}, "config.store.database_url"),
        ({"autoscaling": {"enabled": True}, "existingSecret": "a"}, "config.store.database_url"),
        (
            {"replicaCount": 2, "config": {"store": {"database_url": "postgresql://db.ai.svc/sidecar"}}},
            "one master key",
        ),
        ({"terminationGracePeriodSeconds": 35}, "config.server.drain_s + config.server.grace_s (35)"),
        ({"config": {"auth": {"master_key": "${SIDECAR_MASTER_KEY}"}}}, "which nothing gives"),
        ({"secret": {"A": "b"}, "config": {"store": {"redis_url": "redis://:${PW}@redis"}}}, "${PW}"),
    ],
)
def test_values_that_do_not_fit_each_other_are_refused_with_the_fix(
    helm: Helm, values: dict[str, Any], words: str
) -> None:
    assert words in helm.refusal(values)


@pytest.mark.parametrize(
    "values", [{"terminationGracePeriodSeconds": 36}, MANY, {"replicaCount": 0}, {"global": {"a": 1}}]
)
def test_values_at_the_edge_are_taken(helm: Helm, values: dict[str, Any]) -> None:
    assert helm.objects(values)


def secret_paths(kind: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where the configuration's model takes a secret."""
    if kind is Secret:
        yield path
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in typing.get_type_hints(kind, include_extras=True).items():
            if name in kind.model_fields:
                yield from secret_paths(field, (*path, name))
    else:
        origin, parts = typing.get_origin(kind), typing.get_args(kind)
        if origin is typing.Annotated:
            parts = parts[:1]
        elif origin is list:
            path = (*path, 0)
        elif origin is dict:
            parts, path = parts[1:], (*path, "x-api-key")
        if origin in (typing.Annotated, list, dict, typing.Union, types.UnionType):
            for part in parts:
                yield from secret_paths(part, path)


PATHS = sorted(set(secret_paths(Config)), key=str)


def values_with(path: tuple[str | int, ...], value: str) -> dict[str, Any]:
    made: Any = value
    for part in reversed(path):
        made = [made] if part == 0 else {part: made}
    return {"existingSecret": "keys", "config": made}


def test_the_secrets_of_the_model_are_found() -> None:
    assert {("auth", "master_key"), ("models", 0, "deployments", 0, "api_key"), ("store", "redis_url")} <= set(PATHS)
    assert ("models", 0, "deployments", 0, "headers", "x-api-key") in PATHS


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_no_secret_of_the_model_can_stand_in_the_config_map(helm: Helm, path: tuple[str | int, ...]) -> None:
    is_url = str(path[-1]) in ("database_url", "redis_url", "proxy") or path[:2] == ("spend", "sinks")
    is_url = is_url and "headers" not in path and path[-1] != "secret"
    plain = [f"postgresql://me:{CANARY}@db/name", f"redis://:{CANARY}@r/0"] if is_url else [CANARY]
    if is_url:
        plain.append(f"postgresql://db/name?user=me&password={CANARY}")
        plain.append(f"redis://:${{PW:-{CANARY}}}@r/0")
    else:
        plain.append(f"${{NAME:-{CANARY}}}")
    for value in plain:
        said = helm.refusal(values_with(path, value))
        assert "would stand in a ConfigMap" in said
        assert CANARY not in said
    references = ["${NAME}", "${file:/run/secrets/x}"]
    references += ["postgresql://${USER}:${PW}@db/name", "redis://redis:6379/0"] if is_url else []
    for value in references:
        assert helm.objects(values_with(path, value))
