"""*Cost equals the price sheet*, to the nano-dollar: usages as the vendors send them, whole and streamed, against costs
worked out by hand from the vendors' pages – cache reads, cache writes of both lifetimes, reasoning, tiers by the length
of the input, audio, batch rates, and halves of a nano-dollar.

Price sheets (USD per million tokens):
https://platform.claude.com/docs/en/about-claude/pricing, https://platform.openai.com/docs/pricing,
https://platform.openai.com/docs/models/gpt-audio
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest

from sidecar.asgi import Receive, Scope, Send
from sidecar.simulated import serve
from sidecar.spend.price_loader import load_price
from tests.promises.support import MASTER, PROVIDER_KEY, Running, body, eventually, served

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class Golden:
    """`usd` is the sum written beside it. `price`: instead of the bundled list's, as an operator would write it."""

    name: str
    provider: str
    model: str
    usage: dict[str, Any]
    usd: str
    price: dict[str, float] | None = None

    @property
    def group(self) -> str:
        return self.name.replace(" ", "-").replace(",", "")


def claude(given: int, output: int, *, read: int = 0, short: int = 0, long: int = 0) -> dict[str, Any]:
    return {
        "input_tokens": given,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": short + long,
        "cache_creation": {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": long},
        "output_tokens": output,
        "service_tier": "standard",
    }


def chat(
    prompt: int, completion: int, *, cached: int = 0, reasoning: int = 0, audio_in: int = 0, audio_out: int = 0
) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": audio_in},
        "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": audio_out},
    }


SONNET, HAIKU = "claude-sonnet-4-5", "claude-haiku-4-5"
CASES = [
    # 1021 × 3 + 14336 × 0.30 + 2051 × 3.75 + 777 × 6 + 503 × 15
    Golden("cache read and writes", "anthropic", SONNET, claude(1021, 503, read=14_336, short=2051, long=777),
           "0.02726205"),
    # 2051 × 3.75, told without the breakdown: the 5-minute kind
    Golden("cache write without lifetime", "anthropic", SONNET,
           {"input_tokens": 0, "cache_creation_input_tokens": 2051, "output_tokens": 0}, "0.00769125"),
    # 150000 × 3 + 50000 × 0.30 + 7 × 15: the last token before the long-context rates
    Golden("claude at the tier", "anthropic", SONNET, claude(150_000, 7, read=50_000), "0.465105"),
    # 150001 × 6 + 50000 × 0.60 + 7 × 22.50: cached tokens count for the tier, and all of it costs more
    Golden("claude above the tier", "anthropic", SONNET, claude(150_001, 7, read=50_000), "0.9301635"),
    # 37 × 1 + 1291 × 5: thinking is part of the output and costs the same
    Golden("claude thinking", "anthropic", HAIKU,
           claude(37, 1291) | {"output_tokens_details": {"thinking_tokens": 1024}}, "0.006492"),
    # 1 × 0.10 + 1 × 5
    Golden("one cached token", "anthropic", HAIKU, claude(0, 1, read=1), "0.0000051"),
    # 86 × 2.50 + 1920 × 1.25 + 300 × 10
    Golden("gpt-4o cached", "openai", "gpt-4o", chat(2006, 300, cached=1920), "0.005615"),
    # 12 × 0.15 + 7 × 0.075 + 10 × 0.60
    Golden("gpt-4o-mini cached", "openai", "gpt-4o-mini", chat(19, 10, cached=7), "0.000008325"),
    # 75 × 2 + 1186 × 8, of which 1024 are reasoning
    Golden("o3 reasoning", "openai", "o3", chat(75, 1186, reasoning=1024), "0.009638"),
    # 23 × 1.25 + 9984 × 0.125 + 400 × 10, of which 192 are reasoning
    Golden("gpt-5 cached and reasoning", "openai", "gpt-5", chat(10_007, 400, cached=9984, reasoning=192),
           "0.00527675"),
    # text 35 × 2.50 + audio 102 × 32; text 42 × 10 + audio 164 × 64
    Golden("audio in and out", "openai", "gpt-audio", chat(137, 206, audio_in=102, audio_out=164), "0.0142675"),
    # 271000 × 2.50 + 1000 × 0.25 + 3 × 15
    Golden("gpt-5.4 at the tier", "openai", "gpt-5.4", chat(272_000, 3, cached=1000), "0.677795"),
    # 271001 × 5 + 1000 × 0.50 + 3 × 22.50
    Golden("gpt-5.4 above the tier", "openai", "gpt-5.4", chat(272_001, 3, cached=1000), "1.3555725"),
    # the batch column: half of each rate. 86 × 1.25 + 1920 × 0.625 + 300 × 5
    Golden("batch", "openai", "gpt-4o", chat(2006, 300, cached=1920), "0.0028075",
           {"input": 1.25, "output": 5, "cache_read": 0.625}),
    # 12 × 0.075 + 7 × 0.0375 + 10 × 0.30 = 4162.5 nano-dollars: half to even, once
    Golden("half a nano-dollar", "openai", "gpt-4o-mini", chat(19, 10, cached=7), "0.000004162",
           {"input": 0.075, "output": 0.3, "cache_read": 0.0375}),
]  # fmt: skip
BY_MODEL_AND_PATH = {case.group: case for case in CASES}


