"""Every relative link and anchor of every page leads somewhere; every file a page names in code is there."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.docs.support import REPO, code_spans, pages, prose

PAGES = {page.relative_to(REPO).as_posix(): page for page in pages()}
EXPECTED = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"} | {
    f"docs/{name}.md"
    for name in (
        "architecture", "cli", "configuration", "decisions", "errors", "keys", "kubernetes", "limits", "metrics",
        "middlewares", "oidc", "promises", "spend", "translation",
    )
}  # fmt: skip
_FILE = re.compile(r"(?:sidecar|tests|docs|examples|bench|helm)/[\w./-]*")


@cache
def anchors(page: Path) -> frozenset[str]:
    """As GitHub makes them: lower case, punctuation gone, spaces as hyphens, a number for a repeated one."""
    found: dict[str, int] = {}
    for title in re.findall(r"(?m)^#{1,6} +(.+?) *#*$", prose(page)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        count = found.get(slug, -1) + 1
        found[slug] = count
        if count:
            found[f"{slug}-{count}"] = 0
    return frozenset(found)


def links(page: Path) -> list[str]:
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", target)]


def test_the_pages_are_there() -> None:
    assert EXPECTED - set(PAGES) == set()


def test_every_page_of_docs_is_linked_from_the_readme() -> None:
    linked = {target.partition("#")[0] for target in links(REPO / "README.md")}
    assert [name for name in PAGES if name.startswith("docs/") and name not in linked] == []


@pytest.mark.parametrize("name", sorted(PAGES))
def test_every_link_and_anchor_leads_somewhere(name: str) -> None:
    page = PAGES[name]
    broken = []
    for target in links(page):
        path, _, anchor = unquote(target).partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("name", sorted(PAGES))
def test_every_file_named_in_code_is_there(name: str) -> None:
    spans = [span.partition("::")[0] for span in code_spans(prose(PAGES[name]))]
    named = [span for span in spans if _FILE.fullmatch(span)]
    assert [span for span in named if not (REPO / span).exists()] == []


def test_the_anchors_are_made_as_github_makes_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `two`, three\n## Who's there?\n## Same\n## Same\n```\n# no heading\n```\n### a_b – c\n")
    assert anchors(page) == {"one-two-three", "whos-there", "same", "same-1", "a_b--c"}
