"""*Callers choose neither destination nor credential.* Every field, header and query by which gateways have been
talked into calling somebody else's host or sending somebody else's key, at depth 1 to 5 and in both dialects: the
provider gets the same head as for a plain request, and the attacker's host never sees a connection.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from sidecar import UpstreamProxy
from sidecar.simulated import serve
from sidecar.types import Deployment, Secret
from sidecar.upstream.httptools_transport import HttptoolsTransport
from tests.faults.provider import FaultProvider, Seen, fault_provider
from tests.promises.support import DIALECTS, MODELS, PROVIDER_KEY, Running, body, raw, served

pytestmark = pytest.mark.anyio

EVIL_KEY = "sk-attacker-0123456789abcdefghijklmnop"


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Collected from the vendors' SDKs (constructor and per-request options) and from the request parameters of other
# gateways. Kept apart from the product's own list on purpose.
REFUSED = words("""
    api_base api_key api_type api_version auth aws_access_key_id aws_bedrock_runtime_endpoint aws_external_id
    aws_profile_name aws_region_name aws_role_name aws_secret_access_key aws_session_name aws_session_token
    aws_sts_endpoint aws_web_identity_token azure_ad_token azure_ad_token_provider azure_endpoint azure_password
    azure_username base_url client client_id client_secret custom_llm_provider default_headers default_query
    deployment_id extra_body extra_headers extra_query headers http_client langfuse_host langfuse_public_key
    langfuse_secret_key litellm_credential_name litellm_params openai_api_base openai_api_key organization project
    proxies proxy ssl_verify tenant_id user_config vertex_ai_credentials vertex_ai_location vertex_ai_project
    vertex_credentials vertex_location vertex_project
""")
"""Refused by name at the top level: nobody shall believe they had an effect."""
IDLE = words("""
    Authorization authorization apiKey baseURL base_urls callbacks credentials endpoint fallbacks host model_list
    num_retries region request_timeout router_settings_override timeout token url x-api-key API_KEY api-key
    litellm_metadata proxy_server_request secret_fields specific_deployment success_callback
""")
"""Without effect wherever they stand; a provider that does not know them may say so."""
HEADERS = words("""
    api-key x-api-key x-goog-api-key x-api-base x-base-url x-provider-url x-target-url x-upstream helicone-target-url
    helicone-auth portkey-config x-portkey-custom-host x-portkey-provider x-portkey-forward-headers cf-aig-authorization
    x-litellm-api-key x-litellm-api-base x-litellm-timeout openai-organization openai-project openai-beta
    anthropic-version anthropic-beta azure-openai-endpoint x-amz-security-token x-amz-date x-goog-user-project
    x-forwarded-host x-forwarded-for x-forwarded-proto x-forwarded-prefix forwarded x-host x-original-url
    x-rewrite-url x-real-ip via proxy-authorization proxy-connection cookie referer origin x-sidecar-deployment
    x-sidecar-base-url x-sidecar-api-key x-model x-http-method-override traceparent content-language
""")


@dataclass
class Attack:
    """What an attacker writes: their host where a host could stand, their key where a key could."""

    host: str

    def value(self, name: str) -> Any:
        lowered = name.lower().replace("-", "_")
        if any(word in lowered for word in ("header", "query", "litellm_params", "extra_body", "metadata", "config")):
            return {
                "authorization": f"Bearer {EVIL_KEY}", "x-api-key": EVIL_KEY, "host": self.host, "api_key": EVIL_KEY,
                "api_base": f"http://{self.host}/v1", "base_url": f"http://{self.host}/v1",
            }  # fmt: skip
        if any(word in lowered for word in ("key", "token", "secret", "auth", "password", "credential")):
            return EVIL_KEY if lowered != "authorization" else f"Bearer {EVIL_KEY}"
        if name in ("model_list", "fallbacks"):
            return [{"model": "gpt", "model_name": "gpt", "api_base": f"http://{self.host}/v1", "api_key": EVIL_KEY}]
        if name in ("timeout", "request_timeout", "num_retries"):
            return 1
        return f"http://{self.host}/v1"


PLACES: dict[int, tuple[Callable[[str, Any], dict[str, Any]], ...]] = {
    1: (lambda n, v: {n: v},),
    2: (
        lambda n, v: {"metadata": {n: v}},
        lambda n, v: {"messages": [{"role": "user", "content": "hi", n: v}]},
        lambda n, v: {"stream_options": {n: v}, "stream": True},
        lambda n, v: {"litellm_metadata": {n: v}},
    ),
    3: (
        lambda n, v: {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi", n: v}]}]},
        lambda n, v: {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}, n: v}}]},
        lambda n, v: {"metadata": {"litellm_params": {n: v}}},
    ),
    4: (
        lambda n, v: {"tools": [{"type": "function", "function": {"name": "f", "parameters": {n: v}}}]},
        lambda n, v: {"options": {"extra_body": {"litellm_params": {n: v}}}},
    ),
    5: (
        lambda n, v: {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {n: v}}}}]},
        lambda n, v: {"a": {"metadata": {"extra_body": {"headers": {n: v}}}}},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
async def attacker_of_file(anyio_backend: str) -> AsyncIterator[FaultProvider]:
    async with fault_provider() as provider:
        yield provider


@pytest.fixture
def attack(attacker_of_file: FaultProvider) -> Iterator[Attack]:
    yield Attack(attacker_of_file.base_url.removeprefix("http://"))
    assert attacker_of_file.connections == 0, "the attacker's host was called"


def head_of(seen: Seen) -> list[bytes]:
    """A request's head without the one line that depends on the body."""
    return sorted(line for line in seen.head.split(b"\r\n") if not line.startswith(b"content-length:"))


