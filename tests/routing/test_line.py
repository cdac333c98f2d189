"""Who is next: by priority, fair between keys, bounded. Pure."""

from __future__ import annotations

import random

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
