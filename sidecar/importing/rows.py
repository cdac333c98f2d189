"""A row of the table: a key of the source, what it becomes, and the function that does it. Neighbours:
`table_models.py` and `table_settings.py` hold the rows.

A key is written `model_list[].litellm_params.rpm`; `*` is any one key, `**` at the end is everything below (and the key
itself). The most exact row wins. A later version takes a key by adding or changing its row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sidecar.config.read import KeyPath
from sidecar.importing.report import Refuse, Verdict

H = TypeVar("H", bound=Callable[..., Verdict])
_PART = re.compile(r"\[\]|[^.\[\]]+")


@dataclass(frozen=True, slots=True)
class Row(Generic[H]):
    """`to` is our key (empty: no equivalent), `how` one line for people. Rows of an earlier `phase` are done first,
    `rank` decides within it: of two lines that set the same, the first one wins."""

    key: str
    to: str
    how: str
    handle: H
    phase: int = 1
    rank: int = 5

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(_PART.findall(self.key))


class Table(Generic[H]):
    def __init__(self, rows: Sequence[Row[H]]) -> None:
        self.rows = rows
        keys = [row.key for row in rows]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise ValueError(f"two rows for {', '.join(sorted(twice))}")
        self._rows = sorted(((row.parts, row) for row in rows), key=lambda item: _vagueness(item[0]))
        self._found: dict[tuple[str, ...], Row[H] | None] = {}

    def find(self, path: KeyPath) -> Row[H] | None:
        key = tuple("[]" if isinstance(part, int) else part for part in path)
        if key not in self._found:
            if len(self._found) > 10_000:
                self._found.clear()
            self._found[key] = next((row for parts, row in self._rows if _fits(parts, key)), None)
        return self._found[key]


def nothing(keys: str | Iterable[str], why: str, *, prefix: str = "") -> list[Row[Any]]:
    """Rows without an equivalent: why, and what to do."""

    def refuse(*_: Any) -> Verdict:
        raise Refuse(why)

    return [Row(prefix + key, "", why, refuse) for key in (keys.split() if isinstance(keys, str) else keys)]


def _vagueness(parts: tuple[str, ...]) -> tuple[bool, int, int]:
    return parts[-1] == "**", -len(parts) if parts[-1] == "**" else 0, sum(p == "*" for p in parts)


def _fits(parts: tuple[str, ...], key: tuple[str, ...]) -> bool:
    if parts[-1] == "**":
        parts = parts[:-1]
        if len(key) < len(parts):
            return False
        key = key[: len(parts)]
    return len(parts) == len(key) and all(p == k or (p == "*" and k != "[]") for p, k in zip(parts, key, strict=True))
