"""`python -m bench.layers`: what each layer of the stack costs, in CPU µs per request, in this process.

The whole gateway is built as `sidecar serve` builds it, with a transport that answers at once; then the stack is called
from the inside out, a layer more each time. Neither the server's nor the client's parsing is in it, nor the shipping of
rows to the database: `python -m bench` has the sum.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import uvloop

from bench.mock import CHAT
from sidecar import app as application
from sidecar.config import load_config
from sidecar.inprocess import InProcess
from sidecar.upstream.base import head_bytes

MASTER = "sk-master-of-the-layers-0123456789abcdef"
ANSWER = json.dumps(CHAT).encode()
BODY = json.dumps(
    {"model": "same", "messages": [{"role": "user", "content": "word " * 180}], "max_tokens": 100}
).encode()
AT_ONCE, BATCHES, ROUNDS = 32, 25, 12


class Answer:
    """What the provider says."""

    status = 200
    headers: ClassVar = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ANSWER))]
    is_close_delimited = False
    is_complete = False

    async def read(self) -> bytes:
        self.is_complete = True
        return ANSWER

    def abort(self) -> None: ...


class Instant:
    """A transport without a network: the head is rendered, the answer is there on the next turn of the loop."""

    async def send(self, request: Any) -> Answer:
        head_bytes(request)
        await asyncio.sleep(0)
        return Answer()

    async def aclose(self) -> None: ...


def config_file(folder: Path) -> Path:
    file = folder / "sidecar.yaml"
    deployment = {"provider": "openai", "model": "gpt-4o", "api_key": "k", "base_url": "http://127.0.0.1:9/v1",
                  "price": {"input": 1, "output": 2}}  # fmt: skip
    config = {
        "auth": {"master_key": MASTER},
        "limits": {"rpm": 1_000_000_000},
        "spend": {"flush_s": 1000},
        "store": {"database_url": f"sqlite:///{folder}/s.db", "journal_dir": f"{folder}/journal"},
        "models": [{"name": "same", "deployments": [deployment]}],
    }
    file.write_text(json.dumps(config))
    return file


async def cost(app: Any, key: str) -> float:
    """CPU µs of one request, the best of some rounds."""

    async def send(message: Any) -> None: ...

    async def one() -> None:
        is_given = False
        gone = asyncio.Event()

        async def receive() -> Any:
            nonlocal is_given
            if not is_given:
                is_given = True
                return {"type": "http.request", "body": BODY, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        scope = {
            "type": "http", "method": "POST", "path": "/v1/chat/completions", "raw_path": b"/v1/chat/completions",
            "query_string": b"", "root_path": "",
            "headers": [
                (b"host", b"127.0.0.1:4000"), (b"content-type", b"application/json"),
                (b"authorization", b"Bearer " + key.encode()), (b"content-length", b"%d" % len(BODY)),
            ],
        }  # fmt: skip
        await app(scope, receive, send)
        gone.set()

    best = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        for _ in range(BATCHES):
            await asyncio.gather(*(one() for _ in range(AT_ONCE)))
        best = min(best, (time.process_time() - started) / BATCHES / AT_ONCE * 1e6)
    return best


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    await receive()


async def main() -> None:
    application.transport_of = lambda config: Instant()  # type: ignore[assignment,return-value]
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(config_file(Path(folder)), {})
        gateway = application.build_app(config, migrate=True, owns_process=True)
        async with gateway.lifespan():
            headers = {"authorization": f"Bearer {MASTER}"}
            async with httpx2.AsyncClient(
                transport=InProcess(gateway), base_url="http://gateway", headers=headers
            ) as http:
                fields = {"max_budget": 100_000, "rpm_limit": 10**9, "tpm_limit": 10**11, "max_parallel_requests": 1000}
                key = (await http.post("/key/generate", json=fields)).json()["key"]
            layers = [gateway.stack]
            while hasattr(layers[-1], "app"):
                layers.append(layers[-1].app)
            (deployment,) = layers[-3].catalog.deployments
            for layer in layers[-2:]:
                layer.deployment = deployment  # as it stands alone
            below = await cost(nothing, key)
            print(f"{'the measuring itself':22} {below:6.1f}")
            for layer in reversed(layers):
                now = await cost(layer, key)
                print(f"{type(layer).__name__:22} {now:6.1f}  +{now - below:.1f}")
                below = now


if __name__ == "__main__":
    uvloop.run(main())
