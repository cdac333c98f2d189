"""Soft budgets: told once per window, with hysteresis that outlives the process."""

from __future__ import annotations

from datetime import UTC

import pytest

from sidecar.jobs.alerts import LINES, SoftBudgets
from sidecar.jobs.post import Slack
from sidecar.jobs.runner import JobError
from sidecar.types import Secret
from tests.jobs.conftest import Webhook, World

pytestmark = pytest.mark.anyio
USD = 10**9
DAY = 86_400.0


async def check(world: World, webhook: Webhook) -> list[str]:
    """What a run – each a new process's – told."""
    webhook.seen.clear()
    slack = Slack(Secret(webhook.url), delivery=webhook.delivery())
    job = SoftBudgets(store=world.store, ledger=world.ledger, slack=slack, zone=UTC, clock=world.clock)
    await job.run(world.leader)
    return webhook.texts


async def test_each_kind_is_told_once_when_its_spend_passes(world: World, webhook: Webhook) -> None:
    key = await world.key("sk-a-0123456789abcdef", key_alias="ci <!channel>", soft_budget_nano=USD, user_id="ann")
    await world.add("team", "red", alias="Red", soft_budget_nano=2 * USD)
    await world.add("user", "ann", soft_budget_nano=3 * USD)
    await world.add("organization", "o", soft_budget_nano=100 * USD)
    who = {"key_hash": key.key_hash, "team_id": "red", "user_id": "ann", "organization_id": "o"}
    await world.spend(0.999, **who)
    assert await check(world, webhook) == []
    await world.spend(0.001, **who)
    (text,) = await check(world, webhook)
    assert text == ":warning: key *ci &lt;!channel&gt;* has spent $1.00 in all: its soft budget is $1.00"
    assert await check(world, webhook) == []
    await world.spend(2.5, **who)
    (text,) = await check(world, webhook)
    assert ("team *Red*" in text, "user *ann*" in text, text.count("\n")) == (True, True, 1)
    assert await check(world, webhook) == []


async def test_a_new_window_is_told_anew(world: World, webhook: Webhook) -> None:
    await world.add("team", "red", soft_budget_nano=USD, budget_duration="1d")
    for day in range(3):
        await world.spend(1.5, team_id="red")
        (text,) = await check(world, webhook)
        assert "in the window from 2027-01-" in text
        assert await check(world, webhook) == [], day
        world.clock.now += DAY
        assert await check(world, webhook) == [], "nothing was spent in the new window"


async def test_it_is_told_again_only_after_it_was_well_below(world: World, webhook: Webhook) -> None:
    await world.add("team", "red", soft_budget_nano=USD)
    await world.spend(1.0, team_id="red")
    assert len(await check(world, webhook)) == 1
    for soft in (1.05, 1.0, 1.1, 1.0):  # to and fro around the spend: below, but not well below
        await world.tree.principals.update("team", "red", changes={"soft_budget_nano": round(soft * USD)})
        assert await check(world, webhook) == []
    await world.tree.principals.update("team", "red", changes={"soft_budget_nano": 2 * USD})
    assert await check(world, webhook) == []
    await world.spend(1.0, team_id="red")
    assert len(await check(world, webhook)) == 1


async def test_what_was_not_delivered_is_told_by_the_next_run(world: World, webhook: Webhook) -> None:
    await world.add("team", "red", soft_budget_nano=USD)
    await world.spend(1.0, team_id="red")
    webhook.answers = [500]
    with pytest.raises(JobError, match=r"127\.0\.0\.1") as caught:
        await check(world, webhook)
    assert "secret-path" not in str(caught.value)
    assert len(await check(world, webhook)) == 1


async def test_a_shared_budgets_soft_budget_counts_for_each(world: World, webhook: Webhook) -> None:
    await world.add("budget", "b", soft_budget_nano=USD, max_budget_nano=5 * USD, budget_duration="1d")
    for name in ("red", "blue", "green"):
        await world.add("team", name, budget_id="b")
    await world.add("team", "own", budget_id="b", soft_budget_nano=9 * USD)
    for name, usd in (("red", 1.2), ("blue", 0.5), ("green", 1.0), ("own", 8.0)):
        await world.spend(usd, team_id=name)
    (text,) = await check(world, webhook)
    assert ("red" in text, "blue" in text, "green" in text, "own" in text) == (True, False, True, False)
    assert "in the window from 2027-01-15T00:00:00+00:00" in text


async def test_a_regenerated_key_is_told_under_its_line_once(world: World, webhook: Webhook) -> None:
    first = await world.key("sk-a-0123456789abcdef", soft_budget_nano=USD, successor_hash="x")
    await world.key("sk-b-0123456789abcdef", key_id=first.key_hash, key_alias="new", soft_budget_nano=USD)
    await world.spend(1.0, key_hash=first.key_hash)
    (text,) = await check(world, webhook)
    assert (text.count(":warning:"), "*new*" in text) == (1, True)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_many_come_in_few_messages_and_each_once_though_one_fails(world: World, webhook: Webhook) -> None:
    count = LINES * 2 + 5
    for number in range(count):
        await world.add("team", f"t{number}", soft_budget_nano=USD)
        await world.spend(1.0, team_id=f"t{number}")
    webhook.answers = [200, 500]
    with pytest.raises(JobError):
        await check(world, webhook)
    first = webhook.texts[0]
    rest = await check(world, webhook)
    assert len(rest) == 2
    told = "\n".join([first, *rest]).splitlines()
    assert (len(told), len(set(told))) == (count, count)
