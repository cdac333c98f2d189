"""Names of models of one key or one team: they lead to what is allowed, once, and are no way around anything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.provider import FaultProvider, fault_provider
from tests.promises.support import Running, body, served

pytestmark = pytest.mark.anyio


@pytest.fixture
async def provider() -> AsyncIterator[FaultProvider]:
    async with fault_provider() as provider:
        yield provider


@pytest.fixture
async def gateway(provider: FaultProvider, tmp_path: Path) -> AsyncIterator[Running]:
    routing = {"retries": 0, "aliases": {"everybodys": "claude"}}
    async with served(tmp_path, provider.base_url, top={"routing": routing}) as running:
        yield running


async def ends_at(gateway: Running, provider: FaultProvider, key: str, model: str) -> Any:
    """The upstream model that got it, or the code of the refusal."""
    before = len(provider.requests)
    answer = await gateway.chat(key, body(model))
    if answer.status_code != 200:
        assert len(provider.requests) == before
        return answer.json()["error"]["code"]
    return provider.requests[-1].json()["model"]


async def names(gateway: Running, key: str) -> list[str]:
    headers = {"authorization": f"Bearer {key}"}
    data = (await gateway.http.get(f"{gateway.url}/v1/models", headers=headers)).json()["data"]
    return sorted(model["id"] for model in data)


async def test_a_keys_alias_leads_to_the_model_it_stands_for(gateway: Running, provider: FaultProvider) -> None:
    key, other = await gateway.mint(aliases={"fast": "gpt", "good": "claude"}), await gateway.mint()
    assert await ends_at(gateway, provider, key, "fast") == "gpt-1"
    assert await ends_at(gateway, provider, key, "good") == "claude-1"
    assert await ends_at(gateway, provider, key, "gpt") == "gpt-1"
    assert await ends_at(gateway, provider, other, "fast") == "model_not_found"
    assert await names(gateway, key) == ["claude", "everybodys", "fast", "good", "gpt"]
    assert await names(gateway, other) == ["claude", "everybodys", "gpt"]
    rows = await gateway.rows(key, at_least=3)
    assert [row["model_group"] for row in rows] == ["gpt", "claude", "gpt"]


async def test_access_is_judged_by_what_an_alias_stands_for(gateway: Running, provider: FaultProvider) -> None:
    aliases = {"fast": "gpt", "good": "claude", "mine": "everybodys", "nothing": "unknown"}
    key = await gateway.mint(models=["gpt"], aliases=aliases)
    assert await ends_at(gateway, provider, key, "fast") == "gpt-1"
    assert await ends_at(gateway, provider, key, "good") == "model_access_denied"
    assert await ends_at(gateway, provider, key, "mine") == "model_access_denied"
    assert await names(gateway, key) == ["fast", "gpt"]
    named = await gateway.mint(models=["fast"], aliases=aliases)
    assert await ends_at(gateway, provider, named, "fast") == "model_access_denied"
    free = await gateway.mint(aliases=aliases)
    assert await ends_at(gateway, provider, free, "mine") == "claude-1"
    assert await ends_at(gateway, provider, free, "nothing") == "model_not_found"
    assert "nothing" not in await names(gateway, free)


async def test_aliases_are_followed_once_so_none_leads_in_a_circle(gateway: Running, provider: FaultProvider) -> None:
    key = await gateway.mint(aliases={"gpt": "claude", "claude": "gpt", "self": "self", "a": "b", "b": "a"})
    assert await ends_at(gateway, provider, key, "gpt") == "claude-1"
    assert await ends_at(gateway, provider, key, "claude") == "gpt-1"
    for name in ("self", "a", "b"):
        assert await ends_at(gateway, provider, key, name) == "model_not_found"
    assert await names(gateway, key) == ["claude", "everybodys", "gpt"]


async def test_a_teams_alias_holds_for_its_keys_and_a_keys_own_comes_first(
    gateway: Running, provider: FaultProvider
) -> None:
    await gateway.admin("/team/new", {"team_id": "t", "model_aliases": {"fast": "gpt", "good": "gpt"}})
    plain = await gateway.mint(team_id="t")
    own = await gateway.mint(team_id="t", aliases={"good": "claude"})
    assert await ends_at(gateway, provider, plain, "fast") == "gpt-1"
    assert await ends_at(gateway, provider, plain, "good") == "gpt-1"
    assert await ends_at(gateway, provider, own, "fast") == "gpt-1"
    assert await ends_at(gateway, provider, own, "good") == "claude-1"
    assert await names(gateway, own) == ["claude", "everybodys", "fast", "good", "gpt"]
    await gateway.admin("/team/update", {"team_id": "t", "models": ["claude"]})
    assert await ends_at(gateway, provider, plain, "fast") == "model_access_denied"
    assert await ends_at(gateway, provider, own, "good") == "claude-1"


async def test_a_change_of_aliases_is_seen_and_shown(gateway: Running, provider: FaultProvider) -> None:
    await gateway.admin("/team/new", {"team_id": "t"})
    key = await gateway.mint(team_id="t", aliases={"fast": "gpt"})
    assert (await gateway.admin("/key/info", key=key))["info"]["aliases"] == {"fast": "gpt"}
    assert await ends_at(gateway, provider, key, "fast") == "gpt-1"
    await gateway.admin("/key/update", {"key": key, "aliases": {"fast": "claude"}})
    assert await ends_at(gateway, provider, key, "fast") == "claude-1"
    await gateway.admin("/key/update", {"key": key, "aliases": None})
    assert await ends_at(gateway, provider, key, "fast") == "model_not_found"
    changed = await gateway.admin("/team/update", {"team_id": "t", "model_aliases": {"fast": "gpt"}})
    assert changed["model_aliases"] == {"fast": "gpt"}
    assert await ends_at(gateway, provider, key, "fast") == "gpt-1"
    assert (await gateway.admin("/team/info", team_id="t"))["team_info"]["model_aliases"] == {"fast": "gpt"}
    new = (await gateway.admin("/key/update", {"key": key, "aliases": {"mine": "claude"}}))["token"]
    renewed = (await gateway.admin("/key/regenerate", {"key": new}))["key"]
    assert await ends_at(gateway, provider, renewed, "mine") == "claude-1"


async def test_a_models_limit_counts_whatever_a_key_calls_the_model(gateway: Running, provider: FaultProvider) -> None:
    key = await gateway.mint(aliases={"fast": "gpt", "quick": "gpt"}, model_rpm_limit={"gpt": 2})
    assert await ends_at(gateway, provider, key, "fast") == "gpt-1"
    assert await ends_at(gateway, provider, key, "quick") == "gpt-1"
    for name in ("fast", "quick", "gpt"):
        assert await ends_at(gateway, provider, key, name) == "requests_limit_exceeded"
    assert await ends_at(gateway, provider, key, "claude") == "claude-1"


@pytest.mark.parametrize("aliases", [{"fast": "open/*"}, {"*": "gpt"}, {"": "gpt"}, {"x": ""}, {"x": 1}, ["gpt"]])
async def test_what_is_no_table_of_names_is_refused(gateway: Running, aliases: Any) -> None:
    headers = {"authorization": "Bearer sk-master-of-the-promises-0123456789abcdef"}
    for path, given in (("/key/generate", {"aliases": aliases}), ("/team/new", {"model_aliases": aliases})):
        answer = await gateway.http.post(gateway.url + path, headers=headers, json=given)
        assert answer.status_code == 400, answer.text
