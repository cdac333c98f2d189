"""Each strategy as a function of the board; the board's arithmetic."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from math import inf
from types import SimpleNamespace

import pytest

from sidecar.routing.affinity import at_home, prefix_of
from sidecar.routing.board import Board
from sidecar.routing.level import Level
from sidecar.routing.strategies import STRATEGIES, adaptive, cost, latency, least_busy, throughput, usage, weighted
from sidecar.spend.prices import price_from_config
from sidecar.types import Deployment, Limits
from tests.routing.support import deployment

A, B, C = deployment("a"), deployment("b"), deployment("c")
NOW = 1000.0


def draws(*values: float) -> Callable[[], float]:
    left = list(values)
    return lambda: left.pop(0)


def seen(
    board: Board, one: Deployment, wait_s: float, now: float = NOW, *, failed: bool = False, output: int = 0
) -> None:
    live = board.started(one, now - wait_s)
    board.ended(live, now, took_s=wait_s, failed=failed, output=output)


def test_weights_share_the_draw() -> None:
    heavy, light = deployment("heavy", weight=3.0), deployment("light")
    picks = Counter(weighted([heavy, light], Board(), NOW, draws(i / 400)).deployment_id for i in range(400))
    assert picks == {"heavy": 300, "light": 100}


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_uses_all_of_equals_by_weight(name: str) -> None:
    places = [deployment("a", weight=2.0), deployment("b"), deployment("c")]
    board, draw = Board(), random.Random(7).random
    for one in places:
        seen(board, one, 1.0, output=10)
    picks: Counter[str] = Counter()
    for _ in range(4000):
        chosen = STRATEGIES[name](places, board, NOW, draw)
        picks[chosen.deployment_id] += 1
        seen(board, chosen, 1.0, output=10)
    assert set(picks) == {"a", "b", "c"}
    assert 1700 < picks["a"] < 2300


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_takes_a_lone_one_and_one_nobody_knows(name: str) -> None:
    assert STRATEGIES[name]([A], Board(), NOW, lambda: 0.5) is A
    assert STRATEGIES[name]([A, B], Board(), NOW, lambda: 0.99) in (A, B)


def test_least_busy_counts_calls_for_the_weight() -> None:
    board, big = Board(), deployment("big", weight=3.0)
    for one in (A, big, big):
        board.started(one, NOW)
    assert least_busy([A, big], board, NOW, draws(0.0)) is big
    board.started(big, NOW)
    board.started(big, NOW)
    assert least_busy([A, big], board, NOW, draws(0.9)) is A


def test_latency_has_a_buffer_and_passes_over_what_fails() -> None:
    board = Board()
    for one, wait_s in ((A, 1.0), (B, 1.1), (C, 2.0)):
        seen(board, one, wait_s)
    picks = {latency([A, B, C], board, NOW, draws(i / 10)).deployment_id for i in range(10)}
    assert picks == {"a", "b"}
    seen(board, A, 0.1, failed=True)
    assert latency([A, B, C], board, NOW, draws(0.0)) is B


def test_latency_tries_one_nobody_knows_once_and_asks_again_after_a_while() -> None:
    board = Board()
    seen(board, A, 1.0)
    assert latency([A, B], board, NOW, draws()) is B
    live = board.started(B, NOW)
    assert latency([A, B], board, NOW, draws(0.0)) is A, "its first call is still out"
    board.ended(live, NOW, took_s=9.0)
    assert latency([A, B], board, NOW, draws(0.9)) is A
    seen(board, A, 1.0, NOW + 100)
    assert latency([A, B], board, NOW + 100, draws()) is B


def test_throughput_goes_by_seconds_per_token() -> None:
    board = Board()
    seen(board, A, 10.0, output=1000)
    seen(board, B, 5.0, output=100)
    assert throughput([A, B], board, NOW, draws(0.9)) is A


def test_usage_goes_by_headroom_then_by_calls_this_minute() -> None:
    small = deployment("small", limits=Limits(rpm=10))
    big = deployment("big", limits=Limits(rpm=100, tpm=1000))
    board = Board()
    for _ in range(5):
        board.started(big, NOW)
    board.started(small, NOW)
    assert usage([small, big], board, NOW, draws(0.0)) is big
    board.started(big, NOW, tokens=900)
    assert usage([small, big], board, NOW, draws(0.0)) is small
    board.started(A, NOW)
    assert usage([A, B], board, NOW, draws(0.0)) is B
    assert usage([A, B], board, NOW + 70, draws(0.0)) is A, "a minute later it is forgotten"


@pytest.mark.parametrize("seed", range(5))
def test_usage_always_takes_one_of_those_with_the_most_headroom(seed: int) -> None:
    choose, board, now = random.Random(seed), Board(), NOW
    caps = [(7, 900, 3), (20, None, 2), (None, 5000, None), (50, 800, 9), (None, None, 1)]
    many = [deployment(f"d{n}", limits=Limits(rpm=r, tpm=t, concurrency=c)) for n, (r, t, c) in enumerate(caps * 2)]
    level, others, running = Level(many), Level(many[3:7]), []
    chosen = Counter[str]()
    for step in range(600):
        now += choose.choice((0.0, 0.1, 2.0, 30.0))
        if step == 300:  # the configuration changed
            many = [deployment(d.deployment_id, limits=Limits(rpm=11)) for d in many[:8]]
            level, others = Level(many), Level(many[3:7])
            board.keep([d.deployment_id for d in many])
        for some in (level, others):
            taken = usage(some, board, now, choose.random)
            shares = {
                d.deployment_id: max(
                    live.requests / (d.limits.rpm or inf),
                    live.tokens / (d.limits.tpm or inf),
                    live.in_flight / (d.limits.concurrency or inf),
                )
                for d in some
                for live in [board.of(d)]
            }
            assert shares[taken.deployment_id] == min(shares.values()), step
            chosen[taken.deployment_id] += 1
        if choose.random() < 0.6 or not running:
            running.append((board.started(taken, now, choose.randrange(300)), choose.randrange(900)))
        else:
            live, used = running.pop(choose.randrange(len(running)))
            failed = choose.choice((True, False, None))
            board.ended(live, now, took_s=1.0, used=used, reserved=200, failed=failed)
    assert len(chosen) > 7


def test_cost_takes_the_cheapest_and_an_unknown_price_last() -> None:
    def priced(name: str, rates: object) -> Deployment:
        return deployment(name, price=price_from_config(rates))  # type: ignore[arg-type]

    dear = priced("dear", {"input": Decimal(3), "output": Decimal(15)})
    cheap = priced("cheap", {"input": Decimal(1), "output": Decimal(5)})
    assert cost([dear, A, cheap], Board(), NOW, draws(0.0)) is cheap
    assert cost([A, dear], Board(), NOW, draws(0.0)) is dear
    assert (
        cost([cheap, deployment("free", price=SimpleNamespace(status="free"))], Board(), NOW, draws(0.0)).deployment_id
        == "free"
    )


def test_adaptive_takes_the_shorter_queue_of_two() -> None:
    board = Board()
    seen(board, A, 1.0)
    seen(board, B, 3.0)
    assert adaptive([A, B], board, NOW, draws(0.9)) is A
    for _ in range(9):
        board.started(A, NOW)
    assert adaptive([A, B], board, NOW, draws(0.0)) is B
    assert adaptive([A, B, C], board, NOW, draws(0.0, 0.0)) is B, "C was not drawn"


def test_adaptive_is_not_drawn_to_quick_failures() -> None:
    board = Board()
    for _ in range(3):
        seen(board, A, 0.01, failed=True)
    seen(board, B, 0.03)
    assert adaptive([A, B], board, NOW, draws(0.0)) is B


def test_a_peak_counts_whole_and_fades() -> None:
    board = Board()
    live = board.of(A)
    seen(board, A, 1.0)
    seen(board, A, 8.0)
    assert live.peak_s(NOW) == 8.0
    assert 2.9 < live.peak_s(NOW + 10) < 3.0
    seen(board, A, 1.0, NOW + 10)
    assert 3.0 < live.peak_s(NOW + 10) < 3.7


def test_no_rolling_minute_holds_more_than_the_limit() -> None:
    random_ = random.Random(11)
    board, limited = Board(), deployment("l", limits=Limits(rpm=10))
    now, admitted = NOW, []
    for _ in range(4000):
        now += random_.random() * 2
        if board.room_in_s(limited, 0, now) == 0:
            board.ended(board.started(limited, now), now, took_s=0.1)
            admitted.append(now)
    for at in admitted:
        assert sum(at <= other < at + 60 for other in admitted) <= 10
    assert len(admitted) > 9 * (now - NOW) / 65, "but nearly as many as it allows"


def test_room_is_there_when_it_was_said_to_be() -> None:
    board, limited = Board(), deployment("l", limits=Limits(rpm=2, tpm=100, concurrency=1))
    live = board.started(limited, NOW, tokens=50)
    assert board.room_in_s(limited, 10, NOW) == 1.0, "one at a time"
    board.ended(live, NOW, took_s=1.0, used=80, reserved=50)
    assert board.room_in_s(limited, 10, NOW) == 0.0
    wait_s = board.room_in_s(limited, 30, NOW)
    assert 60 <= wait_s <= 65
    assert board.room_in_s(limited, 30, NOW + wait_s) == 0.0
    board.started(deployment("big", limits=Limits(tpm=10)), NOW)
    assert board.room_in_s(deployment("big", limits=Limits(tpm=10)), 500, NOW) == 0.0, "alone it may be larger"


def test_the_board_forgets_what_is_not_configured_once_nothing_runs() -> None:
    board = Board()
    live = board.started(A, NOW)
    seen(board, B, 1.0)
    board.keep([])
    assert len(board) == 1
    board.ended(live, NOW, took_s=1.0)
    board.keep([])
    assert len(board) == 0


CHAT = {
    "tools": [{"type": "function", "function": {"name": "look", "description": "looks"}}],
    "messages": [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ],
}


def test_a_conversation_keeps_its_beginning() -> None:
    later = {**CHAT, "temperature": 1, "messages": [*CHAT["messages"], {"role": "assistant", "content": "ho"}]}
    assert prefix_of(later) == prefix_of(CHAT)
    for other in ({**CHAT, "tools": []}, {**CHAT, "messages": CHAT["messages"][1:]}, {**CHAT, "prompt_cache_key": "x"}):
        assert prefix_of(other) != prefix_of(CHAT)
    assert prefix_of({"prompt_cache_key": "x"}) == prefix_of({**CHAT, "prompt_cache_key": "x"})


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"messages": 3},
        {"messages": ["x", None]},
        {"messages": [{"content": 5}], "tools": [1]},
        {"messages": [{"content": "\ud800"}]},
    ],
)
def test_odd_bodies_have_a_beginning_too(odd: dict[str, object]) -> None:
    assert prefix_of(odd) == prefix_of(odd)


def test_homes_are_shared_by_weight_and_few_move_when_one_goes() -> None:
    places = [deployment("a", weight=2.0), B, C]
    before = {n: at_home(n * 7919, places, Board()) for n in range(4000)}
    share = Counter(d.deployment_id for d in before.values())
    assert 1800 < share["a"] < 2200
    after = {n: at_home(n * 7919, places[:2], Board()) for n in range(4000)}
    assert all(after[n] is home for n, home in before.items() if home is not C)


def test_a_home_much_busier_than_its_share_is_passed_over() -> None:
    board, places = Board(), [A, B]
    home = at_home(1, places, board)
    other = B if home is A else A
    calls = []
    for _ in range(40):
        chosen = at_home(1, places, board)
        calls.append(chosen)
        board.started(chosen, NOW)
    assert calls[0] is home
    assert 22 <= calls.count(home) <= 27, "a quarter more than its half"
    assert calls.count(other) == 40 - calls.count(home)


def test_one_that_was_outrun_counts_as_twice_as_slow_as_it_was_seen_to_be() -> None:
    board = Board()
    slow, quick = deployment("slow"), deployment("quick")
    live = board.of(slow)
    live.outrun(1000.0, 1.0)
    assert live.wait_s == 2.0
    live.waited(1001.0, 30.0)
    known = live.wait_s
    live.outrun(1002.0, 1.0)
    assert live.wait_s == known, "that is no news"
    board.of(quick).waited(1000.0, 0.1)
    assert adaptive([slow, quick], board, 1002.0, random.Random(1).random) is quick


def test_that_all_have_room_is_said_only_if_each_has() -> None:
    random_, board, now = random.Random(5), Board(), NOW
    level = Level(
        [
            deployment("a", limits=Limits(rpm=30, concurrency=12)),
            deployment("b", limits=Limits(tpm=2000)),
            deployment("c"),
            deployment("d", limits=Limits(rpm=60, tpm=900)),
        ]
    )
    said, running = Counter[bool](), []
    for _ in range(6000):
        now += random_.random()
        tokens = random_.choice([0, 5, 60])
        rooms = [board.room_in_s(d, tokens, now) == 0 for d in level if not d.limits.is_empty]
        has_room = board.has_room(level, tokens, now) and not board.is_any_full(level, now)
        said[has_room] += 1
        assert all(rooms) or not has_room
        assert has_room or not all(rooms) or tokens > 0, "only one that was not asked yet may have more than its limit"
        if random_.random() < 0.4:
            running.append((board.started(random_.choice(level), now, tokens), tokens))
        if running and random_.random() < 0.4:
            live, reserved = running.pop(random_.randrange(len(running)))
            board.ended(live, now, took_s=1.0, used=random_.choice([0, reserved, 90]), reserved=reserved)
        if random_.random() < 0.01:
            board.filled(random_.choice(level[:2]), now + 3)
    assert min(said.values()) > 500


@pytest.mark.parametrize("name", ["adaptive", "latency", "throughput"])
def test_one_that_never_answered_anything_gets_hardly_a_call_however_quick_it_fails(name: str) -> None:
    board, draw, now = Board(), random.Random(7).random, 0.0
    picks: Counter[str] = Counter()
    for _ in range(600):
        now += 0.1
        chosen = STRATEGIES[name]([A, B], board, now, draw)
        picks[chosen.deployment_id] += 1
        seen(board, chosen, 0.01 if chosen is A else 0.5, now, failed=chosen is A, output=0 if chosen is A else 10)
    assert picks["a"] <= 3
    picks.clear()
    for _ in range(600):
        now += 0.1
        chosen = STRATEGIES[name]([A, B], board, now, draw)
        picks[chosen.deployment_id] += 1
        seen(board, chosen, 0.1, now, output=10)
    assert picks["a"] > 300, "once it answers it is found again within a minute"


def test_one_that_does_not_tell_its_tokens_is_not_asked_each_time_for_that() -> None:
    board = Board()
    seen(board, A, 1.0)
    seen(board, B, 1.0, output=10)
    assert throughput([A, B], board, NOW, draws(0.0)) is B


def test_a_clock_that_is_set_back_fills_no_deployment_for_ever() -> None:
    board, small = Board(), deployment("small", limits=Limits(rpm=1, tpm=100))
    live = board.started(small, NOW + 90_000, tokens=90)
    assert board.room_in_s(small, 50, NOW + 90_000) > 0
    assert board.room_in_s(small, 50, NOW) == 0
    board.started(small, NOW, tokens=50)
    board.ended(live, NOW, took_s=1.0, used=10, reserved=90)
    assert board.room_in_s(small, 50, NOW) > 0
    assert board.room_in_s(small, 50, NOW + 66) == 0
