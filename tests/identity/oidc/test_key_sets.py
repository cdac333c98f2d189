"""An issuer's keys: rotated, missing, slow, broken, huge, somewhere else – and asked for once by however many."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.errors import AuthenticationError, UnavailableError
from sidecar.identity.oidc.issuers import Issuer
from tests.identity.oidc.conftest import Build
from tests.identity.oidc.issuer import AUDIENCE, Answer, IssuerServer, issuer_server, jwk_of, private_key
from tests.identity.source import Clock

pytestmark = pytest.mark.anyio

DOCUMENT, JWKS = "/.well-known/openid-configuration", "/jwks"


async def unavailable(call: object, why: str) -> None:
    with pytest.raises(UnavailableError) as caught:
        await call  # type: ignore[misc]
    assert (caught.value.status, caught.value.code) == (503, "token_issuer_unavailable")
    assert why in caught.value.message
    assert "127.0.0.1" not in caught.value.message
    assert caught.value.retry_after_s


async def test_a_hundred_first_tokens_fetch_the_keys_once(idp: IssuerServer, build: Build) -> None:
    issuers = build()
    idp.gate.clear()
    tokens = [idp.token(sub=f"user-{n}") for n in range(100)]
    calls = asyncio.gather(*(issuers.identify(token) for token in tokens))
    await idp.asked(1)
    idp.gate.set()
    found = await calls
    assert [claims.user_id for claims in found if claims] == [f"user-{n}" for n in range(100)]
    assert (idp.count(DOCUMENT), idp.count(JWKS)) == (1, 1)


async def test_a_hundred_tokens_with_an_unknown_kid_make_one_fetch(
    idp: IssuerServer, build: Build, clock: Clock
) -> None:
    issuers = build()
    await issuers.identify(idp.token())
    clock.now += 10
    idp.publish("k2", number=2)
    idp.gate.clear()
    calls = asyncio.gather(*(issuers.identify(idp.token(kid="k2", number=2, sub=f"u{n}")) for n in range(100)))
    await idp.asked(3)
    idp.gate.set()
    assert len([claims for claims in await calls if claims]) == 100
    assert idp.count(JWKS) == 2


async def test_made_up_kids_do_not_reach_the_issuer_more_than_once_per_pause(
    idp: IssuerServer, build: Build, clock: Clock
) -> None:
    issuers = build(min_refetch_s=5.0)
    await issuers.identify(idp.token())
    for n in range(100):
        clock.now += 0.1
        with pytest.raises(AuthenticationError, match="does not publish"):
            await issuers.identify(idp.token(header={"kid": f"made-up-{n}"}))
    assert 2 <= idp.count(JWKS) <= 1 + 10 / 5


async def test_a_rotation_is_followed_and_a_key_that_is_gone_no_longer_counts(
    idp: IssuerServer, build: Build, clock: Clock
) -> None:
    issuers = build()
    old = idp.token()
    assert await issuers.identify(old) is not None
    idp.keys.clear()
    idp.publish("k2", number=2)
    clock.now += 10
    assert await issuers.identify(idp.token(kid="k2", number=2)) is not None
    assert issuers.cached(old) is None  # it was verified with k1, which was withdrawn
    with pytest.raises(AuthenticationError, match="does not publish"):
        await issuers.identify(old)


async def test_a_rotation_without_ids_is_followed(idp: IssuerServer, build: Build, clock: Clock) -> None:
    idp.keys.clear()
    idp.publish(None)
    issuers = build()
    assert await issuers.identify(idp.token(kid=None)) is not None
    assert await issuers.identify(idp.token(kid="whatever", sub="bob")) is not None
    idp.keys.clear()
    idp.publish(None, number=2)
    clock.now += 10
    assert await issuers.identify(idp.token(kid=None, number=2)) is not None
    with pytest.raises(AuthenticationError, match="signature"):
        await issuers.identify(idp.token(kid=None, number=3))


async def test_a_token_without_kid_is_tried_with_the_keys_there_are(idp: IssuerServer, build: Build) -> None:
    idp.publish("k2", number=2)
    issuers = build()
    assert await issuers.identify(idp.token(kid=None, number=2)) is not None


async def test_a_key_without_id_does_not_stand_in_for_one_with(idp: IssuerServer, build: Build) -> None:
    idp.publish(None, number=2)
    issuers = build()
    assert await issuers.identify(idp.token(kid="other", number=2)) is not None
    with pytest.raises(AuthenticationError, match="signature"):
        await issuers.identify(idp.token(kid="k1", number=2))


async def test_keys_that_move_are_found_again(idp: IssuerServer, build: Build, clock: Clock) -> None:
    issuers = build()
    await issuers.identify(idp.token())
    keys = idp.keys[:]
    idp.faults |= {JWKS: lambda: Answer(b"", 404), "/moved": lambda: Answer(json.dumps({"keys": keys}).encode())}
    idp.document["jwks_uri"] = f"{idp.url}/moved"
    keys.append(jwk_of(private_key("ES256", 2), "ES256", "k2"))
    clock.now += 10
    await unavailable(issuers.identify(idp.token(kid="k2", number=2)), "HTTP 404")
    clock.now += 10
    assert await issuers.identify(idp.token(kid="k2", number=2)) is not None


async def test_keys_in_hand_work_while_the_issuer_is_down_until_they_are_too_old(
    idp: IssuerServer, build: Build, clock: Clock
) -> None:
    issuers = build(ttl_s=600, max_stale_s=3600)
    await issuers.identify(idp.token())
    idp.faults[DOCUMENT] = idp.faults[JWKS] = lambda: Answer(b"oops", 500)
    clock.now += 3599
    for n in range(20):
        assert await issuers.identify(idp.token(sub=f"u{n}")) is not None
    clock.now += 1
    await unavailable(issuers.identify(idp.token(sub="late")), "HTTP 500")
    idp.faults.clear()
    clock.now += 10
    assert await issuers.identify(idp.token(sub="late")) is not None


async def test_nobody_waits_for_a_renewal_and_it_is_made_once(idp: IssuerServer, build: Build, clock: Clock) -> None:
    issuers = build(ttl_s=600)
    await issuers.identify(idp.token())
    idp.gate.clear()
    clock.now += 601
    for n in range(50):
        assert await issuers.identify(idp.token(sub=f"u{n}")) is not None
    await idp.asked(3)
    idp.gate.set()
    async with asyncio.timeout(60):
        while issuers.status()[0].loaded_at != clock.now:
            await asyncio.sleep(0.01)
    assert (idp.count(DOCUMENT), idp.count(JWKS)) == (1, 2)


async def test_an_unknown_kid_is_503_while_the_issuer_is_down(idp: IssuerServer, build: Build, clock: Clock) -> None:
    issuers = build()
    await issuers.identify(idp.token())
    idp.faults[JWKS] = lambda: Answer(b"", 503)
    clock.now += 10
    for n in range(5):  # the first asks; the others are told what it was told
        await unavailable(issuers.identify(idp.token(kid="k2", number=2, sub=f"u{n}")), "HTTP 503")
    assert idp.count(JWKS) == 2
    assert await issuers.identify(idp.token(sub="bob")) is not None
    idp.faults.clear()
    idp.publish("k2", number=2)
    clock.now += 10
    assert await issuers.identify(idp.token(kid="k2", number=2, sub="u0")) is not None


async def test_a_caller_who_leaves_takes_nothing_from_the_others(idp: IssuerServer, build: Build) -> None:
    issuers = build()
    idp.gate.clear()
    calls = [asyncio.create_task(issuers.identify(idp.token(sub=f"u{n}"))) for n in range(10)]
    await idp.asked(1)
    for call in calls[:9]:
        call.cancel()
    idp.gate.set()
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(one) for one in found[:9]] == [asyncio.CancelledError] * 9
    assert found[9].user_id == "u9"  # type: ignore[union-attr]


async def test_closing_ends_those_who_wait_with_503(idp: IssuerServer, build: Build) -> None:
    issuers = build()
    idp.gate.clear()
    call = asyncio.create_task(issuers.identify(idp.token()))
    await idp.asked(1)
    await issuers.aclose()
    await unavailable(call, "stopping")
    await unavailable(issuers.identify(idp.token()), "stopping")


def _huge() -> Answer:
    return Answer(b'{"keys": [' + b" " * 400_000 + b"]}")


FAULTS: dict[str, tuple[str, Callable[[], Answer], str]] = {
    "500": (JWKS, lambda: Answer(b"{}", 500), "HTTP 500"),
    "401": (JWKS, lambda: Answer(b"{}", 401), "HTTP 401"),
    "404 for discovery": (DOCUMENT, lambda: Answer(b"{}", 404), "HTTP 404"),
    "204": (JWKS, lambda: Answer(b"", 204), "HTTP 204"),
    "a redirect": (JWKS, lambda: Answer(b"", 302, headers="location: /elsewhere\r\n"), "HTTP 302"),
    "a permanent redirect": (DOCUMENT, lambda: Answer(b"", 308, headers="location: /elsewhere\r\n"), "HTTP 308"),
    "HTML": (JWKS, lambda: Answer(b"<html>", kind="text/html"), "media type"),
    "JSON called text": (JWKS, lambda: Answer(b'{"keys": []}', kind="text/plain"), "media type"),
    "no media type": (JWKS, lambda: Answer(b'{"keys": []}', kind=""), "media type"),
    "compressed": (JWKS, lambda: Answer(b"\x1f\x8b", headers="content-encoding: gzip\r\n"), "compressed"),
    "a huge body": (JWKS, _huge, "256 KiB"),
    "a body cut off": (JWKS, lambda: Answer(b'{"keys": [', length=1000), "broke off"),
    "not JSON": (JWKS, lambda: Answer(b'{"keys": ['), "not a JSON object"),
    "a list": (JWKS, lambda: Answer(b"[]"), "not a JSON object"),
    "keys twice": (JWKS, lambda: Answer(b'{"keys": [], "keys": []}'), "not a JSON object"),
    "no keys": (JWKS, lambda: Answer(b"{}"), "keys"),
    "an empty list": (JWKS, lambda: Answer(b'{"keys": []}'), "no key that can be used"),
    "keys that are not keys": (JWKS, lambda: Answer(b'{"keys": [1, null, "x", {}]}'), "no key that can be used"),
    "too many keys": (JWKS, lambda: Answer(json.dumps({"keys": [{}] * 101}).encode()), "at most 100"),
    "discovery without issuer": (DOCUMENT, lambda: Answer(b'{"jwks_uri": "https://x.example/"}'), "without an issuer"),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_faulty_answer_is_503_and_leaves_keys_in_hand_alone(
    idp: IssuerServer, build: Build, clock: Clock, name: str
) -> None:
    path, answer, why = FAULTS[name]
    issuers = build()
    idp.faults[path] = answer
    await unavailable(issuers.identify(idp.token()), why)
    assert why in str(issuers.status()[0].problem)
    assert idp.count("/elsewhere") == 0
    idp.faults.clear()
    clock.now += 10
    assert await issuers.identify(idp.token()) is not None
    assert issuers.status()[0].problem is None
    idp.faults[path] = answer
    clock.now += 4000  # past the time to live of keys and of discovery
    assert await issuers.identify(idp.token(sub="bob")) is not None


async def test_an_issuer_that_does_not_answer_is_503_in_bounded_time(idp: IssuerServer, build: Build) -> None:
    issuers = build(deadline_s=0.2)
    idp.gate.clear()
    async with asyncio.timeout(60):
        await unavailable(issuers.identify(idp.token()), "within 0.2 s")


async def test_an_issuer_that_is_not_there_is_503(idp: IssuerServer, build: Build) -> None:
    issuers = build(issuer="http://127.0.0.1:1")
    await unavailable(issuers.identify(idp.token(iss="http://127.0.0.1:1")), "could not be reached")


async def test_a_discovery_document_of_another_issuer_is_not_believed(idp: IssuerServer, build: Build) -> None:
    idp.document["issuer"] = idp.url + "/"
    await unavailable(build().identify(idp.token()), "another issuer")
    assert idp.count(JWKS) == 0


@pytest.mark.parametrize(
    "uri",
    ["http://169.254.169.254/", "https://evil.example/keys", "file:///etc/passwd", "http://user@127.0.0.1/", 7, None],
)
async def test_discovery_cannot_send_us_elsewhere(idp: IssuerServer, build: Build, uri: object) -> None:
    idp.document["jwks_uri"] = uri
    await unavailable(build().identify(idp.token()), "discovery document" if "evil" not in str(uri) else "'hosts'")


async def test_keys_at_another_host_need_its_name_in_the_configuration(
    idp: IssuerServer, build: Build, clock: Clock, tmp_path: Path
) -> None:
    bearer = tmp_path / "token"
    bearer.write_text("ours\n")
    async with issuer_server(clock) as other:
        idp.document["jwks_uri"] = f"{other.url}/jwks"
        await unavailable(build().identify(idp.token()), "'hosts'")
        # Loopback is the one place where http is allowed; hosts are named without a scheme, so with their port here.
        issuers = build(hosts=(other.url.removeprefix("http://"),), bearer_file=str(bearer))
        assert await issuers.identify(idp.token()) is not None
        assert [one.headers.get("authorization") for one in idp.seen][-1] == "Bearer ours"
        assert [one.headers.get("authorization") for one in other.seen] == [None]


def _weak_rsa() -> dict[str, object]:
    from cryptography.hazmat.primitives.asymmetric import rsa

    return jwk_of(rsa.generate_private_key(65537, 1024), "RS256", "k1")


def _private() -> dict[str, object]:
    import jwt

    return {**dict(jwt.get_algorithm_by_name("ES256").to_jwk(private_key("ES256"), as_dict=True)), "kid": "k1"}


UNUSABLE: dict[str, Callable[[], dict[str, object]]] = {
    "for encryption": lambda: jwk_of(private_key("ES256"), "ES256", "k1", use="enc"),
    "not for verifying": lambda: jwk_of(private_key("ES256"), "ES256", "k1", key_ops=["sign"]),
    "for another algorithm": lambda: jwk_of(private_key("ES256"), "ES256", "k1") | {"alg": "ES384"},
    "a private key": _private,
    "a shared secret": lambda: {"kty": "oct", "k": "c2VjcmV0", "kid": "k1", "alg": "HS256"},
    "a short RSA key": _weak_rsa,
    "an RSA key without a modulus": lambda: {"kty": "RSA", "e": "AQAB", "kid": "k1"},
    "an RSA key of numbers": lambda: {"kty": "RSA", "e": 3, "n": 15, "kid": "k1"},
    "a point off the curve": lambda: jwk_of(private_key("ES256"), "ES256", "k1") | {"x": "A" * 43},
    "a curve of its own": lambda: jwk_of(private_key("ES256"), "ES256", "k1") | {"crv": "P-257"},
    "a kid that is a number": lambda: jwk_of(private_key("ES256"), "ES256", "k1") | {"kid": 1},
}


@pytest.mark.parametrize("name", UNUSABLE)
async def test_a_key_that_cannot_be_used_is_left_out(idp: IssuerServer, build: Build, name: str) -> None:
    idp.keys = [UNUSABLE[name]()]  # type: ignore[list-item]
    idp.publish("good", number=2)
    issuers = build()
    assert await issuers.identify(idp.token(kid="good", number=2)) is not None
    assert issuers.status()[0].keys == 1
    with pytest.raises(AuthenticationError):
        await issuers.identify(idp.token())


async def test_keys_may_be_given_as_they_are(idp: IssuerServer, build: Build) -> None:
    issuers = build(jwks={"keys": list(idp.keys)}, issuer="urn:example:no-url")
    assert await issuers.identify(idp.token(iss="urn:example:no-url")) is not None
    with pytest.raises(AuthenticationError, match="does not publish"):
        await issuers.identify(idp.token(iss="urn:example:no-url", kid="k2", number=2))
    assert idp.seen == []


async def test_keys_may_lie_in_a_file_which_is_read_again(
    idp: IssuerServer, build: Build, clock: Clock, tmp_path: Path
) -> None:
    file = tmp_path / "keys.json"
    issuers = build(jwks_file=str(file))
    await unavailable(issuers.identify(idp.token()), "file")
    clock.now += 10
    file.write_text("{")
    await unavailable(issuers.identify(idp.token()), "file")
    clock.now += 10
    file.write_text(json.dumps({"keys": idp.keys}))
    assert await issuers.identify(idp.token()) is not None
    idp.publish("k2", number=2)
    file.write_text(json.dumps({"keys": idp.keys}))
    clock.now += 10
    assert await issuers.identify(idp.token(kid="k2", number=2)) is not None
    assert idp.seen == []


async def test_a_fixed_address_needs_no_discovery(idp: IssuerServer, build: Build) -> None:
    issuers = build(jwks_uri=f"{idp.url}/jwks", issuer="https://idp.example")
    assert await issuers.identify(idp.token(iss="https://idp.example")) is not None
    assert [one.path for one in idp.seen] == [JWKS]


async def test_keys_can_be_fetched_ahead_and_a_failure_there_is_none(
    idp: IssuerServer, build: Build, clock: Clock
) -> None:
    issuers = build([Issuer("corp", idp.url, (AUDIENCE,)), Issuer("gone", "http://127.0.0.1:1", (AUDIENCE,))])
    await issuers.warm()
    corp, gone = issuers.status()
    assert (corp.keys, corp.loaded_at, corp.problem) == (1, clock.now, None)
    assert (gone.keys, gone.loaded_at) == (0, None)
    assert "could not be reached" in str(gone.problem)
