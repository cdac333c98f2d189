"""What an attempt teaches the board: answers and failures, but nothing that was never sent."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar import RouteMiddleware
from sidecar.asgi import Message, Receive, Scope, Send
from sidecar.errors import BadRequestError, UnavailableError, UpstreamTimeoutError
from sidecar.exchange import ATTEMPT_KEY
from sidecar.routing.catalog import Catalog
from sidecar.routing.health import AFTER
from sidecar.routing.plan import Policy
from sidecar.routing.router import Router
from sidecar.translate.provider import Head
from sidecar.translate.provider_errors import make_error
from tests.asgi import call
from tests.routing.support import deployment

pytestmark = pytest.mark.anyio
A, B = deployment("a"), deployment("b", order=2)
BODY = {"model": "g", "messages": [{"role": "user", "content": "hi"}]}
ANSWER: list[Message] = [
    {"type": "http.response.start", "status": 200, "headers": []},
    {"type": "http.response.body", "body": b"{}", "more_body": False},
]


def route(
    router: Router, said: Exception, policy: Policy | None = None, *, has_content: bool = False
) -> RouteMiddleware:
    """The first deployment says that, the second answers."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        attempt = scope[ATTEMPT_KEY]
        if attempt.deployment.deployment_id == "a":
            attempt.content_started = has_content
            raise said
        for message in ANSWER:
            await send(message)
        attempt.is_complete = True

    return RouteMiddleware(app, catalog=Catalog([A, B]), router=router, policy=policy)


def said_by_provider(status: int, kind: Any) -> Exception:
    return make_error("openai", Head(status), kind=kind, now=0.0, fields={}, keeps_names=True)


async def test_what_its_dialect_refused_is_no_quick_answer() -> None:
    router = Router()
    refusal = BadRequestError("no such field", code="unsupported_parameter")
    answer = await call(route(router, refusal), BODY)
    assert (answer.status, answer.headers["x-sidecar-deployment"]) == (200, "b")
    assert router.board.of(A).wait_s is None
    assert router.board.of(A).errors == 0


async def test_nor_is_a_refusal_on_the_way_to_it() -> None:
    router = Router()
    assert (await call(route(router, UnavailableError("not now")), BODY)).status == 503
    assert router.board.of(A).wait_s is None


@pytest.mark.parametrize(("status", "kind"), [(404, "not_found"), (403, "permission")])
async def test_one_that_lacks_the_model_is_no_good_choice_but_does_not_pause(status: int, kind: str) -> None:
    router = Router()
    answer = await call(route(router, said_by_provider(status, kind)), BODY)
    assert answer.headers["x-sidecar-deployment"] == "b"
    assert router.board.of(A).errors > 0
    assert not router.health.cooling(0.0)


async def test_a_clients_own_mistake_is_none_of_its() -> None:
    router = Router()
    assert (await call(route(router, said_by_provider(400, "bad_request")), BODY)).status == 400
    assert router.board.of(A).errors == 0


@pytest.mark.parametrize(
    ("asked_s", "has_content", "is_blamed"), [(None, False, True), (None, True, False), ("5", False, False)]
)
async def test_one_that_used_up_the_gateways_deadline_in_silence_is_to_blame_but_not_for_the_clients(
    asked_s: str | None, has_content: bool, is_blamed: bool
) -> None:
    """A deadline shorter than the deployments' total timeout must not keep them from pausing."""
    router, policy = Router(), Policy(retries=0, deadline_s=30)
    app = route(router, UpstreamTimeoutError("too slow", phase="total"), policy, has_content=has_content)
    for _ in range(AFTER):
        await call(app, BODY, headers={"x-sidecar-timeout": asked_s} if asked_s else None)
    assert bool(router.health.healthy([A], 0.0)) != is_blamed
    assert (router.board.of(A).errors > 0) == is_blamed
