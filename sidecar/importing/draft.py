"""The `sidecar.yaml` being made: sections, deployments, and the variables it reads. Neighbours: the tables of rows
fill it, `settle.py` finishes it, `write.py` prints it.

Rule: a secret given literally never enters; a reference to a variable takes its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from sidecar.config.environment import KNOWN_VARIABLES
from sidecar.config.read import KeyPath
from sidecar.importing.providers import Prefix
from sidecar.importing.report import Refuse, Variable, Verdict, shown
from sidecar.importing.source import Node

EXAMPLES = {
    "text": "text",
    "secret": "sk-placeholder-0123456789",
    "url": "https://host.invalid/v1",
    "postgres": "postgresql://user:password@host.invalid/name",
    "redis": "redis://host.invalid:6379/0",
    "host": "host.invalid",
    "number": "1",
    "truth": "true",
}
"""What a variable of a kind may hold; the written file is checked with these."""

_LOOKS_SECRET = re.compile(
    r"\b(sk|pk|rk|xox[abps]|gh[pousr]|hf|gsk|glpat|AKIA|ASIA|AIza|ya29)[-_]?[A-Za-z0-9_\-./]{12,}"
    r"|eyJ[A-Za-z0-9_-]{8,}|-----BEGIN"
)
_NOT_A_NAME = re.compile(r"[^A-Z0-9]+")


@dataclass(slots=True, eq=False)
class Deployment:
    """One entry of the model list. `values` are our keys; `out` says why it cannot be taken (else None)."""

    node: Node
    group: str = ""
    prefix: Prefix | None = None
    provider: str = ""
    model: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    out: str | None = None
    blamed: Node | None = None
    is_reserve: bool = False
    prices: dict[str, Decimal] = field(default_factory=dict)
    access_groups: list[str] = field(default_factory=list)
    timeout_s: float | str | None = None
    stream_timeout_s: float | str | None = None

    def param(self, name: str) -> Node | None:
        node = self.node.get("litellm_params", name)
        return node if node is not None and node.value is not None else None

    def drop(self, reason: str, node: Node) -> None:
        if self.out is None:
            self.out, self.blamed = reason, node

    def put(self, key: str, value: Any) -> bool:
        """`limits.rpm` and the like; what stands stays. False if something stood."""
        *parents, name = key.split(".", 1)
        values = self.values
        for parent in parents:
            values = values.setdefault(parent, {})
        if name in values:
            return False
        values[name] = value
        return True


@dataclass(slots=True)
class _Used:
    kind: str
    moved_from: list[str] = field(default_factory=list)
    read_for: str = ""


class Draft:
    def __init__(self, occupied: Iterable[str]) -> None:
        """`occupied`: names of variables the source knows; a moved secret gets another one."""
        self.sections: dict[str, dict[str, Any]] = {}
        self.deployments: list[Deployment] = []
        self.verdicts: dict[Node, Verdict] = {}
        self.notes: list[str] = []
        self.timeout_s: float | None = None
        self.stream_timeout_s: float | None = None
        self.drops_params = False
        self.concurrency: int | None = None
        self.strategy = "simple-shuffle"
        self.redis: dict[KeyPath, dict[str, Node]] = {}
        self.credentials: dict[str, list[Node]] = {}
        self.default_fallbacks: list[tuple[str, Node]] = []
        self.fallback_places: dict[str, tuple[str, KeyPath]] = {}
        self.placed: dict[str, Node] = {}
        self._occupied = set(occupied)
        self._used: dict[str, _Used] = {}
        self._moved: dict[str, str] = {}

    @property
    def groups(self) -> dict[str, list[Deployment]]:
        """Model names → what was taken, in the source's order."""
        groups: dict[str, list[Deployment]] = {}
        for deployment in self.deployments:
            if deployment.out is None:
                groups.setdefault(deployment.group, []).append(deployment)
        return groups

    def put(self, key: str, value: Any, node: Node) -> None:
        """`routing.retries` and the like. Raises Refuse if another line of the source has set it."""
        if key in self.placed:
            first = self.placed[key]
            raise Superseded(f"not used; {place(first)} sets {key}")
        self.placed[key] = node
        section, _, name = key.partition(".")
        self.sections.setdefault(section, {})[name] = value

    # Values

    def reference(self, name: str, kind: str, read_for: str = "the source names it") -> str:
        if name.startswith("SIDECAR_") and name not in KNOWN_VARIABLES:
            raise Refuse("variables that begin with SIDECAR_ are settings here; give this one another name")
        used = self._used.setdefault(name, _Used(kind))
        used.read_for = used.read_for or read_for
        return f"${{{name}}}"

    def secret(self, node: Node, wanted: str, kind: str = "secret") -> str:
        """A reference: the source's own, or a new one for a value that stood there literally."""
        name = _env(node)
        if name is not None:
            return self.reference(name, kind)
        if isinstance(node.value, (dict, list)) or node.value is None:
            raise Refuse("must be text")
        value = node.text
        name = self._moved.get(value)
        if name is None:
            name = self._free(wanted)
            self._moved[value] = name
            self._used[name] = _Used(kind)
        if place(node) not in self._used[name].moved_from:
            self._used[name].moved_from.append(place(node))
        return f"${{{name}}}"

    def is_moved(self, node: Node) -> bool:
        return _env(node) is None

    def text(self, node: Node, kind: str = "text", wanted: str = "IMPORTED") -> str:
        """A text that is no secret. What looks like one all the same is moved."""
        name = _env(node)
        if name is not None:
            return self.reference(name, kind)
        if isinstance(node.value, (dict, list)) or node.value is None:
            raise Refuse("must be text")
        text = node.text.strip()
        if any(0xD800 <= ord(c) <= 0xDFFF for c in text):
            raise Refuse("holds half a character (a lone surrogate); correct it")
        if looks_secret(text):
            return self.secret(node, wanted, kind)
        return text.replace("${", "$${")

    def number(self, node: Node, *, least: float, most: float, whole: bool = False) -> Any:
        """Raises Refuse with what is allowed. A reference stays one."""
        name = _env(node)
        if name is not None:
            return self.reference(name, "number")
        found = decimal_of(node)
        if found is None or (whole and found != found.to_integral_value()):
            raise Refuse(f"must be a {'whole ' if whole else ''}number; write one, and run the import again")
        if not Decimal(str(least)) <= found <= Decimal(str(most)):
            raise Refuse(f"must be {Decimal(str(least)):f} to {Decimal(str(most)):f} here")
        if found == found.to_integral_value():
            return int(found)
        return float(found)

    def truth(self, node: Node) -> bool | str:
        name = _env(node)
        if name is not None:
            return self.reference(name, "truth")
        if isinstance(node.value, bool):
            return node.value
        word = str(node.value).strip().lower()
        if word in ("true", "1", "yes", "on"):
            return True
        if word in ("false", "0", "no", "off"):
            return False
        raise Refuse("must be true or false")

    # Variables

    @property
    def variables(self) -> list[Variable]:
        return [Variable(name, tuple(u.moved_from), u.read_for) for name, u in sorted(self._used.items())]

    def reads(self, name: str) -> bool:
        return name in self._used

    @property
    def placeholders(self) -> dict[str, str]:
        """An environment with which the written file can be checked."""
        return {name: EXAMPLES[used.kind] for name, used in self._used.items()}

    def forget_unread(self, text: str) -> None:
        """Asked for is what the written text reads; of its comments, only what was moved out of the source."""
        read = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
        for name in list(self._used):
            if f"${{{name}}}" not in (text if self._used[name].moved_from else read):
                del self._used[name]

    def _free(self, wanted: str) -> str:
        base = _NOT_A_NAME.sub("_", wanted.upper()).strip("_") or "IMPORTED"
        base = f"V_{base}" if base[0].isdigit() else base
        if base in self._occupied or base not in KNOWN_VARIABLES:
            base = base.removeprefix("SIDECAR_")  # the others are settings
        name, n = base, 1
        while name in self._occupied or name in self._used:
            n += 1
            name = f"{base}_{n}"
        return name


class Superseded(Refuse):
    """Another line sets the same; nothing is lost."""


def place(node: Node) -> str:
    return f"{shown(node.file)}:{node.line}"


def looks_secret(text: str) -> bool:
    return _LOOKS_SECRET.search(text) is not None


def named(text: str, limit: int = 60) -> str:
    """A name for people to read; what looks like a secret put in its place is not repeated."""
    return "***" if looks_secret(text) else shown(text, limit)


def decimal_of(node: Node) -> Decimal | None:
    """The number as written; text that is a number counts, as it does for the reference."""
    if isinstance(node.value, bool) or not isinstance(node.value, (int, float, str)):
        return None
    try:
        found = Decimal(str(node.value) if isinstance(node.value, int) else node.text.strip().replace("_", ""))
    except InvalidOperation:
        try:
            found = Decimal(repr(float(node.value)))
        except (ValueError, InvalidOperation):
            return None
    return found if found.is_finite() and -30 < found.adjusted() < 30 else None


def _env(node: Node) -> str | None:
    try:
        return node.env
    except ValueError as error:
        raise Refuse(str(error)) from None
