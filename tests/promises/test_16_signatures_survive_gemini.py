"""Promise 16 for Gemini: a fake Gemini signs the parts of each turn over all that stood before them and refuses a turn
whose signature is missing, changed or elsewhere; the client is the openai SDK and echoes only standard fields; the
gateway is restarted amid the loop. https://ai.google.dev/gemini-api/docs/thought-signatures
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest

from sidecar.simulated import serve
from tests.promises.support import PROVIDER_KEY, Running, served

SECRET = b"only the vendor has it"
OPTIONS = {"gemini": {}, "vertex": {"project": "my-project", "region": "europe-west4"}}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("look", "measure")
]


def sign(before: list[Any], part: dict[str, Any]) -> str:
    plain = json.dumps([before, {k: v for k, v in part.items() if k != "thoughtSignature"}], sort_keys=True).encode()
    return base64.b64encode(hmac.new(SECRET, plain, hashlib.sha512).digest() * 4).decode()


def text(said: str, *, signed: bool = False) -> dict[str, Any]:
    return {"text": said} | ({"thoughtSignature": ""} if signed else {})


def call(name: str, *, signed: bool = False, own_id: str = "") -> dict[str, Any]:
    function = {"name": name, "args": {"n": name}} | ({"id": own_id} if own_id else {})
    return {"functionCall": function} | ({"thoughtSignature": ""} if signed else {})


STEPS: list[list[dict[str, Any]]] = [
    [{"text": "I wonder.", "thought": True}, text("Let me look."), call("look", signed=True)],
    [call("look", signed=True, own_id="fc-1"), call("measure", own_id="fc-2")],  # in parallel: the first is signed
    [text("Zürich \U0001f600 first.", signed=True), call("look", signed=True), call("measure")],
    [text("So:"), text("", signed=True), call("measure", signed=True)],
    [text("It is four.")],
    [call("measure", signed=True)],
    [text("Five.")],
]


@dataclass
class Gemini:
    problems: list[str] = field(default_factory=list)
    signatures_checked: int = 0
    stand_ins: int = 0
    openai_ids: list[str] = field(default_factory=list)

    def check(self, body: dict[str, Any]) -> str:
        before: list[Any] = []
        step = 0
        for turn in body["contents"]:
            if turn["role"] != "model":
                before.append(turn)
                continue
            for part, ours in zip(turn["parts"], self.said(step, before), strict=True):
                given = part.get("thoughtSignature")
                if given == "skip_thought_signature_validator":
                    self.stand_ins += 1
                elif "thoughtSignature" in ours:
                    self.signatures_checked += 1
                    if given != ours["thoughtSignature"]:
                        return (
                            "Function call is missing a thought_signature" if given is None else "Corrupted signature"
                        )
                elif given is not None:
                    return "a signature where there was none"
                if part != {**ours, **({"thoughtSignature": given} if given else {})}:
                    return "the turn is not as it was said"
            before.append(turn)
            step += 1
        return ""

    def said(self, step: int, before: list[Any]) -> list[dict[str, Any]]:
        """The parts of a step that come back, signed over what stands before them."""
        found: list[dict[str, Any]] = []
        for part in STEPS[step]:
            if not part.get("thought"):
                signed = (
                    {**part, "thoughtSignature": sign([*before, *found], part)} if "thoughtSignature" in part else part
                )
                found.append(signed)
        return found

    def answer(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        step = sum(turn["role"] == "model" for turn in body["contents"])
        return [*(part for part in STEPS[step] if part.get("thought")), *self.said(step, body["contents"])]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        raw = b""
        while True:
            message = await receive()
            raw += message.get("body", b"")
            if not message.get("more_body"):
                break
        body = json.loads(raw)
        if scope["path"].endswith("/chat/completions"):
            await reply(send, 200, "application/json", self.as_openai(body))
            return
        problem = self.check(body)
        if problem:
            self.problems.append(problem)
            error = {"error": {"code": 400, "message": problem, "status": "INVALID_ARGUMENT"}}
            await reply(send, 400, "application/json", json.dumps(error).encode())
            return
        parts = self.answer(body)
        if scope["path"].endswith(":streamGenerateContent"):
            chunks = [*(chunk([part]) for part in parts), chunk([{"text": ""}], finish=True)]
            events = b"".join(b"data: " + json.dumps(item).encode() + b"\r\n\r\n" for item in chunks)
            await reply(send, 200, "text/event-stream", events)
        else:
            await reply(send, 200, "application/json", json.dumps(chunk(parts, finish=True), indent=2).encode())

    def as_openai(self, body: dict[str, Any]) -> bytes:
        for message in body["messages"]:
            self.openai_ids += [item["id"] for item in message.get("tool_calls") or []]
        said = {"role": "assistant", "content": "done"}
        counts = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choice = {"index": 0, "message": said, "finish_reason": "stop"}
        return json.dumps(
            {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": counts}
        ).encode()


def chunk(parts: list[dict[str, Any]], *, finish: bool = False) -> dict[str, Any]:
    candidate = {"content": {"role": "model", "parts": parts}, "index": 0} | (
        {"finishReason": "STOP"} if finish else {}
    )
    usage = {"promptTokenCount": 9, "candidatesTokenCount": 9, "totalTokenCount": 18}
    return {"candidates": [candidate], "usageMetadata": usage}


async def reply(send: Any, status: int, kind: str, body: bytes) -> None:
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
async def gemini(anyio_backend: str) -> AsyncIterator[tuple[Gemini, str]]:
    fake = Gemini()
    async with serve(fake) as url:
        yield fake, url


def models(url: str) -> dict[str, Any]:
    common = {"api_key": PROVIDER_KEY, "price": {"input": 1, "output": 2}}
    names = {"gemini": "gemini-3-flash-preview", "vertex": "gemini-3-flash-preview", "openai": "gpt-1"}
    return {
        "models": [
            {
                "name": name,
                "deployments": [
                    {
                        "provider": name,
                        "model": model,
                        "base_url": url if name != "openai" else f"{url}/v1",
                        **common,
                        **OPTIONS.get(name, {}),
                    }
                ],
            }
            for name, model in names.items()
        ]
    }


async def ask(running: Running, key: str, messages: list[Any], *, stream: bool, model: str) -> dict[str, Any]:
    """One turn with the stock SDK; what it gives back are the standard fields, as stock clients keep them."""
    content: str | None
    calls: list[Any]
    async with openai.AsyncOpenAI(api_key=key, base_url=f"{running.url}/v1", max_retries=0) as client:
        if not stream:
            answer = await client.chat.completions.create(model=model, messages=messages, tools=TOOLS)
            message = answer.choices[0].message
            calls = [item.model_dump(include={"id", "type", "function"}) for item in message.tool_calls or []]
            content = message.content
        else:
            content, calls = "", []
            async for part in await client.chat.completions.create(
                model=model, messages=messages, tools=TOOLS, stream=True
            ):
                delta = part.choices[0].delta
                content += delta.content or ""
                for piece in delta.tool_calls or []:
                    if piece.id:
                        assert piece.function is not None
                        function = {"name": piece.function.name, "arguments": ""}
                        calls.append({"id": piece.id, "type": "function", "function": function})
                    assert piece.function is not None
                    calls[piece.index]["function"]["arguments"] += piece.function.arguments or ""
    return {"role": "assistant", "content": content} | ({"tool_calls": calls} if calls else {})


def results(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"role": "tool", "tool_call_id": item["id"], "content": f"result {n}"}
        for n, item in enumerate(answer["tool_calls"])
    ]


@pytest.mark.parametrize("model", OPTIONS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_tool_loop_of_five_turns_keeps_geminis_signatures_also_after_a_restart(
    gemini: tuple[Gemini, str], tmp_path: Path, stream: bool, model: str
) -> None:
    fake, url = gemini
    messages: list[Any] = [{"role": "system", "content": "Be exact."}, {"role": "user", "content": "How many?"}]
    async with served(tmp_path, url, top=models(url)) as running:
        key = await running.mint()
        for _ in range(2):
            answer = await ask(running, key, messages, stream=stream, model=model)
            messages += [answer, *results(answer)]
    async with served(tmp_path, url, top=models(url)) as running:  # nothing in memory is left
        for _ in range(2):
            answer = await ask(running, key, messages, stream=not stream, model=model)
            messages += [answer, *results(answer)]
        answer = await ask(running, key, messages, stream=stream, model=model)
        assert answer == {"role": "assistant", "content": "It is four."}
        messages += [answer, {"role": "user", "content": "And now?"}]
        answer = await ask(running, key, messages, stream=stream, model=model)
        messages += [answer, *results(answer)]
        assert (await ask(running, key, messages, stream=stream, model=model))["content"] == "Five."
    assert fake.problems == []
    assert fake.stand_ins == 0
    assert fake.signatures_checked == 1 + 2 + 4 + 6 + 6 + 7


def test_the_fake_tells_a_lost_and_a_changed_signature() -> None:
    fake = Gemini()
    question = {"role": "user", "parts": [{"text": "How many?"}]}
    said = [part for part in fake.answer({"contents": [question]}) if not part.get("thought")]
    assert fake.check({"contents": [question, {"role": "model", "parts": said}]}) == ""
    lost = [{name: value for name, value in part.items() if name != "thoughtSignature"} for part in said]
    assert "missing" in fake.check({"contents": [question, {"role": "model", "parts": lost}]})
    changed = [*said[:-1], {**said[-1], "thoughtSignature": "eA=="}]
    assert "Corrupted" in fake.check({"contents": [question, {"role": "model", "parts": changed}]})
    assert "Corrupted" in fake.check({"contents": [question, question, {"role": "model", "parts": said}]})


async def test_the_loop_goes_on_with_another_provider_and_back(gemini: tuple[Gemini, str], tmp_path: Path) -> None:
    fake, url = gemini
    messages: list[Any] = [{"role": "user", "content": "How many?"}]
    async with served(tmp_path, url, top=models(url)) as running:
        key = await running.mint()
        for _ in range(2):
            answer = await ask(running, key, messages, stream=True, model="gemini")
            messages += [answer, *results(answer)]
        assert (await ask(running, key, messages, stream=False, model="openai"))["content"] == "done"
        assert fake.openai_ids[1:] == ["fc-1", "fc-2"]
        assert all(len(given) <= 40 for given in fake.openai_ids)
        assert fake.problems == []
        answer = await ask(running, key, messages, stream=False, model="gemini")
        assert answer["tool_calls"][0]["function"]["name"] == "look"
        assert (fake.problems, fake.stand_ins) == ([], 0)
        # On Vertex AI these signatures are another platform's: the first call of each turn says it has none.
        await ask(running, key, messages[:3], stream=False, model="vertex")
        assert (fake.problems, fake.stand_ins) == ([], 1)
