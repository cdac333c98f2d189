"""*Three lines into your app.* An existing FastAPI app with its own lifespan, middlewares, exception handlers, mounts
and prefix passes its own checks unchanged, with the gateway mounted and with its middlewares in front; the process
keeps its logging, signal handlers and settings.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Header, HTTPException, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.middleware.base import BaseHTTPMiddleware

from sidecar import (
    Admission,
    AdmissionPolicy,
    Budget,
    BudgetMiddleware,
    Gateway,
    Limits,
    RateLimitMiddleware,
    build_app,
    paths,
)
from sidecar.asgi import ASGIApp
from sidecar.config import load_config
from sidecar.limits.store import open_store
from sidecar.routing.catalog import Catalog
from sidecar.simulated import serve
from sidecar.spend.cost import FREE
from sidecar.types import Deployment
from tests.faults.provider import WORDS, Fault, FaultProvider
from tests.promises.support import Running, body, config_file, eventually, served

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]


class OutOfStock(Exception):
    """The host's own exception."""


def host_app() -> FastAPI:
    """The app as it was before: nothing of sidecar in it."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        app.state.events = ["started"]
        yield {"pool": "the host's pool"}
        app.state.events.append("stopped")

    app = FastAPI(lifespan=lifespan)

    class Stamp(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Any:
            request.state.stamp = "stamped"
            response = await call_next(request)
            response.headers["x-host"] = "yes"
            return response

    app.add_middleware(Stamp)
    app.add_middleware(GZipMiddleware, minimum_size=1000)
    app.add_middleware(CORSMiddleware, allow_origins=["https://shop.example"], allow_methods=["GET", "POST"])

    @app.exception_handler(OutOfStock)
    async def out_of_stock(request: Request, error: OutOfStock) -> JSONResponse:
        return JSONResponse({"sorry": str(error)}, 409)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"fields": [str(item["loc"][-1]) for item in error.errors()]}, 422)

    @app.exception_handler(404)
    async def nothing(request: Request, error: Exception) -> PlainTextResponse:
        return PlainTextResponse(f"nothing at {request.url.path}", 404)

    def user(authorization: str = Header()) -> str:
        if authorization != "Bearer hosts-own-token":
            raise HTTPException(401, "who are you?", {"www-authenticate": "Bearer"})
        return "ada"

    @app.get("/state")
    async def state(request: Request) -> dict[str, Any]:
        return {"pool": request.state.pool, "stamp": request.state.stamp, "events": request.app.state.events}

    @app.get("/items/{number}")
    async def item(number: int, q: str = "") -> dict[str, Any]:
        if number > 9:
            raise OutOfStock(f"no item {number}")
        return {"number": number, "q": q}

    @app.get("/me")
    async def me(name: str = Depends(user)) -> dict[str, str]:
        return {"name": name}

    @app.post("/upload")
    async def upload(request: Request) -> dict[str, int]:
        sizes = [len(piece) async for piece in request.stream()]
        return {"bytes": sum(sizes)}

    @app.get("/rows")
    async def rows() -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            for number in range(3):
                yield f"row {number}\n"
                await asyncio.sleep(0.001)

        return StreamingResponse(lines(), media_type="text/plain")

    @app.post("/later")
    async def later(tasks: BackgroundTasks, request: Request) -> dict[str, bool]:
        tasks.add_task(request.app.state.events.append, "later")
        return {"accepted": True}

    @app.get("/long")
    async def long() -> PlainTextResponse:
        return PlainTextResponse("long " * 1000)

    @app.get("/healthz")
    @app.get("/metrics")
    @app.get("/v1/models")
    async def own_names(request: Request) -> dict[str, str]:
        return {"host": request.scope["path"]}

    @app.post("/my/llm")
    async def own_llm(question: dict[str, Any]) -> dict[str, Any]:
        return {"model": question["model"], "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("the host's own bug")

    @app.websocket("/echo")
    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("echo: " + await socket.receive_text())
        await socket.close()

    below = FastAPI()

    @below.get("/inner")
    async def inner(request: Request) -> dict[str, str]:
        return {"root_path": request.scope["root_path"]}

    app.mount("/sub", below)
    return app


LIMITED = paths("/my/llm")


def nothing_added(app: FastAPI, config: Path) -> Gateway | None:
    return None


def mounted(app: FastAPI, config: Path) -> Gateway | None:
    gateway = build_app(load_config(config, {}), migrate=True)
    app.mount("/llm", gateway)
    return gateway


def middlewares(app: FastAPI, config: Path) -> Gateway | None:
    own = Deployment("own", "m", "openai", "m", "http://127.0.0.1", price=FREE)
    policy = AdmissionPolicy(
        Admission(open_store("memory://"), global_limits=Limits(rpm=1000), global_budgets=[Budget(10**12)]),
        Catalog([own]),
    )
    app.add_middleware(BudgetMiddleware, policy=policy, applies=LIMITED)
    app.add_middleware(RateLimitMiddleware, policy=policy, applies=LIMITED)
    return None


def everything(app: FastAPI, config: Path) -> Gateway | None:
    middlewares(app, config)
    return mounted(app, config)


def with_lifespan(app: FastAPI, config: Path) -> Gateway | None:
    """The host starts and stops it; without this it starts with its first request."""
    gateway = mounted(app, config)
    assert gateway is not None
    hosts = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def both(app: FastAPI) -> AsyncIterator[Any]:
        async with hosts(app) as state, gateway.lifespan(app):
            yield state

    app.router.lifespan_context = both
    return gateway


MULTIPART = {"content-type": "multipart/form-data; boundary=b"}
CHECKS: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/state", {}),
    ("GET", "/items/3?q=a%20b", {}),
    ("GET", "/items/12", {}),
    ("GET", "/items/x", {}),
    ("HEAD", "/items/3", {}),
    ("DELETE", "/items/3", {}),
    ("GET", "/nothing", {}),
    ("GET", "/llm-not", {}),
    ("GET", "/me", {}),
    ("GET", "/me", {"headers": {"authorization": "Bearer hosts-own-token"}}),
    ("GET", "/me", {"headers": {"authorization": "Bearer sk-of-nobody"}}),
    ("POST", "/upload", {"content": b"x" * 300_000}),
    ("POST", "/upload", {"files": {"f": ("a.txt", b"hello", "text/plain")}, "headers": MULTIPART}),
    ("GET", "/rows", {}),
    ("POST", "/later", {}),
    ("GET", "/long", {"headers": {"accept-encoding": "gzip"}}),
    ("GET", "/long", {"headers": {"accept-encoding": "identity"}}),
    ("GET", "/healthz", {}),
    ("GET", "/metrics", {}),
    ("GET", "/v1/models", {}),
    ("GET", "/broken", {}),
    ("GET", "/sub/inner", {}),
    ("GET", "/sub/nothing", {}),
    ("GET", "/openapi.json", {}),
    ("GET", "/docs", {}),
    ("OPTIONS", "/items/3", {"headers": {"origin": "https://shop.example", "access-control-request-method": "GET"}}),
    ("OPTIONS", "/items/3", {"headers": {"origin": "https://evil.example", "access-control-request-method": "GET"}}),
    ("GET", "/items/3", {"headers": {"origin": "https://shop.example"}}),
    ("GET", "/state", {}),
]  # fmt: skip
LIMIT_HEADERS = ("x-ratelimit-", "x-request-id", "retry-after")


def behind(app: FastAPI, root_path: str) -> ASGIApp:
    """As a server with `--root-path` serves it."""

    async def served_below(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "root_path": root_path} if scope["type"] != "lifespan" else scope, receive, send)

    return served_below


async def results(app: FastAPI, root_path: str) -> list[Any]:
    """What the host's checks see, on a real socket; the lifespan and a web socket too."""
    found: list[Any] = []
    async with (
        serve(behind(app, root_path)) as url,
        httpx2.AsyncClient(base_url=url + root_path, timeout=60, trust_env=False, verify=False) as http,
    ):
        for method, path, more in CHECKS:
            answer = await http.request(method, path, **more)
            headers = sorted((name, value) for name, value in answer.headers.items() if name != "date")
            found.append((method, path, answer.status_code, headers, answer.content))
        question = await http.post("/my/llm", json={"model": "m", "messages": []})
        kept = sorted(
            (name, value) for name, value in question.headers.items() if not name.startswith((*LIMIT_HEADERS, "date"))
        )
        found.append((question.status_code, kept, question.content))
    found.append(app.state.events)
    found.append(await web_socket(app, root_path))
    return found


