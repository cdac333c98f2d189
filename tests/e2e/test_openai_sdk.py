"""The official OpenAI SDK against `sidecar serve`, in front of providers of both dialects: plain, streamed, with tools,
its helpers, its errors, `/v1/models`. The SDK must not be able to tell the dialects apart.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any, NamedTuple

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from sidecar.simulated import SimulatedProvider, serve
from tests.faults.provider import Fault, FaultProvider, fault_provider
from tests.promises.support import DIALECTS, PROVIDER_KEY, Running, eventually, process

pytestmark = pytest.mark.anyio

USER: Any = [{"role": "user", "content": "one two three"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Today's weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
async def provider_of_file(anyio_backend: str) -> AsyncIterator[FaultProvider]:
    async with fault_provider() as provider:
        yield provider


@pytest.fixture(scope="module")
async def gateway(provider_of_file: FaultProvider, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """`gpt`, `claude` go to the fault provider; `openai-sim/…`, `anthropic-sim/…` to the simulated one."""
    async with serve(SimulatedProvider()) as simulated:
        models = []
        for name, provider in DIALECTS.items():
            own = "/v1" if provider == "openai" else ""
            for group, url, model in (
                (name, provider_of_file.base_url, f"{name}-1"),
                (f"{provider}-sim/*", simulated, "*"),
            ):
                deployment = {
                    "provider": provider, "model": model, "base_url": url + own, "api_key": PROVIDER_KEY,
                    "price": {"input": 1, "output": 2}, "timeouts": {"first_byte_s": 60, "gap_s": 60},
                }  # fmt: skip
                models.append({"name": group, "deployments": [deployment]})
        folder = tmp_path_factory.mktemp("gateway")
        async with process(folder, provider_of_file.base_url, top={"models": models}) as running:
            yield running


@pytest.fixture
def faults(provider_of_file: FaultProvider) -> FaultProvider:
    provider_of_file.reset()
    return provider_of_file


@pytest.fixture
async def client(gateway: Running) -> AsyncIterator[AsyncOpenAI]:
    key = await gateway.mint()
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as client:
        yield client


def sim(dialect: str, what: str) -> str:
    return f"{dialect}-sim/sim-{what}"


both = pytest.mark.parametrize("dialect", ["openai", "anthropic"])
both_groups = pytest.mark.parametrize("model", ["gpt", "claude"])


@both
async def test_a_plain_answer(dialect: str, client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model=sim(dialect, "echo"), messages=[{"role": "system", "content": "Repeat."}, *USER], max_tokens=50
    )
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "echo: one two three")
    assert choice.finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 4
    ChatCompletion.model_validate(answer.model_dump())


@both
@pytest.mark.parametrize("wants_usage", [False, True])
async def test_a_stream(dialect: str, wants_usage: bool, client: AsyncOpenAI) -> None:
    options: Any = {"stream_options": {"include_usage": True}} if wants_usage else {}
    chunks = [
        chunk
        async for chunk in await client.chat.completions.create(
            model=sim(dialect, "long-30"), messages=USER, stream=True, **options
        )
    ]
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.model_dump())
    with_choice = [chunk for chunk in chunks if chunk.choices]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in with_choice)
    assert len(text.split()) == 30
    assert [c.choices[0].finish_reason for c in with_choice if c.choices[0].finish_reason] == ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert len(usages) == wants_usage
    if wants_usage:
        assert not chunks[-1].choices
        assert usages[0].completion_tokens == 30


@both
async def test_the_streams_helper_gives_the_same_answer_as_the_plain_call(dialect: str, client: AsyncOpenAI) -> None:
    asked: Any = {"model": sim(dialect, "tools"), "messages": USER, "tools": [WEATHER]}
    plain = await client.chat.completions.create(**asked)
    kinds: set[str] = set()
    async with client.chat.completions.stream(**asked) as stream:
        async for event in stream:
            kinds.add(event.type)
        whole = await stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds

    def told(answer: Any) -> Any:
        (choice,) = answer.choices
        calls = [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or ()]
        return choice.finish_reason, choice.message.content or None, calls

    assert told(whole) == told(plain)
    assert plain.choices[0].finish_reason == "tool_calls"


@both
@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_tool_is_called_and_its_result_goes_back(dialect: str, is_stream: bool, client: AsyncOpenAI) -> None:
    messages: Any = [{"role": "user", "content": "The weather in Graz?"}]
    asked: Any = {"model": sim(dialect, "tools"), "tools": [WEATHER], "tool_choice": "auto"}
    if is_stream:
        async with client.chat.completions.stream(messages=messages, **asked) as stream:
            message: Any = (await stream.get_final_completion()).choices[0].message
    else:
        message = (await client.chat.completions.create(messages=messages, **asked)).choices[0].message
    (call,) = message.tool_calls
    assert call.function.name == "weather"
    assert isinstance(json.loads(call.function.arguments), dict)
    assert call.id
    # What a stock client sends back: the message as the SDK gives it, and the result under the call's id.
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    asked["model"] = sim(dialect, "echo")
    last = await client.chat.completions.create(messages=messages, **asked)
    assert last.choices[0].finish_reason == "stop"


class Weather(BaseModel):
    city: str


@both_groups
async def test_the_parse_helper_gets_a_schema_through(model: str, client: AsyncOpenAI, faults: FaultProvider) -> None:
    asked: Any = {"model": model, "messages": USER, "response_format": Weather}
    fields = {"city": "Graz"}
    answer: dict[str, Any]
    if model == "gpt":
        message = {"role": "assistant", "content": json.dumps(fields)}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        answer = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    else:
        # The tool that carries the answer has a name of the gateway's: learn it from a first call.
        faults.script(Fault("status", status=400))
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.parse(**asked)
        (tool,) = faults.requests[0].json()["tools"]
        block = {"type": "tool_use", "id": "t", "name": tool["name"], "input": fields}
        usage = {"input_tokens": 1, "output_tokens": 1}
        answer = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": [block], "usage": usage}
        answer |= {"stop_reason": "tool_use", "stop_sequence": None}
    faults.script(Fault("status", body=json.dumps(answer).encode()))
    parsed = await client.chat.completions.parse(**asked)
    assert parsed.choices[0].message.parsed == Weather(city="Graz")
    assert parsed.choices[0].finish_reason == "stop"
    assert "city" in faults.requests[-1].body.decode()


class Row(NamedTuple):
    """A status of the provider's, what the SDK raises, and Anthropic's word for it."""

    status: int
    raises: type[openai.APIStatusError]
    anthropic: str


ERRORS = (
    Row(400, openai.BadRequestError, "invalid_request_error"),
    Row(403, openai.PermissionDeniedError, "permission_error"),
    Row(404, openai.NotFoundError, "not_found_error"),
    Row(422, openai.UnprocessableEntityError, "invalid_request_error"),
    Row(429, openai.RateLimitError, "rate_limit_error"),
    Row(500, openai.InternalServerError, "api_error"),
    Row(503, openai.InternalServerError, "overloaded_error"),
)


@both_groups
@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("row", ERRORS, ids=lambda row: str(row.status))
async def test_a_providers_error_raises_the_matching_class(
    row: Row, is_stream: bool, model: str, client: AsyncOpenAI, faults: FaultProvider
) -> None:
    error: dict[str, Any] = {"message": "the provider's words", "type": row.anthropic}
    whole = {"error": error} if model == "gpt" else {"type": "error", "error": error}
    faults.script(Fault("status", status=row.status, body=json.dumps(whole).encode(), headers=(("retry-after", "7"),)))
    with pytest.raises(row.raises) as caught:
        await client.chat.completions.create(model=model, messages=USER, stream=is_stream)
    raised = caught.value
    assert raised.status_code == row.status
    assert "the provider's words" in raised.message
    assert raised.type
    assert raised.code
    if row.status == 429:
        assert raised.response.headers["retry-after"] == "7"
    assert len(faults.requests) == 1


@both_groups
async def test_a_provider_that_refuses_our_credential_is_an_authentication_error(
    model: str, client: AsyncOpenAI, faults: FaultProvider
) -> None:
    faults.script(Fault("status", status=401, body=b'{"error": {"message": "x", "type": "authentication_error"}}'))
    with pytest.raises(openai.AuthenticationError, match="gateway's credential"):
        await client.chat.completions.create(model=model, messages=USER)


@both_groups
@pytest.mark.parametrize("kind", ["cut", "reset", "malform", "stall"])
async def test_a_stream_that_breaks_raises(
    kind: Any, model: str, gateway: Running, client: AsyncOpenAI, faults: FaultProvider
) -> None:
    # After the first words, which are under way by then: the error comes within the stream.
    text, finished = "", False
    headers = {"x-sidecar-timeout": "3" if kind == "stall" else "60"}

    async def read() -> None:
        nonlocal text, finished
        stream = await client.chat.completions.create(model=model, messages=USER, stream=True, extra_headers=headers)
        async for chunk in stream:
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finished = finished or choice.finish_reason is not None

    for _ in range(5):  # unless one of the two processes stood still just then
        faults.reset()
        faults.script(Fault(kind, after=4, drip_s=0.1))
        with pytest.raises(openai.APIError) as caught:
            await read()
        if text:
            break
    assert text.startswith("one")
    assert not finished
    assert not isinstance(caught.value, openai.APIStatusError)
    assert caught.value.code


async def test_our_own_refusals_raise_the_matching_classes(gateway: Running, faults: FaultProvider) -> None:
    url = f"{gateway.url}/v1"

    async def raised(kind: type[openai.APIStatusError], key: str, model: str = "gpt", **more: Any) -> Any:
        async with AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
            with pytest.raises(kind) as caught:
                await client.chat.completions.create(model=model, messages=USER, **more)
        return caught.value

    key = await gateway.mint(models=["gpt"])
    assert (await raised(openai.AuthenticationError, "sk-" + "a" * 43)).code == "invalid_api_key"
    assert (await raised(openai.PermissionDeniedError, key, "claude")).code == "model_access_denied"
    assert (await raised(openai.NotFoundError, await gateway.mint(), "nothing")).code == "model_not_found"
    smuggled = await raised(openai.BadRequestError, key, extra_body={"api_base": "http://x"})
    assert (smuggled.code, smuggled.param) == ("forbidden_parameter", "api_base")
    poor = await raised(openai.RateLimitError, await gateway.mint(max_budget=0.000001))
    assert (poor.code, poor.type) == ("budget_exceeded", "budget_exceeded")
    assert not faults.requests
    slow = await gateway.mint(rpm_limit=1)
    async with AsyncOpenAI(base_url=url, api_key=slow, max_retries=0) as client:
        await client.chat.completions.create(model="gpt", messages=USER)
    limited = await raised(openai.RateLimitError, slow)
    assert limited.code == "requests_limit_exceeded"
    assert 1 <= int(limited.response.headers["retry-after"]) <= 60
    async with AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.embeddings.create(model="gpt", input="x")
        assert caught.value.code == "unknown_path"


@both_groups
async def test_the_sdks_own_retry_succeeds_after_a_providers_failure(
    model: str, gateway: Running, faults: FaultProvider
) -> None:
    faults.script(Fault("status", status=500), Fault("status", status=503))
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=await gateway.mint(), max_retries=3) as client:
        answer = await client.chat.completions.create(model=model, messages=USER)
    assert answer.choices[0].message.content == "one two three four five"
    assert len(faults.requests) == 3


async def test_the_models_are_listed_as_the_key_may_use_them(gateway: Running, client: AsyncOpenAI) -> None:
    listed = [model.id async for model in client.models.list()]
    assert listed == ["gpt", "openai-sim/*", "claude", "anthropic-sim/*"]
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=await gateway.mint(models=["claude"])) as narrow:
        page = await narrow.models.list()
    assert [(model.id, model.object, model.owned_by) for model in page.data] == [("claude", "model", "sidecar")]
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="sk-" + "a" * 43, max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()


@both_groups
async def test_the_raw_response_tells_the_request_id_and_the_cost(
    model: str, gateway: Running, client: AsyncOpenAI, faults: FaultProvider
) -> None:
    raw = await client.chat.completions.with_raw_response.create(model=model, messages=USER)
    answer = raw.parse()
    assert answer._request_id == raw.headers["x-request-id"]
    assert Decimal(raw.headers["x-sidecar-cost-usd"]) == Decimal("0.000021")
    (row,) = await gateway.rows(client.api_key, at_least=1)
    assert row["exchange_id"] == answer._request_id


@both
async def test_the_synchronous_client_works_too(dialect: str, gateway: Running) -> None:
    key = await gateway.mint()

    def talk() -> tuple[str | None, str]:
        with OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as client:
            plain = client.chat.completions.create(model=sim(dialect, "echo"), messages=USER)
            stream = client.chat.completions.create(model=sim(dialect, "echo"), messages=USER, stream=True)
            return plain.choices[0].message.content, "".join(
                chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices
            )

    assert await asyncio.to_thread(talk) == ("echo: one two three", "echo: one two three")


@both_groups
async def test_a_stream_the_client_closes_is_closed_upstream(
    model: str, gateway: Running, client: AsyncOpenAI, faults: FaultProvider
) -> None:
    faults.script(Fault("endless", drip_s=0.01))
    stream = await client.chat.completions.create(model=model, messages=USER, stream=True)
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            break
    await stream.close()
    await eventually(lambda: faults.requests[0].closed_at is not None)
    assert faults.requests[0].closed_how == "left"
