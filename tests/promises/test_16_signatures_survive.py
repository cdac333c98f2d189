"""Promise 16: signatures survive a stock client. A fake Claude signs each thinking block over all that stood before it
and refuses a turn whose block is missing, changed, or follows another prefix; the client is the openai SDK and echoes
only standard fields; the gateway is restarted amid the loop."""

from __future__ import annotations

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
from tests.promises.support import Running, served

SECRET = b"only the vendor has it"
THINKING_MODELS = {"deployment": {"model": "claude-sonnet-4-5", "max_output_tokens": 8192}}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("look", "measure")
]
WORDS = " ".join(f"then I considered case {n} of the matter," for n in range(200))


def sign(prefix: Any, text: str) -> str:
    plain = json.dumps([prefix, text], sort_keys=True).encode()
    return hmac.new(SECRET, plain, hashlib.sha512).hexdigest() * 4


@dataclass
class Claude:
    """Speaks Anthropic's Messages and, for the fail-over, OpenAI's chat. `steps` are the blocks of each answer."""

    steps: list[list[str]]
    problems: list[str] = field(default_factory=list)
    blocks_checked: int = 0
    openai_ids: list[str] = field(default_factory=list)

    def check(self, body: dict[str, Any]) -> str:
        """What is wrong with a request, in words."""
        before: list[Any] = [body.get("system"), body.get("tools")]
        for turn in body["messages"]:
            content = turn["content"]
            calls = turn["role"] == "assistant" and any(block["type"] == "tool_use" for block in content)
            if calls and not content[0]["type"].endswith("thinking"):
                return f"expected thinking, but found {content[0]['type']}"
            for block in content:
                if block["type"] == "thinking":
                    self.blocks_checked += 1
                    if block["signature"] != sign(before, block["thinking"]):
                        return "invalid signature in thinking block"
                elif block["type"] == "redacted_thinking":
                    self.blocks_checked += 1
                    if block["data"] != sign(before, "redacted"):
                        return "invalid data in redacted_thinking block"
                before = [*before, turn["role"], block]
        return ""

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        turns = body["messages"]
        step = sum(turn["role"] == "assistant" for turn in turns)
        prefix: list[Any] = [body.get("system"), body.get("tools")]
        for turn in turns:
            for block in turn["content"]:
                prefix = [*prefix, turn["role"], block]
        content: list[Any] = []
        for number, kind in enumerate(self.steps[step]):
            if kind == "thinking":
                text = f"step {step}.{number}: {WORDS}"
                block = {"type": "thinking", "thinking": text, "signature": sign(prefix, text)}
            elif kind == "redacted":
                block = {"type": "redacted_thinking", "data": sign(prefix, "redacted")}
            elif kind in ("look", "measure"):
                block = {"type": "tool_use", "id": f"toolu_{step}_{number}", "name": kind, "input": {"n": step}}
            else:
                block = {"type": "text", "text": kind}
            content.append(block)
            prefix = [*prefix, "assistant", block]
        stop = "tool_use" if content[-1]["type"] == "tool_use" else "end_turn"
        return {
            "id": f"msg_{step}", "type": "message", "role": "assistant", "model": body["model"], "content": content,
            "stop_reason": stop, "stop_sequence": None, "usage": {"input_tokens": 9, "output_tokens": 9},
        }  # fmt: skip

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
            await self.reply(send, 200, "application/json", self.as_openai(body))
            return
        problem = self.check(body)
        if problem:
            self.problems.append(problem)
            error = {"type": "error", "error": {"type": "invalid_request_error", "message": problem}}
            await self.reply(send, 400, "application/json", json.dumps(error).encode())
            return
        answer = self.answer(body)
        if body.get("stream"):
            await self.reply(send, 200, "text/event-stream", b"".join(events(answer)))
        else:
            await self.reply(send, 200, "application/json", json.dumps(answer).encode())

    def as_openai(self, body: dict[str, Any]) -> bytes:
        for message in body["messages"]:
            self.openai_ids += [call["id"] for call in message.get("tool_calls") or []]
            self.openai_ids += [message["tool_call_id"]] if "tool_call_id" in message else []
        said = {"role": "assistant", "content": "done"}
        choice = {"index": 0, "message": said, "finish_reason": "stop"}
        counts = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return json.dumps(
            {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": counts}
        ).encode()

    async def reply(self, send: Any, status: int, kind: str, body: bytes) -> None:
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def events(answer: dict[str, Any]) -> list[bytes]:
    """A message as its stream."""
    found: list[dict[str, Any]] = [{"type": "message_start", "message": {**answer, "content": [], "stop_reason": None}}]
    for index, block in enumerate(answer["content"]):
        kind = block["type"]
        start, deltas = {**block}, []
        if kind == "thinking":
            start |= {"thinking": "", "signature": ""}
            half = len(block["thinking"]) // 2
            parts = (block["thinking"][:half], block["thinking"][half:])
            deltas = [{"type": "thinking_delta", "thinking": part} for part in parts]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        elif kind == "text":
            start |= {"text": ""}
            deltas = [{"type": "text_delta", "text": letter} for letter in block["text"]]
        elif kind == "tool_use":
            start |= {"input": {}}
            deltas = [{"type": "input_json_delta", "partial_json": json.dumps(block["input"])}]
        found.append({"type": "content_block_start", "index": index, "content_block": start})
        found += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        found.append({"type": "content_block_stop", "index": index})
    found += [
        {"type": "message_delta", "delta": {"stop_reason": answer["stop_reason"]}, "usage": answer["usage"]},
        {"type": "message_stop"},
    ]
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in found]


