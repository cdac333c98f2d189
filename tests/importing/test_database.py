"""LiteLLM's tables in a real PostgreSQL → our tables, on SQLite and PostgreSQL: who may what, and what was spent."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sidecar.db import Database
from sidecar.identity.row import KeyRow, PrincipalRow, member_id
from sidecar.identity.table import KeyTable, PrincipalTable, Store
from sidecar.importing.database import Book, import_database
from sidecar.limits.windows import bounds
from sidecar.spend.ledger import Ledger
from sidecar.types import Budget
from tests.importing.litellm_tables import LONG_AGO, NOW, Company, hashed, in_days, next_midnight, next_month
from tests.servers.migrated import migrated_sqlite

pytestmark = pytest.mark.anyio

KEY = "sk-an-old-key-of-the-company-0001"


def now() -> float:
    """Stands still: no midnight comes between what a test expects and what it finds."""
    return NOW.replace(tzinfo=UTC).timestamp()


@dataclass
class Ours:
    keys: KeyTable
    principals: PrincipalTable
    ledger: Ledger
    store: Store

    async def key(self, key: str = KEY) -> KeyRow:
        found = await self.keys.get(hashed(key))
        assert found is not None
        return found

    async def one(self, kind: str, name: str) -> PrincipalRow:
        found = await self.principals.get(kind, name)
        assert found is not None
        return found

    async def spent(self, kind: str, name: str = "all", budget: Budget | None = None) -> Decimal:
        """USD in the budget's window now, as a cold counter is seeded; without a budget ever."""
        start, end = bounds(budget or Budget(0), now(), UTC)
        return Decimal(await self.ledger.sum_of(kind, name, start, end)).scaleb(-9)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Ours]:
    database = Database(url)
    store = Store(database)
    try:
        yield Ours(KeyTable(store), PrincipalTable(store), Ledger(database), store)
    finally:
        await database.aclose()


@pytest.fixture
def company(postgres_url: str) -> Company:
    return Company(postgres_url)


@pytest.fixture(params=["sqlite", "postgres"])
def target(request: pytest.FixtureRequest, tmp_path: Path, company: Company) -> str:
    """Our database: a file, or the very one their tables are in."""
    if request.param == "postgres":
        return company.url
    (tmp_path / "ours.db").write_bytes(migrated_sqlite())
    return f"sqlite:///{tmp_path}/ours.db"


async def run(company: Company, target: str | None, **more: Any) -> Book:
    return await import_database(await company.write(), target, clock=now, **more)


def told(book: Book, column: str, table: str = "VerificationToken") -> list[tuple[str, str]]:
    return [(e.status, e.text) for e in book.entries if (e.table, e.column) == (f"LiteLLM_{table}", column)]


async def test_a_key_is_found_by_its_hash_with_all_it_had(company: Company, target: str) -> None:
    company.key(
        KEY, key_alias="ci", models=["gpt", "claude*"], user_id="ann", team_id="red", max_budget=12.5, spend=1.25,
        budget_duration="30d", budget_reset_at=next_month(), rpm_limit=60, tpm_limit=9000, max_parallel_requests=3,
        expires=in_days(30), metadata={"model_rpm_limit": {"gpt": 5}, "tags": ["batch"], "who": "ops"},
        created_at=LONG_AGO, last_active=LONG_AGO, organization_id="acme", soft_budget_cooldown=True,
    )  # fmt: skip
    await run(company, target)
    async with opened(target) as ours:
        key = await ours.key()
        assert (key.key_name, key.key_alias, key.user_id, key.team_id) == ("sk-...0001", "ci", "ann", "red")
        assert (key.models, key.organization_id, key.tags) == (("gpt", "claude*"), "acme", ("batch",))
        assert (key.max_budget_nano, key.budget_duration) == (12_500_000_000, "1mo")
        assert (key.rpm_limit, key.tpm_limit, key.max_parallel_requests) == (60, 9000, 3)
        assert key.model_limits["gpt"].rpm == 5
        assert key.metadata == {"who": "ops"}
        assert key.expires_at == pytest.approx(in_days(30).replace(tzinfo=UTC).timestamp(), abs=0.001)
        assert key.created_at == key.last_used_at == LONG_AGO.replace(tzinfo=UTC).timestamp()
        assert not key.blocked
        resolved = await ours.keys.resolve(hashed(KEY))
        assert resolved is not None


