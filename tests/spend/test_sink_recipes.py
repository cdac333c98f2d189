"""The recipes of docs/sinks.md, as they stand there: each is loaded as configuration and writes to a receiver that
takes what the vendor documents – the path, the headers, and OTLP as OpenTelemetry's own types read it, with the
attributes the vendor makes its fields of.

`recipes/*.json` hold what the vendors' own SDKs sent of the same call: `test_sink_recipes_vendors.py` renews them.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sidecar.config import load_config
from sidecar.spend.sinks import Sink, open_sink
from sidecar.types import Usage
from tests.spend.test_sinks import RECORD, Received, Receiver, receiver  # noqa: F401 - a fixture

pytestmark = pytest.mark.anyio
PAGE = Path(__file__).parents[2] / "docs" / "sinks.md"
SENT = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Vendor:
    """What its page asks for."""

    path: str
    headers: dict[str, str]
    reads: tuple[str, ...]
    is_gzip: bool = True


GENAI = ("gen_ai.request.model", "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "gen_ai.operation.name")
VENDORS = {
    # https://langfuse.com/integrations/native/opentelemetry
    "Langfuse": Vendor(
        "/api/public/otel/v1/traces",
        {"authorization": "Basic " + base64.b64encode(b"pk:sk").decode(), "x-langfuse-ingestion-version": "4"},
        (*GENAI, "gen_ai.usage.cost", "user.id", "langfuse.observation.type"),
    ),
    # https://mlflow.org/docs/latest/genai/tracing/opentelemetry/ingest
    "MLflow": Vendor("/v1/traces", {"x-mlflow-experiment-id": "1"}, (*GENAI, "mlflow.llm.cost", "user.id")),
    # https://docs.lunary.ai/docs/integrations/opentelemetry/overview
    "Lunary": Vendor(
        "/v1/otel/v1/traces",
        {"authorization": "Bearer a-key"},
        (*GENAI, "gen_ai.usage.prompt_tokens", "lunary.user.id", "lunary.tags"),
        is_gzip=False,
    ),
}


def recipe(name: str) -> str:
    """The configuration below the heading of this name."""
    found = re.search(rf"^### {name}\n.*?```yaml[^\n]*\n(.*?)```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{PAGE.name} has no recipe for {name}"
    return found[1]


def sink_of(name: str, folder: Path, url: str) -> Sink:
    """The sink of that recipe, its host replaced by the one at `url`."""
    file = folder / "sidecar.yaml"
    file.write_text(recipe(name), "utf-8")
    (settings,) = load_config(file, {}).spend.sinks
    target = urlsplit(settings.url.reveal())
    assert target.scheme == f"{name.lower()}+https", "a credential goes over TLS"
    here = target._replace(scheme=f"{name.lower()}+http", netloc=urlsplit(url).netloc).geturl()
    return open_sink(here, headers=settings.headers, secret=settings.secret)


def spans_of(got: Received) -> list[Any]:
    body = gzip.decompress(got.body) if got.headers.get("content-encoding") == "gzip" else got.body
    request = ExportTraceServiceRequest.FromString(body)
    return [span for one in request.resource_spans for scope in one.scope_spans for span in scope.spans]


def values_of(span: Any) -> dict[str, Any]:
    return {attribute.key: _plain(attribute.value) for attribute in span.attributes}


def _plain(value: Any) -> Any:
    held = getattr(value, value.WhichOneof("value"))
    return [_plain(item) for item in held.values] if value.WhichOneof("value") == "array_value" else held


async def sent_by_us(name: str, folder: Path, to: Receiver, *records: Any) -> list[dict[str, Any]]:
    sink = sink_of(name, folder, to.url)
    await sink.write(records or [RECORD])
    await sink.aclose()
    return [values_of(span) for span in spans_of(to.seen[-1])]


@pytest.mark.parametrize("name", sorted(VENDORS))
async def test_a_recipe_writes_what_the_vendor_documents(
    name: str,
    tmp_path: Path,
    receiver: Receiver,  # noqa: F811
) -> None:
    vendor = VENDORS[name]
    (values,) = await sent_by_us(name, tmp_path, receiver)
    (got,) = receiver.seen
    assert got.path == vendor.path
    assert vendor.headers.items() <= got.headers.items()
    assert got.headers["content-type"] == "application/x-protobuf"
    assert ("content-encoding" in got.headers) == vendor.is_gzip
    assert set(vendor.reads) <= values.keys()
    assert (values["gen_ai.usage.input_tokens"], values["gen_ai.usage.output_tokens"]) == (10, 7)


async def test_langfuse_gets_what_its_own_sdk_would_send(tmp_path: Path, receiver: Receiver) -> None:  # noqa: F811
    theirs = json.loads((SENT / "langfuse.json").read_text("utf-8"))
    (ours,) = await sent_by_us("Langfuse", tmp_path, receiver)
    assert receiver.seen[0].path == theirs["path"]
    assert theirs["headers"].items() <= receiver.seen[0].headers.items()
    agree_with_langfuse(ours, theirs["attributes"])


def agree_with_langfuse(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Every attribute of the SDK's span is in ours with the same meaning, but its own bookkeeping."""
    assert len(theirs) > 8
    for name, told in theirs.items():
        if name.startswith("langfuse.internal."):
            continue
        if name.endswith(("_details", "completion_start_time")) or ".metadata." in name:
            told = json.loads(told)  # the SDK writes these as JSON, names and instants too
        mine = ours[name]
        if name.endswith("_details"):
            mine = json.loads(mine)
        if name.endswith("completion_start_time"):
            told, mine = datetime.fromisoformat(told), datetime.fromisoformat(mine)
        assert mine == told, name


