"""The apps under measurement, each an ASGI app factory for uvicorn. BENCH_UPSTREAM is the mock provider's port."""

from __future__ import annotations

import gc
import os
import tempfile
from typing import Any

MASTER = "sk-bench-master-0123456789abcdef0123456789"
ANSWER = b'{"hello":"world"}' + b" " * 480


def hello() -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await receive()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": ANSWER})

    return app


def proxy() -> Any:
    """A bare reverse proxy: our UpstreamProxy alone."""
    from sidecar.middleware.upstream import UpstreamProxy
    from sidecar.types import Deployment
    from sidecar.upstream.httptools_transport import HttptoolsTransport

    url = f"http://127.0.0.1:{os.environ['BENCH_UPSTREAM']}"
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)  # as `sidecar serve` does
    inner = UpstreamProxy(transport=HttptoolsTransport(), deployment=Deployment("d", "g", "openai", "gpt-4o", url))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await inner(scope, receive, send)

    return app


def full() -> Any:
    """The gateway with everything on. BENCH_REDIS: limits and budgets there instead of in memory."""
    from sidecar.app import build_app
    from sidecar.config import load_config

    folder = tempfile.mkdtemp(prefix="sidecar-bench-")
    port = os.environ["BENCH_UPSTREAM"]
    redis = os.environ.get("BENCH_REDIS")
    with open(f"{folder}/sidecar.yaml", "w") as file:
        file.write(f"""
auth: {{master_key: {MASTER}}}
store:
  database_url: sqlite:///{folder}/sidecar.db
  journal_dir: {folder}/journal
  {f"redis_url: {redis}" if redis else ""}
limits: {{rpm: 1000000000}}
models:
  - name: same
    deployments:
      - {{provider: openai, model: gpt-4o, api_key: sk-x, base_url: "http://127.0.0.1:{port}/v1",
         price: {{input: 2.5, output: 10}}}}
  - name: translated
    deployments:
      - {{provider: anthropic, model: claude-sonnet-4-5, api_key: sk-x, base_url: "http://127.0.0.1:{port}",
         price: {{input: 3, output: 15}}}}
""")
    return build_app(load_config(f"{folder}/sidecar.yaml", {}), migrate=True, owns_process=True)
