"""Claims in our words: paths, lists, roles, filters, and what is missing gives less."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import AuthenticationError, PermissionDeniedError
from sidecar.identity.oidc.claims import MAX_VALUES, ClaimMap, Claims, Requirement, map_claims, split_path, values_at


def mapped(found: dict[str, Any], **how: Any) -> Claims:
    return map_claims({"sub": "alice", **found}, ClaimMap(**how), issuer="corp", expires_at=1.0)


def test_paths_are_names_between_dots_and_a_backslash_keeps_a_dot() -> None:
    assert split_path("sub") == ("sub",)
    assert split_path("realm_access.roles") == ("realm_access", "roles")
    assert split_path(r"kubernetes\.io.namespace") == ("kubernetes.io", "namespace")
    assert split_path(r"https://example\.com/teams") == ("https://example.com/teams",)
    assert split_path(r"a\\.b") == ("a\\", "b")
    for wrong in ("", ".", "a.", ".a", "a..b", "a\\", "a\\b"):
        with pytest.raises(ValueError, match="path"):
            split_path(wrong)
        with pytest.raises(ValueError, match="path"):
            ClaimMap(user_id=(wrong,))


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4))
def test_every_name_can_be_written_in_a_path(names: list[str]) -> None:
    path = ".".join(name.replace("\\", "\\\\").replace(".", "\\.") for name in names)
    assert split_path(path) == tuple(names)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["sub", "a", "b"]), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["sub", "a", "b", "email", "scope"]), json_values))
def test_any_claims_are_mapped_or_refused(found: dict[str, Any]) -> None:
    how = ClaimMap(team_ids=("a.b", "b"), organization_id=("a.a.a",), roles=("b.a",), models=("a",), raw=("a", "b.b"))
    try:
        claims = map_claims(found, how, issuer="corp", expires_at=None)
    except (AuthenticationError, PermissionDeniedError):
        return
    texts = (claims.user_id, claims.email, claims.organization_id, *claims.team_ids, *(claims.models or ()))
    assert all(text is None or (isinstance(text, str) and text.isprintable() and text) for text in texts)


def test_values_are_found_in_lists_of_objects_too() -> None:
    found = {"groups": [{"id": "a"}, {"id": None}, {"name": "x"}, {"id": ["b", "c"]}], "n": [[1], [2, [3]]]}
    assert list(values_at(found, "groups.id")) == ["a", "b", "c"]
    assert list(values_at(found, "n")) == [1, 2, 3]
    assert list(values_at(found, "groups.id.deeper")) == []


def test_everything_has_its_place() -> None:
    claims = mapped(
        {
            "email": "alice@example.com",
            "org": {"id": 7},
            "groups": ["red", "blue", "red"],
            "extra_team": "green",
            "end": "customer-1",
            "realm_access": {"roles": ["dev", "ops"]},
            "scope": "chat embed",
            "scp": ["chat", "models"],
            "models": ["gpt-4o", "claude*"],
            "pod": {"name": "p1"},
        },
        team_ids=("groups", "extra_team"),
        organization_id=("org.id",),
        end_user_id=("end",),
        roles=("realm_access.roles",),
        role_map={"ops": "admin_viewer"},
        models=("models",),
        raw=("pod.name", "groups", "nothing"),
        team_prefix="t:",
        user_prefix="u:",
        organization_prefix="o:",
        upsert_user=True,
        upsert_team=True,
    )
    assert claims == Claims(
        issuer="corp",
        subject="alice",
        user_id="u:alice",
        email="alice@example.com",
        end_user_id="customer-1",
        team_ids=("t:red", "t:blue", "t:green"),
        organization_id="o:7",
        role="admin_viewer",
        roles=("dev", "ops"),
        scopes=("chat", "embed", "models"),
        models=("gpt-4o", "claude*"),
        expires_at=1.0,
        raw={"pod.name": "p1", "groups": ["red", "blue", "red"]},
        upsert_user=True,
        upsert_team=True,
    )
    assert claims.team_id == "t:red"
    with pytest.raises(TypeError):
        claims.raw["x"] = 1  # type: ignore[index]


def test_the_first_path_that_is_there_counts() -> None:
    assert mapped({"upn": None, "name": "a"}, user_id=("upn", "name", "sub")).user_id == "a"
    assert mapped({"upn": "", "name": "a"}, user_id=("upn", "name", "sub")).user_id == "a"


def test_missing_models_are_no_models_and_unmapped_ones_say_nothing() -> None:
    assert mapped({"models": ["a"]}).models is None
    assert mapped({"models": ["a"]}, models=("models",)).models == ("a",)
    assert mapped({"models": []}, models=("models",)).models == ()
    assert mapped({}, models=("models",)).models == ()


ROLES: list[tuple[dict[str, Any], str | None]] = [
    ({}, "internal_user"),
    ({"roles": ["unknown"]}, "internal_user"),
    ({"roles": "boss"}, "admin"),
    ({"roles": ["audit", "boss", "lead"]}, "admin"),
    ({"roles": ["lead", "audit"]}, "admin_viewer"),
    ({"roles": ["lead"]}, "team_admin"),
    ({"scope": "read gw:admin"}, "admin"),
    ({"roles": ["gw:admin"]}, "internal_user"),  # a role is not a scope
    ({"scope": "boss"}, "internal_user"),
    ({"roles": ["Boss", "boss2", "bos", "bоss"]}, "internal_user"),
    ({"roles": "boss lead"}, "internal_user"),
]


@pytest.mark.parametrize(("found", "role"), ROLES)
def test_the_mightiest_mapped_role_counts(found: dict[str, Any], role: str) -> None:
    how = {"roles": ("roles",), "role_map": {"boss": "admin", "lead": "team_admin", "audit": "admin_viewer"}}
    assert mapped(found, **how, scope_map={"gw:admin": "admin"}).role == role


def test_without_a_default_role_an_unmapped_token_is_403() -> None:
    with pytest.raises(PermissionDeniedError, match="roles") as caught:
        mapped({"roles": ["x"]}, roles=("roles",), role_map={"y": "admin"}, default_role=None)
    assert (caught.value.status, caught.value.code) == (403, "token_not_permitted")
    with pytest.raises(ValueError, match="no such role"):
        ClaimMap(role_map={"x": "root"})  # type: ignore[dict-item]


REQUIRED: list[tuple[dict[str, Any], bool]] = [
    ({"email": "a@example.com"}, True),
    ({"email": "a@example.com", "email_verified": True}, True),
    ({"email": "a@example.com", "email_verified": False}, False),
    ({"email": "a@example.com", "email_verified": "no"}, False),
    ({"email": "a@example.com.evil.example"}, False),
    ({"email": "a@EXAMPLE.com"}, False),
    ({"email": None}, False),
    ({}, False),
]


@pytest.mark.parametrize(("found", "passes"), REQUIRED)
def test_a_filter_lets_only_some_in(found: dict[str, Any], passes: bool) -> None:
    how = {"require": (Requirement("email", ("*@example.com",)),)}
    if passes:
        assert mapped(found, **how).email == found["email"]
    else:
        with pytest.raises(PermissionDeniedError, match="'email'"):
            mapped(found, **how)


def test_every_requirement_has_to_hold_and_one_of_its_values() -> None:
    how = {"require": (Requirement("groups", ("gw-*", "all")), Requirement("active", ("true",)))}
    assert mapped({"groups": ["x", "gw-red"], "active": True}, **how).user_id == "alice"
    for found in ({"groups": ["gw-red"]}, {"groups": ["x"], "active": True}, {"groups": ["all"], "active": False}):
        with pytest.raises(PermissionDeniedError):
            mapped(found, **how)
    with pytest.raises(ValueError, match="no value"):
        Requirement("groups", ())
    with pytest.raises(ValueError, match="no value"):
        Requirement("groups", ("",))


def test_an_address_that_is_not_verified_is_nobodys_id() -> None:
    found = {"email": "ceo@example.com", "email_verified": False}
    assert mapped(found).email is None
    assert mapped(found, user_id=("email", "sub")).user_id == "alice"
    with pytest.raises(PermissionDeniedError, match="names no user"):
        mapped(found, user_id=("email",))


def test_a_token_that_names_nobody_is_403_and_a_team_is_somebody() -> None:
    with pytest.raises(PermissionDeniedError, match="names no user"):
        map_claims({}, ClaimMap(), issuer="corp", expires_at=None)
    claims = map_claims({"t": "red"}, ClaimMap(team_ids=("t",)), issuer="corp", expires_at=None)
    assert (claims.user_id, claims.team_id) == (None, "red")


@pytest.mark.parametrize("bad", [1.5, {"id": "x"}, "a\nb", "a\u200bb", " a", "x" * 257, 2**64, "\u202eabc"])
def test_what_cannot_be_an_id_is_refused(bad: Any) -> None:
    for found, how in (
        ({"sub": bad}, {}),
        ({"t": ["ok", bad]}, {"team_ids": ("t",)}),
        ({"m": bad}, {"models": ("m",)}),
    ):
        with pytest.raises(AuthenticationError, match="printable") as caught:
            mapped(found, **how)
        assert len(str(bad)) < 3 or str(bad) not in caught.value.message


def test_too_many_values_are_refused() -> None:
    many = [f"team-{n}" for n in range(MAX_VALUES + 1)]
    assert len(mapped({"t": many[1:]}, team_ids=("t",)).team_ids) == MAX_VALUES
    with pytest.raises(AuthenticationError, match="more than"):
        mapped({"t": many}, team_ids=("t",))