async def test_names_of_models_of_keys_and_teams_go_on_working(company: Company, target: str) -> None:
    company.add("ModelTable", id=7, aliases={"fast": "gpt"})
    company.add("TeamTable", team_id="red", model_id=7)
    company.key(KEY, models=[], team_id="red", aliases={"good": "claude", "any": "openai/*", "odd": 1})
    book = await run(company, target)
    async with opened(target) as ours:
        resolved = await ours.keys.resolve(hashed(KEY))
        assert resolved is not None
        assert resolved.row.model_aliases == {"good": "claude"}
        identity = resolved.identity(resolved.principals())
        assert identity.aliases == {"good": "claude", "fast": "gpt"}
    assert [status for status, _ in told(book, "aliases")] == ["taken", "no equivalent"]
    assert [status for status, _ in told(book, "model_id", "TeamTable")] == ["changed"]


@pytest.mark.parametrize("usd", [0.1 + 0.2, 1e-9, 0.000000001234, 123456.789012345, 1 / 3, 2.5e-10])
async def test_what_a_key_has_spent_is_exact_to_the_nano_dollar(company: Company, tmp_path: Path, usd: float) -> None:
    company.key(KEY, models=[], spend=usd)
    target = f"sqlite:///{tmp_path}/ours.db"
    await run(company, target)
    async with opened(target) as ours:
        assert await ours.spent("key", hashed(KEY)) == Decimal(repr(usd)).quantize(Decimal("1e-9"))


async def test_each_total_stands_for_itself(company: Company, target: str) -> None:
    """The totals there agree with nobody: keys were deleted, windows began at different times."""
    company.add("BudgetTable", budget_id="b1", max_budget=50.0)
    company.add("OrganizationTable", organization_id="acme", organization_alias="Acme", budget_id="b1", spend=91.0)
    company.add(
        "TeamTable", team_id="red", organization_id="acme", max_budget=20.0, spend=13.37,
        members_with_roles=[{"role": "admin", "user_id": "ann"}, {"role": "user", "user_id": "bob"}],
    )  # fmt: skip
    company.add("TeamMembership", team_id="red", user_id="bob", spend=4.2, budget_id="b1")
    company.add("TeamMembership", team_id="red", user_id="ann", spend=0.3)
    company.add("UserTable", user_id="bob", spend=7.77, models=[], user_role="internal_user", user_email="b@acme.test")
    company.add("UserTable", user_id="litellm-proxy-budget", spend=100.5, models=[])
    company.add("EndUserTable", user_id="customer-1", spend=0.55, blocked=True, budget_id="b1")
    company.add("TagTable", tag_name="batch", spend=3.0, models=["gpt"], description="nightly")
    company.key(KEY, models=[], team_id="red", user_id="bob", spend=2.0)
    company.key(KEY + "x", models=[], team_id="red", user_id="bob", spend=5.5)
    expected = {
        ("key", hashed(KEY)): "2", ("key", hashed(KEY + "x")): "5.5", ("team", "red"): "13.37", ("user", "bob"): "7.77",
        ("member", member_id("red", "bob")): "4.2", ("member", member_id("red", "ann")): "0.3", ("user", "ann"): "0",
        ("organization", "acme"): "91", ("end_user", "customer-1"): "0.55", ("tag", "batch"): "3",
        ("global", "all"): "100.5",
    }  # fmt: skip
    book = await run(company, target)
    again = await run(company, target)
    async with opened(target) as ours:
        for (kind, name), usd in expected.items():
            assert await ours.spent(kind, name) == Decimal(usd), (kind, name)
        team, bob = await ours.one("team", "red"), await ours.one("member", member_id("red", "bob"))
        assert (team.organization_id, bob.role, bob.budget_id) == ("acme", "user", "b1")
        assert (await ours.one("member", member_id("red", "ann"))).role == "admin"
        assert (await ours.one("end_user", "customer-1")).blocked
        assert (await ours.one("tag", "batch")).models == ("gpt",)
        assert await ours.principals.get("user", "litellm-proxy-budget") is None
        assert (await ours.one("user", "bob")).email == "b@acme.test"
        page = await ours.ledger.logs(limit=1000)
        assert all(record.revision == 1 for record in page.records)
    assert book.counts["keys created"] == 2
    assert "keys created" not in again.counts
    assert {name: rows for name, rows in again.counts.items() if "unchanged" not in name} == {}


async def test_run_again_later_it_carries_over_the_difference(company: Company, target: str) -> None:
    company.add("TeamTable", team_id="red", models=[], spend=1.0)
    company.key(KEY, models=[], spend=1.0)
    await run(company, target)
    await company.execute(
        """UPDATE "LiteLLM_VerificationToken" SET spend = 1.75""", """UPDATE "LiteLLM_TeamTable" SET spend = 0.5"""
    )
    book = await run(company, target)
    assert book.counts["spend totals of keys carried over"] == 1
    await run(company, target)
    async with opened(target) as ours:
        assert await ours.spent("key", hashed(KEY)) == Decimal("1.75")
        assert await ours.spent("team", "red") == Decimal("0.5")
        assert await ours.spent("global") == Decimal("1.75")


