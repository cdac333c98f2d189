"""The official OpenAI SDK's `client.responses` against the gateway: answers, streams, tools, errors, money, and what is
refused. The provider is held to the SDK's own types.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any, NamedTuple

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response

from sidecar.simulated import serve
from tests.e2e.responses_account import INPUT_TOKENS, OUTPUT_TOKENS, WORDS, Account
from tests.promises.support import PROVIDER_KEY, Running, served

pytestmark = pytest.mark.anyio

COST = Decimal(INPUT_TOKENS * 1 + OUTPUT_TOKENS * 2) / 1_000_000


class Pair(NamedTuple):
    """Two accounts behind one model, and one nobody else knows."""

    gateway: Running
    first: Account
    second: Account

    @property
    def asked(self) -> list[Any]:
        return [*self.first.asked, *self.second.asked]


def deployment(url: str, key: str = PROVIDER_KEY, **more: Any) -> dict[str, Any]:
    price = {"price": {"input": 1, "output": 2}}
    return {"provider": "openai", "model": "gpt-1", "api_key": key, "base_url": f"{url}/v1", **price, **more}


def models(first: str, second: str) -> list[dict[str, Any]]:
    claude = {**deployment(first), "provider": "anthropic", "base_url": first}
    return [
        {"name": "gpt", "deployments": [deployment(first), deployment(second, "sk-second-account-0123456789")]},
        {"name": "claude", "deployments": [claude]},
        {"name": "mixed", "deployments": [claude, deployment(second, "sk-second-account-0123456789", order=2)]},
        {"name": "any/*", "deployments": [deployment(first, model="*")]},
        {"name": "dear", "deployments": [deployment(first, price={"input": 1000, "output": 1000})]},
    ]


@pytest.fixture(scope="module")
async def pair_of_file(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    first, second = Account(PROVIDER_KEY), Account("sk-second-account-0123456789")
    async with serve(first) as first_url, serve(second) as second_url:
        top = {"models": models(first_url, second_url), "routing": {"retries": 2, "cooldown_s": 0.001}}
        async with served(tmp_path_factory.mktemp("pair"), first_url, top=top) as gateway:
            yield Pair(gateway, first, second)


@pytest.fixture
def pair(pair_of_file: Pair) -> Pair:
    for account in (pair_of_file.first, pair_of_file.second):
        account.asked.clear()
        account.kept.clear()
        account.script.clear()
        account.is_strict = True
    return pair_of_file


@pytest.fixture
async def client(pair: Pair) -> AsyncIterator[AsyncOpenAI]:
    key = await pair.gateway.mint(max_budget=10)
    async with AsyncOpenAI(base_url=f"{pair.gateway.url}/v1", api_key=key, max_retries=0) as client:
        yield client


def key_of(client: AsyncOpenAI) -> str:
    return client.api_key


async def test_an_answer_passes_as_it_is_but_for_its_id(pair: Pair, client: AsyncOpenAI) -> None:
    raw = await client.responses.with_raw_response.create(model="gpt", input="hi", store=True, metadata={"a": "b"})
    answer = raw.parse()
    Response.model_validate(answer.model_dump())
    assert answer.output_text == "".join(WORDS)
    (asked,) = pair.asked
    assert asked.body["model"] == "gpt-1"
    assert {n: asked.body[n] for n in ("input", "store", "metadata")} == {
        "input": "hi", "store": True, "metadata": {"a": "b"},
    }  # fmt: skip
    (kept,) = [*pair.first.kept.values(), *pair.second.kept.values()]
    assert answer.id.startswith(kept["id"] + "_g")
    mine, theirs = json.loads(raw.text), dict(kept)
    assert mine.pop("id") != theirs.pop("id")
    assert mine == theirs
    assert Decimal(raw.headers["x-sidecar-cost-usd"]) == COST


async def test_both_paths_and_a_mounted_gateway_serve_it(pair: Pair, client: AsyncOpenAI) -> None:
    headers = {"authorization": f"Bearer {key_of(client)}"}
    for path in ("/responses", "/v1/responses"):
        answer = await pair.gateway.http.post(
            pair.gateway.url + path, headers=headers, json={"model": "gpt", "input": "hi"}
        )
        assert answer.status_code == 200, answer.text
        wrong = await pair.gateway.http.get(pair.gateway.url + path, headers=headers)
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


async def test_a_stream_passes_event_by_event(pair: Pair, client: AsyncOpenAI) -> None:
    events = [e async for e in await client.responses.create(model="gpt", input="hi", stream=True)]
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "".join(WORDS)
    ids = {e.response.id for e in events if hasattr(e, "response")}
    assert len(ids) == 1
    (row,) = await pair.gateway.rows(key_of(client), at_least=1)
    assert (row["outcome"], row["status"], Decimal(str(row["spend"]))) == ("ok", "settled", COST)
    usage = {name: count for name, count in row["usage"].items() if count}
    assert usage == {"input": INPUT_TOKENS, "output": OUTPUT_TOKENS}


async def test_the_stream_helper_sees_the_same(pair: Pair, client: AsyncOpenAI) -> None:
    async with client.responses.stream(model="gpt", input="hi") as stream:
        kinds = [e.type async for e in stream]
        final = await stream.get_final_response()
    assert kinds[-1] == "response.completed"
    assert final.output_text == "".join(WORDS)
    assert final.usage is not None
    assert final.usage.total_tokens == INPUT_TOKENS + OUTPUT_TOKENS


async def test_a_failed_account_is_replaced_before_the_first_content(pair: Pair, client: AsyncOpenAI) -> None:
    for stream in (False, True):
        pair.first.script[:] = [500] * 3
        answer: Any = await client.responses.create(model="gpt", input="hi", stream=stream)
        if stream:
            assert [e.type async for e in answer][-1] == "response.completed"
        pair.first.script.clear()


async def test_providers_without_the_api_are_left_out_or_named(pair: Pair, client: AsyncOpenAI) -> None:
    assert (await client.responses.create(model="mixed", input="hi")).output_text == "".join(WORDS)
    assert not pair.first.asked
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model="claude", input="hi")
    assert caught.value.code == "dialect_not_served"
    for name in ("openai", "azure", "openai-responses", "/v1/chat/completions"):
        assert name in caught.value.message
    assert not pair.first.asked


async def test_a_wildcard_group_serves_it(pair: Pair, client: AsyncOpenAI) -> None:
    await client.responses.create(model="any/gpt-4.1", input="hi")
    assert pair.asked[0].body["model"] == "gpt-4.1"


@pytest.mark.parametrize(
    ("field", "code"),
    [
        ({"background": True}, "background_not_supported"),
        ({"conversation": "conv_1"}, "owner_unknown"),
        ({"prompt": {"id": "pmpt_1"}}, "owner_unknown"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "owner_unknown"),
        ({"input": [{"id": "msg_1"}]}, "owner_unknown"),
        ({"tools": [{"type": "code_interpreter", "container": "cntr_1"}]}, "owner_unknown"),
        ({"prompt_cache_options": {"comparison_response_id": "resp_1"}}, "owner_unknown"),
        ({"previous_response_id": 3}, "bad_request"),
        ({"input": 3}, "bad_request"),
        ({"api_base": "http://evil"}, "forbidden_parameter"),
    ],
)
async def test_what_cannot_be_served_is_refused_by_name(
    field: dict[str, Any], code: str, pair: Pair, client: AsyncOpenAI
) -> None:
    answer = await pair.gateway.http.post(
        f"{pair.gateway.url}/v1/responses",
        headers={"authorization": f"Bearer {key_of(client)}"},
        json={"model": "gpt", "input": "hi"} | field,
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert answer.json()["error"]["param"].split(".")[0].split("[")[0] == next(iter(field))
    assert not pair.asked


async def test_a_field_said_twice_reaches_the_provider_as_it_was_judged(pair: Pair, client: AsyncOpenAI) -> None:
    pair.first.is_strict = pair.second.is_strict = False
    url, headers = f"{pair.gateway.url}/v1/responses", {"authorization": f"Bearer {key_of(client)}"}
    for text in (
        '{"model":"gpt","previous_response_id":"resp_1","input":"hi","previous_response_id":null}',
        '{"model":"gpt","input":[{"type":"item_reference","id":"m","type":"message","role":"user","content":"hi"}]}',
        '{"model":"gpt","input":[{"type":"item_referenc\\u0065","type":"message","role":"user","content":"hi"}]}',
        '{"model":"gpt","conversation":"conv_1","input":"hi","conversation":null}',
    ):
        answer = await pair.gateway.http.post(url, headers=headers, content=text)
        assert answer.status_code == 200, answer.text
    for asked in pair.asked:
        text = json.dumps(asked.body)
        assert "resp_1" not in text
        assert "reference" not in text
        assert "conv_1" not in text


async def test_a_budget_caps_the_output_and_holds_the_worst_case(pair: Pair) -> None:
    key = await pair.gateway.mint(max_budget=0.002)
    async with AsyncOpenAI(base_url=f"{pair.gateway.url}/v1", api_key=key, max_retries=0) as client:
        await client.responses.create(model="gpt", input="hi")
        cap = pair.asked[0].body["max_output_tokens"]
        assert 16 <= cap < 4096
        with pytest.raises(openai.RateLimitError) as caught:
            await client.responses.create(model="gpt", input="hi", max_output_tokens=100_000)
        assert caught.value.code == "budget_exceeded"
        assert len(pair.asked) == 1
        await client.responses.create(model="gpt", input="hi", max_output_tokens=20)
        assert sorted(asked.body["max_output_tokens"] for asked in pair.asked) == [20, cap]


async def test_what_a_previous_response_brings_along_is_held_too(pair: Pair) -> None:
    key = await pair.gateway.mint(max_budget=0.6)
    async with AsyncOpenAI(base_url=f"{pair.gateway.url}/v1", api_key=key, max_retries=0) as client:
        # 1,000 USD a million: a milli-dollar a token; the body is some hundred bytes.
        first = await client.responses.create(model="dear", input="hi", max_output_tokens=20)
        again = {"model": "dear", "input": "hi", "previous_response_id": first.id}
        await client.responses.create(**again, max_output_tokens=20)
        events = [e async for e in await client.responses.create(**again, max_output_tokens=200, stream=True)]
        long_id = events[-1].response.id
        # A stream's id says what it might have become: 200 tokens of output and its input, more than is left.
        with pytest.raises(openai.RateLimitError) as caught:
            await client.responses.create(**again | {"previous_response_id": long_id}, max_output_tokens=20)
        assert caught.value.code == "budget_exceeded"


async def test_token_limits_are_not_used_up_by_what_might_come_along(pair: Pair) -> None:
    key = await pair.gateway.mint(tpm_limit=5_000)
    async with AsyncOpenAI(base_url=f"{pair.gateway.url}/v1", api_key=key, max_retries=0) as client:
        events = [e async for e in await client.responses.create(model="gpt", input="hi", stream=True)]
        await client.responses.create(model="gpt", input="on", previous_response_id=events[-1].response.id)
        with pytest.raises(openai.RateLimitError):
            await client.responses.create(model="gpt", input="on", max_output_tokens=10_000)


async def test_an_idempotency_key_answers_again_without_cost(pair: Pair, client: AsyncOpenAI) -> None:
    extra = {"extra_headers": {"Idempotency-Key": "once"}}
    ids = {(await client.responses.create(model="gpt", input="hi", **extra)).id for _ in range(2)}
    assert len(ids) == len(pair.asked) == 1


async def test_each_exchange_has_its_account(pair: Pair, client: AsyncOpenAI) -> None:
    raw = await client.responses.with_raw_response.create(model="gpt", input="hi")
    record = await pair.gateway.admin(f"/exchanges/{raw.headers['x-request-id']}")
    assert (record["outcome"], len(record["attempts"])) == ("ok", 1)
    assert Decimal(record["money"]["cost_usd"]) == COST
    with pytest.raises(openai.NotFoundError) as caught:
        await client.responses.create(model="gpt", input="hi", previous_response_id="resp_1")
    record = await pair.gateway.admin(f"/exchanges/{caught.value.response.headers['x-request-id']}")
    assert (record["outcome"], record["error"]["code"]) == ("refused", "previous_response_not_found")
    assert record["attempts"] == []


async def test_a_request_limit_counts_it(pair: Pair) -> None:
    key = await pair.gateway.mint(rpm_limit=1)
    async with AsyncOpenAI(base_url=f"{pair.gateway.url}/v1", api_key=key, max_retries=0) as client:
        await client.responses.create(model="gpt", input="hi")
        with pytest.raises(openai.RateLimitError):
            await client.responses.create(model="gpt", input="hi")


async def test_many_at_once_keep_their_ids_apart(pair: Pair, client: AsyncOpenAI) -> None:
    answers = await asyncio.gather(*(client.responses.create(model="gpt", input=f"{n}") for n in range(20)))
    kept = {**pair.first.kept, **pair.second.kept}
    assert len({a.id for a in answers}) == 20
    assert all(a.id.rpartition("_g")[0] in kept for a in answers)


async def test_chat_and_the_list_of_models_are_as_before(pair: Pair, client: AsyncOpenAI) -> None:
    assert {m.id async for m in await client.models.list()} == {"gpt", "claude", "mixed", "any/*", "dear"}
