"""What is held, and the cap that goes upstream, cover whoever serves the request: each deployment at its own price."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.translate.media_bounds import FILE_TOKENS
from tests.faults.provider import Fault, FaultProvider
from tests.promises.support import PROVIDER_KEY, Running, body, served
from tests.translate.test_media_bounds import pdf

pytestmark = pytest.mark.anyio


def group(name: str, url: str, *deployments: dict[str, Any]) -> dict[str, Any]:
    common = {"provider": "openai", "api_key": PROVIDER_KEY, "base_url": f"{url}/v1"}
    return {"name": name, "deployments": [common | deployment for deployment in deployments]}


def groups(url: str) -> list[dict[str, Any]]:
    cheap = {"model": "cheap", "price": {"input": 1, "output": 1}, "max_output_tokens": 64_000}
    dear = {"model": "dear", "price": {"input": 1, "output": 10}}
    return [
        group("two", url, cheap, dear | {"order": 2}),
        group("bounded", url, cheap, dear | {"order": 2, "max_output_tokens": 4_096}),
        group("one", url, {"model": "m", "price": {"input": 1, "output": 2}}),
        group("free", url, {"model": "f", "price": "free"}),
        group("fast", url, {"model": "gpt-4o-mini", "price": {"input": 1, "output": 1}}),
    ]


@pytest.fixture(scope="module")
async def shared_gateway(
    pair: tuple[FaultProvider, FaultProvider], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    url = pair[0].base_url
    top = {"models": groups(url), "routing": {"retries": 1, "cooldown_s": 0.001}}
    async with served(tmp_path_factory.mktemp("worst"), url, top=top) as running:
        yield running


@pytest.fixture
def gateway(shared_gateway: Running) -> Running:
    return shared_gateway


@pytest.fixture(scope="module")
async def careful_gateway(
    pair: tuple[FaultProvider, FaultProvider], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    """The other policies."""
    url = pair[0].base_url
    top = {"models": groups(url), "budget": {"no_max_tokens": "refuse", "vendor_tools": "refuse"}}
    async with served(tmp_path_factory.mktemp("careful"), url, top=top) as running:
        yield running


def worst_usd(sent: dict[str, Any], output: float) -> float:
    """What this request may cost for its output alone."""
    cap: int = sent.get("max_tokens") or sent["max_completion_tokens"]
    return cap * (sent.get("n") or 1) * output / 1e6


@pytest.mark.parametrize("model", ["two", "bounded"])
async def test_the_cap_fits_the_hold_at_every_deployments_price(
    model: str, gateway: Running, first: FaultProvider
) -> None:
    key = await gateway.mint(max_budget=0.07)
    first.script(Fault("status", status=503))  # the cheap one fails, and bills nothing
    assert (await gateway.chat(key, body(model))).status_code == 200
    sent = [request.json() for request in first.requests]
    assert [request["model"] for request in sent] == ["cheap", "dear"]
    assert worst_usd(sent[1], 10) <= 0.07
    if model == "bounded":
        assert [request["max_tokens"] for request in sent] == [64_000, 4_096], "each as it is configured"


@pytest.mark.parametrize("n", [8, "8", 7.5])
async def test_a_cap_of_ours_is_for_all_choices_together(n: Any, gateway: Running, first: FaultProvider) -> None:
    key = await gateway.mint(max_budget=0.05)
    assert (await gateway.chat(key, body("one", n=n))).status_code == 200
    (sent,) = (request.json() for request in first.requests)
    assert 0.025 < worst_usd(sent | {"n": 8}, 2) <= 0.05


async def test_what_a_picture_may_count_is_known_by_the_deployment_not_by_the_groups_name(
    gateway: Running, first: FaultProvider
) -> None:
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    asked = {"model": "fast", "max_tokens": 5, "messages": [{"role": "user", "content": [picture]}]}
    refused = await gateway.chat(await gateway.mint(max_budget=0.04), asked)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "budget_exceeded")
    assert (await gateway.chat(await gateway.mint(max_budget=0.06), asked)).status_code == 200


DATA = base64.b64encode(pdf()).decode()


@pytest.mark.parametrize("data", [f"data:application/pdf;base64,{DATA}", f"data:text/plain;base64,{DATA}", DATA])
async def test_parallel_calls_with_a_packed_file_never_spend_more_than_there_is(
    data: str, gateway: Running, first: FaultProvider
) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": FILE_TOKENS, "completion_tokens": 5}
    answer = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    first.script(*[Fault("status", status=200, body=json.dumps(answer).encode())] * 12)
    key = await gateway.mint(max_budget=0.5)
    file = {"type": "file", "file": {"filename": "a.txt", "file_data": data}}
    asked = {"model": "one", "max_tokens": 5, "messages": [{"role": "user", "content": [file]}]}
    answers = await asyncio.gather(*(gateway.chat(key, asked) for _ in range(12)))
    served_ones = [found for found in answers if found.status_code == 200]
    assert 1 <= len(served_ones) == len(first.requests)
    assert len(first.requests) * (FILE_TOKENS * 1 + 5 * 2) / 1e6 <= 0.5
    refused = next(found.json()["error"] for found in answers if found.status_code == 429)
    assert refused["code"] == "budget_exceeded"
    assert "Its input counts as 20" in refused["message"]
    assert "such as a PDF" in refused["message"]
    small = await gateway.chat(await gateway.mint(max_budget=0.05), body("one", max_tokens=5))
    assert small.status_code == 200, "nothing else costs more"
    tiny = await gateway.chat(await gateway.mint(max_budget=0.00001), body("one", max_tokens=5))
    assert "PDF" not in tiny.json()["error"]["message"]


async def test_what_costs_nothing_needs_no_cap_under_either_policy(
    careful_gateway: Running, first: FaultProvider
) -> None:
    key = await careful_gateway.mint(max_budget=0)
    assert (await careful_gateway.chat(key, body("free"))).status_code == 200
    assert not {"max_tokens", "max_completion_tokens"} & json.loads(first.requests[0].body).keys()
    refused = await careful_gateway.chat(key, body("one"))
    assert refused.json()["error"]["code"] == "max_tokens_required"


TOOLS: list[tuple[dict[str, Any], str]] = [
    ({"web_search_options": {}}, "web_search_options"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}, {"type": "web_search"}]}, "tools[1].type"),
    ({"tools": [{"type": ["web_search"]}]}, "tools[0].type"),
    ({"search_parameters": {"mode": "on"}}, "search_parameters"),
    ({"plugins": [{"id": "web"}]}, "plugins"),
    ({"enable_search": True}, "enable_search"),
]


@pytest.mark.parametrize(("fields", "where"), TOOLS)
async def test_tools_whose_input_has_no_bound_are_refused_under_a_budget_by_policy(
    fields: dict[str, Any], where: str, careful_gateway: Running, first: FaultProvider
) -> None:
    gateway, bounded = careful_gateway, {"max_tokens": 9}
    refused = await gateway.chat(await gateway.mint(max_budget=9), body("one", **fields, **bounded))
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "vendor_tool_unbounded")
    assert refused.json()["error"]["param"] == where
    assert (await gateway.chat(await gateway.mint(), body("one", **fields))).status_code == 200
    function = {"tools": [{"type": "function", "function": {"name": "f"}}]}
    assert (await gateway.chat(await gateway.mint(max_budget=9), body("one", **function, **bounded))).is_success


async def test_tools_of_the_vendor_pass_under_a_budget_by_default(gateway: Running, first: FaultProvider) -> None:
    key = await gateway.mint(max_budget=9)
    for fields, _ in TOOLS[:2]:
        assert (await gateway.chat(key, body("one", **fields))).status_code == 200


@pytest.mark.parametrize("tier", ["priority", "fast", ["priority"]])
async def test_a_tier_dearer_than_the_price_is_refused_under_a_budget(
    tier: Any, gateway: Running, first: FaultProvider
) -> None:
    key = await gateway.mint(max_budget=9)
    refused = await gateway.chat(key, body("one", service_tier=tier))
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "service_tier_unpriced")
    assert not first.requests
    for listed in ("auto", "default", "flex"):
        assert (await gateway.chat(key, body("one", service_tier=listed))).status_code == 200
    assert (await gateway.chat(key, body("free", service_tier=tier))).status_code == 200
    assert (await gateway.chat(await gateway.mint(), body("one", service_tier=tier))).status_code == 200


async def test_a_tier_dearer_than_the_price_passes_where_what_is_unpriced_does(
    tmp_path: Path, faults: FaultProvider
) -> None:
    top = {"models": groups(faults.base_url), "budget": {"unpriced": "flag"}}
    async with served(tmp_path, faults.base_url, top=top) as gateway:
        key = await gateway.mint(max_budget=9)
        assert (await gateway.chat(key, body("one", service_tier="priority"))).status_code == 200


@pytest.mark.parametrize("usage", [{"prompt_tokens": 3}, {"prompt_tokens": 3, "completion_tokens": 2**53 - 1}])
async def test_output_the_provider_does_not_tell_is_charged_at_its_bound(
    usage: dict[str, int], gateway: Running, first: FaultProvider
) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "x" * 50}, "finish_reason": "stop"}
    answer = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    key = await gateway.mint(max_budget=9)
    first.script(Fault("status", status=200, body=json.dumps(answer).encode()))
    assert (await gateway.chat(key, body("one", max_tokens=1_000))).status_code == 200
    (row,) = await gateway.rows(key, at_least=1)
    assert row["status"] == "estimated"
    assert 0.002 <= row["spend"] < 0.0025
