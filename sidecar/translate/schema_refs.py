"""The references of a JSON Schema: what they lead to, which lead back to themselves, and names for `$defs`.

Neighbour: `schema`. Rules: only references within the schema; iterative where depth is the client's, linear in size.
https://json-schema.org/draft/2020-12/json-schema-core#section-8.2.3 · https://www.rfc-editor.org/rfc/rfc6901
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

import msgspec

from sidecar.translate.usage import NOT_JSON

MAX_DEPTH = 100
"""Levels of nesting, counted through references."""
MAX_BRANCHES = 500
"""A union that has to stand alone takes up those within it; past so many branches it is left out."""
SUBSCHEMA = frozenset(
    """additionalProperties not contains if then else propertyNames unevaluatedProperties unevaluatedItems
    additionalItems""".split()  # noqa: SIM905
)
SUBSCHEMA_MAPS = frozenset(("patternProperties", "dependentSchemas"))
SUBSCHEMA_LISTS = ("allOf", "anyOf", "oneOf")

_POINTER = re.compile(r"#(?:/.*)?", re.DOTALL)
_NOT_NAME = re.compile(r"[^A-Za-z0-9_.-]")


class SchemaError(ValueError):
    """What is wrong with a schema, for the client."""


class References:
    """`targets`: reference → schema, for all seen. `cycle_of`: reference → number of the cycle it is part of.
    `names`: reference → its name in the `$defs` that are sent."""

    __slots__ = ("cycle_of", "names", "root", "targets")

    def __init__(self, root: dict[str, Any]) -> None:
        self.root = root
        self.targets: dict[str, Any] = {}
        self.names: dict[str, str] = {}
        self.cycle_of: dict[str, int] = {}
        self._find_cycles()

    def target(self, ref: Any, path: str) -> Any:
        if isinstance(ref, str) and ref in self.targets:
            return self.targets[ref]
        if not isinstance(ref, str) or _POINTER.fullmatch(ref) is None:
            raise SchemaError(f"the reference {str(ref)!r:.80} at {path} is not one within the schema (#/...).")
        found: Any = self.root
        for step in ref[2:].split("/") if len(ref) > 1 else ():
            step = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and step in found:
                found = found[step]
            elif isinstance(found, list) and step.isascii() and step.isdigit() and int(step[:9]) < len(found):
                found = found[int(step[:9])]
            else:
                raise SchemaError(f"the reference {ref!r:.80} at {path} leads nowhere.")
        if not isinstance(found, (dict, bool)):
            raise SchemaError(f"the reference {ref!r:.80} at {path} leads to what is not a schema.")
        self.targets[ref] = found
        return found

    def _find_cycles(self) -> None:
        """Fills `cycle_of`: reference → number of the cycle it is part of (Tarjan's components, without recursion)."""
        edges: dict[str, list[str]] = {"#": self._refs_in(self.root)}
        if not edges["#"]:
            return
        index: dict[str, int] = {}
        low: dict[str, int] = {}
        stack: list[str] = []
        on_stack: set[str] = set()
        work: list[tuple[str, int]] = [("#", 0)]
        while work:
            name, position = work.pop()
            if position == 0:
                index[name] = low[name] = len(index)
                stack.append(name)
                on_stack.add(name)
            following = edges.get(name)
            if following is None:
                following = edges[name] = self._refs_in(self.target(name, "/"))
            if position:
                low[name] = min(low[name], low[following[position - 1]])
            while position < len(following):
                other = following[position]
                position += 1
                if other not in index:
                    work += [(name, position), (other, 0)]
                    break
                if other in on_stack:
                    low[name] = min(low[name], index[other])
            else:
                if low[name] == index[name]:
                    part: list[str] = []
                    while not part or part[-1] != name:
                        part.append(stack.pop())
                        on_stack.discard(part[-1])
                    if len(part) > 1 or name in following:
                        self.cycle_of.update(dict.fromkeys(part, len(self.cycle_of) + 1))

    def _refs_in(self, schema: Any) -> list[str]:
        """References within a schema, but not within its definitions."""
        found: dict[str, None] = {}
        work: list[tuple[Any, int]] = [(schema, 0)]
        while work:
            node, depth = work.pop()
            if not isinstance(node, dict):
                continue
            if depth > MAX_DEPTH:
                raise SchemaError(f"it is nested more than {MAX_DEPTH} levels deep.")
            for key, value in node.items():
                if isinstance(value, dict):
                    if key == "properties" or key in SUBSCHEMA_MAPS:
                        work += [(sub, depth + 1) for sub in value.values()]
                    elif key == "items" or key in SUBSCHEMA:
                        work.append((value, depth + 1))
                elif isinstance(value, list):
                    if key == "items" or key == "prefixItems" or key in SUBSCHEMA_LISTS:
                        work += [(sub, depth + 1) for sub in value]
                elif key == "$ref" and isinstance(value, str):
                    self.target(value, "/$ref")
                    found[value] = None
        return list(found)

    def name(self, ref: str) -> str:
        """The name of a reference in `$defs`; the same for the same, different for different ones."""
        found = self.names.get(ref)
        if found is not None:
            return found
        last = unquote(ref.rsplit("/", 1)[-1]).replace("~1", "/").replace("~0", "~")
        base = _NOT_NAME.sub("_", last)[:60] if last not in ("", "#") else "root"
        name, taken, number = base, set(self.names.values()), 2
        while name in taken:
            name, number = f"{base}_{number}", number + 1
        self.names[ref] = name
        return name


def escape(name: str) -> str:
    """A name as a step of a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1") if "/" in name or "~" in name else name


def type_of(value: Any) -> str:
    """The JSON Schema type of a JSON value."""
    if isinstance(value, str):
        return "string"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if value is None:
        return "null"
    return "array" if isinstance(value, list) else "object"


def text_of(value: Any) -> str:
    """A JSON value as JSON text."""
    try:
        return msgspec.json.encode(value).decode()
    except (*NOT_JSON, TypeError, OverflowError):
        return repr(value)


def flatten(branches: list[dict[str, Any]], into: list[dict[str, Any]]) -> None:
    """Unions within unions as one; stops past `MAX_BRANCHES`, for shared parts can make it explode."""
    for branch in branches:
        if len(into) > MAX_BRANCHES:
            return
        if "anyOf" in branch:
            flatten(branch["anyOf"], into)
        else:
            into.append(branch)


def is_null(schema: Any) -> bool:
    return isinstance(schema, dict) and (schema.get("type") == "null" or schema.get("const", 0) is None)
