"""The recipes of docs/sinks.md against the vendors' own software: MLflow's server and client, the SDKs of Langfuse and
Lunary. They live in an environment of their own (`recipes/requirements.txt` says how to make it), without which these
tests are skipped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from sidecar.config import load_config
from sidecar.spend.sinks import open_sink
from sidecar.spend.sinks.delivery import Delivery, DeliveryError
from sidecar.spend.sinks.otlp import OtlpSink, attributes_of
from sidecar.spend.sinks.receivers import RECEIVERS
from sidecar.types import Secret, Usage
from tests.faults.provider import Fault, FaultProvider
from tests.promises.support import body, eventually, process
from tests.spend.test_sink_recipes import SENT, recipe, sent_by_us, spans_of, values_of
from tests.spend.test_sink_recipes import agree_with_langfuse as langfuse_agrees
from tests.spend.test_sink_recipes import agree_with_lunary as lunary_agrees
from tests.spend.test_sinks import RECORD, Receiver, receiver  # noqa: F401 - a fixture

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]
PYTHON = Path(os.environ.get("RECIPES_PYTHON", str(Path(__file__).parents[2] / ".venv" / "recipes" / "bin" / "python")))
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "LANGFUSE_TRACING_ENABLED": "true"}
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.endswith(("_API_KEY", "_KEY"))} | QUIET


def versions() -> dict[str, str]:
    if not PYTHON.exists():
        return {}
    names = ("mlflow", "langfuse", "lunary")
    asked = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {names}}}))"
    found = subprocess.run([PYTHON, "-c", asked], capture_output=True, text=True, check=False)
    return dict(json.loads(found.stdout)) if found.returncode == 0 else {}


VERSIONS = versions()
needs_vendors = pytest.mark.skipif(
    not VERSIONS, reason="no MLflow, Langfuse and Lunary: see tests/spend/recipes/requirements.txt"
)


async def run(script: str, *arguments: str) -> str:
    """A script of `recipes/` by the vendors' interpreter."""
    found = await asyncio.to_thread(
        lambda: subprocess.run([PYTHON, SENT / script, *arguments], capture_output=True, text=True, env=ENVIRONMENT)
    )
    assert found.returncode == 0, found.stderr
    return str(found.stdout)


@pytest.fixture(scope="module")
async def mlflow(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[str, str]]:
    """MLflow's server on a SQLite of its own: its URL and the first experiment made."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    stores = [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--default-artifact-root",
        str(folder / "artifacts"),
    ]
    output = folder / "mlflow.log"
    with output.open("wb") as log:
        server = subprocess.Popen(  # noqa: ASYNC220 - quick, and waited for in a thread
            [PYTHON, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *stores],
            stdout=log, stderr=subprocess.STDOUT, env=ENVIRONMENT, cwd=folder, start_new_session=True,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx2.AsyncClient(trust_env=False, timeout=30) as http:

            async def is_up() -> bool:
                assert server.poll() is None, output.read_text()
                with contextlib.suppress(httpx2.HTTPError):
                    return (await http.get(f"{url}/health")).status_code == 200
                return False

            await eventually(is_up, 400, lambda: f"MLflow: {output.read_text()}")
        yield url, await experiment_of(url, "spend")
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # its own session: the server and its workers
        try:
            await asyncio.to_thread(server.wait, 30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


async def experiment_of(url: str, name: str) -> str:
    async with httpx2.AsyncClient(trust_env=False, timeout=60) as http:
        made = await http.post(f"{url}/api/2.0/mlflow/experiments/create", json={"name": name})
        assert made.status_code == 200, made.text
        return str(made.json()["experiment_id"])


async def traces_of(url: str, experiment: str, spans: int) -> list[dict[str, Any]]:
    """What MLflow's client has of the experiment, once it has so many spans; oldest first."""
    found: list[dict[str, Any]] = json.loads(await run("mlflow_read.py", url, experiment, str(spans)))
    assert sum(len(trace["spans"]) for trace in found) == spans, found
    return sorted(found, key=lambda trace: min(span["started_ns"] for span in trace["spans"]))


