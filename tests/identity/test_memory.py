"""Memory is bounded by what is configured, not by how many keys, teams and names there are or are invented."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from sidecar.errors import AuthenticationError
from sidecar.identity.keys import _FLOORS, Keys, hash_key, new_key
from sidecar.identity.row import KeyRow, PrincipalRow, StoredKey, member_id
from tests.identity.source import Clock

pytestmark = pytest.mark.anyio
KEYS, TEAMS, BOUND = 1500, 150, 100


class Many:
    """A database of `KEYS` keys, each below a team, a member, a user and an organization, made when asked for."""

    def __init__(self) -> None:
        self.numbers = {hash_key(token(number)): number for number in range(KEYS)}

    async def resolve(self, key_hash: str) -> StoredKey | None:
        number = self.numbers.get(key_hash)
        if number is None:
            return None
        team, user, organization = f"t{number % TEAMS}", f"u{number % 500}", f"o{number % 20}"
        above = (
            PrincipalRow(kind="team", principal_id=team, organization_id=organization, rpm_limit=5),
            PrincipalRow(kind="member", principal_id=member_id(team, user), team_id=team, user_id=user),
            PrincipalRow(kind="user", principal_id=user),
            PrincipalRow(kind="organization", principal_id=organization),
        )
        return StoredKey(KeyRow(key_hash=key_hash, team_id=team, user_id=user), above)


def token(number: int) -> str:
    return new_key(lambda n: number.to_bytes(n, "big"))


def sizes(keys: Keys) -> dict[str, int]:
    return {
        "known": len(keys._known),
        "refused": len(keys._refused),
        "principals": len(keys._principals),
        "below": sum(map(len, keys._below.values())),
        "flights": len(keys._flights),
    }


async def test_keys_in_memory_are_as_many_as_allowed_with_those_above_them() -> None:
    source, clock = Many(), Clock()
    keys = Keys(source, master_key=None, clock=clock, max_entries=BOUND)

    async def everybody() -> None:
        for number in range(KEYS):
            assert (await keys.lookup(token(number))).principals
            if number % 10 == 0:
                with pytest.raises(AuthenticationError):
                    await keys.lookup(token(KEYS + number))

    tracemalloc.start()
    try:
        await everybody()
        gc.collect()
        after_one = tracemalloc.get_traced_memory()[0]
        for _ in range(2):
            await everybody()
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - after_one
    finally:
        tracemalloc.stop()
    found = sizes(keys)
    assert found["known"] == found["refused"] == BOUND
    assert found["principals"] <= BOUND
    # Each known key is listed under its team, member, user and organization, and nobody else is.
    assert found["below"] == 4 * BOUND
    assert found["flights"] == 0
    assert set().union(*keys._below.values()) == set(keys._known)
    assert grown < 50_000, f"{grown} bytes more after everybody came twice again"


async def test_changes_told_leave_no_more_behind_than_is_bounded() -> None:
    keys = Keys(Many(), master_key=None, clock=Clock(), max_entries=BOUND)
    for number in range(BOUND):
        await keys.lookup(token(number))
    for seq in range(1, 3 * _FLOORS):
        keys.changed(seq, "key", hash_key(str(seq)))
        keys.changed(seq, "end_user", str(seq))
    assert len(keys._floors) == _FLOORS
    assert sizes(keys)["known"] == BOUND  # none of them was named
    for team in range(TEAMS):
        keys.changed(3 * _FLOORS + team, "team", f"t{team}")
    found = sizes(keys)
    assert found.pop("principals") <= BOUND
    assert set(found.values()) == {0}
    assert not keys._below
    keys.forget_all(10**6)
    assert not keys._principals
    assert not keys._floors
