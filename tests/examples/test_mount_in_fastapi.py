"""The example, run: the host app's own tests pass unchanged before and after mounting, and all three mounts work."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import openai
import pytest
from fastapi import FastAPI

from examples.mount_in_fastapi import host_app, mount, own_client
from sidecar.config import load_config
from sidecar.gateway import Gateway
from sidecar.inprocess import InProcess
from sidecar.simulated import SimulatedProvider, serve

pytestmark = pytest.mark.anyio
MASTER = "sk-master-for-the-example-test-0123456789"


class Host:
    def __init__(self, app: FastAPI, gateway: Gateway | None) -> None:
        self.app = app
        self.gateway = gateway
        self.http = httpx2.AsyncClient(transport=InProcess(app), base_url="http://host.test")


@pytest.fixture
async def provider() -> AsyncIterator[str]:
    async with serve(SimulatedProvider()) as url:
        yield url


@pytest.fixture
async def mounted(provider: str, tmp_path: Path) -> AsyncIterator[Host]:
    file = tmp_path / "sidecar.yaml"
    file.write_text(
        f"auth: {{master_key: {MASTER}}}\n"
        f"store: {{database_url: 'sqlite:///{tmp_path}/s.db', journal_dir: '{tmp_path}/journal'}}\n"
        "models:\n"
        "  - name: claude\n"
        f"    deployments: [{{provider: anthropic, model: sim-echo, api_key: k, base_url: '{provider}',\n"
        "                   price: {input: 1, output: 2}}]\n"
    )
    app = host_app()
    gateway = mount(app, load_config(file, {}))
    async with app.router.lifespan_context(app):
        host = Host(app, gateway)
        yield host
        await host.http.aclose()
    await gateway.aclose()


@pytest.fixture
async def plain() -> AsyncIterator[Host]:
    app = host_app()
    async with app.router.lifespan_context(app):
        host = Host(app, None)
        yield host
        await host.http.aclose()


async def test_the_host_apps_own_tests_pass_before(plain: Host) -> None:
    await host_tests(plain)


async def test_the_host_apps_own_tests_pass_unchanged_after_mounting(mounted: Host) -> None:
    await host_tests(mounted)


async def host_tests(host: Host) -> None:
    hello = await host.http.get("/hello")
    assert hello.json() == {"hello": "world", "is_started": True}
    assert hello.headers["x-host-app"] == "yes"
    closed = await host.http.get("/closed")
    assert (closed.status_code, closed.json()) == (503, {"detail": "back soon"})
    assert (await host.http.get("/nothing")).json() == {"detail": "Not Found"}
    answer = await host.http.post("/my/llm", json={"model": "m"})
    assert answer.json()["usage"] == {"prompt_tokens": 3, "completion_tokens": 4}


async def test_a_single_middleware_limits_the_apps_own_endpoint(mounted: Host) -> None:
    statuses = [(await mounted.http.post("/my/llm", json={"model": "m"})).status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    assert (await mounted.http.get("/hello")).status_code == 200


async def test_the_whole_gateway_serves_below_its_prefix(mounted: Host) -> None:
    admin = {"authorization": f"Bearer {MASTER}"}
    made = await mounted.http.post("/llm/key/generate", headers=admin, json={"key_alias": "a", "max_budget": 1})
    assert made.status_code == 200, made.text
    key = made.json()["key"]
    client = openai.AsyncOpenAI(
        base_url="http://host.test/llm/v1",
        api_key=key,
        http_client=httpx2.AsyncClient(transport=InProcess(mounted.app)),
    )
    answer = await client.chat.completions.create(
        model="claude", messages=[{"role": "user", "content": "hi"}], max_tokens=20
    )
    assert answer.choices[0].message.content
    stream = await client.chat.completions.create(
        model="claude", messages=[{"role": "user", "content": "hi"}], max_tokens=20, stream=True
    )
    assert "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
    refused = await mounted.http.post("/llm/v1/chat/completions", json={"model": "claude"})
    assert refused.status_code == 401
    assert refused.headers["x-host-app"] == "yes"
    await client.close()


async def test_the_apps_own_sdk_calls_go_through_the_stack_in_process(mounted: Host) -> None:
    admin = {"authorization": f"Bearer {MASTER}"}
    key = (await mounted.http.post("/llm/key/generate", headers=admin, json={"rpm_limit": 2})).json()["key"]
    assert mounted.gateway is not None
    mounted.app.state.llm = own_client(mounted.gateway, key)
    mounted.app.state.llm_model = "claude"
    for _ in range(2):
        assert (await mounted.http.get("/ask", params={"question": "hi"})).json()["answer"]
    with pytest.raises(openai.RateLimitError):
        await mounted.app.state.llm.chat.completions.create(model="claude", messages=[{"role": "user", "content": "x"}])
    await mounted.app.state.llm.close()
