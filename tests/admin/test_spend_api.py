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