@needs_vendors
async def test_mlflow_shows_what_the_ledger_has(tmp_path: Path, mlflow: tuple[str, str], faults: FaultProvider) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe("MLflow"), "utf-8")
    (settings,) = load_config(file, {}).spend.sinks
    url, experiment = mlflow
    headers = {name: value.reveal() for name, value in settings.headers.items()}
    assert headers == {"x-mlflow-experiment-id": experiment}, "the recipe's experiment is the first one made"
    here = urlsplit(settings.url.reveal())._replace(scheme="mlflow+http", netloc=urlsplit(url).netloc).geturl()
    top = {"spend": {"flush_s": 0.05, "sinks": [{"url": here, "headers": headers}]}, "routing": {"retries": 1}}
    top["routing"]["cooldown_s"] = 0.001
    async with process(tmp_path, faults.base_url, top=top) as gateway:
        key = await gateway.mint(key_alias="ci", user_id="alice", tags=["batch", "nightly"], max_budget=10)
        for model, stream in (("gpt", False), ("gpt", True), ("claude", False), ("claude", True)):
            assert (await gateway.chat(key, body(model, stream=stream))).status_code == 200
        faults.script(Fault("status", status=500), Fault("status", status=500), Fault("status", status=503))
        assert (await gateway.chat(key, body())).status_code == 500
        assert (await gateway.chat(key, body())).status_code == 200
        rows = await gateway.rows(key, at_least=8)
        whole, streamed, claude, claude_streamed, failed, saved = await traces_of(url, experiment, 8)
        assert [row["exchange_id"].replace("-", "") for row in rows if row["attempt"] == 1] == [
            trace["id"].removeprefix("tr-") for trace in (whole, streamed, claude, claude_streamed, failed, saved)
        ]
        dropped = (await gateway.http.get(f"{gateway.url}/metrics")).text
    assert 'sidecar_sink_dropped_total{sink="0:OtlpSink"} 0.0' in dropped
    for trace, model in ((whole, "gpt"), (streamed, "gpt"), (claude, "claude"), (claude_streamed, "claude")):
        (span,) = trace["spans"]
        assert (trace["state"], span["status"], span["type"]) == ("OK", "UNSET", "CHAT_MODEL")
        assert (span["name"], span["model"]) == (f"chat {model}-1", f"{model}-1")
        assert span["provider"] == {"gpt": "openai", "claude": "anthropic"}[model]
        assert trace["tokens"] == {"input_tokens": 11, "output_tokens": 5, "total_tokens": 16}
        assert span["cost"]["total_cost"] == trace["cost"]["total_cost"] == pytest.approx(0.000021)
        assert trace["metadata"]["mlflow.trace.user"] == "alice"
        assert trace["tags"]["sidecar.key_alias"] == "ci"
        assert trace["tags"]["sidecar.tags"] == "batch,nightly"
        assert trace["tags"]["service.name"] == "sidecar"
    assert streamed["spans"][0]["attributes"]["gen_ai.request.stream"] is True
    assert failed["state"] == "ERROR"
    assert [(span["status"], span["why"]) for span in failed["spans"]] == [("ERROR", "provider_error")] * 2
    assert failed["cost"]["total_cost"] == 0
    first, second = sorted(saved["spans"], key=lambda span: span["attributes"]["sidecar.attempt"])
    assert (first["status"], second["status"]) == ("ERROR", "UNSET")
    assert first["ended_ns"] <= second["started_ns"] + 1_000_000, "a span is where its attempt was"
    assert saved["cost"]["total_cost"] == pytest.approx(0.000021)
    told = sum(trace["cost"]["total_cost"] for trace in (whole, streamed, claude, claude_streamed, failed, saved))
    assert told == pytest.approx(sum(row["spend"] for row in rows))


@needs_vendors
async def test_mlflow_tells_cached_tokens_apart_and_needs_the_experiment(mlflow: tuple[str, str]) -> None:
    record = replace(RECORD, usage=Usage(7, 3, 2, 1, 5, 2), model="gpt-4o-mini", cost_nano=123_456_789)
    url = mlflow[0]
    experiment = await experiment_of(url, "classes")
    for scheme, attempt in (("mlflow", 1), ("otlp", 2)):
        sink = open_sink(f"{scheme}+{url}", headers={"x-mlflow-experiment-id": Secret(experiment)})
        await sink.write([replace(record, attempt=attempt, exchange_id=f"{scheme:0>32}"[:32])])
        await sink.aclose()
    bare = OtlpSink("", delivery=Delivery(f"{url}/v1/traces", {}), receiver=RECEIVERS["mlflow"])
    with pytest.raises(DeliveryError, match="422"):
        await bare.write([record])
    await bare.aclose()
    traces = await traces_of(url, experiment, 2)
    by_attempt = {trace["spans"][0]["attributes"]["sidecar.attempt"]: trace for trace in traces}
    for trace in traces:
        usage = trace["spans"][0]["attributes"]["mlflow.chat.tokenUsage"]
        assert (usage["input_tokens"], usage["output_tokens"]) == (13, 7)
        assert (usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]) == (3, 3)
    assert by_attempt[1]["cost"]["total_cost"] == pytest.approx(0.123456789)
    assert (by_attempt[2]["cost"] or {}).get("total_cost") != pytest.approx(0.123456789), "MLflow's own price"


