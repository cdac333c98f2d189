"""`python -m bench.steps`: Python instructions and calls per request in the whole stack, by file. The same on every
machine and in every run, so it shows what a change costs where CPU times are lost in noise. C code counts nothing.
"""

from __future__ import annotations

import asyncio
import collections
import sys
import tempfile
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import httpx2
import uvloop

from bench import layers
from sidecar import app as application
from sidecar.config import load_config
from sidecar.inprocess import InProcess

REQUESTS = 16


class Steps:
    """Counts while it is entered."""

    def __init__(self) -> None:
        self.instructions: collections.Counter[CodeType] = collections.Counter()
        self.calls = 0

    def __enter__(self) -> None:
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "call":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            self.calls += 1
        elif event == "opcode":
            self.instructions[frame.f_code] += 1
        return self._trace

    def by_file(self) -> list[tuple[str, float]]:
        found: collections.Counter[str] = collections.Counter()
        for code, count in self.instructions.items():
            found["/".join(Path(code.co_filename).parts[-3:])] += count
        return [(name, count / REQUESTS) for name, count in found.most_common()]


async def main() -> None:
    application.transport_of = lambda config: layers.Instant()  # type: ignore[assignment,return-value]
    layers.ROUNDS, layers.BATCHES, layers.AT_ONCE = 1, 1, REQUESTS
    steps = Steps()
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(layers.config_file(Path(folder)), {})
        gateway = application.build_app(config, migrate=True, owns_process=True)
        async with gateway.lifespan():
            headers = {"authorization": f"Bearer {layers.MASTER}"}
            async with httpx2.AsyncClient(
                transport=InProcess(gateway), base_url="http://gateway", headers=headers
            ) as http:
                fields = {"max_budget": 100_000, "rpm_limit": 10**9, "tpm_limit": 10**11, "max_parallel_requests": 1000}
                key = (await http.post("/key/generate", json=fields)).json()["key"]
            await layers.cost(gateway.stack, key)
            with steps:
                await asyncio.create_task(layers.cost(gateway.stack, key))
    print(
        f"{sum(steps.instructions.values()) / REQUESTS:.0f} instructions, {steps.calls / REQUESTS:.0f} calls a request"
    )
    for name, count in steps.by_file()[:25]:
        print(f"{count:7.0f} {name}")


if __name__ == "__main__":
    uvloop.run(main())
