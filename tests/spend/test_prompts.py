"""What was asked and answered: kept only where it is turned on, cut at a bound, left out when somebody says so, gone
when its days are over, and nobody's wait."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar.db import Database, migrate
from sidecar.spend.ledger import Ledger
from sidecar.spend.prompts import QUEUE, Prompt, Prompts, find, insert, prompt_of
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


def asked(stream: bool = False) -> dict[str, Any]:
    return body(stream=stream) | {"messages": [{"role": "user", "content": SECRET}]}


async def stored(gateway: Running, exchange: str) -> dict[str, Any]:
    """What the management API shows, once it is there."""
    async with asyncio.timeout(20):
        while True:
            answer = await gateway.http.get(f"{gateway.url}/spend/prompts/{exchange}", headers=ADMIN)
            if answer.status_code == 200:
                found: dict[str, Any] = answer.json()
                return found
            assert answer.status_code == 404, answer.text
            await asyncio.sleep(0.05)


def written_in(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


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
        prompts.offer(prompt(number, at=NOW - number * 3600))
    await prompts.flush()
    await insert(database, [prompt(0, answer="another")])
    assert await find(database, exchange_id(0)) == prompt(0)
    assert await find(database, exchange_id(999)) is None
    await Ledger(database, prompt_days=5).maintain()
    assert await find(database, exchange_id(5 * 24)) is not None
    assert await find(database, exchange_id(5 * 24 + 1)) is None
    await Ledger(database).maintain()
    assert await find(database, exchange_id(1)) is not None
    await prompts.aclose()
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
