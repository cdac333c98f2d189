"""`/key/*` on both databases: each endpoint, what it refuses, and that a key is shown once only."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from typing import Any

import pytest

from sidecar.errors import AuthenticationError, UnavailableError
from sidecar.identity.keys import hash_key
from sidecar.types import Budget
from tests.admin.conftest import MASTER, Api

pytestmark = pytest.mark.anyio

PATHS = [
    ("POST", "/key/generate"),
    ("POST", "/key/update"),
    ("POST", "/key/delete"),
    ("POST", "/key/block"),
    ("POST", "/key/unblock"),
    ("GET", "/key/info"),
    ("GET", "/key/list"),
    ("GET", "/spend/logs"),
    ("GET", "/spend/keys"),
]


def error_of(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in answer.text
    return error


async def test_a_generated_key_works_and_is_described(api: Api) -> None:
    made = await api.mint(
        models=["gpt-4o", "claude/*"],
        max_budget=0.1,
        budget_duration="30d",
        rpm_limit=60,
        tpm_limit=10_000,
        max_parallel_requests=5,
        duration="30d",
        key_alias="ci",
        metadata={"team": "blue", "n": [1, 2.5, None]},
        user_id="u",
        team_id="t",
        organization_id="o",
    )
    assert re.fullmatch(r"sk-[A-Za-z0-9_-]{43}", made["key"])
    assert made["token"] == made["token_id"] == hash_key(made["key"])
    assert made["key_name"] == f"sk-...{made['key'][-4:]}"
    assert made["expires"] == "2027-02-14T08:00:00.000+00:00"
    assert made["created_at"] == made["updated_at"] == "2027-01-15T08:00:00.000+00:00"
    identity = await api.keys.lookup(made["key"])
    assert identity.models == ("gpt-4o", "claude/*")
    assert identity.budgets == (Budget(100_000_000, "30d", api.clock.now),)
    assert identity.limits.rpm == 60
    assert identity.expires_at == api.clock.now + 30 * 86_400
    assert identity.metadata == {"team": "blue", "n": [1, 2.5, None]}
    assert api.seeds.identities == [identity]

    info = (await api.get("/key/info", key=made["key"])).json()
    assert info == {"key": made["token"], "info": {name: value for name, value in made.items() if name != "key"}}
    assert (await api.get("/key/info", key=made["token"])).json() == info


async def test_an_empty_body_object_makes_an_unlimited_key(api: Api) -> None:
    made = await api.mint()
    identity = await api.keys.lookup(made["key"])
    assert (identity.models, identity.budgets, identity.limits.is_empty, identity.expires_at) == ((), (), True, None)
    assert api.seeds.identities == []
    assert made["spend"] == 0


async def test_budgets_are_exact_to_the_nano_dollar(api: Api) -> None:
    made = await api.mint(max_budget="1234.000000001")
    assert (await api.keys.lookup(made["key"])).budgets[0].max_nano == 1_234_000_000_001
    assert '"max_budget":1234.000000001,' in (await api.get("/key/info", key=made["token"])).text


async def test_update_changes_only_what_is_named_and_null_takes_away(api: Api) -> None:
    made = await api.mint(max_budget=1, rpm_limit=5, models=["a"], duration="1h", metadata={"x": 1}, key_alias="old")
    await api.keys.lookup(made["key"])
    api.clock.now += 0.5
    answer = await api.post("/key/update", {"key": made["key"], "rpm_limit": 7, "key_alias": "new"})
    assert answer.status_code == 200
    changed = {"rpm_limit": 7, "key_alias": "new", "updated_at": "2027-01-15T08:00:00.500+00:00"}
    assert answer.json() == {k: v for k, v in made.items() if k != "key"} | changed | {"is_effective_everywhere": True}
    assert (await api.keys.lookup(made["key"])).limits.rpm == 7
    cleared = {
        "rpm_limit": None,
        "max_budget": None,
        "models": None,
        "duration": None,
        "metadata": None,
        "key_alias": None,
    }
    after = (await api.post("/key/update", {"key": made["token"], **cleared})).json()
    assert (after["rpm_limit"], after["max_budget"], after["models"], after["expires"]) == (None, None, [], None)
    assert (after["metadata"], after["key_alias"]) == ({}, None)
    identity = await api.keys.lookup(made["key"])
    assert (identity.budgets, identity.expires_at) == ((), None)


async def test_a_budget_keeps_its_anchor_until_its_duration_changes(api: Api) -> None:
    made = await api.mint(max_budget=1, budget_duration="30d")
    created_at = api.clock.now
    api.clock.now += 100.25
    await api.post("/key/update", {"key": made["token"], "max_budget": 2})
    assert (await api.keys.lookup(made["key"])).budgets == (Budget(2_000_000_000, "30d", created_at),)
    await api.post("/key/update", {"key": made["token"], "budget_duration": "12h"})
    assert (await api.keys.lookup(made["key"])).budgets == (Budget(2_000_000_000, "12h", created_at + 100.25),)
    assert [identity.budgets[0].max_nano for identity in api.seeds.identities] == [10**9, 2 * 10**9, 2 * 10**9]


async def test_blocking_holds_at_once_and_is_undone(api: Api) -> None:
    made = await api.mint()
    await api.keys.lookup(made["key"])
    assert (await api.post("/key/block", {"key": made["key"]})).json()["blocked"] is True
    assert api.keys.cached(made["key"]) is None
    with pytest.raises(AuthenticationError, match="blocked"):
        await api.keys.lookup(made["key"])
    assert (await api.post("/key/unblock", {"key": made["token"]})).json()["blocked"] is False
    await api.keys.lookup(made["key"])


async def test_deleting_takes_keys_hashes_and_aliases_all_or_none(api: Api) -> None:
    made = [await api.mint(key_alias=f"k{n}") for n in range(4)]
    for one in made:
        await api.keys.lookup(one["key"])
    error = error_of(await api.post("/key/delete", {"keys": [made[0]["key"], "0" * 64]}), 404)
    assert (error["param"], error["code"]) == ("keys", "key_not_found")
    assert "keys[1]" in error["message"]
    assert (await api.get("/key/list")).json()["total_count"] == 4
    body = {"keys": [made[0]["key"], made[1]["token"], made[1]["key"]], "key_aliases": ["k2", "k1"]}
    answer = await api.post("/key/delete", body)
    assert answer.json()["deleted_keys"] == sorted(one["token"] for one in made[:3])
    for one in made[:3]:
        with pytest.raises(AuthenticationError):
            await api.keys.lookup(one["key"])
    assert [key["token"] for key in (await api.get("/key/list")).json()["keys"]] == [made[3]["token"]]
    assert error_of(await api.post("/key/delete", {}), 400)["param"] == "keys"


async def test_lists_are_paged_newest_first_and_filtered(api: Api) -> None:
    made = []
    for n in range(7):
        made.append(await api.mint(key_alias=f"k{n}", team_id="even" if n % 2 == 0 else "odd", user_id=f"u{n}"))
        api.clock.now += 1
    tokens = [one["token"] for one in reversed(made)]
    pages = [
        (await api.get("/key/list", page=page, size=3, return_full_object="false")).json() for page in (1, 2, 3, 4)
    ]
    assert [page["keys"] for page in pages] == [tokens[:3], tokens[3:6], tokens[6:], []]
    assert pages[0] | {"keys": []} == {"keys": [], "total_count": 7, "current_page": 1, "total_pages": 3}
    await api.post("/key/block", {"key": made[3]["key"]})
    for query, expected in [
        ({"team_id": "odd"}, [5, 3, 1]),
        ({"user_id": "u2"}, [2]),
        ({"key_alias": "k4"}, [4]),
        ({"key": made[6]["key"]}, [6]),
        ({"blocked": "true"}, [3]),
        ({"team_id": "odd", "blocked": "false"}, [5, 1]),
        ({"organization_id": "none"}, []),
    ]:
        found = (await api.get("/key/list", return_full_object="false", **query)).json()
        assert found["keys"] == [made[n]["token"] for n in expected], query
    full = (await api.get("/key/list", key_alias="k0")).json()["keys"]
    assert full == [{name: value for name, value in made[0].items() if name != "key"}]


async def test_an_alias_is_unique_also_among_callers_at_the_same_time(api: Api) -> None:
    answers = await asyncio.gather(*(api.post("/key/generate", {"key_alias": "one"}) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409]
    other = await api.mint(key_alias="two")
    error = error_of(await api.post("/key/update", {"key": other["key"], "key_alias": "one"}), 409)
    assert (error["param"], error["code"]) == ("key_alias", "key_alias_exists")
    await asyncio.gather(*(api.mint() for _ in range(3)))  # no alias is no conflict


async def test_an_unknown_key_is_404(api: Api) -> None:
    for answer in (
        await api.get("/key/info", key="0" * 64),
        await api.post("/key/update", {"key": "0" * 64, "rpm_limit": 1}),
        await api.post("/key/block", {"key": "sk-" + "a" * 43}),
        await api.post("/key/unblock", {"key": "0" * 64}),
    ):
        assert error_of(answer, 404)["param"] == "key"


async def test_a_key_without_a_role_manages_nothing(api: Api) -> None:
    made = await api.mint()
    api.minted.clear()
    for method, path in PATHS:
        await judged(api, method, path, made["key"])


async def judged(api: Api, method: str, path: str, key: str) -> None:
    assert error_of(await api.call(method, path, None), 401)["code"] == "missing_api_key"
    for wrong in ("x", MASTER + "x", MASTER[:-1], "sk-" + "a" * 43):
        answer = await api.call(method, path, wrong)
        assert error_of(answer, 401)["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    for header in (f"Basic {MASTER}", MASTER, "Bearer", "Bearer ", f"Bearer {MASTER} x"):
        error_of(await api.call(method, path, None, headers={"authorization": header}), 401)
    if path != "/key/info":
        assert error_of(await api.call(method, path, key), 403)["code"] == "role_not_allowed"


async def test_a_body_without_end_is_refused(api: Api) -> None:
    async def endless() -> Any:
        for _ in range(100):
            yield b" " * 100_000

    error_of(await api.call("POST", "/key/generate", content=endless()), 413)


async def test_a_bad_credential_is_judged_before_the_body(api: Api) -> None:
    async def never() -> Any:
        raise AssertionError("the body was read")
        yield b""

    error_of(await api.call("POST", "/key/generate", "sk-" + "a" * 43, content=never()), 401)


QUERIES: list[tuple[str, str, str | None]] = [
    ("/key/list", "page=0", "page"),
    ("/key/list", "page=x", "page"),
    ("/key/list", "size=1001", "size"),
    ("/key/list", "size=-1", "size"),
    ("/key/list", "blocked=maybe", "blocked"),
    ("/key/list", "sort=1", "sort"),
    ("/key/list", "key=short", "key"),
    ("/key/list", "team_id=%00", "team_id"),
    ("/key/list", "team_id=%ff", None),
    ("/key/list", "page=1&page=2", None),
    ("/key/list", "page", None),
    ("/key/list", "a=" + "x" * 9000, None),
    ("/key/info", "", "key"),  # the master key has no row
    ("/key/info", "key=", "key"),
    ("/spend/logs", "since=soon", "since"),
    ("/spend/logs", "limit=0", "limit"),
    ("/spend/logs", "limit=100000", "limit"),
    ("/spend/logs", "cursor=%27", "cursor"),
    ("/spend/logs", "until=1e400", "until"),
    ("/spend/logs", "since=nan", "since"),
    ("/spend/logs", "user=1", "user"),
    ("/spend/keys", "since=-1", "since"),
]


async def test_bad_queries_are_refused_and_named(api: Api) -> None:
    for path, query, param in QUERIES:
        error = error_of(await api.call("GET", f"{path}?{query}"), 400)
        assert error["param"] == param, query


async def test_a_store_that_cannot_seed_does_not_lose_the_new_key(api: Api) -> None:
    api.seeds.failure = UnavailableError("the limit store does not answer")
    made = await api.mint(max_budget=1)
    assert (await api.keys.lookup(made["key"])).budgets
    error_of(await api.post("/key/update", {"key": made["key"], "max_budget": 2}), 503)


async def test_a_whole_key_is_never_logged(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made = await api.mint(key_alias="logged")
    await api.post("/key/update", {"key": made["key"], "rpm_limit": 1})
    await api.post("/key/update", {"key": made["key"], "rpm_limit": -1})
    await api.post("/key/generate", {"key_alias": "logged"})
    await api.get("/key/list")
    await api.post("/key/delete", {"keys": [made["key"]]})
    await api.post("/key/block", {"key": made["key"]})
    logged = "\n".join(json.dumps(record.__dict__, default=str) for record in caplog.records if record.name != "httpx2")
    assert made["key"] not in logged
    assert MASTER not in logged
