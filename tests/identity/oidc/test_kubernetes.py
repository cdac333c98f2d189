"""A pod calls with its projected token: the cluster is one issuer, found and trusted by what the pod is given."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from sidecar.errors import AuthenticationError, UnavailableError
from sidecar.identity.oidc.issuers import KUBERNETES_CLAIMS, kubernetes
from tests.identity.oidc.conftest import Build
from tests.identity.oidc.issuer import AUDIENCE, Answer, IssuerServer, issuer_server
from tests.identity.source import Clock

pytestmark = pytest.mark.anyio

DOCUMENT, JWKS = "/.well-known/openid-configuration", "/openid/v1/jwks"
ISSUER = "https://kubernetes.default.svc.cluster.local"


def _tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("the gateway's own token\n".replace(" ", "-"))
    return tmp_path


@pytest.fixture
async def cluster(anyio_backend: str, clock: Clock, account: Path) -> AsyncIterator[IssuerServer]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(account / "ca.crt")
    async with issuer_server(clock, _tls(authority)) as server:
        # What an API server says: an issuer by another name, and keys at an address no pod reaches.
        server.document = {"issuer": ISSUER, "jwks_uri": "https://172.18.0.2:6443/openid/v1/jwks"}
        server.publish("sa", "RS256")
        yield server


def pod_token(cluster: IssuerServer, number: int = 0, **changes: Any) -> str:
    """The claims of a bound service-account token; its header has no `typ`."""
    private = {
        "namespace": "shop",
        "node": {"name": "node-1", "uid": "c1"},
        "pod": {"name": "cart-7d4b9-x2x", "uid": "a1"},
        "serviceaccount": {"name": "cart", "uid": "b1"},
        "warnafter": cluster.now() + 3607,
    }
    made = {"iss": ISSUER, "sub": "system:serviceaccount:shop:cart", "aud": [AUDIENCE], "kubernetes.io": private}
    return cluster.token("RS256", "sa", number, **{**made, **changes})


def config(cluster: IssuerServer, account: Path, **options: Any) -> Any:
    return kubernetes(audiences=(AUDIENCE,), url=cluster.url, folder=str(account), **options)


async def test_a_pods_token_names_its_namespace_and_service_account(
    cluster: IssuerServer, build: Build, account: Path
) -> None:
    issuers = build([config(cluster, account)])
    claims = await issuers.identify(pod_token(cluster))
    assert claims is not None
    assert (claims.issuer, claims.user_id, claims.team_id) == ("kubernetes", "system:serviceaccount:shop:cart", "shop")
    kept = ("cart", "shop", "cart-7d4b9-x2x")
    assert dict(claims.raw) == dict(zip(KUBERNETES_CLAIMS.raw, kept, strict=True))
    assert [one.path for one in cluster.seen] == [DOCUMENT, JWKS]
    assert {one.headers["authorization"] for one in cluster.seen} == {"Bearer the-gateway's-own-token"}


async def test_a_token_for_another_audience_or_of_an_old_kind_is_refused(
    cluster: IssuerServer, build: Build, account: Path
) -> None:
    issuers = build([config(cluster, account)])
    for changes, why in (
        ({"aud": [ISSUER]}, "audience"),
        ({"exp": None}, "'exp'"),
        ({"kubernetes.io": {"namespace": "shop"}}, "serviceaccount"),
        ({"kubernetes.io": None}, "kubernetes"),
    ):
        with pytest.raises(AuthenticationError, match=why):
            await issuers.identify(pod_token(cluster, **changes))
    assert await issuers.identify(pod_token(cluster, iss="kubernetes/serviceaccount")) is None


async def test_our_own_token_is_read_again_when_it_rotates(
    cluster: IssuerServer, build: Build, account: Path, clock: Clock
) -> None:
    issuers = build([config(cluster, account)])
    await issuers.identify(pod_token(cluster))
    (account / "token").write_text("a-newer-one")
    clock.now += 10
    with pytest.raises(AuthenticationError, match="does not publish"):
        await issuers.identify(pod_token(cluster, header={"kid": "newer"}))
    assert cluster.seen[-1].headers["authorization"] == "Bearer a-newer-one"


async def test_a_renewed_authority_is_trusted_and_another_is_not(
    cluster: IssuerServer, build: Build, account: Path, clock: Clock
) -> None:
    right = (account / "ca.crt").read_bytes()
    trustme.CA().cert_pem.write_to_path(account / "ca.crt")
    issuers = build([config(cluster, account)])
    with pytest.raises(UnavailableError, match="could not be reached"):
        await issuers.identify(pod_token(cluster))
    assert cluster.seen == []
    (account / "ca.crt").write_bytes(right + b"\n")
    clock.now += 10
    assert await issuers.identify(pod_token(cluster)) is not None


async def test_while_the_api_server_is_down_a_pods_token_is_503(
    cluster: IssuerServer, build: Build, account: Path, clock: Clock
) -> None:
    cluster.faults[DOCUMENT] = lambda: Answer(b"", 403)
    issuers = build([config(cluster, account)])
    with pytest.raises(UnavailableError, match=r"'kubernetes'.*HTTP 403"):
        await issuers.identify(pod_token(cluster))
    cluster.faults.clear()
    clock.now += 10
    assert await issuers.identify(pod_token(cluster)) is not None
    cluster.faults[DOCUMENT] = cluster.faults[JWKS] = lambda: Answer(b"", 500)
    clock.now += 4000
    assert await issuers.identify(pod_token(cluster, sub="system:serviceaccount:shop:other")) is not None


async def test_without_a_token_file_it_says_so(cluster: IssuerServer, build: Build, account: Path) -> None:
    (account / "token").unlink()
    with pytest.raises(UnavailableError, match="could not be read"):
        await build([config(cluster, account)]).identify(pod_token(cluster))


async def test_a_known_issuer_needs_no_discovery(cluster: IssuerServer, build: Build, account: Path) -> None:
    issuers = build([config(cluster, account, issuer=ISSUER)])
    assert await issuers.identify(pod_token(cluster)) is not None
    assert [one.path for one in cluster.seen] == [JWKS]
    assert await issuers.identify(pod_token(cluster, iss="https://other-cluster.example")) is None
