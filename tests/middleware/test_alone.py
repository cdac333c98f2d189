"""Each middleware by itself, with ready collaborators, in front of an app that knows nothing of us."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from sidecar import (
    AuthMiddleware,
    BudgetMiddleware,
    ObserveMiddleware,
    RateLimitMiddleware,
    ResponseIds,
    ResponseIdsMiddleware,
    RouteMiddleware,
    SpendMiddleware,
    TranslateMiddleware,
    UpstreamProxy,
    WaitingRoom,
)
from sidecar.admit import AdmissionPolicy
from sidecar.asgi import ASGIApp, Message, Receive, Scope, Send, paths
from sidecar.errors import UnavailableError, UpstreamBrokenError, UpstreamConnectError
from sidecar.limits.admission import Admission
from sidecar.limits.store import open_store
from sidecar.routing.catalog import Catalog
from sidecar.types import NANO, Budget, Deployment, Identity, Limits, SpendRecord
from tests.asgi import call
from tests.middleware.stack import BODY, CALLER, COST_NANO, DEPLOYMENT, Keys, Rows, Speaker, make_policy, metrics
from tests.promises.support import eventually

pytestmark = pytest.mark.anyio
GOOD = {"authorization": "Bearer sk-good"}

MAKERS: dict[str, Callable[[ASGIApp], ASGIApp]] = {
    "observe": lambda app: ObserveMiddleware(app, metrics=metrics()),
    "auth": lambda app: AuthMiddleware(app, keys=Keys()),
    "response_ids": lambda app: ResponseIdsMiddleware(app, ids=ResponseIds(b"secret", Catalog([DEPLOYMENT]))),
    "rate_limit": lambda app: RateLimitMiddleware(app, policy=make_policy()),
    "budget": lambda app: BudgetMiddleware(app, policy=make_policy()),
    "spend": lambda app: SpendMiddleware(app, recorder=Rows(), deployment=DEPLOYMENT),
    "route": lambda app: RouteMiddleware(app, catalog=Catalog([DEPLOYMENT])),
    "translate": lambda app: TranslateMiddleware(app, deployment=DEPLOYMENT),
}
EACH = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@EACH
@pytest.mark.parametrize("kind", ["websocket", "lifespan", "http.something"])
async def test_other_scope_types_pass_untouched(make: Callable[[ASGIApp], ASGIApp], kind: str) -> None:
    seen: list[Any] = []

    async def below(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend((scope, receive, send))

    async def receive() -> Message:
        raise AssertionError("nobody reads")

    async def send(message: Message) -> None:
        raise AssertionError("nobody answers")

    scope = {"type": kind, "path": "/v1/chat/completions", "headers": []}
    await make(below)(scope, receive, send)
    assert seen[0] is scope
    assert set(scope) == {"type", "path", "headers"}
    assert seen[1] is receive
    assert seen[2] is send


@EACH
async def test_paths_it_does_not_apply_to_pass_untouched(make: Callable[[ASGIApp], ASGIApp]) -> None:
    async def page(request: Request) -> PlainTextResponse:
        assert "sidecar" not in request.scope
        return PlainTextResponse(f"{request.method} {len(await request.body())}")

    app = make(Starlette(routes=[Route("/{rest:path}", page, methods=["GET", "POST", "PUT"])]))
    assert (await call(app, b"x" * 70_000, scope=None, path="/v1/other")).body == b"POST 70000"
    assert (await call(app, b"", method="GET")).body == b"GET 0"
    assert (await call(app, b"no json", method="PUT")).body == b"PUT 7"
    assert (await call(app, b"no json", path="/v1/chat/completions/")).body == b"POST 7"


@EACH
async def test_an_error_of_the_app_below_is_not_swallowed(make: Callable[[ASGIApp], ASGIApp]) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        raise LookupError("a bug of the host")

    with pytest.raises(LookupError):
        await call(make(broken), BODY, headers=GOOD)


@EACH
async def test_a_cancelled_request_ends_with_the_cancellation(make: Callable[[ASGIApp], ASGIApp]) -> None:
    started = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        started.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(call(make(slow), BODY, headers=GOOD))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"model": 1}', b'{"messages": []}', b'{"model": "", "messages": []}', b"\xff\xfe{}",
     b'{"model": "gpt", "messages": {}}', b'{"model": "gpt", "stream": "yes"}', b"[" * 100_000],
)  # fmt: skip
@pytest.mark.parametrize("name", ["auth", "spend", "route", "translate"])
async def test_a_bad_body_is_refused_before_the_app_below_sees_it(name: str, body: bytes) -> None:
    speaker = Speaker()
    answer = await call(MAKERS[name](speaker), body, headers=GOOD)
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    assert "gateway refused" in answer.error["message"]
    assert not speaker.bodies


async def test_observe_counts_and_logs_without_reading_anything() -> None:
    lines: list[dict[str, Any]] = []
    registry = metrics()
    app = ObserveMiddleware(Speaker(), metrics=registry, access_log=lines.append)
    answer = await call(app, BODY, headers={"x-request-id": "mine"})
    assert answer.status == 200
    (line,) = lines
    assert (line["request_id"], line["status"], line["outcome"]) == ("mine", 200, "ok")
    assert registry.in_flight == 0
    assert b"hello" not in json.dumps(line).encode()
    text = registry.render().decode()
    assert "sidecar_requests_total{" in text


def test_a_budget_without_prices_is_refused_when_it_is_built() -> None:
    with pytest.raises(ValueError, match="catalog"):
        BudgetMiddleware(Speaker(), policy=AdmissionPolicy(Admission(open_store("memory://"))))


async def test_auth_puts_the_identity_where_the_app_below_finds_it() -> None:
    async def below(request: Request) -> JSONResponse:
        exchange = request.scope["sidecar"]
        return JSONResponse(
            {"key": exchange.identity.key_alias, "user": exchange.end_user_id, "body": await request.json()}
        )

    host = Starlette(routes=[Route("/v1/chat/completions", below, methods=["POST"])])
    app = AuthMiddleware(host, keys=Keys(), end_user_header="X-End-User")
    found = (await call(app, {**BODY, "user": "u1"}, headers=GOOD, pieces=4)).json()
    assert found == {"key": "test", "user": "u1", "body": {**BODY, "user": "u1"}}
    assert (await call(app, BODY, headers={**GOOD, "x-end-user": "u2"})).json()["user"] == "u2"


@pytest.mark.parametrize("is_async", [False, True])
async def test_auth_takes_the_host_apps_own_caller(is_async: bool) -> None:
    tenant = Identity(key_hash="", key_name="tenant-7", models=("gpt",))

    def identify(scope: Scope) -> Any:
        found = tenant if (b"x-tenant", b"7") in scope["headers"] else None
        if not is_async:
            return found

        async def later() -> Identity | None:
            return found

        return later()

    app = AuthMiddleware(Speaker(), identify=identify)
    assert (await call(app, BODY, headers={"x-tenant": "7"})).status == 200
    assert (await call(app, BODY)).status == 401
    refused = await call(app, {**BODY, "model": "o3"}, headers={"x-tenant": "7"})
    assert (refused.status, refused.error["code"]) == (403, "model_access_denied")
    with_keys = AuthMiddleware(Speaker(), identify=identify, keys=Keys())
    assert (await call(with_keys, BODY, headers=GOOD)).status == 200
    assert (await call(with_keys, BODY, headers={"x-tenant": "7"})).status == 200
    with pytest.raises(ValueError, match="keys="):
        AuthMiddleware(Speaker())


def callers_of(identity: Identity, app: ASGIApp) -> ASGIApp:
    return AuthMiddleware(app, keys=Keys(identity))


async def test_rate_limit_refuses_past_the_limit_with_the_exact_wait() -> None:
    now = 1_000.0
    caller = Identity(key_hash="b" * 64, limits=Limits(rpm=2))
    speaker = Speaker()
    policy = make_policy(clock=lambda: now)
    app = callers_of(caller, RateLimitMiddleware(speaker, policy=policy))
    assert [(await call(app, BODY, headers=GOOD)).status for _ in range(2)] == [200, 200]
    now += 20
    refused = await call(app, BODY, headers=GOOD)
    assert (refused.status, refused.error["code"], refused.headers["retry-after"]) == (
        429,
        "requests_limit_exceeded",
        "40",
    )
    assert len(speaker.bodies) == 2
    now += 40.001
    assert (await call(app, BODY, headers=GOOD)).status == 200


async def test_rate_limit_gives_a_slot_back_however_the_request_ends() -> None:
    caller = Identity(key_hash="c" * 64, limits=Limits(concurrency=1))
    gap = asyncio.Event()
    policy = make_policy()
    speaker = Speaker(gap=gap)
    waiting = callers_of(caller, RateLimitMiddleware(speaker, policy=policy))
    running = asyncio.ensure_future(call(waiting, {**BODY, "stream": True}, headers=GOOD))
    await eventually(lambda: speaker.bodies)
    assert (await call(waiting, BODY, headers=GOOD)).status == 429
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    free = callers_of(caller, RateLimitMiddleware(Speaker(), policy=policy))
    assert (await call(free, BODY, headers=GOOD)).status == 200
    await call(waiting, {**BODY, "stream": True}, headers=GOOD, leave_after=1)
    assert (await call(free, BODY, headers=GOOD)).status == 200


async def test_budget_holds_the_worst_case_and_settles_the_real_cost() -> None:
    policy = make_policy()
    app = callers_of(CALLER, BudgetMiddleware(Speaker(), policy=policy))
    assert (await call(app, BODY, headers=GOOD)).status == 200
    assert sum((await policy.admission.spent(CALLER)).values()) > 0
    poor = Identity(key_hash="d" * 64, budgets=(Budget(max_nano=1000),))
    speaker = Speaker()
    refused = await call(callers_of(poor, BudgetMiddleware(speaker, policy=policy)), BODY, headers=GOOD)
    assert (refused.status, refused.error["code"]) == (429, "budget_exceeded")
    assert not speaker.bodies


async def test_budget_alone_charges_every_attempt_also_after_one_whose_usage_nobody_knows() -> None:
    async def spent(retries: int) -> int:
        speaker, broken = Speaker(), [UpstreamBrokenError("It may have done the work.")]

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if broken:
                raise broken.pop()
            await speaker(scope, receive, send)

        policy = make_policy()
        route = RouteMiddleware(app, catalog=Catalog([DEPLOYMENT]), retries=retries)
        answer = await call(callers_of(CALLER, BudgetMiddleware(route, policy=policy)), BODY, headers=GOOD)
        assert answer.status == (200 if retries else 502)
        return sum((await policy.admission.spent(CALLER)).values())

    held = await spent(retries=0)
    assert held > COST_NANO
    assert await spent(retries=1) == held + COST_NANO


async def test_spend_writes_an_intent_before_and_a_record_before_the_last_byte() -> None:
    rows = Rows()
    order: list[str] = []

    class Recorder:
        async def intent(self, record: SpendRecord) -> None:
            order.append("intent")
            await rows.intent(record)

        async def record(self, record: SpendRecord) -> None:
            await asyncio.sleep(0.01)
            order.append("record")
            await rows.record(record)

    class Noting(Speaker):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            order.append("app")
            await super().__call__(scope, receive, send)

    app = SpendMiddleware(Noting(), recorder=Recorder(), deployment=DEPLOYMENT)

    class Client:
        """Notes when the answer's last byte arrives."""

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async def noting(message: Message) -> None:
                if message["type"] == "http.response.body" and not message.get("more_body"):
                    order.append("last byte")
                await send(message)

            await app(scope, receive, noting)

    answer = await call(Client(), BODY)
    assert order == ["intent", "app", "record", "last byte"]
    assert answer.headers["x-sidecar-cost-usd"] == "0.00017"
    assert rows.records[0].cost_nano == COST_NANO
    order.clear()
    streamed = await call(Client(), {**BODY, "stream": True}, headers={"x-sidecar-cost": "trailer"})
    assert order == ["intent", "app", "record", "last byte"]
    assert streamed.body.endswith(b"data: [DONE]\n\n: x-sidecar-cost-usd 0.00017\n\n")


