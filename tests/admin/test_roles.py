"""Who may call what: every role × every endpoint, written out here once more, and default-deny for what is not."""

from __future__ import annotations

import pytest

from tests.admin.conftest import Api
from tests.admin.world import World

pytestmark = pytest.mark.anyio

LEADS = {"olga", "tina"}
OWN = LEADS | {"ivan"}
READ = OWN | {"vera"}
ALL = READ | {"nobody", "in t", "in x"}
OTHERS: dict[str, set[str]] = {
    "POST /key/generate": OWN,
    "POST /key/update": OWN,
    "POST /key/delete": OWN,
    "POST /key/regenerate": OWN,
    "POST /key/{key}/regenerate": OWN,
    "POST /key/block": LEADS,
    "POST /key/unblock": LEADS,
    "GET /key/info": ALL,
    "GET /key/list": READ,
    "GET /user/info": READ,
    "GET /user/available_roles": READ,
    "POST /team/new": {"olga"},
    "POST /team/update": LEADS,
    "POST /team/block": {"olga"},
    "POST /team/unblock": {"olga"},
    "GET /team/info": LEADS,
    "GET /team/list": LEADS,
    "POST /team/member_add": LEADS,
    "POST /team/member_update": LEADS,
    "POST /team/member_delete": LEADS,
    "GET /organization/info": {"olga"},
    "GET /organization/list": {"olga"},
    "GET /spend/logs": READ,
    "GET /spend/keys": READ,
    "POST /budget/info": {"viewer"},
    "POST /tag/info": {"viewer"},
    "GET /exchanges/{request_id}": ALL,
    "GET /openapi.json": ALL,
}
"""Besides administrators, and viewers' GETs."""


async def test_every_role_calls_exactly_what_it_may(api: Api) -> None:
    world = await World(api).build()
    table = {f"{endpoint.method} {endpoint.path}": endpoint for endpoint in api.endpoints}
    assert set(OTHERS) <= set(table)
    wrong = []
    for name, endpoint in table.items():
        path = endpoint.path.replace("{key}", "0" * 64)
        for caller, key in world.keys.items():
            # A faulty call: who may call is told so, and nothing happens.
            answer = await api.call(endpoint.method, f"{path}?no_such=1", key, content=b"[")
            is_let_in = answer.status_code == 400
            if not is_let_in:
                assert (answer.status_code, answer.json()["error"]["code"]) == (403, "role_not_allowed"), name
            may = caller in ("master", "admin") or caller in OTHERS.get(name, set())
            may = may or (caller == "viewer" and endpoint.method == "GET")
            if is_let_in != may:
                wrong.append((name, caller, is_let_in))
    assert wrong == []
    assert len(table) > 60


async def test_no_endpoint_answers_without_a_credential(api: Api) -> None:
    for endpoint in api.endpoints:
        for key in (None, "sk-" + "a" * 43):
            answer = await api.call(endpoint.method, endpoint.path.replace("{key}", "0" * 64), key, json={})
            assert answer.status_code == 401, endpoint.path


async def test_a_blocked_user_manages_nothing_any_more(api: Api) -> None:
    world = await World(api).build()
    assert (await world.get("tina", "/team/list")).status_code == 200
    await api.done("/user/update", user_id="tina", blocked=True)
    assert (await world.get("tina", "/team/list")).json()["error"]["code"] == "user_blocked"


async def test_a_role_taken_away_is_gone_at_once(api: Api) -> None:
    world = await World(api).build()
    assert (await world.get("admin", "/user/list")).status_code == 200
    await api.done("/user/update", user_id="admin", user_role="internal_user")
    assert (await world.get("admin", "/user/list")).status_code == 403
    await api.done("/team/member_update", team_id="t", user_id="tina", role="user")
    assert (await world.get("tina", "/team/info", team_id="t")).status_code == 403
    await api.done("/organization/member_delete", organization_id="o", user_id="olga")
    assert (await world.get("olga", "/organization/list")).status_code == 403


async def test_a_viewer_leads_nothing_whatever_a_team_says(api: Api) -> None:
    world = await World(api).build()
    await api.done(
        "/team/member_add", team_id="t", member=[{"user_id": n, "role": "admin"} for n in ("vera", "viewer")]
    )
    await api.done("/organization/member_add", organization_id="o", member={"user_id": "vera", "role": "org_admin"})
    for caller in ("vera", "viewer"):
        await world.make(caller + " in t", user_id=caller, team_id="t")
        api.minted.clear()
        for path in ("/key/generate", "/team/member_add", "/team/update", "/team/new"):
            assert await world.refused(caller + " in t", path, 403, None) == "role_not_allowed"
