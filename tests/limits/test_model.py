"""Random work against a naive model that keeps every admission for ever: same answers, and counter == sum at rest."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sidecar.limits.claims import Admitted, Denied
from sidecar.limits.store import LimitStore, open_store
from sidecar.limits.store.memory import MemoryStore
from tests.limits.making import NOW, claims, take, window

KINDS = ("global", "key")
RPM, TPM, SLOTS = {"global": 6, "key": 3}, {"global": 90, "key": 60}, {"global": 4, "key": 2}
MONEY = {"global": 300, "key": 120}
MICRO = 1_000_000


@dataclass
class Model:
    """Obvious rather than fast; instants in microseconds."""

    requests: list[tuple[int, str]] = field(default_factory=list)
    tokens: list[tuple[int, int]] = field(default_factory=list)
    live: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    spent: int = 0

    def in_minute(self, at: int) -> int:
        return sum(1 for t, _ in self.requests if at - 60 * MICRO < t <= at)

    def tokens_in_minute(self, at: int) -> int:
        return sum(n for second, n in self.tokens if second > at // MICRO - 61)

    def fits(self, at: int, tokens: int, hold: int) -> bool:
        held = self.spent + sum(h for _, _, h in self.live.values())
        return (
            self.in_minute(at) < min(RPM.values())
            and self.tokens_in_minute(at) + tokens <= min(TPM.values())
            and len(self.live) < min(SLOTS.values())
            and (hold == 0 or held + hold <= min(MONEY.values()))
        )

    def admit(self, name: str, at: int, tokens: int, hold: int) -> None:
        self.requests.append((at, name))
        self.tokens.append((at // MICRO, tokens))
        self.live[name] = (at, tokens, hold)

    def settle(self, name: str, at: int, tokens: int | None, cost: int | None) -> None:
        began, reserved, hold = self.live.pop(name)
        if tokens is not None:
            # A surplus counts when it is known; what was not used never counted.
            self.tokens.append((at // MICRO if tokens > reserved else began // MICRO, tokens - reserved))
        self.spent += hold if cost is None else cost

    def cancel(self, name: str) -> None:
        began, reserved, _ = self.live.pop(name)
        self.requests = [(t, n) for t, n in self.requests if n != name]
        self.tokens.append((began // MICRO, -reserved))


steps = st.lists(
    st.tuples(
        st.sampled_from(["acquire", "acquire", "acquire", "settle", "cancel", "again", "extend"]),
        st.sampled_from([0, 1, 999_999, MICRO, 7 * MICRO, 20 * MICRO, 59_999_999, 60 * MICRO]),
        st.integers(0, 40),
        st.integers(0, 60),
        st.booleans(),
    ),
    max_size=60,
)


OVERSPENT = [("acquire", 0, 0, 52, False), ("acquire", 0, 0, 0, False), ("extend", 0, 0, 57, False)]
OVERSPENT += [("settle", 0, 0, 0, True), ("settle", 0, 0, 12, False), ("acquire", 0, 0, 0, False)]
"""What costs nothing comes while more is spent than there is."""


@given(steps)
@example(OVERSPENT)
@settings(max_examples=300, deadline=None)
def test_memory_agrees_with_the_model(work: Any) -> None:
    asyncio.run(_compare(MemoryStore(lambda: NOW), work, ""))


_runs = itertools.count()


@given(steps)
@example(OVERSPENT)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_redis_and_valkey_agree_with_the_model(redis_url: str, valkey_url: str, work: Any) -> None:
    run = str(next(_runs))
    for url in (redis_url, valkey_url):
        asyncio.run(_compare(open_store(url, deadline_s=10.0), work, run))


async def _compare(store: LimitStore, work: Any, run: str) -> None:
    model = Model()
    budgets = tuple(window(f"{kind}{run}", most) for kind, most in MONEY.items())
    rates = [{f"{kind}{run}": limit for kind, limit in limits.items()} for limits in (RPM, TPM, SLOTS)]
    wanted = claims(rpm=rates[0], tpm=rates[1], slots=rates[2], windows=budgets)
    await store.seed({w.key: 0 for w in budgets}, budgets, now=NOW)
    at, last, settled = int(NOW) * MICRO, "", {}
    try:
        for number, (what, later, tokens, money, flag) in enumerate(work):
            at += later
            now, name = at / MICRO, f"{run}-{number}"
            oldest = next(iter(model.live), None)
            if what == "acquire":
                fits = model.fits(at, tokens, money)
                result = await take(store, wanted, now, exchange=name, tokens=tokens, hold=money, lease_s=1e5)
                assert isinstance(result, Admitted) == fits, result
                if isinstance(result, Denied):
                    await _check_wait(store, model, wanted, result, at, tokens, money)
                else:
                    model.admit(name, at, tokens, money)
                    last = name
            elif what == "again" and last in model.live:
                result = await take(store, wanted, now, exchange=last, tokens=tokens, hold=money)
                assert isinstance(result, Admitted)
            elif oldest is None:
                continue
            elif what == "settle":
                used, cost = (None if flag else tokens), (None if flag else money)
                assert await store.settle(oldest, tokens=used, cost_nano=cost, now=now)
                settled[oldest] = model.live[oldest][2] if cost is None else cost
                model.settle(oldest, at, used, cost)
                assert not await store.settle(oldest, tokens=1, cost_nano=1, now=now)
            elif what == "extend":
                began, reserved, hold = model.live[oldest]
                held = model.spent + sum(h for _, _, h in model.live.values())
                fits = held + money <= min(MONEY.values())
                assert await store.extend(oldest, wanted, money) == fits
                if fits:
                    model.live[oldest] = (began, reserved, hold + money)
            elif what == "cancel":
                await store.cancel(oldest)
                model.cancel(oldest)
            held = model.spent + sum(h for _, _, h in model.live.values())
            assert set((await store.spent([w.key for w in budgets])).values()) == {held}
        for name in list(model.live):
            await store.settle(name, tokens=None, cost_nano=3, now=at / MICRO)
            settled[name] = 3
        assert set((await store.spent([w.key for w in budgets])).values()) == {sum(settled.values())}
    finally:
        await store.aclose()
    instants = sorted(t for t, _ in model.requests)
    for start in instants:
        assert sum(1 for t in instants if start <= t < start + 60 * MICRO) <= min(RPM.values())


async def _check_wait(
    store: LimitStore, model: Model, wanted: Any, refused: Denied, at: int, tokens: int, money: int
) -> None:
    """Waiting as told is enough, and a microsecond less is not (slots and money depend on others)."""
    if refused.what not in ("requests", "tokens") or refused.retry_after_s is None:
        return
    then = at + round(refused.retry_after_s * MICRO)
    assert not model.fits(then - 1, tokens, 0)
    assert model.in_minute(then) < min(RPM.values())
    assert model.tokens_in_minute(then) + tokens <= min(TPM.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_itself_has_a_tightest_scope(kind: str) -> None:
    assert RPM["key"] <= RPM[kind]
    assert MONEY["key"] <= MONEY[kind]
