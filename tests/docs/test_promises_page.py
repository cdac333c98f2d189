"""The page of promises takes what `make promises` measured."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from bench import promises


def test_the_page_has_the_table_that_the_full_run_writes_into() -> None:
    page = promises.PAGE.read_text()
    same = promises.merged(page, {}, "here")
    assert same == page
    other = promises.merged(page, {1: "fewer", 99: "a new one"}, "here")
    assert other.count("\n| 1 | fewer | here |\n") == 1
    assert other.rstrip().endswith("| 99 | a new one | here |")
    assert len(other.splitlines()) == len(page.splitlines()) + 1


ONE, TWO = "tests/promises/test_01_a.py::one", "tests/promises/test_01_b.py::two"
OTHER = "tests/promises/test_02_c.py::x"


@pytest.mark.parametrize(
    ("ends", "why"),
    [
        ([(ONE, "passed"), (TWO, "failed")], "1 failed"),
        ([(ONE, "passed"), (TWO, "passed"), (TWO, "failed")], "1 failed"),  # at its end
        ([(ONE, "passed")], "1 not run"),
        ([(ONE, "passed"), (TWO, "skipped (no root)")], "1 skipped (no root)"),
        ([], ""),
    ],
)
def test_figures_are_written_if_every_test_of_the_promise_ran_and_passed(ends: list[tuple[str, str]], why: str) -> None:
    entries: list[dict[str, object]] = [{"test": test, "end": end} for test, end in [*ends, (OTHER, "passed")]]
    entries += [{"promise": 1, "figures": "a"}, {"promise": 2, "figures": "b"}]
    found, left = promises.kept(map(json.dumps, entries), [ONE, TWO, OTHER])
    assert found == {2: "b"}
    assert left == {1: why}


def test_all_cases_are_the_figure_of_a_promise_that_measures_nothing() -> None:
    entries = [json.dumps({"test": test, "end": "passed"}) for test in (ONE, TWO)]
    assert promises.kept(entries, [ONE, TWO]) == ({1: "2 cases"}, {})


TESTS = {
    "test_01_whole.py": """
        from tests.promises.sizes import measured
        def test_a(): measured(1, "new figures")
        def test_b(): pass""",
    "test_02_skips.py": """
        import pytest
        from tests.promises.sizes import measured
        def test_a(): measured(2, "new figures")
        def test_b(): pytest.skip("no root")""",
    "test_03_fails.py": "def test_a(): assert False",
    "test_04_ends_badly.py": """
        import pytest
        @pytest.fixture
        def end():
            yield
            assert False
        def test_a(end): pass""",
    "test_05_passes.py": "def test_a(): pass",
    "conftest.py": "from tests.promises.sizes import ended as pytest_runtest_logreport",
}


def test_a_run_leaves_the_rows_of_what_it_did_not_see_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tests" / "promises"
    folder.mkdir(parents=True)
    for name, text in TESTS.items():
        (folder / name).write_text(text.replace("\n        ", "\n"))
    page = tmp_path / "promises.md"
    before = promises.RULER + "".join(f"| {number} | old | then |\n" for number in range(1, 6))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(promises.ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setattr(promises, "ROOT", tmp_path)
    monkeypatch.setattr(promises, "PAGE", page)

    def renewed(*arguments: str) -> list[int]:
        page.write_text(before)
        monkeypatch.setattr(sys, "argv", ["promises", *arguments])
        promises.main()
        rows = page.read_text().removeprefix(promises.RULER).splitlines()
        return [number for number, row in enumerate(rows, 1) if row != f"| {number} | old | then |"]

    assert renewed() == [1, 5]
    said = capsys.readouterr().out
    assert "promise 2: its row stays as it was; of its tests 1 skipped (no root)\n" in said
    assert "promise 3: its row stays as it was; of its tests 1 failed\n" in said
    assert renewed("tests/promises/test_01_whole.py::test_a", "tests/promises/test_05_passes.py") == [5]
    said = capsys.readouterr().out
    assert "promise 1: its row stays as it was; of its tests 1 not run\n" in said
    assert "not run, their rows stay as they were: 2, 3, 4\n" in said
