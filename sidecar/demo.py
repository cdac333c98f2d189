"""`sidecar demo`: the main job end to end on embedded defaults, no key and no outside server needed.

A simulated Anthropic-dialect provider and the gateway run on loopback; the official openai SDK calls it with a virtual
key until its rate limit, then its budget, refuse. Everything lives in this process and a temporary folder, and is gone
at the end.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import tempfile
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table

from sidecar.app import build_app
from sidecar.config import load_config
from sidecar.simulated import SimulatedProvider, serve

CONFIG = """\
auth: {{master_key: "{master_key}"}}
store: {{database_url: "sqlite:///{folder}/sidecar.db", journal_dir: "{folder}/journal"}}
models:
  - name: claude
    deployments:
      - {{provider: anthropic, model: sim-echo, api_key: sk-ant-simulated, base_url: "{provider}",
         price: {{input: 3, output: 15}}, max_output_tokens: 1024}}
  - name: claude-tools
    deployments:
      - {{provider: anthropic, model: sim-tools, api_key: sk-ant-simulated, base_url: "{provider}",
         price: {{input: 0.25, output: 1.25}}, max_output_tokens: 1024}}
"""

RPM_LIMIT = 6
MAX_BUDGET = Decimal("0.0015")
MOST_CALLS = 100
LINE = 26
"""Columns that fit into one of three panels of a terminal 80 wide."""
KEY_FIELDS = ("key_name", "key_alias", "models", "max_budget", "rpm_limit", "spend")

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as the provider got it."""

    path: str
    credential: str
    body: dict[str, Any]


def main() -> int:
    """Runs the demo; 0 if every step went as it should."""
    try:
        import openai  # noqa: F401
    except ImportError:
        raise SystemExit("the demo calls the gateway with the openai SDK: run `make demo`, or install openai") from None
    with tempfile.TemporaryDirectory(prefix="sidecar-demo-") as folder:
        asyncio.run(_demo(Console(), Path(folder)))
    return 0


