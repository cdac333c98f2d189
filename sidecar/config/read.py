"""A YAML file as a tree that knows where everything stands. Neighbours: `interpolate.py`, and
`load.py`, the caller.

Faults are collected, not raised, as far as the text can be read at all; no message quotes a value of the file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

KeyPath = tuple[str | int, ...]
MAX_BYTES = 8_000_000


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One line for the operator: `where` is `file:line:column` or the environment variable, `what` ends in the fix."""

    line: int
    column: int
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class ConfigError(Exception):
    """All faults of a configuration; `str()` gives one line each, `faults` the lines."""

    def __init__(self, faults: list[Fault]) -> None:
        # One fault may be found on two ways; the first of each line stays.
        self.faults = list(dict.fromkeys(str(fault) for fault in sorted(faults)))
        super().__init__("\n".join(self.faults))


@dataclass(slots=True)
class Document:
    """`tree` is the top mapping; `name` is how the file is called in messages, `None` without a file."""

    name: str | None
    tree: Any = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def fault(self, line: int, column: int, what: str) -> Fault:
        """`line` and `column` count from 0, as the YAML library does."""
        if self.name is None:
            return Fault(0, 0, "environment", what)
        return Fault(line + 1, column + 1, f"{self.name}:{line + 1}:{column + 1}", what)

    def at(self, path: KeyPath, what: str, *, key: bool = False) -> Fault:
        """A fault at a value (or at its key); at the nearest thing around it if the path leads to nothing."""
        node, line, column = self.tree, 0, 0
        for i, part in enumerate(path):
            try:
                place = node.lc.data[part]
                is_key = key and i == len(path) - 1
                line, column = (place[2], place[3]) if len(place) == 4 and not is_key else (place[0], place[1])
                node = node[part]
            except (AttributeError, KeyError, IndexError, TypeError):
                break
        return self.fault(line, column, what)


def read_document(path: Path) -> Document:
    """Raises ConfigError if the text is not readable as YAML with a mapping at the top."""
    document = Document(str(path))
    text = _text(path, document)
    try:
        top = YAML(typ="rt").compose(text)
        if top is None:
            return document
        _duplicates(top, document, set())
        yaml = YAML(typ="rt")
        yaml.allow_duplicate_keys = True  # they are in `faults` already, all of them
        document.tree = yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line, mark.column) if mark is not None else (0, 0)
        raise ConfigError([*document.faults, document.fault(line, column, _yaml_fix(error, text, line))]) from None
    except RecursionError:
        raise ConfigError([document.fault(0, 0, "nested too deep; a configuration has about six levels")]) from None
    except (YAMLError, ValueError) as error:
        raise ConfigError([document.fault(0, 0, f"not valid YAML ({type(error).__name__})")]) from None
    if not isinstance(document.tree, dict):
        raise ConfigError([document.fault(0, 0, "must be a mapping such as 'server: {port: 4000}'")])
    return document


def _text(path: Path, document: Document) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        what = f"cannot be read ({error.strerror}); give the path of a sidecar.yaml"
        raise ConfigError([Fault(0, 0, str(path), what)]) from None
    if len(data) > MAX_BYTES:
        raise ConfigError([Fault(0, 0, str(path), f"larger than {MAX_BYTES} bytes; is this a sidecar.yaml?")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n"), error.start - (before.rfind(b"\n") + 1)
        raise ConfigError([document.fault(line, column, "not UTF-8; save the file as UTF-8")]) from None


def _duplicates(node: Any, document: Document, seen: set[int]) -> None:
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, SequenceNode):
        for item in node.value:
            _duplicates(item, document, seen)
    elif isinstance(node, MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            if isinstance(key, ScalarNode):
                if key.value in first:
                    what = f"the key '{key.value}' stands here again (first on line {first[key.value]}); remove one"
                    document.faults.append(document.fault(key.start_mark.line, key.start_mark.column, what))
                first.setdefault(key.value, key.start_mark.line + 1)
            _duplicates(value, document, seen)


def _yaml_fix(error: MarkedYAMLError, text: str, line: int) -> str:
    lines = text.splitlines()
    here = lines[line] if line < len(lines) else ""
    if "undefined alias" in str(error.problem):
        return "not valid YAML: a value that begins with * must stand in quotes"
    if "${" in here and ("{" in here.replace("${", "") or "[" in here):
        return "not valid YAML: inside {…} and […] a ${NAME} must stand in quotes"
    if "\t" in here:
        return "not valid YAML: a tab; indent with spaces"
    # What the library quotes may be a piece of a value.
    problem = re.sub(r"(['\"])(?!<)..+?\1", "…", str(error.problem or error.context))
    return f"not valid YAML ({problem}); check quotes, colons and indentation here and in the line above"
