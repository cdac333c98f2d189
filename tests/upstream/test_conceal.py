"""What a provider's error quotes of the credential is blanked, whole, JSON-escaped or cut."""

from __future__ import annotations

import json

import pytest

from sidecar.errors import ProviderError
from sidecar.types import Deployment, Secret
from sidecar.upstream.conceal import conceal

KEY, TENANT, CLIENT = 'no"such/shape-at-all', "tenant-header-secret", "client-secret-of-ours"
DEPLOYMENT = Deployment(
    "d", "g", "openai", "m", "http://h", Secret(KEY),
    headers=((b"x-tenant", TENANT.encode()), (b"x-version", b"v1")), credentials={"client_secret": Secret(CLIENT)},
)  # fmt: skip


def concealed(message: str, name: str = "x") -> ProviderError:
    error = ProviderError(message, kind="server", status=500, type=name, code=name, param=name)
    conceal(error, DEPLOYMENT)
    return error


@pytest.mark.parametrize("secret", [KEY, TENANT, CLIENT])
def test_a_credential_is_blanked_in_every_part_of_the_error(secret: str) -> None:
    error = concealed(f"not {secret}, {json.dumps(secret)} nor {json.dumps(json.dumps(secret))}", secret)
    assert error.message.startswith("not ***, ")
    for text in (error.message, str(error), error.type, error.code, str(error.param), error.body_bytes().decode()):
        assert secret not in text
        assert json.dumps(secret)[1:-1] not in text


@pytest.mark.parametrize("end", ["", "…"])
@pytest.mark.parametrize("size", range(4, len(KEY)))
def test_a_message_cut_within_a_credential_does_not_show_its_beginning(size: int, end: str) -> None:
    assert concealed("it said " + KEY[:size] + end).message == "it said ***" + end


def test_everything_else_stays() -> None:
    text = "v1 of the tenant-header is not the client's; no such key"
    error = concealed(text, "rate_limit")
    assert (error.message, error.type, error.code, error.param) == (text, "rate_limit", "rate_limit", "rate_limit")