async def _demo(console: Console, folder: Path) -> None:
    seen: list[Seen] = []

    def note(path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        seen.append(Seen(path, dict(headers).get(b"x-api-key", b"").decode("latin-1"), json.loads(body)))

    master_key = "sk-demo-master-" + secrets.token_urlsafe(24)
    async with serve(SimulatedProvider(note)) as provider_url:
        file = folder / "sidecar.yaml"
        file.write_text(CONFIG.format(master_key=master_key, folder=folder, provider=provider_url))
        gateway = build_app(load_config(file, {}), migrate=True)
        async with serve(gateway) as url:
            console.rule("[bold]sidecar: an LLM gateway as a stack of ASGI middlewares")
            console.print(f"gateway    {url}", highlight=False)
            console.print(f"provider   {provider_url}  (simulated, speaks Anthropic's dialect)", highlight=False)
            console.print(f"database   SQLite in {folder}; limits and budgets in memory", highlight=False)
            await _tour(console, url, master_key, seen)
    console.print("\n[green]Done.[/] The servers are stopped, the folder is removed.")


async def _tour(console: Console, url: str, master_key: str, seen: list[Seen]) -> None:
    from openai import AsyncOpenAI, RateLimitError

    admin = httpx2.AsyncClient(base_url=url, headers={"authorization": f"Bearer {master_key}"}, timeout=60)
    try:
        _title(console, "1  A virtual key, made with the admin API")
        wanted: dict[str, Any] = {"key_alias": "demo", "models": ["claude", "claude-tools"]}
        wanted |= {"max_budget": float(MAX_BUDGET), "rpm_limit": RPM_LIMIT}
        key = await _admin(admin, "/key/generate", wanted)
        shown = {"key": f"{key['key'][:7]}… (shown this once)", **{name: key[name] for name in KEY_FIELDS}}
        _side_by_side(console, ("admin sent POST /key/generate", wanted), ("admin received", shown))

        client = AsyncOpenAI(api_key=key["key"], base_url=f"{url}/v1", max_retries=0)
        try:
            ask = await _calls(console, client, seen)
            answered = 3

            _title(console, f"5  On, until the rate limit refuses: {RPM_LIMIT} requests per minute")
            answered += _refusal(console, *await _until_refused(client, ask, RateLimitError))

            _title(console, f"6  The limit raised, on, until the budget refuses: ${MAX_BUDGET}")
            await _admin(admin, "/key/update", {"key": key["token"], "rpm_limit": 10_000})
            answered += _refusal(console, *await _until_refused(client, ask, RateLimitError))
        finally:
            await client.close()

        _title(console, "7  The ledger, and the key's spend")
        await _ledger(console, admin, key["token"], answered)
    finally:
        await admin.aclose()


async def _calls(console: Console, client: Any, seen: list[Seen]) -> dict[str, Any]:
    """A plain, a streamed and a tool call, each as sent, as the provider got it, and as it came back."""
    _title(console, "2  A chat completion: OpenAI's format in, Anthropic's out")
    ask = {"model": "claude", "messages": [{"role": "user", "content": "Say these few words again."}], "max_tokens": 32}
    raw = await client.chat.completions.with_raw_response.create(**ask)
    _exchange(console, ask, seen[-1], _short(json.loads(raw.content)))
    console.print(f"  sent      POST /v1/chat/completions  authorization: Bearer {client.api_key[:7]}… (virtual key)")
    console.print(f"  provider  POST {seen[-1].path}  x-api-key: {seen[-1].credential} (of the configuration)")
    console.print(f"  received  x-sidecar-cost-usd: [bold]{raw.headers['x-sidecar-cost-usd']}[/]")

    _title(console, "3  The same, streamed")
    ask_stream = {**ask, "stream": True, "stream_options": {"include_usage": True}}
    chunks: list[Any] = []
    async for chunk in await client.chat.completions.create(**ask_stream):
        chunks += [choice.delta.model_dump(exclude_none=True, exclude_unset=True) for choice in chunk.choices]
        chunks += [{"finish_reason": c.finish_reason} for c in chunk.choices if c.finish_reason]
        if chunk.usage is not None:
            chunks.append({"usage": {"total_tokens": chunk.usage.total_tokens}})
    _exchange(console, ask_stream, seen[-1], [chunk for chunk in chunks if chunk], "client got, by chunk")

    _title(console, "4  A tool call")
    question = [{"role": "user", "content": "Weather?"}]
    ask_tool = {"model": "claude-tools", "messages": question, "tools": [WEATHER], "max_tokens": 32}
    raw = await client.chat.completions.with_raw_response.create(**ask_tool)
    _exchange(console, ask_tool, seen[-1], json.loads(raw.content)["choices"][0])
    return ask


async def _admin(admin: httpx2.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = await admin.post(path, json=body)
    if answer.status_code != 200:
        raise SystemExit(answer.text)
    return answer.json()  # type: ignore[no-any-return]


async def _until_refused(client: Any, ask: dict[str, Any], refusal: type[Exception]) -> tuple[int, Any]:
    """How many calls passed, and the error that ended them."""
    for passed in range(MOST_CALLS):
        try:
            await client.chat.completions.create(**ask)
        except refusal as error:
            return passed, error
    raise SystemExit(f"the gateway did not refuse after {MOST_CALLS} calls")


def _refusal(console: Console, passed: int, error: Any) -> int:
    console.print(f"  {passed} more calls answered, then [red]{error.status_code}[/] {error.body['code']}:")
    console.print(f"  {error.body['message']}")
    retry = error.response.headers.get("retry-after")
    console.print(f"  retry-after: {retry} s" if retry else "  no retry-after: this budget has no next window")
    return passed


async def _ledger(console: Console, admin: httpx2.AsyncClient, token: str, answered: int) -> None:
    for _ in range(200):
        rows = (await admin.get("/spend/logs", params={"key": token, "limit": 1000})).json()["data"]
        info = (await admin.get("/key/info", params={"key": token})).json()
        total = sum((_usd(row["spend"]) for row in rows), Decimal(0))
        spend = _usd(info["info"]["spend"])
        if len(rows) >= answered and total == spend:
            break
        await asyncio.sleep(0.05)  # the journal is shipped to the database in batches
    table = Table("exchange", "model", "status", "tokens in", "out", "USD")
    for row in reversed(rows):
        counts = (str(row["prompt_tokens"]), str(row["completion_tokens"]))
        table.add_row(f"…{row['exchange_id'][-12:]}", row["model"], row["status"], *counts, f"{_usd(row['spend']):f}")
    console.print(table)
    console.print(f"  {answered} calls answered, {len(rows)} rows")
    agrees = total == spend
    console.print(f"  sum of the rows     [bold]{total:f}[/]")
    console.print(f"  the key's spend     [bold]{spend:f}[/]   {'equal' if agrees else '[red]DIFFERENT[/]'}")
    console.print(
        f"  its budget          [bold]{MAX_BUDGET:f}[/]   {'kept' if spend <= MAX_BUDGET else '[red]OVERRUN[/]'}"
    )
    if not agrees or len(rows) != answered or spend > MAX_BUDGET:
        raise SystemExit(1)


def _usd(number: Any) -> Decimal:
    return Decimal(str(number))


def _title(console: Console, text: str) -> None:
    console.print()
    console.rule(f"[bold]{text}", align="left")


def _exchange(console: Console, sent: dict[str, Any], got: Seen, received: Any, last: str = "client received") -> None:
    sides = [("client sent", sent), ("provider got", got.body), (last, received)]
    _side_by_side(console, *sides)


def _side_by_side(console: Console, *sides: tuple[str, Any]) -> None:
    grid = Table.grid(expand=True)
    for _ in sides:
        grid.add_column(ratio=1)
    grid.add_row(*(Panel(_json(value), title=title, padding=0) for title, value in sides))
    console.print(grid)


def _json(value: Any) -> Syntax:
    return Syntax(_compact(value), "json", word_wrap=True, background_color="default")


def _short(answer: dict[str, Any]) -> dict[str, Any]:
    """Without the token details, which hold nothing here."""
    usage = {name: count for name, count in answer["usage"].items() if not name.endswith("_details")}
    return {**answer, "usage": usage}


def _compact(value: Any, indent: str = "", taken: int = 0) -> str:
    """JSON with what fits on a short line kept on it."""
    line = json.dumps(value, ensure_ascii=False)
    if taken + len(line) + len(indent) <= LINE or not isinstance(value, (dict, list)) or not value:
        return line
    inner = indent + " "
    if isinstance(value, dict):
        parts = [f"{inner}{json.dumps(name)}: {_compact(item, inner, len(name) + 4)}" for name, item in value.items()]
    else:
        parts = [f"{inner}{_compact(item, inner)}" for item in value]
    brackets = "{}" if isinstance(value, dict) else "[]"
    return f"{brackets[0]}\n" + ",\n".join(parts) + f"\n{indent}{brackets[1]}"
