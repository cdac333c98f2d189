"""The configurations of the import's tests, and an account of their keys that owes nothing to the import."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

CONFIGS = Path(__file__).parent / "configs"
ALL = sorted(CONFIGS.glob("*.yaml"))


def read_plain(file: Path) -> Any:
    return YAML(typ="safe", pure=True).load(file)


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """`model_list[0].litellm_params.model`: where a scalar, or something empty, stands."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for i, item in enumerate(value):
            yield from leaves(item, f"{path}[{i}]")
    elif path:
        yield path
