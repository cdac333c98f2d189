"""How long the promises' tests are, and where what they measured goes.

`PROMISES=full` chooses the long sizes (`make promises`), a variable such as `PROMISE_7_REQUESTS=50000` one of them.
What a test passes to `measured` is shown at the end, and added to the file named by `PROMISES_SEEN`, from which
`bench/promises.py` writes docs/promises.md.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

IS_FULL = os.environ.get("PROMISES") == "full"


lines: list[str] = []
"""What was measured so far; the end of the run shows it."""


def size(name: str, short: int, *, full: int) -> int:
    """`name` is the variable by which this one size is chosen."""
    return int(os.environ.get(name) or (full if IS_FULL else short))


def measured(promise: int, figures: str) -> None:
    lines.append(f"promise {promise}: {figures}")
    _write({"promise": promise, "figures": figures})


def ended(report: pytest.TestReport) -> None:
    """A hook of pytest's: what became of a test."""
    if promise_of(report.nodeid) is None:
        return
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else "expected to fail"
        _write({"test": report.nodeid, "end": f"skipped ({reason.removeprefix('Skipped: ')})"})
    elif report.failed or report.when == "call":
        _write({"test": report.nodeid, "end": "passed" if report.passed else "failed"})


def promise_of(nodeid: str) -> int | None:
    found = re.search(r"/test_(\d\d)_", nodeid)
    return int(found[1]) if found is not None else None


def _write(entry: dict[str, object]) -> None:
    file = os.environ.get("PROMISES_SEEN")
    if file:
        with Path(file).open("a", encoding="utf-8") as sink:
            sink.write(json.dumps(entry) + "\n")
