"""From YAML and environment to a checked `Config`: read, interpolate, override, validate, cross-check.

Every fault says file, line, column, what is wrong and the fix; all of them come at once. No secret stands in a message.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sidecar.config.check import cross_check, parts_of
from sidecar.config.environment import Overrides, merge, provider_key_faults, provider_keys, read_environment
from sidecar.config.interpolate import Hidden, Interpolation
from sidecar.config.models import Config
from sidecar.config.read import ConfigError, Document, Fault, KeyPath, read_document

_MESSAGES = {
    "missing": "is missing; add it",
    "model_type": "must be a mapping: {…}, or indented keys below it",
    "dict_type": "must be a mapping: {…}, or indented keys below it",
    "list_type": "must be a list: […], or lines that begin with '- '",
    "string_type": "must be text; quote it",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "decimal_type": "must be a number",
    "decimal_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "too_short": "needs at least one entry; add one",
}


def load_config(path: str | os.PathLike[str] | None = None, env: Mapping[str, str] | None = None) -> Config:
    """Read a file (or none: provider keys found in the environment make `provider/model` names). Raises ConfigError."""
    env = os.environ if env is None else env
    document = read_document(Path(path)) if path is not None else Document(None)
    hidden = Hidden()
    interpolation = Interpolation(document, env, hidden)
    plain = interpolation.run()
    overrides = read_environment(env)
    for name in overrides.names.values():
        hidden.add(env[name], f"${{{name}}}")
    merged = merge(plain, overrides.values)
    faults = [*document.faults, *interpolation.faults, *overrides.faults]
    faults += _take_master_key(merged, env, document, overrides)
    is_by_environment = not merged.get("models")
    if is_by_environment:
        faults += provider_key_faults(env)
    settings: Config | None = None
    found: list[tuple[KeyPath, str, bool]] = []
    try:
        settings = Config(**merged)
    except ValidationError as error:
        found = [_explain(e, merged) for e in error.errors(include_url=False, include_input=False)]
    parts = parts_of(
        merged,
        more_names=(f"{name}/*" for name in provider_keys(env)) if is_by_environment else (),
        is_complete=not any(p[:1] == ("models",) and p[-1:] == ("name",) for p in interpolation.broken),
    )
    found += [(where, what, False) for where, what in cross_check(parts)]
    for where, what, is_key in found:
        if not _is_within(where, interpolation.broken):
            faults.append(_place(where, hidden.clean(what), is_key, document, overrides))
    if faults or settings is None:
        raise ConfigError(faults)
    return settings


def _take_master_key(
    merged: dict[str, Any], env: Mapping[str, str], document: Document, overrides: Overrides
) -> list[Fault]:
    """SIDECAR_MASTER_KEY is the short name of SIDECAR_AUTH__MASTER_KEY."""
    value = env.get("SIDECAR_MASTER_KEY")
    auth = merged.get("auth", {})
    if not value or ("auth", "master_key") in overrides.names:
        return []
    if auth == "none":
        return [document.at(("auth",), "'auth: none' and SIDECAR_MASTER_KEY contradict each other; remove one")]
    if isinstance(auth, dict):
        overrides.names["auth", "master_key"] = "SIDECAR_MASTER_KEY"
        merged["auth"] = {**auth, "master_key": value}
    return []


def _is_within(path: KeyPath, broken: set[KeyPath]) -> bool:
    return any(path[:n] in broken for n in range(1, len(path) + 1))


def _place(path: KeyPath, what: str, is_key: bool, document: Document, overrides: Overrides) -> Fault:
    variable = overrides.variable_of(path)
    if variable is not None:
        return Fault(0, 0, f"environment: {variable}", what)
    return document.at(path, what, key=is_key)


def _explain(error: Any, merged: Mapping[str, Any]) -> tuple[KeyPath, str, bool]:
    """Where, what with the fix, and whether the key itself is at fault."""
    kind, message = str(error["type"]), str(error["msg"])
    path, is_key = _path_in(error["loc"], merged)
    name = ".".join(str(p) for p in path)
    if kind == "extra_forbidden":
        known = _siblings(path)
        close = difflib.get_close_matches(str(path[-1]), known, 1)
        hint = f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(sorted(known))}"
        return path, f"unknown key '{name}'; {hint}", True
    if kind == "missing":
        return path, f"'{name}' {_MESSAGES[kind]}", False
    if kind in ("model_type", "dict_type") and _node(path, merged) is None:
        return path, f"'{name}' is empty; remove the line, or give it its keys", False
    message = _MESSAGES.get(kind) or message.removeprefix("Value error, ").replace("Input should be", "must be")
    return path, f"'{name}': {message[:1].lower()}{message[1:]}", is_key


def _path_in(loc: tuple[str | int, ...], merged: Any) -> tuple[KeyPath, bool]:
    """The part of pydantic's location that is in the data: it adds the tags of unions, and `[key]` for a key."""
    path: list[str | int] = []
    node: Any = merged
    is_key = False
    for i, part in enumerate(loc):
        if part == "[key]":
            is_key = True
            continue
        if isinstance(node, dict) and part not in node and i < len(loc) - 1:
            continue
        if not isinstance(node, (dict, list)):
            continue
        path.append(part)
        node = _node((part,), node)
    return tuple(path), is_key


def _node(path: KeyPath, merged: Any) -> Any:
    for part in path:
        try:
            merged = merged[part]
        except (KeyError, IndexError, TypeError):
            return None
    return merged


def _siblings(path: KeyPath) -> set[str]:
    """The keys the model knows where `path` ends."""
    fields: Any = Config.model_fields
    for part in path[:-1]:
        if isinstance(part, int):
            continue
        if part not in fields:
            return set()
        stack = [fields[part].annotation]
        fields = {}
        while stack:
            kind = stack.pop()
            if hasattr(kind, "model_fields"):
                fields = kind.model_fields
            stack.extend(getattr(kind, "__args__", ()))
    return set(fields)
