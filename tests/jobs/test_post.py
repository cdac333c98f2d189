"""What stands in a message to people, of names that clients choose."""

from __future__ import annotations

import pytest

from sidecar.jobs.post import plain


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("gpt-4o-mini", "gpt-4o-mini"),
        ("ann@example.com", "ann@example.com"),
        ("<!channel> & co", "&lt;!channel&gt; &amp; co"),
        ("@all", "@\u200ball"),
        ("x/@here", "x/@\u200bhere"),
        ("a@everyone", "a@\u200beveryone"),
        ("[free](https://evil.example)", " free (https:\u200b//evil.example)"),
        ("*a* `b` ||c||", " a   b    c  "),
        ("two\nlines\u2028and\x85more\x1b", "two lines and more "),
        ("x" * 100, "x" * 80),
    ],
)
def test_a_name_is_text_alone(name: str, shown: str) -> None:
    assert plain(name) == shown
