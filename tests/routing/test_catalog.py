"""Names to deployments: aliases, wildcards, the default group, fallbacks closed over and checked."""

from __future__ import annotations

import pytest

from sidecar.errors import NotFoundError, PermissionDeniedError
from sidecar.routing.candidates import Candidates
from sidecar.routing.catalog import Catalog
from sidecar.types import Deployment, Identity, Limits
from tests.routing.support import deployment

A, B = deployment("a"), deployment("b", order=2)
F, G = deployment("f", "fallback"), deployment("h", "last")
ANYBODY = Identity("k")


def names(candidates: Candidates) -> list[str]:
    return [d.deployment_id for d in candidates]


def test_candidates_close_over_aliases_and_fallbacks_without_loops() -> None:
    catalog = Catalog([A, F], fallbacks={"g": ["fallback"], "fallback": ["g"]}, aliases={"nick": "g"})
    assert names(catalog.candidates("nick", ANYBODY)) == ["a", "f"]
    assert names(catalog.candidates("g", Identity("k", models=("g",)))) == ["a"], "a fallback is checked, too"


def test_a_fallback_named_by_its_alias_does_not_come_twice_and_goes_on() -> None:
    catalog = Catalog(
        [A, F, G], fallbacks={"g": ["nick", "fallback"], "fallback": ["last"]}, aliases={"nick": "fallback"}
    )
    assert names(catalog.candidates("g", ANYBODY)) == ["a", "f", "h"]


def test_a_group_without_fallbacks_of_its_own_has_the_default_ones() -> None:
    catalog = Catalog([A, F, G], fallbacks={"fallback": ["g"]}, default_fallbacks=["last"])
    assert names(catalog.candidates("g", ANYBODY)) == ["a", "h"]
    assert names(catalog.candidates("fallback", ANYBODY)) == ["f", "a"]
    assert names(catalog.candidates("last", ANYBODY)) == ["h"], "never itself"


def test_fallbacks_for_a_kind_of_error_are_candidates_but_of_another_way() -> None:
    catalog = Catalog([A, F, G], fallbacks={"g": ["fallback"]}, fallbacks_on={"context_window": {"g": ["last"]}})
    found = catalog.candidates("g", ANYBODY)
    assert names(found) == ["a", "f", "h"], "Budget prices all of them"
    assert found.levels == ((A,), (F,))
    assert found.ways == {"context_window": ((G,),)}
    assert catalog.candidates("g", Identity("k", models=("g", "fallback"))).ways == {}


def test_orders_are_levels() -> None:
    assert Catalog([B, A]).candidates("g", ANYBODY).levels == ((A,), (B,))


def test_unknown_and_forbidden_names_are_refused_without_listing_others() -> None:
    catalog = Catalog([A])
    with pytest.raises(NotFoundError) as unknown:
        catalog.candidates("nope", ANYBODY)
    assert "'g'" not in unknown.value.message
    with pytest.raises(PermissionDeniedError) as denied:
        catalog.candidates("g", Identity("k", models=("other",)))
    assert "other" not in denied.value.message


@pytest.mark.parametrize("name", ["openai/", "openai/*", "other/gpt", "openai"])
def test_a_wildcard_group_serves_only_whole_names_below_it(name: str) -> None:
    catalog = Catalog([Deployment("w", "openai/*", "openai", "*", "http://127.0.0.1:9")])
    with pytest.raises(NotFoundError):
        catalog.candidates(name, ANYBODY)
    (found,) = catalog.candidates("openai/gpt-4o", ANYBODY)
    assert found.model == "gpt-4o"


@pytest.mark.parametrize("rest", ["..", "../x", "../../v1/files", "a/../../b", "./x", "x/."])
def test_a_wildcards_model_leads_to_no_other_path_of_the_provider(rest: str) -> None:
    catalog = Catalog([Deployment(g, g, "gemini", "*", "http://127.0.0.1:9") for g in ("gem/*", "gem-*")])
    for name in (f"gem/{rest}", f"gem-{rest}"):
        with pytest.raises(NotFoundError):
            catalog.candidates(name, ANYBODY)
    for name in ("gem/a..b", "gem/a/.b", "gem-..."):
        assert catalog.candidates(name, ANYBODY)


