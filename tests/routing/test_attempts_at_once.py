"""Two attempts of one exchange at once: each layer below the one that begins them works for that in its scope."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sidecar.asgi import Front, Message, Receive, Scope, Send, close_exchange, open_exchange, read_body, receive_for
from sidecar.errors import UpstreamError
from sidecar.exchange import ATTEMPT_KEY, Exchange
from sidecar.middleware.translate import TranslateMiddleware
from sidecar.middleware.upstream import UpstreamProxy
from sidecar.types import Deployment, Secret, Usage
from sidecar.upstream.httptools_transport import HttptoolsTransport
from tests.asgi import call
from tests.faults.provider import COMPLETION_TOKENS, PROMPT_TOKENS, Fault, FaultProvider

pytestmark = pytest.mark.anyio


class Both:
    """Begins two attempts, then runs both at once; keeps what each said."""

    def __init__(self, app: Any, deployments: list[Deployment]) -> None:
        self.app = app
        self.deployments = deployments
        self.said: list[list[Message]] = [[], []]
        self.errors: list[BaseException | None] = []
        self.exchange: Exchange | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange, _ = open_exchange(scope, receive)
        self.exchange = exchange
        exchange.is_routed = True
        send = Front(exchange, send)
        await read_body(scope, exchange)
        begun = [await exchange.begin_attempt(deployment) for deployment in self.deployments]

        async def run(number: int) -> None:
            async def keep(message: Message) -> None:
                self.said[number].append(message)

            await self.app({**scope, ATTEMPT_KEY: begun[number]}, receive_for(exchange), keep)

        self.errors = [
            error if isinstance(error, BaseException) else None
            for error in await asyncio.gather(run(0), run(1), return_exceptions=True)
        ]
        for message in self.said[1]:
            await send(message)
        close_exchange(exchange)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_each_attempt_has_its_own_deployment_status_usage_and_error(
    faults: FaultProvider, is_stream: bool
) -> None:
    places = [
        Deployment(
            name,
            "g",
            provider,
            f"{name}-model",
            faults.base_url + ("/v1" if provider == "openai" else ""),
            api_key=Secret(f"sk-{name}"),
        )
        for name, provider in (("one", "openai"), ("other", "anthropic"))
    ]
    faults.script(Fault("status", status=503))
    transport = HttptoolsTransport()
    both = Both(TranslateMiddleware(UpstreamProxy(transport=transport)), places)
    asked = {"model": "g", "messages": [{"role": "user", "content": "hi"}], "stream": is_stream, "max_tokens": 9}
    answer = await call(both, asked)
    await transport.aclose()
    assert answer.status == 200
    assert both.exchange is not None
    failed, good = sorted(both.exchange.attempts, key=lambda attempt: attempt.error is None)
    assert (failed.status, failed.usage, failed.content_started) == (503, Usage(), False)
    error = failed.error
    assert isinstance(error, UpstreamError)
    assert [e for e in both.errors if e is not None] == [error]
    assert (good.status, good.is_complete, good.error) == (200, True, None)
    assert (good.usage.total_input, good.usage.total_output) == (PROMPT_TOKENS, COMPLETION_TOKENS)
    sent = {seen.json()["model"] for seen in faults.requests}
    assert sent == {"one-model", "other-model"}, "each went to its own deployment"


def test_without_an_attempt_in_the_scope_the_last_one_counts_until_one_answers() -> None:
    exchange = Exchange("x", 0.0, None)  # type: ignore[arg-type]
    from sidecar.exchange import Attempt, attempt_in

    place = Deployment("d", "g", "openai", "m", "http://127.0.0.1:9")
    assert attempt_in({}, exchange) is None
    first, second = Attempt(1, place, 0.0), Attempt(2, place, 0.0)
    exchange.attempts += [first, second]
    assert attempt_in({}, exchange) is second
    assert attempt_in({ATTEMPT_KEY: first}, exchange) is first
    exchange.answering = first
    assert exchange.attempt is first
