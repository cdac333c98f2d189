"""What a client is told when every attempt failed, as a table."""

from __future__ import annotations

import pytest

from sidecar.errors import ProviderError
from sidecar.routing.verdict import final_error
from sidecar.types import Deployment


def failed(place: str, status: int, wait_s: float | None) -> tuple[Deployment, ProviderError]:
    deployment = Deployment(place, "gpt", "openai", "gpt-4o", "http://127.0.0.1:9")
    error = ProviderError(
        "no", kind="rate_limit", status=status, type="t", code="c", retry_after_s=wait_s, is_retryable=True
    )
    return deployment, error


@pytest.mark.parametrize(
    ("failures", "status", "wait_s"),
    [
        ([failed("a", 429, 7), failed("b", 429, 30)], 429, 7),
        ([failed("a", 429, 30), failed("b", 429, 7)], 429, 7),
        ([failed("a", 429, 7), failed("b", 429, None)], 429, 7),
        ([failed("a", 429, 7), failed("a", 429, 30)], 429, 30),
        ([failed("a", 429, 30), failed("b", 503, 7)], 503, 7),
    ],
    ids=["first is sooner", "last is sooner", "one says nothing", "one place: its last word", "they disagree"],
)
def test_who_is_to_wait_is_told_the_soonest_that_any_of_several_places_has_room(
    failures: list[tuple[Deployment, ProviderError]], status: int, wait_s: float
) -> None:
    error = final_error(failures)
    assert (error.status, error.retry_after_s) == (status, wait_s)
