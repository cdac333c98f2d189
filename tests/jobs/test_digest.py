"""The weekly and monthly report says what the ledger has of the period before, in the budgets' time zone."""

from __future__ import annotations

from zoneinfo import ZoneInfo

import pytest

from sidecar.jobs.digest import Digest, Period
from sidecar.jobs.post import Slack
from sidecar.types import Secret
from tests.jobs.conftest import NOW, Webhook, World

pytestmark = pytest.mark.anyio
DAY = 86_400.0
MONDAY = NOW + 3 * DAY  # 2027-01-18 08:00 UTC


async def told(world: World, webhook: Webhook, period: Period, zone: str = "UTC") -> str:
    webhook.seen.clear()
    slack = Slack(Secret(webhook.url), delivery=webhook.delivery())
    await Digest(period, ledger=world.ledger, slack=slack, zone=ZoneInfo(zone), clock=world.clock).run(world.leader)
    (text,) = webhook.texts
    return text


async def test_a_week_is_reported_with_what_changed_and_who_was_dearest(world: World, webhook: Webhook) -> None:
    key = await world.key("sk-a-0123456789abcdef", key_alias="ci")
    await world.spend(4.0, at=MONDAY - 10 * DAY, team_id="red")  # the week before
    for number in range(7):
        await world.spend(1.0 + number, at=MONDAY - (number + 0.5) * DAY, team_id=f"<t{number}>", key_hash=key.key_hash)
    await world.spend(0.5, at=MONDAY - 2 * DAY, outcome="provider_error", status="unknown")
    await world.spend(99.0, at=MONDAY - 0.1 * DAY, team_id="today")  # this week's
    world.clock.now = MONDAY
    lines = (await told(world, webhook, "week")).splitlines()
    assert lines[0] == (
        "*Spend of the week from 2027-01-11 to 2027-01-17: $28.50* (+612 % against $4.00 the week before)"
    )
    assert lines[1] == "8 calls of providers, 1 failed, $0.50 of it not certain"
    teams = lines[lines.index("*By team*") + 1 : lines.index("*By model*")]
    assert teams[0] == "• &lt;t6&gt;: $7.00"
    assert teams[-1] == "• all others: $3.50"
    assert len(teams) == 6
    assert lines[lines.index("*By key*") + 1] == "• ci: $28.00"


async def test_a_month_without_spend_says_so(world: World, webhook: Webhook) -> None:
    text = await told(world, webhook, "month")
    first, second = text.splitlines()
    assert first == "*Spend of the month from 2026-12-01 to 2026-12-31: $0.00* (nothing the month before)"
    assert second.startswith("0 calls")


async def test_the_weeks_are_the_time_zones(world: World, webhook: Webhook) -> None:
    await world.spend(1.0, at=MONDAY - 8.5 * 3600)  # Sunday 23:30 UTC is Monday in Berlin
    world.clock.now = MONDAY
    assert "$1.00*" in await told(world, webhook, "week")
    assert "$0.00*" in await told(world, webhook, "week", "Europe/Berlin")
