"""docs/migrating.md names what the tables map."""

from __future__ import annotations

import re

from sidecar.importing import table_models, table_settings
from sidecar.translate.provider import OPENAI_CHAT_FIELDS
from tests.docs.support import DOCS, code_spans, prose

SPANS = set(code_spans(prose(DOCS / "migrating.md")))


def test_every_key_that_becomes_something_is_on_the_page() -> None:
    rows = [*table_models.TABLE.rows, *table_settings.TABLE.rows]
    names = set()
    for row in rows:
        name = next(part for part in reversed(row.parts) if part not in ("[]", "*", "**"))
        if row.to and row.to != "store.redis_url" and not row.key.startswith("router_settings.model_group_alias"):
            names.add(name if name != "model" or "alias" not in row.key else "model_group_alias")
    assert len(names) > 60
    assert names - SPANS - OPENAI_CHAT_FIELDS == set()


def test_every_key_of_ours_that_comes_of_a_setting_is_on_the_page() -> None:
    targets = {row.to for row in table_settings.TABLE.rows if re.fullmatch(r"[a-z]+\.[a-z_]+", row.to)}
    assert len(targets) > 12
    assert targets - SPANS == set()
