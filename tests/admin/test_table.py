"""What holds for every line of the table: it is on the page, and its document is whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.admin.conftest import Api

pytestmark = pytest.mark.anyio
OF_ITS_OWN = "POST /utils/transform_request"
"""Behind a stack of its own, for whoever may call a model."""
PAGE = Path(__file__).parents[2] / "docs" / "admin.md"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_every_endpoint_is_on_the_page_and_nothing_else_is(api: Api) -> None:
    text = PAGE.read_text("utf-8")
    spans = set(re.findall(r"`((?:GET|POST|PATCH|DELETE) /[^`]*)`", text))
    for method, path in re.findall(r"`(GET|POST|PATCH|DELETE)`, `(?:GET|POST|PATCH|DELETE) (/[^`]*)`", text):
        spans.add(f"{method} {path}")
    table = {f"{endpoint.method} {endpoint.path}" for endpoint in api.endpoints}
    assert spans - {OF_ITS_OWN} == table
