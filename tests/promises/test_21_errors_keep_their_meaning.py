"""*Errors keep their meaning.* Over forty errors of every provider in the code, as its family says them: status, type,
code and `retry-after` arrive, OpenAI's own SDK raises the class that fits, and the message says whether the gateway or
the provider refused. The table is `error_table.py`; a new provider is in it without a word or has a family of its own.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from sidecar.translate.provider import CREDENTIAL_KEYS
from sidecar.translate.registry import PROVIDERS
from tests.faults.provider import Fault, FaultProvider, fault_provider
from tests.promises.error_table import CASES, FAMILIES, Case, Said
from tests.promises.sizes import measured
from tests.promises.support import PROVIDER_KEY, Running, served
from tests.translate.dialects import DISTINCT

pytestmark = pytest.mark.anyio

FAMILY_OF = {
    "anthropic": "anthropic", "gemini": "google", "vertex": "google",
    "bedrock": "aws", "bedrock-invoke": "aws", "sagemaker": "aws",
    "cohere": "cohere", "ollama": "ollama", "watsonx": "ibm", "openai-responses": "openai",
}  # fmt: skip
"""Of those whose dialect is not OpenAI's chat; the others say it as OpenAI does."""
CLASSES: dict[int, type[openai.APIStatusError]] = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    409: openai.ConflictError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
}
"""https://github.com/openai/openai-python#handling-errors; 500 and more: InternalServerError."""


def class_of(status: int) -> type[openai.APIStatusError]:
    return openai.InternalServerError if status >= 500 else CLASSES.get(status, openai.APIStatusError)


def family_of(name: str) -> str:
    assert name in FAMILY_OF or speaks_openai(name), f"{name} needs a family of errors"
    return FAMILY_OF.get(name, "openai")


def speaks_openai(name: str) -> bool:
    provider = PROVIDERS[name]
    return provider.is_same_dialect and any(base.__name__ == "OpenAIDialect" for base in type(provider).__mro__)


def cases_of(name: str) -> list[tuple[Case, Said]]:
    family = family_of(name)
    return [(case, case.said[family]) for case in CASES if family in case.said]


def place(name: str, url: str) -> dict[str, Any]:
    """A deployment of this provider at the fault provider, with whatever it needs to be configured."""
    provider = PROVIDERS[name]
    settings: dict[str, Any] = {"provider": name, "model": "m-9", "base_url": url, "price": "free"}
    settings |= dict.fromkeys(provider.needs_options, "here")
    if provider.auth != "none":
        settings["api_key"] = PROVIDER_KEY
    if name == "sagemaker":
        settings |= {"aws_access_key_id": "AKIAIOSFODNN7EXAMPLE", "aws_secret_access_key": PROVIDER_KEY}
        assert set(settings) & set(CREDENTIAL_KEYS[provider.keyless])
        del settings["api_key"]
    return settings


@pytest.fixture(scope="module")
async def provider(anyio_backend: str) -> AsyncIterator[FaultProvider]:
    async with fault_provider() as faults:
        yield faults


@pytest.fixture(scope="module")
async def gateway(provider: FaultProvider, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    top = {
        "models": [{"name": name, "deployments": [place(name, provider.base_url)]} for name in DISTINCT],
        "routing": {"retries": 0, "cooldown_s": 0.001},
    }
    async with served(tmp_path_factory.mktemp("gateway"), provider.base_url, top=top) as running:
        yield running


def client_of(gateway: Running, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key=key, base_url=f"{gateway.url}/v1", max_retries=0, timeout=30)


async def raised(client: openai.AsyncOpenAI, model: str, *, is_stream: bool, **more: Any) -> openai.APIStatusError:
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9} | more
    with pytest.raises(openai.APIStatusError) as caught:
        await client.chat.completions.create(**body, stream=is_stream)
    return caught.value


def test_every_provider_has_forty_errors() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 40
    assert set(FAMILY_OF) <= set(PROVIDERS)
    assert set(FAMILY_OF.values()) == set(FAMILIES)
    for name in PROVIDERS:
        assert len(cases_of(name)) >= 40, name


def assert_kept(name: str, case: Case, said: Said, error: openai.APIStatusError) -> None:
    where = f"{name}: {case.name}: {error.status_code} {error.body}"
    assert error.status_code in case.statuses, where
    if family_of(name) == "openai" and said.status != 529:
        assert error.status_code == said.status, where
    assert type(error) is class_of(error.status_code), where
    assert isinstance(error.body, dict), where
    assert set(error.body) == {"message", "type", "param", "code"}, where
    assert error.code == (said.code if family_of(name) == "openai" and said.code else case.code), where
    assert error.type, where
    message = error.body["message"]
    assert message.startswith(f"Provider {name} "), where
    assert (said.words or case.words) in message, where
    assert len(message) < 1200, where
    assert "<html" not in message and PROVIDER_KEY not in message, where  # noqa: PT018
    assert error.response.headers.get("retry-after") == case.wait, where
    assert error.response.headers["x-request-id"], where


@pytest.mark.parametrize("is_stream", [False, True], ids=["unstreamed", "streamed"])
@pytest.mark.parametrize("name", sorted(DISTINCT))
async def test_status_type_code_wait_and_refuser_arrive(
    gateway: Running, provider: FaultProvider, name: str, is_stream: bool
) -> None:
    client = client_of(gateway, await gateway.mint())
    cases = cases_of(name)
    for case, said in cases:
        provider.reset()
        kind: Any = "html" if said.is_html else "status"
        provider.script(Fault(kind, status=said.status, body=said.body, headers=said.headers + case.headers))
        error = await raised(client, name, is_stream=is_stream)
        assert len(provider.requests) == 1, f"{name}: {case.name}: {error}"
        assert_kept(name, case, said, error)
    if name == "openai":
        each = [len(cases_of(provider)) for provider in DISTINCT]
        measured(21, f"{min(each)} to {max(each)} errors at each of {len(DISTINCT)} providers")
    await client.close()


@pytest.mark.parametrize("is_stream", [False, True], ids=["unstreamed", "streamed"])
async def test_our_own_refusals_are_the_same_classes_and_say_so(
    gateway: Running, provider: FaultProvider, is_stream: bool
) -> None:
    stranger, narrow = client_of(gateway, "sk-unknown"), client_of(gateway, await gateway.mint(models=["groq"]))
    slow, poor = client_of(gateway, await gateway.mint(rpm_limit=1)), client_of(gateway, await gateway.mint())
    await slow.chat.completions.create(model="groq", messages=[{"role": "user", "content": "hi"}])
    provider.reset()
    expected = [
        (await raised(stranger, "openai", is_stream=is_stream), openai.AuthenticationError, "invalid_api_key"),
        (await raised(narrow, "openai", is_stream=is_stream), openai.PermissionDeniedError, "model_access_denied"),
        (await raised(poor, "nobody", is_stream=is_stream), openai.NotFoundError, "model_not_found"),
        (await raised(slow, "openai", is_stream=is_stream), openai.RateLimitError, "requests_limit_exceeded"),
        (
            await raised(poor, "anthropic", is_stream=is_stream, extra_body={"api_base": "http://x"}),
            openai.BadRequestError,
            "forbidden_parameter",
        ),
    ]
    for error, class_, code in expected:
        assert (type(error), error.code) == (class_, code), error
        message = json.loads(error.response.text)["error"]["message"]
        assert "gateway" in message.lower() and not message.startswith("Provider"), message  # noqa: PT018
    assert provider.requests == []
    for client in (stranger, narrow, slow, poor):
        await client.close()
