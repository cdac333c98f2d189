"""A stream request answered by one whole JSON error, with status 200: the error keeps its meaning."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from sidecar import RouteMiddleware, TranslateMiddleware
from sidecar.asgi import Receive, Scope, Send
from sidecar.routing.catalog import Catalog
from tests.asgi import call
from tests.middleware.stack import BODY, DEPLOYMENT

pytestmark = pytest.mark.anyio

RATE = {"error": {"code": 429, "message": "slow down"}}
LONG = {"error": {"code": "context_length_exceeded", "message": "too long", "type": "invalid_request_error"}}
CLAUDE = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
GOOGLE = {"error": {"code": 400, "message": "The input token count (9) exceeds", "status": "INVALID_ARGUMENT"}}


@pytest.mark.parametrize(
    ("provider", "said", "status", "code"),
    [
        ("openrouter", RATE, 429, "rate_limit_exceeded"),
        ("openai", LONG, 400, "context_length_exceeded"),
        ("anthropic", CLAUDE, 503, "overloaded"),
        ("gemini", GOOGLE, 400, "context_length_exceeded"),
        ("openai", {"choices": []}, 502, "upstream_broken"),
        ("openai", "nonsense", 502, "upstream_broken"),
    ],
)
@pytest.mark.parametrize("is_routed", [True, False], ids=["routed", "alone"])
async def test_it_is_told_as_if_its_status_had_been_right(
    provider: str, said: Any, status: int, code: str, is_routed: bool
) -> None:
    async def answers(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(said).encode()})

    deployment = replace(DEPLOYMENT, provider=provider)
    if is_routed:
        app = RouteMiddleware(TranslateMiddleware(answers), catalog=Catalog([deployment]), retries=0)
        answer = await call(app, BODY | {"stream": True})
    else:
        answer = await call(TranslateMiddleware(answers, deployment=deployment), BODY | {"stream": True})
    assert (answer.status, answer.error["code"]) == (status, code)