def test_the_most_exact_wildcard_serves_and_a_bare_star_the_rest() -> None:
    every = [("all", "*", "*"), ("openai", "openai/*", "*"), ("mini", "openai/gpt-mini-*", "gpt-mini-*")]
    catalog = Catalog([Deployment(i, g, "openai", m, "http://127.0.0.1:9") for i, g, m in every])
    asked = ("openai/gpt-mini-1", "openai/gpt", "else")
    found = [(d.deployment_id, d.model) for name in asked for d in catalog.candidates(name, ANYBODY)]
    assert found == [("mini", "gpt-mini-1"), ("openai", "gpt"), ("all", "else")]


def test_a_model_below_a_wildcard_is_the_same_object_each_time_in_bounded_memory() -> None:
    catalog = Catalog([Deployment("w", "openai/*", "openai", "*", "http://127.0.0.1:9")])
    first = catalog.candidates("openai/gpt-4o", ANYBODY)
    assert catalog.candidates("openai/gpt-4o", ANYBODY)[0] is first[0]
    for number in range(5000):
        catalog.candidates(f"openai/junk-{number}", ANYBODY)
    assert len(catalog._concrete) <= 2048
    assert len(catalog._candidates) <= 2048


def test_the_default_group_serves_unknown_names_for_those_who_may_call_it() -> None:
    catalog = Catalog([A, F], default_group="g")
    assert names(catalog.candidates("whatever", ANYBODY)) == ["a"]
    assert names(catalog.candidates("fallback", ANYBODY)) == ["f"]
    with pytest.raises(PermissionDeniedError):
        catalog.candidates("whatever", Identity("k", models=("fallback", "whatever")))
    assert catalog.names_of("whatever") == ("whatever", "g"), "limits of the group mean it, too"


def test_a_lone_deployment_is_known_as_such() -> None:
    assert Catalog([A]).candidates("g", ANYBODY).lone
    assert not Catalog([A, B]).candidates("g", ANYBODY).lone
    assert not Catalog([deployment("l", limits=Limits(rpm=1))]).candidates("g", ANYBODY).lone
    assert not Catalog([deployment("t", tags=("eu",))]).candidates("g", ANYBODY).lone


EU, US, PLAIN = deployment("eu", tags=("eu",)), deployment("us", tags=("us", "fast")), deployment("plain")


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ((), ["plain", "f"]),
        (("eu",), ["eu"]),
        (("fast", "x"), ["us"]),
        (("eu", "us"), ["eu", "us"]),
        (("x",), ["plain", "f"]),
    ],
)
def test_a_tag_chooses_among_all_candidates(tags: tuple[str, ...], expected: list[str]) -> None:
    assert names(Candidates.of([[EU, US, PLAIN], [F]]).for_tags(tags)) == expected


@pytest.mark.parametrize(
    ("own", "asked", "expected"),
    [
        (("eu",), (), ["eu"]),
        (("eu",), ("us",), []),
        (("eu", "team-7"), ("x",), ["eu"]),
        (("us",), ("fast",), ["us"]),
        (("eu", "us"), ("us",), ["eu", "us"]),
        (("eu", "us"), ("fast",), ["us"]),
        (("team-7",), ("us",), ["us"]),
    ],
)
def test_what_a_request_adds_to_its_keys_tags_leads_to_no_other_region(
    own: tuple[str, ...], asked: tuple[str, ...], expected: list[str]
) -> None:
    every = Candidates.of([[EU, US, PLAIN], [F]])
    for _ in range(2):  # the second is one that is kept
        assert names(every.for_tags((*own, *asked), own)) == expected


def test_made_up_tags_find_what_was_found_before_and_are_not_kept() -> None:
    every = Candidates.of([[EU, US, PLAIN], [F]])
    assert every.for_tags(("eu", "x")) is every.for_tags(("y", "eu"))
    for number in range(1000):
        every.for_tags((f"x{number}", "us"))
    assert len(every.parts) == 2


def test_a_region_is_left_for_no_fallback() -> None:
    found = Candidates.of([[EU], [F]], {"context_window": [[G]]}).for_tags(("eu",))
    assert (names(found), found.ways) == (["eu"], {})


def test_a_changed_catalog_is_another_version() -> None:
    catalog = Catalog([A])
    before = catalog.candidates("g", ANYBODY)
    catalog.adopt(Catalog([F, deployment("a2")]))
    assert names(catalog.candidates("g", ANYBODY)) == ["a2"]
    assert names(before) == ["a"]
    assert catalog.version == 1
