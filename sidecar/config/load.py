"""From YAML and environment to a checked `Config`. Every error says file, line, column, what is wrong and the fix; all
of them at once. Secrets never stand in a message.

`${NAME}`, `${NAME:-default}` and `${file:/path}` are replaced in strings; `$${` is a literal `${`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from sidecar.config.check import cross_check
from sidecar.config.models import Config

_REFERENCE = re.compile(r"\$(\$\{)|\$\{([^}]*)\}")
_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)
KNOWN_VARIABLES = frozenset({"SIDECAR_MASTER_KEY", "SIDECAR_CONFIG", "SIDECAR_URL"})
Path_ = tuple[str | int, ...]


class ConfigError(Exception):
    """One or more faults; `str()` gives one line each."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class _Source:
    """Where a value stands in the file."""

    def __init__(self, name: str, tree: Any) -> None:
        self.name = name
        self.tree = tree

    def at(self, path: Path_, *, key: bool = False) -> str:
        node, line, column = self.tree, 0, 0
        for i, part in enumerate(path):
            if not hasattr(node, "lc"):
                break
            try:
                is_key = key and i == len(path) - 1
                data = node.lc.data[part]
                line, column = (data[0], data[1]) if is_key or len(data) < 4 else (data[2], data[3])
                node = node[part]
            except (KeyError, IndexError, TypeError):
                break
        return f"{self.name}:{line + 1}:{column + 1}"


def load_config(path: str | os.PathLike[str] | None = None, env: Mapping[str, str] | None = None) -> Config:
    """Read a file (or none: provider keys found in the environment make `provider/model` names). Raises ConfigError."""
    env = os.environ if env is None else env
    source, data = _read(Path(path)) if path is not None else (_Source("environment", {}), {})
    faults: list[str] = []
    plain = _interpolate(data, (), source, env, faults)
    overrides, env_faults = _environment(env)
    faults += env_faults
    if faults:
        raise ConfigError(faults)
    merged = _merge(plain, overrides)
    master = env.get("SIDECAR_MASTER_KEY")
    if master and merged.get("auth") != "none":
        merged["auth"] = {"master_key": master, **(merged.get("auth") or {})}
    try:
        config = Config(**merged)
    except ValidationError as error:
        raise ConfigError(sorted({_fault(e, source, overrides) for e in error.errors()})) from None
    faults = [f"{source.at(where)}: {what}" for where, what in cross_check(config, has_file=path is not None)]
    if faults:
        raise ConfigError(faults)
    return config


