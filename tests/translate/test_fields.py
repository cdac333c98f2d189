"""The table of fields is true: each cell is tried at its provider, with each policy, and the page shows the table."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from itertools import product
from typing import Any

import pytest

from sidecar.errors import BadRequestError
from sidecar.translate import PROVIDERS, Provider, UpstreamRequest
from sidecar.translate.fields import OPENAI_CHAT_FIELDS, SMUGGLING_FIELDS, cell, cells, fate
from sidecar.translate.table import renewed
from tests.docs.support import DOCS
from tests.faults.provider import FaultProvider
from tests.promises.support import MASTER, PROVIDER_KEY, Running, body, served
from tests.translate.dialects import DISTINCT, dialect_of
from tests.translate.field_values import BESIDE, USER, VALUES
from tests.translate.support import call_to

MORE_VALUES: dict[str, list[Any]] = {
    "cache_control": [{"type": "ephemeral"}],
    "cached_content": ["cachedContents/1"],
    "citation_options": [{"mode": "FAST"}],
    "documents": [[{"data": {"text": "x"}}]],
    "chat_template_kwargs": [{"thinking": True}],
    "guardrails": [[{"block_on_error": True}]],
    "guided_choice": [["a", "b"]],
    "guided_grammar": ["root ::= x"],
    "guided_json": [{"type": "object"}],
    "guided_regex": ["x"],
    "image_config": [{"aspectRatio": "16:9"}],
    "include_reasoning": [True],
    "k": [20],
    "length_penalty": [1.1],
    "max_tool_calls": [3],
    "min_p": [0.1],
    "min_tokens": [2],
    "p": [0.9],
    "priority": [7],
    "prompt_logprobs": [True],
    "prompt_mode": ["reasoning"],
    "random_seed": [7],
    "reasoning": [{"summary": "auto"}],
    "repetition_penalty": [1.1],
    "safe_prompt": [True],
    "safety_mode": ["STRICT"],
    "truncation": ["auto"],
    "labels": [{"team": "blue"}],
    "media_resolution": ["MEDIA_RESOLUTION_LOW"],
    "safety_settings": [[{"category": "HARM_CATEGORY_HATE_SPEECH", "threshold": "BLOCK_NONE"}]],
    "think": [True],
    "thinking": [{"type": "enabled", "budget_tokens": 2048}],
    "time_limit": [5000],
    "top_k": [20],
    "top_prompt_logprobs": [2],
}
"""Of fields beyond OpenAI's."""
MORE_MODELS = {"bedrock": ("anthropic.claude-sonnet-4-5-20250929-v1:0",)}
"""Beside the dialect's own, where one model does not take all that is mapped."""
CELLS = [
    pytest.param(provider, field, id=f"{name}-{field}")
    for name, provider in DISTINCT.items()
    for field in cells([provider])
]


def values_of(provider: Provider, field: str) -> list[Any]:
    own = dialect_of(provider).values.get(field)
    found = [own] if own is not None else VALUES.get(field) or MORE_VALUES.get(field)
    assert found, f"give {field} a value in MORE_VALUES"
    return found


def sent(provider: Provider, fields: dict[str, Any], **options: Any) -> UpstreamRequest:
    return provider.request(call_to(provider, {"max_tokens": 4096, **fields}, **options))


def seen(request: UpstreamRequest) -> tuple[Any, ...]:
    return (request.path, request.query, json.loads(request.body), sorted(request.headers))


def is_named(param: str | None, field: str) -> bool:
    return param is not None and (param == field or param.startswith((f"{field}.", f"{field}[")))


def is_in(value: Any, key: str) -> bool:
    """True if this key stands anywhere in the provider's body."""
    if isinstance(value, dict):
        return key in value or any(is_in(inner, key) for inner in value.values())
    return isinstance(value, list) and any(is_in(inner, key) for inner in value)


@pytest.mark.parametrize(("provider", "field"), CELLS)
def test_a_cell_says_what_happens(provider: Provider, field: str) -> None:
    found = cell(provider, field)
    assert found.note or found.fate == "passed" or field not in OPENAI_CHAT_FIELDS
    if field == "model":
        assert found.fate != "refused"
        return
    beside = BESIDE.get(field, {})
    refused, reached = [], []
    models = (dialect_of(provider).model, *MORE_MODELS.get(provider.name, ()))
    for model, value in product(models, values_of(provider, field)):
        plain = () if found.fate == "refused" else seen(sent(provider, beside, model=model))
        try:
            request = sent(provider, {**beside, field: value}, model=model)
        except BadRequestError as error:
            refused.append(value)
            assert any(is_named(error.param, name) for name in (field, *beside)), error.param  # noqa: PT017
            continue
        reached.append(value)
        assert request.dropped == ()
        got = seen(request)
        if found.fate == "passed" and field not in ("stream_options", "max_tokens"):
            assert got[2].get(field) == value
        if field not in ("stream_options", "max_tokens"):  # forced on streams anyway; there in the plain one already
            assert got != plain, f"{value!r} was lost without a word"
    if found.fate == "refused":
        assert reached == []
    else:
        assert reached
        assert found.is_partial or not refused, f"the note must say that {refused!r} is refused"


