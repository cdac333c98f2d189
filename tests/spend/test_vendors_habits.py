"""Vendors leave out half of the usage, or the blank before `[DONE]`: what is not told is not free, and the end of an
answer waits for its row all the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sidecar import Deployment, SpendMiddleware, paths
from sidecar.asgi import Receive, Scope, Send
from sidecar.errors import UnavailableError
from sidecar.types import SpendRecord
from tests.faults.provider import Fault, FaultProvider, chat_body
from tests.promises.support import body, served

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("told", [{}, {"prompt_tokens": None}, {"prompt_tokens": "11"}])
async def test_an_input_that_is_not_told_is_estimated_not_free(
    told: dict[str, Any], tmp_path: Path, faults: FaultProvider
) -> None:
    answer = json.loads(chat_body(usage=True)) | {"usage": {"completion_tokens": 5} | told}
    faults.script(Fault("status", status=200, body=json.dumps(answer).encode()))
    async with served(tmp_path, faults.base_url) as gateway:
        key = await gateway.mint(max_budget=1)
        asked = body()
        assert (await gateway.chat(key, asked)).status_code == 200
        (row,) = await gateway.rows(key, at_least=1)
        assert (row["status"], row["outcome"], row["completion_tokens"]) == ("estimated", "ok", 5)
        assert row["prompt_tokens"] >= len(asked["messages"][0]["content"])
        assert row["spend"] == pytest.approx((row["prompt_tokens"] + 2 * 5) / 1e6)
        assert await gateway.spend(key) == pytest.approx(row["spend"])


class Full:
    """A journal that takes intents and no more."""

    async def intent(self, record: SpendRecord) -> None: ...

    async def record(self, record: SpendRecord) -> None:
        raise UnavailableError("full", code="journal_not_writable")


@pytest.mark.parametrize("end", [b"data: [DONE]\n\n", b"data:[DONE]\n\n"])
@pytest.mark.parametrize("cut", [0, 3, 5, 6, 9])
async def test_the_end_event_waits_for_the_row_with_and_without_a_blank(end: bytes, cut: int) -> None:
    content = b'data: {"choices":[{"index":0,"delta":{"content":"[DONE]"},"finish_reason":"stop"}]}\n\n'

    async def provider(scope: Scope, receive: Receive, send: Send) -> None:
        kind = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": kind})
        for piece in (content + end[:cut], end[cut:]):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    deployment = Deployment("d", "m", "openai", "m", "http://127.0.0.1:1")
    app = SpendMiddleware(provider, recorder=Full(), deployment=deployment, applies=paths("/llm"))
    sent: list[bytes] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(body(stream=True)).encode(), "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    scope = {"type": "http", "method": "POST", "path": "/llm", "root_path": "", "query_string": b"", "headers": []}
    await app(scope, receive, send)
    assert b"".join(sent).startswith(content)
    assert b"record_not_written" in sent[-1]
    assert b"[DONE]" not in b"".join(sent).removeprefix(content)
