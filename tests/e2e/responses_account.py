"""An account at a provider with the Responses API: it keeps what it answered and knows its own ids only, like OpenAI's.
Its requests and answers are held to the SDK's types (`tests.translate.dialects.responses`).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sidecar.asgi import Receive, Scope, Send
from sidecar.translate.simulate import Plan
from tests.translate.dialects.responses import assert_openai_takes, event, item_events, items_of, response_of

WORDS = ("one", " two", " three")
INPUT_TOKENS, OUTPUT_TOKENS = 11, 3


@dataclass
class Asked:
    method: str
    target: str
    headers: dict[str, str]
    body: Any


@dataclass
class Account:
    """`script`: statuses of the next answers, before all goes well again."""

    key: str
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    script: list[int] = field(default_factory=list)
    is_strict: bool = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        raw, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            raw += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        query = scope["query_string"].decode()
        target = scope["raw_path"].decode() + (f"?{query}" if query else "")
        body = json.loads(raw) if raw else None
        self.asked.append(Asked(scope["method"], target, headers, body))
        assert headers.get("authorization", f"Bearer {headers.get('api-key')}") == f"Bearer {self.key}"
        if self.script and (status := self.script.pop(0)) != 200:
            await _json(send, status, {"error": {"message": "scripted", "type": "server_error", "code": None}})
            return
        path = scope["path"].partition("/responses")[2]
        if not path:
            await self._create(body, send)
            return
        response_id, _, rest = path.removeprefix("/").partition("/")
        found = self.kept.get(response_id)
        if found is None:
            text = f"Response with id '{response_id}' not found."
            await _json(send, 404, {"error": {"message": text, "type": "invalid_request_error", "code": None}})
        elif scope["method"] == "DELETE":
            del self.kept[response_id]
            await _json(send, 200, {"id": response_id, "object": "response", "deleted": True})
        elif rest == "input_items":
            items = [{"id": "msg_in", "type": "message", "role": "user", "content": [], "status": "completed"}]
            ends = {"first_id": "msg_in", "last_id": "msg_in", "has_more": False}
            await _json(send, 200, {"object": "list", "data": items, **ends})
        elif rest == "cancel":
            text = "Only background responses can be cancelled."
            await _json(send, 400, {"error": {"message": text, "type": "invalid_request_error", "code": None}})
        else:
            await _json(send, 200, found)

    async def _create(self, body: dict[str, Any], send: Send) -> None:
        if self.is_strict:
            assert_openai_takes(body)
        previous = body.get("previous_response_id")
        if previous is not None and previous not in self.kept:
            error = {"message": f"Previous response with id '{previous}' not found.", "type": "invalid_request_error"}
            await _json(send, 400, {"error": {**error, "code": "previous_response_not_found"}})
            return
        response_id = f"resp_{secrets.token_hex(25)}"
        plan = Plan(model=body["model"], words=list(WORDS), input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS)
        own = {"id": response_id, "previous_response_id": previous, "store": body.get("store", True)}
        whole = response_of(plan, items_of(plan), "completed") | own
        if own["store"]:
            self.kept[response_id] = whole
        if not body.get("stream"):
            await _json(send, 200, whole)
            return
        begun = response_of(plan, [], "in_progress") | own
        inner = [
            (kind, {"output_index": index, **fields})
            for index, item in enumerate(whole["output"])
            for kind, fields in item_events(item, index, plan.words)
        ]
        kinds = [
            ("response.created", {"response": begun}),
            ("response.in_progress", {"response": begun}),
            *inner,
            ("response.completed", {"response": whole}),
        ]
        await _pieces(send, 200, b"text/event-stream", [event(k, n, **f) for n, (k, f) in enumerate(kinds)])


async def _json(send: Send, status: int, body: Any) -> None:
    await _pieces(send, status, b"application/json", [json.dumps(body).encode()])


async def _pieces(send: Send, status: int, kind: bytes, pieces: Iterable[bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
    for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
