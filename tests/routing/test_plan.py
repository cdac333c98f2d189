"""The plan as a dialogue: outcomes in, deployments out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sidecar.errors import NotFoundError, PermissionDeniedError
from sidecar.routing.catalog import Catalog
from sidecar.routing.health import Health
from sidecar.routing.plan import Failure, attempts, weighted
from sidecar.types import Deployment, Identity

RETRY = Failure(is_retryable=True)
FATAL = Failure(is_retryable=False)


def deployment(name: str, group: str = "g", **options: object) -> Deployment:
    return Deployment(name, group, "openai", name, "http://127.0.0.1:9", **options)  # type: ignore[arg-type]


def dialogue(
    candidates: Sequence[Deployment], outcomes: Sequence[Failure], *, retries: int = 2, draw: float = 0.0
) -> list[str]:
    plan = attempts(candidates, retries=retries, draw=lambda: draw, available=lambda d: d)
    tried = [next(plan).deployment_id]
    for outcome in outcomes:
        try:
            tried.append(plan.send(outcome).deployment_id)
        except StopIteration:
            return [*tried, "stop"]
    return tried


A, B, C = deployment("a"), deployment("b"), deployment("c", order=2)
F = deployment("f", "fallback")

DIALOGUES = [
    ("a lone deployment is retried", [A], [RETRY, RETRY, RETRY], ["a", "a", "a", "stop"]),
    ("a fatal error ends the plan", [A, B], [FATAL], ["a", "stop"]),
    ("another healthy one comes before the same again", [A, B], [RETRY, RETRY], ["a", "b", "a"]),
    ("a level is used up before the next", [C, A, B], [RETRY, RETRY, RETRY], ["a", "b", "c", "stop"]),
    ("fallbacks come after the group", [A, F], [RETRY, FATAL], ["a", "f", "stop"]),
    ("the attempt budget spans fallbacks", [A, B, C, F], [RETRY, RETRY, RETRY], ["a", "b", "c", "stop"]),
]


@pytest.mark.parametrize(("name", "candidates", "outcomes", "expected"), DIALOGUES, ids=[d[0] for d in DIALOGUES])
def test_dialogue(name: str, candidates: list[Deployment], outcomes: list[Failure], expected: list[str]) -> None:
    assert dialogue(candidates, outcomes) == expected


def test_weights_share_the_draw() -> None:
    heavy, light = deployment("heavy", weight=3.0), deployment("light")
    picks = [weighted([heavy, light], i / 400).deployment_id for i in range(400)]
    assert picks.count("heavy") == 300


def test_a_cooling_deployment_is_passed_over_until_its_time_but_a_lone_one_never() -> None:
    health = Health(cooldown_s=5)
    health.failed(A, "upstream_broken", now=100.0)
    assert health.available([A, B], 104.9) == [B]
    assert health.available([A, B], 105.0) == [A, B]
    assert health.available([A], 101.0) == [A]
    assert health.cooling(101.0)["a"].reason == "upstream_broken"
    health.succeeded(A)
    assert health.available([A, B], 101.0) == [A, B]


def test_candidates_close_over_aliases_and_fallbacks_without_loops() -> None:
    catalog = Catalog([A, F], fallbacks={"g": ["fallback"], "fallback": ["g"]}, aliases={"nick": "g"})
    assert [d.deployment_id for d in catalog.candidates("nick", Identity("k"))] == ["a", "f"]
    assert [d.deployment_id for d in catalog.candidates("g", Identity("k", models=("g",)))] == ["a"]


def test_unknown_and_forbidden_names_are_refused_without_listing_others() -> None:
    catalog = Catalog([A])
    with pytest.raises(NotFoundError) as unknown:
        catalog.candidates("nope", Identity("k"))
    assert "'g'" not in unknown.value.message
    with pytest.raises(PermissionDeniedError) as denied:
        catalog.candidates("g", Identity("k", models=("other",)))
    assert "other" not in denied.value.message


@pytest.mark.parametrize("name", ["openai/", "openai/*", "other/gpt", "openai"])
def test_a_wildcard_group_serves_only_whole_names_below_it(name: str) -> None:
    catalog = Catalog([Deployment("w", "openai/*", "openai", "*", "http://127.0.0.1:9")])
    with pytest.raises(NotFoundError):
        catalog.candidates(name, Identity("k"))
    (found,) = catalog.candidates("openai/gpt-4o", Identity("k"))
    assert found.model == "gpt-4o"
