"""The clouds' credentials on real bytes: signatures recomputed by hand, tokens from endpoints on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from urllib.parse import parse_qs, quote

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from sidecar.errors import UpstreamCredentialError
from sidecar.translate.registry import get_provider
from sidecar.types import Deployment, Secret
from sidecar.upstream.auth import auth_of, make_authorizer, static_headers
from sidecar.upstream.auth.aws import AwsAuthorizer
from sidecar.upstream.auth.azure import azure
from sidecar.upstream.auth.google import google
from sidecar.upstream.auth.oauth import databricks, ibm
from sidecar.upstream.base import HttpRequest

pytestmark = pytest.mark.anyio
REQUEST = HttpRequest("POST", "https", "example.com", 443, b"/")
Reply = tuple[int, bytes]


def deployment(base_url: str = "https://example.com", api_key: str | None = None, **more: str) -> Deployment:
    secrets = {"aws_access_key_id", "aws_secret_access_key", "aws_session_token", "client_secret", "google_credentials"}
    return Deployment(
        "d",
        "g",
        "openai",
        "m",
        base_url,
        Secret(api_key) if api_key else None,
        options={k: v for k, v in more.items() if k not in secrets},
        credentials={k: Secret(v) for k, v in more.items() if k in secrets},
    )


@contextlib.asynccontextmanager
async def endpoint(answer: Callable[[bytes, bytes], Reply]) -> AsyncIterator[str]:
    """An HTTP server on loopback that gives `answer(head, body)` and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), 0
        )
        status, body = answer(head, await reader.readexactly(length))
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % (status, len(body)) + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def signature(request: HttpRequest, headers: dict[str, str], secret: str, region: str, service: str) -> str:
    """SigV4, step by step as AWS writes it down, from what was sent."""
    parts = dict(part.split("=", 1) for part in headers["authorization"].split(" ", 1)[1].split(", "))
    path, _, query = request.target.decode().partition("?")
    host = request.host if request.port == 443 else f"{request.host}:{request.port}"
    lines = {**headers, "host": host}
    canonical = "\n".join(
        [
            request.method,
            quote(path, safe="/-_.~"),
            query,
            *(f"{name}:{lines[name]}" for name in parts["SignedHeaders"].split(";")),
            "",
            parts["SignedHeaders"],
            headers.get("x-amz-content-sha256", hashlib.sha256(request.body).hexdigest()),
        ]
    )
    at = headers["x-amz-date"]
    scope = f"{at[:8]}/{region}/{service}/aws4_request"
    assert parts["Credential"].partition("/")[2] == scope
    text = f"AWS4-HMAC-SHA256\n{at}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = b"AWS4" + secret.encode()
    for step in (at[:8], region, service, "aws4_request"):
        key = hmac.new(key, step.encode(), hashlib.sha256).digest()
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


@pytest.mark.parametrize("port", [443, 8443])
@pytest.mark.parametrize("token", [None, "session-token"])
@pytest.mark.parametrize("size", [10, 1_500_000])
async def test_aws_signs_the_path_and_the_body_exactly_as_they_are_sent(
    port: int, token: str | None, size: int
) -> None:
    given = {"aws_access_key_id": "AKID", "aws_secret_access_key": "top+secret/key", "region": "eu-central-1"}
    if token is not None:
        given["aws_session_token"] = token
    request = HttpRequest(
        "POST", "https", "bedrock.test", port, b"/model/anthropic.claude-v1%3A0/converse-stream", body=b"x" * size
    )
    authorizer = AwsAuthorizer(deployment(**given), "bedrock")
    headers = {name.decode(): value.decode() for name, value in await authorizer.headers(request)}
    assert headers.get("x-amz-security-token") == token
    sent = headers["authorization"].rpartition("Signature=")[2]
    assert sent == signature(request, headers, "top+secret/key", "eu-central-1", "bedrock")
    assert sent != signature(
        HttpRequest("POST", "https", "bedrock.test", port, b"/model/other/converse", body=b"x" * size),
        headers, "top+secret/key", "eu-central-1", "bedrock",
    )  # fmt: skip


async def test_aws_without_any_credentials_says_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ROLE_ARN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(UpstreamCredentialError, match="aws_access_key_id"):
        await AwsAuthorizer(deployment(region="eu-central-1"), "bedrock").headers(REQUEST)


async def test_aws_takes_its_own_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FROMENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    headers = dict(await AwsAuthorizer(deployment(region="eu-central-1"), "bedrock").headers(REQUEST))
    assert b"Credential=FROMENV/" in headers[b"authorization"]


def account(token_uri: str) -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return json.dumps(
        {
            "type": "service_account",
            "project_id": "p",
            "private_key_id": "1",
            "private_key": text.decode(),
            "client_email": "me@p.iam.gserviceaccount.com",
            "client_id": "2",
            "token_uri": token_uri,
        }
    )


