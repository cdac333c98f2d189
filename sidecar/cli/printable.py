"""Text for a terminal. Clients choose names of models, end users and fields: they begin no line and move no cursor."""

from __future__ import annotations


def printable(text: str) -> str:
    """What does not print stands as its escape, `\\x1b` say."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
