"""Who shares a counter: every scope of the tree, named so that no two owners share one by accident. Pure."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from sidecar.identity.row import member_id
from sidecar.limits.admission import Admission
from sidecar.limits.scopes import SCOPES, Scope, global_scope, limits_model
from sidecar.limits.store.memory import MemoryStore
from sidecar.types import Budget, Identity, Limits, Principal
from tests.limits.conftest import Clock
from tests.limits.making import KINDS, principal_id, tree_caller

ODD = ("a", "a:b", "1:a", "a:1d:0", "life:0", "1:a:b", "", "ключ", "a\nb")


def scopes(identity: Identity, model: str) -> list[Scope]:
    return [scope for function in SCOPES for scope in function(identity, model)]


def test_every_owner_in_the_tree_is_a_scope_and_so_is_each_ones_model() -> None:
    caller = tree_caller({kind: Limits(rpm=n) for n, kind in enumerate(KINDS)})
    found = {scope.kind: scope for scope in scopes(caller, "gpt")}
    assert set(found) == set(KINDS)
    for number, kind in enumerate(KINDS):
        assert found[kind].limits == Limits(rpm=number), kind
    assert {scope.kind for scope in scopes(caller, "claude")} == {k for k in KINDS if not k.endswith("_model")}


def test_no_scope_without_an_owner() -> None:
    assert scopes(Identity(""), "gpt") == []
    assert [s.kind for s in scopes(Identity("k"), "gpt")] == ["key"]


def test_no_two_owners_share_a_counter(clock: Clock) -> None:
    """Whatever characters their ids are made of."""
    admission = Admission(MemoryStore(clock), clock=clock)
    one = Limits(rpm=1)
    names: dict[str, tuple[str, ...]] = {}
    windows: dict[str, tuple[str, ...]] = {}
    owners = [(kind, name) for kind in ("team", "user", "organization", "end_user", "tag") for name in ODD]
    owners += [("member", member_id(*pair)) for pair in itertools.product(ODD, ODD)]
    for kind, name in owners:
        above = Principal(
            kind, name, limits=one, model_limits=dict.fromkeys(ODD, one), budgets=(Budget(1), Budget(1, "1d"))
        )
        for model in ODD:
            claims = admission.claims_of(Identity("", principals=(above,)), model)
            assert len(claims.requests) == 2
            for claim, owner in zip(claims.requests, ((kind, name), (kind, name, model)), strict=True):
                assert names.setdefault(claim.key, owner) == owner
            for window in claims.windows:
                assert windows.setdefault(window.key, (kind, name, str(window.end_at))) == (
                    kind,
                    name,
                    str(window.end_at),
                )
    for key, model in itertools.product(ODD[:-3], ODD):
        if key:
            claims = admission.claims_of(Identity(key, limits=one, model_limits=dict.fromkeys(ODD, one)), model)
            for claim, owner in zip(claims.requests, (("key", key), ("key", key, model)), strict=True):
                assert names.setdefault(claim.key, owner) == owner
    assert len(names) == len(set(names.values()))


@pytest.mark.parametrize("what", ["rpm", "tpm", "concurrency"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_limit_is_claimed_where_it_is_set_and_nowhere_else(kind: str, what: str, clock: Clock) -> None:
    admission = Admission(MemoryStore(clock), clock=clock)
    claims = admission.claims_of(tree_caller({kind: Limits(**{what: 7})}), "gpt")
    groups = {"rpm": claims.requests, "tpm": claims.tokens, "concurrency": claims.slots}
    assert [(c.kind, c.limit) for c in groups.pop(what)] == [(kind, 7)]
    assert not any(groups.values())
    assert not claims.windows


def test_everybody_together_comes_first(clock: Clock) -> None:
    admission = Admission(
        MemoryStore(clock), clock=clock, global_limits=Limits(rpm=3), global_budgets=(Budget(5, "1mo"),)
    )
    for key in ("a", "b"):
        claims = admission.claims_of(Identity(key, limits=Limits(rpm=9)), "gpt")
        assert [(c.key, c.limit) for c in claims.requests] == [("global:all", 3), (f"key:{key}", 9)]
        assert [w.kind for w in claims.windows] == ["global"]
    assert global_scope(Limits(rpm=3))(Identity("x"), "m") == (Scope("global", "all", Limits(rpm=3)),)


def test_adding_a_scope_is_one_function(clock: Clock) -> None:
    def region(identity: Identity, model: str) -> list[Scope]:
        return [Scope("region", str(identity.metadata["region"]), Limits(concurrency=2))]

    admission = Admission(MemoryStore(clock), clock=clock, scopes=(*SCOPES, region))
    claims = admission.claims_of(Identity("k", metadata={"region": "eu"}), "gpt")
    assert [(c.key, c.limit) for c in claims.slots] == [("region:eu", 2)]


def test_several_budgets_of_one_owner_are_several_windows(clock: Clock) -> None:
    budgets = (Budget(100, "1h"), Budget(500, "1d"), Budget(900), Budget(700, "30d", anchor_at=clock.now))
    claims = Admission(MemoryStore(clock), clock=clock).claims_of(tree_caller({}, {"team": budgets}), "gpt")
    assert [(w.kind, w.max_nano) for w in claims.windows] == [
        ("team", 100),
        ("team", 500),
        ("team", 900),
        ("team", 700),
    ]
    assert len({w.key for w in claims.windows}) == 4
    assert all(w.scope_id == principal_id("team") for w in claims.windows)


def test_model_names_a_client_invents_take_no_memory(clock: Clock) -> None:
    admission = Admission(MemoryStore(clock), clock=clock)
    caller = tree_caller({kind: Limits(rpm=5) for kind in KINDS})
    for number in range(2000):
        admission.claims_of(caller, f"junk-{number}")
        admission.claims_of(caller, "gpt")
    assert len(caller.cache) == 2
    assert limits_model(caller, "gpt")
    assert not limits_model(caller, "junk-1")
    assert not limits_model(replace(caller, model_limits={}, principals=()), "gpt")
