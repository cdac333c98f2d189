"""`python -m bench.promises [pytest's arguments]`: the promises' tests at full size, bounded, and what they measured
into docs/promises.md: a row for each promise all of whose tests ran and passed; the others' rows stay as they are. The
exit code is pytest's, or 124 when cut short."""

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
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.promises.sizes import promise_of

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "promises.md"
BOUND_S = 30 * 60
MOST_FIGURES = 6
RULER = "| number | measured | when and where |\n|---|---|---|\n"


_COMMAND = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
ALL = "tests/promises"


def collected() -> list[str]:
    """The promises' tests, whichever of them are asked for. Exits if they cannot be collected."""
    environment = os.environ | {"PROMISES": "full"}
    command = [*_COMMAND, "--collect-only", "--no-header", ALL]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return [line for line in done.stdout.splitlines() if promise_of(line) is not None]


def run(arguments: list[str], figures: Path) -> int:
    environment = os.environ | {"PROMISES": "full", "PROMISES_SEEN": str(figures)}
    process = subprocess.Popen(
        [*_COMMAND, "--durations=10", *(arguments or [ALL])], cwd=ROOT, env=environment, start_new_session=True
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


def kept(lines: Iterable[str], tests: Iterable[str]) -> tuple[dict[int, str], dict[int, str]]:
    """The figures of each promise all of whose `tests` passed; why there are none of the others: "" if none ran."""
    figures: dict[int, list[str]] = {}
    ends: dict[str, set[str]] = {}
    for entry in map(json.loads, lines):
        if "test" in entry:
            ends.setdefault(entry["test"], set()).add(entry["end"])
        elif entry["figures"] not in figures.setdefault(entry["promise"], []):
            figures[entry["promise"]].append(entry["figures"].replace("|", "/"))
    promises: dict[int, list[set[str]]] = {}
    for test in tests:
        number = promise_of(test)
        assert number is not None
        promises.setdefault(number, []).append(ends.get(test, {"not run"}))
    found: dict[int, str] = {}
    left: dict[int, str] = {}
    for number, of_tests in promises.items():
        others = Counter(end for each in of_tests for end in sorted(each - {"passed"}))
        if not others:
            found[number] = _joined(figures[number]) if number in figures else f"{len(of_tests)} cases"
        elif others["not run"] == len(of_tests):
            left[number] = ""
        else:
            left[number] = ", ".join(f"{count} {end}" for end, count in others.items())
    return found, left


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
        tests = collected()
        code = run(sys.argv[1:], file)
        figures, left = kept(file.read_text("utf-8").splitlines(), tests)
    where = f"{time.strftime('%Y-%m-%d', time.gmtime())}, {os.cpu_count()} cores, Python {platform.python_version()}"
    PAGE.write_text(merged(PAGE.read_text("utf-8"), figures, where), "utf-8")
    for number, why in left.items():
        if why:
            print(f"promise {number}: its row stays as it was; of its tests {why}")
    if asleep := [str(number) for number, why in left.items() if not why]:
        print(f"not run, their rows stay as they were: {', '.join(asleep)}")
    print(f"wrote the figures of {len(figures)} promises to {PAGE.relative_to(ROOT)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
