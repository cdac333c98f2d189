"""Microsoft Entra tokens: a client secret the deployment gives, or Azure's own chain (workload identity, managed
identity, environment). https://learn.microsoft.com/azure/ai-foundry/openai/how-to/managed-identity
"""

from __future__ import annotations

import asyncio
from typing import Any

from sidecar.types import Deployment, Secret
from sidecar.upstream.auth.base import BearerAuthorizer, Token, missing


def azure(deployment: Deployment, scope: str) -> BearerAuthorizer:
    source = _Source(deployment, scope)
    return BearerAuthorizer(lambda: asyncio.to_thread(source.token))


class _Source:
    """Runs in a thread, one call at a time."""

    def __init__(self, deployment: Deployment, scope: str) -> None:
        self._options = deployment.options
        self._secret = deployment.credentials.get("client_secret")
        self._scope = scope
        self._credential: Any = None

    def token(self) -> Token:
        if self._credential is None:
            self._credential = self._load()
        token = self._credential.get_token(self._scope)
        return Token(Secret(token.token), float(token.expires_on))

    def _load(self) -> Any:
        try:
            from azure.identity import ClientSecretCredential, DefaultAzureCredential
        except ImportError:
            raise missing("azure", "azure-identity") from None
        if self._secret is not None:
            return ClientSecretCredential(self._options["tenant_id"], self._options["client_id"], self._secret.reveal())
        return DefaultAzureCredential(managed_identity_client_id=self._options.get("client_id"))
