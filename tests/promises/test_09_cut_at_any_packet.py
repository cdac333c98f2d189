"""*A dead store has known behaviour*, wherever the cut falls. Between a `sidecar serve` and its stores packets stop
after any number of them – amid a budget's admission, its seeding, its settlement, a batch of rows – while calls run
that end, are refused or are left by their client. What is under way then arrives late, or never with its connection
lost. Each time the gateway serves again unaided; in the end every whole answer has exactly one row, and counters agree
with the rows.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from tests.faults.provider import FaultProvider
from tests.promises.fleet import Fleet
from tests.promises.sizes import measured, size
from tests.promises.support import MASTER, body, process
from tests.promises.test_09_a_dead_store_has_known_behaviour import every_whole_answer_has_one_row, works_again
from tests.servers.redis import LocalServer
from tests.servers.relay import Relay, relayed

pytestmark = pytest.mark.anyio
CUTS = size("PROMISE_9_CUTS", 2, full=10)
"""For each store and each way."""
STEP = max(1, 40 // CUTS)
"""Packets that pass, from one to the next."""


@pytest.mark.parametrize("what", ["redis", "postgres"])
async def test_cut_at_any_packet(
    tmp_path: Path, postgres_url: str, start_redis: Callable[..., LocalServer], faults: FaultProvider, what: str
) -> None:
    redis = start_redis()
    stores = {"redis": redis.url, "postgres": postgres_url}
    async with relayed(stores[what]) as (relay, url):
        stores[what] = url
        store = {"database_url": stores["postgres"], "redis_url": stores["redis"], "deadline_s": 0.5}
        top = {
            "store": store | {"journal_dir": str(tmp_path / "journal")},
            "auth": {"master_key": MASTER, "key_cache_s": 3600},
            "spend": {"flush_s": 0.05},
        }
        async with process(tmp_path, faults.base_url, top=top) as running:
            gateways = Fleet([running], (1,), postgres_url)
            poor, free = await running.mint(max_budget=1000), await running.mint()
            for key in (poor, free):
                await works_again(gateways, key)
            seen: Counter[int] = Counter()
            whole: set[str] = set()
            longest = 0.0
            for cut in range(2 * CUTS):
                fresh = await running.mint(max_budget=1000)  # its counter is read from the ledger
                relay.freeze_after(cut // 2 * STEP)
                calls = [
                    asyncio.ensure_future(_call(gateways, key, f"{cut}-{key[-4:]}-{is_stream}", is_stream, whole, seen))
                    for key in (poor, free, fresh)
                    for is_stream in (False, True)
                ]
                leaving = asyncio.ensure_future(_call(gateways, poor, f"{cut}-left", True, set(), seen))
                await _stands_still(relay, calls)
                leaving.cancel()
                await asyncio.wait({*calls})
                if cut % 2:
                    relay.hang_up()
                relay.thaw()
                relay.come_back()
                await asyncio.gather(*calls)
                await asyncio.wait({leaving})
                longest = max(longest, await works_again(gateways, poor))
            await every_whole_answer_has_one_row(gateways, whole)
            await gateways.agree()
    assert seen[200] > CUTS
    assert set(seen) <= {200, 503}
    if what == "redis":
        assert seen[503] > 0, "some were asked for while it was away"
    measured(
        9,
        f"{what} cut off {2 * CUTS} times amid calls, after 0 to {(CUTS - 1) * STEP} packets, half the connections "
        f"lost: serves again {longest:.1f} s after at most; {len(whole)} whole answers, 0 without a row, 0 doubled; "
        "counters agree",
    )


async def _call(
    gateways: Fleet, key: str, name: str, is_stream: bool, whole: set[str], seen: Counter[int]
) -> httpx2.Response:
    answer = await gateways.running[0].chat(key, body(stream=is_stream), headers={"x-request-id": name}, timeout=60)
    seen[answer.status_code] += 1
    if answer.status_code == 200 and (not is_stream or answer.text.endswith("data: [DONE]\n\n")):
        whole.add(name)
    return answer


async def _stands_still(relay: Relay, calls: list[asyncio.Future[httpx2.Response]]) -> None:
    """Or nothing more comes."""
    if not await relay.holds_up(asyncio.gather(*calls)):
        await relay.holds_up(asyncio.ensure_future(asyncio.sleep(0.2)))  # rows are on their way after the answer
