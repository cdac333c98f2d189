"""What the client gets of a stream, whole or broken anywhere, does not depend on how the bytes were cut on the way."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar import RouteMiddleware, SpendMiddleware, TranslateMiddleware
from sidecar.asgi import ASGIApp, Receive, Scope, Send
from sidecar.routing.catalog import Catalog
from tests.asgi import call
from tests.faults.provider import chat_events, message_events
from tests.middleware.stack import BODY, DEPLOYMENT, Rows

pytestmark = pytest.mark.anyio

EVENTS = {"openai": chat_events(usage=True, forced_usage=True), "anthropic": message_events(usage=True)}
FIRST_WORD = {"openai": 1, "anthropic": 2}
ERRORS = {
    "openai": b'data: {"error":{"message":"over","type":"server_error","code":null}}\n\n',
    "anthropic": b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"over"}}\n\n',
}
BREAKS = ("ends", "within", "malformed", "error", "whole")


def broken(provider: str, how: str, at: int) -> list[bytes]:
    """The stream's events, broken at the event of that number."""
    events = EVENTS[provider]
    tail = {
        "ends": [],
        "within": [events[at][: len(events[at]) // 2]],
        "malformed": [b"data: {broken\n\n", *events[at:]],
        "error": [ERRORS[provider], *events[at:]],
        "whole": events[at:],
    }[how]
    return [*events[:at], *tail]


class Cut:
    """An app that sends these pieces; the last one ends the body, or nothing does."""

    def __init__(self, pieces: Sequence[bytes], *, ends_apart: bool) -> None:
        self.pieces = [*pieces, b""] if ends_apart or not pieces else list(pieces)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number, piece in enumerate(self.pieces, 1):
            await send({"type": "http.response.body", "body": piece, "more_body": number < len(self.pieces)})


async def answered(provider: str, app: ASGIApp, *, is_routed: bool) -> tuple[int, str, dict[str, Any]]:
    """Status, body, and the row, without what differs from call to call."""
    deployment = replace(DEPLOYMENT, provider=provider)
    if is_routed:
        app = RouteMiddleware(TranslateMiddleware(app), catalog=Catalog([deployment]), retries=0)
    else:
        app = TranslateMiddleware(app, deployment=deployment)
    rows = Rows()
    stack = SpendMiddleware(app, recorder=rows, deployment=None if is_routed else deployment)
    answer = await call(stack, BODY | {"stream": True})
    (record,) = rows.records
    row = {name: getattr(record, name) for name in ("outcome", "status", "cost_nano", "usage")}
    assert answer.is_ended
    return answer.status, re.sub(r'"created":\d+|"id":"[^"]*"', "", answer.body.decode()), row


@pytest.mark.parametrize("is_routed", [True, False], ids=["routed", "alone"])
@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("provider", EVENTS)
async def test_one_piece_or_many_it_is_the_same_answer(provider: str, how: str, is_routed: bool) -> None:
    for at in range(len(EVENTS[provider])):
        events = broken(provider, how, at)
        whole = b"".join(events)
        cuts: list[list[bytes]] = [
            events,
            [whole],
            [whole[:-1], whole[-1:]],
            [whole[i : i + 1] for i in range(len(whole))],
        ]
        found = [
            await answered(provider, Cut([p for p in cut if p], ends_apart=apart), is_routed=is_routed)
            for cut in cuts
            for apart in (False, True)
        ]
        status, text, row = found[0]
        assert found == [found[0]] * len(found), (how, at)
        if how == "whole":
            assert (status, row["outcome"]) == (200, "ok")
            assert text.endswith("data: [DONE]\n\n")
        elif at > FIRST_WORD[provider]:
            assert status == 200
            assert '"one"' in text, "words before the break are the client's"
            assert "error" in json.loads(text.rstrip().rpartition("data: ")[2])
            assert "[DONE]" not in text
            assert row["outcome"] == "incomplete"
        else:
            assert "[DONE]" not in text
            if is_routed:
                assert (status, row["outcome"]) == (503 if "overloaded" in text else 502, "provider_error")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    provider=st.sampled_from(sorted(EVENTS)),
    how=st.sampled_from(BREAKS),
    at=st.integers(0, 7),
    cuts=st.lists(st.integers(1, 3000), max_size=12),
    apart=st.booleans(),
)
def test_any_cut_gives_the_same_answer(provider: str, how: str, at: int, cuts: list[int], apart: bool) -> None:
    import anyio

    whole = b"".join(broken(provider, how, at))
    places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    pieces = [whole[a:b] for a, b in itertools.pairwise(places)]

    async def both() -> None:
        first = await answered(provider, Cut(pieces, ends_apart=apart), is_routed=True)
        assert first == await answered(provider, Cut([whole] if whole else [], ends_apart=False), is_routed=True)

    anyio.run(both)
