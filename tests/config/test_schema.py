"""The JSON Schema says what the loader says, and admits `${…}` wherever a value may stand."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from sidecar.config import json_schema
from tests.config.support import REPO

VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def test_it_is_a_valid_schema_without_secrets_or_private_words() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    assert not {'"gt":', '"ge":', '"le":', '"lt":'} & set(json.dumps(json_schema()).split())


def test_it_takes_the_example() -> None:
    with (REPO / "examples" / "sidecar.yaml").open() as file:
        VALIDATOR.validate(json.loads(json.dumps(YAML(typ="safe").load(file))))


DEPLOYMENT = {"provider": "openai", "model": "m"}


@pytest.mark.parametrize(
    "good",
    [
        {},
        {"auth": "none"},
        {"auth": {"master_key": "${X}"}},
        {"server": {"port": "${PORT:-4000}"}},
        {"log": {"level": "${LEVEL}", "access": "${ACCESS:-true}"}},
        {"budget": {"max_usd": "${USD}", "duration": "30d", "unpriced": "${P}"}},
        {"store": {"redis_url": None, "deadline_s": "${D}"}},
        {"models": [{"name": "a", "deployments": [{**DEPLOYMENT, "price": "free", "weight": "${W}"}]}]},
        {"models": [{"name": "a", "deployments": [{**DEPLOYMENT, "price": {"input": 1, "output": "0.5"}}]}]},
    ],
)
def test_it_takes_what_the_loader_takes(good: dict[str, Any]) -> None:
    VALIDATOR.validate(good)


@pytest.mark.parametrize(
    "bad",
    [
        [],
        {"sevrer": {}},
        {"server": {"prot": 1}},
        {"server": {"port": "x"}},
        {"server": {"port": 70000}},
        {"server": None},
        {"auth": "open"},
        {"log": {"level": "loud"}},
        {"budget": {"max_usd": -1}},
        {"models": [{"name": "a"}]},
        {"models": [{"name": "a", "deployments": []}]},
        {"models": [{"name": "a", "deployments": [{"provider": "openai"}]}]},
        {"models": [{"name": "a", "deployments": [{**DEPLOYMENT, "price": "cheap"}]}]},
        {"models": [{"name": "a", "deployments": [{**DEPLOYMENT, "price": {"input": 1}}]}]},
        {"models": [{"name": "a", "deployments": [{**DEPLOYMENT, "timeouts": {"total_s": 0}}]}]},
    ],
)
def test_it_refuses_what_the_loader_refuses(bad: Any) -> None:
    assert not VALIDATOR.is_valid(bad)
