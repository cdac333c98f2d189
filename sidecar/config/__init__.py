"""Configuration: `load_config` reads and checks, `build` makes ready values, `json_schema` helps editors."""

from __future__ import annotations

from typing import Any

from sidecar.config.load import load_config
from sidecar.config.models import Config
from sidecar.config.read import ConfigError

__all__ = ["Config", "ConfigError", "json_schema", "load_config"]


def json_schema() -> dict[str, Any]:
    """The JSON Schema of `sidecar.yaml` (draft 2020-12), for editors."""
    from sidecar.config.schema import json_schema as make

    return make()
