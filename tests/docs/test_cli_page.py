"""docs/cli.md names every command and option; every `sidecar …` a page shows is a command there is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from starlette.routing import Route

from sidecar.app import build_app
from sidecar.cli import app
from sidecar.config import load_config
from sidecar.gateway import _OPEN_PATHS
from tests.docs.support import DOCS, REPO, blocks, code_spans, pages, prose, rows_with, section

PAGE = DOCS / "cli.md"
ROOT: Any = typer.main.get_command(app)
_END = ("|", "||", "&&", "&", ";", ">", "…", ")")


def commands(node: Any = ROOT, path: str = "sidecar") -> Iterator[tuple[str, Any]]:
    below = getattr(node, "commands", None)
    if below is None:
        yield path, node
        return
    for name, command in below.items():
        yield from commands(command, f"{path} {name}")


COMMANDS = dict(commands())
ADMIN = {"keys", "users", "teams", "organizations", "customers", "budgets", "tags", "models", "audit"}


def options(command: Any) -> set[str]:
    return {opt for param in command.params for opt in (*param.opts, *param.secondary_opts) if opt.startswith("-")}


def test_every_command_is_in_the_list_and_nothing_else() -> None:
    rows = rows_with(PAGE.read_text("utf-8"), "command", "does")
    assert sorted(span for row in rows for span in code_spans(row["command"])) == sorted(COMMANDS)


@pytest.mark.parametrize("path", sorted(COMMANDS))
def test_every_option_stands_in_the_commands_section(path: str) -> None:
    wanted = options(COMMANDS[path]) - {"--help"}
    if path.split()[1] in ADMIN:
        rows = _option_rows(section(PAGE, "The commands of the admin API"))
        wanted -= {span for row in rows for span in code_spans(row)}
    if wanted:
        rows = _option_rows(section(PAGE, path.split()[1]))
        assert wanted - {span for row in rows for span in code_spans(row)} == set()


def test_no_section_names_an_option_that_is_not_there() -> None:
    for title in ("serve", "keys"):
        known = set().union(*(options(c) for path, c in COMMANDS.items() if path.split()[1] == title))
        named = {span for row in _option_rows(section(PAGE, title)) for span in code_spans(row)}
        assert named
        assert named <= known


def _option_rows(text: str) -> list[str]:
    return [row[title] for title in ("option", "option of `create`") for row in rows_with(text, title)]


def shown_commands(page: Path) -> list[str]:
    """What a page shows to be typed: in shell blocks, and as inline code."""
    lines = []
    for block in blocks(page):
        if block.language == "sh":
            lines += block.text.splitlines()
        elif block.language == "console":
            lines += [line.removeprefix("$ ") for line in block.text.splitlines() if line.startswith("$ ")]
    lines += [span for span in code_spans(prose(page)) if span.startswith("sidecar ")]
    found = []
    for line in lines:
        at = re.search(r"(?:^|[(/\s])sidecar (?=[a-z-])", line)
        if at is not None:
            found.append("sidecar " + line[at.end() :])
    return found


SHOWN = [(page.relative_to(REPO).as_posix(), line) for page in pages() for line in shown_commands(page)]


@pytest.mark.parametrize(("page", "line"), SHOWN)
def test_a_command_a_page_shows_exists(page: str, line: str) -> None:
    words = shlex.split(line.replace(")", " ) "), comments=True)[1:]
    node, path = ROOT, "sidecar"
    while words and hasattr(node, "commands"):
        word = words.pop(0)
        if word in _END:
            return
        assert word in node.commands, f"{page}: '{path}' has no command '{word}'"
        node, path = node.commands[word], f"{path} {word}"
    known = options(node)
    for word in words:
        if word in _END:
            return
        if word.startswith("-"):
            assert word.partition("=")[0] in known, f"{page}: '{path}' has no option '{word}'"


def test_every_path_the_gateway_serves_is_on_a_page(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text(f"store: {{database_url: 'sqlite:///{tmp_path}/s.db', journal_dir: '{tmp_path}/journal'}}\n")
    gateway = build_app(load_config(file, {"SIDECAR_MASTER_KEY": "sk-0123456789abcdef"}))
    served = {route.path.replace(":path}", "}") for route in gateway._router.routes if isinstance(route, Route)}
    assert "/key/generate" in served
    spans = [span for page in (PAGE, DOCS / "keys.md", DOCS / "admin.md") for span in code_spans(prose(page))]
    named = {re.sub(r"^(?:GET|POST|PATCH|DELETE) |\?.*", "", span) for span in spans}
    assert (served | _OPEN_PATHS) - named == set()


def test_the_pages_show_many_commands() -> None:
    assert {page for page, _ in SHOWN} >= {"README.md", "docs/cli.md", "docs/configuration.md"}
    assert len(SHOWN) > 25