class Vendor:
    """Answers with the usage of the case named in the message, in the dialect of the path."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        content = b""
        while (message := await receive())["type"] == "http.request":
            content += message.get("body", b"")
            if not message.get("more_body", False):
                break
        asked = json.loads(content)
        found = asked["messages"][0]["content"]
        text = found if isinstance(found, str) else found[0]["text"]
        usage = BY_MODEL_AND_PATH[text].usage
        is_claude = scope["path"].endswith("/messages")
        if asked.get("stream"):
            kind, data = b"text/event-stream", (_message_events if is_claude else _chat_events)(usage)
        else:
            kind, data = b"application/json", json.dumps((_message if is_claude else _completion)(usage)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": data, "more_body": False})


def _message(usage: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "m", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
        "stop_sequence": None, "content": [{"type": "text", "text": "hi"}], "usage": usage,
    }  # fmt: skip


def _message_events(usage: dict[str, Any]) -> bytes:
    """Input counts come first, the output's count last and cumulative."""
    start = _message({**usage, "output_tokens": 1}) | {"content": [], "stop_reason": None}
    events = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {name: usage[name] for name in ("output_tokens", "output_tokens_details") if name in usage},
        },
        {"type": "message_stop"},
    ]
    return b"".join(b"event: %s\ndata: %s\n\n" % (str(e["type"]).encode(), json.dumps(e).encode()) for e in events)


def _completion(usage: dict[str, Any]) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


def _chat_events(usage: dict[str, Any]) -> bytes:
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    choices = [
        [{"index": 0, "delta": {"role": "assistant", "content": "hi"}, "finish_reason": None}],
        [{"index": 0, "delta": {}, "finish_reason": "stop"}],
    ]
    chunks = [*({**head, "choices": c} for c in choices), {**head, "choices": [], "usage": usage}]
    return b"".join(b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"


@pytest.fixture(scope="module")
async def priced(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """A gateway with one model per case, priced from the bundled list unless the case says otherwise."""
    async with serve(Vendor()) as url:
        models = []
        for case in CASES:
            deployment: dict[str, Any] = {"provider": case.provider, "model": case.model, "api_key": PROVIDER_KEY}
            deployment["base_url"] = url if case.provider == "anthropic" else f"{url}/v1"
            deployment["max_output_tokens"] = 4096
            if case.price is not None:
                deployment["price"] = case.price
            models.append({"name": case.group, "deployments": [deployment]})
        async with served(tmp_path_factory.mktemp("priced"), url, top={"models": models}) as running:
            yield running


async def exact(running: Running, path: str, **query: Any) -> Any:
    answer = await running.http.get(running.url + path, headers={"authorization": f"Bearer {MASTER}"}, params=query)
    assert answer.status_code == 200, answer.text
    return json.loads(answer.text, parse_float=Decimal)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_call_costs_what_the_sheet_says(priced: Running, case: Golden, stream: bool) -> None:
    key = await priced.mint()
    asked = body(case.group, stream=stream) | {"messages": [{"role": "user", "content": case.group}]}
    answer = await priced.chat(key, asked)
    assert answer.status_code == 200, answer.text
    if not stream:
        assert Decimal(answer.headers["x-sidecar-cost-usd"]) == Decimal(case.usd)
    await priced.rows(key, at_least=1)
    (row,) = (await exact(priced, "/spend/logs", key=key))["data"]
    assert (Decimal(row["spend"]), row["status"]) == (Decimal(case.usd), "settled")


def test_a_model_for_audio_whose_audio_has_no_price_is_unpriced_not_cheap() -> None:
    """At the text's rate a minute of speech would cost a sixteenth of what OpenAI bills for it ($40 and $80):
    https://platform.openai.com/docs/models/gpt-4o-audio-preview"""
    for provider, model in (("openai", "gpt-4o-audio-preview"), ("openrouter", "openai/gpt-audio")):
        price = load_price(provider, model)
        assert price.status == "unpriced" or (price.rates.audio_input and price.rates.audio_output), model
    assert load_price("openai", "gpt-audio").status == "priced"


async def test_fifty_calls_cost_fifty_times_as_much(priced: Running) -> None:
    """No sum drifts: the ledger adds integers, the key's spend is their sum."""
    case = next(case for case in CASES if case.name == "half a nano-dollar")
    key = await priced.mint()
    asked = body(case.group) | {"messages": [{"role": "user", "content": case.group}]}
    for _ in range(50):
        assert (await priced.chat(key, asked)).status_code == 200
    await priced.rows(key, at_least=50)

    async def is_summed() -> bool:
        info = await exact(priced, "/key/info", key=key)
        return bool(Decimal(info["info"]["spend"]) == 50 * Decimal(case.usd))

    await eventually(is_summed, name=lambda: "the key's spend")