@pytest.mark.parametrize("name", sorted(PROVIDERS.keys() - DISTINCT.keys()))
def test_every_cell_of_the_other_rows_too(name: str) -> None:
    for field in cells([PROVIDERS[name]]):
        test_a_cell_says_what_happens(PROVIDERS[name], field)


@pytest.mark.parametrize(("provider", "field"), CELLS)
def test_what_a_cell_refuses_is_dropped_by_one_policy_and_sent_by_the_other(provider: Provider, field: str) -> None:
    if cell(provider, field).fate != "refused":
        for policy in ({"drops": True}, {"allowed": {field}}):
            assert fate(provider, field, **policy) == cell(provider, field).fate  # type: ignore[arg-type]
        return
    value = values_of(provider, field)[-1]
    plain = seen(sent(provider, {}))
    dropped = sent(provider, {field: value}, drop_params=True)
    assert (seen(dropped), dropped.dropped, fate(provider, field, drops=True)) == (plain, (field,), "dropped")
    for drops in (False, True):
        request = sent(provider, {field: value}, drop_params=drops, allowed_params=frozenset({field}))
        assert request.dropped == ()
        assert is_in(json.loads(request.body), field)
        assert fate(provider, field, drops=drops, allowed={field}) == "passed"
    unknown = sent(provider, {"frobnicate": [1]}, allowed_params=frozenset({"frobnicate"}))
    assert is_in(json.loads(unknown.body), "frobnicate")


@pytest.mark.parametrize("provider", DISTINCT.values(), ids=DISTINCT)
def test_a_null_asks_for_nothing_also_where_the_field_is_allowed(provider: Provider) -> None:
    plain = seen(sent(provider, {}))
    for field in provider.unsupported:
        request = sent(provider, {field: None}, allowed_params=frozenset({field}))
        assert (seen(request), request.dropped) == (plain, ())


@pytest.mark.parametrize("provider", DISTINCT.values(), ids=DISTINCT)
def test_no_policy_lets_a_client_choose_destination_or_credential(provider: Provider) -> None:
    for field in SMUGGLING_FIELDS:
        with pytest.raises(BadRequestError) as caught:
            sent(provider, {field: "x"}, drop_params=True, allowed_params=frozenset({field}))
        assert (caught.value.code, caught.value.param) == ("forbidden_parameter", field)


def test_the_table_has_a_cell_for_every_field_and_provider() -> None:
    table = cells(PROVIDERS.values())
    assert set(table) >= OPENAI_CHAT_FIELDS
    assert {len(row) for row in table.values()} == {len(PROVIDERS)}


def test_the_page_shows_the_table_as_it_is() -> None:
    page = (DOCS / "translation.md").read_text()
    assert page == renewed(page), "run: python -m sidecar.translate.table docs/translation.md"


@pytest.fixture
async def gateway(tmp_path: Any, faults: FaultProvider) -> AsyncIterator[Running]:
    deployment = {"allowed_params": ["seed", "frobnicate"], "drop_params": True}
    vault = {"store": {"encryption_key": "correct-horse-battery-staple"}}
    async with served(tmp_path, faults.base_url, top=vault, deployment=deployment) as running:
        yield running


@pytest.mark.anyio
async def test_a_deployments_allowed_fields_pass_and_the_rest_is_dropped_and_named_in_answer_and_row(
    gateway: Running, faults: FaultProvider
) -> None:
    key = await gateway.mint()
    payload = body("claude", seed=7, frobnicate={"a": 1}, logit_bias={"5": 1}, n=2)
    answer = await gateway.chat(key, payload)
    assert answer.status_code == 200, answer.text
    got = faults.requests[-1].json()
    assert (got["seed"], got["frobnicate"]) == (7, {"a": 1})
    assert not {"logit_bias", "n"} & got.keys()
    assert sorted(answer.headers["x-sidecar-dropped"].split(",")) == ["logit_bias", "n"]
    (row,) = await gateway.rows(key, at_least=1)
    assert sorted(row["dropped"]) == ["logit_bias", "n"]


@pytest.mark.anyio
async def test_a_model_made_at_run_time_allows_fields_under_either_name(
    gateway: Running, faults: FaultProvider
) -> None:
    place = {"model": "claude-1", "api_key": PROVIDER_KEY}
    ours = {**place, "provider": "anthropic", "base_url": faults.base_url, "price": "free", "allowed_params": ["seed"]}
    theirs = {
        "model": "anthropic/claude-1", "api_key": PROVIDER_KEY, "api_base": faults.base_url,
        "input_cost_per_token": 0, "output_cost_per_token": 0, "allowed_openai_params": ["seed"],
    }  # fmt: skip
    key = await gateway.mint()
    for name, given in (("ours", {"deployment": ours}), ("theirs", {"litellm_params": theirs})):
        made = await gateway.http.post(
            f"{gateway.url}/model/new",
            json={"model_name": name, **given},
            headers={"authorization": f"Bearer {MASTER}"},
        )
        assert made.status_code == 200, made.text
        answer = await gateway.chat(key, {"model": name, "messages": USER, "max_tokens": 9, "seed": 7})
        assert answer.status_code == 200, answer.text
        assert faults.requests[-1].json()["seed"] == 7
