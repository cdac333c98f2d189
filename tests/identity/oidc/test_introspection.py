"""Opaque tokens: asked about once, remembered for a while, and never 401 because the endpoint is down."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Callable

import pytest

from sidecar.errors import AuthenticationError, UnavailableError
from sidecar.identity.oidc.claims import ClaimMap, Requirement
from sidecar.identity.oidc.issuers import Introspection, Issuer
from sidecar.types import Secret
from tests.identity.oidc.conftest import Build
from tests.identity.oidc.issuer import AUDIENCE, Answer, IssuerServer
from tests.identity.source import Clock

pytestmark = pytest.mark.anyio

Endpoint = Callable[..., Introspection]
ASK = "/introspect"


async def test_an_active_token_becomes_claims(idp: IssuerServer, build: Build, endpoint: Endpoint) -> None:
    issuers = build([], [endpoint()])
    idp.tokens["at-1"] = {"active": True, "sub": "alice", "scope": "read write", "exp": idp.now() + 60}
    claims = await issuers.identify("at-1")
    assert claims is not None
    assert (claims.issuer, claims.user_id, claims.scopes) == ("opaque", "alice", ("read", "write"))
    assert claims.expires_at == idp.now() + 60
    (request,) = idp.seen
    assert (request.method, request.path) == ("POST", ASK)
    assert request.form == {"token": "at-1", "token_type_hint": "access_token"}
    assert request.headers["authorization"] == "Basic " + b64encode(b"gw:s3%3Acr%2Ft").decode()
    assert await issuers.identify("at-1") is claims
    assert len(idp.seen) == 1


@pytest.mark.parametrize(("auth", "header", "in_form"), [("post", None, "s3:cr/t"), ("bearer", "Bearer s3:cr/t", None)])
async def test_the_client_proves_itself_in_other_ways(
    idp: IssuerServer, build: Build, endpoint: Endpoint, auth: str, header: str | None, in_form: str | None
) -> None:
    idp.tokens["at-1"] = {"active": True, "sub": "alice"}
    assert await build([], [endpoint(auth=auth)]).identify("at-1") is not None
    assert idp.seen[0].headers.get("authorization") == header
    assert idp.seen[0].form.get("client_secret") == in_form


async def test_an_inactive_token_is_401_and_not_asked_about_again_at_once(
    idp: IssuerServer, build: Build, endpoint: Endpoint, clock: Clock
) -> None:
    issuers = build([], [endpoint()])
    for _ in range(3):
        with pytest.raises(AuthenticationError, match="not active"):
            await issuers.identify("at-unknown")
    assert len(idp.seen) == 1
    clock.now += 6
    idp.tokens["at-unknown"] = {"active": True, "sub": "alice"}
    assert await issuers.identify("at-unknown") is not None


async def test_a_hundred_calls_with_one_token_ask_once(idp: IssuerServer, build: Build, endpoint: Endpoint) -> None:
    issuers = build([], [endpoint()])
    idp.tokens["at-1"] = {"active": True, "sub": "alice"}
    idp.gate.clear()
    calls = asyncio.gather(*(issuers.identify("at-1") for _ in range(100)))
    await idp.asked(1)
    idp.gate.set()
    assert {claims.user_id for claims in await calls if claims} == {"alice"}
    assert len(idp.seen) == 1


async def test_a_flood_of_tokens_opens_a_bounded_number_of_questions(
    idp: IssuerServer, build: Build, endpoint: Endpoint
) -> None:
    issuers = build([], [endpoint(max_parallel=4)])
    outcomes = await asyncio.gather(*(issuers.identify(f"junk-{n}") for n in range(60)), return_exceptions=True)
    assert {type(one) for one in outcomes} == {AuthenticationError}
    assert idp.most_open <= 4
    idp.gate.clear()
    issuers = build([], [endpoint(max_parallel=1, deadline_s=0.2)])
    async with asyncio.timeout(60):
        outcomes = await asyncio.gather(*(issuers.identify(f"more-{n}") for n in range(20)), return_exceptions=True)
    assert {type(one) for one in outcomes} == {UnavailableError}


async def test_what_must_not_leave_is_not_asked_about(idp: IssuerServer, build: Build, endpoint: Endpoint) -> None:
    issuers = build([], [endpoint()])
    for token in ("sk-" + "a" * 43, idp.token(), "with space", "umlautä", "", "a\x00b"):
        assert await issuers.identify(token) is None
    assert idp.seen == []


async def test_prefixes_choose_the_endpoint(idp: IssuerServer, build: Build, endpoint: Endpoint) -> None:
    issuers = build([], [endpoint(prefixes=("corp_", "ey")), endpoint(name="other", prefixes=("ext_",))])
    idp.tokens |= {name: {"active": True, "sub": name} for name in ("corp_1", "ext_1")}
    idp.tokens[idp.token()] = {"active": True, "sub": "a JWT nobody here verifies"}
    found = [await issuers.identify(token) for token in (*idp.tokens, "none_1")]
    assert [claims and claims.issuer for claims in found] == ["opaque", "other", "opaque", None]
    assert len(idp.seen) == 3


async def test_a_jwt_of_a_configured_issuer_is_verified_and_not_asked_about(
    idp: IssuerServer, build: Build, endpoint: Endpoint
) -> None:
    issuers = build([Issuer("corp", idp.url, (AUDIENCE,))], [endpoint(prefixes=("ey", "at"))])
    assert await issuers.identify(idp.token()) is not None
    assert idp.count(ASK) == 0


async def test_the_second_endpoint_may_know_what_the_first_does_not(
    idp: IssuerServer, build: Build, endpoint: Endpoint
) -> None:
    idp.tokens["at-1"] = {"active": True, "sub": "alice"}
    broken = endpoint(name="broken", url=f"{idp.url}/nothing-here")
    claims = await build([], [broken, endpoint()]).identify("at-1")
    assert claims is not None
    assert claims.issuer == "opaque"
    with pytest.raises(UnavailableError, match="'broken'"):  # perhaps the broken one knows it
        await build([], [broken, endpoint()]).identify("at-2")


FAULTS: dict[str, tuple[Callable[[], Answer], str]] = {
    "500": (lambda: Answer(b"", 500), "HTTP 500"),
    "our own credentials refused": (lambda: Answer(b'{"error": "invalid_client"}', 401), "HTTP 401"),
    "asked too often": (lambda: Answer(b"", 429), "HTTP 429"),
    "a redirect": (lambda: Answer(b"", 307, headers="location: /elsewhere\r\n"), "HTTP 307"),
    "HTML": (lambda: Answer(b"<html>active", kind="text/html"), "media type"),
    "signed answers": (lambda: Answer(b"e30", kind="application/token-introspection+jwt"), "media type"),
    "no active": (lambda: Answer(b'{"sub": "alice"}'), "active"),
    "active as text": (lambda: Answer(b'{"active": "false"}'), "active"),
    "active twice": (lambda: Answer(b'{"active": false, "active": true}'), "JSON object"),
    "huge": (lambda: Answer(b'{"active": true, "x": "' + b"x" * 300_000 + b'"}'), "256 KiB"),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_faulty_endpoint_is_503(idp: IssuerServer, build: Build, endpoint: Endpoint, name: str) -> None:
    issuers = build([], [endpoint()])
    idp.tokens["at-secret"] = {"active": True, "sub": "alice"}
    idp.faults[ASK], why = FAULTS[name]
    with pytest.raises(UnavailableError, match=why) as caught:
        await issuers.identify("at-secret")
    assert (caught.value.status, caught.value.code) == (503, "token_issuer_unavailable")
    assert "at-secret" not in caught.value.message
    assert "s3" not in caught.value.message
    idp.faults.clear()
    assert await issuers.identify("at-secret") is not None
    assert idp.count("/elsewhere") == 0


BAD: dict[str, tuple[dict[str, object], str]] = {
    "expired": ({"exp": 1}, "expired"),
    "not yet valid": ({"nbf": 9e9}, "not valid yet"),
    "another audience": ({"aud": "billing"}, "audience"),
    "no audience": ({"aud": None}, "audience"),
    "another issuer": ({"iss": "https://evil.example"}, "another issuer"),
    "a sub that is not text": ({"sub": {}}, "printable"),
    "a claim missing": ({"client_id": None}, "'client_id'"),
}


@pytest.mark.parametrize("name", BAD)
async def test_an_active_token_that_is_not_for_us_is_401(
    idp: IssuerServer, build: Build, endpoint: Endpoint, name: str
) -> None:
    good = {"active": True, "sub": "alice", "aud": [AUDIENCE], "iss": idp.url, "client_id": "cli"}
    issuers = build([], [endpoint(audiences=(AUDIENCE,), issuer=idp.url, required_claims=("client_id",))])
    idp.tokens["good"] = good
    assert await issuers.identify("good") is not None
    changes, why = BAD[name]
    idp.tokens["bad"] = {key: value for key, value in {**good, **changes}.items() if value is not None}
    with pytest.raises(AuthenticationError, match=why):
        await issuers.identify("bad")


async def test_a_token_is_asked_about_again_and_a_revocation_is_noticed(
    idp: IssuerServer, build: Build, endpoint: Endpoint, clock: Clock
) -> None:
    issuers = build([], [endpoint(fresh_s=30)])
    idp.tokens["at-1"] = {"active": True, "sub": "alice"}
    first = await issuers.identify("at-1")
    clock.now += 30
    assert issuers.cached("at-1") is None
    assert await issuers.identify("at-1") is first  # unchanged: what was derived from it stays valid
    idp.tokens["at-1"] = {"active": False}
    clock.now += 30
    with pytest.raises(AuthenticationError, match="not active"):
        await issuers.identify("at-1")
    idp.faults[ASK] = lambda: Answer(b"", 500)
    clock.now += 6
    with pytest.raises(UnavailableError):  # and is not forgotten when the endpoint goes down afterwards
        await issuers.identify("at-1")


async def test_a_revocation_counts_also_when_all_who_asked_have_left(
    idp: IssuerServer, build: Build, endpoint: Endpoint, clock: Clock
) -> None:
    issuers = build([], [endpoint(fresh_s=30)])
    idp.tokens["at-1"] = {"active": True, "sub": "alice"}
    await issuers.identify("at-1")
    idp.tokens["at-1"] = {"active": False}
    clock.now += 31
    idp.gate.clear()
    call = asyncio.create_task(issuers.identify("at-1"))
    await idp.asked(2)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    idp.gate.set()
    async with asyncio.timeout(60):
        while issuers.remembered:
            await asyncio.sleep(0.01)
        while issuers._flights._tasks:  # the call that forgot it has to be over, else the next one joins it
            await asyncio.sleep(0.01)
    idp.faults[ASK] = lambda: Answer(b"", 500)
    with pytest.raises(UnavailableError):
        await issuers.identify("at-1")


async def test_a_known_token_works_while_the_endpoint_is_down_up_to_its_hard_age(
    idp: IssuerServer, build: Build, endpoint: Endpoint, clock: Clock
) -> None:
    issuers = build([], [endpoint(fresh_s=30, hard_age_s=300)])
    idp.tokens["at-1"] = {"active": True, "sub": "alice"}
    idp.tokens["short"] = {"active": True, "sub": "bob", "exp": idp.now() + 100}
    await issuers.identify("at-1")
    await issuers.identify("short")
    idp.faults[ASK] = lambda: Answer(b"", 500)
    clock.now += 99
    asked = len(idp.seen)
    for _ in range(10):
        assert await issuers.identify("at-1") is not None
        await asyncio.sleep(0.01)  # time enough for more questions to arrive
    await idp.asked(asked + 1)
    assert len(idp.seen) == asked + 1
    assert await issuers.identify("short") is not None
    clock.now += 1
    with pytest.raises(UnavailableError):
        await issuers.identify("short")
    clock.now += 199
    assert await issuers.identify("at-1") is not None
    clock.now += 1
    with pytest.raises(UnavailableError):
        await issuers.identify("at-1")


async def test_a_known_token_does_not_wait_for_an_endpoint_known_to_be_down(
    idp: IssuerServer, build: Build, endpoint: Endpoint, clock: Clock
) -> None:
    issuers = build([], [endpoint(fresh_s=30, deadline_s=3600)])
    idp.tokens["at-1"] = {"active": True, "sub": "alice"}
    await issuers.identify("at-1")
    idp.faults[ASK] = lambda: Answer(b"", 500)
    clock.now += 31
    assert await issuers.identify("at-1") is not None
    idp.gate.clear()
    clock.now += 2
    async with asyncio.timeout(60):
        for _ in range(10):
            assert await issuers.identify("at-1") is not None
        await idp.asked(3)  # one question finds out whether it is back
    idp.tokens["at-1"] = {"active": False}
    idp.faults.clear()
    idp.gate.set()
    async with asyncio.timeout(60):
        while issuers.remembered:
            await asyncio.sleep(0.01)
    assert idp.count(ASK) == 3
    idp.tokens["at-2"] = {"active": True, "sub": "bob"}
    assert await issuers.identify("at-2") is not None
    idp.tokens["at-2"] = {"active": False}
    clock.now += 31
    with pytest.raises(AuthenticationError, match="not active"):  # it is back: its answer is waited for again
        await issuers.identify("at-2")


async def test_a_token_without_expiry_is_used_and_one_with_is_not_used_past_it(
    idp: IssuerServer, build: Build, endpoint: Endpoint, clock: Clock
) -> None:
    issuers = build([], [endpoint(leeway_s=0)])
    idp.tokens["at-1"] = {"active": True, "sub": "alice", "exp": idp.now() + 10}
    assert await issuers.identify("at-1") is not None
    clock.now += 10
    with pytest.raises(AuthenticationError, match="expired"):
        await issuers.identify("at-1")


async def test_what_an_answer_means_is_mapped(idp: IssuerServer, build: Build, endpoint: Endpoint) -> None:
    how = ClaimMap(user_id=("username",), require=(Requirement("scope", ("*gateway*", "llm")),))
    issuers = build([], [endpoint(claims=how)])
    idp.tokens["at-1"] = {"active": True, "client_id": "cli", "username": "alice", "scope": "llm"}
    claims = await issuers.identify("at-1")
    assert claims is not None
    assert (claims.subject, claims.user_id) == ("cli", "alice")


def test_an_endpoint_refuses_to_be_unsafe() -> None:
    good = {"name": "x", "url": "https://idp.example/i", "client_id": "gw", "client_secret": Secret("s")}
    for changes, why in (
        ({"url": "http://idp.example/i"}, "not https"),
        ({"url": "https://user:pw@idp.example/i"}, "password"),
        ({"client_secret": Secret("")}, "client_secret"),
        ({"client_id": ""}, "client_id"),
        ({"prefixes": ("",)}, "prefix"),
        ({"max_parallel": 0}, "max_parallel"),
    ):
        with pytest.raises(ValueError, match=why):
            Introspection(**{**good, **changes})  # type: ignore[arg-type]
    assert "s3cret" not in repr(Introspection(**{**good, "client_secret": Secret("s3cret")}))  # type: ignore[arg-type]
