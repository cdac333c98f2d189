"""Whatever stands in the source: each key has its line in the report, and what is written loads."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sidecar.config import ConfigError, load_config
from sidecar.importing import import_litellm, table_models, table_settings
from tests.importing.support import leaves
from tests.promises.sizes import size

EXAMPLES = size("IMPORT_EXAMPLES", 120, full=300)
CANARY = "sk-canary-0123456789abcdef"
_WORDS = st.text("abcdefghijklmnopqrstuvwxyz_-/*.$ {}", min_size=1, max_size=12)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**6), 10**13),
    st.floats(allow_nan=False, allow_infinity=False),
    _WORDS,
    st.sampled_from(["os.environ/A_NAME", "os.environ/", "openai/gpt-4o", "30d", "redis://h:6379", CANARY, "", "1"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_WORDS, inner, max_size=3)),
    max_leaves=6,
)


def _named(table: Any, prefix: str) -> list[str]:
    """First words of the rows below `prefix`, so that known keys are met as often as unknown ones."""
    found = {re.split(r"[.\[]", row.key.removeprefix(prefix))[0] for row in table.rows if row.key.startswith(prefix)}
    return sorted(found)


def _section(table: Any, prefix: str, without: frozenset[str] = frozenset()) -> st.SearchStrategy[dict[str, Any]]:
    known = st.sampled_from([name for name in _named(table, prefix) if name not in without])
    return st.dictionaries(st.one_of(known, known, _WORDS), VALUES, max_size=5)


ENTRIES = st.builds(
    lambda name, model, params, info: {
        "model_name": name,
        "litellm_params": {**params, "model": model},
        **({"model_info": info} if info is not None else {}),
    },
    st.sampled_from(["one", "two", "openai/*", "with space"]),
    st.sampled_from(["openai/gpt-4o", "anthropic/claude-haiku-4-5", "openai/*", "hosted_vllm/m", "bedrock/x", "who/m"]),
    _section(table_models.TABLE, "litellm_params."),
    st.none() | _section(table_models.TABLE, "model_info."),
)
TOP = st.builds(
    lambda models, sections, more: {"model_list": models, **sections, **more},
    st.lists(ENTRIES, max_size=3),
    st.fixed_dictionaries(
        {},
        optional={
            name: _section(table_settings.TABLE, f"{name}.")
            for name in ("litellm_settings", "router_settings", "general_settings")
        }
        | {"environment_variables": st.dictionaries(st.sampled_from(["A_NAME", "B_NAME"]), SCALARS, max_size=2)},
    ),
    st.dictionaries(_WORDS.filter(lambda word: word not in ("include", "model_list")), VALUES, max_size=2),
)


@given(top=TOP)
@example(top={"model_list": [], "litellm_settings": {"default_fallbacks": CANARY}})
@example(top={"model_list": [], "litellm_settings": {"fallbacks": [{"a": [CANARY]}]}})
@example(top={"model_list": [], "router_settings": {"model_group_alias": {"a": CANARY}}})
@example(top={"model_list": [{"model_name": "one", "litellm_params": {"model": f"{CANARY}/x"}}]})
@settings(
    max_examples=size("IMPORT_EXAMPLES", 120, full=300), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
def test_no_key_is_lost_no_secret_copied_and_what_is_written_loads(top: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "config.yaml"
        source.write_text(json.dumps(top))  # JSON is YAML
        imported = import_litellm(source)
        assert Counter(line.key for line in imported.report.lines) == Counter(leaves(top))
        assert all(line.status != "no equivalent" or line.text for line in imported.report.lines)
        out = Path(folder) / "sidecar.yaml"
        out.write_text(imported.text, encoding="utf-8")
        try:
            load_config(out, imported.placeholders)
        except ConfigError as error:
            raise AssertionError(f"{error}\n{imported.text}") from None
        assert CANARY not in imported.text + imported.report.text()
