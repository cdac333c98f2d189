"""`/spend/*` on both databases: rows a page at a time, exact sums per key."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
import pytest

from sidecar.types import SpendRecord, Usage
from tests.admin.conftest import Api

pytestmark = pytest.mark.anyio


def record(number: int, key_hash: str, cost_nano: int, **values: Any) -> SpendRecord:
    fields: dict[str, Any] = {
        "exchange_id": f"0197{number:04x}-0000-7000-8000-000000000000",
        "attempt": 1,
        "revision": 0,
        "at": 1_800_000_000.0 + number,
        "key_hash": key_hash,
        "status": "settled",
        "outcome": "ok",
        "cost_nano": cost_nano,
        "group": "claude",
        "model": "claude-sonnet-4-5",
        "provider": "anthropic",
        "request_id": f"r{number}",
        "usage": Usage(input=10, cached_input=5, output=7),
        "http_status": 200,
    }
    return SpendRecord(**(fields | values))


def exact(answer: Any) -> Any:
    """JSON with numbers as they stand."""
    return msgspec.json.Decoder(float_hook=Decimal).decode(answer.content)


async def test_rows_are_paged_by_cursor_and_filtered(api: Api) -> None:
    one, two = [(await api.mint())["key"] for _ in range(2)]
    first, second = [(await api.get("/key/info", key=key)).json()["key"] for key in (one, two)]
    rows = [record(n, first if n % 2 == 0 else second, n + 1) for n in range(10)]
    await api.ledger.insert(rows)
    ids = [row.exchange_id for row in reversed(rows)]
    seen, cursor, pages = [], None, 0
    while True:
        answer = await api.get("/spend/logs", limit=3, **({"cursor": cursor} if cursor else {}))
        seen += [row["exchange_id"] for row in answer.json()["data"]]
        cursor, pages = answer.json()["next_cursor"], pages + 1
        if cursor is None:
            break
    assert (seen, pages) == (ids, 4)
    for query, expected in [
        ({"key": one}, ids[1::2]),
        ({"key": second}, ids[0::2]),
        ({"exchange_id": ids[4]}, [ids[4]]),
        ({"request_id": "r7"}, [ids[2]]),
        ({"since": "1800000008"}, ids[:2]),
        ({"until": "2027-01-15T08:00:02Z"}, ids[-2:]),
        ({"since": "2027-01-15T08:00:03", "until": "1800000005"}, ids[5:7]),
        ({"key": "master"}, []),
    ]:
        answer = await api.get("/spend/logs", **query)
        assert [row["exchange_id"] for row in answer.json()["data"]] == expected, query
        assert answer.json()["next_cursor"] is None


async def test_a_row_shows_what_was_used_and_what_it_cost(api: Api) -> None:
    made = await api.mint(key_alias="ci")
    await api.ledger.insert([record(1, made["token"], 123_456_789_012_345_678, key_alias="ci", is_stream=True)])
    (row,) = exact(await api.get("/spend/logs"))["data"]
    assert row["spend"] == Decimal("123456789.012345678")
    assert row["usage"] == {"input": 10, "cached_input": 5, "output": 7}
    assert (row["prompt_tokens"], row["completion_tokens"], row["total_tokens"]) == (15, 7, 22)
    assert (row["token"], row["key_alias"], row["stream"]) == (made["token"], "ci", True)
    assert row["at"] == "2027-01-15T08:00:01.000+00:00"


async def test_unknown_usage_is_null_not_zero(api: Api) -> None:
    await api.ledger.insert([record(1, "master", 5, usage=Usage(), status="unknown")])
    (row,) = (await api.get("/spend/logs", key="master")).json()["data"]
    assert (row["prompt_tokens"], row["usage"], row["status"]) == (None, {}, "unknown")


async def test_a_keys_spend_is_the_exact_sum_of_its_rows(api: Api) -> None:
    one, two = await api.mint(key_alias="one", max_budget=1), await api.mint()
    await api.ledger.insert(
        [
            record(1, one["token"], 1),
            record(2, one["token"], 10**15),
            record(3, one["token"], 7),
            record(3, one["token"], -3, revision=1),
            record(4, two["token"], 5),
            record(5, "d" * 64, 9),
        ]
    )
    totals = exact(await api.get("/spend/keys"))["data"]
    assert [(row["token"], row["spend"], row["requests"]) for row in totals] == [
        (one["token"], Decimal("1000000.000000005"), 3),
        ("d" * 64, Decimal("0.000000009"), 1),
        (two["token"], Decimal("0.000000005"), 1),
    ]
    assert [(row["key_alias"], row["key_name"]) for row in totals] == [
        ("one", one["key_name"]),
        (None, None),
        (None, two["key_name"]),
    ]
    info = exact(await api.get("/key/info", key=one["token"]))["info"]
    listed = {key["token"]: key["spend"] for key in exact(await api.get("/key/list"))["keys"]}
    assert info["spend"] == listed[one["token"]] == Decimal("1000000.000000005")
    assert listed[two["token"]] == Decimal("0.000000005")
    since = exact(await api.get("/spend/keys", since="1800000004", limit=1))["data"]
    assert [(row["token"], row["requests"]) for row in since] == [("d" * 64, 1)]


async def test_rows_are_filtered_by_what_they_say(api: Api) -> None:
    rows = [
        record(1, "a" * 64, 1, status="unknown", outcome="error", team_id="red", tags=("batch",)),
        record(2, "b" * 64, 2, user_id="u1", end_user_id="e1", organization_id="o1", group="gpt", model="gpt-4o"),
        record(3, "b" * 64, 3, provider="openai", deployment_id="d1"),
    ]
    await api.ledger.insert(rows)
    for number, query in [
        (1, {"status": "unknown"}), (1, {"outcome": "error"}), (1, {"team_id": "red"}), (1, {"tag": "batch"}),
        (2, {"user_id": "u1"}), (2, {"end_user_id": "e1"}), (2, {"organization_id": "o1"}), (2, {"model_group": "gpt"}),
        (2, {"model": "gpt-4o"}), (3, {"provider": "openai"}), (3, {"deployment_id": "d1"}),
    ]:  # fmt: skip
        found = (await api.get("/spend/logs", **query)).json()["data"]
        assert [row["exchange_id"] for row in found] == [rows[number - 1].exchange_id], query
    assert (await api.get("/spend/logs", status="unknown", team_id="blue")).json()["data"] == []
    assert (await api.get("/spend/logs", status="lost")).status_code == 400


async def test_an_unknown_cost_is_resolved_once_and_noted(api: Api) -> None:
    await api.ledger.insert([record(1, "a" * 64, 5_000, status="unknown", outcome="incomplete")])
    exchange = record(1, "", 0).exchange_id
    done = exact(await api.post("/spend/resolve", {"exchange_id": exchange, "cost": "0.000002"}))["data"]
    assert [(row["revision"], row["status"], row["spend"]) for row in done] == [
        (1, "unknown", Decimal("-0.000005")), (2, "settled", Decimal("0.000002")),
    ]  # fmt: skip
    assert await api.ledger.sum_all() == 2_000
    again = await api.post("/spend/resolve", {"exchange_id": exchange, "cost": 1})
    assert (again.status_code, again.json()["error"]["code"]) == (404, "not_found")
    (event,) = (await api.get("/audit", kind="spend")).json()["events"]
    assert (event["action"], event["subject_id"]) == ("resolve", exchange)
    for cost in (-1, None, "many"):
        assert (await api.post("/spend/resolve", {"exchange_id": exchange, "cost": cost})).status_code == 400
    key = (await api.mint())["key"]
    assert (await api.call("POST", "/spend/resolve", key, json={})).status_code == 403


async def test_of_several_unknown_attempts_one_has_to_be_named(api: Api) -> None:
    await api.ledger.insert([record(1, "a" * 64, 5, status="unknown", attempt=number) for number in (1, 2)])
    exchange = record(1, "", 0).exchange_id
    assert (await api.post("/spend/resolve", {"exchange_id": exchange, "cost": 0})).status_code == 409
    await api.done("/spend/resolve", exchange_id=exchange, cost=0, attempt=2)
    assert await api.ledger.sum_all() == 5
