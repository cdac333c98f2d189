"""Edge cases of Claude that no other file holds: numbers as in docs/translation-cases.md."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from sidecar.errors import BadRequestError
from sidecar.translate import get_provider
from tests.translate.dialects import dialect_of
from tests.translate.support import (
    OK,
    USER,
    WEATHER,
    assert_anthropic_takes,
    call_to,
    events,
    fold,
    make_call,
    sent,
    unfold,
)
from tests.translate.test_anthropic_answer import START, STOP, block, end, message, stream, text

ANTHROPIC = get_provider("anthropic")
BEDROCK = get_provider("bedrock")
SEARCH = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "sidecar"}}
FOUND = {
    "type": "web_search_tool_result",
    "tool_use_id": "srvtoolu_1",
    "content": [{"type": "web_search_result", "url": "https://example.com/a", "title": "A", "encrypted_content": "x"}],
}
CITED = {
    "type": "web_search_result_location",
    "url": "https://example.com/a",
    "title": "A",
    "cited_text": "It is so.",
    "encrypted_index": "x",
}
PAGE = {"type": "page_location", "cited_text": "x", "document_index": 0, "start_page_number": 1, "end_page_number": 2}


def header_of(payload: dict[str, Any], name: bytes = b"anthropic-beta", **options: Any) -> bytes | None:
    return dict(ANTHROPIC.request(make_call(payload, **options)).headers).get(name)


@pytest.mark.parametrize(
    ("thinks", "details"), [(None, {}), (0, {"reasoning_tokens": 0}), (3, {"reasoning_tokens": 3})]
)
def test_reasoning_is_counted_as_the_vendor_counts_it_and_never_estimated(
    thinks: int | None, details: dict[str, int]
) -> None:
    """4, 5: the details are there with every answer; a number is in them only if the vendor gave it."""
    usage: dict[str, Any] = {"input_tokens": 3, "output_tokens": 9}
    if thinks is not None:
        usage["output_tokens_details"] = {"thinking_tokens": thinks}
    thought = {"type": "thinking", "thinking": "a long thought indeed", "signature": "c2ln"}
    answer = json.loads(ANTHROPIC.response(make_call(), OK, message(thought, usage=usage)).body)
    assert answer["usage"]["completion_tokens"] == 9
    assert answer["usage"]["completion_tokens_details"] == details


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("none", {"type": "none"}),
        ("auto", {"type": "auto"}),
        ("required", {"type": "any"}),
        ({"type": "auto"}, {"type": "auto"}),
        ({"type": "none"}, {"type": "none"}),
        ({"type": "required"}, {"type": "any"}),
        ({"type": "any"}, {"type": "any"}),
        ({"type": "function", "name": "weather"}, {"type": "tool", "name": "weather"}),
    ],
)
def test_a_tool_choice_may_be_a_word_or_an_object_of_it(given: Any, meant: dict[str, Any]) -> None:
    """6, 7."""
    body = sent("anthropic", {"tools": [WEATHER], "tool_choice": given})
    assert body["tool_choice"] == meant
    assert_anthropic_takes(body)


def test_betas_of_deployment_and_tools_go_together_each_once_and_a_clients_are_refused() -> None:
    """9, 10."""
    computer = {"type": "computer_20250124", "name": "computer", "display_width_px": 800, "display_height_px": 600}
    shell = {"type": "bash_20250124", "name": "bash"}
    memory = {"type": "memory_20250818", "name": "memory"}
    needed = b"computer-use-2025-01-24"
    assert header_of({}) is None
    assert header_of({"tools": [shell, memory]}) is None  # these need none any more
    assert header_of({"tools": [computer, computer]}) == needed
    both = header_of({"tools": [computer]}, params={"anthropic_beta": ["mine-2025-01-01", needed.decode()]})
    assert both == b"mine-2025-01-01," + needed
    assert header_of({"tools": [computer]}, params={"anthropic_beta": "mine-2025-01-01"}) == both
    with pytest.raises(BadRequestError) as caught:
        header_of({"anthropic_beta": "mine"})
    assert caught.value.param == "anthropic_beta"


def test_the_sdk_knows_each_beta_a_tool_brings() -> None:
    from typing import get_args

    from anthropic.types.anthropic_beta_param import AnthropicBetaParam

    from sidecar.translate.providers.anthropic_extras import _TOOL_BETAS

    known = {name for part in get_args(AnthropicBetaParam) for name in get_args(part)}
    assert set(_TOOL_BETAS.values()) <= known


def test_bedrocks_claude_gets_the_betas_in_its_body() -> None:
    computer = {"type": "computer_20250124", "name": "computer", "display_width_px": 800, "display_height_px": 600}
    body = sent("bedrock-invoke", {"tools": [computer]}, params={"anthropic_beta": "mine"})
    assert body["anthropic_beta"] == ["mine", "computer-use-2025-01-24"]


@pytest.mark.parametrize("model", ["claude-opus-4-5", "claude-sonnet-4-5", "claude-opus-4-6"])
def test_no_effort_needs_a_beta(model: str) -> None:
    """20: before 4.6 effort is said as a budget of thinking, which has been there for long."""
    assert header_of({"reasoning_effort": "high"}, model=model) is None
    body = sent("anthropic", {"reasoning_effort": "high", "max_tokens": 30_000}, model=model)
    assert ("output_config" in body) == (model == "claude-opus-4-6")


@pytest.mark.parametrize("value", [[{"type": "compaction"}], {"edits": [{"type": "clear_tool_uses_20250919"}]}])
def test_context_management_is_the_operators_to_allow_and_then_passes_unchanged(value: Any) -> None:
    """21."""
    with pytest.raises(BadRequestError) as caught:
        sent("anthropic", {"context_management": value})
    assert caught.value.param == "context_management"
    allowed = sent("anthropic", {"context_management": value}, allowed_params=frozenset({"context_management"}))
    assert allowed["context_management"] == value


ODD_BLOCKS = {
    "compaction": {"type": "compaction", "content": "what was before, in short"},
    "a search": SEARCH,
    "its results": FOUND,
    "a fetch": {"type": "web_fetch_tool_result", "tool_use_id": "srvtoolu_2", "content": {"type": "web_fetch_result"}},
    "an upload": {"type": "container_upload", "file_id": "file_1"},
    "one of tomorrow": {"type": "hologram", "text": "x", "input": {}},
}


@pytest.mark.parametrize("odd", ODD_BLOCKS.values(), ids=ODD_BLOCKS)
def test_a_block_without_a_word_in_openais_format_leaves_the_answer_whole(odd: dict[str, Any]) -> None:
    """22, 24, 33, 34, 36, 37: it comes at once or with empty deltas, between texts; no tool call is made of it."""
    empty = {"type": "input_json_delta", "partial_json": "{}"}
    blocks = [
        *block(0, {"type": "text", "text": ""}, text("one ")),
        *block(1, odd, empty, {"type": "input_json_delta", "partial_json": ""}),
        *block(2, {"type": "text", "text": ""}, text("two")),
    ]
    out, translator = stream(START, *blocks, end(), STOP)
    plain = unfold(
        ANTHROPIC.response(
            make_call(), OK, message({"type": "text", "text": "one "}, odd, {"type": "text", "text": "two"})
        ).body
    )
    assert fold(out) == {**plain, "usage": None}
    assert (plain["content"], plain["tools"], plain["finish"]) == ("one two", [], "stop")
    assert translator.usage.is_known


def test_an_answer_with_a_search_is_a_turn_that_can_be_sent_back() -> None:
    """24: the words are what the next turn has; a client of OpenAI's format keeps nothing else."""
    answer = ANTHROPIC.response(make_call(), OK, message(SEARCH, FOUND, {"type": "text", "text": "so"}))
    turn = json.loads(answer.body)["choices"][0]["message"]
    body = sent("anthropic", {"messages": [*USER, turn, {"role": "user", "content": "and?"}]})
    assert body["messages"][1] == {"role": "assistant", "content": [{"type": "text", "text": "so"}]}
    assert_anthropic_takes(body)


