"""`GET /spend/report`: sums by whom and by what, exact, filtered and paged; and who may ask."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest

from tests.admin.conftest import Api
from tests.admin.test_spend_api import exact, record

pytestmark = pytest.mark.anyio
DAY = 86_400


async def report(api: Api, **query: Any) -> Any:
    answer = await api.get("/spend/report", **query)
    assert answer.status_code == 200, answer.text
    return exact(answer)


def lines(found: Any, *names: str) -> Sequence[Any]:
    return [tuple(row[name] for name in names) for row in found["data"]]


async def fill(api: Api) -> str:
    key: str = (await api.mint(key_alias="ci"))["token"]
    await api.ledger.insert(
        [
            record(1, key, 3 * 10**9, team_id="red", model="a"),
            record(2, key, 10**9, team_id="blue", model="b", status="estimated"),
            record(2, key, -1, revision=1, team_id="blue", model="b"),
            record(3, "other", 5 * 10**9, team_id="red", model="b", status="unknown", outcome="incomplete"),
            record(4, "other", 10**9, model="a", at=1_800_000_000.0 + DAY),
        ]
    )
    return key


async def test_lines_come_dearest_first_with_the_total_of_all(api: Api) -> None:
    key = await fill(api)
    found = await report(api, by="team")
    assert lines(found, "team", "spend", "attempts") == [
        ("red", Decimal(8), 2), ("", Decimal(1), 1), ("blue", Decimal("0.999999999"), 1),
    ]  # fmt: skip
    assert found["total"]["spend"] == Decimal("9.999999999")
    assert (found["total"]["unknown"], found["total"]["estimated"], found["total"]["failed"]) == (5, 1, 1)
    assert found["next_offset"] is None
    by_key = await report(api, by="key")
    assert lines(by_key, "key", "key_alias") == [("other", None), (key, "ci")]
    assert lines(await report(api, by="day"), "day", "spend")[0] == ("2027-01-16", Decimal(1))


async def test_it_is_filtered_and_paged(api: Api) -> None:
    key = await fill(api)
    assert lines(await report(api, by="model", team_id="red"), "model", "spend") == [("b", 5), ("a", 3)]
    assert lines(await report(api, key=key, model="a"), "model", "spend") == [("a", 3)]
    later = await report(api, by="model,day", since="2027-01-16T00:00:00Z")
    assert lines(later, "model", "day") == [("a", "2027-01-16")]
    assert (await report(api, by="team", until="1800000001"))["data"] == []
    seen, offset = [], 0
    while offset is not None:
        page = await report(api, by="team", limit=1, offset=offset)
        seen += lines(page, "team")
        assert page["total"]["attempts"] == 4
        offset = page["next_offset"]
    assert seen == [("red",), ("",), ("blue",)]


WRONG: Sequence[dict[str, Any]] = (
    {"by": "team,key"}, {"by": "nonsense"}, {"by": ""}, {"by": "model,model"}, {"limit": 0}, {"by": "team", "tag": "x"},
    {"since": "soon"}, {"offset": -1},
)  # fmt: skip


@pytest.mark.parametrize("query", WRONG)
async def test_what_no_report_can_be_is_a_400_that_names_the_field(api: Api, query: Any) -> None:
    answer = await api.get("/spend/report", **query)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] in query


async def test_administrators_and_their_viewers_only(api: Api) -> None:
    wanted = {"proxy_admin": 200, "proxy_admin_viewer": 200, "internal_user": 403, "internal_user_viewer": 403}
    for role, status in wanted.items():
        await api.done("/user/new", user_id=role, user_role=role, auto_create_key=False)
        key = (await api.mint(user_id=role))["key"]
        for path in ("/spend/report", "/status"):
            headers = {"authorization": f"Bearer {key}"}
            answer = await api.client.get(path, headers=headers)
            assert answer.status_code == status, (role, path, answer.text)