async def test_langfuse_is_told_each_token_once_and_a_cost_of_zero(
    tmp_path: Path,
    receiver: Receiver,  # noqa: F811
) -> None:
    every = Usage(1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    failed = replace(RECORD, attempt=2, usage=Usage(), cost_nano=0, outcome="provider_error", first_byte_ms=None)
    one, two = await sent_by_us("Langfuse", tmp_path, receiver, replace(RECORD, usage=every), failed)
    assert sum(json.loads(one["langfuse.observation.usage_details"]).values()) == every.total == 1023
    assert json.loads(two["langfuse.observation.cost_details"]) == {"total": 0}
    assert "langfuse.observation.usage_details" not in two
    assert "langfuse.observation.completion_start_time" not in two
    assert spans_of(receiver.seen[0])[1].status.code == 2  # Langfuse's level ERROR


async def test_lunary_gets_what_the_events_of_its_sdk_say(tmp_path: Path, receiver: Receiver) -> None:  # noqa: F811
    theirs = json.loads((SENT / "lunary.json").read_text("utf-8"))
    failed = replace(RECORD, attempt=2, usage=Usage(), outcome="provider_error")
    await sent_by_us("Lunary", tmp_path, receiver, RECORD, failed)
    assert theirs["headers"].items() <= receiver.seen[0].headers.items()
    agree_with_lunary(spans_of(receiver.seen[0]), theirs["events"])


def agree_with_lunary(spans: list[Any], events: list[dict[str, Any]]) -> None:
    """What Lunary makes of spans: https://github.com/lunary-ai/lunary/blob/main/packages/backend/src/api/v1/otel/utils.ts"""
    start, end, failed_start, failed = events
    (ok, bad), (good, broken) = spans, map(values_of, spans)
    assert [event["event"] for event in events] == ["start", "end", "start", "error"]
    assert good["gen_ai.request.model"] == start["name"] == failed_start["name"]
    assert good["lunary.user.id"] == start["userId"]
    assert good["lunary.tags"] == start["tags"]
    usage = end["tokensUsage"]
    assert good["gen_ai.usage.prompt_tokens"] == good["gen_ai.usage.input_tokens"] == usage["prompt"]
    assert good["gen_ai.usage.completion_tokens"] == good["gen_ai.usage.output_tokens"] == usage["completion"]
    assert (ok.status.code, bad.status.code, bad.status.message) == (0, 2, failed["error"]["message"])
    assert "gen_ai.usage.prompt_tokens" not in broken
    assert start["runId"] != failed["runId"]
    assert ok.span_id != bad.span_id
