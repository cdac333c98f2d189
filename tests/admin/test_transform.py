"""`POST /utils/transform_request` shows what the provider then gets, to whoever may make the call, and does nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from sidecar.translate import PROVIDERS
from tests.faults.provider import FaultProvider, fault_provider
from tests.promises.support import MASTER, PROVIDER_KEY, Running, body, served
from tests.translate.dialects import DISTINCT, dialect_of
from tests.translate.support import WEATHER

pytestmark = pytest.mark.anyio
PATH = "/utils/transform_request"
HEADER_SECRET = "sk-canary-of-a-header-91c2"
ODD_TOOL = {"type": "function", "function": {**WEATHER["function"], "name": "look.up/weather"}}


def model_of(name: str) -> str:
    return f"{name}-1" if PROVIDERS[name].is_same_dialect else dialect_of(name).model


@pytest.fixture(scope="module")
async def provider_of_file(anyio_backend: str) -> AsyncIterator[FaultProvider]:
    async with fault_provider() as provider:
        yield provider


@pytest.fixture
def faults(provider_of_file: FaultProvider) -> FaultProvider:
    provider_of_file.requests.clear()
    return provider_of_file


@pytest.fixture(scope="module")
async def every(provider_of_file: FaultProvider, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """Each provider, with a header of the operator's."""
    url = provider_of_file.base_url
    models = [
        {
            "name": name,
            "deployments": [
                {
                    "provider": name, "model": model_of(name), "api_key": PROVIDER_KEY, "drop_params": True,
                    "base_url": url + dialect_of(provider).base_path, "price": {"input": 1, "output": 2},
                    "headers": {"x-own": HEADER_SECRET}, **dialect_of(provider).options,
                }
            ],
        }
        for name, provider in DISTINCT.items()
    ]  # fmt: skip
    async with served(tmp_path_factory.mktemp("every"), url, top={"models": models}) as running:
        yield running


async def ask(gateway: Running, key: str | None, payload: Any, **headers: str) -> Any:
    given = {"authorization": f"Bearer {key}"} if key is not None else {}
    return await gateway.http.post(gateway.url + PATH, json=payload, headers=given | headers)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", DISTINCT)
async def test_what_is_shown_is_what_is_sent(every: Running, faults: FaultProvider, name: str, stream: bool) -> None:
    payload = {
        "model": name, "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
        "tools": [WEATHER], "max_tokens": 9, "logit_bias": {"5": 1}, "stream": stream,
    }  # fmt: skip
    faults.requests.clear()
    shown = await ask(every, MASTER, payload)
    assert shown.status_code == 200, shown.text
    assert not faults.requests
    assert PROVIDER_KEY not in shown.text
    assert HEADER_SECRET not in shown.text
    key = await every.mint()
    answer = await every.chat(key, payload)
    assert answer.status_code == 200, answer.text
    (got,) = faults.requests
    request = shown.json()["request"]
    url = urlsplit(request["url"])
    assert url.path + (f"?{url.query}" if url.query else "") == got.target
    assert request["body"] == got.json()
    seen = {field: value for field, value in got.headers.items() if field not in ("host", "connection")}
    hidden = {field for field, value in request["headers"].items() if value == "***"}
    assert hidden == {field for field, value in seen.items() if PROVIDER_KEY in value or value == HEADER_SECRET}
    assert {k: v for k, v in request["headers"].items() if k not in hidden} == {
        k: v for k, v in seen.items() if k not in hidden
    }
    dropped = [loss["where"] for loss in shown.json()["losses"] if loss["kind"] == "dropped"]
    assert dropped == [field for field in answer.headers.get("x-sidecar-dropped", "").split(",") if field]


async def test_nothing_is_held_written_or_counted(every: Running, faults: FaultProvider) -> None:
    key = await every.mint(max_budget=0.000001, rpm_limit=1, max_parallel_requests=1)
    before = len(await every.rows())
    for _ in range(3):
        shown = await ask(every, key, body("anthropic", max_tokens=9))
        assert shown.status_code == 200, shown.text
    assert (every.live_exchanges, every.taken_slots) == (0, 0)
    assert await every.rows(key) == []
    assert len(await every.rows()) == before
    assert await every.spend(key) == 0