def _read(path: Path) -> tuple[_Source, dict[str, Any]]:
    name = str(path)
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ConfigError([f"{name}: cannot be read ({error.strerror}); give the path of a sidecar.yaml"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{name}: is not UTF-8 text"]) from None
    yaml = YAML(typ="rt")
    try:
        tree = yaml.load(text)
    except DuplicateKeyError as error:
        mark = error.problem_mark
        what = str(error.problem).split(" with value")[0].replace("found duplicate key", "the key")
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise ConfigError([f"{where}: {what} stands here a second time; remove one"]) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise ConfigError([f"{where}: not valid YAML ({error.problem or error.context})"]) from None
    except (YAMLError, RecursionError, ValueError) as error:
        raise ConfigError([f"{name}: not valid YAML ({type(error).__name__})"]) from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError([f"{name}:1:1: must be a mapping such as 'server: {{port: 4000}}'"])
    return _Source(name, tree), tree


def _interpolate(value: Any, path: Path_, source: _Source, env: Mapping[str, str], faults: list[str]) -> Any:
    if isinstance(value, dict):
        out: dict[str, Any] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                faults.append(f"{source.at((*path, key), key=True)}: the key {key!r} must be a string; quote it")
                continue
            out[key] = _interpolate(item, (*path, key), source, env, faults)
        return out
    if isinstance(value, list):
        return [_interpolate(item, (*path, i), source, env, faults) for i, item in enumerate(value)]
    if not isinstance(value, str) or "$" not in value:
        return str(value) if isinstance(value, str) else value

    def replace(match: re.Match[str]) -> str:
        if match[1]:
            return "${"
        inner = match[2]
        if inner.startswith("file:"):
            file = inner[5:]
            try:
                return Path(file).read_text("utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                faults.append(f"{source.at(path)}: cannot read the file {file} ({type(error).__name__})")
                return ""
        name = _NAME.fullmatch(inner)
        if name is None:
            faults.append(
                f"{source.at(path)}: '${{…}}' must hold NAME, NAME:-default or file:/path; write $${{ for a plain one"
            )
            return ""
        found = env.get(name[1])
        if found:
            return found
        if name[2] is not None:
            return name[2]
        faults.append(
            f"{source.at(path)}: the environment variable {name[1]} is not set; "
            f"set it, or write ${{{name[1]}:-default}}"
        )
        return ""

    return _REFERENCE.sub(replace, value)


def _environment(env: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Overrides from SIDECAR_… variables, and faults for those that name nothing."""
    ours = {k: v for k, v in env.items() if k.startswith("SIDECAR_") and k not in KNOWN_VARIABLES and v != ""}
    faults: list[str] = []
    usable: dict[str, str | None] = {}
    known = _known_names()
    for name, value in ours.items():
        root = name.removeprefix("SIDECAR_").lower()
        if root in known:
            usable[name.lower()] = value
        else:
            close = difflib.get_close_matches(root, known, 1)
            hint = f"did you mean SIDECAR_{close[0].upper()}?" if close else "remove it"
            faults.append(f"environment: {name} names no setting; {hint}")
    source = EnvSettingsSource(Config, case_sensitive=False, env_prefix="SIDECAR_", env_nested_delimiter="__")
    source.env_vars = usable
    try:
        return source(), faults
    except (ValueError, TypeError) as error:
        return {}, [*faults, f"environment: {str(error).splitlines()[0]}; lists and mappings are written as JSON"]


def _known_names() -> set[str]:
    names: set[str] = set()
    for section, field in Config.model_fields.items():
        names.add(section)
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for kind in candidates:
            if hasattr(kind, "model_fields"):
                names.update(f"{section}__{name}" for name in kind.model_fields)
    return names


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _fault(error: Any, source: _Source, overrides: Mapping[str, Any]) -> str:
    """One line of a pydantic error, without any input value."""
    # Union members and validators put their own names into the location; they are not in the file.
    path = tuple(p for p in error["loc"] if not (isinstance(p, str) and _is_type_name(p)))
    kind, message = error["type"], str(error["msg"])
    name = ".".join(str(p) for p in path)
    is_key = kind == "extra_forbidden"
    node: Any = overrides
    for part in path:
        node = node.get(part) if isinstance(node, Mapping) else None
    if node is not None:
        where = "environment: SIDECAR_" + "__".join(str(p) for p in path).upper()
    else:
        where = source.at(path, key=is_key)
    if is_key:
        known = _siblings(path)
        close = difflib.get_close_matches(str(path[-1]), known, 1)
        hint = f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(sorted(known))}"
        return f"{where}: unknown key '{name}'; {hint}"
    if kind == "missing":
        return f"{where}: '{name}' is missing; add it"
    message = message.removeprefix("Value error, ")
    return f"{where}: '{name}': {message[:1].lower()}{message[1:]}"


def _is_type_name(part: str) -> bool:
    return part.endswith("Settings") or part.startswith(("literal[", "function-", "nullable", "is-instance"))


def _siblings(path: Path_) -> set[str]:
    fields: Any = Config.model_fields
    for part in path[:-1]:
        if isinstance(part, int):
            continue
        field = fields.get(part)
        if field is None:
            return set()
        stack = [field.annotation]
        fields = {}
        while stack:
            kind = stack.pop()
            if hasattr(kind, "model_fields"):
                fields = kind.model_fields
            stack.extend(getattr(kind, "__args__", ()))
    return set(fields)
