"""The page of promises takes what `make promises` measured."""

from __future__ import annotations

from bench import promises


def test_the_page_has_the_table_that_the_full_run_writes_into() -> None:
    page = promises.PAGE.read_text()
    same = promises.merged(page, {}, "here")
    assert same == page
    other = promises.merged(page, {1: "fewer", 99: "a new one"}, "here")
    assert other.count("\n| 1 | fewer | here |\n") == 1
    assert other.rstrip().endswith("| 99 | a new one | here |")
    assert len(other.splitlines()) == len(page.splitlines()) + 1


def test_figures_of_a_promise_one_of_whose_tests_failed_are_not_written() -> None:
    lines = ['{"promise": 1, "figures": "a"}', '{"promise": 2, "figures": "b"}', '{"promise": 2}']
    assert promises.kept(lines) == {1: "a"}
