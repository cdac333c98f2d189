"""Looking keys up: what memory answers, when the database is asked, and what a revocation does to lookups in flight."""

from __future__ import annotations

import asyncio
import secrets
from decimal import Decimal

import pytest

from sidecar.errors import AuthenticationError, UnavailableError
from sidecar.identity.keys import MASTER_KEY_HASH, Keys, hash_key, new_key
from sidecar.identity.row import CachedRow, KeyRow, StoredKey, dump, load
from sidecar.types import Budget, Limits, Secret, usd_to_nano
from tests.identity.source import Clock, Shared, Source

pytestmark = pytest.mark.anyio

MASTER = "master-key, in any form: äöü"


def make(source: Source, clock: Clock, **options: object) -> Keys:
    return Keys(source, master_key=Secret(MASTER), clock=clock, **options)  # type: ignore[arg-type]


async def refusal(keys: Keys, token: str) -> AuthenticationError:
    with pytest.raises(AuthenticationError) as caught:
        await keys.lookup(token)
    assert caught.value.status == 401
    assert len(token) < 8 or token not in caught.value.message
    return caught.value


async def test_a_key_becomes_its_identity_and_is_then_known_without_a_query() -> None:
    source, clock = Source(), Clock()
    keys = make(source, clock)
    token = source.add(
        key_alias="ci",
        key_name="sk-...0001",
        models=("gpt-4o",),
        max_budget_nano=usd_to_nano(Decimal("1.5")),
        budget_duration="30d",
        budget_anchor_at=7.0,
        rpm_limit=60,
        tpm_limit=1000,
        max_parallel_requests=3,
        user_id="u",
        team_id="t",
        organization_id="o",
        metadata={"a": [1]},
    )
    assert keys.cached(token) is None
    identity = await keys.lookup(token)
    assert (identity.key_hash, identity.key_alias, identity.key_name) == (hash_key(token), "ci", "sk-...0001")
    assert identity.limits == Limits(rpm=60, tpm=1000, concurrency=3)
    assert identity.budgets == (Budget(1_500_000_000, "30d", 7.0),)
    assert (identity.user_id, identity.team_id, identity.organization_id) == ("u", "t", "o")
    assert identity.metadata == {"a": [1]}
    assert not identity.is_admin
    assert identity.may_call("gpt-4o")
    assert not identity.may_call("gpt-5")
    assert keys.cached(token) is identity
    assert len(source.queries) == 1


async def test_the_master_key_is_the_administrator_and_costs_no_query() -> None:
    source = Source()
    keys = make(source, Clock())
    assert keys.cached(MASTER) is await keys.lookup(MASTER)
    identity = await keys.lookup(MASTER)
    assert identity.is_admin
    assert identity.key_hash == MASTER_KEY_HASH
    for other in (MASTER + " ", MASTER[:-1], MASTER.upper()):
        await refusal(keys, other)
    assert source.queries == []


async def test_without_a_master_key_nobody_is_the_administrator() -> None:
    for master in (None, Secret("")):
        keys = Keys(Source(), master_key=master, clock=Clock())
        await refusal(keys, "")
        await refusal(keys, MASTER_KEY_HASH)


@pytest.mark.parametrize("token", ["", "x", "sk-", "sk-' or 1=1", "sk-" + "a" * 200, "sk-" + "é" * 43, "sk-\ud800"])
async def test_malformed_keys_cost_no_query(token: str) -> None:
    source = Source()
    keys = make(source, Clock())
    error = await refusal(keys, token)
    assert error.code == ("invalid_api_key" if token else "missing_api_key")
    assert source.queries == []


async def test_an_unknown_key_is_asked_for_once_per_freshness() -> None:
    source, clock = Source(), Clock()
    keys = make(source, clock)
    token = new_key(secrets.token_bytes)
    for _ in range(10):
        assert (await refusal(keys, token)).code == "invalid_api_key"
    assert len(source.queries) == 1
    clock.now += 1.0
    await refusal(keys, token)
    assert len(source.queries) == 2


async def test_a_blocked_key_is_refused_and_works_again_when_unblocked() -> None:
    source, clock = Source(), Clock()
    keys = make(source, clock)
    token = source.add(blocked=True)
    assert (await refusal(keys, token)).code == "key_blocked"
    source.add(blocked=False)
    clock.now += 1.0
    await keys.lookup(token)


