"""The foreign file as a tree that knows where everything stands, its includes merged in. Neighbour: `litellm.py`.

Read as YAML 1.1, as the reference reads it (`yes` is true). Aliases are expanded under a bound, so neither a bomb nor a
cycle gets far. Faults name file, line and column; no message quotes a value.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from sidecar.config.read import ConfigError, Document, Fault, KeyPath

MAX_BYTES = 2_000_000
MAX_NODES = 50_000
MAX_DEPTH = 32
MAX_FILES = 100
_CORE = "tag:yaml.org,2002:"
_SCALAR_TAGS = frozenset(_CORE + name for name in ("null", "bool", "int", "float", "str", "timestamp", "value"))
_COLLECTION_TAGS = frozenset({_CORE + "seq", _CORE + "map"})
_ENV = re.compile(r"os\.environ/([A-Za-z_][A-Za-z0-9_]*)")


@dataclass(slots=True, eq=False)
class Node:
    """A value and where it stands: `path` and `line` in `file`. `text` is a scalar as written."""

    file: str
    line: int
    column: int
    path: KeyPath
    value: Any
    text: str = ""

    @property
    def is_leaf(self) -> bool:
        """A scalar, or an empty mapping or list."""
        return not isinstance(self.value, (dict, list)) or not self.value

    @property
    def env(self) -> str | None:
        """The variable an `os.environ/NAME` names. Raises ValueError if the name is none."""
        if not isinstance(self.value, str) or not self.value.startswith("os.environ/"):
            return None
        match = _ENV.fullmatch(self.value.strip())
        if match is None:
            raise ValueError("what follows os.environ/ is no name of a variable")
        return match[1]

    def get(self, *parts: str) -> Node | None:
        node: Node | None = self
        for part in parts:
            node = node.value.get(part) if node is not None and isinstance(node.value, dict) else None
        return node

    def leaves(self) -> Iterator[Node]:
        if self.is_leaf:
            yield self
        else:
            for child in self.value.values() if isinstance(self.value, dict) else self.value:
                yield from child.leaves()

    def fault(self, what: str) -> Fault:
        return Fault(self.line, self.column, f"{self.file}:{self.line}:{self.column}", what)


@dataclass(slots=True)
class Source:
    """`tree` is what counts after all includes; `includes` the leaves that named files; `replaced` the leaves that a
    later file took the place of, with the node that did."""

    tree: Node
    files: list[str] = field(default_factory=list)
    includes: list[Node] = field(default_factory=list)
    replaced: list[tuple[Node, Node]] = field(default_factory=list)

    def leaves(self) -> list[Node]:
        """Those that count, in the order of the tree."""
        return [leaf for leaf in self.tree.leaves() if leaf is not self.tree]


def read_source(path: Path) -> Source:
    """Raises ConfigError with all faults found."""
    reader = _Reader()
    tree = reader.file(path, None, ())
    if reader.faults:
        raise ConfigError(reader.faults)
    return Source(tree, reader.names, reader.includes, reader.replaced)


class _Reader:
    """One import: the bounds hold over all its files."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.names: list[str] = []
        self.includes: list[Node] = []
        self.replaced: list[tuple[Node, Node]] = []
        self._nodes = 0

    def file(self, path: Path, named_by: Node | None, parents: tuple[Path, ...]) -> Node:
        if path.resolve() in parents and named_by is not None:
            raise ConfigError([*self.faults, named_by.fault("this file includes itself, perhaps by way of others")])
        if len(self.names) >= MAX_FILES and named_by is not None:
            raise ConfigError([*self.faults, named_by.fault(f"more than {MAX_FILES} files are included")])
        document = Document(str(path))
        text = _text(path, document, named_by)
        self.names.append(str(path))
        tree = self._parse(text, document)
        for item in self._take_includes(tree):
            self.includes.append(item)
            included = self.file(path.parent / item.value, item, (*parents, path.resolve()))
            self._merge(tree, included)
        return tree

    def _take_includes(self, tree: Node) -> list[Node]:
        node = tree.value.pop("include", None)
        if node is None:
            return []
        found = []
        for item in node.value if isinstance(node.value, list) and node.value else [node]:
            if isinstance(item.value, str) and item.value.strip() and "\0" not in item.value:
                found.append(item)
            else:
                self.faults.append(item.fault("'include' names files; write their paths as text"))
        return found

    def _merge(self, tree: Node, included: Node) -> None:
        """Lists are appended, all else is replaced whole."""
        for key, value in included.value.items():
            old = tree.value.get(key)
            if old is not None and isinstance(old.value, list) and isinstance(value.value, list):
                # An empty list adds nothing, but is a leaf of its own.
                if not value.value:
                    self.replaced.append((value, old))
                elif not old.value:
                    self.replaced.append((old, value))
                    tree.value[key] = value
                else:
                    old.value.extend(value.value)
                continue
            if old is not None:
                self.replaced += [(leaf, value) for leaf in old.leaves()]
            tree.value[key] = value

    def _parse(self, text: str, document: Document) -> Node:
        yaml = YAML(typ="safe", pure=True)
        yaml.version = (1, 1)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                top = yaml.compose(text)
                if top is None:
                    raise ConfigError([document.fault(0, 0, "is empty; give the proxy's config.yaml")])
                if not isinstance(top, MappingNode):
                    raise ConfigError([_at(document, top, "must be a mapping with keys such as model_list")])
                return self._node(top, (), None, document, yaml.constructor)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line, column = (mark.line, mark.column) if mark is not None else (0, 0)
            raise ConfigError([*self.faults, document.fault(line, column, _fix(error, text, line))]) from None
        except RecursionError:
            raise ConfigError([*self.faults, document.fault(0, 0, "nested too deep")]) from None
        except (YAMLError, ValueError) as error:
            line, column, what = _unreadable(error, text)
            raise ConfigError([*self.faults, document.fault(line, column, what)]) from None

    def _node(self, raw: Any, path: KeyPath, key: Any, document: Document, constructor: Any) -> Node:
        """`key` is the node the value stands at: the place of an alias is where it is used."""
        mark = raw.start_mark
        if key is not None and (mark.line, mark.column) < (key.start_mark.line, key.start_mark.column):
            mark = key.start_mark
        self._nodes += 1
        if self._nodes > MAX_NODES or len(path) > MAX_DEPTH:
            what = "too many values or too deep (an alias that holds itself or multiplies?); write it out"
            raise ConfigError([*self.faults, document.fault(mark.line, mark.column, what)])
        node = Node(str(document.name), mark.line + 1, mark.column + 1, path, None)
        if isinstance(raw, (SequenceNode, MappingNode)) and raw.tag not in _COLLECTION_TAGS:
            self._own_tag(document, raw)
        if isinstance(raw, SequenceNode):
            node.value = [
                self._node(item, (*path, i), _later(key, raw, mark) or raw, document, constructor)
                for i, item in enumerate(raw.value)
            ]
        elif isinstance(raw, MappingNode):
            node.value = self._mapping(raw, path, _later(key, raw, mark), document, constructor)
        else:
            node.text = str(raw.value)
            node.value = self._scalar(raw, document, constructor)
        return node

    def _mapping(
        self, raw: MappingNode, path: KeyPath, used_at: Any, document: Document, constructor: Any
    ) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key, value in raw.value:
            if key.tag == _CORE + "merge":
                for part in value.value if isinstance(value, SequenceNode) else [value]:
                    if not isinstance(part, MappingNode):
                        self.faults.append(_at(document, key, "'<<' merges mappings only"))
                        continue
                    node = self._node(part, path, used_at or key, document, constructor)
                    for name, item in node.value.items():
                        merged.setdefault(name, item)
            elif not isinstance(key, ScalarNode):
                self.faults.append(_at(document, key, "a key must be text"))
            elif str(key.value) in own:
                first = own[str(key.value)].line
                self.faults.append(_at(document, key, f"this key stands here again (first near line {first})"))
            else:
                name = str(key.value)
                own[name] = node = self._node(value, (*path, name), used_at or key, document, constructor)
                if used_at is None and value.start_mark == value.end_mark:  # nothing stands there, but the key does
                    node.line, node.column = key.start_mark.line + 1, key.start_mark.column + 1
        return own | {name: node for name, node in merged.items() if name not in own}

    def _own_tag(self, document: Document, raw: Any) -> None:
        self.faults.append(_at(document, raw, "a value with a tag of its own (!…) is not read; write a plain one"))

    def _scalar(self, raw: ScalarNode, document: Document, constructor: Any) -> Any:
        if raw.tag not in _SCALAR_TAGS:
            self._own_tag(document, raw)
            return None
        if raw.tag in (_CORE + "timestamp", _CORE + "value", _CORE + "str"):
            return str(raw.value)
        try:
            value = constructor.construct_object(raw)
        except (ValueError, TypeError, KeyError, IndexError, OverflowError, ConstructorError):
            return str(raw.value)
        for kind in (bool, int, float):
            if isinstance(value, kind):
                return kind(value)
        return value


