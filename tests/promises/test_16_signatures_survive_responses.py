"""Promise 16 for OpenAI's Responses API: a fake of it seals each reasoning item over all that stood before it, and
refuses a turn whose reasoning is missing, changed or elsewhere; the client is the openai SDK, echoes only standard
fields, and believes it speaks chat completions; the gateway is restarted amid the loop.
https://platform.openai.com/docs/guides/reasoning#encrypted-reasoning-items
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

import pytest

from sidecar.simulated import serve
from sidecar.translate.simulate import Plan
from tests.promises.support import PROVIDER_KEY, served
from tests.promises.test_16_signatures_survive_gemini import ask, reply, results
from tests.translate.dialects.responses import assert_openai_takes, event, item_events, response_of

SECRET = b"only the vendor has it"
PLAN = Plan(model="gpt-5-codex", words=[], input_tokens=9, output_tokens=9)


def call(name: str) -> dict[str, Any]:
    return {"type": "function_call", "name": name, "arguments": '{"n":1}'}


def text(said: str, phase: str = "") -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": said} | ({"phase": phase} if phase else {})


THOUGHT: dict[str, Any] = {"type": "reasoning"}
STEPS: list[list[dict[str, Any]]] = [
    [THOUGHT, text("Let me look.", "commentary"), call("look")],
    [THOUGHT, call("look"), THOUGHT, call("measure")],
    [THOUGHT, text("Zürich \U0001f600 first."), call("look"), call("measure")],
    [text("So:", "commentary"), THOUGHT, call("measure")],
    [text("It is four.")],
]


@dataclass
class FakeResponses:
    problems: list[str] = field(default_factory=list)
    seals_checked: int = 0

    def said(self, step: int, before: list[Any]) -> list[dict[str, Any]]:
        """A step's items as they come back in the next request."""
        found: list[dict[str, Any]] = []
        for at, item in enumerate(STEPS[step]):
            if item["type"] == "reasoning":
                plain = json.dumps([before, found], sort_keys=True).encode()
                seal = base64.urlsafe_b64encode(hmac.new(SECRET, plain, hashlib.sha512).digest() * 9).decode()
                summary = [{"type": "summary_text", "text": f"I wonder about step {step}."}]
                item = {**item, "id": f"rs_{step}_{at}", "summary": summary, "encrypted_content": seal}
            elif item["type"] == "function_call":
                item = {**item, "call_id": f"call_{step}_{at}"}
            found.append(item)
        return found

    def problem(self, items: list[Any]) -> str:
        at = step = 0
        while at < len(items):
            if items[at]["type"] == "function_call_output" or items[at].get("role") in ("system", "user"):
                at += 1
                continue
            expected = self.said(step, items[:at])
            if items[at : at + len(expected)] != expected:
                return f"turn {step} is not as it was said"
            self.seals_checked += sum(item["type"] == "reasoning" for item in expected)
            at, step = at + len(expected), step + 1
        return ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        raw = b""
        while (message := await receive())["type"] == "http.request":
            raw += message.get("body", b"")
            if not message.get("more_body"):
                break
        body = json.loads(raw)
        assert scope["path"] == "/v1/responses"
        assert_openai_takes(body)
        assert (body["store"], body["include"]) == (False, ["reasoning.encrypted_content"])
        problem = self.problem(body["input"])
        if problem:
            self.problems.append(problem)
            error = {
                "error": {"message": problem, "type": "invalid_request_error", "code": "invalid_encrypted_content"}
            }
            await reply(send, 400, "application/json", json.dumps(error).encode())
            return
        turns = {item["call_id"].split("_")[1] for item in body["input"] if item["type"] == "function_call"}
        output = [whole(item, at) for at, item in enumerate(self.said(len(turns), body["input"]))]
        if not body.get("stream"):
            answer = response_of(PLAN, output, "completed")
            await reply(send, 200, "application/json", json.dumps(answer).encode())
            return
        pieces = [event("response.created", 0, response=response_of(PLAN, [], "in_progress"))]
        for at, item in enumerate(output):
            pieces += [event(kind, 1, output_index=at, **fields) for kind, fields in item_events(item, at, cut=5)]
        pieces.append(event("response.completed", 2, response=response_of(PLAN, output, "completed")))
        await reply(send, 200, "text/event-stream", b"".join(pieces))


def whole(item: dict[str, Any], at: int) -> dict[str, Any]:
    """An item as it is answered."""
    if item["type"] == "message":
        part = {"type": "output_text", "text": item["content"], "annotations": [], "logprobs": []}
        return {**item, "id": f"msg_{at}", "status": "completed", "content": [part]}
    return {"id": f"fc_{at}", **item, "status": "completed"}


@pytest.fixture
async def fake(anyio_backend: str) -> AsyncIterator[tuple[FakeResponses, str]]:
    found = FakeResponses()
    async with serve(found) as url:
        yield found, url


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_tool_loop_of_five_turns_keeps_encrypted_reasoning_also_after_a_restart(
    fake: tuple[FakeResponses, str], tmp_path: Path, stream: bool
) -> None:
    vendor, url = fake
    deployment = {
        "provider": "openai", "model": "gpt-5-codex", "base_url": f"{url}/v1", "api_key": PROVIDER_KEY,
        "price": {"input": 1, "output": 2},
    }  # fmt: skip
    top = {"models": [{"name": "codex", "deployments": [deployment]}]}
    messages: list[Any] = [{"role": "system", "content": "Be exact."}, {"role": "user", "content": "How many?"}]
    async with served(tmp_path, url, top=top) as running:
        key = await running.mint()
        for _ in range(2):
            answer = await ask(running, key, messages, stream=stream, model="codex")
            messages += [answer, *results(answer)]
    async with served(tmp_path, url, top=top) as running:  # nothing in memory is left
        for _ in range(2):
            answer = await ask(running, key, messages, stream=not stream, model="codex")
            messages += [answer, *results(answer)]
        answer = await ask(running, key, messages, stream=stream, model="codex")
    assert answer == {"role": "assistant", "content": "It is four."}
    assert vendor.problems == []
    assert vendor.seals_checked == 1 + 3 + 4 + 5


def test_the_fake_tells_lost_changed_and_moved_reasoning() -> None:
    vendor = FakeResponses()
    question = [{"type": "message", "role": "user", "content": "How many?"}]
    said = vendor.said(0, question)
    assert vendor.problem([*question, *said]) == ""
    assert vendor.problem([*question, *said[1:]])
    assert vendor.problem([*question, {**said[0], "encrypted_content": "eA"}, *said[1:]])
    assert vendor.problem([*question, said[1], said[0], said[2]])
    assert vendor.problem([*question, *question, *said])