async def test_spend_without_a_journal_dispatches_nothing() -> None:
    class Full(Rows):
        async def intent(self, record: SpendRecord) -> None:
            raise UnavailableError("The spend journal cannot be written.", code="journal_not_writable")

    speaker = Speaker()
    answer = await call(SpendMiddleware(speaker, recorder=Full(), deployment=DEPLOYMENT), BODY)
    assert (answer.status, answer.error["code"]) == (503, "journal_not_writable")
    assert not speaker.bodies


async def test_route_tries_the_next_deployment_of_an_app_that_fails_before_content() -> None:
    places = [Deployment(f"d{n}", "gpt", "openai", "m", "http://127.0.0.1:9", order=n + 1) for n in range(3)]
    asked: list[str] = []
    speaker = Speaker()

    async def flaky(scope: Scope, receive: Receive, send: Send) -> None:
        attempt = scope["sidecar"].attempt
        asked.append(attempt.deployment.deployment_id)
        if len(asked) < 3:
            raise UpstreamConnectError("no connection")
        await speaker(scope, receive, send)

    answer = await call(RouteMiddleware(flaky, catalog=Catalog(places)), BODY)
    assert answer.status == 200
    assert asked == ["d0", "d1", "d2"]
    assert answer.headers["x-sidecar-attempts"] == "3"
    assert len(speaker.bodies) == 1
    missing = await call(RouteMiddleware(flaky, catalog=Catalog(places)), {**BODY, "model": "nobody"})
    assert (missing.status, missing.error["code"]) == (404, "model_not_found")