async def test_a_key_blocked_elsewhere_stops_within_the_freshness() -> None:
    source, clock = Source(), Clock()
    keys = make(source, clock, fresh_s=1.0)
    token = source.add()
    await keys.lookup(token)
    source.add(blocked=True)
    clock.now += 0.99
    assert keys.cached(token) is not None
    clock.now += 0.01
    assert keys.cached(token) is None
    assert (await refusal(keys, token)).code == "key_blocked"


async def test_expiry_holds_at_each_use_to_the_instant() -> None:
    source, clock = Source(), Clock()
    keys = make(source, clock, fresh_s=60.0)
    token = source.add(expires_at=clock.now + 5.0)
    await keys.lookup(token)
    clock.now += 4.999
    assert keys.cached(token) is not None
    clock.now += 0.001
    assert keys.cached(token) is None
    assert (await refusal(keys, token)).code == "expired_key"


async def test_a_clock_set_back_makes_nothing_fresh() -> None:
    source, clock = Source(), Clock()
    keys = make(source, clock)
    token = source.add()
    await keys.lookup(token)
    clock.now -= 3600
    assert keys.cached(token) is None
    await keys.lookup(token)
    assert keys.cached(token) is not None


async def test_many_callers_of_one_key_make_one_query() -> None:
    source, clock = Source(), Clock()
    keys = make(source, clock)
    token = source.add()
    found = await asyncio.gather(*(keys.lookup(token) for _ in range(200)))
    assert len(source.queries) == 1
    assert len({id(identity) for identity in found}) == 1


async def test_a_caller_who_leaves_does_not_take_the_others_along() -> None:
    source, clock = Source(), Clock()
    keys = make(source, clock)
    token = source.add()
    source.gate.clear()
    first, second = (asyncio.create_task(keys.lookup(token)) for _ in range(2))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    first.cancel()
    source.gate.set()
    assert (await second).key_hash == hash_key(token)
    assert first.cancelled() or first.cancelling()
    assert len(source.queries) == 1


async def test_an_unchanged_row_keeps_its_identity_and_what_was_derived_from_it() -> None:
    source, clock = Source(), Clock()
    keys = make(source, clock)
    token = source.add(rpm_limit=1)
    before = await keys.lookup(token)
    clock.now += 1.0
    assert await keys.lookup(token) is before
    source.add(rpm_limit=2)
    clock.now += 1.0
    after = await keys.lookup(token)
    assert after is not before
    assert after.limits.rpm == 2


async def test_a_lookup_that_began_before_a_revocation_writes_nothing_back() -> None:
    source, clock, shared = Source(), Clock(), Shared()
    keys = make(source, clock, shared_cache=shared)
    token = source.add()
    source.gate.clear()
    early = asyncio.create_task(keys.lookup(token))  # reads the old row, and is held back
    await source.asked(1)
    source.add(blocked=True)
    assert await keys.revoke(hash_key(token))
    source.gate.set()
    with pytest.raises(AuthenticationError) as caught:  # it starts over, and sees the block
        await early
    assert caught.value.code == "key_blocked"
    assert keys.cached(token) is None
    assert shared.values == {hash_key(token): b""}


async def test_another_replica_cannot_write_the_old_row_to_the_shared_cache_either() -> None:
    source, clock, shared = Source(), Clock(), Shared()
    here, there = (make(source, clock, shared_cache=shared) for _ in range(2))
    token = source.add()
    source.gate.clear()
    early = asyncio.create_task(there.lookup(token))
    await source.asked(1)
    source.add(blocked=True)
    await here.revoke(hash_key(token))
    source.gate.set()
    await early  # overlapped the revocation: may still pass, once
    clock.now += 1.0
    for keys in (here, there):
        assert (await refusal(keys, token)).code == "key_blocked"


async def test_a_lookup_while_the_shared_cache_is_being_told_keeps_nothing_old() -> None:
    source, clock = Source(), Clock()

    class Slow(Shared):
        async def delete(self, key_hash: str) -> bool:
            assert await keys.lookup(token)  # still finds the old row in the shared cache
            return await super().delete(key_hash)

    keys = make(source, clock, shared_cache=Slow())
    token = source.add()
    await keys.lookup(token)
    source.add(blocked=True)
    await keys.revoke(hash_key(token))
    assert keys.cached(token) is None
    assert (await refusal(keys, token)).code == "key_blocked"


async def test_replicas_share_what_one_of_them_read() -> None:
    source, clock, shared = Source(), Clock(), Shared()
    here, there = (make(source, clock, shared_cache=shared) for _ in range(2))
    token = source.add(rpm_limit=5, metadata={"x": 1.5}, models=("a", "b"), expires_at=clock.now + 99)
    assert await here.lookup(token) == await there.lookup(token)
    assert len(source.queries) == 1


