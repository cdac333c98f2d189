"""Markdown as the tests of the pages need it: code blocks with their info string, tables, headings, prose."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).parents[2]
DOCS = REPO / "docs"
_FOLDERS = (".", "docs", "helm", "bench", "examples")


def pages() -> list[Path]:
    """Every Markdown file of the project."""
    found = [*REPO.glob("*.md")]
    for folder in _FOLDERS[1:]:
        found += (REPO / folder).rglob("*.md")
    return sorted(found)


@dataclass(frozen=True, slots=True)
class Block:
    """`info` is what stands behind the fence: `yaml sidecar.yaml`, `python run`, `sh`."""

    page: str
    line: int
    info: str
    text: str

    @property
    def language(self) -> str:
        return self.info.partition(" ")[0]

    @property
    def mark(self) -> str:
        return self.info.partition(" ")[2]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    lines = page.read_text("utf-8").splitlines()
    start, info = 0, ""
    for number, line in enumerate(lines, 1):
        if not line.lstrip().startswith("```"):
            continue
        if not start:
            start, info = number, line.strip()[3:].strip()
        else:
            text = "\n".join(lines[start : number - 1]) + "\n"
            found.append(Block(page.relative_to(REPO).as_posix(), start, info, text))
            start = 0
    assert not start, f"{page}: the fence of line {start} is not closed"
    return found


def all_blocks(language: str) -> list[Block]:
    return [block for page in pages() for block in blocks(page) if block.language == language]


def prose(page: Path) -> str:
    """The text without its code blocks."""
    return re.sub(r"(?ms)^\s*```.*?^\s*```\s*?$", "", page.read_text("utf-8"))


def code_spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def section(page: Path, title: str) -> str:
    """From a `##` heading to the next one."""
    found = re.search(rf"(?ms)^## {re.escape(title)}$.*?(?=^## |\Z)", page.read_text("utf-8"))
    assert found is not None, f"{page.name} has no section '{title}'"
    return found[0]


def tables(text: str) -> list[list[dict[str, str]]]:
    """Each table as rows by column title."""
    found = []
    for table in re.findall(r"(?m)(?:^\|.*\|$\n?)+", text):
        head, _, *rows = [_cells(line) for line in table.strip().splitlines()]
        assert all(len(row) == len(head) for row in rows), f"a row of another length: {table}"
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def rows_with(text: str, *columns: str) -> list[dict[str, str]]:
    """The rows of all tables that have these columns."""
    return [row for table in tables(text) for row in table if set(columns) <= set(row)]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