def _later(key: Any, raw: Any, mark: Any) -> Any:
    """What stands inside an alias stands where the alias is used."""
    return key if mark is not raw.start_mark else None


def _at(document: Document, raw: Any, what: str) -> Fault:
    return document.fault(raw.start_mark.line, raw.start_mark.column, what)


def _text(path: Path, document: Document, named_by: Node | None) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        if named_by is not None:
            raise ConfigError([named_by.fault(f"the included file {what}")]) from None
        raise ConfigError([Fault(0, 0, str(path), f"{what}; give the path of the proxy's config.yaml")]) from None
    if len(data) > MAX_BYTES:
        raise ConfigError([Fault(0, 0, str(path), f"larger than {MAX_BYTES} bytes; is this a config.yaml?")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n"), error.start - (before.rfind(b"\n") + 1)
        raise ConfigError([document.fault(line, column, "not UTF-8; save the file as UTF-8")]) from None


def _unreadable(error: Exception, text: str) -> tuple[int, int, str]:
    """A character YAML does not have: the library tells its position, which is turned into line and column."""
    position = getattr(error, "position", None)
    if not isinstance(position, int):
        return 0, 0, f"not valid YAML ({type(error).__name__})"
    before = text[:position]
    line, column = before.count("\n"), position - (before.rfind("\n") + 1)
    return line, column, "not valid YAML: a character that YAML does not allow"


def _fix(error: MarkedYAMLError, text: str, line: int) -> str:
    lines = text.splitlines()
    here = lines[line] if line < len(lines) else ""
    problem = str(error.problem or error.context)
    if "undefined alias" in problem:
        return "not valid YAML: a value that begins with * must stand in quotes"
    if "single document" in str(error.context):
        return "holds several documents (---); give one"
    if "\t" in here:
        return "not valid YAML: a tab; indent with spaces"
    # What the library quotes may be a piece of a value.
    problem = re.sub(r"(['\"])(?!<)..+?\1", "…", problem)
    return f"not valid YAML ({problem}); check quotes, colons and indentation here and in the line above"
