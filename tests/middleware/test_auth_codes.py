"""What a caller without a usable credential is told, by the stack itself: the codes of docs/keys.md."""

from __future__ import annotations

import httpx2
import pytest

from sidecar import AuthMiddleware, InProcess
from sidecar.identity.keys import Keys
from sidecar.types import Secret

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        ({"authorization": "Basic c2stYQ=="}, "invalid_api_key"),
        ({"authorization": "Bearer nonsense"}, "invalid_api_key"),
        ({"authorization": "Bearer sk-" + "a" * 43}, "invalid_api_key"),
        ({"authorization": "Bearer "}, "missing_api_key"),
        ({"x-api-key": "sk-" + "a" * 43}, "invalid_api_key"),
    ],
)
async def test_a_missing_key_and_a_wrong_one_have_codes_of_their_own(headers: dict[str, str], code: str) -> None:
    reached: list[object] = []

    async def below(scope: object, receive: object, send: object) -> None:
        reached.append(scope)

    app = AuthMiddleware(below, keys=Keys(None, master_key=Secret("sk-master-0123456789"), clock=lambda: 0.0))
    async with httpx2.AsyncClient(transport=InProcess(app), base_url="http://gateway") as client:
        answer = await client.post("/v1/chat/completions", headers=headers, json={"model": "m", "messages": []})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, code)
    assert reached == []
