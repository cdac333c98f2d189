"""Tokens that one plain HTTPS form gives: IBM Cloud IAM for an API key, Databricks for a service principal."""

from __future__ import annotations

import time
from collections.abc import Mapping

import httpx2
import msgspec

from sidecar.errors import UpstreamCredentialError
from sidecar.types import Deployment, Secret
from sidecar.upstream.auth.base import BearerAuthorizer, Token

IBM_TOKEN_URL = "https://iam.cloud.ibm.com/identity/token"  # noqa: S105


def ibm(deployment: Deployment, url: str = IBM_TOKEN_URL) -> BearerAuthorizer:
    """https://cloud.ibm.com/apidocs/iam-identity-token-api#gettoken-apikey"""
    key = deployment.api_key
    assert key is not None

    async def fetch() -> Token:
        form = {"grant_type": "urn:ibm:params:oauth:grant-type:apikey", "apikey": key.reveal()}
        return await _ask(url, form)

    return BearerAuthorizer(fetch)


def databricks(deployment: Deployment) -> BearerAuthorizer:
    """https://docs.databricks.com/aws/en/dev-tools/auth/oauth-m2m"""
    host = httpx2.URL(deployment.base_url)
    url = str(host.copy_with(path="/oidc/v1/token", query=None))
    name = deployment.options.get("client_id", "")
    secret = deployment.credentials.get("client_secret")

    async def fetch() -> Token:
        if not name or secret is None:
            raise UpstreamCredentialError("Give the deployment an api_key, or client_id and client_secret.")
        return await _ask(
            url, {"grant_type": "client_credentials", "scope": "all-apis"}, httpx2.BasicAuth(name, secret.reveal())
        )

    return BearerAuthorizer(fetch)


async def _ask(url: str, form: Mapping[str, str], auth: httpx2.Auth | None = None) -> Token:
    try:
        async with httpx2.AsyncClient(timeout=10.0) as client:
            if auth is not None:
                client.auth = auth
            answer = await client.post(url, data=dict(form))
    except httpx2.HTTPError as error:
        raise UpstreamCredentialError(f"The token endpoint did not answer ({type(error).__name__}).") from None
    if answer.status_code != 200:
        raise UpstreamCredentialError(f"The token endpoint refused the credential (status {answer.status_code}).")
    try:
        found = msgspec.json.decode(answer.content)
        return Token(Secret(str(found["access_token"])), time.time() + float(found.get("expires_in", 3600)))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UpstreamCredentialError("The token endpoint's answer holds no token.") from None