async def test_no_row_is_used_past_its_hard_age_wherever_it_was_kept() -> None:
    source, clock, shared = Source(), Clock(), Shared()
    keys = make(source, clock, shared_cache=shared, hard_age_s=30.0)
    token = source.add()
    await keys.lookup(token)
    source.add(blocked=True)  # and neither the memory nor the shared cache is told
    clock.now += 28.5
    await keys.lookup(token)
    clock.now += 1.5
    assert keys.cached(token) is None
    assert (await refusal(keys, token)).code == "key_blocked"


@pytest.mark.parametrize("junk", [b"", b"x", b"[]", b"null", b"[" * 5000, b'[1,{"key_hash":1}]'])
async def test_junk_in_the_shared_cache_is_a_miss(junk: bytes) -> None:
    source, clock, shared = Source(), Clock(), Shared()
    keys = make(source, clock, shared_cache=shared)
    token = source.add()
    shared.values[hash_key(token)] = junk
    await keys.lookup(token)
    assert len(source.queries) == 1


def test_a_shared_entry_of_another_key_is_not_taken() -> None:
    cached = CachedRow(1.0, 0, StoredKey(KeyRow(key_hash="a")))
    data = dump(cached)
    assert load(data, key_hash="a") == cached
    assert load(data, key_hash="b") is None


async def test_a_database_that_is_down_is_503_and_never_401() -> None:
    source, clock = Source(), Clock()
    keys = make(source, clock)
    token = source.add()
    source.is_down = True
    with pytest.raises(UnavailableError) as caught:
        await keys.lookup(token)
    assert (caught.value.status, caught.value.code) == (503, "key_store_unavailable")
    source.is_down = False
    await keys.lookup(token)


async def test_a_frozen_database_costs_the_deadline_and_is_503() -> None:
    source = Source()
    keys = make(source, Clock(), deadline_s=0.01)
    token = source.add()
    source.gate.clear()
    with pytest.raises(UnavailableError):
        await keys.lookup(token)


async def test_known_keys_outlive_a_database_outage_up_to_the_hard_age_and_recover_unaided() -> None:
    source, clock = Source(), Clock()
    keys = make(source, clock, fresh_s=1.0, hard_age_s=30.0, retry_s=0.5)
    token = source.add()
    await keys.lookup(token)
    source.is_down = True
    clock.now += 2.0
    for _ in range(20):
        await keys.lookup(token)
    assert len(source.queries) == 2
    clock.now += 0.5
    await keys.lookup(token)
    await source.asked(3)
    clock.now = 1_800_000_000.0 + 30.0
    with pytest.raises(UnavailableError):
        await keys.lookup(token)
    source.is_down = False
    await keys.lookup(token)
    assert keys.cached(token) is not None


async def test_while_the_database_is_frozen_known_keys_do_not_wait_for_it() -> None:
    source, clock = Source(), Clock()
    keys = make(source, clock, deadline_s=60, hard_age_s=30.0)
    token = source.add()
    await keys.lookup(token)
    source.gate.clear()
    clock.now += 1.0
    keys._deadline.seconds = 0.01
    await keys.lookup(token)  # finds out, after the deadline
    keys._deadline.seconds = 60
    source.gate.set()
    clock.now += 0.5
    source.add(blocked=True)
    await keys.lookup(token)  # answered from memory, while one lookup asks again
    for _ in range(10):
        await asyncio.sleep(0)
    assert (await refusal(keys, token)).code == "key_blocked"


async def test_memory_is_bounded_for_known_and_for_unknown_keys() -> None:
    source, clock = Source(), Clock()
    keys = make(source, clock, max_entries=50)
    for number in range(1, 201):
        await keys.lookup(source.add(number))
        await refusal(keys, new_key(secrets.token_bytes))
    assert len(keys._known) == len(keys._refused) == 50
    assert not keys._flights


async def test_without_a_table_only_the_master_key_passes() -> None:
    keys = Keys(None, master_key=Secret(MASTER), clock=Clock())
    assert (await keys.lookup(MASTER)).is_admin
    await refusal(keys, new_key(secrets.token_bytes))


async def test_closing_ends_lookups_in_progress() -> None:
    source = Source()
    keys = make(source, Clock())
    token = source.add()
    source.gate.clear()
    waiting = asyncio.create_task(keys.lookup(token))
    await source.asked(1)
    await keys.aclose()
    with pytest.raises(asyncio.CancelledError):
        await waiting
