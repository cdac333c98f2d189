"""The whole tree in one step: any one scope that is full refuses, is named, and nothing is consumed on any other – on
every store, alone and under a storm of callers; and one admission is one command to Redis.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from sidecar.errors import BudgetExceededError, RateLimitedError
from sidecar.limits.admission import Admission, Grant
from sidecar.limits.store import LimitStore
from sidecar.limits.store.memory import MemoryStore
from sidecar.types import Budget, Identity, Limits
from tests.limits.conftest import Clock
from tests.limits.making import ABOVE, KINDS, new_id, tree_caller

pytestmark = pytest.mark.anyio
Open = Callable[..., LimitStore]
WIDE = Limits(rpm=10, tpm=1000, concurrency=10)
FULL = {"rpm": Limits(1, 1000, 10), "tpm": Limits(10, 100, 10), "concurrency": Limits(10, 1000, 1)}
CODES = {"rpm": "requests", "tpm": "tokens", "concurrency": "concurrency"}
MONEY = ("key", *ABOVE)
RICH = {kind: (Budget(1000, "1mo"), Budget(1000)) for kind in MONEY}


async def take(admission: Admission, caller: Identity, model: str = "gpt", **more: Any) -> Grant:
    return await admission.acquire(new_id(), caller, model, **{"tokens": 100, "hold_nano": 100} | more)


async def state(store: LimitStore, uri: str) -> dict[str, Any]:
    """Everything the store counts."""
    if isinstance(store, MemoryStore):
        return {
            "requests": {k: list(log) for k, log in store._requests.items() if log},
            "tokens": {k: b for k, t in store._tokens.items() if (b := {s: n for s, n in t.buckets.items() if n})},
            "slots": dict(store._slots),
            "money": {k: c.nano for k, c in store._counters.items()},
            "live": sorted(store._live),
        }
    found: dict[str, Any] = {}
    async with Redis.from_url(uri) as client:
        async for name in client.scan_iter():
            kind = (await client.type(name)).decode()
            if kind == "zset":
                found[name] = await client.zrange(name, 0, -1, withscores=True)
            elif kind == "hash":
                # A second in which something was taken and given back stays as 0 for a while.
                found[name] = {k: v for k, v in (await client.hgetall(name)).items() if v != b"0"}
            else:
                assert kind == "string", kind
                found[name] = await client.get(name)
    return found


@pytest.fixture
def admission(store_uri: str, open_stores: Open) -> Admission:
    return Admission(open_stores(store_uri))


@pytest.mark.parametrize("what", ["rpm", "tpm", "concurrency"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_full_scope_refuses_is_named_and_nothing_else_is_consumed(
    kind: str, what: str, admission: Admission, store_uri: str
) -> None:
    caller = tree_caller({k: FULL[what] if k == kind else WIDE for k in KINDS}, RICH)
    await take(admission, caller)
    before = await state(admission.store, store_uri)
    for _ in range(3):
        with pytest.raises(RateLimitedError) as refused:
            await take(admission, caller)
        assert f"the {kind.replace('_', ' ')} limit is" in refused.value.message
        assert refused.value.code == f"{CODES[what]}_limit_exceeded"
        assert "id-of" not in refused.value.message
    assert await state(admission.store, store_uri) == before
    # A limit of one model says nothing of another.
    if kind.endswith("_model"):
        await take(admission, caller, "claude")


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("kind", MONEY)
async def test_a_spent_budget_refuses_is_named_and_nothing_else_is_consumed(
    kind: str, index: int, admission: Admission, store_uri: str
) -> None:
    poor = list(RICH[kind])
    poor[index] = Budget(150, poor[index].duration)
    caller = tree_caller(dict.fromkeys(KINDS, WIDE), RICH | {kind: tuple(poor)})
    await take(admission, caller)
    before = await state(admission.store, store_uri)
    for _ in range(3):
        with pytest.raises(BudgetExceededError) as refused:
            await take(admission, caller)
        assert f"the {kind.replace('_', ' ')} budget of $0.00000015 does not cover" in refused.value.message
        assert (refused.value.retry_after_s is None) == (index == 1)  # a lifetime budget is not worth waiting for
    assert await state(admission.store, store_uri) == before
    assert set((await admission.spent(caller)).values()) == {100}
    await take(admission, caller, hold_nano=50)
    await take(admission, caller, hold_nano=0)  # what costs nothing passes


async def test_what_is_given_back_is_given_back_on_every_scope(admission: Admission, store_uri: str) -> None:
    caller = tree_caller(dict.fromkeys(KINDS, WIDE), RICH)
    grant = await take(admission, caller)
    await admission.settle(grant, tokens=100, cost_nano=70)
    assert set((await admission.spent(caller)).values()) == {70}
    before = await state(admission.store, store_uri)
    await admission.cancel(await take(admission, caller))
    after = await state(admission.store, store_uri)
    # Redis keeps for a while that the exchange is over, so that a late call finds it so.
    counted = {k: v for k, v in after.items() if k in before}
    assert {k: v for k, v in counted.items() if v} == {k: v for k, v in before.items() if v}


async def test_a_temporary_increase_ends_at_its_instant(clock: Clock) -> None:
    admission = Admission(MemoryStore(clock), clock=clock)
    for kind in MONEY:
        raised = Budget(100, None, extra_nano=50, extra_until_at=clock.now + 10)
        callers = tree_caller({}, {kind: (raised,)}, **{kind: f"raised-{kind}"})
        await take(admission, callers, hold_nano=120)
        with pytest.raises(BudgetExceededError, match=r"\$0\.00000015 "):
            await take(admission, callers, hold_nano=40)
        clock.now += 10
        with pytest.raises(BudgetExceededError, match=r"\$0\.0000001 "):
            await take(admission, callers, hold_nano=1)


async def test_several_windows_at_once_each_end_by_themselves(clock: Clock) -> None:
    admission = Admission(MemoryStore(clock), clock=clock)
    caller = tree_caller({}, {"team": (Budget(100, "1h"), Budget(150, "1d"), Budget(220, "30d", clock.now))})
    granted = []
    for hour in range(60):
        for _ in range(4):
            try:
                await admission.settle(await take(admission, caller, hold_nano=50), tokens=0, cost_nano=50)
                granted.append(hour)
            except BudgetExceededError:
                pass
        clock.now += 3600
    # Two of 50 an hour, three a day, four in thirty days.
    assert len(granted) == 4
    assert Counter(granted).most_common(1)[0][1] == 2
    days = Counter(int((clock.now - 3600 * (60 - hour)) // 86400) for hour in granted)
    assert max(days.values()) == 3


async def test_a_storm_over_replicas_admits_what_every_scope_allows_and_no_more(
    redis_like_url: str, open_stores: Open
) -> None:
    """Four replicas; callers that share teams, users, tags … in every mixture. Each scope counts exactly the admitted
    ones that have it above them, and whoever was refused had a scope that was full."""
    admissions = [Admission(open_stores(redis_like_url)) for _ in range(4)]
    picks = random.Random(8)
    allowed = {kind: picks.randint(6, 14) for kind in KINDS}
    limits = {kind: Limits(rpm=allowed[kind]) for kind in KINDS}

    def caller() -> Identity:
        return tree_caller(limits, **{kind: picks.choice("123") for kind in MONEY})

    async def one(number: int, who: Identity) -> tuple[Identity, Grant | RateLimitedError]:
        try:
            return who, await take(admissions[number % 4], who, tokens=0, hold_nano=0)
        except RateLimitedError as error:
            return who, error

    results = await asyncio.gather(*(one(number, caller()) for number in range(400)))
    used: Counter[str] = Counter()
    for who, result in results:
        if isinstance(result, Grant):
            used.update(claim.key for claim in admissions[0].claims_of(who, "gpt").requests)
    assert sum(used.values()) > 50
    caps: dict[str, int] = {}
    for who, _ in results:
        caps |= {claim.key: claim.limit for claim in admissions[0].claims_of(who, "gpt").requests}
    assert all(used[key] <= cap for key, cap in caps.items())
    async with Redis.from_url(redis_like_url) as client:
        assert {key: await client.zcard("{sidecar}:r:" + key) for key in caps} == {key: used[key] for key in caps}
    for who, result in results:
        if not isinstance(result, Grant):
            full = [c for c in admissions[0].claims_of(who, "gpt").requests if used[c.key] == c.limit]
            assert any(f"the {c.kind.replace('_', ' ')} limit is {c.limit} " in result.message for c in full)


async def test_exactly_the_team_limit_over_four_replicas(redis_like_url: str, open_stores: Open) -> None:
    admissions = [Admission(open_stores(redis_like_url)) for _ in range(4)]
    callers = [tree_caller({"team": Limits(rpm=60), "key": Limits(rpm=500)}, key=str(n)) for n in range(5)]
    attempts = (take(admissions[n % 4], callers[n % 5]) for n in range(200))
    results = await asyncio.gather(*attempts, return_exceptions=True)
    assert Counter(type(result) for result in results) == {Grant: 60, RateLimitedError: 140}
    async with Redis.from_url(redis_like_url) as client:
        used = [await client.zcard(f"{{sidecar}}:r:key:{caller.key_hash}") for caller in callers]
    assert sum(used) == 60


async def test_an_admission_is_one_command_and_so_is_its_end(redis_like_url: str, open_stores: Open) -> None:
    """However many scopes, windows and limits: what Redis itself saw on the wire."""
    admission = Admission(open_stores(redis_like_url), global_limits=WIDE)
    caller = tree_caller(dict.fromkeys(KINDS, WIDE), RICH)
    first = await take(admission, caller)  # loads scripts, seeds counters
    await admission.settle(first, tokens=1, cost_nano=1)
    claims = admission.claims_of(caller, "gpt")
    assert (len(claims.requests), len(claims.tokens), len(claims.slots), len(claims.windows)) == (15, 15, 15, 14)
    async with Redis.from_url(redis_like_url) as client, client.monitor() as monitor:
        grant = await take(admission, caller)
        await admission.settle(grant, tokens=1, cost_nano=1)
        full = tree_caller({"tag": Limits(rpm=0)}, RICH)
        with pytest.raises(RateLimitedError):
            await take(admission, full)
        async with Redis.from_url(redis_like_url) as other:
            await other.echo("the end")
        seen = []
        while True:
            command = await monitor.next_command()
            if "the end" in command["command"]:
                break
            if command["client_type"] != "lua":
                seen.append(command["command"].split()[0].upper())
    assert [name for name in seen if name not in ("CLIENT", "HELLO", "SELECT", "PING")] == ["EVALSHA"] * 3