async def test_windows_end_when_they_ended_there(company: Company, target: str) -> None:
    reset_at = in_days(3).replace(microsecond=0)
    company.key(KEY, models=[], max_budget=9.0, spend=2.0, budget_duration="14d", budget_reset_at=reset_at)
    company.key(KEY + "m", models=[], max_budget=9.0, spend=2.0, budget_duration="30d", budget_reset_at=reset_at)
    company.key(KEY + "d", models=[], max_budget=9.0, spend=2.0, budget_duration="1d", budget_reset_at=next_midnight())
    over = in_days(-1).replace(microsecond=0)
    company.key(KEY + "o", models=[], max_budget=9.0, spend=9.5, budget_duration="7d", budget_reset_at=over)
    company.key(KEY + "y", models=[], max_budget=9.0, spend=2.0, budget_duration="1y", budget_reset_at=next_midnight())
    book = await run(company, target)
    async with opened(target) as ours:
        for letter, duration, usd in (("", "14d", 2), ("m", "30d", 2), ("d", "1d", 2), ("o", "7d", 0), ("y", "1d", 2)):
            key = await ours.key(KEY + letter)
            budget = key.budgets()[0]
            assert budget.duration == duration, letter
            end_at = bounds(budget, now(), UTC)[1]
            wanted = {"d": next_midnight(), "y": next_midnight(), "o": over + timedelta(days=7)}.get(letter, reset_at)
            assert end_at == wanted.replace(tzinfo=UTC).timestamp(), letter
            assert await ours.spent("key", hashed(KEY + letter), budget) == usd, letter
        assert await ours.spent("key", hashed(KEY + "o")) == Decimal("9.5")
    assert ("changed", "1d: it is no duration, and there that meant daily") in told(book, "budget_duration")


async def test_two_imports_at_once_write_once(bare_postgres_url: str, tmp_path: Path) -> None:
    import asyncio

    company = Company(bare_postgres_url)
    company.key(KEY, models=[], spend=1.5)
    company.add("TeamTable", team_id="red", models=[], spend=2.5)
    source, target = await company.write(), company.url
    await import_database(source, f"sqlite:///{tmp_path}/unused.db", clock=now)
    done = await asyncio.gather(*(import_database(source, target, clock=now) for _ in range(3)))
    assert sum(book.counts.get("keys created", 0) for book in done) == 1
    async with opened(target) as ours:
        assert await ours.spent("key", hashed(KEY)) == Decimal("1.5")
        assert await ours.spent("team", "red") == Decimal("2.5")


async def test_several_windows_hold_what_each_of_them_held(company: Company, target: str) -> None:
    limits = [
        {"budget_duration": "1d", "max_budget": 5.0, "reset_at": next_midnight().isoformat()},
        {"budget_duration": "30d", "max_budget": 100.0, "reset_at": next_month().isoformat()},
    ]
    token = company.key(KEY, models=[], spend=80.0, max_budget=500.0, budget_limits=limits)
    for duration, spend in (("1d", 4.0), ("30d", 33.0)):
        company.add(
            "BudgetWindowSpend", entity_type="key", entity_id=token, window_duration=duration, window_start=LONG_AGO,
            spend=spend,
        )  # fmt: skip
    for _ in range(2):
        await run(company, target)
    async with opened(target) as ours:
        life, day, month = (await ours.key()).budgets()
        assert [b.duration for b in (life, day, month)] == [None, "1d", "1mo"]
        month_before = bounds(month, now(), UTC)[0]
        assert await ours.spent("key", token, life) == 80
        assert await ours.spent("key", token, day) == 4
        if bounds(day, now(), UTC)[0] > month_before:
            assert await ours.spent("key", token, month) == 33


async def test_blocked_and_expired_stay_so(company: Company, target: str) -> None:
    company.key(KEY, models=[], blocked=True)
    company.key(KEY + "e", models=[], expires=in_days(-2))
    company.add("TeamTable", team_id="red", models=[], blocked=True)
    await run(company, target)
    async with opened(target) as ours:
        assert (await ours.key()).blocked
        expires_at = (await ours.key(KEY + "e")).expires_at
        assert expires_at is not None
        assert expires_at < time.time()
        assert (await ours.one("team", "red")).blocked


