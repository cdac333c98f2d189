"""What became of each column, added up over the rows: a database has too many values for a line each.

Rule: a column nobody asked for is reported by itself, so that nothing is lost in silence. No value is shown, only ids
and aliases; keys by alias or mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sidecar.importing.report import Status, shown

SHOWN_NAMES = 5
_EMPTY: tuple[Any, ...] = (None, "", "{}", "[]", "null", [], {}, False, 0)


@dataclass(slots=True)
class Entry:
    table: str
    column: str
    status: Status
    to: str
    text: str
    rows: int = 0
    names: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        what = f"{self.table}.{self.column}" if self.column else self.table
        rest = ": ".join(part for part in (f" -> {self.to}" if self.to else "", self.text) if part)
        who = ""
        if self.status != "taken" and self.names:
            more = f" and {self.rows - SHOWN_NAMES} more" if self.rows > SHOWN_NAMES else ""
            who = ": " + ", ".join(self.names[:SHOWN_NAMES]) + more
        joint = "" if self.to or not rest else ": "
        return f"{what}: {self.status}{joint}{rest} ({self.rows} row{'s' if self.rows != 1 else ''}{who})"

    def as_json(self) -> dict[str, Any]:
        return {
            "table": self.table, "column": self.column or None, "status": self.status, "to": self.to or None,
            "text": self.text, "rows": self.rows, "names": self.names,
        }  # fmt: skip


class Book:
    """All entries, in the order in which they first came up."""

    def __init__(self, keep_names: int = 1000) -> None:
        self._keep_names = keep_names
        self._entries: dict[tuple[str, str, str, str, str], Entry] = {}
        self.notes: list[str] = []
        self.counts: dict[str, int] = {}
        """What was written: `keys created` and the like."""

    @property
    def entries(self) -> list[Entry]:
        return list(self._entries.values())

    def add(
        self, table: str, column: str, status: Status, *, to: str = "", text: str = "", name: str = "", rows: int = 1
    ) -> None:
        key = (table, column, status, to, text)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = Entry(table, column, status, to, text)
        entry.rows += rows
        if name and len(entry.names) < self._keep_names:
            entry.names.append(shown(name, 60))

    def count(self, what: str, rows: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + rows


class Taken:
    """One row of theirs. Reading a column marks it; `finish` reports what was never read and holds something."""

    def __init__(self, book: Book, table: str, row: Mapping[str, Any], name: str) -> None:
        self._book = book
        self._table = table
        self._row = row
        self._name = name
        self._seen: set[str] = set()

    def get(self, column: str) -> Any:
        self._seen.add(column)
        return self._row.get(column)

    def take(self, column: str, to: str = "") -> Any:
        value = self.get(column)
        if value not in _EMPTY or (value == 0 and value is not False and value is not None):
            self._book.add(self._table, column, "taken", to=to or column, name=self._name)
        return value

    def changed(self, column: str, to: str, text: str) -> None:
        self.get(column)
        self._book.add(self._table, column, "changed", to=to, text=text, name=self._name)

    def nothing(self, column: str, why: str) -> None:
        """No equivalent, if it holds anything."""
        if self.get(column) not in _EMPTY:
            self._book.add(self._table, column, "no equivalent", text=why, name=self._name)

    def part(self, column: str, status: Status, to: str, text: str) -> None:
        """Of a JSON column's one key."""
        self._book.add(self._table, column, status, to=to, text=text, name=self._name)

    def finish(self, without: Mapping[str, str]) -> None:
        for column, why in without.items():
            self.nothing(column, why)
        for column, value in self._row.items():
            if column not in self._seen and value not in _EMPTY:
                why = "this import does not know the column; look up what it did there"
                self._book.add(self._table, column, "no equivalent", text=why, name=self._name)
