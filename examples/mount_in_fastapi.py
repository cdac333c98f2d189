"""An existing FastAPI app – own lifespan, middleware, exception handler, prefix – gets the gateway in three ways.

(a) two single middlewares in front of its own LLM endpoint, (b) the whole gateway under `/llm`, (c) its own outbound
openai SDK calls through the stack in-process, without a socket.

    uvicorn examples.mount_in_fastapi:app        # SIDECAR_CONFIG names a sidecar.yaml
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from openai import AsyncOpenAI

from sidecar import Admission, AdmissionPolicy, Gateway, InProcess, Limits, RateLimitMiddleware, build_app, paths
from sidecar.config import Config, load_config
from sidecar.limits.store import open_store


class Maintenance(Exception):
    """The host app's own exception, with its own handler."""


def host_app() -> FastAPI:
    """The app as it was before: nothing of sidecar in it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.is_started = True
        yield
        app.state.is_started = False

    app = FastAPI(lifespan=lifespan)

    @app.middleware("http")
    async def stamp(request: Request, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["x-host-app"] = "yes"
        return response

    @app.exception_handler(Maintenance)
    async def on_maintenance(request: Request, error: Maintenance) -> JSONResponse:
        return JSONResponse({"detail": "back soon"}, status_code=503)

    @app.get("/hello")
    async def hello(request: Request) -> dict[str, Any]:
        return {"hello": "world", "is_started": request.app.state.is_started}

    @app.get("/closed")
    async def closed() -> None:
        raise Maintenance

    @app.post("/my/llm")
    async def own_endpoint(body: dict[str, Any]) -> dict[str, Any]:
        return {"model": body["model"], "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}

    return app


def mount(app: FastAPI, config: Config) -> Gateway:
    """Everything sidecar adds."""
    # (a) one middleware in front of the app's own endpoint: at most 3 calls a minute, all callers together
    limiter = Admission(open_store("memory://"), global_limits=Limits(rpm=3))
    app.add_middleware(RateLimitMiddleware, policy=AdmissionPolicy(limiter), applies=paths("/my/llm"))

    # (b) the whole gateway under a prefix; mounted apps get no lifespan, it starts with its first request
    gateway = build_app(config, migrate=True)
    app.mount("/llm", gateway)

    # (c) the app's own SDK calls, through the same stack, in-process
    @app.get("/ask")
    async def ask(question: str, request: Request) -> dict[str, Any]:
        client: AsyncOpenAI = request.app.state.llm
        answer = await client.chat.completions.create(
            model=request.app.state.llm_model, messages=[{"role": "user", "content": question}], max_tokens=50
        )
        return {"answer": answer.choices[0].message.content}

    return gateway


def own_client(gateway: Gateway, key: str) -> AsyncOpenAI:
    """An SDK client whose requests never leave the process until the proxy sends them upstream."""
    http = httpx2.AsyncClient(transport=InProcess(gateway))
    return AsyncOpenAI(base_url="http://sidecar.local/v1", api_key=key, http_client=http, max_retries=0)


def create() -> FastAPI:
    app = host_app()
    gateway = mount(app, load_config(os.environ.get("SIDECAR_CONFIG")))
    app.state.llm_model = os.environ.get("LLM_MODEL", "openai/gpt-4o-mini")
    app.state.llm = own_client(gateway, os.environ.get("LLM_KEY", "sk-none"))
    return app


if os.environ.get("SIDECAR_CONFIG"):
    app = create()
