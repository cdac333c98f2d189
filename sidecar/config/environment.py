"""Settings and provider keys from environment variables. Neighbours: `load.py` merges them over the file.

A `SIDECAR_…` variable that names nothing is a fault: a misspelt limit must not silently be no limit. Empty ones count
as not set. The variables Kubernetes makes for a Service called `sidecar…` are not ours.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_settings import EnvSettingsSource

from sidecar.config.models import Config
from sidecar.config.read import Fault, KeyPath
from sidecar.translate.registry import PROVIDERS
from sidecar.types import Secret

KNOWN_VARIABLES = frozenset({"SIDECAR_MASTER_KEY", "SIDECAR_CONFIG", "SIDECAR_URL"})
_SERVICE_LINK = re.compile(r"SIDECAR_(.+_)?(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_\d+_(TCP|UDP|SCTP)(_.+)?)")


@dataclass(slots=True)
class Overrides:
    """`values` to merge over the file; `names` says which variable set a path."""

    values: dict[str, Any] = field(default_factory=dict)
    names: dict[KeyPath, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def variable_of(self, path: KeyPath) -> str | None:
        for n in range(len(path), 0, -1):
            if path[:n] in self.names:
                return self.names[path[:n]]
        return None


def read_environment(env: Mapping[str, str]) -> Overrides:
    found = Overrides()
    known = setting_names()
    for name in sorted(env):
        value = env[name]
        if not name.startswith("SIDECAR_") or name in KNOWN_VARIABLES or not value or _is_service_link(name, value):
            continue
        root = name.removeprefix("SIDECAR_").lower()
        if root not in known:
            what = f"names no setting; {_nearest(root, known)}"
            found.faults.append(Fault(0, 0, f"environment: {name}", what))
            continue
        source = EnvSettingsSource(Config, case_sensitive=False, env_prefix="SIDECAR_", env_nested_delimiter="__")
        source.env_vars = {name.lower(): value}
        try:
            values = source()
        except (ValueError, TypeError):
            what = "must be JSON, for it is a list or a mapping"
            found.faults.append(Fault(0, 0, f"environment: {name}", what))
            continue
        found.values = merge(found.values, values)
        found.names[tuple(root.split("__"))] = name
    return found


_OTHERS_TOKENS = frozenset({"GITHUB_TOKEN", "HF_TOKEN"})
"""Variables that are set for other purposes: nobody meant them to open models to whoever calls this gateway."""


def provider_keys(env: Mapping[str, str]) -> dict[str, Secret]:
    """provider → key, for each provider whose variable (`OPENAI_API_KEY`, …) is set, and needs nothing else."""
    keys: dict[str, Secret] = {}
    for provider in PROVIDERS.values():
        if provider.api_key_env in _OTHERS_TOKENS or provider.needs_options:
            continue
        text = env.get(provider.api_key_env, "").strip() if provider.api_key_env else ""
        if text and provider.default_base_url is not None:
            keys[provider.name] = Secret(text)
    return keys


def provider_key_faults(env: Mapping[str, str]) -> list[Fault]:
    faults = []
    for name, key in provider_keys(env).items():
        if any(not 33 <= ord(c) <= 126 for c in key.reveal()):
            what = "holds a character no credential has; copy it again"
            faults.append(Fault(0, 0, f"environment: {PROVIDERS[name].api_key_env}", what))
    return faults


def setting_names() -> dict[str, Any]:
    """`store__redis_url` and the like → annotation: what a variable may set."""
    names: dict[str, Any] = {}
    for section, settings in Config.model_fields.items():
        names[section] = settings.annotation
        for kind in (settings.annotation, *getattr(settings.annotation, "__args__", ())):
            for kind_ in (kind, *getattr(kind, "__args__", ())):
                for name, info in getattr(kind_, "model_fields", {}).items():
                    if section != "models":
                        names[f"{section}__{name}"] = info.annotation
    return names


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` wins; mappings are merged, all else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        mine = merged.get(key)
        merged[key] = merge(mine, value) if isinstance(value, Mapping) and isinstance(mine, dict) else value
    return merged


def _is_service_link(name: str, value: str) -> bool:
    if _SERVICE_LINK.fullmatch(name):
        return True
    return name.endswith("_PORT") and value.startswith(("tcp://", "udp://", "sctp://"))


def _nearest(root: str, known: Mapping[str, Any]) -> str:
    same_leaf = [name for name in known if name.rpartition("__")[2] == root.rpartition("__")[2] and "__" in name]
    close = same_leaf if len(same_leaf) == 1 else difflib.get_close_matches(root, known, 1)
    return f"did you mean SIDECAR_{close[0].upper()}?" if close else "remove it; docs/configuration.md lists them"
