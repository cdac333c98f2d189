"""Genuine tokens pass; everything made up, replayed, confused or out of time does not."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from typing import Any

import pytest

from sidecar.errors import AuthenticationError
from sidecar.identity.oidc.issuers import ALGORITHMS, Issuer
from sidecar.identity.oidc.tokens import TokenIssuers
from tests.identity.oidc.conftest import Build
from tests.identity.oidc.issuer import AUDIENCE, IssuerServer, b64, issuer_server, jwk_of, private_key, sign
from tests.identity.source import Clock

pytestmark = pytest.mark.anyio


async def refused(issuers: TokenIssuers, token: str, *, code: str = "invalid_token") -> str:
    """Twice, since the second answer comes from memory. The message never holds a part of the token."""
    messages = []
    for _ in range(2):
        with pytest.raises(AuthenticationError) as caught:
            await issuers.identify(token)
        assert (caught.value.status, caught.value.code) == (401, code)
        messages.append(caught.value.message)
    assert messages[0] == messages[1]
    assert issuers.cached(token) is None
    assert not any(part in messages[0] for part in token.split(".") if len(part) > 8)
    return messages[0]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_genuine_token_passes_with_each_algorithm(idp: IssuerServer, build: Build, algorithm: str) -> None:
    idp.publish("key", algorithm)
    issuers = build(algorithms=(algorithm,))
    token = idp.token(algorithm, "key", email="alice@example.com")
    claims = await issuers.identify(token)
    assert claims is not None
    assert (claims.issuer, claims.subject, claims.user_id, claims.email) == (
        "corp",
        "alice",
        "alice",
        "alice@example.com",
    )
    assert claims.expires_at == idp.now() + 3600
    assert issuers.cached(token) is claims
    head, body, tail = token.split(".")
    other = tail[:20] + ("A" if tail[20] != "A" else "B") + tail[21:]
    assert "signature" in await refused(issuers, f"{head}.{body}.{other}")


async def test_a_token_of_nobody_configured_is_not_ours(idp: IssuerServer, build: Build) -> None:
    issuers = build()
    for token in (idp.token(iss="https://elsewhere.example"), idp.token(iss=idp.url + "/"), idp.token(iss=None),
                  idp.token(iss=[idp.url]), "sk-" + "a" * 43, "opaque", "", "é.é.é"):  # fmt: skip
        assert await issuers.identify(token) is None
    assert idp.seen == []


def _hs_with(secret: bytes, idp: IssuerServer, algorithm: str = "HS256") -> str:
    signed = b64(json.dumps({"alg": algorithm, "kid": "k1"}).encode()) + "." + b64(json.dumps(idp.claims()).encode())
    return signed + "." + b64(hmac.digest(secret, signed.encode(), "sha256"))


def _pem(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    made: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return made


def _unsigned(algorithm: str) -> Callable[[IssuerServer], str]:
    def make(idp: IssuerServer) -> str:
        return b64(json.dumps({"alg": algorithm, "kid": "k1"}).encode()) + "." + b64(json.dumps(idp.claims()).encode())

    return lambda idp: make(idp) + "." + b64(b"x" * 64)


def _with_header(**header: Any) -> Callable[[IssuerServer], str]:
    return lambda idp: idp.token(header=header)


def _with_claims(**claims: Any) -> Callable[[IssuerServer], str]:
    return lambda idp: idp.token(**claims)


def _raw_payload(change: Callable[[str, IssuerServer], str]) -> Callable[[IssuerServer], str]:
    def make(idp: IssuerServer) -> str:
        payload = change(json.dumps(idp.claims()), idp)
        return sign(
            {"alg": "ES256", "kid": "k1"}, payload.encode("utf-8", "surrogatepass"), "ES256", private_key("ES256")
        )

    return make


def _own_key(idp: IssuerServer, **header: Any) -> str:
    head = {"alg": "ES256", "kid": "k1", **header}
    return sign(head, idp.claims(), "ES256", private_key("ES256", 666))


ATTACKS: dict[str, tuple[Callable[[IssuerServer], str], str]] = {
    "alg none": (_unsigned("none"), "algorithm"),
    "alg None": (_unsigned("None"), "algorithm"),
    "alg nOnE": (_unsigned("nOnE"), "algorithm"),
    "no alg": (lambda i: sign({"kid": "k1"}, i.claims(), "ES256", private_key("ES256")), "algorithm"),
    "alg is a list": (_with_header(alg=["ES256"]), "algorithm"),
    "alg of the wrong case": (_with_header(alg="es256"), "algorithm"),
    "HS256 with the public key's PEM": (lambda i: _hs_with(_pem(private_key("ES256")), i), "algorithm"),
    "HS256 with the RSA key's PEM": (lambda i: _hs_with(_pem(private_key("RS256")), i), "algorithm"),
    "HS256 with the JWK's text": (lambda i: _hs_with(json.dumps(i.keys[0]).encode(), i), "algorithm"),
    "HS256 with nothing": (lambda i: _hs_with(b"", i), "algorithm"),
    "HMAC in an RS256 token": (lambda i: _hs_with(_pem(private_key("RS256")), i, "RS256"), "key"),
    "an algorithm that is not configured": (lambda i: i.token("ES384", "k384"), "algorithm"),
    "the algorithm of another key": (_with_header(alg="RS256"), "key"),
    "PS256 for an RS256 key": (lambda i: i.token("PS256", "rsa"), "algorithm"),
    "a key of its own": (_own_key, "signature"),
    "a key of its own in jwk": (
        lambda i: _own_key(i, jwk=jwk_of(private_key("ES256", 666), "ES256", "k1")),
        "signature",
    ),
    "a key of its own in x5c": (lambda i: _own_key(i, x5c=["MIIB"]), "signature"),
    "a key set of its own in jku": (lambda i: _own_key(i, jku=f"{i.url}/evil"), "signature"),
    "a certificate of its own in x5u": (lambda i: _own_key(i, x5u=f"{i.url}/evil"), "signature"),
    "a kid that is a path": (_with_header(kid="../../../../dev/null"), "key"),
    "a kid that is a URL": (lambda i: i.token(kid=f"{i.url}/evil"), "key"),
    "a kid that is SQL": (_with_header(kid="k1' UNION SELECT 'x"), "key"),
    "a kid with a null byte": (_with_header(kid="k1\x00"), "key"),
    "a kid that is a number": (_with_header(kid=1), "'kid'"),
    "a kid that is an object": (_with_header(kid={"$ne": ""}), "'kid'"),
    "a kid of 1000 letters": (_with_header(kid="k" * 1000), "'kid'"),
    "crit": (_with_header(crit=["exp"]), "extension"),
    "crit, empty": (_with_header(crit=[]), "extension"),
    "b64": (_with_header(b64=False), "extension"),
    "typ of a logout token": (_with_header(typ="logout+jwt"), "'typ'"),
    "typ of a proof": (_with_header(typ="dpop+jwt"), "'typ'"),
    "typ is a list": (_with_header(typ=["JWT"]), "'typ'"),
    "exp is text": (_with_claims(exp="9999999999"), "'exp'"),
    "exp is true": (_with_claims(exp=True), "'exp'"),
    "exp is a list": (_with_claims(exp=[9999999999]), "'exp'"),
    "exp is negative": (_with_claims(exp=-1), "'exp'"),
    "exp is null": (_raw_payload(lambda text, i: text.replace(str(i.now() + 3600), "null")), "'exp'"),
    "exp is infinite": (_raw_payload(lambda text, i: text.replace(str(i.now() + 3600), "Infinity")), "JSON"),
    "exp is 1e999": (_raw_payload(lambda text, i: text.replace(str(i.now() + 3600), "1e999")), "'exp'"),
    "exp is not a number": (_raw_payload(lambda text, i: text.replace(str(i.now() + 3600), "NaN")), "JSON"),
    "exp has 5000 digits": (_raw_payload(lambda text, i: text.replace(str(i.now() + 3600), "9" * 5000)), "JSON"),
    "no exp": (_with_claims(exp=None), "'exp'"),
    "nbf in an hour": (lambda i: i.token(nbf=i.now() + 3600), "not valid yet"),
    "nbf is text": (_with_claims(nbf="0"), "'nbf'"),
    "iat in an hour": (lambda i: i.token(iat=i.now() + 3600, exp=i.now() + 7200), "not valid yet"),
    "another audience": (_with_claims(aud="billing"), "audience"),
    "other audiences": (_with_claims(aud=["billing", "gateway2"]), "audience"),
    "an audience that begins like ours": (_with_claims(aud=AUDIENCE + "\x00"), "audience"),
    "an audience in another case": (_with_claims(aud="Gateway"), "audience"),
    "an audience that looks like ours": (_with_claims(aud="gatewаy"), "audience"),  # a Cyrillic а
    "an audience that is an object": (_with_claims(aud={"gateway": 1}), "audience"),
    "an audience among numbers": (_with_claims(aud=["gateway", 1]), "audience"),
    "no audience": (_with_claims(aud=None), "audience"),
    "an empty audience": (_with_claims(aud=[]), "audience"),
    "aud twice": (_raw_payload(lambda text, i: text[:-1] + ', "aud": "gateway"}'), "twice"),
    "sub twice": (_raw_payload(lambda text, i: text[:-1] + ', "sub": "root"}'), "twice"),
    "sub twice, once escaped": (_raw_payload(lambda text, i: text[:-1] + ', "s\\u0075b": "root"}'), "twice"),
    "a name twice further down": (_raw_payload(lambda text, i: text[:-1] + ', "x": {"a": 1, "a": 2}}'), "twice"),
    "half a surrogate": (_raw_payload(lambda text, i: text.replace("alice", "al\\ud800ice")), "JSON"),
    "half a surrogate in bytes": (_raw_payload(lambda text, i: text.replace("alice", "al\ud800ice")), "JSON"),
    "a sub that turns around": (_with_claims(sub="ali\u202ece"), "printable"),
    "a sub with a zero-width space": (_with_claims(sub="ali\u200bce"), "printable"),
    "a sub with a line break": (_with_claims(sub="alice\nadmin"), "printable"),
    "a sub with a null byte": (_with_claims(sub="alice\x00"), "printable"),
    "a sub with a space at its end": (_with_claims(sub="alice "), "printable"),
    "a sub of 10,000 letters": (_with_claims(sub="a" * 10_000), "printable"),
    "a sub that is an object": (_with_claims(sub={"id": "alice"}), "printable"),
    "a payload after the payload": (_raw_payload(lambda text, i: text + "{}"), "JSON"),
    "a payload that is a list": (_raw_payload(lambda text, i: f"[{text}]"), "object"),
    "a deep payload": (_raw_payload(lambda text, i: text[:-1] + ', "x": ' + "[" * 5000 + "]" * 5000 + "}"), "JSON"),
    "a byte order mark": (_raw_payload(lambda text, i: "\ufeff" + text), "JSON"),
    "no signature": (lambda i: i.token().rsplit(".", 1)[0] + ".", "base64url"),
    "padding": (lambda i: i.token() + "==", "base64url"),
    "ordinary base64": (lambda i: i.token().rsplit(".", 1)[0] + "." + "+/" * 43, "base64url"),
    "a space in it": (lambda i: i.token().replace(".", " .", 1), "base64url"),
    "a full-width dot": (lambda i: i.token() + "\uff0e", "base64url"),
    "the signature of another token": (
        lambda i: i.token(sub="root").rsplit(".", 1)[0] + "." + i.token().rsplit(".", 1)[1],
        "signature",
    ),
    "a signature of zeros": (lambda i: i.token().rsplit(".", 1)[0] + "." + b64(bytes(64)), "signature"),
    "a signature in DER": (
        lambda i: i.token().rsplit(".", 1)[0] + "." + b64(b"\x30\x44" + bytes(68)),
        "signature",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
async def test_an_attack_is_refused(idp: IssuerServer, build: Build, name: str) -> None:
    make, why = ATTACKS[name]
    idp.publish("rsa", "RS256")
    idp.publish("k384", "ES384")
    issuers = build()
    assert await issuers.identify(idp.token()) is not None
    assert why in await refused(issuers, make(idp))
    assert {one.path for one in idp.seen} == {"/.well-known/openid-configuration", "/jwks"}


async def test_a_second_spelling_of_a_signature_is_refused(idp: IssuerServer, build: Build) -> None:
    token = idp.token()  # 64 bytes end in a letter that carries four spare bits
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    other = token[:-1] + alphabet[alphabet.index(token[-1]) | 1]
    issuers = build()
    assert await issuers.identify(token) is not None
    assert "base64url" in await refused(issuers, other)


async def test_an_expired_token_is_refused_and_costs_no_fetch(idp: IssuerServer, build: Build) -> None:
    assert "expired" in await refused(build(), idp.token(exp=idp.now() - 30), code="expired_token")
    assert idp.seen == []


async def test_the_leeway_holds_to_the_second(idp: IssuerServer, build: Build) -> None:
    issuers, now = build(leeway_s=30), idp.now()
    assert await issuers.identify(idp.token(exp=now - 29)) is not None
    await refused(issuers, idp.token(exp=now - 30), code="expired_token")
    assert await issuers.identify(idp.token(nbf=now + 30)) is not None
    await refused(issuers, idp.token(nbf=now + 31))
    assert await issuers.identify(idp.token(iat=now + 30)) is not None
    await refused(issuers, idp.token(iat=now + 31))


async def test_a_token_not_yet_valid_is_taken_as_soon_as_it_is(idp: IssuerServer, build: Build, clock: Clock) -> None:
    issuers, token = build(leeway_s=0), idp.token(nbf=idp.now() + 2)
    await refused(issuers, token)
    clock.now += 2
    assert await issuers.identify(token) is not None


async def test_a_token_of_a_megabyte_is_refused_unread(idp: IssuerServer, build: Build) -> None:
    issuers = build()
    message = await refused(issuers, idp.token(padding="x" * 1_000_000))
    assert "16384 characters" in message
    assert idp.seen == []


async def test_one_issuer_cannot_speak_for_another(idp: IssuerServer, build: Build, clock: Clock) -> None:
    async with issuer_server(clock) as other:
        other.keys = [jwk_of(private_key("ES256", 1), "ES256", "k1")]
        issuers = build([Issuer("corp", idp.url, (AUDIENCE,)), Issuer("other", other.url, (AUDIENCE,))])
        theirs = await issuers.identify(other.token(number=1))
        assert theirs is not None
        assert theirs.issuer == "other"
        assert "'corp'" in await refused(issuers, other.token(number=1, iss=idp.url))
        assert "'other'" in await refused(issuers, idp.token(iss=other.url))


async def test_a_type_can_be_demanded(idp: IssuerServer, build: Build) -> None:
    issuers = build(types=("at+jwt",), is_type_required=True)
    assert await issuers.identify(idp.token(header={"typ": "application/AT+JWT"})) is not None
    await refused(issuers, idp.token())
    await refused(issuers, sign({"alg": "ES256", "kid": "k1"}, idp.claims(), "ES256", private_key("ES256")))


async def test_claims_can_be_demanded(idp: IssuerServer, build: Build) -> None:
    issuers = build(required_claims=("azp", r"example\.com.team"))
    assert await issuers.identify(idp.token(azp="cli", **{"example.com": {"team": "red"}})) is not None
    assert "'azp'" in await refused(issuers, idp.token(**{"example.com": {"team": "red"}}))
    assert "team" in await refused(issuers, idp.token(azp="cli", **{"example.com": {"team": None}}))


async def test_the_audience_can_be_another_claim(idp: IssuerServer, build: Build) -> None:
    issuers = build(audience_claim="client_id", audiences=("app-1",))
    assert await issuers.identify(idp.token(client_id="app-1", aud=None)) is not None
    await refused(issuers, idp.token(client_id="app-2", aud="app-1"))
