"""Who is next: by priority, fair between keys, bounded. Pure."""

from __future__ import annotations

import random
import sys
from collections import Counter
from typing import Any

import pytest

from sidecar.routing.line import Lines, Waiter


def served(lines: Lines, line: str = "l") -> list[str]:
    """Owners in the order of their turns, until nobody is left."""
    order = []
    while (first := lines.first(line)) is not None:
        order.append(first.owner)
        lines.leave(first, is_served=True)
    return order


def stand(lines: Lines, *owners: str, line: str = "l", priority: int = 0) -> list[Waiter]:
    waiters = [Waiter(owner, priority) for owner in owners]
    for waiter in waiters:
        assert lines.join(waiter, line)[0]
    return waiters


def test_keys_take_turns_however_many_each_has_waiting() -> None:
    lines = Lines(100)
    stand(lines, *"aaaa", "b", "c", "b")
    assert "".join(served(lines)) == "abcabaa"
    assert lines.count == 0
    assert "l" not in lines


def test_a_higher_priority_goes_first() -> None:
    lines = Lines(100)
    stand(lines, "a", "b")
    stand(lines, "c", "c", priority=5)
    stand(lines, "d", priority=-1)
    assert "".join(served(lines)) == "ccabd"


def test_who_was_not_served_stays_first() -> None:
    lines = Lines(100)
    one, *_ = stand(lines, "a", "a", "b")
    assert lines.first("l") is one
    assert lines.first("l") is one
    lines.leave(one)
    assert "".join(served(lines)) == "ab", "leaving without being served is no turn"


def test_the_place_is_the_number_of_turns_until_ones_own() -> None:
    draw = random.Random(3)
    for _ in range(300):
        lines = Lines(100)
        waiters = [Waiter(draw.choice("abcd"), draw.choice((0, 0, 1))) for _ in range(draw.randrange(1, 15))]
        for waiter in waiters:
            lines.join(waiter, "l")
        for _ in range(draw.randrange(3)):
            if (first := lines.first("l")) is not None:
                lines.leave(first, is_served=True)
        places = {id(w): lines.place(w) for w in waiters if w.line}
        turn = 0
        while (first := lines.first("l")) is not None:
            turn += 1
            assert places[id(first)] == turn
            lines.leave(first, is_served=True)


def test_lines_do_not_mix() -> None:
    lines = Lines(100)
    stand(lines, "a", line="one")
    stand(lines, "b", line="other")
    assert (served(lines, "one"), served(lines, "other")) == (["a"], ["b"])


def test_all_places_taken_the_greedy_key_gives_way() -> None:
    lines = Lines(3)
    greedy = stand(lines, "a", "a", "a")
    is_in, gone = lines.join(Waiter("b"), "l")
    assert (is_in, gone) == (True, greedy[-1])
    assert lines.join(Waiter("a"), "l") == (False, None)
    assert lines.join(Waiter("b"), "l") == (False, None), "it would have as many as the other"
    assert lines.count == 3


def test_all_places_taken_the_lowest_priority_gives_way_also_in_another_line() -> None:
    lines = Lines(2)
    low, high = Waiter("a", 0), Waiter("b", 5)
    lines.join(low, "one")
    lines.join(high, "other")
    assert lines.join(Waiter("c", 3), "other") == (True, low)
    assert "one" not in lines
    assert lines.join(Waiter("d", 0), "one") == (False, None)
    assert lines.join(Waiter("d", 9), "one")[0]
    assert lines.first("one") is not None


def test_one_that_changes_its_line_leaves_the_first() -> None:
    lines = Lines(5)
    (waiter,) = stand(lines, "a", line="one")
    assert lines.join(waiter, "other") == (True, None)
    assert (lines.count, "one" in lines, lines.first("other")) == (1, False, waiter)
    lines.leave(waiter)
    lines.leave(waiter)
    assert lines.count == 0


def test_a_room_without_places_takes_nobody() -> None:
    assert Lines(0).join(Waiter("a"), "l") == (False, None)


def test_who_gives_way_is_known_also_after_many_came_and_went() -> None:
    """Against counting all of them anew each time."""
    draw = random.Random(7)
    lines, standing = Lines(12), list[Waiter]()
    for _ in range(5000):
        if standing and draw.random() < 0.4:
            lines.leave(standing.pop(draw.randrange(len(standing))), is_served=draw.random() < 0.5)
            continue
        newcomer = Waiter(draw.choice("abcde"), draw.choice((0, 0, 0, 1)))
        lowest = min((w.priority for w in standing), default=0)
        counts = Counter(w.owner for w in standing if w.priority == lowest)
        most = max(counts.values(), default=0)
        is_full = lines.count == lines.size
        comes = newcomer.priority > lowest
        comes |= newcomer.priority == lowest and counts[newcomer.owner] + 1 < most
        is_in, gone = lines.join(newcomer, draw.choice(("one", "other")))
        assert is_in == (not is_full or comes)
        if gone is not None:
            assert (gone.priority, counts[gone.owner]) == (lowest, most)
            later = standing[standing.index(gone) + 1 :]
            assert not [w for w in later if (w.priority, w.owner) == (gone.priority, gone.owner)]
            standing.remove(gone)
        if is_in:
            standing.append(newcomer)
        assert lines.count == len(standing)


@pytest.mark.parametrize("way", ["a newcomer has to be refused", "one joins and leaves"])
def test_a_full_room_costs_no_more_the_more_keys_wait(way: str) -> None:
    def steps(keys: int) -> int:
        lines = Lines(keys if way.startswith("a newcomer") else keys + 1)
        stand(lines, *map(str, range(keys)))
        count = 0

        def count_steps(frame: Any, event: str, argument: Any) -> Any:
            nonlocal count
            count += 1
            frame.f_trace_opcodes = True
            return count_steps

        waiter = Waiter("new")
        sys.settrace(count_steps)
        try:
            if lines.join(waiter, "l")[0]:
                lines.place(waiter)
                lines.leave(waiter)
        finally:
            sys.settrace(None)
        return count

    assert steps(4000) < 2 * steps(40)
