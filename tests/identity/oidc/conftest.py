"""`clock`, `idp` (a provider on a socket) and `build` (issuers that are closed at the end)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from sidecar.identity.oidc.issuers import Introspection, Issuer
from sidecar.identity.oidc.tokens import TokenIssuers
from sidecar.types import Secret
from tests.identity.oidc.issuer import AUDIENCE, IssuerServer, issuer_server
from tests.identity.source import Clock

Build = Callable[..., TokenIssuers]
PATIENCE_S = 60.0
"""What an answer may take unless the test says otherwise: this machine may stand still for seconds."""


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def idp(anyio_backend: str, clock: Clock) -> AsyncIterator[IssuerServer]:
    async with issuer_server(clock) as server:
        yield server


@pytest.fixture
async def build(anyio_backend: str, clock: Clock, idp: IssuerServer) -> AsyncIterator[Build]:
    """`build(**Issuer fields)`: one issuer, `corp`, at `idp`; `build([…], [Introspection…])`: these."""
    made: list[TokenIssuers] = []

    def build(
        issuers: list[Issuer] | None = None,
        introspections: list[Introspection] | None = None,
        options: dict[str, Any] | None = None,
        **fields: Any,
    ) -> TokenIssuers:
        if issuers is None and introspections is None:
            issuers = [Issuer(**{"name": "corp", "issuer": idp.url, "audiences": (AUDIENCE,), **fields})]
        default = Issuer.__dataclass_fields__["deadline_s"].default
        issuers = [replace(one, deadline_s=PATIENCE_S) if one.deadline_s == default else one for one in issuers or ()]
        made.append(TokenIssuers(issuers, introspections or [], clock=clock, **(options or {})))
        return made[-1]

    yield build
    idp.gate.set()
    for one in made:
        await one.aclose()


@pytest.fixture
def endpoint(idp: IssuerServer) -> Callable[..., Introspection]:
    """An introspection endpoint, `opaque`, at `idp`."""

    def make(**fields: Any) -> Introspection:
        given = {
            "name": "opaque",
            "url": f"{idp.url}/introspect",
            "client_id": "gw",
            "client_secret": Secret("s3:cr/t"),
            "deadline_s": PATIENCE_S,
        }
        return Introspection(**{**given, **fields})

    return make
