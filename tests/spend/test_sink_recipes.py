"""The recipes of docs/sinks.md, as they stand there: each is loaded as configuration and writes to a receiver that
takes what the vendor documents – the path, the headers, and OTLP as OpenTelemetry's own types read it, with the
attributes the vendor's page says it makes its fields of."""

from __future__ import annotations

import base64
import gzip
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sidecar.config import load_config
from sidecar.spend.sinks import open_sink
from tests.spend.test_sinks import RECORD, Receiver, receiver  # noqa: F401 - a fixture

pytestmark = pytest.mark.anyio
PAGE = Path(__file__).parents[2] / "docs" / "sinks.md"


@dataclass(frozen=True)
class Vendor:
    """What its page asks for."""

    path: str
    headers: dict[str, str]
    reads: tuple[str, ...]


GENAI = ("gen_ai.request.model", "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "gen_ai.operation.name")
VENDORS = {
    # https://langfuse.com/integrations/native/opentelemetry
    "Langfuse": Vendor(
        "/api/public/otel/v1/traces",
        {"authorization": "Basic " + base64.b64encode(b"pk:sk").decode(), "x-langfuse-ingestion-version": "4"},
        (*GENAI, "gen_ai.usage.cost", "user.id"),
    ),
    # https://mlflow.org/docs/latest/genai/tracing/opentelemetry/ingest
    "MLflow": Vendor("/v1/traces", {"x-mlflow-experiment-id": "1"}, GENAI),
    # https://docs.lunary.ai
    "Lunary": Vendor("/v1/traces", {"authorization": "Bearer a-key"}, GENAI),
}


def recipe(name: str) -> str:
    """The configuration below the paragraph that begins with this name."""
    found = re.search(rf"^{name}\b.*?```yaml[^\n]*\n(.*?)```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{PAGE.name} has no recipe for {name}"
    return found[1]


@pytest.mark.parametrize("name", sorted(VENDORS))
async def test_a_recipe_writes_what_the_vendor_documents(
    name: str,
    tmp_path: Path,
    receiver: Receiver,  # noqa: F811
) -> None:
    vendor = VENDORS[name]
    file = tmp_path / "sidecar.yaml"
    file.write_text(recipe(name), "utf-8")
    (settings,) = load_config(file, {}).spend.sinks
    url = urlsplit(settings.url.reveal())
    assert url.scheme == "otlp+https", "a credential goes over TLS"
    here = url._replace(scheme="otlp+http", netloc=urlsplit(receiver.url).netloc).geturl()
    sink = open_sink(here, headers=settings.headers, secret=settings.secret)
    await sink.write([RECORD])
    await sink.aclose()
    (got,) = receiver.seen
    assert got.path == vendor.path
    assert vendor.headers.items() <= got.headers.items()
    assert got.headers["content-type"] == "application/x-protobuf"
    request = ExportTraceServiceRequest.FromString(gzip.decompress(got.body))
    (span,) = request.resource_spans[0].scope_spans[0].spans
    values: dict[str, Any] = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}
    assert set(vendor.reads) <= values.keys()
    assert (values["gen_ai.usage.input_tokens"], values["gen_ai.usage.output_tokens"]) == (10, 7)
