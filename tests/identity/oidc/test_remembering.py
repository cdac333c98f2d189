"""What is kept of tokens: bounded, cheap to ask, gone in time; and nothing is loaded where nothing is configured."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sidecar.errors import AuthenticationError
from sidecar.identity.oidc.claims import ClaimMap
from sidecar.identity.oidc.issuers import DEFAULT_ALGORITHMS, Issuer
from sidecar.identity.oidc.tokens import TokenIssuers
from tests.identity.oidc.conftest import Build
from tests.identity.oidc.issuer import AUDIENCE, IssuerServer
from tests.identity.source import Clock

pytestmark = pytest.mark.anyio


async def test_a_known_token_is_known_until_its_expiry_and_not_longer(
    idp: IssuerServer, build: Build, clock: Clock
) -> None:
    issuers = build(options={"hard_age_s": 300})
    short, long = idp.token(exp=idp.now() + 100), idp.token(exp=idp.now() + 5000)
    first = await issuers.identify(long)
    await issuers.identify(short)
    clock.now += 99.9
    assert issuers.cached(short) is not None
    clock.now += 0.1
    assert issuers.cached(short) is None
    assert issuers.cached(long) is first
    clock.now += 200
    assert issuers.cached(long) is None
    assert await issuers.identify(long) is first  # verified again; what was derived from it stays valid


async def test_a_clock_set_back_makes_nothing_known(idp: IssuerServer, build: Build, clock: Clock) -> None:
    issuers, token = build(), idp.token(iat=None)
    await issuers.identify(token)
    clock.now -= 3600
    assert issuers.cached(token) is None
    assert await issuers.identify(token) is not None


async def test_memory_of_tokens_known_and_refused_is_bounded(idp: IssuerServer, build: Build) -> None:
    issuers = build(options={"max_entries": 10})
    for n in range(30):
        await issuers.identify(idp.token(sub=f"u{n}"))
        with pytest.raises(AuthenticationError):
            await issuers.identify(idp.token(sub=f"u{n}", aud="other"))
    assert issuers.remembered == 20
    assert issuers.cached(idp.token(sub="u0")) is None


async def test_heavy_tokens_take_the_place_of_more_light_ones(idp: IssuerServer, build: Build) -> None:
    issuers = build(claims=ClaimMap(raw=("note",)), options={"max_weight": 100_000})
    for n in range(60):
        await issuers.identify(idp.token(sub=f"light-{n}"))
    assert issuers.remembered == 60
    heavy = [idp.token(sub=f"heavy-{n}", note="x" * 8000) for n in range(20)]
    for token in heavy:
        await issuers.identify(token)
    assert issuers.remembered == 5
    assert issuers.cached(heavy[-1]) is not None


async def test_a_bad_token_is_looked_at_once_in_a_while_only(idp: IssuerServer, build: Build, clock: Clock) -> None:
    issuers, token = build(options={"refused_s": 60}), idp.token(number=9)
    with pytest.raises(AuthenticationError, match="signature"):
        await issuers.identify(token)
    idp.keys.clear()
    idp.publish("k1", number=9)
    clock.now += 10
    with pytest.raises(AuthenticationError, match="does not publish"):
        await issuers.identify(idp.token(kid="made-up"))  # makes the new key known
    assert await issuers.identify(idp.token(number=9, sub="bob")) is not None
    with pytest.raises(AuthenticationError, match="signature"):  # from memory: looked at again, it would pass
        await issuers.identify(token)
    clock.now += 50
    assert await issuers.identify(token) is not None


def test_an_issuer_refuses_to_be_unsafe() -> None:
    good = {"name": "corp", "issuer": "https://idp.example", "audiences": ("gateway",)}
    for changes, why in (
        ({"algorithms": ("HS256",)}, "HS256"),
        ({"algorithms": ("none",)}, "none"),
        ({"algorithms": ("RS256", "HS512")}, "HS512"),
        ({"algorithms": ()}, "algorithms"),
        ({"audiences": ()}, "audience"),
        ({"audiences": ("",)}, "audience"),
        ({"issuer": "http://idp.example"}, "not https"),
        ({"issuer": ""}, "empty"),
        ({"issuer": None}, "discovery_url"),
        ({"issuer": "https://user@idp.example"}, "user"),
        ({"jwks_uri": "http://idp.example/jwks"}, "not https"),
        ({"jwks_uri": "ftp://idp.example/jwks"}, "not https"),
        ({"jwks_uri": "https://idp.example/jwks", "jwks_file": "/x"}, "one place"),
        ({"hosts": ("https://keys.example",)}, "host"),
        ({"ttl_s": 0}, "ttl_s"),
        ({"min_refetch_s": 0}, "min_refetch_s"),
        ({"leeway_s": 10_000}, "leeway_s"),
    ):
        with pytest.raises(ValueError, match=why):
            Issuer(**{**good, **changes})  # type: ignore[arg-type]
    assert Issuer(**good).algorithms == DEFAULT_ALGORITHMS  # type: ignore[arg-type]
    twice = [Issuer("a", "https://idp.example", (AUDIENCE,)), Issuer("b", "https://idp.example", (AUDIENCE,))]
    with pytest.raises(ValueError, match="same"):
        TokenIssuers(twice, clock=Clock())


def test_nothing_is_loaded_where_no_issuer_is_configured() -> None:
    code = (
        "import sys, sidecar, sidecar.identity.keys\n"
        "before = sorted({'jwt', 'cryptography', 'httpx2'} & set(sys.modules))\n"
        "from sidecar.identity.oidc.tokens import TokenIssuers\n"
        "TokenIssuers([], clock=lambda: 0.0)\n"
        "print(before, sorted({'jwt', 'cryptography', 'httpx2'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[] []"