async def plain_head(gateway: Running, faults: FaultProvider, key: str, model: str, stream: bool) -> list[bytes]:
    assert (await gateway.chat(key, body(model, stream=stream))).status_code == 200
    (seen,) = faults.requests
    faults.reset()
    name, value = ("authorization", f"Bearer {PROVIDER_KEY}") if model == "gpt" else ("x-api-key", PROVIDER_KEY)
    assert seen.headers[name] == value
    assert seen.headers["host"] == faults.base_url.removeprefix("http://")
    assert seen.target == ("/v1/chat/completions" if model == "gpt" else "/v1/messages")
    return head_of(seen)


async def all_at_once(faults: FaultProvider, what: list[Any], one: Callable[[Any], Any]) -> None:
    turns = asyncio.Semaphore(16)

    async def in_turn(case: Any) -> None:
        async with turns:
            await one(case)

    async with asyncio.TaskGroup() as group:
        for case in what:
            group.create_task(in_turn(case))


@pytest.mark.parametrize("depth", PLACES)
@pytest.mark.parametrize("model", MODELS)
async def test_no_field_of_the_body_has_an_effect(
    model: str, depth: int, gateway: Running, faults: FaultProvider, attack: Attack
) -> None:
    key = await gateway.mint()
    head = await plain_head(gateway, faults, key, model, False)
    answers: dict[int, int] = {}

    async def one(case: tuple[str, Callable[[str, Any], dict[str, Any]]]) -> None:
        name, place = case
        payload = body(model) | place(name, attack.value(name))
        answer = await gateway.chat(key, payload)
        answers[answer.status_code] = answers.get(answer.status_code, 0) + 1
        assert answer.status_code in (200, 400), (payload, answer.text)
        if depth == 1 and name in REFUSED:
            assert answer.status_code == 400, payload
            error = answer.json()["error"]
            assert (error["code"], error["param"]) == ("forbidden_parameter", name)
            assert name in error["message"]

    await all_at_once(faults, [(n, p) for n in (*REFUSED, *IDLE) for p in PLACES[depth]], one)
    assert len(faults.requests) == answers.get(200, 0), "a refused request was sent all the same"
    # Streams and plain requests have the same head.
    assert {tuple(head_of(seen)) for seen in faults.requests} <= {tuple(head)}
    if model == "gpt" or depth == 5:
        assert answers.get(200, 0) >= len(IDLE) - 1, f"nothing got through, so nothing was tested: {answers}"


