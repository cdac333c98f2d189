"""Google access tokens: application-default credentials (service account, workload identity, metadata server), or the
JSON the deployment gives. https://cloud.google.com/docs/authentication/application-default-credentials
"""

from __future__ import annotations

import asyncio
import json
import time
import warnings
from collections.abc import Mapping
from datetime import UTC
from typing import Any

import httpx2

from sidecar.errors import UpstreamCredentialError
from sidecar.types import Deployment, Secret
from sidecar.upstream.auth.base import BearerAuthorizer, Token, missing

SCOPE = "https://www.googleapis.com/auth/cloud-platform"


def google(deployment: Deployment) -> BearerAuthorizer:
    source = _Source(deployment.credentials.get("google_credentials"))
    return BearerAuthorizer(lambda: asyncio.to_thread(source.token))


class _Source:
    """Runs in a thread, one call at a time."""

    def __init__(self, given: Secret | None) -> None:
        self._given = given
        self._credentials: Any = None

    def token(self) -> Token:
        if self._credentials is None:
            self._credentials = self._load()
        credentials = self._credentials
        credentials.refresh(_request)
        expiry = credentials.expiry
        expires_at = expiry.replace(tzinfo=UTC).timestamp() if expiry is not None else time.time() + 3600.0
        return Token(Secret(credentials.token), expires_at)

    def _load(self) -> Any:
        try:
            import google.auth
        except ImportError:
            raise missing("google", "google-auth") from None
        request: Any = _request
        if self._given is None:
            return google.auth.default(scopes=[SCOPE], request=request)[0]
        try:
            info = json.loads(self._given.reveal())
        except ValueError:
            raise UpstreamCredentialError("google_credentials is not the JSON Google gives; check it.") from None
        load: Any = google.auth.load_credentials_from_dict
        with warnings.catch_warnings():
            # It warns of JSON from strangers; this one is the operator's own.
            warnings.simplefilter("ignore", DeprecationWarning)
            return load(info, scopes=[SCOPE], request=request)[0]


class _Answer:
    """As `google.auth.transport.Response`."""

    def __init__(self, answer: httpx2.Response) -> None:
        self.status = answer.status_code
        self.headers = answer.headers
        self.data = answer.content


def _request(
    url: str,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float | None = None,
    **_: Any,
) -> _Answer:
    """As `google.auth.transport.Request`."""
    from google.auth import exceptions

    failed: Any = exceptions.TransportError
    try:
        with httpx2.Client(timeout=timeout or 10.0) as client:
            return _Answer(client.request(method, url, content=body, headers=dict(headers or {})))
    except httpx2.HTTPError as error:
        raise failed(type(error).__name__) from None
