"""The management API of a whole gateway, called with tokens of an identity provider and with keys that have a role."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.faults.provider import FaultProvider
from tests.identity.oidc.issuer import issuer_server
from tests.identity.test_subjects import auth
from tests.promises.support import MASTER, Running, body, served

pytestmark = pytest.mark.anyio


async def call(gateway: Running, credential: str, path: str, payload: Any = None) -> httpx2.Response:
    method = "GET" if payload is None else "POST"
    headers = {"authorization": f"Bearer {credential}"}
    return await gateway.http.request(method, gateway.url + path, headers=headers, json=payload)


async def test_a_token_serves_itself_and_its_key_outlives_it(tmp_path: Path, faults: FaultProvider) -> None:
    async with issuer_server(time.time) as idp, served(tmp_path, faults.base_url, top=auth(idp)) as gateway:
        token = idp.token(sub="alice")
        for payload in ({"user_id": "alice", "auto_create_key": False, "models": ["gpt"]}, {"user_id": "bob"}):
            assert (await call(gateway, MASTER, "/user/new", payload)).status_code == 200
        made = await call(gateway, token, "/key/generate", {"key_alias": "laptop"})
        assert made.status_code == 200, made.text
        assert (made.json()["user_id"], made.json()["expires"]) == ("alice", None)
        assert (await gateway.chat(made.json()["key"], body("gpt", max_tokens=5))).status_code == 200
        assert (await gateway.chat(made.json()["key"], body("claude", max_tokens=5))).status_code == 403
        listed = (await call(gateway, token, "/key/list")).json()
        assert [key["key_alias"] for key in listed["keys"]] == ["laptop"]
        refused = await call(gateway, token, "/key/generate", {"user_id": "bob"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (403, "user_id")
        assert (await call(gateway, token, "/user/list")).json()["error"]["code"] == "role_not_allowed"
        assert (await call(gateway, token, "/key/info")).status_code == 400
        events = (await call(gateway, MASTER, "/audit?kind=key&action=create")).json()["events"]
        assert [event["actor"] for event in events] == ["alice", "master"]


async def test_a_tokens_role_opens_what_the_role_may(tmp_path: Path, faults: FaultProvider) -> None:
    async with issuer_server(time.time) as idp, served(tmp_path, faults.base_url, top=auth(idp)) as gateway:
        boss = idp.token(sub="boss", roles=["boss"])
        assert (await call(gateway, boss, "/team/new", {"team_id": "blue"})).status_code == 200
        assert (await call(gateway, boss, "/user/list")).status_code == 200
        token = idp.token(sub="carol", groups=["blue"])
        assert (await call(gateway, token, "/team/info?team_id=blue")).status_code == 403
        lead = {"team_id": "blue", "member": {"user_id": "carol", "role": "admin"}}
        assert (await call(gateway, boss, "/team/member_add", lead)).status_code == 200
        assert (await call(gateway, token, "/team/info?team_id=blue")).status_code == 200
        made = await call(gateway, token, "/key/generate", {"user_id": None})
        assert (made.status_code, made.json()["team_id"], made.json()["user_id"]) == (200, "blue", None)


async def test_a_change_above_holds_for_the_next_request(tmp_path: Path, faults: FaultProvider) -> None:
    async with served(tmp_path, faults.base_url) as gateway:
        assert (await call(gateway, MASTER, "/team/new", {"team_id": "t"})).status_code == 200
        key = await gateway.mint(team_id="t")
        for changes, status in (
            ({"blocked": True}, 403),
            ({"models": ["claude"], "blocked": False}, 403),
            ({"models": None, "rpm_limit": 1}, 200),
            ({"max_budget": 0, "rpm_limit": None}, 429),
            ({"max_budget": 0, "temp_budget_increase": 5, "temp_budget_expiry": time.time() + 3600}, 200),
        ):
            assert (await call(gateway, MASTER, "/team/update", {"team_id": "t", **changes})).status_code == 200
            if "models" in changes:
                await asyncio.sleep(1.1)  # a refusal is remembered for a second
            answer = await gateway.chat(key, body("gpt", max_tokens=5))
            assert answer.status_code == status, (changes, answer.text)


async def test_the_document_names_where_it_is_mounted(tmp_path: Path, faults: FaultProvider) -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    async with served(
        tmp_path, faults.base_url, mount=lambda app: Starlette(routes=[Mount("/llm", app)]), prefix="/llm"
    ) as gateway:
        document = (await call(gateway, MASTER, "/openapi.json")).json()
        assert document["servers"] == [{"url": "/llm"}]
        assert "/model/new" in document["paths"]
