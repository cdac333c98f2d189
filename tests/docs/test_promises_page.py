"""docs/promises.md has all thirty promises, and says "kept" of exactly those that have a test file."""

from __future__ import annotations

import re

import pytest

from tests.docs.support import DOCS, REPO, code_spans, rows_with

PAGE = DOCS / "promises.md"
FILES = {path.relative_to(REPO).as_posix(): path for path in (REPO / "tests" / "promises").glob("test_*.py")}
ROWS = rows_with(PAGE.read_text("utf-8"), "number", "promise", "state", "test", "seen")
KEPT = [row for row in ROWS if row["state"] == "kept"]


def files_of(row: dict[str, str]) -> list[str]:
    return list(code_spans(row["test"]))


def number_of(name: str) -> int:
    found = re.fullmatch(r"tests/promises/test_(\d\d)_\w+\.py", name)
    assert found is not None, f"{name} does not carry a promise's number"
    return int(found[1])


def test_all_thirty_are_there_once() -> None:
    assert sorted(int(row["number"]) for row in ROWS) == list(range(1, 31))


def test_every_test_file_has_its_row() -> None:
    assert set(FILES) - {name for row in KEPT for name in files_of(row)} == set()


@pytest.mark.parametrize("row", KEPT, ids=lambda row: row["number"])
def test_a_promise_called_kept_has_its_file_and_what_was_seen(row: dict[str, str]) -> None:
    assert files_of(row)
    assert set(files_of(row)) <= FILES.keys()
    assert {number_of(name) for name in files_of(row)} == {int(row["number"])}
    assert row["seen"].strip("–- ")


def test_a_promise_not_kept_claims_nothing() -> None:
    for row in ROWS:
        assert row["state"] in ("kept", "not yet"), row["number"]
        if row["state"] == "not yet":
            assert (row["test"], row["seen"]) == ("–", "–"), row["number"]


@pytest.mark.parametrize("row", KEPT, ids=lambda row: row["number"])
def test_a_variable_for_a_longer_run_is_one_the_test_reads(row: dict[str, str]) -> None:
    for name in code_spans(row["seen"]):
        if name.startswith("PROMISE_"):
            assert any(name in FILES[file].read_text("utf-8") for file in files_of(row))