STEPS = [
    ["thinking", "Let me look.", "look"],
    ["thinking", "redacted", "look", "measure"],
    ["thinking", "First this.", "look", "thinking", "Then that.", "measure"],
    ["redacted", "measure"],
    ["thinking", "It is four."],
    ["thinking", "Once more.", "measure"],
    ["thinking", "Five."],
]


@pytest.fixture
async def claude(anyio_backend: str) -> AsyncIterator[tuple[Claude, str]]:
    fake = Claude(STEPS)
    async with serve(fake) as url:
        yield fake, url


async def ask(
    running: Running, key: str, messages: list[Any], *, stream: bool, model: str = "claude"
) -> dict[str, Any]:
    """One turn with the stock SDK; what it gives back are the standard fields, as stock clients keep them."""
    options: dict[str, Any] = {"reasoning_effort": "low"} if model == "claude" else {}
    async with openai.AsyncOpenAI(api_key=key, base_url=f"{running.url}/v1", max_retries=0) as client:
        if not stream:
            answer = await client.chat.completions.create(model=model, messages=messages, tools=TOOLS, **options)
            message = answer.choices[0].message
            calls = [call.model_dump(include={"id", "type", "function"}) for call in message.tool_calls or []]
            content = message.content
        else:
            content, calls = "", []
            chunks = await client.chat.completions.create(
                model=model, messages=messages, tools=TOOLS, stream=True, **options
            )
            async for chunk in chunks:
                delta = chunk.choices[0].delta
                content += delta.content or ""
                for part in delta.tool_calls or []:
                    if part.id:
                        function = {"name": part.function.name, "arguments": ""}
                        calls.append({"id": part.id, "type": "function", "function": function})
                    calls[part.index]["function"]["arguments"] += part.function.arguments or ""
    return {"role": "assistant", "content": content} | ({"tool_calls": calls} if calls else {})


def results(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"role": "tool", "tool_call_id": call["id"], "content": f"result {n}"}
        for n, call in enumerate(answer["tool_calls"])
    ]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_tool_loop_of_five_turns_keeps_claudes_thinking_also_after_a_restart(
    claude: tuple[Claude, str], tmp_path: Path, stream: bool
) -> None:
    fake, url = claude
    messages: list[Any] = [{"role": "system", "content": "Be exact."}, {"role": "user", "content": "How many?"}]
    async with served(tmp_path, url, **THINKING_MODELS) as running:
        key = await running.mint()
        for _ in range(2):
            answer = await ask(running, key, messages, stream=stream)
            messages += [answer, *results(answer)]
    async with served(tmp_path, url, **THINKING_MODELS) as running:  # nothing in memory is left
        for _ in range(2):
            answer = await ask(running, key, messages, stream=not stream)
            messages += [answer, *results(answer)]
        answer = await ask(running, key, messages, stream=stream)
        assert answer == {"role": "assistant", "content": "It is four."}
        messages += [answer, {"role": "user", "content": "And now?"}]
        answer = await ask(running, key, messages, stream=stream)
        messages += [answer, *results(answer)]
        assert (await ask(running, key, messages, stream=stream))["content"] == "Five."
    assert fake.problems == []
    assert fake.blocks_checked == 1 + 3 + 5 + 6 + 6 + 7


async def test_without_the_ids_the_fake_refuses(claude: tuple[Claude, str], tmp_path: Path) -> None:
    """The fake can tell: with the thinking changed by one letter the turn is refused."""
    fake, _ = claude
    question = [{"role": "user", "content": [{"type": "text", "text": "How many?"}]}]
    body = {"model": "m", "messages": question}
    content = fake.answer(body)["content"]
    said = [{"role": "assistant", "content": content}]
    assert fake.check({**body, "messages": question + said}) == ""
    changed = [{"role": "assistant", "content": [{**content[0], "thinking": "x"}, *content[1:]]}]
    assert "invalid signature" in fake.check({**body, "messages": question + changed})
    assert "expected thinking" in fake.check({**body, "messages": [*question, {**said[0], "content": content[1:]}]})
    assert "invalid signature" in fake.check({**body, "messages": [*question, *question, *said]})


async def test_the_loop_goes_on_with_a_provider_of_openais_dialect(claude: tuple[Claude, str], tmp_path: Path) -> None:
    fake, url = claude
    messages: list[Any] = [{"role": "user", "content": "How many?"}]
    async with served(tmp_path, url, **THINKING_MODELS) as running:
        key = await running.mint()
        for _ in range(3):
            answer = await ask(running, key, messages, stream=True)
            messages += [answer, *results(answer)]
        assert max(len(call["id"]) for call in answer["tool_calls"]) > 500
        assert (await ask(running, key, messages, stream=False, model="gpt"))["content"] == "done"
        assert fake.openai_ids == [
            *("toolu_0_2", "toolu_0_2", "toolu_1_2", "toolu_1_3", "toolu_1_2", "toolu_1_3"),
            *("toolu_2_2", "toolu_2_5", "toolu_2_2", "toolu_2_5"),
        ]
        answer = await ask(running, key, messages, stream=False)  # and back again
        assert answer["tool_calls"][0]["function"]["name"] == "measure"
    assert fake.problems == []
