"""`sidecar explain --request-id`: a past request in words, from a gateway that runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from sidecar.cli import app
from tests.faults.provider import Fault, FaultProvider, fault_provider
from tests.promises.support import MASTER, Running, body, served

pytestmark = pytest.mark.anyio


@pytest.fixture
async def provider() -> AsyncIterator[FaultProvider]:
    async with fault_provider() as provider:
        yield provider


@pytest.fixture
async def gateway(provider: FaultProvider, tmp_path: Path) -> AsyncIterator[Running]:
    top = {"routing": {"retries": 1, "cooldown_s": 0.001, "max_wait_s": 1}}
    async with served(tmp_path, provider.base_url, top=top) as running:
        yield running


async def run(gateway: Running, *arguments: str, key: str = MASTER) -> Result:
    env = {"SIDECAR_URL": gateway.url, "SIDECAR_MASTER_KEY": key}
    result = await asyncio.to_thread(CliRunner().invoke, app, ["explain", *arguments], env=env)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert MASTER not in result.output
    return result


async def test_it_tells_what_was_tried_and_what_it_cost(gateway: Running, provider: FaultProvider) -> None:
    key = await gateway.mint(key_alias="ci", rpm_limit=9, max_budget=5, aliases={"fast": "gpt"})
    provider.script(Fault("status", status=503))
    answer = await gateway.chat(key, body("fast"))
    name = answer.headers["x-request-id"]
    told = (await run(gateway, "--request-id", name)).stdout
    for line in (
        name, "model gpt (asked for as fast); by key ci", "200 ok after", "attempt 1: gpt#0:openai (openai gpt-1)",
        "server: server_error", "attempt 2: gpt#0:openai (openai gpt-1), after ", "tokens: input 11, output 5",
        "route: group gpt, strategy weighted", "gpt#0:openai: tried 2×", "limit: key, 9 requests",
        "remaining-requests: 8", "budget: key, $5 until ever", f"cost ${answer.headers['x-sidecar-cost-usd']}",
    ):  # fmt: skip
        assert line in told, told
    shown: dict[str, Any] = json.loads((await run(gateway, "--request-id", name, "--json", key=key)).stdout)
    assert shown["exchange_id"] == name
    assert len(shown["attempts"]) == 2


async def test_it_tells_who_refused(gateway: Running) -> None:
    key = await gateway.mint(rpm_limit=1)
    await gateway.chat(key, body())
    refused = await gateway.chat(key, body(), headers={"x-request-id": "a b/c"})
    told = (await run(gateway, "--request-id", refused.headers["x-request-id"])).stdout
    assert "refused by the gateway: requests_limit_exceeded" in told
    assert "the limit: key, 1 requests" in told
    assert "retry after" in told
    poor = await gateway.mint(max_budget=0.000001)
    refused = await gateway.chat(poor, body())
    told = (await run(gateway, "--request-id", refused.headers["x-request-id"])).stdout
    assert "the limit: key, a budget of $0.000001" in told


async def test_what_is_not_there_or_not_asked_rightly_is_said(gateway: Running) -> None:
    missing = await run(gateway, "--request-id", "no such one")
    assert missing.exit_code == 1
    assert "no such exchange" in missing.output
    both = await run(gateway, "request.json", "--request-id", "x")
    assert (both.exit_code, "not both" in both.output) == (2, True)
    neither = await run(gateway)
    assert (neither.exit_code, "--request-id" in neither.output) == (2, True)


async def test_what_a_client_made_up_writes_no_line_and_moves_no_cursor(gateway: Running) -> None:
    key = await gateway.mint()
    made_up = "gpt\n200 ok; cost $0\x1b[2J\x9b1mrefused"
    answer = await gateway.chat(key, body(made_up, user="\x1b]0;title\x07"))
    told = (await run(gateway, "--request-id", answer.headers["x-request-id"])).stdout
    assert r"model gpt\n200 ok; cost $0\x1b[2J\x9b1mrefused; by key" in told, told
    assert r"end_user \x1b]0;title\x07" in told, told
    assert not [c for c in told if not c.isprintable() and c != "\n"]
