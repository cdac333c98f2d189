"""Regenerating, rotating, several windows, a temporary increase – and what the audit says of all of it."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.errors import AuthenticationError
from sidecar.types import NANO
from tests.admin.conftest import MASTER, Api
from tests.admin.test_keys_api import error_of
from tests.admin.test_spend_api import exact, record

pytestmark = pytest.mark.anyio


async def works(api: Api, key: str) -> bool:
    try:
        await api.keys.lookup(key)
    except AuthenticationError:
        return False
    return True


async def test_an_old_key_works_until_its_grace_period_ends_and_spends_as_the_same(api: Api) -> None:
    old = await api.mint(key_alias="ci", max_budget=5, models=["m"], metadata={"a": 1}, team_id="t", duration="30d")
    first = await api.keys.lookup(old["key"])
    await api.ledger.insert([record(1, first.key_hash, 7)])
    new = await api.done("/key/regenerate", key=old["key"], grace_period="1h")
    api.minted.append(new["key"])
    assert new["previous_token"] == old["token"]
    same = ("key_alias", "max_budget", "models", "metadata", "team_id", "spend_id", "expires")
    assert {name: new[name] for name in same} == {name: old[name] for name in same}
    one, two = await api.keys.lookup(old["key"]), await api.keys.lookup(new["key"])
    assert one.key_hash == two.key_hash == first.key_hash
    assert one.budgets == two.budgets == first.budgets
    assert exact(await api.get("/key/info", key=new["token"]))["info"]["spend"] * NANO == 7
    (row,) = exact(await api.get("/spend/keys"))["data"]
    assert (row["token"], row["key_alias"], row["key_name"]) == (old["token"], "ci", new["key_name"])
    assert len((await api.get("/spend/logs", key=new["token"])).json()["data"]) == 1
    previous = (await api.get("/key/info", key=old["token"])).json()["info"]
    assert previous["successor_token"] == new["token"]
    assert previous["expires"] == "2027-01-15T09:00:00.000+00:00"
    assert error_of(await api.post("/key/regenerate", {"key": old["token"]}), 409)["code"] == "key_superseded"
    api.clock.now += 3600
    assert (await works(api, old["key"]), await works(api, new["key"])) == (False, True)


async def test_what_is_done_to_the_new_key_is_done_to_the_old_one(api: Api) -> None:
    old = await api.mint(max_budget=5)
    new = await api.done("/key/regenerate", key=old["key"], grace_period="1d")
    third = await api.done("/key/regenerate", key=new["token"], grace_period="1d")
    await api.done("/key/update", key=third["token"], rpm_limit=3)
    for key in (old["key"], new["key"], third["key"]):
        assert (await api.keys.lookup(key)).limits.rpm == 3
    await api.done("/key/block", key=third["token"])
    assert [await works(api, key) for key in (old["key"], new["key"], third["key"])] == [False] * 3
    await api.done("/key/unblock", key=third["token"])
    await api.done("/key/block", key=old["token"])
    assert [await works(api, key) for key in (old["key"], new["key"], third["key"])] == [False, True, True]
    gone = await api.done("/key/delete", keys=[third["token"]])
    assert sorted(gone["deleted_keys"]) == sorted((old["token"], new["token"], third["token"]))
    assert (await api.get("/key/list")).json()["total_count"] == 0


async def test_without_a_grace_period_the_old_key_ends_at_once(api: Api) -> None:
    old = await api.mint(key_alias="x")
    await api.keys.lookup(old["key"])
    answer = await api.post(f"/key/{old['token']}/regenerate", {"duration": "10d"})
    assert answer.status_code == 200, answer.text
    new = answer.json()
    assert (await works(api, old["key"]), await works(api, new["key"])) == (False, True)
    assert new["expires"] == "2027-01-25T08:00:00.000+00:00"
    assert (await api.get("/key/list")).json()["total_count"] == 1
    assert error_of(await api.post("/key/regenerate", {"key": old["token"]}), 404)["param"] == "key"
    both = await api.post(f"/key/{new['token']}/regenerate", {"key": new["token"]})
    assert error_of(both, 400)["param"] == "key"
    assert error_of(await api.post("/key/short/regenerate", {}), 400)["param"] == "key"


async def test_of_many_who_regenerate_one_key_one_succeeds(api: Api) -> None:
    old = await api.mint()
    answers = await asyncio.gather(
        *(api.post("/key/regenerate", {"key": old["token"], "grace_period": "1h"}) for _ in range(6))
    )
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409, 409]


async def test_a_rotation_is_due_after_its_interval(api: Api) -> None:
    made = await api.mint(auto_rotate=True, rotation_interval="90d")
    assert made["key_rotation_at"] == "2027-04-15T08:00:00.000+00:00"
    api.clock.now += 86_400
    new = await api.done("/key/regenerate", key=made["token"])
    assert new["key_rotation_at"] == "2027-04-16T08:00:00.000+00:00"
    off = await api.done("/key/update", key=new["token"], auto_rotate=False)
    assert (off["auto_rotate"], off["rotation_interval"], off["key_rotation_at"]) == (False, None, None)
    assert error_of(await api.post("/key/update", {"key": new["token"], "auto_rotate": True}), 400)["param"] == (
        "rotation_interval"
    )


async def test_several_windows_and_a_temporary_increase(api: Api) -> None:
    windows = [{"budget_duration": "1d", "max_budget": 1}, {"budget_duration": "1w", "max_budget": "5.5"}]
    made = await api.mint(
        max_budget=20, budget_duration="1mo", budget_limits=windows,
        temp_budget_increase=3, temp_budget_expiry="2027-01-16T00:00:00Z", soft_budget=10,
    )  # fmt: skip
    budgets = (await api.keys.lookup(made["key"])).budgets
    assert [(b.duration, b.max_nano / NANO, b.extra_nano / NANO) for b in budgets] == [
        ("1mo", 20, 3), ("1d", 1, 3), ("1w", 5.5, 3)
    ]  # fmt: skip
    assert {budget.extra_until_at for budget in budgets} == {1_800_057_600}
    twice = {"budget_limits": [windows[0], windows[0]]}
    assert error_of(await api.post("/key/generate", twice), 400)["param"] == "budget_limits"
    alone = {"temp_budget_increase": 1}
    assert error_of(await api.post("/key/generate", alone), 400)["param"] == "temp_budget_expiry"
    await api.done("/key/update", key=made["token"], budget_limits=None, temp_budget_increase=None)
    (left,) = (await api.keys.lookup(made["key"])).budgets
    assert (left.duration, left.extra_nano) == ("1mo", 0)


async def test_limits_per_model_change_one_by_one(api: Api) -> None:
    made = await api.mint(model_rpm_limit={"a": 1, "b": 2}, model_tpm_limit={"a": 10})
    await api.done("/key/update", key=made["token"], model_rpm_limit={"b": 3})
    limits = (await api.keys.lookup(made["key"])).model_limits
    assert {name: (limit.rpm, limit.tpm) for name, limit in limits.items()} == {"a": (None, 10), "b": (3, None)}
    after = await api.done("/key/update", key=made["token"], model_rpm_limit=None)
    assert (after["model_rpm_limit"], after["model_tpm_limit"]) == ({}, {"a": 10})


async def test_every_write_is_audited_with_before_and_after_and_without_secrets(api: Api) -> None:
    made = await api.mint(metadata={"api_key": "hunter2", "note": "n"}, rpm_limit=1)
    api.clock.now += 10
    await api.done("/key/update", key=made["token"], rpm_limit=2, metadata={"deep": {"password": "hunter3"}})
    await api.done("/team/new", team_id="t")
    await api.done("/team/block", team_id="t")
    new = await api.done("/key/regenerate", key=made["token"], grace_period="1h")
    await api.done("/key/delete", keys=[new["token"]])
    answer = await api.get("/audit", size=100)
    assert not any(secret in answer.text for secret in ("hunter2", "hunter3", made["key"], new["key"], MASTER))
    events = answer.json()["events"]
    assert answer.json()["total_count"] == len(events) == 8
    assert {event["actor"] for event in events} == {"master"}
    update = next(e for e in events if (e["kind"], e["action"]) == ("key", "update"))
    assert (update["before"]["rpm_limit"], update["after"]["rpm_limit"]) == (1, 2)
    assert update["before"]["metadata"] == {"api_key": "***", "note": "n"}
    assert update["subject_id"] == made["token"]
    assert update["at"] == "2027-01-15T08:00:10.000+00:00"

    async def count(**query: str) -> int:
        return int((await api.get("/audit", **query)).json()["total_count"])

    assert await count(kind="team") == 2
    assert await count(kind="team", action="block") == 1
    assert await count(subject_id="t") == 2
    assert await count(actor="nobody") == 0
    assert await count(until="2027-01-15T08:00:10Z") == 1
    assert await count(since="2027-01-15T08:00:10Z") == 7
    page = (await api.get("/audit", page="2", size="3")).json()
    assert (page["events"], page["total_pages"]) == (events[3:6], 3)
