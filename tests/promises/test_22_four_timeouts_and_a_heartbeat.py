"""*Four timeouts and a heartbeat.* Connect, first byte, gap and total each fire at their moment, for a deployment or
for one request (`x-sidecar-timeout`). A long silence after the provider's status passes a proxy that cuts idle
connections, as SSE comments go by; a stall still ends in an error event, and before the status is known nothing is sent
unless asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import pytest
from anthropic._streaming import SSEDecoder
from openai import APIError, AsyncOpenAI

from tests.faults.provider import WORDS, Fault, FaultProvider, fault_provider, stream_events
from tests.promises.sizes import IS_FULL, measured, size
from tests.promises.support import DIALECTS, PROVIDER_KEY, Running, body, eventually, served

pytestmark = pytest.mark.anyio

T = TypeVar("T")
WHOLE = "".join(WORDS)
LIMIT_S = 0.4
BOUND_S = 0.2
"""So much later at most each fires."""
LONG_S = 90.0
BEAT_S = 0.2
SILENCE_S = size("PROMISE_22_SILENCE", 2, full=150)
IDLE_S = 60.0 if IS_FULL else 0.8
"""After so long without a byte the proxy of these tests cuts."""
LOOKS = 8
"""So often it looks in that time: while this process gets no CPU, it does not."""
COMMENT = b": keep-alive\n\n"
late: list[float] = []


def place(dialect: str, url: str, **timeouts: float) -> dict[str, Any]:
    times = {"connect_s": LONG_S, "first_byte_s": LONG_S, "gap_s": LONG_S, "total_s": LONG_S}
    return {
        "provider": dialect, "model": f"{dialect}-1", "api_key": PROVIDER_KEY, "max_output_tokens": 100_000,
        "base_url": f"{url}/v1" if dialect == "openai" else url, "price": {"input": 1, "output": 2},
        "timeouts": times | timeouts,
    }  # fmt: skip


def top(models: dict[str, list[dict[str, Any]]], *, retries: int = 0, **server: Any) -> dict[str, Any]:
    return {
        "models": [{"name": name, "deployments": places} for name, places in models.items()],
        "routing": {"retries": retries, "cooldown_s": 0.001, "cooldown_after": 100},
        "server": server,
    }


@contextlib.contextmanager
def full_house() -> Iterator[str]:
    """A host whose queue is full: the kernel answers no further attempt to connect."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as stack:
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextlib.asynccontextmanager
async def thinker(dialect: str, at: int, seconds: float, *, cut: int = 0) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A provider whose streams are silent for `seconds` before the event of number `at`, or `cut` bytes into it.
    Its address, and what is set from then on."""
    events = stream_events(dialect, usage=True)
    is_silent, over = asyncio.Event(), asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(li for li in head.lower().split(b"\r\n") if li.startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for number, event in enumerate(events):
                if number == at:
                    writer.write(event[:cut])
                    await writer.drain()
                    is_silent.set()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(over.wait(), seconds)
                    event = event[cut:]
                writer.write(event)
                await writer.drain()
                await asyncio.sleep(0.01)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", is_silent
        over.set()


@contextlib.asynccontextmanager
async def impatient_proxy(url: str, idle_s: float, is_silent: asyncio.Event) -> AsyncIterator[str]:
    """What stands in front of gateways: it cuts a connection whose answer is silent for `idle_s` once the provider
    is."""
    host, port = url.split("//")[1].split(":")

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(host, int(port))

        async def up() -> None:
            while data := await reader.read(65536):
                forth.write(data)

        going = asyncio.create_task(up())
        reading = asyncio.ensure_future(back.read(65536))
        looks = 0
        with contextlib.suppress(ConnectionError):
            while looks < LOOKS:
                looks += 1
                done, _ = await asyncio.wait({reading}, timeout=idle_s / LOOKS)
                if not done:
                    looks *= is_silent.is_set()
                    continue
                if not (data := reading.result()):
                    break
                writer.write(data)
                await writer.drain()
                reading = asyncio.ensure_future(back.read(65536))
                looks = 0
        reading.cancel()
        going.cancel()
        forth.close()
        writer.transport.abort()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def timed(running: Running, key: str, payload: Any, **headers: str) -> tuple[float, int, bytes]:
    begun = time.monotonic()
    answer = await running.chat(key, payload, headers=headers)
    return time.monotonic() - begun, answer.status_code, answer.content


async def read(client: AsyncOpenAI, model: str) -> list[Any]:
    """All chunks of a stream, by the stock SDK."""
    messages: Any = [{"role": "user", "content": "think"}]
    stream = await client.chat.completions.create(model=model, messages=messages, stream=True)
    return [chunk async for chunk in stream]


def code_of(answer: bytes) -> str:
    """Of a whole error answer, or of the error event a stream ends with."""
    text = answer if answer.startswith(b"{") else answer.strip().rsplit(b"data: ", 1)[1]
    code: str = json.loads(text)["error"]["code"]
    return code


def is_at_its_moment(seconds: float) -> bool:
    assert seconds >= LIMIT_S * 0.9, seconds
    return seconds <= LIMIT_S + BOUND_S


async def again(ask: Callable[[], Awaitable[T]], is_fine: Callable[[T], bool]) -> T:
    """What the first of five tries that is fine gave, else the last: while this process gets no CPU its timers go on,
    and one may be over before what it waits for could come."""
    for _ in range(5):
        found = await ask()
        if is_fine(found):
            break
    return found


@pytest.fixture(scope="module")
async def four(
    provider_of_file: FaultProvider, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Running, str]]:
    """One group per time-out and dialect, in which only that one is short."""
    with full_house() as nobody:
        models = {}
        for dialect in DIALECTS.values():
            models[f"connect-{dialect}"] = [place(dialect, nobody, connect_s=LIMIT_S)]
            models[f"long-connect-{dialect}"] = [place(dialect, nobody)]
            models[f"long-{dialect}"] = [place(dialect, provider_of_file.base_url)]
            for name in ("first_byte", "gap", "total"):
                models[f"{name}-{dialect}"] = [place(dialect, provider_of_file.base_url, **{f"{name}_s": LIMIT_S})]
        folder = tmp_path_factory.mktemp("four")
        async with served(folder, provider_of_file.base_url, top=top(models, heartbeat_s=30)) as running:
            yield running, await running.mint()
            if late:
                measured(22, f"each of the four fired at most {1000 * max(late):.0f} ms late, at best of five tries")


CASES = (
    ("connect", None, True), ("connect", None, False), ("first_byte", Fault("silent"), True),
    ("gap", Fault("stall", after=0), True), ("gap", Fault("stall", after=4), True),
    ("gap", Fault("stall", after=2), False),
    ("total", Fault("silent"), False), ("total", Fault("silent"), True), ("total", Fault("endless", drip_s=0.02), True),
)  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS.values())
@pytest.mark.parametrize(("phase", "fault", "is_stream"), CASES)
async def test_each_fires_at_its_moment_and_names_itself(
    four: tuple[Running, str], faults: FaultProvider, dialect: str, phase: str, fault: Fault | None, is_stream: bool
) -> None:
    running, key = four
    has_begun = fault is not None and is_stream and (fault.kind == "endless" or fault.after == 4)

    async def ask() -> tuple[float, int, bytes]:
        faults.reset()
        faults.script(*([fault] if fault is not None else []))
        return await timed(running, key, body(f"{phase}-{dialect}", stream=is_stream))

    seconds, status, answer = await again(
        ask, lambda found: is_at_its_moment(found[0]) and (found[1] == 200 or not has_begun)
    )
    assert code_of(answer) == f"upstream_timeout_{phase}"
    assert status == (200 if has_begun else 504)
    assert b"[DONE]" not in answer
    assert is_at_its_moment(seconds), seconds
    late.append(seconds - LIMIT_S)


@pytest.mark.parametrize(("phase", "fault", "is_stream"), CASES[1:-1])
async def test_one_request_may_shorten_them_all(
    four: tuple[Running, str], faults: FaultProvider, phase: str, fault: Fault | None, is_stream: bool
) -> None:
    running, key = four
    model = "long-openai" if fault is not None else "long-connect-openai"

    async def ask() -> tuple[float, int, bytes]:
        faults.reset()
        faults.script(*([fault] if fault is not None else []))
        return await timed(running, key, body(model, stream=is_stream), **{"x-sidecar-timeout": str(LIMIT_S)})

    seconds, _, answer = await again(ask, lambda found: is_at_its_moment(found[0]))
    assert code_of(answer) == "upstream_timeout_total"
    assert is_at_its_moment(seconds), seconds


async def test_it_cannot_lengthen(four: tuple[Running, str], faults: FaultProvider) -> None:
    running, key = four

    async def ask() -> tuple[float, int, bytes]:
        faults.reset()
        faults.script(Fault("silent"))
        return await timed(running, key, body("total-openai"), **{"x-sidecar-timeout": "3600"})

    seconds, status, answer = await again(ask, lambda found: is_at_its_moment(found[0]))
    assert (status, code_of(answer)) == (504, "upstream_timeout_total")
    assert is_at_its_moment(seconds), seconds


@pytest.mark.parametrize("value", ["", "0", "-1", "0.0", "soon", "1e3", "nan", "inf", "5s", "1,5", "99999999", "1 2"])
async def test_a_value_that_is_no_time_is_a_clear_400(
    four: tuple[Running, str], faults: FaultProvider, value: str
) -> None:
    running, key = four
    _, status, answer = await timed(running, key, body("long-openai"), **{"x-sidecar-timeout": value})
    error = json.loads(answer)["error"]
    assert (status, error["code"], error["param"]) == (400, "bad_timeout", "x-sidecar-timeout")
    assert not faults.requests


async def test_a_requests_own_time_covers_its_retries_and_no_deployment_is_blamed(tmp_path: Path) -> None:
    """Its time is long enough for a second attempt on the slowest machine."""
    async with fault_provider() as provider:
        places = [place("openai", provider.base_url, first_byte_s=0.3), place("anthropic", provider.base_url)]
        config = top({"two": [places[0], places[1] | {"order": 2}]}, retries=5) | {}
        config["routing"] |= {"cooldown_after": 1, "cooldown_s": 600}
        async with served(tmp_path, provider.base_url, top=config) as running:
            key = await running.mint()
            provider.script(*[Fault("silent")] * 8)
            seconds, _, answer = await timed(running, key, body("two", stream=True), **{"x-sidecar-timeout": "6"})
            assert 5.5 <= seconds < LONG_S / 2
            assert len(provider.requests) == 2
            # The first was too slow by its own measure and pauses; the second ran into the client's time only.
            assert b"upstream_timeout_first_byte" in answer or b"time" in answer
            provider.reset()
            _, status, _ = await timed(running, key, body("two"))
            assert status == 200
            assert "/messages" in provider.requests[0].target


async def test_a_requests_own_time_covers_its_place_in_the_queue(tmp_path: Path) -> None:
    async with fault_provider() as provider:
        config = top({"gpt": [place("openai", provider.base_url)]}) | {"queue": {"size": 10, "max_wait_s": 60}}
        async with served(tmp_path, provider.base_url, top=config) as running:
            key = await running.mint(max_parallel_requests=1)
            provider.script(Fault("silent"))
            first = asyncio.create_task(running.chat(key, body(), headers={"x-sidecar-timeout": "60"}, timeout=90))
            await eventually(lambda: provider.requests)
            seconds, status, answer = await timed(running, key, body(), **{"x-sidecar-timeout": str(LIMIT_S)})
            assert (status, seconds < 30) == (429, True), answer
            first.cancel()
            await asyncio.wait({first})


async def test_a_long_silence_passes_a_proxy_that_cuts_idle_connections(tmp_path: Path) -> None:
    """After the status, before content and amid it, in both dialects, at once: they wait."""
    cases = [(dialect, at, tmp_path / f"{dialect}-{at}") for dialect in DIALECTS.values() for at in (0, 1, 4)]
    for *_, folder in cases:
        folder.mkdir()
    async with asyncio.TaskGroup() as group:
        for dialect, at, folder in cases:
            group.create_task(a_long_silence(folder, dialect, at))
    measured(22, f"{SILENCE_S} s of silence passed a proxy that cuts after {IDLE_S:g} s")


async def a_long_silence(tmp_path: Path, dialect: str, at: int) -> None:
    async with thinker(dialect, at, SILENCE_S) as (url, is_silent):
        place_ = place(dialect, url, gap_s=SILENCE_S + 90, total_s=SILENCE_S + 90, first_byte_s=SILENCE_S + 90)
        server = {} if IS_FULL else {"heartbeat_s": BEAT_S}
        async with (
            served(tmp_path, url, top=top({"gpt": [place_]}, **server)) as running,
            impatient_proxy(running.url, IDLE_S, is_silent) as proxy,
        ):
            key = await running.mint()
            client = AsyncOpenAI(base_url=f"{proxy}/v1", api_key=key, max_retries=0, timeout=SILENCE_S + 90)
            async with client:
                chunks = await read(client, "gpt")
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            assert text == WHOLE
            assert chunks[-1].choices == [] or chunks[-1].choices[0].finish_reason == "stop"
            (row,) = await running.rows(key, at_least=1)
            assert row["outcome"] == "ok"


async def test_without_a_heartbeat_that_proxy_cuts(tmp_path: Path) -> None:
    async with thinker("openai", 2, 60) as (url, is_silent):
        config = top({"gpt": [place("openai", url)]}, heartbeat_s=0)
        async with served(tmp_path, url, top=config) as running, impatient_proxy(running.url, 0.8, is_silent) as proxy:
            key = await running.mint()
            async with AsyncOpenAI(base_url=f"{proxy}/v1", api_key=key, max_retries=0) as client:
                with pytest.raises(Exception, match=r"(?i)connection|peer closed|incomplete"):
                    await read(client, "gpt")


@pytest.mark.parametrize(("dialect", "cut"), [("openai", 1), ("openai", 40), ("anthropic", 9)])
async def test_no_comment_stands_within_an_event(tmp_path: Path, dialect: str, cut: int) -> None:
    """Whatever piece of an event the silence comes after, all that parsers see are whole events."""
    async with thinker(dialect, 4, 1.0, cut=cut) as (url, _):
        config = top({"gpt": [place(dialect, url)]}, heartbeat_s=0.1)
        async with served(tmp_path, url, top=config) as running:
            answer = await running.chat(await running.mint(), body(stream=True))
    events = [json.loads(sse.data) for sse in SSEDecoder().iter_bytes(iter([answer.content])) if sse.data != "[DONE]"]
    text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"])
    assert text == WHOLE
    assert answer.content.endswith(b"data: [DONE]\n\n")


@pytest.fixture(scope="module")
async def beating(
    provider_of_file: FaultProvider, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Running, str]]:
    url = provider_of_file.base_url
    models = {name: [place(name, url, gap_s=1.0)] for name in DIALECTS.values()}
    models["two"] = [place("openai", url, gap_s=1.0), place("anthropic", url) | {"order": 2}]
    models["silent"] = [place("openai", url, first_byte_s=1.0)]
    config = top(models, retries=1, heartbeat_s=BEAT_S)
    config["limits"] = {"rpm": 100_000}
    async with served(tmp_path_factory.mktemp("beating"), url, top=config) as running:
        yield running, await running.mint()


@pytest.mark.parametrize("dialect", DIALECTS.values())
@pytest.mark.parametrize("after", [0, 4])
async def test_a_stall_still_ends_in_an_error_event(
    beating: tuple[Running, str], faults: FaultProvider, dialect: str, after: int
) -> None:
    running, key = beating

    async def ask() -> httpx2.Response:
        faults.reset()
        faults.script(*[Fault("stall", after=after)] * 4)
        async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0) as client:
            answer, raised = await asyncio.gather(
                running.chat(key, body(dialect, stream=True)), read(client, dialect), return_exceptions=True
            )
        assert isinstance(raised, APIError)
        assert raised.code == "upstream_timeout_gap"
        assert not isinstance(answer, BaseException)
        return answer

    answer = await again(ask, lambda answer: answer.content.count(COMMENT) >= 3)
    assert answer.status_code == 200
    assert answer.content.count(COMMENT) >= 3
    assert b"[DONE]" not in answer.content
    assert code_of(answer.content) == "upstream_timeout_gap"
    assert "x-ratelimit-remaining-requests" in answer.headers


async def test_comments_do_not_keep_a_silent_deployment_from_being_replaced(
    beating: tuple[Running, str], faults: FaultProvider
) -> None:
    running, key = beating

    async def ask() -> httpx2.Response:
        faults.reset()
        faults.script(Fault("stall", after=0), Fault())
        return await running.chat(key, body("two", stream=True))

    answer = await again(ask, lambda answer: answer.content.startswith(COMMENT))
    assert answer.content.startswith(COMMENT)
    events = [json.loads(li[6:]) for li in answer.content.split(b"\n\n") if li.startswith(b"data: {")]
    assert "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e["choices"]) == WHOLE
    assert answer.content.endswith(b"data: [DONE]\n\n")
    assert ["/messages" in seen.target for seen in faults.requests] == [False, True]


async def test_a_stream_that_flows_gets_no_comment(tmp_path: Path) -> None:
    """It lasts longer than the interval, and is never silent for so long."""
    async with fault_provider() as provider:
        config = top({"gpt": [place("openai", provider.base_url)]}, heartbeat_s=1)
        async with served(tmp_path, provider.base_url, top=config) as running:
            key = await running.mint()

            async def ask() -> httpx2.Response:
                provider.script(Fault(drip_s=0.2))
                return await running.chat(key, body(stream=True))

            answer = await again(ask, lambda answer: COMMENT not in answer.content)
    assert answer.content.endswith(b"data: [DONE]\n\n")
    assert COMMENT not in answer.content


@pytest.mark.parametrize("fault", [Fault("silent"), Fault("status", status=429)], ids=["silent", "refusing"])
async def test_nothing_is_sent_before_the_status_is_known(
    beating: tuple[Running, str], faults: FaultProvider, fault: Fault
) -> None:
    running, key = beating
    faults.script(fault, fault)
    answer = await running.chat(key, body("silent", stream=True))
    assert answer.status_code == (504 if fault.kind == "silent" else 429)
    assert answer.headers["content-type"] == "application/json"


async def test_whoever_asks_for_it_gets_comments_early_and_the_error_in_the_stream(tmp_path: Path) -> None:
    async with fault_provider() as provider:
        config = top({"gpt": [place("openai", provider.base_url, first_byte_s=1.0)]})
        config["server"] = {"heartbeat_s": BEAT_S, "heartbeat_early": True}
        async with served(tmp_path, provider.base_url, top=config) as running:
            key = await running.mint()

            async def ask(fault: Fault) -> httpx2.Response:
                provider.reset()
                provider.script(fault)
                return await running.chat(key, body(stream=True))

            answer = await again(lambda: ask(Fault("silent")), lambda answer: answer.content.count(COMMENT) >= 2)
            assert answer.status_code == 200
            assert answer.content.count(COMMENT) >= 2
            assert code_of(answer.content) == "upstream_timeout_first_byte"
            assert b"[DONE]" not in answer.content
            # What fails at once keeps its status, as does what is not streamed.
            refused = Fault("status", status=429)
            answer = await again(lambda: ask(refused), lambda answer: answer.status_code == 429)
            assert answer.status_code == 429
            provider.script(Fault("silent"))
            assert (await running.chat(key, body(), headers={"x-sidecar-timeout": "0.5"})).status_code == 504