def test_citations_of_the_web_are_annotations_of_the_text_they_support_streamed_or_not() -> None:
    """25."""
    other = {**CITED, "url": "https://example.com/b", "title": None}
    found = {"type": "search_result_location", "source": "https://example.com/c", "title": "C", "cited_text": "x"}
    kept = {"type": "search_result_location", "source": "shelf 4", "title": "D", "cited_text": "x"}
    content = [
        {"type": "text", "text": "Look: "},
        SEARCH,
        FOUND,
        {"type": "text", "text": "it is so", "citations": [CITED, PAGE, CITED, other]},
        {"type": "text", "text": ", truly.", "citations": [found, kept]},
        {"type": "text", "text": " End.", "citations": None},
    ]

    def said(url: str, title: str, start: int, stop: int) -> dict[str, Any]:
        cited = {"url": url, "title": title, "start_index": start, "end_index": stop}
        return {"type": "url_citation", "url_citation": cited}

    expected = [
        said("https://example.com/a", "A", 6, 14),
        said("https://example.com/b", "https://example.com/b", 6, 14),
        said("https://example.com/c", "C", 14, 22),
    ]
    answer = json.loads(ANTHROPIC.response(make_call(), OK, message(*content)).body)
    parsed = ChatCompletion.model_validate(answer, strict=True).choices[0].message
    assert parsed.content == "Look: it is so, truly. End."
    assert answer["choices"][0]["message"]["annotations"] == expected
    assert parsed.annotations is not None
    assert parsed.content[6:14] == "it is so"

    def deltas(part: dict[str, Any]) -> list[dict[str, Any]]:
        cited = [{"type": "citations_delta", "citation": citation} for citation in part.get("citations") or ()]
        return [*cited, text(part["text"])]

    blocks = [
        piece
        for index, part in enumerate(content)
        for piece in (
            block(index, {"type": "text", "text": ""}, *deltas(part)) if part["type"] == "text" else block(index, part)
        )
    ]
    out, _ = stream(START, *blocks, end(), STOP)
    assert fold(out)["content"] == "Look: it is so, truly. End."
    notes = [
        note
        for chunk in events(out)
        if chunk != "[DONE]"
        for note in chunk["choices"][0]["delta"].get("annotations", ())
    ]
    assert notes == expected


