"""Rotation, failures and callers who leave, all at once: a genuine token is never 401, a forged one never passes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from sidecar.errors import AuthenticationError, UnavailableError
from sidecar.identity.oidc.claims import Claims
from sidecar.identity.oidc.issuers import Introspection, Issuer
from tests.identity.oidc.conftest import Build
from tests.identity.oidc.issuer import AUDIENCE, Answer, IssuerServer
from tests.identity.source import Clock

pytestmark = pytest.mark.anyio

PATHS = ("/.well-known/openid-configuration", "/jwks", "/introspect")


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_happens_at_once_genuine_is_not_401_and_forged_does_not_pass(
    idp: IssuerServer, build: Build, clock: Clock, endpoint: Callable[..., Introspection], seed: int
) -> None:
    dice = random.Random(seed)
    issuers = build(
        [Issuer("corp", idp.url, (AUDIENCE,), algorithms=("ES256", "ES384"), ttl_s=20, max_stale_s=60)],
        [endpoint(prefixes=("at-",), fresh_s=5, hard_age_s=20)],
        {"max_entries": 20, "hard_age_s": 10, "refused_s": 2},
    )
    idp.publish("e384", "ES384")
    idp.tokens |= {f"at-{n}": {"active": True, "sub": f"o{n}"} for n in range(5)}
    far = idp.now() + 10_000
    genuine = [idp.token(sub=f"u{n}", exp=far) for n in range(20)]
    genuine += [idp.token("ES384", "e384", sub=f"v{n}", exp=far) for n in range(5)] + [*idp.tokens]
    forged = [idp.token(number=7, sub=f"f{n}", exp=far) for n in range(5)] + [f"at-forged-{n}" for n in range(5)]
    forged += [idp.token("ES384", "e384", 7, exp=far), idp.token(kid="nowhere", exp=far)]
    outcomes = {"claims": 0, "unavailable": 0, "refused": 0}
    wrong: list[str] = []

    async def call(token: str) -> None:
        try:
            claims = await issuers.identify(token)
        except UnavailableError:
            outcomes["unavailable"] += 1
        except AuthenticationError as error:
            outcomes["refused"] += 1
            wrong.extend([error.message] if token in genuine else [])
        else:
            outcomes["claims"] += 1
            wrong.extend([] if isinstance(claims, Claims) and token in genuine else [repr(claims)])

    calls: list[asyncio.Task[None]] = []
    for step in range(400):
        calls += [asyncio.create_task(call(dice.choice(genuine + forged))) for _ in range(dice.randrange(6))]
        match dice.randrange(12):
            case 0:
                idp.faults[dice.choice(PATHS)] = lambda: Answer(b"", 500)
            case 1 | 2:
                idp.faults.clear()
            case 3:
                idp.gate.clear()
            case 4 | 5:
                idp.gate.set()
            case 6:
                idp.keys = [key for key in idp.keys if not key["kid"].startswith("extra")]
                idp.publish(f"extra-{step}", number=dice.randrange(3))
            case 7:
                dice.choice(calls or [asyncio.create_task(call(genuine[0]))]).cancel()
            case _:
                clock.now += dice.random() * 3
        await asyncio.sleep(0.001)
    idp.faults.clear()
    idp.gate.set()
    for one in await asyncio.gather(*calls, return_exceptions=True):
        assert one is None or isinstance(one, asyncio.CancelledError), one
    assert wrong == []
    assert min(outcomes.values()) > 0, outcomes
    assert issuers.remembered <= 40
    clock.now += 100
    for token in genuine:
        await call(token)
    assert wrong == []
    assert await issuers.identify(genuine[0]) is not None
