"""`/user`, `/team`, `/organization`, `/customer`, `/budget`, `/tag`: the life of one of each, on both databases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from sidecar.errors import AuthenticationError, PermissionDeniedError
from sidecar.identity.callers import Callers
from sidecar.types import NANO, Budget, Limits
from tests.admin.conftest import Api
from tests.admin.test_keys_api import error_of
from tests.admin.test_spend_api import exact, record

pytestmark = pytest.mark.anyio

POLICY: dict[str, Any] = {
    "models": ["gpt", "claude/*"],
    "max_budget": 10.5,
    "budget_duration": "30d",
    "budget_limits": [{"budget_duration": "1d", "max_budget": 1}],
    "soft_budget": 8,
    "temp_budget_increase": 2,
    "temp_budget_expiry": "2027-02-01T00:00:00Z",
    "rpm_limit": 60,
    "tpm_limit": 1000,
    "max_parallel_requests": 5,
    "model_rpm_limit": {"gpt": 6},
    "model_tpm_limit": {"gpt": 100, "claude/x": 1},
    "model_max_parallel_requests": {},
    "metadata": {"cost_center": 7},
}


@dataclass(frozen=True)
class Family:
    path: str
    id_field: str
    plural: str
    info: str
    ids: str
    more: dict[str, Any]


FAMILIES = [
    Family("/user", "user_id", "users", "user_id", "user_ids",
           {"user_alias": "Ann", "user_email": "a@b.c", "user_role": "internal_user_viewer"}),
    Family("/team", "team_id", "teams", "team_id", "team_ids", {"team_alias": "Blue"}),
    Family("/organization", "organization_id", "organizations", "organization_id", "organization_ids",
           {"organization_alias": "Org"}),
    Family("/customer", "user_id", "customers", "end_user_id", "user_ids", {"alias": "C"}),
    Family("/end_user", "user_id", "customers", "end_user_id", "user_ids", {"alias": "C"}),
    Family("/tag", "name", "tags", "name", "name", {"description": "red things"}),
    Family("/budget", "budget_id", "budgets", "budget_id", "id", {}),
]  # fmt: skip


def info_of(family: Family, answer: Any) -> dict[str, Any]:
    shown: dict[str, Any] = answer.json()
    return shown.get(f"{family.path[1:]}_info", shown)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.path)
async def test_the_life_of_one(api: Api, family: Family) -> None:
    own = {"auto_create_key": False} if family.path == "/user" else {}
    made = await api.done(f"{family.path}/new", **{family.id_field: "it"}, **POLICY, **family.more, **own)
    expiry = {"temp_budget_expiry": "2027-02-01T00:00:00.000+00:00"}
    wanted = POLICY | family.more | expiry | {family.id_field: "it"}
    assert {name: made[name] for name in wanted} == wanted
    assert made["created_at"] == made["updated_at"] == "2027-01-15T08:00:00.000+00:00"
    shown = info_of(family, await api.get(f"{family.path}/info", **{family.info: "it"}))
    assert {name: shown[name] for name in wanted} == wanted
    assert (
        error_of(await api.post(f"{family.path}/new", {family.id_field: "it", **own}), 409)["param"] == family.id_field
    )

    api.clock.now += 10
    changed = await api.done(
        f"{family.path}/update", **{family.id_field: "it"}, rpm_limit=7, max_budget=None, models=None,
        model_tpm_limit={"gpt": 5}, metadata=None, temp_budget_increase=None,
    )  # fmt: skip
    now = {
        "rpm_limit": 7, "max_budget": None, "models": [], "model_tpm_limit": {"gpt": 5}, "model_rpm_limit": {"gpt": 6},
        "metadata": {}, "temp_budget_increase": None, "updated_at": "2027-01-15T08:00:10.000+00:00",
    }  # fmt: skip
    assert {name: changed[name] for name in wanted | now} == wanted | now
    cleared = await api.done(f"{family.path}/update", **{family.id_field: "it"}, **dict.fromkeys(family.more))
    assert {name: cleared[name] for name in family.more} == dict.fromkeys(family.more)

    for name in ("b", "c"):
        await api.done(f"{family.path}/new", **{family.id_field: name, **own})
        api.clock.now += 1
    listed = (await api.get(f"{family.path}/list", page=2, size=2)).json()
    assert (listed["total_count"], listed["current_page"], listed["total_pages"]) == (3, 2, 2)
    assert [row[family.id_field] for row in listed[family.plural]] == ["it"]
    found = (await api.get(f"{family.path}/list", **{family.id_field: "b"})).json()
    assert [row[family.id_field] for row in found[family.plural]] == ["b"]

    for path, body, param in (
        ("update", {family.id_field: "none", "rpm_limit": 1}, family.id_field),
        ("delete", {family.ids: "none" if family.ids in ("name", "id") else ["it", "none"]}, family.ids),
    ):
        assert error_of(await api.post(f"{family.path}/{path}", body), 404)["param"] == param
    assert error_of(await api.get(f"{family.path}/info", **{family.info: "none"}), 404)["param"] == family.info
    await api.done(f"{family.path}/delete", **{family.ids: "it" if family.ids in ("name", "id") else ["it"]})
    error_of(await api.get(f"{family.path}/info", **{family.info: "it"}), 404)
    assert (await api.get(f"{family.path}/list")).json()["total_count"] == 2


async def test_ids_are_made_where_none_is_given(api: Api) -> None:
    for path, field in (
        ("/team/new", "team_id"),
        ("/organization/new", "organization_id"),
        ("/budget/new", "budget_id"),
    ):
        names = {(await api.done(path))[field] for _ in range(2)}
        assert len(names) == 2
        assert all(len(name) >= 32 for name in names)


async def test_a_new_user_has_a_key_unless_told_not_to(api: Api) -> None:
    made = await api.done("/user/new", user_id="ann")
    identity = await api.keys.lookup(made["key"])
    assert (identity.user_id, identity.role) == ("ann", "internal_user")
    assert made["token"] == identity.key_hash
    api.minted.append(made["key"])
    shown = (await api.get("/user/info", user_id="ann")).json()
    assert [key["token"] for key in shown["keys"]] == [made["token"]]
    assert "key" not in await api.done("/user/new", user_id="bob", auto_create_key=False)


async def test_everybody_above_a_key_counts_and_changes_hold_at_once(api: Api) -> None:
    await api.done("/organization/new", organization_id="o", tpm_limit=1)
    await api.done("/team/new", team_id="t", organization_id="o", max_budget=5, budget_duration="1mo")
    await api.done("/user/new", user_id="u", auto_create_key=False, models=["a"])
    await api.done("/team/member_add", team_id="t", member={"user_id": "u"}, max_parallel_requests=3)
    key = (await api.mint(team_id="t", user_id="u"))["key"]

    async def above() -> dict[str, Any]:
        return {principal.kind: principal for principal in (await api.keys.lookup(key)).principals}

    found = await above()
    assert found["organization"].limits == Limits(tpm=1)
    assert found["team"].budgets == (Budget(5 * NANO, "1mo", api.clock.now),)
    assert found["member"].limits == Limits(concurrency=3)
    assert found["user"].models == ("a",)
    await api.done("/organization/update", organization_id="o", tpm_limit=9)
    await api.done("/team/update", team_id="t", max_budget=6, temp_budget_increase=1, temp_budget_expiry=1_900_000_000)
    await api.done("/team/member_update", team_id="t", user_id="u", max_parallel_requests=4)
    await api.done("/user/update", user_id="u", models=["b"])
    found = await above()
    assert found["organization"].limits == Limits(tpm=9)
    assert found["team"].budgets[0].max_nano == 6 * NANO
    assert (found["team"].budgets[0].extra_nano, found["team"].budgets[0].extra_until_at) == (NANO, 1_900_000_000)
    assert found["member"].limits == Limits(concurrency=4)
    assert found["user"].models == ("b",)
    await api.done("/team/block", team_id="t")
    with pytest.raises(PermissionDeniedError, match="team"):
        await api.keys.lookup(key)
    await api.done("/team/unblock", team_id="t")
    api.clock.now += 1  # refusals are remembered that long
    await api.keys.lookup(key)


async def test_a_shared_budget_counts_for_whoever_names_it(api: Api) -> None:
    await api.done("/budget/new", budget_id="gold", max_budget=9, budget_duration="1d", rpm_limit=5)
    await api.done("/team/new", team_id="t", budget_id="gold")
    key = (await api.mint(team_id="t", budget_id="gold", rpm_limit=2))["key"]
    identity = await api.keys.lookup(key)
    assert (identity.limits.rpm, identity.budgets[0].max_nano) == (2, 9 * NANO)
    assert identity.principals[0].limits.rpm == 5
    api.seeds.identities.clear()
    await api.done("/budget/update", budget_id="gold", max_budget=8)
    assert (await api.keys.lookup(key)).budgets[0].max_nano == 8 * NANO
    assert len(api.seeds.identities) == 2, "both are seeded"
    error = error_of(await api.post("/budget/delete", {"id": "gold"}), 409)
    assert (error["code"], error["param"]) == ("budget_in_use", "id")
    for path, body in (
        ("/key/generate", {}),
        ("/team/update", {"team_id": "t"}),
        ("/user/new", {"user_id": "z"}),
        ("/team/member_add", {"team_id": "t", "member": {"user_id": "z"}}),
    ):
        assert error_of(await api.post(path, body | {"budget_id": "none"}), 404)["param"] == "budget_id"
    several = await api.post("/budget/info", {"budgets": ["gold"]})
    assert [budget["max_budget"] for budget in several.json()["budgets"]] == [8]
    assert error_of(await api.post("/budget/info", {"budgets": ["gold", "x"]}), 404)["param"] == "budgets"


async def test_what_is_deleted_takes_its_keys_and_members_along(api: Api) -> None:
    for team in ("t", "u"):
        await api.done("/team/new", team_id=team)
        await api.done("/team/member_add", team_id=team, member=[{"user_id": "ann"}, {"user_id": "bob"}])
    keys = {(t, u): (await api.mint(team_id=t, user_id=u))["key"] for t in ("t", "u") for u in ("ann", "bob")}
    await api.done("/user/new", user_id="ann", auto_create_key=False)
    for key in keys.values():
        await api.keys.lookup(key)
    gone = await api.done("/team/member_delete", team_id="t", user_id="bob")
    assert len(gone["deleted_keys"]) == 1
    await api.done("/team/delete", team_ids=["t"])
    await api.done("/user/delete", user_ids=["ann"])
    alive = []
    for name, key in keys.items():
        try:
            await api.keys.lookup(key)
            alive.append(name)
        except AuthenticationError:
            pass
    assert alive == [("u", "bob")]
    members = (await api.get("/team/info", team_id="u")).json()["team_info"]["members_with_roles"]
    assert members == [{"user_id": "bob", "role": "user"}]


async def test_an_organization_with_teams_stays(api: Api) -> None:
    await api.done("/organization/new", organization_id="o")
    await api.done("/team/new", team_id="t", organization_id="o")
    await api.done("/organization/member_add", organization_id="o", member={"user_id": "u", "role": "org_admin"})
    error = error_of(await api.post("/organization/delete", {"organization_ids": ["o"]}), 409)
    assert error["code"] == "organization_in_use"
    await api.done("/team/update", team_id="t", organization_id=None)
    answer = await api.call("DELETE", "/organization/delete", json={"organization_ids": ["o"]})
    assert answer.status_code == 200, answer.text
    assert error_of(await api.post("/team/update", {"team_id": "t", "organization_id": "o"}), 404)["param"] == (
        "organization_id"
    )


async def test_members_are_added_all_or_none(api: Api) -> None:
    await api.done("/team/new", team_id="t")
    await api.done("/team/member_add", team_id="t", member={"user_id": "a"})
    both = {"team_id": "t", "member": [{"user_id": "b"}, {"user_id": "a"}]}
    assert error_of(await api.post("/team/member_add", both), 409)["param"] == "member"
    members = (await api.get("/team/info", team_id="t")).json()["team_memberships"]
    assert [member["user_id"] for member in members] == ["a"]
    for path in ("/team/member_update", "/team/member_delete"):
        body = {"team_id": "t", "user_id": "b"}
        assert error_of(await api.post(path, body), 404)["code"] == "member_not_found"
        assert error_of(await api.post(path, body | {"team_id": "x"}), 404)["code"] == "team_not_found"
    await api.done("/organization/new", organization_id="o")
    for role in ("org_admin", "internal_user"):
        changed = {"organization_id": "o", "user_id": "a", "role": role}
        error_of(await api.post("/organization/member_update", changed), 404)
        await api.done("/organization/member_add", organization_id="o", member={"user_id": "a"})
        answer = await api.call("PATCH", "/organization/member_update", json=changed)
        assert answer.json() == {"organization_id": "o", "user_id": "a", "user_role": role}
        await api.done("/organization/member_delete", organization_id="o", user_id="a")


async def test_end_users_and_tags_are_blocked_and_limited(api: Api) -> None:
    callers = Callers(api.tree.principals, clock=api.clock)
    identity = await api.keys.lookup((await api.mint())["key"])
    await api.done("/customer/new", user_id="c", rpm_limit=3)
    await api.done("/tag/new", name="red", max_budget=2)
    found = await callers.of(identity, "c", ("red",))
    assert [(p.kind, p.limits.rpm, len(p.budgets)) for p in found.principals] == [("tag", None, 1), ("end_user", 3, 0)]
    blocked = await api.done("/customer/block", user_ids=["c"])
    assert [row["blocked"] for row in blocked["blocked_customers"]] == [True]
    callers.forget_all(0)
    with pytest.raises(PermissionDeniedError):
        await callers.of(identity, "c", ())
    await api.done("/customer/unblock", user_ids=["c"])
    assert error_of(await api.post("/customer/block", {"user_ids": ["c", "none"]}), 404)["param"] == "user_ids"
    assert (await api.get("/customer/info", end_user_id="c")).json()["blocked"] is False
    await callers.aclose()


async def test_what_each_spent_is_the_exact_sum(api: Api) -> None:
    await api.done("/team/new", team_id="t")
    await api.done("/user/new", user_id="u", auto_create_key=False)
    await api.done("/tag/new", name="red")
    await api.ledger.insert(
        [
            record(1, "a" * 64, 1, team_id="t", user_id="u", tags=("red",)),
            record(2, "b" * 64, 10**12, team_id="t", tags=("blue",)),
            record(3, "c" * 64, 5, user_id="u"),
        ]
    )
    assert '"spend":1000.000000001' in (await api.get("/team/info", team_id="t")).text
    assert '"spend":0.000000006' in (await api.get("/user/info", user_id="u")).text
    assert '"spend":0.000000001' in (await api.get("/tag/info", name="red")).text
    teams = exact(await api.get("/spend/teams"))["data"]
    assert [(row["team_id"], row["requests"]) for row in teams] == [("t", 2), (None, 1)]
    users = exact(await api.get("/spend/users"))["data"]
    assert [(row["user_id"], row["requests"]) for row in users] == [(None, 1), ("u", 2)]
