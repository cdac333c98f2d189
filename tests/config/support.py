"""Loads a text as a file named `sidecar.yaml`, and gives the faults without the folder's name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sidecar.config import Config, ConfigError, load_config

REPO = Path(__file__).parents[2]


def load(tmp_path: Path, text: str, env: Mapping[str, str] | None = None) -> Config:
    file = tmp_path / "sidecar.yaml"
    file.write_text(text)
    return load_config(file, env or {})


def faults_of(tmp_path: Path, text: str, env: Mapping[str, str] | None = None) -> list[str]:
    try:
        load(tmp_path, text, env)
    except ConfigError as error:
        return [fault.replace(f"{tmp_path}/", "") for fault in error.faults]
    return []
