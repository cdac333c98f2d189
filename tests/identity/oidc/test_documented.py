"""`docs/oidc.md` names every field there is, and its example runs."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from sidecar.identity.oidc.claims import ClaimMap
from sidecar.identity.oidc.issuers import ALGORITHMS, Introspection, Issuer

DOCS = (Path(__file__).parents[3] / "docs" / "oidc.md").read_text()


@pytest.mark.parametrize("kind", [Issuer, Introspection, ClaimMap])
def test_every_field_is_documented(kind: type) -> None:
    missing = [field.name for field in fields(kind) if not re.search(rf"\b{field.name}\b", DOCS)]
    assert missing == []


def test_every_code_and_algorithm_is_documented() -> None:
    package = Path(__file__).parents[3] / "sidecar" / "identity" / "oidc"
    codes = {
        code for path in package.glob("*.py") for code in re.findall(r'code(?:: str)? ?= ?"(\w+)"', path.read_text())
    }
    assert codes == {"invalid_token", "expired_token", "token_not_permitted", "token_issuer_unavailable"}
    assert all(f"`{code}`" in DOCS for code in codes)
    assert all(name[-3:] in DOCS for name in ALGORITHMS)


def test_the_example_runs() -> None:
    (example,) = re.findall(r"```python[^\n]*\n(.*?)```", DOCS, re.DOTALL)
    names: dict[str, object] = {}
    exec(example, names)
    assert [one.name for one in names["issuers"].status()] == ["corp", "kubernetes"]  # type: ignore[attr-defined]
