"""Bad input gets the right 4xx in OpenAI's error form, naming the fault; nothing is called upstream, nothing is held or
charged afterwards, and the log has no stack trace – with `sidecar serve`, mounted in an app, and in-process.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest

from tests.e2e.conftest import IN_PROCESS, running_as
from tests.faults.provider import Fault, FaultProvider, chat_body, message_body
from tests.promises.support import MODELS, Running, body, eventually

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"
DEEP = 100_000


@pytest.fixture(scope="module", params=["serve", "mounted", "in-process"])
async def gateway_of_file(
    request: pytest.FixtureRequest, provider_of_file: FaultProvider, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    async with running_as(request.param, tmp_path_factory.mktemp("gateway"), provider_of_file.base_url) as running:
        yield running


@dataclass(frozen=True)
class Bad:
    """A request and how it is refused. `says` stands in the message."""

    content: bytes
    code: str
    says: str
    param: str | None = None
    status: int = 400
    headers: dict[str, str] = field(default_factory=dict)


def given(code: str, says: str, param: str | None = None, status: int = 400, **fields: Any) -> Bad:
    payload = {name: value for name, value in (body() | fields).items() if value is not ...}
    return Bad(json.dumps(payload).encode(), code, says, param, status)


def nested(depth: int, inner: str = "1") -> bytes:
    """A body whose `metadata` is that deep."""
    return (
        json.dumps(body())[:-1].encode() + b', "metadata": ' + b'{"a":' * depth + inner.encode() + b"}" * depth + b"}"
    )


VALID = json.dumps(body()).encode()
NOT_JSON = {
    "nothing": b"",
    "an open brace": b"{",
    "a cut body": VALID[:-1],
    "text": b"hello",
    "single quotes": VALID.replace(b'"', b"'"),
    "trailing garbage": VALID + b"x",
    "two bodies": VALID * 2,
    "a trailing comma": VALID[:-1] + b",}",
    "a comment": b"// hi\n" + VALID,
    "NaN": VALID[:-1] + b', "temperature": NaN}',
    "a control character in a string": VALID.replace(b'"hi"', b'"h\ni"'),
    "invalid UTF-8 in a value": VALID.replace(b'"hi"', b'"\xff\xfe"'),
    "invalid UTF-8 in a name": VALID.replace(b'"stream"', b'"\xc3\x28"'),
    "an overlong NUL": VALID.replace(b'"hi"', b'"\xc0\x80"'),
    "a cut character": VALID.replace(b'"hi"', b'"\xe2\x82"'),
    "UTF-16": json.dumps(body()).encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + VALID,
    "half a surrogate": VALID.replace(b'"hi"', b'"\\ud800"'),
    "a bad escape": VALID.replace(b'"hi"', b'"\\x41"'),
    "a NUL byte": VALID + b"\0",
    "null": b"null",
    "a list": b"[" + VALID + b"]",
    "a string": b'"gpt"',
    "a number": b"1",
    "a form": b"model=gpt&messages=hi",
}
BAD: dict[str, Bad] = {
    **{name: Bad(content, "invalid_json", "JSON") for name, content in NOT_JSON.items()},
    "many brackets": Bad(b"[" * DEEP, "bad_request", "nested too deeply"),
    "many braces": Bad(b'{"a":' * DEEP, "bad_request", "nested too deeply"),
    "closed brackets": Bad(b"[" * DEEP + b"]" * DEEP, "bad_request", "nested too deeply"),
    "deep metadata": Bad(nested(DEEP), "bad_request", "nested too deeply"),
    "deep and unknown": Bad(b'{"a":' * DEEP + b"1" + b"}" * DEEP, "bad_request", "nested too deeply"),
    "no model": given("bad_request", "'model'", "model", model=...),
    "an empty model": given("bad_request", "'model'", "model", model=""),
    "a null model": given("bad_request", "'model'", "model", model=None),
    "a number as model": given("bad_request", "'model'", "model", model=1),
    "a list as model": given("bad_request", "'model'", "model", model=["gpt"]),
    "a long model": given("bad_request", "'model'", "model", model="m" * 257),
    "an unknown model": given("model_not_found", "'nothing'", "model", 404, model="nothing"),
    "text as stream": given("bad_request", "'stream'", "stream", stream="true"),
    "a number as stream": given("bad_request", "'stream'", "stream", stream=1),
    "text as messages": given("bad_request", "'messages'", "messages", messages="hi"),
    "an object as messages": given("bad_request", "'messages'", "messages", messages={"role": "user"}),
    "stream options for a stream": given(
        "bad_request", "'stream_options'", "stream_options", stream=True, stream_options="usage"
    ),
    "a smuggled key": given("forbidden_parameter", "'api_key'", "api_key", api_key="sk-x"),
    "gzip": Bad(gzip.compress(VALID), "unsupported_encoding", "content-encoding", headers={"content-encoding": "gzip"}),
    "an unknown encoding": Bad(VALID, "unsupported_encoding", "content-encoding", headers={"content-encoding": "zz"}),
    "multipart": Bad(
        b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\ngpt\r\n--x--\r\n', "invalid_json", "JSON",
        headers={"content-type": "multipart/form-data; boundary=x"},
    ),
}  # fmt: skip
CLAUDE: dict[str, tuple[dict[str, Any], str]] = {
    "no messages": ({"messages": ...}, "messages"),
    "null messages": ({"messages": None}, "messages"),
    "no message": ({"messages": []}, "messages"),
    "a number as message": ({"messages": [1]}, "messages"),
    "a number as role": ({"messages": [{"role": 1, "content": "x"}]}, "messages"),
    "an unknown role": ({"messages": [{"role": "king", "content": "x"}]}, "messages"),
    "a number as content": ({"messages": [{"role": "user", "content": 1}]}, "messages"),
    "an unknown part": ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages"),
    "text as temperature": ({"temperature": "hot"}, "temperature"),
    "text as tools": ({"tools": "f"}, "tools"),
    "a number as tool": ({"tools": [1]}, "tools"),
    "a number as tool choice": ({"tool_choice": 1}, "tool_choice"),
    "a negative cap": ({"max_tokens": -1}, "max_tokens"),
    "no tokens": ({"max_tokens": 0}, "max_tokens"),
    "half a token": ({"max_tokens": 1.5}, "max_tokens"),
    "text as cap": ({"max_completion_tokens": "many"}, "max_completion_tokens"),
    "true as cap": ({"max_tokens": True}, "max_tokens"),
    "a number as stop": ({"stop": 5}, "stop"),
    "two answers": ({"n": 2}, "n"),
    "an unknown format": ({"response_format": {"type": "xml"}}, "response_format"),
    "an unknown field": ({"colour": "red"}, "colour"),
}
"""What a provider that is translated for needs to understand; the same dialect passes it on."""


def is_refusal(answer: httpx2.Response, status: int, code: str, says: str, param: str | None) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    parsed = answer.json()
    assert list(parsed) == ["error"]
    error = parsed["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert (error["code"], error["param"]) == (code, param), error
    assert says in error["message"], error
    assert len(answer.content) < 2000


async def left_nothing(gateway: Running, faults: FaultProvider, key: str) -> None:
    """No upstream call, nothing spent, the only slot free, the budget whole: one call as good as the first works."""
    assert not faults.requests
    assert await gateway.spend(key) == 0
    answer = await gateway.chat(key, body())
    assert answer.status_code == 200, answer.text
    assert len(faults.requests) == 1


async def one_call_key(gateway: Running, **more: Any) -> str:
    """A key with one slot and a budget that covers one call at a time, and little more."""
    return await gateway.mint(max_parallel_requests=1, **({"max_budget": 0.0002} | more))


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_body_is_refused(name: str, gateway: Running, faults: FaultProvider) -> None:
    bad = BAD[name]
    key = await one_call_key(gateway)
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"} | bad.headers
    answer = await gateway.http.post(gateway.url + PATH, content=bad.content, headers=headers)
    is_refusal(answer, bad.status, bad.code, bad.says, bad.param)
    await left_nothing(gateway, faults, key)


@pytest.mark.parametrize("name", CLAUDE)
async def test_a_value_the_provider_has_no_place_for_is_refused_by_name(
    name: str, gateway: Running, faults: FaultProvider
) -> None:
    fields, param = CLAUDE[name]
    key = await one_call_key(gateway, max_budget=0.003)
    payload = {name: value for name, value in (body("claude") | fields).items() if value is not ...}
    answer = await gateway.chat(key, payload)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert str(error["param"]).startswith(param), error
    assert param in error["message"]
    await left_nothing(gateway, faults, key)


PLACES = {
    "schema": '"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": DEEP}}',
    "tool": '"tools": [{"type": "function", "function": {"name": "f", "parameters": DEEP}}]',
    "content": '"messages": [{"role": "user", "content": [{"type": "text", "text": DEEP}]}]',
    "metadata": '"metadata": DEEP',
    "tool arguments": '"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": '
    '{"name": "f", "arguments": ESCAPED}}]}, {"role": "tool", "tool_call_id": "c", "content": "x"}]',
}
"""Where a client may put JSON of its own."""


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("model", MODELS)
async def test_what_json_may_nest_never_breaks_a_translation(
    model: str, place: str, gateway: Running, faults: FaultProvider
) -> None:
    key = await gateway.mint(max_parallel_requests=1, max_budget=1)
    headers = {"authorization": f"Bearer {key}"}
    for depth in (100, 330, 480, 900, 5000):
        inner = '{"type": "object", "properties": {"a": ' * depth + '{"type": "string"}' + "}}" * depth
        part = PLACES[place].replace("DEEP", inner).replace("ESCAPED", json.dumps(inner))
        content = json.dumps(body(model))[:-1] + f", {part}}}"
        faults.reset()
        # Answered without a look at the body, which the fake's own parser could not read.
        faults.script(Fault("status", body=chat_body(usage=True) if model == "gpt" else message_body(usage=True)))
        answer = await gateway.http.post(gateway.url + PATH, content=content, headers=headers)
        assert answer.status_code in (200, 400), (depth, answer.text)
        assert len(faults.requests) == (answer.status_code == 200), depth
        faults.reset()
        await gateway.is_free(key)


NUMBERS = ("1" + "0" * 400, "-1" + "0" * 400, "1e400", "1e-400", "18446744073709551616", "9" * 5000, "-0", "0.1e1")


@pytest.mark.parametrize("name", ["max_tokens", "n", "seed", "temperature", "max_completion_tokens"])
@pytest.mark.parametrize("model", MODELS)
async def test_extreme_numbers_are_passed_or_refused(
    model: str, name: str, gateway: Running, faults: FaultProvider
) -> None:
    key = await gateway.mint(max_parallel_requests=1, max_budget=1, tpm_limit=1_000_000)
    headers = {"authorization": f"Bearer {key}"}
    for number in NUMBERS:
        faults.reset()
        content = json.dumps(body(model))[:-1] + f', "{name}": {number}}}'
        answer = await gateway.http.post(gateway.url + PATH, content=content, headers=headers)
        assert answer.status_code in (200, 400, 429), (number, answer.text)
        assert "concurrency" not in answer.text, f"a slot is held after {number}"
        assert len(faults.requests) == (answer.status_code == 200)
    await gateway.is_free(key)


async def test_a_field_given_twice_reaches_the_provider_as_it_was_judged(
    gateway: Running, faults: FaultProvider
) -> None:
    key = await one_call_key(gateway)
    content = b'{"model": "nothing", "max_tokens": 60000, "stream": true, ' + VALID[1:-1] + b', "max_tokens": 3}'
    headers = {"authorization": f"Bearer {key}"}
    answer = await gateway.http.post(gateway.url + PATH, content=content, headers=headers)
    assert answer.status_code == 200, answer.text
    sent = faults.requests[0].body
    for name in (b'"model"', b'"max_tokens"', b'"stream"'):
        assert sent.count(name) == 1, sent
    assert faults.requests[0].json()["max_tokens"] == 3


@pytest.mark.parametrize("kind", ["missing", "wrong", "malformed", "basic", "expired", "blocked", "deleted"])
async def test_a_bad_key_is_refused_before_the_body_is_read(kind: str, gateway: Running, faults: FaultProvider) -> None:
    key = await gateway.mint(**({"duration": "1s"} if kind == "expired" else {}))
    if kind in ("blocked", "deleted"):
        path, payload = ("/key/block", {"key": key}) if kind == "blocked" else ("/key/delete", {"keys": [key]})
        await gateway.admin(path, payload)
    token = {
        "missing": "", "wrong": "Bearer sk-" + "a" * 43, "malformed": "Bearer hello", "basic": "Basic c2s6eA==",
    }.get(kind, f"Bearer {key}")  # fmt: skip
    code, says = {
        "missing": ("missing_api_key", "no API key"),
        "expired": ("expired_key", "expired"),
        "blocked": ("key_blocked", "blocked"),
    }.get(kind, ("invalid_api_key", "key"))  # fmt: skip
    headers = {"authorization": token} if token else {}

    async def asked() -> httpx2.Response:
        return await gateway.http.post(gateway.url + PATH, content=b"{not read", headers=headers)

    if kind == "expired":

        async def is_over() -> bool:
            return (await asked()).status_code == 401

        await eventually(is_over)
    is_refusal(await asked(), 401, code, says, None)
    assert not faults.requests


async def test_a_model_the_key_may_not_call_is_refused(gateway: Running, faults: FaultProvider) -> None:
    key = await one_call_key(gateway, models=["gpt"])
    is_refusal(await gateway.chat(key, body("claude")), 403, "model_access_denied", "'claude'", "model")
    await left_nothing(gateway, faults, key)


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/chat", "/v1/chat/completions/", "/v1/nothing", "/chat/completions/x"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_an_unknown_path_is_not_found(path: str, method: str, gateway: Running, faults: FaultProvider) -> None:
    key = await gateway.mint()
    answer = await gateway.http.request(
        method, gateway.url + path, headers={"authorization": f"Bearer {key}"}, content=VALID
    )
    is_refusal(answer, 404, "unknown_path", "/v1/chat/completions", None)
    assert not faults.requests


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
async def test_a_wrong_method_is_refused_with_the_right_one(
    method: str, gateway: Running, faults: FaultProvider
) -> None:
    key = await gateway.mint()
    answer = await gateway.http.request(
        method, gateway.url + PATH, headers={"authorization": f"Bearer {key}"}, content=VALID
    )
    is_refusal(answer, 405, "method_not_allowed", method, None)
    assert answer.headers["allow"] == "POST"
    assert not faults.requests


@pytest.mark.parametrize("method", ["POST", "PUT", "OPTIONS"])
async def test_a_wrong_method_for_the_models_is_refused_in_the_same_form(method: str, gateway: Running) -> None:
    answer = await gateway.http.request(method, gateway.url + "/v1/models")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
    assert answer.json()["error"]["code"] == "method_not_allowed"


BIG = 40 * 1024 * 1024


async def exchange(gateway: Running, head: str, pieces: int, piece: bytes, *, is_patient: bool) -> tuple[bytes, int]:
    """Send a head and up to `pieces` pieces until an answer comes. Gives it, and how many pieces were written.
    `is_patient`: wait for the answer without sending any."""
    reader, writer = await asyncio.open_connection(*gateway.address)
    writer.write(f"POST {gateway.prefix}{PATH} HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n".encode())
    answering = asyncio.ensure_future(reader.readuntil(b"}}"))
    written = 0
    try:
        async with asyncio.timeout(60):
            if is_patient:
                await asyncio.wait({answering})
            try:
                while written < pieces and not answering.done():
                    writer.write(piece)
                    await writer.drain()
                    written += 1
                    await asyncio.sleep(0)
            except ConnectionError:
                pass
            return await answering, written
    finally:
        answering.cancel()
        writer.transport.abort()


@pytest.mark.parametrize("how", ["declared", "declared and sent", "chunked", "chunked without a key"])
async def test_a_body_of_40_mb_is_refused(how: str, gateway: Running, faults: FaultProvider) -> None:
    key = await one_call_key(gateway)
    if gateway.url == IN_PROCESS:
        headers = {"authorization": f"Bearer {key}"} if "without" not in how else {}

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(BIG // 65536):
                yield b"x" * 65536

        content = pieces() if how.startswith("chunked") else b"x" * BIG
        refused = await gateway.http.post(gateway.url + PATH, content=content, headers=headers)
        expected = (401, "missing_api_key") if "without" in how else (413, "body_too_large")
        assert (refused.status_code, refused.json()["error"]["code"]) == expected
        await left_nothing(gateway, faults, key)
        return
    piece = b"x" * 65536
    auth = f"authorization: Bearer {key}\r\n" if "without" not in how else ""
    if how.startswith("chunked"):
        head = f"{auth}transfer-encoding: chunked"
        piece = b"10000\r\n" + piece + b"\r\n"
    else:
        head = f"{auth}content-length: {BIG}"
    # More than fits between here and the gateway, so that it cannot all be under way before the answer comes.
    pieces_there_are = (2 if how.startswith("chunked") else 1) * BIG // 65536
    answer, written = await exchange(gateway, head, pieces_there_are, piece, is_patient=how == "declared")
    status, code = (b"401", b"missing_api_key") if "without" in how else (b"413", b"body_too_large")
    assert answer[9:12] == status
    assert b'"code":"' + code + b'"' in answer
    assert written < pieces_there_are, "the whole body was read"
    await left_nothing(gateway, faults, key) if auth else None


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "9" * 30, "0x10", "1,2"])
async def test_a_nonsensical_length_is_refused(length: str, gateway: Running, faults: FaultProvider) -> None:
    key = await one_call_key(gateway)
    if gateway.url == IN_PROCESS:
        headers = {"authorization": f"Bearer {key}", "content-length": length}
        refused = await gateway.http.post(gateway.url + PATH, content=VALID, headers=headers)
        assert refused.status_code in (400, 413), refused.text
        await left_nothing(gateway, faults, key)
        return
    reader, writer = await asyncio.open_connection(*gateway.address)
    head = f"host: x\r\nauthorization: Bearer {key}\r\ncontent-length: {length}\r\n\r\n"
    writer.write(f"POST {gateway.prefix}{PATH} HTTP/1.1\r\n{head}".encode())
    async with asyncio.timeout(60):
        line = await reader.readline()
    writer.close()
    assert line[9:12] in (b"400", b"413"), line
    await left_nothing(gateway, faults, key)
