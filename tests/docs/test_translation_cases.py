"""docs/translation-cases.md: each of the 103 known edge cases once, with tests that exist and run."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.docs.support import DOCS, REPO, code_spans, rows_with

PAGE = DOCS / "translation-cases.md"
ROWS = rows_with(PAGE.read_text("utf-8"), "case", "here", "tests")
CASES = 103


@cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((REPO / "tests" / file).read_text("utf-8"))
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(node.name for node in functions if node.name.startswith("test_"))


def test_every_number_stands_once_and_in_order() -> None:
    assert [int(row["case"]) for row in ROWS] == list(range(1, CASES + 1))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["case"])
def test_a_case_has_words_of_its_own_and_tests_that_exist(row: dict[str, str]) -> None:
    assert len(row["here"].split()) >= 5
    named = [span for span in code_spans(row["tests"]) if "::" in span]
    assert named, "name the test, or take the case from the page with its reason"
    for span in named:
        file, _, name = span.partition("::")
        assert re.fullmatch(r"[a-z0-9_/]+\.py", file)
        assert name in names_in(file), span


def test_numbers_that_tests_give_are_on_the_page_for_these_tests() -> None:
    """A docstring that says `7b-45` is a claim; the page may name better tests, but must have the number."""
    found = {
        int(number)
        for file in (REPO / "tests" / "translate").rglob("test_*.py")
        for number in re.findall(r"\b7b-(\d+)", file.read_text("utf-8"))
    }
    assert len(found) > 40
    assert found <= set(range(1, CASES + 1))


def test_the_pages_lead_there() -> None:
    assert "translation-cases.md" in (DOCS / "translation.md").read_text("utf-8")
