"""A provider's error may quote the credential it was sent: it is the gateway's, so the client never reads it.

Neighbours: Translate, for every error it hands on. `translate.provider_errors` blanks what looks like a credential;
here the deployment's own ones go, whatever they look like.
"""

from __future__ import annotations

import json

from sidecar.errors import UpstreamError
from sidecar.types import Deployment

_SHORTEST = 8
"""Shorter header values are versions and flags, and blanking those would garble the message."""
_SHORTEST_CUT = 4
_BLANK = "***"


def conceal(error: UpstreamError, deployment: Deployment) -> None:
    """Blanks the deployment's credentials in everything of `error` a client may see."""
    forms = _forms(deployment)
    if not forms:
        return
    error.message = _blanked(error.message, forms)
    error.args = (error.message,)
    error.type = _blanked(error.type, forms)
    error.code = _blanked(error.code, forms)
    if error.param is not None:
        error.param = _blanked(error.param, forms)


def _forms(deployment: Deployment) -> list[str]:
    """The credentials as they are and as JSON (within JSON) writes them, the longest first."""
    secrets = [secret.reveal() for secret in (deployment.api_key, *deployment.credentials.values()) if secret]
    secrets += [value.decode("latin-1") for _, value in deployment.headers]
    forms: set[str] = set()
    for form in secrets:
        for _ in range(3):
            if len(form) >= _SHORTEST:
                forms |= {form, form.replace("/", "\\/")}
            form = json.dumps(form)[1:-1]
    return sorted(forms, key=len, reverse=True)


def _blanked(text: str, forms: list[str]) -> str:
    for form in forms:
        text = text.replace(form, _BLANK)
    # Long messages are cut, perhaps within a credential.
    end = text.removesuffix("…")
    for form in forms:
        for size in range(min(len(form), len(end)), _SHORTEST_CUT - 1, -1):
            if end.endswith(form[:size]):
                return end[:-size] + _BLANK + text[len(end) :]
    return text