CALL = {
    "name": "chat gpt-4o-mini", "model": "gpt-4o-mini", "user": "e-1", "tags": ["batch", "nightly"],
    "trace_metadata": {"key_alias": "ci", "team_id": "search"},
    "metadata": {"outcome": "ok", "cost_status": "settled", "model_group": "gpt", "deployment_id": "gpt#0:openai"},
    "usage": {"input": 7, "input_cached_tokens": 3, "output": 5, "output_reasoning_tokens": 2},
    "cost": {"total": 0.00017}, "first_byte_at": "2026-09-21T14:13:20.423+00:00",
}  # fmt: skip


@needs_vendors
async def test_langfuse_sdk_sends_as_the_recipe_does(tmp_path: Path, receiver: Receiver) -> None:  # noqa: F811
    await run("langfuse_send.py", receiver.url, json.dumps(CALL))
    got = next(one for one in receiver.seen if one.path.endswith("/traces"))
    (span,) = spans_of(got)
    told = values_of(span)
    keep("langfuse.json", {
        "versions": {"langfuse": VERSIONS["langfuse"]},
        "path": got.path,
        "headers": {k: got.headers[k] for k in ("authorization", "content-type", "x-langfuse-ingestion-version")},
        "attributes": told,
    })  # fmt: skip
    (ours,) = await sent_by_us("Langfuse", tmp_path, receiver)
    assert receiver.seen[-1].path == got.path
    assert receiver.seen[-1].headers["authorization"] == got.headers["authorization"]
    langfuse_agrees(ours, told)


@needs_vendors
async def test_lunary_sdk_tells_what_the_recipe_does(tmp_path: Path, receiver: Receiver) -> None:  # noqa: F811
    call = CALL | {"id": "01" * 16, "failed_id": "02" * 16, "why": "provider_error"}
    await run("lunary_send.py", receiver.url, json.dumps(call | {"usage": {"prompt": 10, "completion": 7}}))
    assert {got.path for got in receiver.seen} == {"/v1/runs/ingest"}, "events, not spans"
    events = [event for got in receiver.seen for event in json.loads(got.body)["events"]]
    shown = ("event", "type", "name", "userId", "tags", "runId", "tokensUsage", "error")
    events = [{name: event[name] for name in shown} for event in events]
    keep("lunary.json", {
        "versions": {"lunary": VERSIONS["lunary"]},
        "path": receiver.seen[0].path,
        "headers": {"authorization": receiver.seen[0].headers["authorization"]},
        "events": events,
    })  # fmt: skip
    failed = replace(RECORD, attempt=2, usage=Usage(), outcome="provider_error")
    await sent_by_us("Lunary", tmp_path, receiver, RECORD, failed)
    lunary_agrees(spans_of(receiver.seen[-1]), events)


def keep(name: str, seen: dict[str, Any]) -> None:
    """What the tests without vendors compare with; `RECIPES_WRITE=1` renews it."""
    file = SENT / name
    if os.environ.get("RECIPES_WRITE") == "1":
        file.write_text(json.dumps(seen, indent=1, ensure_ascii=False) + "\n", "utf-8")
    kept = json.loads(file.read_text("utf-8"))
    assert kept | {"versions": None} == seen | {"versions": None}, f"{file.name} is not what the SDK sends any more"


@needs_vendors
def test_attributes_are_named_as_opentelemetry_names_them() -> None:
    """OpenTelemetry's own constants, which came with the SDKs; the names below are younger than they.
    https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/client-inference.md"""
    asked = (
        "import json; from opentelemetry.semconv._incubating.attributes import "
        "error_attributes as e, gen_ai_attributes as g, http_attributes as h, user_attributes as u; "
        "print(json.dumps([v for m in (e, g, h, u) for k, v in vars(m).items() if k.isupper() and type(v) is str]))"
    )
    found = subprocess.run([PYTHON, "-W", "ignore", "-c", asked], capture_output=True, text=True, check=True)
    known = set(json.loads(found.stdout))
    younger = {f"gen_ai.usage.{of}.{way}_tokens" for of in ("audio", "image") for way in ("input", "output")}
    younger |= {"gen_ai.usage.cache_write.input_tokens", "gen_ai.usage.cost"}  # the cost is a custom of receivers
    failed = replace(RECORD, outcome="provider_error", usage=Usage(1, 2, 3, 4, 5, 6, 7, 8, 9, 10))
    ours = {name for name in attributes_of(failed) if not name.startswith("sidecar.")}
    assert ours - known == younger
    assert len(ours) > 15