@pytest.mark.parametrize(
    ("options", "location"),
    [
        ({}, None),
        ({"search_context_size": "medium", "user_location": None}, None),
        (
            {
                "user_location": {
                    "type": "approximate",
                    "approximate": {"city": "Rome", "country": "IT", "region": None},
                }
            },
            {"type": "approximate", "city": "Rome", "country": "IT"},
        ),
    ],
)
def test_web_search_options_are_claudes_own_search_even_when_empty(
    options: dict[str, Any], location: dict[str, Any] | None
) -> None:
    """65 too: `{}` turns it on."""
    body = sent("anthropic", {"tools": [WEATHER], "web_search_options": options})
    expected = {"type": "web_search_20250305", "name": "web_search"}
    assert body["tools"][1] == (expected if location is None else {**expected, "user_location": location})
    assert_anthropic_takes(body)
    assert sent("anthropic", {"web_search_options": options})["tools"] == body["tools"][1:]


def test_a_setting_claudes_search_lacks_is_refused_or_dropped_by_its_name() -> None:
    with pytest.raises(BadRequestError) as caught:
        sent("anthropic", {"web_search_options": {"search_context_size": "high"}})
    assert caught.value.param == "web_search_options.search_context_size"
    call = make_call({"web_search_options": {"search_context_size": "high"}}, drop_params=True)
    assert ANTHROPIC.request(call).dropped == ("web_search_options.search_context_size",)


@pytest.mark.parametrize("role", ["user", "assistant"])
@pytest.mark.parametrize(
    "part",
    [ODD_BLOCKS["an upload"], SEARCH, {**FOUND, "type": "tool_search_tool_result"}],
    ids=lambda part: part["type"],
)
def test_a_part_of_anthropics_own_is_refused_by_its_place(role: str, part: dict[str, Any]) -> None:
    """26, 31: the parts are OpenAI's; one that would be sent half would be a lie."""
    messages = [*USER, {"role": role, "content": [{"type": "text", "text": "hi"}, part]}]
    with pytest.raises(BadRequestError) as caught:
        sent("anthropic", {"messages": messages})
    assert caught.value.param is not None
    assert caught.value.param.startswith("messages[1].content[1]")


