"""`sidecar demo`: the main job end to end on embedded defaults, no key and no outside server needed.

A simulated Anthropic-dialect provider and the gateway run on loopback; the official openai SDK calls it with a virtual
key until its limits and its budget refuse. Everything lives in a temporary folder and is gone at the end.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import tempfile
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
server: {{host: 127.0.0.1, port: 4000}}
auth: {{master_key: "{master_key}"}}
store: {{database_url: "sqlite:///{folder}/sidecar.db", journal_dir: "{folder}/journal"}}
models:
  - name: claude
    deployments:
      - {{provider: anthropic, model: sim-echo, api_key: sk-ant-simulated, base_url: "{provider}",
         price: {{input: 3, output: 15, cache_read: 0.3, cache_write: 3.75}}, max_output_tokens: 1024}}
  - name: claude-tools
    deployments:
      - {{provider: anthropic, model: sim-tools, api_key: sk-ant-simulated, base_url: "{provider}",
         price: {{input: 3, output: 15}}, max_output_tokens: 1024}}
"""

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def main() -> int:
    """Runs the demo; 0 if every step went as it should."""
    with tempfile.TemporaryDirectory(prefix="sidecar-demo-") as folder:
        asyncio.run(_demo(Console(), Path(folder)))
    return 0


async def _demo(console: Console, folder: Path) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []
    provider = SimulatedProvider(lambda path, headers, body: seen.append((path, json.loads(body))))
    master_key = "sk-demo-master-" + secrets.token_urlsafe(24)
    async with serve(provider) as provider_url:
        file = folder / "sidecar.yaml"
        file.write_text(CONFIG.format(master_key=master_key, folder=folder, provider=provider_url))
        gateway = build_app(load_config(file, {}), migrate=True)
        async with serve(gateway) as url:
            console.rule("[bold]sidecar: an LLM gateway as a stack of ASGI middlewares")
            console.print(f"gateway {url}   simulated Anthropic provider {provider_url}   database SQLite in {folder}")
            await _tour(console, url, master_key, seen)
    console.print("\n[green]Done.[/] Everything was stopped and removed.")


async def _tour(console: Console, url: str, master_key: str, seen: list[tuple[str, dict[str, Any]]]) -> None:
    from openai import AsyncOpenAI, RateLimitError

    admin = httpx2.AsyncClient(base_url=url, headers={"authorization": f"Bearer {master_key}"}, timeout=10)
    console.rule("1  mint virtual keys (POST /key/generate)")
    asked = {"key_alias": "demo", "models": ["claude", "claude-tools"], "max_budget": 0.05, "rpm_limit": 6}
    key = await _mint(admin, asked)
    _side_by_side(console, ("admin asked", asked), ("answer", {**key, "key": key["key"][:7] + "…"}))

    client = AsyncOpenAI(api_key=key["key"], base_url=f"{url}/v1", max_retries=0)
    ask = {"model": "claude", "messages": [{"role": "user", "content": "Say something."}], "max_tokens": 64}

    console.rule("2  a plain chat completion, OpenAI format in, Anthropic format out")
    raw = await client.chat.completions.with_raw_response.create(**ask)  # type: ignore[call-overload]
    answer = raw.parse()
    _side_by_side(
        console,
        ("client sent", ask),
        ("provider got", seen[-1][1]),
        ("client received", answer.model_dump(exclude_none=True)),
    )
    console.print(f"  x-sidecar-cost-usd: [bold]{raw.headers['x-sidecar-cost-usd']}[/]")

    console.rule("3  streamed")
    stream = await client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})  # type: ignore[call-overload]
    pieces: list[str] = []
    usage: Any = None
    async for chunk in stream:
        pieces += [c.delta.content for c in chunk.choices if c.delta.content]
        usage = chunk.usage or usage
    console.print(f"  {len(pieces)} pieces: {'·'.join(pieces)!r}")
    console.print(f"  usage {usage.model_dump(exclude_none=True) if usage else None}")

    console.rule("4  a tool call")
    ask_tool = {**ask, "model": "claude-tools", "tools": [WEATHER]}
    answer = await client.chat.completions.create(**ask_tool)  # type: ignore[call-overload]
    call = answer.choices[0].message.tool_calls[0].model_dump()
    _side_by_side(
        console,
        ("client sent (tool)", WEATHER),
        ("provider got (tool)", seen[-1][1]["tools"][0]),
        ("client received", call),
    )

    console.rule("5  on until the rate limit refuses (rpm_limit 6)")
    refusal = await _until_refused(client, ask, RateLimitError)
    _refusal(console, refusal)

    console.rule("6  a second key with a budget of $0.002, on until the budget refuses")
    poor = await _mint(admin, {"key_alias": "poor", "models": ["claude"], "max_budget": 0.002})
    refusal = await _until_refused(client.with_options(api_key=poor["key"]), ask, RateLimitError)
    _refusal(console, refusal)

    console.rule("7  the ledger")
    await client.close()
    for alias, token in (("demo", key["token"]), ("poor", poor["token"])):
        await _ledger(console, admin, alias, token)
    await admin.aclose()


async def _mint(admin: httpx2.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    answer = await admin.post("/key/generate", json=body)
    if answer.status_code != 200:
        raise SystemExit(answer.text)
    return answer.json()  # type: ignore[no-any-return]


async def _until_refused(client: Any, ask: dict[str, Any], refusal: type[Exception]) -> Any:
    for _ in range(100):
        try:
            await client.chat.completions.create(**ask)
        except refusal as error:
            return error
    raise SystemExit("the gateway did not refuse after 100 calls")


def _refusal(console: Console, error: Any) -> None:
    retry = error.response.headers.get("retry-after")
    console.print(
        f"  [red]{error.status_code}[/] {type(error).__name__}: {error.body['message']}  retry-after: {retry}"
    )


async def _ledger(console: Console, admin: httpx2.AsyncClient, alias: str, token: str) -> None:
    for _ in range(100):
        logs = (await admin.get("/spend/logs", params={"key": token})).json()
        info = (await admin.get("/key/info", params={"key": token})).json()
        rows = logs["data"]
        total = sum((Decimal(str(row["spend"])) for row in rows), Decimal(0))
        spend = Decimal(str(info["info"]["spend"]))
        if rows and total == spend:
            break
        await asyncio.sleep(0.05)  # the flusher ships the journal to the database in batches
    table = Table("exchange", "model", "status", "in", "out", "cost USD", title=f"ledger rows of '{alias}'")
    for row in rows:
        table.add_row(
            row["exchange_id"], row["model"], row["status"], str(row["prompt_tokens"]), str(row["completion_tokens"]),
            f"{Decimal(str(row['spend'])):f}",
        )  # fmt: skip
    console.print(table)
    agrees = total == spend
    console.print(
        f"  sum of rows [bold]{total}[/]   key's spend [bold]{spend}[/]   {'equal' if agrees else 'DIFFERENT'}"
    )
    if not agrees:
        raise SystemExit(1)


def _side_by_side(console: Console, *sides: tuple[str, Any]) -> None:
    grid = Table.grid(expand=True)
    for _ in sides:
        grid.add_column(ratio=1)
    grid.add_row(
        *(
            Panel(Syntax(json.dumps(value, indent=1, ensure_ascii=False), "json", word_wrap=True), title=title)
            for title, value in sides
        )
    )
    console.print(grid)
