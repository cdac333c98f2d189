"""The Responses API where nothing of ours translates: an app of one's own under single layers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar import (
    AuthMiddleware,
    BudgetMiddleware,
    ResponseIds,
    ResponseIdsMiddleware,
    SpendMiddleware,
    TranslateMiddleware,
)
from sidecar.asgi import Receive, Scope, Send
from sidecar.errors import UnavailableError
from sidecar.routing.catalog import Catalog
from sidecar.translate.simulate import Plan
from sidecar.types import Identity, SpendRecord
from tests.asgi import call
from tests.middleware.stack import DEPLOYMENT, Keys, Rows, make_policy
from tests.translate.dialects.responses import ResponsesAPI

pytestmark = pytest.mark.anyio

PLAN = Plan(model="m", words=["one", " two"], input_tokens=7, output_tokens=5)
EVENTS = list(ResponsesAPI().events(PLAN, {}))
WHOLE = ResponsesAPI().answer(PLAN)
COST_NANO = 7 * 10_000 + 5 * 20_000
PATH = "/v1/responses"


class OwnApp:
    """Serves the API itself, event by event or in pieces of `size` bytes."""

    def __init__(self, size: int = 0) -> None:
        self.bodies: list[Any] = []
        self.size = size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = json.loads((await receive())["body"])
        self.bodies.append(body)
        if not body.get("stream"):
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
            )
            await send({"type": "http.response.body", "body": WHOLE, "more_body": False})
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        stream = b"".join(EVENTS)
        pieces = [stream[at : at + self.size] for at in range(0, len(stream), self.size)] if self.size else EVENTS
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@pytest.mark.parametrize("size", [0, 1, 13, 100_000])
@pytest.mark.parametrize("stream", [False, True])
async def test_spend_alone_writes_the_row_before_the_last_event(stream: bool, size: int) -> None:
    rows = Rows()
    app = SpendMiddleware(OwnApp(size), recorder=rows, deployment=DEPLOYMENT)
    answer = await call(app, {"model": "gpt", "input": "hi", "stream": stream}, path=PATH)
    assert answer.body == (b"".join(EVENTS) if stream else WHOLE)
    (row,) = rows.records
    assert (row.outcome, row.status, row.cost_nano) == ("ok", "settled", COST_NANO)


@pytest.mark.parametrize("size", [0, 1, 13, 100_000])
async def test_a_row_that_cannot_be_written_cuts_the_answer(size: int) -> None:
    class Full(Rows):
        async def record(self, record: SpendRecord) -> None:
            raise UnavailableError("full")

    app = SpendMiddleware(OwnApp(size), recorder=Full(), deployment=DEPLOYMENT)
    answer = await call(app, {"model": "gpt", "input": "hi", "stream": True}, path=PATH)
    assert b"response.completed" not in answer.body
    event = json.loads(answer.body.split(b"\n\n")[-2].partition(b"\ndata: ")[2])
    assert (event["type"], event["error"]["code"]) == ("error", "record_not_written")


async def test_budget_alone_settles_what_the_answer_says() -> None:
    policy = make_policy()
    app = AuthMiddleware(BudgetMiddleware(OwnApp(), policy=policy), keys=Keys())
    headers = {"authorization": "Bearer sk-good"}
    for stream in (False, True):
        answer = await call(app, {"model": "gpt", "input": "hi", "stream": stream}, path=PATH, headers=headers)
        assert answer.status == 200
    store: Any = policy.admission.store
    assert sum(counter.nano for counter in store._counters.values()) == 2 * COST_NANO


class Echo:
    """Answers with an id of its own, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(json.loads((await receive())["body"]))
        body = {**json.loads(WHOLE), "previous_response_id": self.asked[-1].get("previous_response_id")}
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(body).encode(), "more_body": False})


async def test_ids_and_translate_make_a_stack_of_their_own() -> None:
    echo = Echo()

    def stack(secret: bytes, user: str) -> AuthMiddleware:
        ids = ResponseIds(secret, Catalog([DEPLOYMENT]))
        app = ResponseIdsMiddleware(TranslateMiddleware(echo, deployment=DEPLOYMENT), ids=ids)
        return AuthMiddleware(app, identify=lambda scope: Identity(key_hash=user, user_id=user))

    first = (await call(stack(b"secret", "ada"), {"model": "gpt", "input": "hi"}, path=PATH)).json()
    assert first["id"].startswith("resp_sim_g")
    on = {"model": "gpt", "input": "on", "previous_response_id": first["id"]}
    again = (await call(stack(b"secret", "ada"), on, path=PATH)).json()
    assert again["previous_response_id"] == first["id"]
    assert echo.asked[-1]["previous_response_id"] == "resp_sim"
    calls = len(echo.asked)
    for other in (stack(b"secret", "eve"), stack(b"another", "ada"), TranslateMiddleware(echo, deployment=DEPLOYMENT)):
        answer = await call(other, on, path=PATH)
        assert (answer.status, answer.error["code"]) == (404, "previous_response_not_found")
    assert len(echo.asked) == calls


async def test_an_id_nobody_could_put_into_a_path_stays_the_providers() -> None:
    ids = ResponseIds(b"secret", Catalog([DEPLOYMENT]))
    for odd in ("../x", "a b", "", "x" * 300, "r\u00e9sp"):
        assert ids.outward(odd, DEPLOYMENT, "key:", 0) == odd
        assert ids.read(odd, Identity(key_hash="")) is None
    good = ids.outward("resp_1", DEPLOYMENT, "key:", 10**9)
    found = ids.read(good, Identity(key_hash=""))
    assert found is not None
    assert (found.provider_id, found.deployment) == ("resp_1", DEPLOYMENT)
    assert ids.read(good + "\n", Identity(key_hash="")) is None


async def test_lengths_are_never_under() -> None:
    ids = ResponseIds(b"secret", Catalog([DEPLOYMENT]))
    for tokens in (0, 1, 63, 64, 65, 4096, 100_000, 1_050_000):
        found = ids.read(ids.outward("resp_1", DEPLOYMENT, "key:", tokens), Identity(key_hash=""))
        assert found is not None
        assert tokens <= found.tokens < tokens + 64
