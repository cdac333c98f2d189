"""Reports add up, page, and are read from the daily totals; what is compared with a provider's export is told apart."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from sidecar.db import Database
from sidecar.errors import BadRequestError
from sidecar.spend.cost import Price, Rates
from sidecar.spend.ledger import Ledger
from sidecar.spend.reconcile import known_as, read_invoice, reconcile
from sidecar.spend.reports import BY, key_aliases, plan, report
from sidecar.types import Usage
from tests.spend.rows import AT, exchange_id, row
from tests.spend.test_rollups import company

pytestmark = pytest.mark.anyio
MIDNIGHT = AT // 86_400 * 86_400  # 2027-01-15


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[Ledger]:
    database = Database(database_url, clock=lambda: AT)
    await database.migrate()
    yield Ledger(database)
    await database.aclose()


async def test_every_report_adds_up_to_everything(ledger: Ledger) -> None:
    records = company(1, 200)
    await ledger.insert(records)
    total = sum(record.cost_nano for record in records)
    for by in set(BY) - {"tag", "member"}:
        found = await report(ledger, by=[by])
        assert sum(line.sums.cost_nano for line in found.lines) == found.total.cost_nano == total, by
    found = await report(ledger, by=["tag"])
    assert {line.names[0]: line.sums.attempts for line in found.lines} == {
        tag: sum(tag in record.tags and record.revision == 0 for record in records) for tag in ("x", "y", "10")
    }


async def test_a_report_by_two_names_of_some_days_about_one_team(ledger: Ledger) -> None:
    await ledger.insert(
        [
            row(0, team_id="red", model="a", cost_nano=5, at=MIDNIGHT),
            row(1, team_id="red", model="b", cost_nano=7, at=MIDNIGHT + 86_399.999999, status="unknown"),
            row(2, team_id="red", model="b", cost_nano=11, at=MIDNIGHT + 86_400, outcome="client_left"),
            row(
                3, team_id="blue", model="b", cost_nano=100, at=MIDNIGHT, usage=Usage(input=1, cached_input=2, output=4)
            ),
            row(4, team_id="red", model="b", cost_nano=1000, at=MIDNIGHT + 2 * 86_400),
        ]
    )
    found = await report(
        ledger,
        by=["day", "model"],
        since_at=MIDNIGHT,
        until_at=MIDNIGHT + 2 * 86_400,
        where={"team": "red"},
    )
    assert [(*line.names, line.sums.cost_nano) for line in found.lines] == [
        ("2027-01-16", "b", 11),
        ("2027-01-15", "b", 7),
        ("2027-01-15", "a", 5),
    ]
    assert (found.total.cost_nano, found.total.unknown_nano, found.total.attempts, found.total.failed) == (23, 7, 3, 1)
    (blue,) = (await report(ledger, by=["team"], where={"team": "blue"})).lines
    assert (blue.sums.input_tokens, blue.sums.output_tokens) == (3, 4)
    within = await report(ledger, by=["model"], since_at=MIDNIGHT + 0.5, until_at=MIDNIGHT + 90_000)
    assert {line.names[0]: line.sums.cost_nano for line in within.lines} == {"b": 18}


async def test_pages_of_a_report_meet_and_its_total_is_of_all(ledger: Ledger) -> None:
    await ledger.insert([row(n, model=f"m{n % 7}", cost_nano=10**n) for n in range(14)])
    lines, offset = [], 0
    while True:
        page = await report(ledger, by=["model"], limit=3, offset=offset)
        assert page.total.cost_nano == sum(10**n for n in range(14))
        lines += page.lines
        if page.next_offset is None:
            break
        offset = page.next_offset
    assert [line.names[0] for line in lines] == [f"m{n}" for n in reversed(range(7))]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("by", "where"),
    [([], {}), (["nothing"], {}), (["key", "team"], {}), (["key"], {"user": "x"}), (["day", "day"], {}),
     (["model"], {"day": "2027-01-15"}), (["model"], {"cost": "1"})],
)  # fmt: skip
async def test_what_a_report_cannot_be_by_is_refused(ledger: Ledger, by: list[str], where: dict[str, str]) -> None:
    with pytest.raises(BadRequestError, match="report is by"):
        await report(ledger, by=by, where=where)


async def test_whole_days_are_read_from_the_daily_totals_alone(ledger: Ledger) -> None:
    await ledger.insert(company(2, 50))
    for by in (["key"], ["team", "day"], ["model"], ["tag"]):
        days = await plan(ledger, by=by, since_at=MIDNIGHT - 86_400, until_at=MIDNIGHT + 86_400)
        assert "spend_daily" in days
        assert "spend_20" not in days
        assert "spend_default" not in days
        assert "ix_spend" not in days
        parts = await plan(ledger, by=by, since_at=MIDNIGHT + 1, until_at=MIDNIGHT + 86_400)
        assert parts != days


@pytest.mark.parametrize("by", ["key", "user", "member", "end_user"])
async def test_many_names_are_read_from_totals_that_are_not_split_by_model(ledger: Ledger, by: str) -> None:
    await ledger.insert(company(3, 80))
    whole = await plan(ledger, by=[by, "day"])
    split = await plan(ledger, by=[by, "model"])
    assert "spend_daily_whole" in whole
    assert "spend_daily_whole" not in split
    for window in ({}, {"since_at": MIDNIGHT - 40_000, "until_at": MIDNIGHT + 100_000}):
        lines = (await report(ledger, by=[by], **window)).lines
        found: dict[str, int] = {}
        for line in (await report(ledger, by=[by, "model", "provider"], **window)).lines:
            found[line.names[0]] = found.get(line.names[0], 0) + line.sums.cost_nano
        assert {line.names[0]: line.sums.cost_nano for line in lines} == found


async def test_keys_have_their_names(ledger: Ledger) -> None:
    assert await key_aliases(ledger, []) == {}
    assert await key_aliases(ledger, ["a" * 64]) == {}


ANTHROPIC_COST = """\
usage_date_utc,model,workspace,api_key,usage_type,context_window,token_type,cost_usd,list_price_usd,cost_type,\
inference_geo,speed
2027-01-15,Claude Haiku 4.5,Default,ours,message,≤ 200k,input_no_cache,1.50,1.50,token,global,
2027-01-15,Claude Haiku 4.5,Default,ours,message,≤ 200k,output,0.25,0.25,token,global,
2027-01-16,Claude Sonnet 4.5,Default,ours,message,≤ 200k,output,3,3,token,global,
"""
ANTHROPIC_USAGE = """\
usage_date_utc,model_version,api_key,workspace,usage_type,context_window,usage_input_tokens_no_cache,\
usage_input_tokens_cache_write_5m,usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,\
usage_output_tokens,web_search_count,inference_geo,speed
2027-01-15,claude-haiku-4-5-20251001,ours,Default,standard,≤ 200k,100,7,3,40,50,0,,
2027-01-15,claude-haiku-4-5-20251001,other,Default,standard,≤ 200k,1,0,0,0,5,0,,
"""
OPENAI_COST = """\
start_time,end_time,start_time_iso,end_time_iso,amount_value,amount_currency,quantity,quantity_unit,line_item,user_id,\
api_key_id,project_id,organization_id,project_name,organization_name,user_email,api_source
1799884800,1799971200,2027-01-14T00:00:00+00:00,2027-01-15T00:00:00+00:00,,,,,,,,,,,,,
1799971200,1800057600,2027-01-15T00:00:00,2027-01-16T00:00:00,0.003835980000000000000000000000,usd,5,tokens,\
"gpt-4o-mini-2024-07-18, input",,,,org,,,,
1799971200,1800057600,2027-01-15T00:00:00,2027-01-16T00:00:00,0.5,usd,1000,tokens,\
"priority | gpt-4o-mini-2024-07-18, cached input",,,,org,,,,
"""
OPENAI_USAGE = """\
start_time,end_time,start_time_iso,end_time_iso,project_id,num_model_requests,user_id,api_key_id,model,batch,\
input_tokens,output_tokens,input_cached_tokens
1799971200,1800057600,2027-01-15T00:00:00,2027-01-16T00:00:00,proj,2.0,,key,gpt-4o-mini-2024-07-18,False,900,30,100
1800057600,1800144000,2027-01-16T00:00:00,2027-01-17T00:00:00,,,,,,,,,
"""


def test_exports_are_told_apart_by_their_columns() -> None:
    found = read_invoice("\ufeff" + ANTHROPIC_COST)
    assert (found.vendor, found.kind, found.first, found.last) == (
        "anthropic", "cost", date(2027, 1, 15), date(2027, 1, 16),
    )  # fmt: skip
    haiku = found.models["claude-haiku-4-5"]
    assert (haiku.cost_nano, haiku.rounding_nano) == (1_750_000_000, 10_000_000)  # two lines, half a cent each
    found = read_invoice(ANTHROPIC_USAGE)
    assert found.models["claude-haiku-4-5"].tokens == {
        "input": 101, "cached input": 40, "cache write": 10, "output": 55,
    }  # fmt: skip
    found = read_invoice(OPENAI_COST)
    assert (found.vendor, found.first, found.last) == ("openai", date(2027, 1, 15), date(2027, 1, 15))
    assert found.models["gpt-4o-mini"].cost_nano == 503_835_980
    found = read_invoice(OPENAI_USAGE)
    assert found.models["gpt-4o-mini"].tokens == {"input": 800, "cached input": 100, "output": 30}


def test_one_model_has_one_name() -> None:
    names = ["Claude Haiku 4.5", "claude-haiku-4-5", "claude-haiku-4-5-20251001"]
    assert {known_as(name) for name in names} == {"claude-haiku-4-5"}
    assert known_as("gpt-4o-2024-08-06") == "gpt-4o"
    assert known_as("gpt-4o-mini") == "gpt-4o-mini"


@pytest.mark.parametrize("text", [ANTHROPIC_COST.replace("2027-01-16", "9999-12-31"),
                                  OPENAI_COST.replace("1799971200", "253402214400")])  # fmt: skip
def test_a_day_that_has_no_end_is_refused(text: str) -> None:
    with pytest.raises(BadRequestError, match=r"Line [34] of the file is of 9999-12-31"):
        read_invoice(text)


@pytest.mark.parametrize(
    "text",
    ["", "a,b\n1,2\n", ANTHROPIC_COST.replace("1.50,", "much,"), ANTHROPIC_COST.replace("2027-01-15", "yesterday"),
     ANTHROPIC_COST.splitlines()[0], OPENAI_COST.replace("usd", "eur"), "x" * 200_000 + ",b\n1,2\n",
     ANTHROPIC_COST + "x" * 200_000, *(ANTHROPIC_COST.replace("1.50,", f"{huge},") for huge in ("1e999999999", "NaN"))],
)  # fmt: skip
def test_a_file_that_is_no_export_is_refused(text: str) -> None:
    with pytest.raises(BadRequestError, match="file"):
        read_invoice(text)


async def test_an_export_beside_the_ledger_shows_delta_and_error_bar(ledger: Ledger) -> None:
    haiku, sonnet = "claude-haiku-4-5-20251001", "claude-sonnet-4-5"
    await ledger.insert(
        [
            row(0, provider="anthropic", model=haiku, at=MIDNIGHT, cost_nano=1_500_000_000),
            row(1, provider="anthropic", model=haiku, at=MIDNIGHT, cost_nano=300_000_000, status="unknown"),
            row(2, provider="anthropic", model=sonnet, at=MIDNIGHT + 86_400, cost_nano=2_000_000_000),
            row(3, provider="anthropic", model=sonnet, at=MIDNIGHT + 2 * 86_400, cost_nano=9_000_000_000),
            row(4, provider="openai", model="gpt-4o-mini", at=MIDNIGHT, cost_nano=9_000_000_000),
            row(5, provider="anthropic", model="new", at=MIDNIGHT, cost_nano=0, status="unpriced"),
        ]
    )
    all_, first, second, third = await reconcile(ledger, read_invoice(ANTHROPIC_COST))
    assert (all_.billed, all_.recorded, all_.delta, all_.unpriced) == (4_750_000_000, 3_800_000_000, 950_000_000, 1)
    assert not all_.is_explained
    assert (first.model, first.delta, first.is_explained) == ("claude-sonnet-4-5", 1_000_000_000, False)
    assert (second.model, second.delta, second.uncertain) == ("claude-haiku-4-5", -50_000_000, 310_000_000)
    assert second.is_explained
    assert first.uncertain == 5_000_000, "a line of `3` among cents is 3.00"
    assert (third.model, third.unpriced) == ("new", 1)


async def test_an_export_is_of_one_account_and_so_may_be_the_rows_beside_it(ledger: Ledger) -> None:
    ours = row(0, provider="anthropic", model="claude-sonnet-4-5", group="claude", at=MIDNIGHT, cost_nano=4_750_000_000)
    await ledger.insert([ours, row(1, provider="anthropic", group="own-server", at=MIDNIGHT, cost_nano=7)])
    whole = await reconcile(ledger, read_invoice(ANTHROPIC_COST))
    account = await reconcile(ledger, read_invoice(ANTHROPIC_COST), {"group": "claude"})
    assert (whole[0].delta, account[0].delta) == (-7, 0)
    other = await reconcile(ledger, read_invoice(ANTHROPIC_COST), {"provider": "openai", "group": "claude"})
    assert other[0].recorded == 4_750_000_000  # the export says whose it is


async def test_tokens_are_compared_class_by_class(ledger: Ledger) -> None:
    usage = Usage(input=101, cached_input=40, cache_write_5m=7, cache_write_1h=3, output=50, reasoning=5)
    await ledger.insert([row(0, provider="anthropic", model="claude-haiku-4-5", at=MIDNIGHT, usage=usage)])
    deltas = await reconcile(ledger, read_invoice(ANTHROPIC_USAGE))
    assert {delta.what for delta in deltas} == {"input", "cached input", "cache write", "output"}
    assert all(delta.delta == 0 and delta.is_explained for delta in deltas)
    await ledger.insert([row(1, provider="anthropic", model="claude-haiku-4-5", at=MIDNIGHT, usage=Usage(output=1))])
    deltas = await reconcile(ledger, read_invoice(ANTHROPIC_USAGE))
    assert [(d.model, d.what, d.delta) for d in deltas if not d.is_explained] == [
        ("all", "output", -1), ("claude-haiku-4-5", "output", -1),
    ]  # fmt: skip


async def test_tokens_that_nobody_told_are_the_error_bar_of_an_export_of_usage(ledger: Ledger) -> None:
    told = Usage(input=101, cached_input=40, cache_write_5m=7, cache_write_1h=3, output=50)
    haiku: dict[str, Any] = {"provider": "anthropic", "model": "claude-haiku-4-5", "at": MIDNIGHT}
    counted = Usage(input=9, output=20)
    await ledger.insert([row(0, **haiku, usage=told), row(1, **haiku, usage=counted, status="estimated")])
    invoice = read_invoice(ANTHROPIC_USAGE)

    async def bars(*prices: tuple[str, Price]) -> dict[tuple[str, str], int]:
        return {(d.model, d.what): d.uncertain for d in await reconcile(ledger, invoice, prices=prices)}

    of_haiku = {"input": 9, "cached input": 0, "cache write": 0, "output": 20}
    assert await bars() == {(name, what): bar for name in ("all", "claude-haiku-4-5") for what, bar in of_haiku.items()}
    assert all(delta.is_explained for delta in await reconcile(ledger, invoice))

    # A hold of $0.01 buys 10,000 tokens at $1 a million, 2,000 at $5; the price list says so of Haiku 4.5.
    hold = row(2, **haiku, usage=Usage(), status="unknown", cost_nano=10_000_000)
    await ledger.insert([hold])
    found = await bars()
    assert (found["all", "input"], found["all", "output"]) == (9 + 10_000, 20 + 2000)
    assert found["claude-haiku-4-5", "cached input"] == 100_000
    own = Price("priced", Rates(input=Decimal(100), output=Decimal(200), cache_read=Decimal(1)))
    assert (await bars(("claude-haiku-4-5-20251001", own)))["all", "output"] == 20 + 50
    sonnet = replace(
        hold, exchange_id=exchange_id(3), model="claude-sonnet-4-5", usage=Usage(input=5), status="settled"
    )
    await ledger.insert([sonnet])  # the output alone is not told
    found = await bars()
    assert (found["claude-sonnet-4-5", "input"], found["claude-sonnet-4-5", "output"]) == (0, 667)

    # Resolved: the hold is taken back, the real cost stands, of tokens nobody told.
    back = replace(hold, revision=1, cost_nano=-hold.cost_nano)
    await ledger.insert([back, replace(hold, revision=2, status="settled", cost_nano=5_000_000)])
    assert (await bars())["claude-haiku-4-5", "output"] == 20 + 1000
    assert {d.uncertain for d in await reconcile(ledger, invoice, {"group": "other"})} == {0}
