"""CONTRIBUTING followed: its provider passes what every provider has to, its commands and places are there."""

from __future__ import annotations

import re
from typing import Any

import pytest

from sidecar.translate.provider import OPENAI_CHAT_FIELDS, Provider
from tests.docs.support import REPO, blocks, code_spans, rows_with
from tests.translate import test_conformance as conformance

PAGE = REPO / "CONTRIBUTING.md"
BLOCKS = blocks(PAGE)


@pytest.fixture(scope="module")
def parrot() -> Provider:
    (block,) = (block for block in BLOCKS if block.mark == "run")
    names: dict[str, Any] = {}
    exec(block.text, names)
    provider = names["Parrot"]()
    assert isinstance(provider, Provider)
    return provider


@pytest.mark.parametrize("case", conformance.CASES)
def test_its_provider_translates_as_every_provider_must(parrot: Provider, case: str) -> None:
    conformance.test_the_same_request_twice_gives_the_same_bytes_and_leaves_the_payload_alone(parrot, case)
    conformance.test_the_folded_stream_equals_the_unstreamed_answer(parrot, case)
    conformance.test_a_stream_cut_at_every_byte_gives_the_same_output(parrot, case)
    conformance.test_a_truncated_stream_raises_and_never_ends_in_done(parrot, case)


@pytest.mark.parametrize("field", sorted(OPENAI_CHAT_FIELDS))
def test_its_provider_drops_no_field_silently(parrot: Provider, field: str) -> None:
    conformance.test_every_openai_field_is_sent_or_refused_by_name_and_dropped_only_by_policy(parrot, field)


def test_a_provider_that_forgets_a_field_is_refused_when_it_is_made() -> None:
    (block,) = (block for block in BLOCKS if block.mark == "run")
    forgetful = block.text.replace(" - unsupported.keys()", ' - unsupported.keys() - {"user"}')
    assert forgetful != block.text
    with pytest.raises(TypeError, match="user"):
        exec(forgetful, {})


def test_the_make_targets_and_the_test_it_names_are_there() -> None:
    shell = "".join(block.text for block in BLOCKS if block.language == "sh")
    makefile = (REPO / "Makefile").read_text("utf-8")
    targets = [name for line in re.findall(r"(?m)^make ([\w ]+)", shell) for name in line.split()]
    assert {"setup", "check", "test", "fmt"} <= set(targets)
    assert [name for name in targets if not re.search(rf"(?m)^{name}:", makefile)] == []
    named = re.findall(r"pytest (tests/\S+)", shell)
    assert named
    assert all((REPO / name).exists() for name in named)
    (word,) = re.findall(r"pytest -k (\w+)", shell)
    assert any(f"_{word}" in path.read_text("utf-8") for path in (REPO / "tests").rglob("test_*.py"))


def test_every_place_its_table_names_exists() -> None:
    rows = rows_with(PAGE.read_text("utf-8"), "to add", "where")
    places = [span for row in rows for span in code_spans(row["where"]) if "/" in span]
    assert len(places) >= 7
    assert [place for place in places if not (REPO / place).exists()] == []