async def test_only_who_may_make_the_call_is_shown_it(every: Running) -> None:
    payload = body("anthropic")
    assert (await ask(every, None, payload)).status_code == 401
    assert (await ask(every, "sk-nobodys", payload)).status_code == 401
    key = await every.mint(models=["openai"])
    refused = await ask(every, key, payload)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_access_denied")
    assert (await ask(every, key, body("openai"))).status_code == 200
    assert (await ask(every, MASTER, body("nothing"))).status_code == 404
    got = await every.http.get(every.url + PATH, headers={"authorization": f"Bearer {MASTER}"})
    assert (got.status_code, got.json()["error"]["code"], got.headers["allow"]) == (405, "method_not_allowed", "POST")


async def test_below_a_prefix_it_is_judged_the_same(tmp_path: Path, faults: FaultProvider) -> None:
    def host(gateway: Any) -> Any:
        return Starlette(routes=[Mount("/llm", gateway)])

    async with served(tmp_path, faults.base_url, mount=host, prefix="/llm") as gateway:
        assert (await ask(gateway, None, body("claude"))).status_code == 401
        assert (await ask(gateway, "sk-nobodys", body("claude"))).status_code == 401
        assert (await ask(gateway, MASTER, body("claude"))).status_code == 200
        for path in (
            f"{PATH}/",
            "//utils/transform_request",
            "/utils/../utils/transform_request",
            "/UTILS/transform_request",
        ):
            found = await gateway.http.post(f"{gateway.url}{path}", json=body("claude"))
            assert found.status_code in (401, 404), path


async def test_a_callers_end_user_may_be_kept_from_a_model_here_too(every: Running) -> None:
    await every.admin("/customer/new", {"user_id": "kept", "models": ["openai"]})
    key = await every.mint()
    refused = await ask(every, key, body("anthropic", user="kept"))
    assert refused.status_code == 403, refused.text
    assert (await ask(every, key, body("openai", user="kept"))).status_code == 200


async def test_the_operators_own_hosts_are_for_administrators(every: Running, faults: FaultProvider) -> None:
    key = await every.mint()
    host = urlsplit(faults.base_url).netloc
    for name in ("openai", "anthropic"):
        assert host in (await ask(every, MASTER, body(name))).text
        shown = await ask(every, key, body(name))
        assert host not in shown.text
        assert shown.json()["request"]["url"].startswith("http://***/")


async def test_the_form_other_gateways_take_is_taken(every: Running) -> None:
    payload = body("anthropic", max_tokens=9)
    plain = await ask(every, MASTER, payload)
    wrapped = await ask(every, MASTER, {"call_type": "completion", "request_body": payload})
    assert wrapped.json() == plain.json()


async def test_what_the_call_itself_would_be_refused_for_is_said(tmp_path: Path, faults: FaultProvider) -> None:
    async with served(tmp_path, faults.base_url) as gateway:
        refused = await ask(gateway, MASTER, body("claude", logit_bias={"5": 1}))
        called = await gateway.chat(MASTER, body("claude", logit_bias={"5": 1}))
        assert refused.status_code == 400
        assert refused.json() == called.json()
        for bad in (b"", b"[]", b"{", b'{"model": 3}'):
            given = await gateway.http.post(
                gateway.url + PATH, content=bad, headers={"authorization": f"Bearer {MASTER}"}
            )
            assert given.status_code == 400, bad


@pytest.mark.parametrize("depth", [300, 700, 900, 940, 960, 970, 980, 990, 1000, 5000])
@pytest.mark.parametrize("name", ["openai", "anthropic", "gemini"])
async def test_what_is_nested_deeply_is_shown_or_refused(every: Running, name: str, depth: int) -> None:
    content = "[" * depth + "]" * depth
    for fields in ('"metadata":{"a":%s}' % content, '"x":%s' % content):  # noqa: UP031
        raw = f'{{"model":"{name}","messages":[{{"role":"user","content":"hi"}}],{fields}}}'
        answer = await every.http.post(
            every.url + PATH, content=raw.encode(), headers={"authorization": f"Bearer {MASTER}"}
        )
        assert answer.status_code in (200, 400), answer.text


