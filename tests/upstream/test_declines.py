"""What a transport declines is a test that exists, and stands with its reason in docs/decisions.md."""

from __future__ import annotations

import re
from pathlib import Path

from tests.upstream.support import DECLINES

HERE = Path(__file__).parent
PAGE = (HERE.parent.parent / "docs" / "decisions.md").read_text("utf-8")


def test_everything_declined_is_a_test_of_the_suite() -> None:
    tests = set(re.findall(r"async def (test_\w+)", "".join(p.read_text("utf-8") for p in HERE.glob("test_*.py"))))
    assert {name for _, name in DECLINES} <= tests


def test_everything_declined_stands_in_the_decisions_with_its_reason() -> None:
    listed = {
        name: " ".join(reason.split()).rstrip(".")
        for name, reason in re.findall(r"(?m)^- `(test_\w+)`: ((?:.+\n)(?:  .+\n)*)", PAGE)
    }
    assert listed == {name: reason for (_, name), reason in DECLINES.items()}