async def test_what_was_done_here_is_not_undone(company: Company, target: str) -> None:
    for letter in "abcd":
        company.key(KEY + letter, models=["gpt"])
    await run(company, target)
    async with opened(target) as ours:
        await ours.keys.set_blocked(hashed(KEY + "a"), True, at=time.time())
        await ours.keys.delete([(hashed(KEY + "b"),)])
        await ours.keys.update(hashed(KEY + "c"), changes={"models": ("ours",)})
    await company.execute(f"""UPDATE "LiteLLM_VerificationToken" SET blocked = true
                              WHERE token = '{hashed(KEY + "d")}'""")
    book = await run(company, target)
    assert book.counts == {
        "keys unchanged": 1, "keys deleted here, not brought back": 1, "keys kept as they are here": 1,
        "keys updated": 1,
    }  # fmt: skip
    async with opened(target) as ours:
        assert (await ours.key(KEY + "a")).blocked
        assert await ours.keys.get(hashed(KEY + "b")) is None
        assert (await ours.key(KEY + "c")).models == ("ours",)
        assert (await ours.key(KEY + "d")).blocked
    await run(company, target, is_update=True)
    async with opened(target) as ours:
        assert (await ours.key(KEY + "c")).models == ("gpt",)
        assert (await ours.key(KEY + "a")).blocked
        assert await ours.keys.get(hashed(KEY + "b")) is None


async def test_every_write_is_audited(company: Company, target: str) -> None:
    from sidecar.identity import changes

    company.key(KEY, models=[])
    company.add("TeamTable", team_id="red", models=[])
    await run(company, target)
    async with opened(target) as ours, ours.store.read() as connection:
        events, total = await changes.page(connection, limit=10, offset=0)
        assert total == 2
        assert {(e["actor"], e["action"], e["kind"]) for e in events} == {
            ("import litellm", "create", "team"), ("import litellm", "create", "key"),
        }  # fmt: skip


async def test_no_key_may_call_more_models_than_before(company: Company, target: str) -> None:
    company.add("UserTable", user_id="ann", models=["no-default-models"], max_budget=1.0, spend=5.0)
    company.add("UserTable", user_id="bob", models=["gpt", "claude-*"], max_budget=3.0)
    company.key(KEY + "t", models=["all-team-models"], user_id="ann", team_id="red")
    company.key(KEY + "p", models=["claude-haiku", "o3"], user_id="bob")
    company.key(KEY + "q", models=[], user_id="bob", team_id="red")
    company.key(KEY + "r", models=[], allowed_routes=["management_routes"])
    company.key(KEY + "s", models=[], allowed_routes=["llm_api_routes"])
    company.key(KEY + "u", models=[], key_type="read_only")
    company.key(KEY + "w", models=[], team_id="litellm-dashboard", user_id="ann")
    company.key("sk-master-of-them-all", models=[], user_id="default_user_id")
    book = await run(company, target, masters=frozenset({hashed("sk-master-of-them-all")}))
    async with opened(target) as ours:
        ann, bob = await ours.one("user", "ann"), await ours.one("user", "bob")
        assert (ann.models, ann.max_budget_nano) == ((), None), "she has team keys alone, which it never bound"
        assert (bob.models, bob.max_budget_nano) == ((), 3_000_000_000)
        models = {letter: (await ours.key(KEY + letter)).models for letter in "tpqrsu"}
        nobody = ("no-default-models",)
        assert models == {
            "t": ("all-team-models",), "p": ("claude-haiku",), "q": (), "r": nobody, "s": (), "u": nobody,
        }  # fmt: skip
        assert await ours.keys.get(hashed(KEY + "w")) is None
        assert await ours.keys.get(hashed("sk-master-of-them-all")) is None
    assert ("no equivalent", "a session of the admin page, not a key") in told(book, "token")


async def test_what_a_project_or_a_directory_forbade_stays_forbidden(company: Company, target: str) -> None:
    company.add("ProjectTable", project_id="closed", models=[], blocked=True)
    company.add("ProjectTable", project_id="small", models=["gpt"])
    company.add("UserTable", user_id="gone", models=[], metadata={"scim_active": False})
    company.add("UserTable", user_id="here", models=[], metadata={"scim_active": True})
    company.key(KEY + "1", models=[], project_id="closed")
    company.key(KEY + "2", models=["gpt", "o3"], project_id="small")
    company.key(KEY + "3", models=[], user_id="gone")
    book = await run(company, target)
    async with opened(target) as ours:
        assert (await ours.key(KEY + "1")).blocked
        assert (await ours.key(KEY + "2")).models == ("gpt",)
        assert (await ours.one("user", "gone")).blocked
        assert not (await ours.one("user", "here")).blocked
    assert ("no equivalent", "there are no projects; use a team for each") in told(book, "", "ProjectTable")


