"""What became of each line of the source, for people and as JSON. Neighbours: `rows.py` makes the verdicts.

Rule: no value of the source stands in a report unless the handler that wrote it knows it is no secret; what comes from
the file is shown without control characters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from sidecar.config.read import KeyPath

Status = Literal["taken", "changed", "no equivalent"]
STATUSES: tuple[Status, ...] = ("taken", "changed", "no equivalent")


@dataclass(frozen=True, slots=True)
class Verdict:
    """`to` is our key, empty if there is none; `text` says how it was changed, or why not and what to do."""

    status: Status
    to: str = ""
    text: str = ""


class Refuse(Exception):
    """Raised by a handler: no equivalent, and why."""


@dataclass(frozen=True, slots=True, order=True)
class Line:
    file: str
    line: int
    key: str
    status: Status
    to: str
    text: str

    def __str__(self) -> str:
        rest = ": ".join(part for part in (f"-> {self.to}" if self.to else "", self.text) if part)
        return f"{shown(self.file)}:{self.line}: {self.key}: {self.status}{f' {rest}' if self.to else f': {rest}'}"


@dataclass(frozen=True, slots=True)
class Variable:
    """One the written file reads. `moved_from`: where its value stood literally; `read_for`: what reads it."""

    name: str
    moved_from: tuple[str, ...] = ()
    read_for: str = ""

    def __str__(self) -> str:
        if self.moved_from:
            return f"{self.name}: its value stood in {', '.join(self.moved_from)}"
        return f"{self.name}: {self.read_for}"


class Entry(Protocol):
    """A column of a database; `database/book.py`."""

    @property
    def status(self) -> Status: ...

    def as_json(self) -> dict[str, Any]: ...


class Accounts(Protocol):
    """What became of a database, and what was written."""

    @property
    def entries(self) -> Sequence[Entry]: ...

    @property
    def counts(self) -> Mapping[str, int]: ...


@dataclass(slots=True)
class Report:
    lines: list[Line] = field(default_factory=list)
    variables: list[Variable] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    database: Accounts | None = None

    def count(self, status: Status) -> int:
        entries = self.database.entries if self.database is not None else ()
        return sum(line.status == status for line in self.lines) + sum(entry.status == status for entry in entries)

    def text(self) -> str:
        out = [str(line) for line in self.lines]
        if self.database is not None:
            out += ["", *(str(entry) for entry in self.database.entries)]
            out += ["", "in the database:"] if self.database.counts else []
            out += [f"  {rows} {what}" for what, rows in self.database.counts.items()]
        if self.variables:
            out += ["", "set in the environment:", *(f"  {variable}" for variable in self.variables)]
        out += ["", *(f"note: {note}" for note in self.notes)] if self.notes else []
        return "\n".join([*out, "", ", ".join(f"{self.count(status)} {status}" for status in STATUSES)])

    def as_json(self) -> dict[str, Any]:
        return {
            "counts": {status: self.count(status) for status in STATUSES},
            "lines": [
                {"file": x.file, "line": x.line, "key": x.key, "status": x.status, "to": x.to or None, "text": x.text}
                for x in self.lines
            ],
            "environment": [
                {"name": v.name, "moved_from": list(v.moved_from), "read_for": v.read_for or None}
                for v in self.variables
            ],
            "database": None
            if self.database is None
            else {"entries": [e.as_json() for e in self.database.entries], "written": dict(self.database.counts)},
            "notes": self.notes,
        }


def dotted(path: KeyPath) -> str:
    """`model_list[0].litellm_params.model`"""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{shown(part)}" if text else shown(part)
    return text


def shown(text: str, limit: int = 160) -> str:
    """One line, without control characters, not too long."""
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[: limit + 1])
    return plain if len(text) <= limit else plain[:limit] + "…"


def listed(items: Iterable[str]) -> str:
    return ", ".join(f"'{shown(item, 60)}'" for item in items)
