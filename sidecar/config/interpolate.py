"""`${NAME}`, `${NAME:-default}`, `${file:/path}` in the strings of a tree; `$${` is a literal `${`.

The result is plain Python data. Neighbours: `read.py` (the tree and its places), `load.py` (the caller). Rule: what was
put in is remembered, so that no later message can show it.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sidecar.config.read import Document, Fault, KeyPath

_REFERENCE = re.compile(r"\$(\$\{)|\$\{([^}]*)\}|(\$\{)")
_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)
_MAX_DEPTH = 32
_MAX_NODES = 200_000
_MAX_SECRET_FILE = 65_536
_SHORTEST_HIDDEN = 6
"""Shorter values are words such as `info` or ports, and hiding them would garble the message."""


class Hidden:
    """Values that came from outside the file; `clean` puts the reference back in their place."""

    def __init__(self) -> None:
        self._labels: dict[str, str] = {}

    def add(self, value: str, label: str) -> None:
        for text in (value, value.strip()):
            if len(text) >= _SHORTEST_HIDDEN:
                self._labels.setdefault(text, label)

    def clean(self, text: str) -> str:
        for value in sorted(self._labels, key=len, reverse=True):
            text = text.replace(value, self._labels[value])
        return text


class Interpolation:
    """One pass over a document. `faults` and `broken` (paths whose value could not be made) are filled by `run`."""

    def __init__(self, document: Document, env: Mapping[str, str], hidden: Hidden) -> None:
        self._document = document
        self._env = env
        self._hidden = hidden
        self._nodes = 0
        self.faults: list[Fault] = []
        self.broken: set[KeyPath] = set()

    def run(self) -> dict[str, Any]:
        plain = self._walk(self._document.tree, ())
        return plain if isinstance(plain, dict) else {}

    def _walk(self, value: Any, path: KeyPath) -> Any:
        self._nodes += 1
        if len(path) > _MAX_DEPTH or self._nodes > _MAX_NODES:
            if self._nodes <= _MAX_NODES + 1:
                self._fail(path, "nested too deep or too large (an alias of itself?); write it out")
            self._nodes = max(self._nodes, _MAX_NODES + 1)
            return None
        if isinstance(value, dict):
            out: dict[str, Any] = {}
            for key, item in value.items():
                if isinstance(key, str):
                    out[str(key)] = self._walk(item, (*path, key))
                else:
                    self.faults.append(
                        self._document.at((*path, key), f"the key {str(key)[:32]!r} must be text; quote it", key=True)
                    )
            return out
        if isinstance(value, list):
            return [self._walk(item, (*path, i)) for i, item in enumerate(value)]
        if isinstance(value, str):
            return self._text(str(value), path) if "$" in value else str(value)
        if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
            return value.isoformat()  # `api_version: 2024-10-21`
        # The YAML library's own numbers remember how they were written; nothing later needs that.
        for kind in (bool, int, float):
            if isinstance(value, kind):
                return kind(value)
        return value

    def _text(self, text: str, path: KeyPath) -> str:
        return _REFERENCE.sub(lambda match: self._replace(match, path), text)

    def _replace(self, match: re.Match[str], path: KeyPath) -> str:
        if match[1]:
            return "${"
        inner = match[2]
        if inner is not None and "${" in inner:
            return self._fail(path, "a ${…} inside another is not read; give a plain default, or set the variable")
        name = _NAME.fullmatch(inner) if inner is not None else None
        if inner is not None and inner.startswith("file:"):
            return self._file(inner[5:], path)
        if name is None:
            return self._fail(
                path, "'${' begins ${NAME}, ${NAME:-default} or ${file:/path}; a literal one is written '$${'"
            )
        found = self._env.get(name[1])
        if found:
            self._hidden.add(found, f"${{{name[1]}}}")
            return found
        if name[2] is not None:
            return name[2]
        return self._fail(
            path, f"the environment variable {name[1]} is not set; set it, or write ${{{name[1]}:-default}}"
        )

    def _file(self, name: str, path: KeyPath) -> str:
        try:
            with Path(name).open("rb") as file:
                text = file.read(_MAX_SECRET_FILE).decode("utf-8").strip()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            return self._fail(path, f"cannot read the file {name} ({reason}); mount it, or correct the path")
        self._hidden.add(text, f"${{file:{name}}}")
        return text

    def _fail(self, path: KeyPath, what: str) -> str:
        self.broken.add(path)
        self.faults.append(self._document.at(path, what))
        return ""