async def web_socket(app: FastAPI, root_path: str) -> list[Any]:
    incoming = [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": "hi"}]
    sent: list[Any] = []

    async def receive() -> Any:
        return incoming.pop(0) if incoming else {"type": "websocket.disconnect", "code": 1000}

    async def send(message: Any) -> None:
        sent.append(message)

    path = root_path + "/echo"
    scope = {
        "type": "websocket", "path": path, "raw_path": path.encode(), "headers": [], "query_string": b"",
        "subprotocols": [], "root_path": root_path, "scheme": "ws", "state": {}, "extensions": {},
    }  # fmt: skip
    await app(scope, receive, send)
    return sent


ADDITIONS: list[Callable[[FastAPI, Path], Gateway | None]] = [mounted, middlewares, everything, with_lifespan]


@pytest.mark.parametrize("root_path", ["", "/behind/a/prefix"])
@pytest.mark.parametrize("add", ADDITIONS, ids=lambda add: add.__name__)
async def test_the_hosts_own_checks_see_no_difference(
    add: Callable[[FastAPI, Path], Gateway | None], root_path: str, faults: FaultProvider, tmp_path: Path
) -> None:
    config = config_file(tmp_path, faults.base_url)
    before = host_app()
    nothing_added(before, config)
    expected = await results(before, root_path)
    assert [item[2] for item in expected[:4]] == [200, 200, 409, 422], "the checks check something"
    assert expected[-2:] == [
        ["started", "later", "stopped"],
        [
            {"type": "websocket.accept", "subprotocol": None, "headers": []},
            {"type": "websocket.send", "text": "echo: hi"},
            {"type": "websocket.close", "code": 1000, "reason": ""},
        ],
    ]
    after = host_app()
    gateway = add(after, config)
    found = await results(after, root_path)
    for one, other in zip(expected, found, strict=True):
        assert other == one
    if gateway is not None:
        await gateway.aclose()
    assert faults.requests == []


def in_host(gateway: Gateway) -> FastAPI:
    app = host_app()
    app.mount("/llm", gateway)
    return app


@pytest.fixture(scope="module")
async def hosted(provider_of_file: FaultProvider, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("hosted")
    async with served(folder, provider_of_file.base_url, mount=in_host, prefix="/llm") as running:
        yield running


@pytest.mark.parametrize("model", ["gpt", "claude"])
async def test_the_stock_sdk_works_below_the_prefix_and_through_the_hosts_middlewares(
    hosted: Running, faults: FaultProvider, model: str
) -> None:
    key = await hosted.mint(max_budget=1)
    messages: Any = [{"role": "user", "content": "hi"}]
    async with openai.AsyncOpenAI(base_url=f"{hosted.url}/v1", api_key=key, max_retries=0) as client:
        raw = await client.chat.completions.with_raw_response.create(model=model, messages=messages)
        assert raw.parse().choices[0].message.content == "".join(WORDS)
        assert raw.headers["x-host"] == "yes"
        stream = await client.chat.completions.create(model=model, messages=messages, stream=True)
        assert "".join([c.choices[0].delta.content or "" async for c in stream if c.choices]) == "".join(WORDS)
        assert {item.id async for item in client.models.list()} == {"gpt", "claude"}
    rows = await hosted.rows(key, at_least=2)
    assert [row["outcome"] for row in rows] == ["ok", "ok"]
    refused = await hosted.chat("sk-of-nobody", body(model))
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")


async def test_a_client_that_leaves_is_noticed_through_the_hosts_middlewares(
    hosted: Running, faults: FaultProvider
) -> None:
    key = await hosted.mint(max_budget=1)
    faults.script(Fault("endless", drip_s=0.002))
    headers = {"authorization": f"Bearer {key}"}
    url = f"{hosted.url}/v1/chat/completions"
    async with hosted.http.stream("POST", url, headers=headers, json=body(stream=True)) as answer:
        async for _ in answer.aiter_bytes():
            break
    await eventually(lambda: faults.requests[0].closed_at is not None, name=lambda: "the provider's socket to close")
    (row,) = await hosted.rows(key, at_least=1)
    assert row["outcome"] == "client_left"


PROCESS = """\
import asyncio, contextlib, decimal, faulthandler, gc, json, locale, logging, os, signal, sys, threading, warnings

logging.basicConfig(level=logging.WARNING, format="host %(message)s")
logging.getLogger("host").setLevel(logging.INFO)
signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGUSR1, lambda *_: None)
import fastapi, httpx2, uvicorn  # the host's own
import alembic, ruamel.yaml, sqlalchemy  # when loaded they set up loggers and filters of their own names

def described(logger):
    return [logger.level, logger.disabled, logger.propagate, repr(logger.handlers), repr(logger.filters)]

def seen():
    made = [n for n in logging.root.manager.loggerDict if n.split(".")[0] != "concurrent"]
    names = ["host", "uvicorn", "uvicorn.error", "uvicorn.access", "asyncio"]
    signals = [s for s in signal.valid_signals() if isinstance(s, signal.Signals)]
    return {
        "root logger": described(logging.root),
        "loggers": {n: described(logging.getLogger(n)) for n in names},
        "configured": sorted(n for n in made if logging.getLogger(n).handlers or logging.getLogger(n).level),
        "log factory": [repr(logging.getLogRecordFactory()), repr(logging.getLoggerClass())],
        "log settings": [logging.root.manager.disable, repr(logging.lastResort), logging.raiseExceptions],
        "signals": {s.name: repr(signal.getsignal(s)).split("coro=")[0] for s in signals},
        "hooks": [repr(sys.excepthook), repr(sys.unraisablehook), repr(threading.excepthook)],
        "streams": [repr(sys.stdout), repr(sys.stderr)],
        "loop policy": repr(type(asyncio.get_event_loop_policy())),
        "garbage": [gc.get_threshold(), gc.get_freeze_count(), gc.isenabled()],
        "warnings": [repr(f) for f in warnings.filters],
        "environment": dict(os.environ),
        "locale": locale.setlocale(locale.LC_ALL),
        "folder": os.getcwd(),
        "interpreter": [sys.getrecursionlimit(), sys.getswitchinterval(), faulthandler.is_enabled()],
        "decimal": repr(decimal.getcontext()),
    }

async def main():
    loop = asyncio.get_running_loop()
    hooks = lambda: [loop.get_exception_handler(), loop.get_debug(), loop.get_task_factory()]
    had, before = hooks(), seen()
    import sidecar
    from sidecar.config import load_config

    gateway = sidecar.build_app(load_config(sys.argv[1], {}), migrate=True)
    app = fastapi.FastAPI()
    app.mount("/llm", gateway)
    async with httpx2.AsyncClient(transport=sidecar.InProcess(app), base_url="http://host") as http:
        for path in ("/llm/v1/models", "/llm/healthz", "/llm/metrics", "/llm/nothing"):
            await http.get(path)
        await http.post("/llm/v1/chat/completions", json={"model": "gpt", "messages": []})
        during = seen()
    await gateway.aclose()
    assert hooks() == had
    print(json.dumps([before, during, seen()]))

asyncio.run(main())
"""


def test_the_process_keeps_its_logging_signals_and_settings(tmp_path: Path) -> None:
    config = config_file(tmp_path, "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, str(config)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    before, during, after = json.loads(done.stdout)
    for name, value in before.items():
        assert during[name] == value, name
        assert after[name] == value, name
    assert done.stderr == "", "and says nothing"
