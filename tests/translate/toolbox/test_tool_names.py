"""Tool names: what a provider takes stays, the rest gets a form that is stable, its own, and led back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.translate.tool_names import (
    ANTHROPIC,
    BEDROCK,
    COHERE,
    GEMINI,
    OPENAI,
    NameRules,
    ToolNames,
    names_of,
    sent_name,
    tool_names,
)

ALL = {"openai": OPENAI, "anthropic": ANTHROPIC, "bedrock": BEDROCK, "gemini": GEMINI, "cohere": COHERE}
ODD = st.text(min_size=1, max_size=90) | st.text("ab.-_9", min_size=1, max_size=80)
NAMES = st.lists(ODD, max_size=8, unique=True)


@pytest.mark.parametrize("rules", ALL.values(), ids=list(ALL))
@given(names=NAMES)
def test_every_name_is_taken_differs_and_comes_back(rules: NameRules, names: list[str]) -> None:
    found = ToolNames(names, rules)
    sent = [found.sent(name) for name in names]
    assert all(rules.pattern.fullmatch(name) and len(name) <= rules.max_length for name in sent)
    assert len(set(sent)) == len(names)
    assert [found.original(name) for name in sent] == names
    assert [s for n, s in zip(names, sent, strict=True) if rules.pattern.fullmatch(n)] == [
        n for n in names if rules.pattern.fullmatch(n)
    ]


@given(names=NAMES, other=NAMES)
def test_a_names_form_depends_on_no_other(names: list[str], other: list[str]) -> None:
    alone = {name: ToolNames([name], BEDROCK).sent(name) for name in names}
    turned = ToolNames([*other, *reversed(names)], BEDROCK)
    assert {name: turned.sent(name) for name in names} == alone


def test_a_tool_called_like_anothers_form_keeps_its_name() -> None:
    form = sent_name("get.weather", BEDROCK)
    names = ToolNames(["get.weather", form], BEDROCK)
    assert names.sent(form) == form
    assert names.original(form) == form
    longer = names.sent("get.weather")
    assert longer != form
    assert names.original(longer) == "get.weather"


def test_names_of_the_history_that_are_no_tools_any_more() -> None:
    names = ToolNames([], GEMINI)
    assert names.sent("9lives") == ToolNames(["9lives"], GEMINI).sent("9lives")
    assert names.original(names.sent("9lives")) == "9lives"
    assert names.original("made_up") == "made_up"


def test_long_names_of_mcp_servers() -> None:
    name = "mcp__some_server__" + "a_very_long_tool_name_" * 4
    assert len(sent_name(name, OPENAI)) <= 64
    assert sent_name(name, OPENAI).startswith("mcp__some_server__a_very")
    assert sent_name(name + "x", OPENAI) != sent_name(name, OPENAI)


def test_what_is_no_tool_is_left_to_others() -> None:
    tools = [3, {}, {"function": 3}, {"function": {"name": ""}}, {"function": {"name": "a.b"}}]
    assert names_of({"tools": tools}) == ["a.b"]
    assert names_of({"tools": 3}) == names_of({}) == []
    assert tool_names({"tools": tools}, OPENAI).sent("a.b").startswith("a_b_")
