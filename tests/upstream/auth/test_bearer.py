"""The token keeper: one fetch for all who wait, renewed early, no storm on a source that fails."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.errors import UpstreamCredentialError
from sidecar.types import Secret
from sidecar.upstream.auth.base import BearerAuthorizer, Token
from sidecar.upstream.base import HttpRequest

pytestmark = pytest.mark.anyio
REQUEST = HttpRequest("POST", "https", "example.com", 443, b"/")


class Source:
    def __init__(self) -> None:
        self.now = 1000.0
        self.life_s = 3600.0
        self.fetched = 0
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def fetch(self) -> Token:
        self.fetched += 1
        number = self.fetched
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return Token(Secret(f"t{number}"), self.now + self.life_s)

    def authorizer(self) -> BearerAuthorizer:
        return BearerAuthorizer(self.fetch, clock=lambda: self.now)


async def token_of(authorizer: BearerAuthorizer) -> str:
    ((name, value),) = await authorizer.headers(REQUEST)
    assert name == b"authorization"
    return value.decode().removeprefix("Bearer ")


async def test_all_who_wait_share_one_fetch() -> None:
    source = Source()
    authorizer = source.authorizer()
    assert await asyncio.gather(*(token_of(authorizer) for _ in range(50))) == ["t1"] * 50
    assert source.fetched == 1


async def test_a_token_is_renewed_in_the_background_while_the_old_one_serves() -> None:
    source = Source()
    authorizer = source.authorizer()
    await token_of(authorizer)
    source.now += 3600 - 299
    source.gate.clear()
    assert await token_of(authorizer) == "t1"
    assert await token_of(authorizer) == "t1"
    source.gate.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert await token_of(authorizer) == "t2"
    assert source.fetched == 2


async def test_a_token_in_its_last_seconds_is_not_used() -> None:
    source = Source()
    authorizer = source.authorizer()
    await token_of(authorizer)
    source.now += 3600 - 19
    assert await token_of(authorizer) == "t2"


async def test_a_source_that_fails_is_asked_once_per_pause_and_recovers_unaided() -> None:
    source = Source()
    source.failure = ValueError("holds a secret")
    authorizer = source.authorizer()
    for _ in range(20):
        with pytest.raises(UpstreamCredentialError) as caught:
            await authorizer.headers(REQUEST)
        assert "secret" not in caught.value.message
        assert not caught.value.may_be_billed
    assert source.fetched == 1
    source.failure = None
    source.now += 2.5
    assert await token_of(authorizer) == "t2"


async def test_a_failing_renewal_leaves_the_old_token_in_use_and_is_tried_again() -> None:
    source = Source()
    authorizer = source.authorizer()
    await token_of(authorizer)
    source.failure = UpstreamCredentialError("no")
    source.now += 3400
    for _ in range(5):
        assert await token_of(authorizer) == "t1"
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert source.fetched == 2
    source.failure = None
    source.now += 3
    assert await token_of(authorizer) == "t1"
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert await token_of(authorizer) == "t3"


async def test_who_leaves_does_not_end_the_fetch_for_the_others() -> None:
    source = Source()
    source.gate.clear()
    authorizer = source.authorizer()
    first = asyncio.ensure_future(token_of(authorizer))
    second = asyncio.ensure_future(token_of(authorizer))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    source.gate.set()
    assert await second == "t1"
    assert source.fetched == 1
    await authorizer.aclose()


async def test_a_very_short_token_serves_half_its_life_before_it_is_renewed() -> None:
    source = Source()
    source.life_s = 60.0
    authorizer = source.authorizer()
    await token_of(authorizer)
    source.now += 29
    assert await token_of(authorizer) == "t1"
    await asyncio.sleep(0)
    assert source.fetched == 1
