"""`python -m bench.promises [pytest's arguments]`: the promises' tests at full size, bounded, and what they measured
into docs/promises.md: a row for each promise none of whose tests failed. The exit code is pytest's, or 124 when cut
short."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "promises.md"
BOUND_S = 30 * 60
MOST_FIGURES = 6
RULER = "| number | measured | when and where |\n|---|---|---|\n"


def run(arguments: list[str], figures: Path) -> int:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=10"]
    environment = os.environ | {"PROMISES": "full", "PROMISES_SEEN": str(figures)}
    process = subprocess.Popen(
        [*command, *(arguments or ["tests/promises"])], cwd=ROOT, env=environment, start_new_session=True
    )
    try:
        return process.wait(BOUND_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as reason:
        # Tests take their servers and gateways down with them; what is left after that is killed.
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if isinstance(reason, KeyboardInterrupt):
            raise
        print(f"cut short after {BOUND_S // 60} minutes", file=sys.stderr)
        return 124


def kept(lines: list[str]) -> dict[int, str]:
    """The figures of each promise none of whose tests failed."""
    found: dict[int, list[str]] = {}
    cases: dict[int, str] = {}
    failed: set[int] = set()
    for entry in map(json.loads, lines):
        if "cases" in entry:
            cases[entry["promise"]] = f"{entry['cases']} cases"
        elif "figures" not in entry:
            failed.add(entry["promise"])
        elif entry["figures"] not in found.setdefault(entry["promise"], []):
            found[entry["promise"]].append(entry["figures"].replace("|", "/"))
    all_of_them = cases | {number: _joined(figures) for number, figures in found.items()}
    return {number: text for number, text in all_of_them.items() if number not in failed}


def _joined(figures: list[str]) -> str:
    if len(figures) <= MOST_FIGURES:
        return "; ".join(figures)
    return "; ".join([*figures[: MOST_FIGURES - 1], f"and {len(figures) - MOST_FIGURES + 1} more like these"])


def merged(page: str, figures: dict[int, str], where: str) -> str:
    """The page with these rows in its table, in place of those of the same numbers."""
    head, ruler, rest = page.partition(RULER)
    assert ruler, f"{PAGE} has no table of that kind"
    table = re.match(r"(?:\|.*\n)*", rest)
    assert table is not None
    rows = {int(line.split("|")[1]): line for line in table[0].splitlines()}
    rows |= {number: f"| {number} | {text} | {where} |" for number, text in figures.items()}
    return head + ruler + "".join(f"{rows[number]}\n" for number in sorted(rows)) + rest[table.end() :]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "seen.jsonl"
        file.touch()
        code = run(sys.argv[1:], file)
        figures = kept(file.read_text("utf-8").splitlines())
    where = f"{time.strftime('%Y-%m-%d', time.gmtime())}, {os.cpu_count()} cores, Python {platform.python_version()}"
    PAGE.write_text(merged(PAGE.read_text("utf-8"), figures, where), "utf-8")
    print(f"wrote the figures of {len(figures)} promises to {PAGE.relative_to(ROOT)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
