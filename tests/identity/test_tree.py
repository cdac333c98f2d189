"""A key with everybody above it: one query, every combination, odd ids – and what a change of one of them touches."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import replace

import msgspec
import pytest

from sidecar.errors import PermissionDeniedError
from sidecar.identity.keys import Keys
from sidecar.identity.row import BudgetCap, CachedRow, ModelLimit, dump, load, member_id
from sidecar.types import Budget, Limits, Principal
from tests.identity.making import Tree, opened
from tests.identity.source import Clock

pytestmark = pytest.mark.anyio

ODD = ("a:b", "1:a:b", "%_\\", "'; DROP TABLE keys; --", '"quoted"', "ключ 🔑", " lead", "a\nb", "x" * 300, "1", "")


@pytest.fixture
async def tree(database_url: str) -> AsyncIterator[Tree]:
    async with opened(database_url) as tree:
        yield tree


async def test_every_combination_is_found_with_one_query(tree: Tree) -> None:
    await tree.add("organization", "o1")
    await tree.add("organization", "o2")
    await tree.add("team", "t", organization_id="o1", budget_id="b1")
    await tree.add("team", "lone")
    await tree.add("user", "u", budget_id="b2")
    await tree.member("t", "u", role="admin")
    # Who must never be found: others of the same ids, or of another kind.
    await tree.member("t", "v")
    await tree.member("lone", "w")
    for kind in ("end_user", "tag", "budget"):
        for name in ("t", "u", "o1"):
            await tree.add(kind, name)
    for name in ("b1", "b2", "b3"):
        await tree.add("budget", name, max_budget_nano=5)
    choices = itertools.product((None, "t", "lone", "gone"), (None, "u", "gone"), (None, "o2", "gone"), (None, "b3"))
    for number, (team, user, organization, budget) in enumerate(choices):
        key = await tree.key(f"k{number}", team_id=team, user_id=user, organization_id=organization, budget_id=budget)
        with tree.counted() as statements:
            found = await tree.resolve(key)
        assert len(statements) == 1, statements
        expected = []
        if team in ("t", "lone"):
            expected.append(("team", team))
        if (team, user) == ("t", "u"):
            expected.append(("member", member_id("t", "u")))
        if user == "u":
            expected.append(("user", "u"))
        over = organization or ("o1" if team == "t" else None)
        if over in ("o1", "o2"):
            expected.append(("organization", over))
        assert [(p.kind, p.principal_id) for p in found.above] == expected
        named = {"b1"} if team == "t" else set()
        named |= {"b2"} if user == "u" else set()
        named |= {"b3"} if budget else set()
        assert set(found.budgets) == named
        assert found.row == key
        identity = found.identity(found.principals())
        assert (identity.team_id, identity.user_id, identity.organization_id) == (team, user, over)
        assert load(dump(CachedRow(1.0, 2, found)), key_hash=key.key_hash) == CachedRow(1.0, 2, found)


async def test_odd_ids_name_only_themselves(tree: Tree) -> None:
    for name in ODD:
        await tree.add("team", name, organization_id=name)
        await tree.add("user", name)
        await tree.add("organization", name)
    for team, user in itertools.product(ODD, ODD):
        await tree.member(team, user, rpm_limit=len(team) + 1)
    for number, (team, user) in enumerate(itertools.product(ODD, ODD)):
        found = await tree.resolve(await tree.key(f"k{number}", team_id=team, user_id=user))
        assert [(p.kind, p.principal_id) for p in found.above] == [
            ("team", team), ("member", member_id(team, user)), ("user", user), ("organization", team),
        ]  # fmt: skip


def test_no_two_pairs_make_the_same_member() -> None:
    pairs = list(itertools.product(ODD, ODD))
    assert len({member_id(*pair) for pair in pairs}) == len(pairs)


async def test_an_unknown_key_is_nobody(tree: Tree) -> None:
    with tree.counted() as statements:
        assert await tree.keys.resolve("f" * 64) is None
        assert await tree.keys.resolve("'; --") is None
    assert len(statements) == 2


async def test_what_is_not_set_counts_from_the_budget_by_reference(tree: Tree) -> None:
    await tree.add(
        "budget", "b", max_budget_nano=100, budget_duration="1d", rpm_limit=5, tpm_limit=50, models=("gpt",),
        budget_windows=(BudgetCap(max_budget_nano=700, budget_duration="1w"),),
        model_limits={"gpt": ModelLimit(rpm=2), "x": ModelLimit(rpm=9)},
        temp_budget_increase_nano=11, temp_budget_expiry_at=2e9,
    )  # fmt: skip
    windows = (Budget(100, "1d", 0.0, 11, 2e9), Budget(700, "1w", 0.0, 11, 2e9))
    await tree.add("team", "t", budget_id="b", rpm_limit=7, model_limits={"gpt": ModelLimit(tpm=1)})
    await tree.add("user", "u", budget_id="b", max_budget_nano=3, models=("claude",))
    found = await tree.resolve(await tree.key("k", team_id="t", user_id="u", budget_id="b"))
    identity = found.identity(found.principals())
    assert (identity.limits, identity.budgets, identity.models) == (Limits(5, 50), windows, ("gpt",))
    team, user = identity.principals
    assert (team.limits, team.budgets, team.models) == (Limits(7, 50), windows, ("gpt",))
    assert team.model_limits == {"gpt": Limits(tpm=1), "x": Limits(rpm=9)}
    assert (user.budgets[0].max_nano, user.models) == (3, ("claude",))
    gone = await tree.resolve(await tree.key("k2", budget_id="gone", rpm_limit=1))
    assert gone.identity(()).limits == Limits(1)


async def test_the_teams_organization_counts_also_without_a_row_of_its_own(tree: Tree) -> None:
    """Its spend is to be found under the organization once there is one."""
    await tree.add("team", "t", organization_id="o")
    found = await tree.resolve(await tree.key("k", team_id="t"))
    assert found.identity(found.principals()).organization_id == "o"


async def test_who_is_named_is_who_may_change_it(tree: Tree) -> None:
    await tree.add("team", "t", organization_id="o", budget_id="b1")
    found = await tree.resolve(await tree.key("k", team_id="t", user_id="u", budget_id="b2"))
    assert set(found.named()) == {
        ("budget", "b1"), ("budget", "b2"), ("team", "t"), ("user", "u"), ("organization", "o"),
        ("member", member_id("t", "u")),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["team", "member", "user", "organization"])
async def test_whoever_is_blocked_above_blocks_and_is_named(tree: Tree, kind: str) -> None:
    names = {"team": "t-77", "member": member_id("t-77", "u-77"), "user": "u-77", "organization": "o-77"}
    await tree.add("organization", "o-77")
    await tree.add("team", "t-77", organization_id="o-77")
    await tree.add("user", "u-77")
    await tree.member("t-77", "u-77")
    await tree.key("sk-" + "k" * 32, team_id="t-77", user_id="u-77")
    clock = Clock()
    keys = Keys(tree.keys, master_key=None, clock=clock, deadline_s=60)
    token = "sk-" + "k" * 32
    assert [p.kind for p in (await keys.lookup(token)).principals] == ["team", "member", "user", "organization"]
    await tree.principals.update(kind, names[kind], changes={"blocked": True})
    keys.changed(await tree.store.last_change(), kind, names[kind])
    with pytest.raises(PermissionDeniedError) as refused:
        await keys.lookup(token)
    assert refused.value.code == f"{kind}_blocked"
    assert "77" not in str(refused.value)
    await tree.principals.update(kind, names[kind], changes={"blocked": False})
    clock.now += 1.0
    await keys.lookup(token)


async def test_a_change_of_one_team_leaves_other_keys_in_memory(tree: Tree) -> None:
    tokens = {team: "sk-" + team * 32 for team in ("a", "b")}
    for team, token in tokens.items():
        await tree.add("team", team)
        await tree.key(token, team_id=team, user_id="u", budget_id="shared")
    keys = Keys(tree.keys, master_key=None, clock=Clock(), deadline_s=60)
    for token in tokens.values():
        await keys.lookup(token)
    keys.changed(1, "team", "a")
    assert (keys.cached(tokens["a"]), keys.cached(tokens["b"]) is not None) == (None, True)
    for kind in ("tag", "end_user", "model"):
        keys.changed(2, kind, "b")
        assert keys.cached(tokens["b"])
    for kind, name in (("user", "u"), ("member", member_id("b", "u")), ("budget", "shared"), ("anything", "else")):
        await keys.lookup(tokens["b"])
        keys.changed(3, kind, name)
        assert keys.cached(tokens["b"]) is None


def test_equal_principals_are_one_object_over_many_keys() -> None:
    """What ten thousand keys of a team share is in memory once."""
    team = Principal("team", "t", models=("gpt",))
    keys = Keys(None, master_key=None, clock=Clock())
    assert keys._shared_one(team) is keys._shared_one(replace(team))
    assert keys._shared_one(replace(team, is_blocked=True)) is not team


async def test_a_shared_row_is_what_was_stored(tree: Tree) -> None:
    await tree.add("team", "t", metadata={"a": [1, None, {"b": "ü"}]}, models=("x", "*"), soft_budget_nano=2**60)
    found = await tree.resolve(await tree.key("k", team_id="t", tags=("a,b", '"'), metadata={"n": 1.5}))
    again = load(dump(CachedRow(1.5, 2**40, found)), key_hash=found.row.key_hash)
    assert again is not None
    assert msgspec.structs.asdict(again.stored) == msgspec.structs.asdict(found)
