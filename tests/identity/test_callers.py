"""End users and tags of a request: one query for all who wait, remembered also where there is no row, never older than
the last change told, and bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from sidecar.asgi import Receive, Scope, Send
from sidecar.errors import PermissionDeniedError, UnavailableError
from sidecar.identity.callers import Callers
from sidecar.identity.row import PrincipalRow
from sidecar.middleware.auth import AuthMiddleware
from sidecar.types import Identity
from tests.asgi import call
from tests.identity.source import Clock

pytestmark = pytest.mark.anyio
WHO = Identity("k")
Name = tuple[str, str]


class Rows:
    """Rows by kind and id. An answer is read at once and given when `gate` is set."""

    def __init__(self) -> None:
        self.rows: dict[Name, PrincipalRow] = {}
        self.queries: list[list[Name]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.is_down = False

    def add(self, kind: str, name: str, **values: object) -> None:
        self.rows[kind, name] = PrincipalRow(kind=kind, principal_id=name, **values)  # type: ignore[arg-type]

    async def find(self, wanted: Sequence[Name]) -> Sequence[PrincipalRow]:
        self.queries.append(list(wanted))
        if self.is_down:
            raise UnavailableError("down")
        found = [self.rows[name] for name in wanted if name in self.rows]
        await self.gate.wait()
        return found


def make(rows: Rows, clock: Clock, **options: object) -> Callers:
    return Callers(rows, clock=clock, **options)  # type: ignore[arg-type]


def names(identity: Identity) -> list[Name]:
    return [(p.kind, p.principal_id) for p in identity.principals]


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_end_user_a_credential_names_is_the_one_above_whatever_the_request_says() -> None:
    rows = Rows()
    rows.add("end_user", "alice", blocked=True)
    rows.add("end_user", "bob")
    who = Identity("k", end_user_id="alice")
    seen: list[object] = []

    async def below(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["sidecar"].end_user_id)

    app = AuthMiddleware(below, identify=lambda scope: who, callers=make(rows, Clock()), end_user_header="x-customer")
    for said, headers in (({}, {}), ({"user": "bob"}, {}), ({}, {"x-customer": "bob"})):
        refused = await call(app, {"model": "m", "messages": [], **said}, headers=headers)
        assert (refused.status, refused.error["code"]) == (403, "end_user_blocked")
    assert not seen
    rows.add("end_user", "alice")
    app = AuthMiddleware(below, identify=lambda scope: who, callers=make(rows, Clock()))
    await call(app, {"model": "m", "messages": [], "user": "bob"})
    assert seen == ["alice"], "and its rows are"


async def test_one_query_for_end_user_and_tags_and_none_while_nothing_changes() -> None:
    rows, clock = Rows(), Clock()
    rows.add("end_user", "e", rpm_limit=3)
    rows.add("tag", "b")
    callers = make(rows, clock)
    found = await callers.of(WHO, "e", ("a", "b"))
    assert names(found) == [("tag", "b"), ("end_user", "e")]
    assert rows.queries == [[("tag", "a"), ("tag", "b"), ("end_user", "e")]]
    for step in range(25):
        clock.now += 1.0
        callers.confirm(clock.now)
        assert await callers.of(WHO, "e", ("a", "b")) is found, step
    assert len(rows.queries) == 1
    clock.now += 10.0  # the hard age: asked again whatever was told
    callers.confirm(clock.now)
    await callers.of(WHO, "e", ("a", "b"))
    assert len(rows.queries) == 2


async def test_a_request_without_names_costs_nothing() -> None:
    rows = Rows()
    assert await make(rows, Clock()).of(WHO, None, ()) is WHO
    assert rows.queries == []


async def test_without_the_feed_a_row_is_good_for_its_freshness() -> None:
    rows, clock = Rows(), Clock()
    callers = make(rows, clock)
    await callers.of(WHO, "e", ())
    clock.now += 0.99
    await callers.of(WHO, "e", ())
    assert len(rows.queries) == 1
    clock.now += 0.01
    rows.add("end_user", "e", blocked=True)
    with pytest.raises(PermissionDeniedError) as refused:
        await callers.of(WHO, "e", ())
    assert (refused.value.status, refused.value.code) == (403, "end_user_blocked")


async def test_all_who_wait_for_a_name_share_its_query() -> None:
    rows = Rows()
    rows.gate.clear()
    callers = make(rows, Clock())
    asking = [asyncio.ensure_future(callers.of(WHO, "e", (f"t{n % 3}",))) for n in range(30)]
    await settled()
    leaver = asking.pop()
    leaver.cancel()
    await settled()
    rows.gate.set()
    await asyncio.gather(*asking)
    assert sorted(name for query in rows.queries for name in query) == [
        ("end_user", "e"), ("tag", "t0"), ("tag", "t1"), ("tag", "t2"),
    ]  # fmt: skip


@pytest.mark.parametrize("told", ["its own change", "a budget's", "everything"])
async def test_a_lookup_that_a_change_overtook_reads_again(told: str) -> None:
    rows, clock = Rows(), Clock()
    rows.add("end_user", "e", budget_id="b")
    callers = make(rows, clock)
    rows.gate.clear()
    asking = asyncio.ensure_future(callers.of(WHO, "e", ()))
    await settled()
    assert len(rows.queries) == 1
    rows.add("end_user", "e", budget_id="b", blocked=True)
    if told == "everything":
        callers.forget_all(2)
    else:
        callers.changed(2, *(("end_user", "e") if told == "its own change" else ("budget", "b")))
    rows.gate.set()
    with pytest.raises(PermissionDeniedError):
        await asking
    with pytest.raises(PermissionDeniedError):
        await callers.of(WHO, "e", ())
    assert len(rows.queries) == 2


async def test_a_change_of_one_leaves_the_others_in_memory() -> None:
    rows = Rows()
    callers = make(rows, Clock())
    for name in "abc":
        await callers.of(WHO, name, ())
    callers.changed(2, "end_user", "a")
    callers.changed(3, "tag", "b")
    callers.changed(4, "key", "c")
    callers.changed(5, "team", "c")
    for name in "abc":
        await callers.of(WHO, name, ())
    assert [query[0][1] for query in rows.queries] == ["a", "b", "c", "a"]


async def test_under_a_stream_of_changes_a_lookup_ends() -> None:
    rows = Rows()
    callers = make(rows, Clock())
    find = rows.find

    async def overtaken(wanted: Sequence[Name]) -> Sequence[PrincipalRow]:
        found = await find(wanted)
        callers.changed(len(rows.queries), "tag", "another")
        return found

    rows.find = overtaken  # type: ignore[method-assign]
    assert await callers.of(WHO, "e", ()) is WHO
    assert len(rows.queries) == 3


async def test_a_database_that_is_down_is_503_and_what_is_known_outlives_it_to_the_hard_age() -> None:
    rows, clock = Rows(), Clock()
    rows.add("end_user", "e", rpm_limit=3)
    callers = make(rows, clock)
    await callers.of(WHO, "e", ())
    rows.is_down = True
    clock.now += 5.0
    assert names(await callers.of(WHO, "e", ())) == [("end_user", "e")]
    asked = len(rows.queries)
    for _ in range(10):  # known to be down: not asked for every request
        assert names(await callers.of(WHO, "e", ())) == [("end_user", "e")]
        with pytest.raises(UnavailableError) as refused:
            await callers.of(WHO, "stranger", ())
        assert (refused.value.status, refused.value.code) == (503, "key_store_unavailable")
    assert len(rows.queries) == asked
    clock.now += 25.0
    with pytest.raises(UnavailableError):
        await callers.of(WHO, "e", ())
    rows.is_down = False
    clock.now += 0.5
    assert names(await callers.of(WHO, "e", ())) == [("end_user", "e")]


async def test_a_frozen_database_costs_the_deadline() -> None:
    rows = Rows()
    rows.gate.clear()
    callers = make(rows, Clock(), deadline_s=0.05)
    async with asyncio.timeout(60):
        with pytest.raises(UnavailableError):
            await callers.of(WHO, "e", ())
    await callers.aclose()


async def test_names_no_database_can_hold_have_no_row_and_cost_no_query() -> None:
    rows = Rows()
    callers = make(rows, Clock())
    for name in ("a\0b", "\ud800"):
        assert await callers.of(WHO, name, (name,)) is WHO
    assert rows.queries == []


async def test_an_end_user_without_a_row_has_the_budget_of_all_such() -> None:
    rows = Rows()
    rows.add("budget", "free", max_budget_nano=7, rpm_limit=2)
    rows.add("end_user", "own", rpm_limit=9)
    callers = make(rows, Clock(), end_user_budget_id="free")
    (stranger,) = (await callers.of(WHO, "x", ())).principals
    assert (stranger.limits.rpm, stranger.budgets[0].max_nano) == (2, 7)
    (own,) = (await callers.of(WHO, "own", ())).principals
    assert (own.limits.rpm, own.budgets) == (9, ())
    assert (await callers.of(WHO, None, ("t",))) is WHO


async def test_memory_is_bounded_whatever_names_clients_invent() -> None:
    rows, clock = Rows(), Clock()
    callers = make(rows, clock, max_entries=50)
    for number in range(500):
        rows.add("tag", str(number))
        await callers.of(Identity(f"k{number}"), f"junk-{number}", (str(number), "same"))
    assert len(callers._known) <= 50
    assert len(callers._made) <= 50
    assert not callers._flights
    # More names in one request than memory has room for.
    tiny = make(rows, clock, max_entries=1)
    assert len((await tiny.of(WHO, None, tuple(map(str, range(20))))).principals) == 20


async def test_closing_ends_lookups_in_progress() -> None:
    rows = Rows()
    rows.gate.clear()
    callers = make(rows, Clock())
    asking = asyncio.ensure_future(callers.of(WHO, "e", ()))
    await settled()
    await callers.aclose()
    with pytest.raises(asyncio.CancelledError):
        await asking
