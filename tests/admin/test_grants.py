"""Nobody hands out more than it has, and what is not below a caller does not exist for it."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.errors import AuthenticationError
from sidecar.identity.keys import hash_key
from sidecar.types import NANO, Budget, Limits
from tests.admin.conftest import Api
from tests.admin.world import World

pytestmark = pytest.mark.anyio


async def test_self_service_makes_changes_and_deletes_keys_of_ones_own(api: Api) -> None:
    world = await World(api).build()
    made = await world.ok("ivan", "/key/generate", key_alias="mine", models=["gpt"], max_budget=3)
    assert (made["user_id"], made["team_id"]) == ("ivan", None)
    assert (await api.keys.lookup(made["key"])).user_id == "ivan"
    in_team = await world.ok("ivan", "/key/generate", team_id="t")
    assert (in_team["user_id"], in_team["team_id"]) == ("ivan", "t")
    assert (await world.ok("ivan", "/key/update", key=made["token"], rpm_limit=5))["rpm_limit"] == 5
    mine = (await world.get("ivan", "/key/list")).json()
    assert {key["token"] for key in mine["keys"]} == {
        hash_key(key) for key in (world.keys["ivan"], made["key"], in_team["key"])
    }
    new = await world.ok("ivan", "/key/regenerate", key=made["token"])
    assert new["max_budget"] == 3
    await world.ok("ivan", "/key/delete", keys=[new["token"]])
    with pytest.raises(AuthenticationError):
        await api.keys.lookup(new["key"])


async def test_what_is_not_below_a_caller_does_not_exist_for_it(api: Api) -> None:
    world = await World(api).build()
    other = hash_key(world.keys["in x"])
    unknown = "0" * 64
    for caller in ("ivan", "tina", "olga"):
        for path, more in (
            ("/key/update", {"rpm_limit": 1}),
            ("/key/regenerate", {}),
        ):
            answers = [await world.post(caller, path, key=key, **more) for key in (other, unknown)]
            assert answers[0].status_code == 404
            assert answers[0].content == answers[1].content
        answers = [await world.get(caller, "/key/info", key=key) for key in (other, unknown)]
        assert (answers[0].status_code, answers[0].content) == (404, answers[1].content)
        answers = [await world.post(caller, "/key/delete", keys=[key]) for key in (other, unknown)]
        assert (answers[0].status_code, answers[0].content) == (404, answers[1].content)
        answers = [await world.get(caller, "/spend/logs", key=key) for key in (other, unknown)]
        assert (answers[0].status_code, answers[0].content) == (404, answers[1].content)
        answers = [await world.post(caller, "/key/generate", team_id=team) for team in ("x", "none")]
        assert (answers[0].status_code, answers[0].content) == (404, answers[1].content)
        answers = [await world.get(caller, "/user/info", user_id=user) for user in ("admin", "none")]
        assert (answers[0].status_code, answers[0].content) == (404, answers[1].content)
    for caller in ("tina", "olga"):
        for path, more in (
            ("/team/update", {"team_alias": "a"}),
            ("/team/member_add", {"member": {"user_id": "q"}}),
            ("/team/member_update", {"user_id": "q", "role": "admin"}),
            ("/team/member_delete", {"user_id": "q"}),
        ):
            answers = [await world.post(caller, path, team_id=team, **more) for team in ("x", "none")]
            assert (answers[0].status_code, answers[0].content) == (404, answers[1].content), path
        for team in ("x", "none"):
            assert (await world.get(caller, "/team/info", team_id=team)).status_code == 404
        assert await world.refused(caller, "/key/block", 404, "key", key=other) == "key_not_found"
    assert (await world.get("olga", "/organization/info", organization_id="p")).status_code == 404
    assert await world.refused("olga", "/team/block", 404, "team_id", team_id="x") == "team_not_found"
    assert (await api.keys.lookup(world.keys["in x"])).team_id == "x"


async def test_lists_show_what_is_below_only(api: Api) -> None:
    world = await World(api).build()

    async def seen(caller: str, path: str, field: str, name: str) -> set[Any]:
        return {row[name] for row in (await world.get(caller, path, size=100)).json()[field]}

    assert await seen("tina", "/key/list", "keys", "key_alias") == {"tina", "in t"}
    assert await seen("vera", "/key/list", "keys", "key_alias") == {"vera"}
    assert await seen("tina", "/team/list", "teams", "team_id") == {"t"}
    assert await seen("olga", "/team/list", "teams", "team_id") == {"t", "u"}
    assert await seen("olga", "/organization/list", "organizations", "organization_id") == {"o"}
    assert await seen("viewer", "/team/list", "teams", "team_id") == {"t", "u", "x"}
    assert await seen("viewer", "/key/list", "keys", "key_alias") == set(world.keys) - {"master"}


NARROW: dict[str, Any] = {
    "models": ["gpt", "openai/*"],
    "max_budget": 5,
    "budget_duration": "1d",
    "budget_limits": [{"budget_duration": "30d", "max_budget": 50}],
    "rpm_limit": 10,
    "tpm_limit": 1000,
    "max_parallel_requests": 2,
    "model_rpm_limit": {"gpt": 3},
    "duration": "10d",
    "tags": ["red"],
}


async def test_a_key_made_by_a_narrow_key_is_as_narrow(api: Api) -> None:
    world = await World(api).build()
    await world.make("narrow", user_id="ivan", team_id="t", **NARROW)
    api.minted.clear()
    made = await world.ok("narrow", "/key/generate")
    one, two = await api.keys.lookup(world.keys["narrow"]), await api.keys.lookup(made["key"])
    assert (two.models, two.limits, two.model_limits) == (one.models, one.limits, one.model_limits)
    assert {(b.duration, b.max_nano) for b in two.budgets} == {(b.duration, b.max_nano) for b in one.budgets}
    assert (two.expires_at, two.tags, two.team_id, two.user_id) == (one.expires_at, ("red",), "t", "ivan")
    narrower = await world.ok(
        "narrow", "/key/generate", models=["openai/gpt-4o"], rpm_limit=9, max_budget=1, tags=["blue"], duration="1d"
    )
    three = await api.keys.lookup(narrower["key"])
    assert (three.models, three.limits) == (("openai/gpt-4o",), Limits(rpm=9, tpm=1000, concurrency=2))
    assert three.budgets == (Budget(NANO, None, api.clock.now),)
    assert three.tags == ("red", "blue")


TOO_MUCH: list[dict[str, Any]] = [
    {"models": ["claude"]},
    {"models": ["*"]},
    {"models": ["all-team-models"]},
    {"models": ["gpt", "o*"]},
    {"models": []},
    {"rpm_limit": 11},
    {"tpm_limit": 1001},
    {"max_parallel_requests": 3},
    {"model_rpm_limit": {"gpt": 4}},
    {"model_rpm_limit": {"other": 1}},
    {"max_budget": 6, "budget_duration": "1d"},
    {"max_budget": 5, "budget_duration": "1h"},
    {"budget_duration": "1d"},
    {"budget_limits": []},
    {"budget_limits": [{"budget_duration": "1d", "max_budget": 5}]},
    {"max_budget": 5, "temp_budget_increase": 1, "temp_budget_expiry": "2030-01-01"},
    {"duration": "11d"},
    {"team_id": None},
    {"team_id": "u"},
    {"user_id": "tina"},
    {"user_id": None},
    {"organization_id": "o"},
    {"budget_id": "any"},
    {"blocked": False},
]


async def test_more_than_the_calling_key_has_is_refused_and_named(api: Api) -> None:
    world = await World(api).build()
    await world.make("narrow", user_id="ivan", team_id="t", **NARROW)
    for asked in TOO_MUCH:
        answer = await world.post("narrow", "/key/generate", **asked)
        error = answer.json().get("error", {})
        code = (404, "team_not_found") if asked == {"team_id": "u"} else (403, "field_not_allowed")
        assert (answer.status_code, error.get("code")) == code, asked
        assert error["param"] in asked
    assert (await world.get("narrow", "/key/list", key_alias="narrow")).json()["total_count"] == 1
    assert (await world.get("narrow", "/key/list")).json()["total_count"] == 2  # and ivan's


WIDER: list[dict[str, Any]] = [
    {"models": None},
    {"models": ["*"]},
    {"max_budget": None},
    {"max_budget": 6},
    {"budget_duration": None, "max_budget": 6},
    {"budget_duration": "1h"},
    {"budget_limits": None},
    {"temp_budget_increase": 1, "temp_budget_expiry": "2030-01-01"},
    {"rpm_limit": None},
    {"rpm_limit": 11},
    {"model_rpm_limit": None},
    {"duration": None},
    {"duration": "11d"},
    {"tags": []},
    {"tags": None},
    {"blocked": False},
    {"team_id": None},
    {"user_id": None},
    {"user_id": "admin"},
    {"budget_id": None},
]


async def test_a_key_cannot_widen_itself(api: Api) -> None:
    world = await World(api).build()
    made = await world.make("narrow", user_id="ivan", team_id="t", **NARROW)
    before = (await world.get("master", "/key/info", key=made["token"])).json()
    for asked in WIDER:
        answer = await world.post("narrow", "/key/update", key=made["token"], **asked)
        error = answer.json().get("error", {})
        assert (answer.status_code, error.get("code")) == (403, "field_not_allowed"), asked
        assert error["param"] in asked
    assert (await world.get("master", "/key/info", key=made["token"])).json() == before


async def test_a_narrow_key_does_not_learn_the_secret_of_a_wide_one(api: Api) -> None:
    world = await World(api).build()
    wide = await world.make("wide", user_id="ivan", team_id="t", models=["gpt"], max_budget=100, tags=["red"])
    in_no_team = await world.make("in no team", user_id="ivan", models=["gpt"], max_budget=1, rpm_limit=1, tags=["red"])
    narrower = await world.make("narrower", user_id="ivan", team_id="t", tags=["red"], models=["gpt"], max_budget=1)
    free = hash_key(world.keys["ivan"])
    for param, other, fields in (
        ("key", free, {"models": ["gpt"]}),
        ("key", wide["token"], {"max_budget": 5}),
        ("key", wide["token"], {"rpm_limit": 1}),
        ("key", wide["token"], {"tags": ["blue"]}),
        ("duration", wide["token"], {"duration": "1d"}),
    ):
        own = await world.make(str(fields), user_id="ivan", team_id="t", **fields)
        assert await world.refused(str(fields), "/key/regenerate", 403, param, key=other) == "field_not_allowed"
        await world.ok(str(fields), "/key/regenerate", key=own["token"])
    await world.make("five", user_id="ivan", team_id="t", max_budget=5)
    assert await world.refused("five", "/key/regenerate", 403, "key", key=in_no_team["token"]) == "field_not_allowed"
    await world.ok("five", "/key/regenerate", key=narrower["token"])


async def test_a_key_regenerates_itself_whatever_it_has(api: Api) -> None:
    world = await World(api).build()
    await api.done("/budget/new", budget_id="b", max_budget=3, rpm_limit=2)
    await world.make("self", user_id="ivan", team_id="t", budget_id="b", **NARROW | {"temp_budget_increase": 1,
                     "temp_budget_expiry": "2030-01-01"})  # fmt: skip
    api.minted.clear()
    new = await world.ok("self", "/key/regenerate", key=world.keys["self"], grace_period="1h")
    assert (await api.keys.lookup(new["key"])).budgets == (await api.keys.lookup(world.keys["self"])).budgets


async def test_more_than_stands_above_is_refused_and_named(api: Api) -> None:
    world = await World(api).build()
    await api.done("/user/update", user_id="ivan", models=["gpt", "claude/*"], max_budget=10, rpm_limit=100)
    await api.done("/team/update", team_id="t", models=["gpt"], tpm_limit=500, model_rpm_limit={"gpt": 7})
    for param, body in (
        ("models", {"models": ["other"]}),
        ("max_budget", {"max_budget": 11}),
        ("rpm_limit", {"rpm_limit": 101}),
        ("models", {"models": ["claude/x"], "team_id": "t"}),
        ("tpm_limit", {"tpm_limit": 501, "team_id": "t"}),
        ("model_rpm_limit", {"model_rpm_limit": {"gpt": 8}, "team_id": "t"}),
    ):
        assert await world.refused("ivan", "/key/generate", 403, param, **body) == "field_not_allowed"
    await world.ok("ivan", "/key/generate", models=["claude/x"], max_budget=10, rpm_limit=100)


async def test_a_team_admin_has_the_team_and_no_more(api: Api) -> None:
    world = await World(api).build()
    await api.done("/team/update", team_id="t", max_budget=10, rpm_limit=100)
    service = await world.ok("tina", "/key/generate", team_id="t", user_id=None)
    assert (service["user_id"], service["team_id"]) == (None, "t")
    assert await world.refused("tina", "/key/generate", 403, "user_id", team_id="t", user_id="ivan")
    assert await world.refused("tina", "/key/generate", 403, "user_id", user_id=None)
    for field, value in (("max_budget", 100), ("rpm_limit", None), ("models", ["a"]), ("blocked", False),
                         ("organization_id", "p"), ("budget_id", None)):  # fmt: skip
        code = await world.refused("tina", "/team/update", 403, field, team_id="t", **{field: value})
        assert code == "field_not_allowed"
    assert (await world.ok("tina", "/team/update", team_id="t", team_alias="blue"))["team_alias"] == "blue"
    added = await world.ok("tina", "/team/member_add", team_id="t", member={"user_id": "new"}, max_budget_in_team=5)
    assert added["team_memberships"][0]["max_budget"] == 5
    body = {"team_id": "t", "user_id": "new"}
    assert await world.refused("tina", "/team/member_update", 403, "max_budget", **body, max_budget=11)
    assert await world.refused("tina", "/team/member_update", 403, "rpm_limit", **body, rpm_limit=101)
    assert await world.refused("tina", "/team/member_update", 403, "budget_id", **body, budget_id="b")
    own = {"team_id": "t", "user_id": "tina"}
    assert await world.refused("tina", "/team/member_update", 403, "max_budget", **own, max_budget=1)
    await world.ok("tina", "/team/member_update", **body, role="admin")
    key = hash_key(world.keys["in t"])
    await world.ok("tina", "/key/block", key=key)
    await world.ok("tina", "/key/unblock", key=key)
    ivans = await world.ok("ivan", "/key/generate", team_id="t")
    assert await world.refused("tina", "/key/regenerate", 403, "key", key=ivans["token"])
    assert (await world.ok("tina", "/team/member_delete", team_id="t", user_id="ivan"))["deleted_keys"] == [
        ivans["token"]
    ]
    with pytest.raises(AuthenticationError):
        await api.keys.lookup(ivans["key"])


async def test_a_blocked_key_is_not_unblocked_by_whose_it_is(api: Api) -> None:
    world = await World(api).build()
    mine = await world.ok("tina", "/key/generate")
    await api.done("/key/block", key=mine["token"])
    assert await world.refused("tina", "/key/unblock", 404, "key", key=mine["token"])
    assert await world.refused("tina", "/key/update", 403, "blocked", key=mine["token"], blocked=False)
    new = await world.ok("tina", "/key/regenerate", key=mine["token"])
    assert new["blocked"] is True


async def test_an_organization_admin_has_the_organization_and_no_more(api: Api) -> None:
    world = await World(api).build()
    await api.done("/organization/update", organization_id="o", max_budget=100, models=["gpt"])
    made = await world.ok("olga", "/team/new", team_id="new", max_budget=100, models=["gpt"])
    assert made["organization_id"] == "o"
    assert await world.refused("olga", "/team/new", 404, "organization_id", organization_id="p")
    assert await world.refused("olga", "/team/new", 403, "max_budget", max_budget=101)
    assert await world.refused("olga", "/team/new", 403, "models", models=["claude"])
    assert await world.refused("olga", "/team/new", 403, "budget_id", budget_id="b")
    assert await world.refused("olga", "/team/update", 403, "organization_id", team_id="new", organization_id=None)
    assert await world.refused("olga", "/team/update", 403, "max_budget", team_id="t", max_budget=101)
    await world.ok("olga", "/team/update", team_id="t", max_budget=7)
    await world.ok("olga", "/team/block", team_id="t")
    assert (await world.get("in t", "/key/info")).json()["error"]["code"] == "team_blocked"
    await world.ok("olga", "/team/unblock", team_id="t")
    shown = (await world.get("olga", "/organization/info", organization_id="o")).json()
    assert {team["team_id"] for team in shown["teams"]} == {"t", "u", "new"}
    assert shown["members"] == [{"user_id": "olga", "user_role": "org_admin"}]


async def test_any_key_learns_about_itself(api: Api) -> None:
    world = await World(api).build()
    for caller in ("nobody", "in t", "vera"):
        shown = (await world.get(caller, "/key/info")).json()
        assert shown["info"]["key_alias"] == caller
    assert (await world.get("nobody", "/key/info", key=hash_key(world.keys["in t"]))).status_code == 404
    assert (await world.get("master", "/key/info")).status_code == 400
    assert (await world.get("ivan", "/user/info")).json()["user_id"] == "ivan"
    assert (await world.get("ivan", "/user/info")).json()["teams"] == [{"team_id": "t", "role": "user"}]