def test_spaces_are_no_telephone_number() -> None:
    """28."""
    assert sent("anthropic", {"user": " " * 7})["metadata"] == {"user_id": " " * 7}
    assert sent("anthropic", {"user": "+39 06 555 0199"})["metadata"]["user_id"] != "+39 06 555 0199"


def test_a_prefill_is_sent_and_the_answer_goes_on_from_it() -> None:
    """27: the client has those words; an answer that said them again would be longer than what was billed."""
    prefill = {"role": "assistant", "content": "Once upon"}
    body = sent("anthropic", {"messages": [*USER, prefill]})
    assert body["messages"][-1] == {"role": "assistant", "content": [{"type": "text", "text": "Once upon"}]}
    answer = ANTHROPIC.response(
        make_call({"messages": [*USER, prefill]}), OK, message({"type": "text", "text": " a time"})
    )
    assert unfold(answer.body)["content"] == " a time"


def test_hidden_thinking_comes_when_its_block_begins_and_a_thought_whole_when_it_is_signed() -> None:
    """38, 39, 40."""
    thought = block(
        1,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "hm, "},
        {"type": "thinking_delta", "thinking": "yes"},
        {"type": "signature_delta", "signature": "c2ln"},
    )
    stray = {"type": "thinking_delta", "thinking": "not mine"}
    out, _ = stream(
        START,
        *block(0, {"type": "redacted_thinking", "data": "ZGFyaw=="}),
        *thought,
        *block(2, {"type": "text", "text": ""}, stray, text("so")),
        end(),
        STOP,
    )
    folded = fold(out)
    assert folded["thinking_blocks"] == [
        {"type": "redacted_thinking", "data": "ZGFyaw=="},
        {"type": "thinking", "thinking": "hm, yes", "signature": "c2ln"},
    ]
    assert (folded["reasoning"], folded["content"]) == ("hm, yes", "so")


def test_on_bedrock_a_tool_of_anthropics_own_is_refused_by_its_place() -> None:
    """52: Converse has function tools; Claude's others are there through bedrock-invoke."""
    for kind in ("computer_20250124", "bash_20250124", "text_editor_20250728"):
        with pytest.raises(BadRequestError) as caught:
            sent("bedrock", {"tools": [WEATHER, {"type": kind, "name": "x"}]})
        assert caught.value.param == "tools[1].type"
        assert sent("bedrock-invoke", {"tools": [{"type": kind, "name": "x"}]})["tools"] == [
            {"type": kind, "name": "x"}
        ]


def test_words_that_look_like_a_call_stay_words() -> None:
    """55: what a model said is not rewritten; whoever quotes JSON would be made to call a tool."""
    said = '{"name": "weather", "arguments": {"city": "Rome"}}'
    body = {
        "output": {"message": {"role": "assistant", "content": [{"text": said}]}},
        "stopReason": "end_turn",
        "usage": {"inputTokens": 3, "outputTokens": 4, "totalTokens": 7},
    }
    call = call_to(BEDROCK, {"tools": [WEATHER]})
    plain = unfold(BEDROCK.response(call, OK, json.dumps(body).encode()).body)
    assert (plain["content"], plain["tools"], plain["finish"]) == (said, [], "stop")


def test_what_the_client_says_is_not_marked_for_a_guardrail() -> None:
    """53: without marks a guardrail reads the whole conversation, which is more, not less."""
    guardrail = {"guardrailIdentifier": "g1", "guardrailVersion": "1"}
    call = call_to(BEDROCK, {}, params={"guardrailConfig": guardrail})
    body = json.loads(BEDROCK.request(call).body)
    assert body["guardrailConfig"] == guardrail
    assert body["messages"] == [{"role": "user", "content": [{"text": "hi"}]}]
    dialect_of(BEDROCK).check(BEDROCK.request(call))
