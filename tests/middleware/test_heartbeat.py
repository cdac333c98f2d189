"""The heartbeat by itself: one timer for any number of streams, none without; what becomes of an answer it began."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from sidecar.asgi import COMMENT, Front, Message, open_exchange, refuse
from sidecar.errors import UnavailableError
from sidecar.exchange import Exchange
from sidecar.heartbeat import Heartbeat

pytestmark = pytest.mark.anyio

STREAM = [(b"content-type", b"text/event-stream")]


class Waits:
    is_waiting = True


def begun() -> tuple[Exchange, Front, list[Message]]:
    """An exchange and what its client got."""
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    exchange, _ = open_exchange({"type": "http", "headers": []}, receive)
    return exchange, Front(exchange, send), sent


async def beaten() -> tuple[Exchange, Front, list[Message]]:
    """The same after a first comment began the answer."""
    exchange, front, sent = begun()
    front.start_beat(asyncio.get_running_loop())
    await front.quiet()
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert (sent[0]["status"], sent[1]["body"]) == (200, COMMENT)
    return exchange, front, sent


def body_of(sent: list[Message]) -> bytes:
    return b"".join(message.get("body", b"") for message in sent)


async def test_a_thousand_streams_share_one_timer_and_the_last_takes_it_away() -> None:
    loop = asyncio.get_running_loop()
    before = len(scheduled(loop))
    heartbeat = Heartbeat(0.2)
    watched = [heartbeat.watch(begun()[1], Waits()) for _ in range(1000)]
    assert len(scheduled(loop)) == before + 1
    for stream in watched:
        heartbeat.forget(stream)
    for _ in range(100):  # one after the other
        heartbeat.forget(heartbeat.watch(begun()[1], Waits()))
    assert len(scheduled(loop)) == before + 1
    await asyncio.sleep(0.2)
    assert len(scheduled(loop)) == before


def scheduled(loop: Any) -> list[asyncio.TimerHandle]:
    return [handle for handle in loop._scheduled if not handle.cancelled()]


async def test_who_waits_for_no_provider_gets_no_comment() -> None:
    heartbeat = Heartbeat(0.04)
    _, front, sent = begun()
    _, other, to_other = begun()
    busy, idle = Waits(), Waits()
    busy.is_waiting = False
    streams = [heartbeat.watch(front, busy), heartbeat.watch(other, idle)]
    async with asyncio.timeout(60):
        while body_of(to_other).count(COMMENT) < 3:
            await asyncio.sleep(0.01)
    assert not sent
    for stream in streams:
        heartbeat.forget(stream)


async def test_half_an_event_is_left_alone_until_it_is_whole() -> None:
    heartbeat = Heartbeat(0.04)
    _, front, sent = begun()
    stream = heartbeat.watch(front, Waits())
    await front({"type": "http.response.start", "status": 200, "headers": STREAM})
    await front({"type": "http.response.body", "body": b'data: {"a"', "more_body": True})
    await asyncio.sleep(0.3)
    assert body_of(sent) == b'data: {"a"'
    await front({"type": "http.response.body", "body": b": 1}\n\n", "more_body": True})
    async with asyncio.timeout(60):
        while COMMENT not in body_of(sent):
            await asyncio.sleep(0.01)
    heartbeat.forget(stream)


async def test_the_stream_that_follows_goes_on_in_the_answer_begun() -> None:
    exchange, front, sent = await beaten()
    await front({"type": "http.response.start", "status": 200, "headers": STREAM})
    await front({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})
    assert body_of(sent) == COMMENT + b"data: [DONE]\n\n"
    assert [message["type"] for message in sent].count("http.response.start") == 1
    assert exchange.answer_ended


async def test_a_refusal_after_it_is_an_event_and_the_end() -> None:
    exchange, front, sent = await beaten()
    await refuse(exchange, UnavailableError("nobody is there", code="nobody"), front)
    *_, event, rest = body_of(sent).split(b"\n\n")
    assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "nobody"
    assert (rest, sent[-1]["more_body"], exchange.answer_ended) == (b"", False, True)


async def test_an_error_answer_after_it_is_an_event_too() -> None:
    _, front, sent = await beaten()
    await front({"type": "http.response.start", "status": 400, "headers": [(b"content-type", b"application/json")]})
    await front({"type": "http.response.body", "body": b'{"error":\n', "more_body": True})
    await front({"type": "http.response.body", "body": b'"bad"}', "more_body": False})
    assert body_of(sent) == COMMENT + b'data: {"error":\ndata: "bad"}\n\n'
    assert not sent[-1]["more_body"]


async def test_after_the_end_nothing_is_said() -> None:
    exchange, front, sent = begun()
    await refuse(exchange, UnavailableError("nobody is there"), front)
    length = len(sent)
    front.start_beat(asyncio.get_running_loop())
    await front.quiet()
    assert len(sent) == length
