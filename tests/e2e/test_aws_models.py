"""Bedrock and SageMaker end to end: the openai SDK, the whole gateway, and a fake AWS on loopback that recomputes each
signature from what arrived and answers in AWS's own framing."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from sidecar.translate import UpstreamRequest
from sidecar.upstream.base import HttpRequest
from tests.faults.provider import COMPLETION_TOKENS, PROMPT_TOKENS, WORDS, Fault, FaultProvider, Seen, fault_provider
from tests.promises.support import PROVIDER_KEY, Running, served
from tests.translate.dialects import DIALECTS
from tests.translate.dialects.aws import exception
from tests.upstream.auth.test_clouds import signature

pytestmark = pytest.mark.anyio

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
MODELS = {
    "bedrock": "eu.anthropic.claude-sonnet-4-5-20250929-v1:0",
    "bedrock-arn": "arn:aws:bedrock:eu-central-1:123456789012:inference-profile/eu.amazon.nova-pro-v1:0",
    "bedrock-invoke": "eu.anthropic.claude-sonnet-4-5-20250929-v1:0",
    "sagemaker": "my-endpoint",
    "bedrock-key": "eu.amazon.nova-lite-v1:0",
}
SIGNED = [name for name in MODELS if name != "bedrock-key"]
MESSAGES: list[Any] = [{"role": "user", "content": "Grüße \u2028 an 東京 😀"}]


def provider_of(name: str) -> str:
    return name if name in DIALECTS else "bedrock"


@pytest.fixture(scope="module")
async def aws(anyio_backend: str) -> AsyncIterator[FaultProvider]:
    async with fault_provider() as provider:
        yield provider


@pytest.fixture(scope="module")
async def gateway(aws: FaultProvider, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    keys = {
        "aws_access_key_id": "AKIDEXAMPLE",
        "aws_secret_access_key": SECRET,
        "aws_session_token": "a/session+token=",
    }
    models = [
        {
            "name": name,
            "deployments": [
                {
                    "provider": provider_of(name), "model": model, "region": "eu-central-1", "base_url": aws.base_url,
                    "price": {"input": 1, "output": 2}, **(keys if name in SIGNED else {"api_key": PROVIDER_KEY}),
                }
            ],
        }
        for name, model in MODELS.items()
    ]  # fmt: skip
    async with served(tmp_path_factory.mktemp("aws"), aws.base_url, top={"models": models}) as running:
        yield running


@pytest.fixture
async def client(aws: FaultProvider, gateway: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    aws.reset()
    key = await gateway.mint()
    async with openai.AsyncOpenAI(api_key=key, base_url=f"{gateway.url}/v1", max_retries=0) as found:
        yield found


def check(seen: Seen, name: str) -> None:
    """As AWS would: the signature over method, path, host, time and body, and a request its model takes."""
    provider = provider_of(name)
    port = int(seen.headers["host"].rpartition(":")[2])
    request = HttpRequest("POST", "http", "127.0.0.1", port, seen.target.encode(), body=seen.body)
    sent = seen.headers["authorization"].rpartition("Signature=")[2]
    service = "sagemaker" if provider == "sagemaker" else "bedrock"
    assert sent == signature(request, seen.headers, SECRET, "eu-central-1", service)
    assert seen.headers["x-amz-security-token"] == "a/session+token="
    changed = HttpRequest("POST", "http", "127.0.0.1", port, seen.target.encode(), body=seen.body + b" ")
    assert sent != signature(changed, seen.headers, SECRET, "eu-central-1", service)
    assert SECRET not in str(seen.headers)
    headers = [(key.encode(), value.encode()) for key, value in seen.headers.items() if key.startswith("x-amzn")]
    DIALECTS[provider].check(UpstreamRequest(seen.target, seen.body, headers))


@pytest.mark.parametrize("name", SIGNED)
async def test_answers_and_streams_are_signed_and_read(
    client: openai.AsyncOpenAI, aws: FaultProvider, name: str
) -> None:
    answer = await client.chat.completions.create(model=name, messages=MESSAGES)
    assert answer.choices[0].message.content == "".join(WORDS)
    assert answer.choices[0].finish_reason == "stop"
    stream = await client.chat.completions.create(
        model=name, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "".join(WORDS)
    for usage in (answer.usage, chunks[-1].usage):
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens) == (PROMPT_TOKENS, COMPLETION_TOKENS)
    assert len(aws.requests) == 2
    for seen in aws.requests:
        check(seen, name)
        assert "x-amz-date" in seen.headers
    assert "123456789012" not in answer.model_dump_json()


async def test_an_api_key_is_a_bearer_token_and_nothing_is_signed(
    client: openai.AsyncOpenAI, aws: FaultProvider
) -> None:
    await client.chat.completions.create(model="bedrock-key", messages=MESSAGES)
    (seen,) = aws.requests
    assert seen.headers["authorization"] == f"Bearer {PROVIDER_KEY}"
    assert not any(name.startswith("x-amz-") for name in seen.headers)


@pytest.mark.parametrize("name", SIGNED)
async def test_a_stream_cut_within_a_message_never_looks_whole(
    client: openai.AsyncOpenAI, aws: FaultProvider, name: str
) -> None:
    aws.script(Fault("cut", after=4))
    stream = await client.chat.completions.create(model=name, messages=MESSAGES, stream=True)
    finishes: list[str | None] = []

    async def read() -> None:
        async for chunk in stream:
            finishes.extend(choice.finish_reason for choice in chunk.choices)

    with pytest.raises(openai.APIError):
        await read()
    assert not any(finishes)


@pytest.mark.parametrize("name", ["bedrock", "bedrock-invoke"])
async def test_a_throttled_request_is_a_rate_limit_with_its_retry_after(
    client: openai.AsyncOpenAI, aws: FaultProvider, name: str
) -> None:
    headers = (("x-amzn-errortype", "ThrottlingException:http://internal.amazon.com/coral/"), ("retry-after", "7"))
    aws.script(Fault("status", status=429, body=b'{"message":"Too many requests"}', headers=headers))
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(model=name, messages=MESSAGES)
    assert caught.value.response.headers["retry-after"] == "7"


async def test_an_exception_instead_of_a_stream_is_an_error_answer(
    client: openai.AsyncOpenAI, aws: FaultProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [exception("validationException", message="Input is too long for requested model.")]
    monkeypatch.setattr(type(DIALECTS["bedrock"]), "events", lambda *_: iter(broken))
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="bedrock", messages=MESSAGES, stream=True)
    assert caught.value.code == "context_length_exceeded"


async def test_a_pictures_bytes_arrive(client: openai.AsyncOpenAI, aws: FaultProvider) -> None:
    png = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(2_000_000)).decode()  # signed beside the loop
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png}"}}
    await client.chat.completions.create(model="bedrock", messages=[{"role": "user", "content": [part]}])  # type: ignore[list-item]
    (seen,) = aws.requests
    check(seen, "bedrock")
    assert json.loads(seen.body)["messages"][0]["content"][0]["image"]["source"]["bytes"] == png
