"""What was asked and answered: kept only where it is turned on, cut at a bound, left out when somebody says so, gone
when its days are over, and nobody's wait."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar.db import Database, migrate
from sidecar.spend.ledger import Ledger
from sidecar.spend.prompts import QUEUE, Prompt, Prompts, find, insert, prompt_of
from sidecar.spend.retention import forget_prompts
from tests.faults.provider import FaultProvider
from tests.promises.support import MASTER, Running, body, served
from tests.spend.rows import exchange_id

pytestmark = pytest.mark.anyio
NOW = 1_800_000_000.0
SECRET = "my password is hunter2"
ADMIN = {"authorization": f"Bearer {MASTER}"}


def prompt(number: int, at: float = NOW, **changes: Any) -> Prompt:
    fields = {"exchange_id": exchange_id(number), "at": at, "key_hash": "k", "request": "{}", "answer": "a"}
    return Prompt(**(fields | changes))  # type: ignore[arg-type]


def hourly(number: int, **changes: Any) -> Prompt:
    """Of so many hours ago, as its id says."""
    at = NOW - number * 3600
    return prompt(number, at=at, **({"exchange_id": exchange_id(0, at)} | changes))


def asked(stream: bool = False) -> dict[str, Any]:
    return body(stream=stream) | {"messages": [{"role": "user", "content": SECRET}]}


async def stored(gateway: Running, exchange: str) -> dict[str, Any]:
    """What the management API shows, once it is there."""
    async with asyncio.timeout(60):
        while True:
            answer = await gateway.http.get(f"{gateway.url}/spend/prompts/{exchange}", headers=ADMIN)
            if answer.status_code == 200:
                found: dict[str, Any] = answer.json()
                return found
            assert answer.status_code == 404, answer.text
            await asyncio.sleep(0.05)


def written_in(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


async def test_an_id_that_no_database_holds_has_no_prompt(database_url: str) -> None:
    await migrate(database_url)
    database = Database(database_url)
    for name in ("a\0b", "\ud800"):
        assert await find(database, name) is None
    await database.aclose()


def test_texts_are_cut_at_the_bound_and_hold_what_a_database_holds() -> None:
    found = prompt_of("x", NOW, "k", "aé\0".encode() * 3, b"12345678", 7)
    assert (found.request, found.request_cut) == ("aé\ufffdaé", True)
    assert (found.answer, found.answer_cut) == ("1234567", True)
    whole = prompt_of("x", NOW, "k", b"1234567", b"", 7)
    assert (whole.request, whole.request_cut, whole.answer_cut) == ("1234567", False, False)


async def test_rows_are_written_once_and_forgotten_after_their_days(database_url: str) -> None:
    await migrate(database_url)
    database = Database(database_url, clock=lambda: NOW)
    prompts = Prompts(database, max_bytes=100)
    for number in range(250):
        prompts.offer(hourly(number))
    await prompts.flush()
    await insert(database, [hourly(0, answer="another")])
    assert await find(database, hourly(0).exchange_id) == hourly(0)
    assert await find(database, exchange_id(999)) is None
    await Ledger(database, prompt_days=5).maintain()
    assert await find(database, hourly(5 * 24).exchange_id) is not None
    assert await find(database, hourly(5 * 24 + 1).exchange_id) is None  # no day's table was there: deleted to the hour
    await Ledger(database).maintain()
    assert await find(database, hourly(1).exchange_id) is not None
    await prompts.aclose()
    await database.aclose()


async def tables(database: Database) -> list[str]:
    query = "SELECT relname FROM pg_class WHERE relname ~ '^prompts_[0-9]' AND relkind = 'r' ORDER BY 1"
    async with database.engine.connect() as connection:
        return list((await connection.exec_driver_sql(query)).scalars())


async def test_days_are_dropped_whole_on_postgresql(postgres_url: str) -> None:
    """A day's table goes when all of it is older than the retention, and no earlier."""
    start = NOW - 6 * 86_400
    now = [start]
    database = Database(postgres_url, clock=lambda: now[0])
    await database.migrate()
    made = await tables(database)
    assert len(made) == 8
    assert made[0] == f"prompts_{time.strftime('%Y%m%d', time.gmtime(start))}"
    await insert(database, [hourly(number) for number in range(6 * 24)])
    ledger = Ledger(database, prompt_days=2)
    now[0] = NOW
    await asyncio.gather(*(ledger.maintain() for _ in range(3)))
    left = await tables(database)
    assert left[0] == f"prompts_{time.strftime('%Y%m%d', time.gmtime(NOW - 2 * 86_400))}"
    assert made[:4] == [name for name in made if name not in left]
    for number in range(6 * 24):
        is_kept = (await find(database, hourly(number).exchange_id)) is not None
        assert is_kept == (hourly(number).at // 86_400 >= (NOW - 2 * 86_400) // 86_400), number
    async with database.engine.connect() as connection:
        in_default = await connection.exec_driver_sql("SELECT count(*) FROM prompts_default")
        assert in_default.scalar() == 0
    await database.aclose()


async def test_a_reader_of_prompts_puts_the_dropping_off(postgres_url: str) -> None:
    now = [NOW - 10 * 86_400]
    database = Database(postgres_url, clock=lambda: now[0])
    await database.migrate()
    now[0] = NOW
    async with database.engine.connect() as reader:
        await reader.exec_driver_sql("SELECT count(*) FROM prompts")  # its transaction stays open
        assert await forget_prompts(database, now=NOW, days=8) == 0
        await insert(database, [prompt(1)])
    assert await forget_prompts(database, now=NOW, days=8) == 2
    await database.aclose()


async def test_a_database_that_is_away_costs_counted_drops_and_what_waits_is_written_later(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/later.db"
    database = Database(url)  # without its tables
    prompts = Prompts(database, max_bytes=100)
    for number in range(QUEUE + 5):
        prompts.offer(prompt(number))
    assert prompts.dropped == 5
    await asyncio.sleep(0)
    await migrate(url)
    await prompts.flush()
    assert await find(database, exchange_id(QUEUE - 1)) == prompt(QUEUE - 1)
    big = Prompts(database, max_bytes=100)
    for number in range(40):
        big.offer(prompt(number, request="x" * 1_000_000))
    assert big.dropped > 0
    await prompts.aclose()
    await big.aclose()
    await database.aclose()


@pytest.mark.parametrize("is_stream", [False, True])
async def test_nothing_is_stored_unless_it_is_turned_on(tmp_path: Path, faults: FaultProvider, is_stream: bool) -> None:
    async with served(tmp_path, faults.base_url) as gateway:
        key = await gateway.mint()
        answer = await gateway.chat(key, asked(is_stream))
        await gateway.rows(at_least=1)
        found = await gateway.http.get(f"{gateway.url}/spend/prompts/{answer.headers['x-request-id']}", headers=ADMIN)
        assert found.status_code == 404
    assert SECRET.encode() not in written_in(tmp_path)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_what_went_to_a_provider_is_kept_as_client_and_gateway_said_it(
    tmp_path: Path, faults: FaultProvider, is_stream: bool
) -> None:
    sink = tmp_path / "sink.jsonl"
    spend = {"store_prompts": True, "flush_s": 0.05, "sinks": [{"url": f"jsonl://{sink}"}]}
    async with served(tmp_path, faults.base_url, top={"spend": spend}) as gateway:
        key = await gateway.mint()
        assert (await gateway.chat(key, {"model": "nobody", "messages": []})).status_code == 404
        answer = await gateway.chat(key, asked(is_stream))
        found = await stored(gateway, answer.headers["x-request-id"])
        assert json.loads(found["request"]) == asked(is_stream)
        assert found["answer"] == answer.text
        assert (found["request_cut"], found["answer_cut"]) == (False, False)
        refused = await gateway.http.get(
            f"{gateway.url}/spend/prompts/{answer.headers['x-request-id']}", headers={"authorization": f"Bearer {key}"}
        )
        assert refused.status_code == 403
        events = (await gateway.admin("/audit", kind="prompt"))["events"]
        assert {(event["action"], event["subject_id"]) for event in events} == {
            ("read", answer.headers["x-request-id"])
        }
    assert sink.read_text()
    assert SECRET not in sink.read_text()


Mint = Callable[[Running], Awaitable[str]]


async def own(gateway: Running) -> str:
    return await gateway.mint(metadata={"store_prompts": False})


async def of_a_team(gateway: Running) -> str:
    await gateway.admin("/team/new", {"team_id": "quiet", "metadata": {"store_prompts": False}})
    return await gateway.mint(team_id="quiet")


@pytest.mark.parametrize("mint", [own, of_a_team])
async def test_whoever_says_so_is_left_out(tmp_path: Path, faults: FaultProvider, mint: Mint) -> None:
    spend = {"store_prompts": True, "flush_s": 0.05, "prompt_max_bytes": 256}
    async with served(tmp_path, faults.base_url, top={"spend": spend}) as gateway:
        quiet = (await gateway.chat(await mint(gateway), asked())).headers["x-request-id"]
        loud = await gateway.chat(await gateway.mint(), asked() | {"user": "u" * 300})
        found = await stored(gateway, loud.headers["x-request-id"])
        assert found["request_cut"]
        assert len(found["request"]) == 256
        answer = await gateway.http.get(f"{gateway.url}/spend/prompts/{quiet}", headers=ADMIN)
        assert answer.status_code == 404