async def test_another_deployment_that_takes_the_field_is_chosen_and_the_first_says_why_not(
    tmp_path: Path, faults: FaultProvider
) -> None:
    url = faults.base_url
    more = {"api_key": PROVIDER_KEY, "price": "free"}
    deployments = [
        {"provider": "anthropic", "model": "claude-x", "base_url": url, **more},
        {"provider": "openai", "model": "gpt-x", "base_url": f"{url}/v1", "order": 2, **more},
    ]
    top = {"models": [{"name": "both", "deployments": deployments}], "routing": {"retries": 1}}
    async with served(tmp_path, url, top=top) as gateway:
        shown = (await ask(gateway, MASTER, body("both", logit_bias={"5": 1}))).json()
        assert shown["provider"] == "openai"
        first, second = shown["candidates"]
        assert (first["provider"], first["is_chosen"], first["refusal"]["param"]) == ("anthropic", False, "logit_bias")
        assert (second["provider"], second["is_chosen"], second["level"]) == ("openai", True, 2)
        answer = await gateway.chat(MASTER, body("both", logit_bias={"5": 1}))
        assert answer.status_code == 200
        assert faults.requests[-1].json() == shown["request"]["body"]


async def test_every_kind_of_loss_is_told(tmp_path: Path, faults: FaultProvider) -> None:
    more = {"api_key": PROVIDER_KEY, "drop_params": True, "price": {"input": 1, "output": 2}}
    claude = {"provider": "anthropic", "model": "claude-3-7-sonnet", "base_url": faults.base_url, **more}
    gemini = {"provider": "gemini", "model": "gemini-1.5-pro", "base_url": faults.base_url, **more}
    top = {"models": [{"name": n, "deployments": [d]} for n, d in (("claude", claude), ("gemini", gemini))]}
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
    async with served(tmp_path, faults.base_url, top=top) as gateway:
        key = await gateway.mint(max_budget=1)
        schema = {"type": "object", "properties": {"n": {"type": "integer", "exclusiveMinimum": 0}}}
        asked = {
            "model": "claude", "tools": [ODD_TOOL], "logit_bias": {"5": 1}, "user": "ann@example.com",
            "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}, picture]}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
        }  # fmt: skip
        shown = (await ask(gateway, key, asked)).json()
        told = {(loss["kind"], loss["where"]) for loss in shown["losses"]}
        assert told == {
            ("dropped", "logit_bias"), ("capped", "max_tokens"), ("renamed", "tool look.up/weather"),
            ("replaced", "response_format"), ("replaced", "user"),
        }  # fmt: skip
        assert shown["request"]["body"]["max_tokens"] == 4096
        del asked["user"], asked["tools"]
        shown = (await ask(gateway, key, {**asked, "model": "gemini"})).json()
        told = {(loss["kind"], loss["where"]) for loss in shown["losses"]}
        assert told == {
            ("dropped", "logit_bias"), ("capped", "max_tokens"), ("media", "https://example.com/cat.png"),
            ("schema", "response_format.json_schema.schema"),
        }  # fmt: skip
        (schema_loss,) = (loss["what"] for loss in shown["losses"] if loss["kind"] == "schema")
        assert schema_loss == "rewritten for gemini; not enforced: /properties/n/exclusiveMinimum"
        assert not faults.requests


async def test_without_keys_everybody_on_this_machine_is_the_operator(tmp_path: Path, faults: FaultProvider) -> None:
    async with served(tmp_path, faults.base_url, top={"auth": "none"}) as gateway:
        shown = await ask(gateway, None, body("claude"))
        assert shown.json()["request"]["url"] == f"{faults.base_url}/v1/messages"
        foreign = await ask(gateway, None, body("claude"), host="gateway.example.com")
        assert foreign.status_code == 403
