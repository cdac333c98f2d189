"""*Overhead anyone can rerun.* One command measures CPU per request and per chunk, requests per second and latencies,
and says how near the load generator itself was to its limits. Here: it runs and prints its table; no figure is judged.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COLUMNS = ("scenario", "requests/s", "CPU µs/request", "CPU µs/chunk", "p50 ms", "p99 ms", "load CPU", "errors")
SCENARIO = "full stack, same dialect, streamed"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def number(cell: str) -> float:
    return float(cell.replace(",", "").rstrip("%"))


@pytest.fixture(scope="module")
def report() -> str:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--only", SCENARIO],
        cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return done.stdout


def test_the_benchmark_prints_what_was_measured_and_how(report: str) -> None:
    lines = report.splitlines()
    (top,) = (number for number, line in enumerate(lines) if line.startswith("| scenario "))
    names = cells(lines[top])
    assert set(COLUMNS) <= set(names)
    measured = itertools.takewhile(lambda line: line.startswith("|"), lines[top + 2 :])
    rows = [dict(zip(names, cells(line), strict=True)) for line in measured]
    assert [row["scenario"] for row in rows] == [SCENARIO]
    (row,) = rows
    assert row["errors"] == "0"
    for name in COLUMNS[1:-1]:
        assert number(row[name]) > 0, name
    assert number(row["CPU µs/chunk"]) < number(row["CPU µs/request"])
    assert number(row["p50 ms"]) <= number(row["p99 ms"])
    assert re.search(r"Machine: \d+ x .+, Linux .+, Python 3\.", report)
    assert re.search(r"`import sidecar`: \d+ ms", report)


def test_one_make_target_runs_it_and_it_compares_with_a_bare_proxy() -> None:
    makefile = (ROOT / "Makefile").read_text()
    target = makefile.split("\nbench:", 1)[1].split("\n\n", 1)[0]
    assert "python -m bench" in target
    source = (ROOT / "bench" / "__main__.py").read_text()
    for scenario in ("bare ASGI hello", "bare proxy (UpstreamProxy alone)", "full stack, translated, streamed"):
        assert f'"{scenario}"' in source


def test_the_page_with_the_last_full_run_has_the_same_columns() -> None:
    page = ROOT / "docs" / "benchmarks.md"
    if not page.exists():
        pytest.skip("no full run is published yet")
    (top,) = (line for line in page.read_text().splitlines() if line.startswith("| scenario "))
    assert set(COLUMNS) <= set(cells(top))
