"""`python -m bench.translate [--write]`: CPU µs of each provider's translator, per request and per streamed chunk.

In one process, without sockets: the request's body is there parsed, as the gateway has it. The answer of each vendor is
made by the tests' model of its dialect, so a chunk is an event of its own wire format. `--write` puts the table into
bench/notes.md and docs/benchmarks.md.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sidecar.translate import PROVIDERS, Head, Provider, read_call
from sidecar.translate.compatible import COMPATIBLE
from tests.translate.dialects import DISTINCT, dialect_of

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- begin: made by `python -m bench.translate --write` -->", "<!-- end -->"
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CHUNKS = 200


def request_body(turns: int, **more: Any) -> bytes:
    """About a kilobyte for one turn."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief and to the point."}]
    for turn in range(turns):
        messages.append({"role": "user", "content": f"{turn} " + "word " * 110})
        if turn < turns - 1:
            messages.append({"role": "assistant", "content": "word " * 80})
    return json.dumps({"model": "m", "messages": messages, "tools": [TOOL], "max_tokens": 100, **more}).encode()


def cpu_us(work: Callable[[], Any], seconds: float = 0.15, rounds: int = 5) -> float:
    """The best of some rounds."""
    work()
    started = time.process_time()
    work()
    once = max(time.process_time() - started, 1e-6)
    count = max(1, int(seconds / rounds / once))
    best = float("inf")
    for _ in range(rounds):
        started = time.process_time()
        for _ in range(count):
            work()
        best = min(best, (time.process_time() - started) / count)
    return best * 1e6


def measure(provider: Provider) -> dict[str, float]:
    dialect = dialect_of(provider)
    options: Any = {"options": dict(dialect.options), "exchange_id": "ex1", "now": 1.7e9}
    small = read_call(request_body(1), model=dialect.model, **options)
    large = read_call(request_body(100), model=dialect.model, **options)
    asked = read_call(request_body(1, stream=True, max_tokens=None), model=f"sim-long-{CHUNKS}", **options)
    pieces = dialect.pieces(provider.request(asked))
    head: Head = dialect.stream_head
    whole = read_call(request_body(1), model="sim-long-40", **options)
    answer = b"".join(dialect.pieces(provider.request(whole)))

    def stream() -> None:
        translator = provider.stream(asked, head)
        for piece in pieces:
            translator.feed(piece)
        translator.end()

    return {
        "request": cpu_us(lambda: provider.request(small)),
        "per_kb": cpu_us(lambda: provider.request(large)) / (len(large.raw) / 1000),
        "answer": cpu_us(lambda: provider.response(whole, Head(200), answer)),
        "chunk": cpu_us(stream) / len(pieces),
    }


def table() -> str:
    lines = [
        "| provider | 1 KB request | per KB of a 100 KB one | answer | chunk |",
        "|---|---|---|---|---|",
    ]
    for name, provider in DISTINCT.items():
        found = measure(provider)
        shown = f"{name} (a row)" if name in COMPATIBLE else name
        numbers = f"{found['request']:.0f} | {found['per_kb']:.1f} | {found['answer']:.0f} | {found['chunk']:.1f}"
        lines.append(f"| {shown} | {numbers} |")
    same = len(PROVIDERS) - len(DISTINCT)
    lines += ["", f"{same} more rows of `vendors.py` are of one shape with a row above, and cost the same."]
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    made = table()
    print(made)
    if "--write" in arguments:
        for page in (ROOT / "bench" / "notes.md", ROOT / "docs" / "benchmarks.md"):
            before, begin, rest = page.read_text().partition(BEGIN)
            _, end, after = rest.partition(END)
            if not begin or not end:
                sys.exit(f"{page} has no place for the table")
            page.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{after}")


if __name__ == "__main__":
    main(sys.argv[1:])