async def test_google_exchanges_a_service_account_for_a_token() -> None:
    asked: list[bytes] = []

    def answer(head: bytes, body: bytes) -> Reply:
        asked.append(body)
        return 200, b'{"access_token": "ya29.x", "expires_in": 3600, "token_type": "Bearer"}'

    async with endpoint(answer) as url:
        authorizer = google(deployment(google_credentials=account(url + "/token")))
        for _ in range(3):
            assert await authorizer.headers(REQUEST) == [(b"authorization", b"Bearer ya29.x")]
    assert len(asked) == 1
    assert b"jwt-bearer" in asked[0]


async def test_google_credentials_that_are_refused_do_not_show_themselves() -> None:
    async with endpoint(lambda head, body: (400, b'{"error": "invalid_grant"}')) as url:
        with pytest.raises(UpstreamCredentialError) as caught:
            await google(deployment(google_credentials=account(url + "/token"))).headers(REQUEST)
    assert "PRIVATE" not in caught.value.message
    with pytest.raises(UpstreamCredentialError, match="JSON"):
        await google(deployment(google_credentials="{not json")).headers(REQUEST)


async def test_an_ibm_key_is_exchanged_for_a_token() -> None:
    forms: list[dict[str, list[str]]] = []

    def answer(head: bytes, body: bytes) -> Reply:
        forms.append(parse_qs(body.decode()))
        return 200, b'{"access_token": "iam", "expires_in": 3600}'

    async with endpoint(answer) as url:
        authorizer = ibm(deployment(api_key="ibm-key"), url)
        assert await authorizer.headers(REQUEST) == [(b"authorization", b"Bearer iam")]
    assert forms == [{"grant_type": ["urn:ibm:params:oauth:grant-type:apikey"], "apikey": ["ibm-key"]}]


@pytest.mark.parametrize(
    ("base_url", "auth"),
    [
        ("https://us-south.ml.cloud.ibm.com", "ibm"),
        ("https://cpd.example.com", "bearer"),
        ("https://ibm.com.example.com", "bearer"),
        ("http://127.0.0.1:9", "bearer"),
    ],
)
def test_a_key_goes_to_ibm_s_token_endpoint_only_if_ibm_s_cloud_serves(base_url: str, auth: str) -> None:
    found = deployment(base_url, api_key="k")
    assert auth_of(found, get_provider("watsonx")) == auth
    assert (make_authorizer(found, get_provider("watsonx")) is None) == (auth == "bearer")
    assert auth_of(found, get_provider("gemini")) == "x-goog-api-key"


@pytest.mark.parametrize(("status", "body"), [(401, b""), (200, b"{}"), (200, b"<html>"), (200, b"[]")])
async def test_an_endpoint_that_gives_no_token_is_a_clear_error(status: int, body: bytes) -> None:
    async with endpoint(lambda head, _: (status, body)) as url:
        with pytest.raises(UpstreamCredentialError):
            await ibm(deployment(api_key="ibm-key"), url).headers(REQUEST)


async def test_databricks_uses_the_workspace_for_its_tokens() -> None:
    heads: list[bytes] = []

    def answer(head: bytes, body: bytes) -> Reply:
        heads.append(head)
        return 200, b'{"access_token": "dapi", "expires_in": 3600}'

    async with endpoint(answer) as url:
        authorizer = databricks(deployment(url + "/serving-endpoints", client_id="me", client_secret="s"))
        assert await authorizer.headers(REQUEST) == [(b"authorization", b"Bearer dapi")]
    assert heads[0].startswith(b"POST /oidc/v1/token ")
    with pytest.raises(UpstreamCredentialError, match="client_id"):
        await databricks(deployment()).headers(REQUEST)


async def test_azure_asks_its_library_for_the_scope_and_keeps_the_token() -> None:
    scopes: list[str] = []

    def get_token(scope: str) -> SimpleNamespace:
        scopes.append(scope)
        return SimpleNamespace(token="entra", expires_on=datetime.datetime.now(datetime.UTC).timestamp() + 3600)

    authorizer = azure(deployment(tenant_id="t", client_id="c", client_secret="s"), "https://x/.default")
    source = authorizer._fetch.__closure__[0].cell_contents  # type: ignore[attr-defined]
    assert type(source._load()).__name__ == "ClientSecretCredential"
    source._credential = SimpleNamespace(get_token=get_token)
    for _ in range(3):
        assert await authorizer.headers(REQUEST) == [(b"authorization", b"Bearer entra")]
    assert scopes == ["https://x/.default"]


@pytest.mark.parametrize(
    ("auth", "headers"),
    [
        ("bearer", [(b"authorization", b"Bearer k")]),
        ("x-api-key", [(b"x-api-key", b"k")]),
        ("api-key", [(b"api-key", b"k")]),
        ("x-goog-api-key", [(b"x-goog-api-key", b"k")]),
        ("ibm", []),
        ("none", []),
    ],
)
def test_a_plain_key_is_one_header(auth: str, headers: list[tuple[bytes, bytes]]) -> None:
    assert static_headers(auth, Secret("k")) == headers
    assert static_headers(auth, None) == []