async def test_a_replaced_key_works_until_its_time_is_up(company: Company, target: str) -> None:
    new = company.key(KEY + "new", models=["gpt"], key_alias="ci", spend=3.0, team_id="red")
    company.add("DeprecatedVerificationToken", id="1", token=hashed(KEY), active_token_id=new, revoke_at=in_days(1))
    for _ in range(2):
        await run(company, target)
    async with opened(target) as ours:
        old = await ours.key()
        assert (old.successor_hash, old.spends_as, old.models, old.key_alias) == (new, new, ("gpt",), None)
        assert old.expires_at == pytest.approx(in_days(1).replace(tzinfo=UTC).timestamp(), abs=0.01)


async def test_two_keys_of_one_alias_both_work(company: Company, target: str) -> None:
    company.key(KEY + "1", models=[], key_alias="ci")
    company.key(KEY + "2", models=[], key_alias="ci")
    book = await run(company, target)
    async with opened(target) as ours:
        aliases = sorted([str((await ours.key(KEY + n)).key_alias) for n in "12"])
        assert aliases[0] == "ci"
        assert aliases[1].startswith("ci-")
    assert [status for status, _ in told(book, "key_alias")] == ["taken", "changed"]


async def test_prismas_own_words_in_the_url_are_understood(company: Company) -> None:
    company.key(KEY, models=[])
    await company.write()
    await company.execute("CREATE SCHEMA theirs", 'ALTER TABLE "LiteLLM_VerificationToken" SET SCHEMA theirs')
    url = f"{company.url}?schema=theirs&connection_limit=5&pool_timeout=10&application_name=import"
    book = await import_database(url, None, clock=now)
    assert [e.rows for e in book.entries if e.column == "token"] == [1]


async def test_everything_that_holds_something_is_reported(company: Company) -> None:
    """Each column of each table, filled: none is passed over in silence, and no secret is told."""
    company.key(
        KEY, models=["gpt"], key_alias="a", aliases={"x": "y"}, config={"x": 1}, router_settings={"x": 1},
        agent_id="agent", project_id="p", permissions={"get_spend_routes": True}, tpd_limit=5, policies=["p"],
        allowed_cache_controls=["no-store"], access_group_ids=["g"], model_spend={"gpt": 1}, object_permission_id="o",
        model_max_budget={"gpt": {"budget_limit": 1}}, budget_fallbacks={"gpt": ["x"]}, rotation_count=2,
        auto_rotate=True, rotation_interval="30d", key_rotation_at=in_days(5), last_rotation_at=NOW, created_by="me",
        metadata={"logging": [{"callback_vars": {"langfuse_secret_key": "canary-langfuse"}}], "guardrails": ["x"]},
    )  # fmt: skip
    company.add("ProxyModelTable", model_id="m", model_name="x", litellm_params={"api_key": "canary-sealed"})
    company.add("SpendLogs", request_id="r", api_key="k", spend=1.0, model="gpt")
    company.add("DailyUserSpend", id="1", user_id="ann", date="2026-01-01", spend=1.0)
    company.add("NewerThanWeKnow", id="1")
    company.add("UserTable", user_id="ann", models=[], password="canary-password", sso_user_id="sso", user_role="team")
    await company.write()
    await company.execute(
        'ALTER TABLE "LiteLLM_VerificationToken" ADD COLUMN of_next_year TEXT',
        """UPDATE "LiteLLM_VerificationToken" SET of_next_year = 'canary-unknown'""",
    )
    book = await run(company, None)
    missing = {(e.table.removeprefix("LiteLLM_"), e.column) for e in book.entries if e.status == "no equivalent"}
    assert missing >= {
        ("VerificationToken", name)
        for name in (
            "config", "router_settings", "agent_id", "project_id", "permissions", "tpd_limit", "policies",
            "allowed_cache_controls", "access_group_ids", "model_spend", "object_permission_id", "model_max_budget",
            "budget_fallbacks", "rotation_count", "created_by", "metadata", "of_next_year",
        )
    }  # fmt: skip
    assert missing >= {(t, "") for t in ("ProxyModelTable", "SpendLogs", "DailyUserSpend", "NewerThanWeKnow")}
    assert missing >= {("UserTable", "password"), ("UserTable", "sso_user_id")}
    assert "canary" not in "\n".join(str(e) + str(e.as_json()) for e in book.entries)
    assert KEY not in str([str(e) for e in book.entries])