async def test_translate_speaks_the_providers_dialect_to_whatever_is_below() -> None:
    seen: dict[str, Any] = {}

    async def claude(scope: Scope, receive: Receive, send: Send) -> None:
        seen.update(path=scope["path"], raw_path=scope["raw_path"], body=json.loads((await receive())["body"]))
        raw = json.dumps(
            {
                "id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "stop_reason": "end_turn",
                "stop_sequence": None, "content": [{"type": "text", "text": "hi"}],
                "usage": {"input_tokens": 3, "output_tokens": 1},
            }
        ).encode()  # fmt: skip
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": raw})

    place = Deployment("a", "gpt", "anthropic", "claude-sonnet-4-5", "http://127.0.0.1:9")
    answer = await call(TranslateMiddleware(claude, deployment=place), BODY)
    assert seen["path"] == "/v1/messages"
    assert seen["raw_path"] == b"/v1/messages"
    assert seen["body"]["model"] == "claude-sonnet-4-5"
    assert seen["body"]["messages"] == [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    assert answer.json()["choices"][0]["message"]["content"] == "hi"
    assert answer.json()["usage"]["total_tokens"] == 4


async def test_the_proxy_alone_renders_its_own_errors() -> None:
    class Dead:
        async def send(self, request: Any) -> Any:
            raise UpstreamConnectError("The gateway could not connect to the provider (ConnectionRefusedError).")

        async def aclose(self) -> None: ...

    answer = await call(UpstreamProxy(transport=Dead(), deployment=DEPLOYMENT), BODY)
    assert (answer.status, answer.error["code"]) == (502, "upstream_unreachable")
    with pytest.raises(RuntimeError, match="HTTP only"):
        await UpstreamProxy(transport=Dead(), deployment=DEPLOYMENT)({"type": "websocket"}, None, None)  # type: ignore[arg-type]


async def test_applies_takes_a_middleware_to_any_endpoint() -> None:
    app = AuthMiddleware(Speaker(), keys=Keys(), applies=paths("/ask"))
    assert (await call(app, BODY, path="/ask")).status == 401
    assert (await call(app, BODY, path="/v1/chat/completions")).status == 200
    assert (await call(app, BODY, path="/ask", root_path="/mounted", headers=GOOD)).status == 200
    assert (await call(app, BODY, path="/ask", root_path="/mounted")).status == 401


async def test_a_budget_needs_a_priced_model() -> None:
    unpriced = Deployment("u", "gpt", "openai", "m", "http://127.0.0.1:9")
    rich = Identity(key_hash="e" * 64, budgets=(Budget(max_nano=NANO),))
    policy = make_policy(Catalog([unpriced]))
    answer = await call(callers_of(rich, BudgetMiddleware(Speaker(), policy=policy)), BODY, headers=GOOD)
    assert (answer.status, answer.error["code"]) == (403, "model_unpriced")


async def test_a_rate_limit_with_a_room_lets_requests_to_any_app_wait() -> None:
    speaker = Speaker()
    policy = make_policy(Catalog([DEPLOYMENT]), global_limits=Limits(concurrency=1))
    room = WaitingRoom(size=10)
    app = RateLimitMiddleware(speaker, policy=policy, room=room)
    answers = await asyncio.gather(*(call(app, BODY) for _ in range(5)))
    assert {answer.status for answer in answers} == {200}
    assert sorted(answer.headers.get("x-sidecar-queue", "0") for answer in answers) == ["0", "1", "2", "3", "4"]
    assert room.lines.count == 0