@pytest.mark.parametrize("spelling", ["api\\u005fkey", "\\u0061pi_key", "api_ke\\u0079"])
@pytest.mark.parametrize("model", MODELS)
async def test_a_field_is_known_under_every_spelling_of_its_name(
    model: str, spelling: str, gateway: Running, faults: FaultProvider
) -> None:
    key = await gateway.mint()
    text = json.dumps(body(model))[:-1] + f', "{spelling}": "{EVIL_KEY}"}}'
    answer = await gateway.http.post(
        f"{gateway.url}/v1/chat/completions", headers={"authorization": f"Bearer {key}"}, content=text
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "api_key"
    assert not faults.requests


@pytest.mark.parametrize("model", MODELS)
async def test_no_header_and_no_query_has_an_effect(
    model: str, gateway: Running, faults: FaultProvider, attack: Attack
) -> None:
    key = await gateway.mint()
    head = await plain_head(gateway, faults, key, model, False)
    url = f"http://{attack.host}/v1"
    cases: list[tuple[dict[str, str], dict[str, str]]] = [
        ({name: value}, {}) for name in HEADERS for value in (url, EVIL_KEY, f"Bearer {EVIL_KEY}", attack.host)
    ]
    cases += [({}, {name: str(attack.value(name))}) for name in (*REFUSED, *IDLE, "key", "api-version", "model")]

    async def one(case: tuple[dict[str, str], dict[str, str]]) -> None:
        headers, query = case
        answer = await gateway.chat(key, body(model), headers=headers, params=query)
        assert answer.status_code == 200, (case, answer.text)

    await all_at_once(faults, cases, one)
    assert len(faults.requests) == len(cases)
    assert {tuple(head_of(seen)) for seen in faults.requests} == {tuple(head)}


async def test_nothing_of_a_responses_request_has_an_effect(
    gateway: Running, faults: FaultProvider, attack: Attack
) -> None:
    key = await gateway.mint()

    async def ask(fields: dict[str, Any], headers: dict[str, str], query: dict[str, str]) -> int:
        answer = await gateway.http.post(
            f"{gateway.url}/v1/responses",
            headers={"authorization": f"Bearer {key}"} | headers,
            params=query,
            json={"model": "gpt", "input": "hi"} | fields,
        )
        return answer.status_code

    assert await ask({}, {}, {}) == 200
    head = head_of(faults.requests[0])
    assert faults.requests[0].target == "/v1/responses"
    faults.reset()
    cases: list[tuple[int, dict[str, Any], dict[str, str], dict[str, str]]] = []
    for name in (*REFUSED, *IDLE):
        value = attack.value(name)
        cases.append((400 if name in REFUSED else 200, {name: value}, {}, {}))
        cases += [(200, place(name, value), {}, {}) for depth in (2, 5) for place in PLACES[depth][:1]]
        cases.append((200, {"input": [{"role": "user", "content": "hi", name: value}]}, {}, {}))
        cases.append((200, {}, {}, {name: str(value)}))
    cases += [(200, {}, {name: value}, {}) for name in HEADERS for value in (EVIL_KEY, attack.host)]

    async def one(case: tuple[int, dict[str, Any], dict[str, str], dict[str, str]]) -> None:
        status, *rest = case
        assert await ask(*rest) == status, case

    await all_at_once(faults, cases, one)
    assert len(faults.requests) == sum(status == 200 for status, *_ in cases)
    assert {tuple(head_of(seen)) for seen in faults.requests} == {tuple(head)}


async def test_the_request_line_and_the_host_header_choose_nothing(
    gateway: Running, faults: FaultProvider, attack: Attack
) -> None:
    key = await gateway.mint()
    head = await plain_head(gateway, faults, key, "gpt", False)
    content = json.dumps(body()).encode()
    path = "/v1/chat/completions"
    sent = 0
    for target in (path, f"http://{attack.host}{path}", f"{path}#@{attack.host}", f"{path}?url=http://{attack.host}"):
        for host in ("gateway", attack.host, f"gateway@{attack.host}"):
            text = (
                f"POST {target} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\nx-api-key: {EVIL_KEY}\r\n"
                f"connection: close, x-api-key\r\ncontent-length: {len(content)}\r\n\r\n"
            )
            answer = await raw(gateway.address, text.encode() + content)
            assert answer[9:12] in (b"200", b"400", b"404"), answer
            sent += answer[9:12] == b"200"
    assert sent >= 6
    assert len(faults.requests) == sent
    assert {tuple(head_of(seen)) for seen in faults.requests} == {tuple(head)}


async def test_the_model_is_a_configured_name_or_nothing(
    gateway: Running, faults: FaultProvider, attack: Attack
) -> None:
    key = await gateway.mint()
    url = f"http://{attack.host}/v1"
    names = [
        url, f"{url}/gpt", f"openai/{url}", "openai/gpt", "anthropic/claude", "azure/gpt", "custom_openai/gpt", "gpt/",
        "/gpt", f"gpt@{attack.host}", f"gpt?api_base={url}", f"gpt#{url}", f"gpt\r\nhost: {attack.host}", "gpt\x00",
        " gpt", "gpt ", "GPT", "*", "g*", "gpt*", "gpt,claude", "../gpt", "bedrock/arn:aws:bedrock:us-east-1:1:x/gpt",
        "vertex_ai/gpt", "ollama/gpt", f"huggingface/{url}", "openai/*", "all-proxy-models", "gpt-1", "claude-1",
    ]  # fmt: skip
    for name in names:
        answer = await gateway.chat(key, body(name))
        assert answer.status_code == 404, (name, answer.text)
        assert answer.json()["error"]["code"] == "model_not_found"
    assert not faults.requests


@pytest.mark.parametrize("model", MODELS)
async def test_the_rest_of_a_wildcard_name_goes_into_the_body_alone(
    model: str, faults: FaultProvider, attack: Attack, tmp_path: Any
) -> None:
    base_url = faults.base_url + ("/v1" if model == "gpt" else "")
    deployment = {
        "provider": DIALECTS[model],
        "model": "*",
        "api_key": PROVIDER_KEY,
        "base_url": base_url,
        "price": "free",
    }
    top = {"models": [{"name": "any/*", "deployments": [deployment]}]}
    async with served(tmp_path, faults.base_url, top=top) as gateway:
        key = await gateway.mint()
        assert (await gateway.chat(key, body("any/plain"))).status_code == 200
        head = head_of(faults.requests[0])
        for rest in (
            f"http://{attack.host}/v1", f"@{attack.host}", "../../../evil", f"x\r\nx-api-key: {EVIL_KEY}", "x?a=b",
            "x#y", "%2e%2e/%0d%0a", "a" * 200, "\u2028", f"{attack.host}/x", "openai/gpt",
        ):  # fmt: skip
            faults.reset()
            answer = await gateway.chat(key, body(f"any/{rest}"))
            assert answer.status_code in (200, 400, 404), answer.text
            assert len(faults.requests) == (answer.status_code == 200)
            for seen in faults.requests:
                assert head_of(seen) == head
                assert seen.json()["model"] == rest


async def test_what_a_key_carries_chooses_nothing(gateway: Running, faults: FaultProvider, attack: Attack) -> None:
    key = await gateway.mint()
    head = await plain_head(gateway, faults, key, "gpt", False)
    names = (*REFUSED, *IDLE)
    metadata = {name: attack.value(name) for name in names} | {"tags": ["x"]}
    key = await gateway.mint(metadata=metadata, key_alias=f"http://{attack.host}")
    assert (await gateway.chat(key, body(user=f"http://{attack.host}"))).status_code == 200
    assert [head_of(seen) for seen in faults.requests] == [head]


async def test_the_proxy_alone_also_takes_host_and_credential_from_its_deployment(
    faults: FaultProvider, attack: Attack, gateway: Running
) -> None:
    """Without Translate the client's own headers pass, so here the list of what never passes has to hold."""
    deployment = Deployment(
        "d", "gpt", "openai", "gpt-1", f"{faults.base_url}/v1", Secret(PROVIDER_KEY),
        headers=((b"x-own", b"configured"),),
    )  # fmt: skip
    transport = HttptoolsTransport()
    credentials = words("""authorization x-api-key api-key x-goog-api-key cookie proxy-authorization x-own
        openai-organization openai-project x-forwarded-host forwarded x-sidecar-base-url""")
    try:
        async with serve(UpstreamProxy(transport=transport, deployment=deployment)) as url:
            for name in credentials:
                for spelled in (name, name.upper(), name.title()):
                    answer = await gateway.http.post(
                        f"{url}/chat/completions",
                        json=body(),
                        headers=[(spelled, EVIL_KEY), (spelled, f"Bearer {EVIL_KEY}")],
                    )
                    assert answer.status_code == 200, (name, answer.text)
            await gateway.http.post(f"{url}/chat/completions", json=body(), headers={"host": attack.host})
    finally:
        await transport.aclose()
    assert len(faults.requests) == 3 * len(credentials) + 1
    for seen in faults.requests:
        assert EVIL_KEY.encode() not in seen.head
        assert attack.host.encode() not in seen.head
        assert seen.headers["authorization"] == f"Bearer {PROVIDER_KEY}"
        assert seen.headers["x-own"] == "configured"
        assert seen.headers["host"] == faults.base_url.removeprefix("http://")
        assert seen.target == "/v1/chat/completions"
