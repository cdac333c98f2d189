"""Scheduled rotation: the secret is delivered, signed, before anything changes; the old key works on for a while."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import secrets
from typing import Any

import pytest

from sidecar.identity.tokens import hash_key
from sidecar.jobs.leader import LostLeadershipError
from sidecar.jobs.post import Events
from sidecar.jobs.rotation import MAX_FAILURES, Rotation
from sidecar.jobs.runner import JobError
from sidecar.types import Secret
from tests.jobs.conftest import NOW, Webhook, World

pytestmark = pytest.mark.anyio
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
DAY = 86_400.0


def rotation(world: World, webhook: Webhook | None, *, attempts: int = 1, pause_s: float = 0.001) -> Rotation:
    events = None
    if webhook is not None:
        secret = Secret(SECRET)
        events = Events(Secret(webhook.url), secret, clock=world.clock, delivery=webhook.delivery(attempts))
    return Rotation(
        tree=world.tree, keys=world.keys, events=events, metrics=world.metrics.jobs, grace_s=DAY, clock=world.clock,
        random_bytes=secrets.token_bytes, pause_s=pause_s,
    )  # fmt: skip


def overdue(world: World) -> float | None:
    return world.metrics.registry.get_sample_value("sidecar_keys_overdue_for_rotation")


async def snapshot(world: World) -> list[Any]:
    return list((await world.tree.keys.list(limit=1000))[0])


async def test_a_due_key_gets_a_successor_whose_secret_arrives_signed(world: World, webhook: Webhook) -> None:
    due: dict[str, Any] = {"rotation_interval": "30d", "rotates_at": NOW - 1, "team_id": "red", "models": ("gpt",)}
    old = await world.key("sk-old-0123456789abcdef", key_alias="billing", max_budget_nano=5, **due)
    later = await world.key("sk-later-0123456789abcdef", rotation_interval="30d", rotates_at=NOW + 1)
    await rotation(world, webhook).run(world.leader)
    ((headers, body),) = webhook.seen
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    wanted = base64.b64encode(hmac.digest(b"k" * 32, signed, "sha256")).decode()
    assert headers["webhook-signature"] == f"v1,{wanted}"
    event = json.loads(body)
    assert (event["type"], event["data"]["key_alias"], event["data"]["team_id"]) == ("key.rotated", "billing", "red")
    found = await world.tree.keys.get(hash_key(event["data"]["key"]))
    assert found is not None
    assert (found.key_alias, found.models, found.max_budget_nano) == ("billing", ("gpt",), 5)
    assert (found.spends_as, found.rotates_at) == (old.key_hash, NOW + 30 * DAY)
    before = await world.tree.keys.get(old.key_hash)
    assert before is not None
    assert (before.successor_hash, before.expires_at, before.rotates_at) == (found.key_hash, NOW + DAY, None)
    assert event["data"]["previous_token"] == old.key_hash
    assert await world.tree.keys.get(later.key_hash) == later
    identity = await world.keys.lookup(event["data"]["key"])
    assert identity.key_hash == old.key_hash, "spend goes on under the first hash"
    assert (await world.keys.lookup("sk-old-0123456789abcdef")).key_hash == old.key_hash
    await rotation(world, webhook).run(world.leader)
    assert len(webhook.seen) == 1, "what is done is done"
    assert overdue(world) == 0


async def test_what_is_not_delivered_changes_nothing_and_is_tried_again(world: World, webhook: Webhook) -> None:
    await world.key("sk-old-0123456789abcdef", rotation_interval="30d", rotates_at=NOW - 1)
    before = await snapshot(world)
    for answers in ([500, 503], [404], [302], [429, 500]):
        webhook.answers = list(answers)
        with pytest.raises(JobError, match=r"1 keys are overdue.*127\.0\.0\.1") as caught:
            await rotation(world, webhook, attempts=2).run(world.leader)
        assert "secret-path" not in str(caught.value), "the URL may be a credential"
        assert await snapshot(world) == before
        assert overdue(world) == 1
    webhook.answers, webhook.seen = [], []
    await rotation(world, webhook).run(world.leader)
    assert len(webhook.seen) == 1
    assert len(await snapshot(world)) == 2


async def test_a_receiver_that_refuses_one_key_gets_the_others(world: World, webhook: Webhook) -> None:
    for number in range(4):
        await world.key(f"sk-{number}-0123456789abcdef", rotation_interval="1d", rotates_at=NOW - 10 + number)
    webhook.answers = [200, 400, 200, 200]
    with pytest.raises(JobError, match="1 keys are overdue"):
        await rotation(world, webhook).run(world.leader)
    assert len(webhook.seen) == 4
    assert len(await snapshot(world)) == 7


async def test_a_receiver_that_refuses_all_is_not_asked_for_each_key(world: World, webhook: Webhook) -> None:
    for number in range(MAX_FAILURES + 3):
        await world.key(f"sk-{number}-0123456789abcdef", rotation_interval="1d", rotates_at=NOW - 1)
    webhook.answers = [400] * 20
    with pytest.raises(JobError, match=f"{MAX_FAILURES + 3} keys are overdue"):
        await rotation(world, webhook).run(world.leader)
    assert len(webhook.seen) == MAX_FAILURES


async def test_without_a_webhook_nothing_rotates_and_the_metric_says_how_many(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        await world.key(f"sk-{number}-0123456789abcdef", rotation_interval="1d", rotates_at=NOW - 1)
    before = await snapshot(world)
    job = rotation(world, None)
    await job.run(world.leader)
    await job.run(world.leader)
    assert await snapshot(world) == before
    assert overdue(world) == 3
    assert caplog.text.count("3 keys are due for rotation") == 1, "said once, not every five minutes"


@pytest.mark.parametrize("state", [{"blocked": True}, {"expires_at": NOW - 5}, {"successor_hash": "x"}])
async def test_a_key_that_no_longer_serves_does_not_rotate(world: World, webhook: Webhook, state: Any) -> None:
    await world.key("sk-old-0123456789abcdef", rotation_interval="1d", rotates_at=NOW - 1, **state)
    await rotation(world, webhook).run(world.leader)
    assert webhook.seen == []


async def test_a_key_changed_while_its_successor_is_delivered_keeps_the_change(world: World, webhook: Webhook) -> None:
    old = await world.key("sk-old-0123456789abcdef", rotation_interval="1d", rotates_at=NOW - 1, max_budget_nano=10)
    serve = webhook.serve
    arrived, gate = asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await gate.wait()
        await serve(reader, writer)

    server = await asyncio.start_server(slow, "127.0.0.1", 0)
    webhook.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    running = asyncio.create_task(rotation(world, webhook).run(world.leader))
    await arrived.wait()
    await world.tree.keys.update(old.key_hash, changes={"max_budget_nano": 3})
    gate.set()
    await running
    token = json.loads(webhook.seen[0][1])["data"]["key"]
    found = await world.tree.keys.get(hash_key(token))
    assert found is not None
    assert found.max_budget_nano == 3
    server.close()


async def test_a_key_blocked_while_its_successor_is_delivered_gets_none(world: World, webhook: Webhook) -> None:
    old = await world.key("sk-old-0123456789abcdef", rotation_interval="1d", rotates_at=NOW - 1)
    job = rotation(world, webhook)
    written = job._written

    async def blocked_first(*args: Any) -> bool:
        await world.tree.keys.set_blocked(old.key_hash, True, at=NOW)
        return await written(*args)

    job._written = blocked_first  # type: ignore[method-assign]
    with pytest.raises(JobError, match="changed while"):
        await job.run(world.leader)
    assert [row.key_hash for row in await snapshot(world)] == [old.key_hash]


async def test_who_does_not_lead_delivers_nothing(world: World, webhook: Webhook) -> None:
    await world.key("sk-old-0123456789abcdef", rotation_interval="1d", rotates_at=NOW - 1)
    await world.leader.aclose()
    with pytest.raises(LostLeadershipError):
        await rotation(world, webhook).run(world.leader)
    assert webhook.seen == []


async def test_two_that_rotate_the_same_key_leave_one_successor(world: World, webhook: Webhook) -> None:
    """As two leaders would that overlapped after all: the second finds a successor and gives up."""
    old = await world.key("sk-old-0123456789abcdef", rotation_interval="1d", rotates_at=NOW - 1)
    jobs = [rotation(world, webhook) for _ in range(2)]
    await asyncio.gather(*(job.run(world.leader) for job in jobs), return_exceptions=True)
    rows = await snapshot(world)
    assert len(rows) == 2
    newest = await world.tree.newest(old.key_hash)
    assert newest is not None
    assert newest.key_hash in {hash_key(json.loads(body)["data"]["key"]) for _, body in webhook.seen}
