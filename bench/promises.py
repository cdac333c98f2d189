"""`python -m bench.promises [pytest's arguments]`: the promises' tests at full size, bounded, and what they measured
into docs/promises.md. Exit code 0 only if all of them passed; a run cut short or of a part writes nothing."""

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
HEAD = "## The full run"


def run(arguments: list[str], figures: Path) -> int:
    """pytest's exit code; 124 if the time was up."""
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


def section(lines: list[str], took_s: float) -> str:
    found: dict[int, list[str]] = {}
    for line in lines:
        entry = json.loads(line)
        figures = found.setdefault(int(entry["promise"]), [])
        if entry["figures"] not in figures:
            figures.append(entry["figures"].replace("|", "/"))
    where = f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    rows = [f"| {number} | {'; '.join(figures)} |" for number, figures in sorted(found.items())]
    text = [HEAD, "", f"Written by `make promises` on {time.strftime('%d %B %Y', time.gmtime())}: {where},"]
    text += [f"{took_s / 60:.0f} minutes, all passed.", "", "| number | measured |", "|---|---|", *rows]
    return "\n".join(text) + "\n"


def write(text: str) -> None:
    """In place of the section of that name, which ends with the next heading."""
    page = PAGE.read_text("utf-8")
    pattern = re.compile(rf"^{HEAD}$.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    assert pattern.search(page) is not None, f"{PAGE} has no section {HEAD!r}"
    PAGE.write_text(pattern.sub(lambda _: f"{text}\n", page, count=1).rstrip("\n") + "\n", "utf-8")


def main() -> int:
    arguments = sys.argv[1:]
    began_at = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "seen.jsonl"
        figures.touch()
        code = run(arguments, figures)
        text = section(figures.read_text("utf-8").splitlines(), time.monotonic() - began_at)
    print(text)
    if code == 0 and not arguments:
        write(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
