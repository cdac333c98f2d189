"""What `on_store_failure="open"` may cost is said, with the figures that are known."""

from __future__ import annotations

from sidecar.limits.admission import Admission
from sidecar.limits.store.memory import MemoryStore
from sidecar.limits.store.redis import RedisStore
from sidecar.types import Budget, Limits


def shared(**options: object) -> Admission:
    return Admission(RedisStore("redis://127.0.0.1:1/0"), **options)  # type: ignore[arg-type]


def test_the_bound_names_the_global_limits_and_budgets() -> None:
    bound = shared(
        on_store_failure="open", global_limits=Limits(rpm=60, concurrency=4), global_budgets=[Budget(5 * 10**9, "1d")]
    ).bound_while_down()
    assert bound is not None
    assert bound.endswith("at most 60 requests a minute, 4 requests at once, $5.00 per 1d per process.")


def test_without_a_shared_store_or_with_the_closed_policy_there_is_nothing_to_say() -> None:
    assert Admission(MemoryStore(), on_store_failure="open").bound_while_down() is None
    assert shared().bound_while_down() is None
