"""`otlp+https://collector:4318`: each record as a span with OpenTelemetry's GenAI attributes, by OTLP over HTTP.
https://opentelemetry.io/docs/specs/otlp/#otlphttp · https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/

The binary form is written here (`protobuf.py`), since every receiver takes it and it needs four field types only. One
exchange is one trace: its id is the exchange's, so a retry is a second span in it.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sidecar.spend.rows import storable
from sidecar.spend.sinks.delivery import Delivery
from sidecar.spend.sinks.protobuf import bytes_field, double_field, fixed64_field, int_field
from sidecar.types import Secret, SpendRecord, format_usd, nano_to_usd

SERVICE = "sidecar"
_CLIENT = 3
_ERROR = 2
_CAUSES = {"provider_error", "incomplete", "client_left", "gateway_error", "refused"}
# https://opentelemetry.io/docs/specs/semconv/registry/attributes/gen-ai/#gen-ai-provider-name
_PROVIDERS = {
    "bedrock": "aws.bedrock",
    "bedrock-invoke": "aws.bedrock",
    "azure": "azure.ai.openai",
    "gemini": "gcp.gemini",
    "vertex": "gcp.vertex_ai",
    "mistral": "mistral_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}


class OtlpSink:
    """`url` is the receiver's base, to which `/v1/traces` is added, or a URL that ends in `/traces`."""

    def __init__(
        self, url: str, *, headers: Mapping[str, Secret] | None = None, delivery: Delivery | None = None
    ) -> None:
        target = url if url.endswith("/traces") else url.rstrip("/") + "/v1/traces"
        self._delivery = delivery if delivery is not None else Delivery(target, headers or {})

    async def write(self, records: Sequence[SpendRecord]) -> None:
        body = gzip.compress(request_of(records), compresslevel=1)
        await self._delivery.send(body, {"content-type": "application/x-protobuf", "content-encoding": "gzip"})

    async def aclose(self) -> None:
        await self._delivery.aclose()


def request_of(records: Iterable[SpendRecord]) -> bytes:
    """An `ExportTraceServiceRequest`.
    https://github.com/open-telemetry/opentelemetry-proto/blob/main/opentelemetry/proto/trace/v1/trace.proto"""
    scope = bytes_field(1, bytes_field(1, b"sidecar.spend"))
    spans = b"".join(bytes_field(2, span_of(storable(record))) for record in records if record.revision == 0)
    resource = bytes_field(1, _attribute("service.name", SERVICE))
    return bytes_field(1, bytes_field(1, resource) + bytes_field(2, scope + spans))


def span_of(record: SpendRecord) -> bytes:
    """A `Span`."""
    end = round(record.at * 1e9)
    start = end - record.duration_ms * 1_000_000
    is_failed = record.outcome in _CAUSES
    attributes = b"".join(bytes_field(9, _attribute(name, value)) for name, value in attributes_of(record).items())
    status = bytes_field(15, bytes_field(2, record.outcome.encode()) + int_field(3, _ERROR)) if is_failed else b""
    return (
        bytes_field(1, trace_id(record.exchange_id))
        + bytes_field(2, hashlib.sha256(f"{record.exchange_id}/{record.attempt}".encode()).digest()[:8])
        + bytes_field(5, f"chat {record.model}".encode())
        + int_field(6, _CLIENT)
        + fixed64_field(7, max(0, start))
        + fixed64_field(8, max(0, end))
        + attributes
        + status
    )


def trace_id(exchange_id: str) -> bytes:
    """16 bytes: the exchange's UUID itself; of another name, its hash."""
    try:
        found = bytes.fromhex(exchange_id.replace("-", ""))
    except ValueError:
        found = b""
    return found if len(found) == 16 else hashlib.sha256(exchange_id.encode()).digest()[:16]


def attributes_of(record: SpendRecord) -> dict[str, Any]:
    """What is known of it: OpenTelemetry's names first, then ours. No key hash: who reads traces needs the alias."""
    usage = record.usage
    found: dict[str, Any] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": _PROVIDERS.get(record.provider, record.provider),
        "gen_ai.request.model": record.model,
        "gen_ai.usage.input_tokens": usage.total_input if usage.is_known else None,
        "gen_ai.usage.output_tokens": usage.total_output if usage.is_known else None,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_input,
        "gen_ai.usage.cache_creation.input_tokens": _sum(usage.cache_write_5m, usage.cache_write_1h),
        "gen_ai.usage.reasoning.output_tokens": usage.reasoning,
        "gen_ai.usage.cost": float(nano_to_usd(record.cost_nano)),
        "http.response.status_code": record.http_status or None,
        "error.type": record.outcome if record.outcome in _CAUSES else None,
        "user.id": record.end_user_id or record.user_id,
        "sidecar.exchange_id": record.exchange_id,
        "sidecar.request_id": record.request_id,
        "sidecar.attempt": record.attempt,
        "sidecar.outcome": record.outcome,
        "sidecar.cost_usd": format_usd(record.cost_nano),
        "sidecar.cost_status": record.status,
        "sidecar.model_group": record.group,
        "sidecar.deployment_id": record.deployment_id,
        "sidecar.key_alias": record.key_alias,
        "sidecar.user_id": record.user_id,
        "sidecar.team_id": record.team_id,
        "sidecar.organization_id": record.organization_id,
        "sidecar.tags": ",".join(record.tags) or None,
        "sidecar.is_stream": record.is_stream,
        "sidecar.first_byte_ms": record.first_byte_ms,
    }
    return {name: value for name, value in found.items() if value is not None}


def _sum(*counts: int | None) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _attribute(name: str, value: str | bool | int | float) -> bytes:
    """A `KeyValue`."""
    if isinstance(value, str):
        held = bytes_field(1, value.encode())
    elif isinstance(value, bool):
        held = int_field(2, int(value))
    elif isinstance(value, int):
        held = int_field(3, value)
    else:
        held = double_field(4, value)
    return bytes_field(1, name.encode()) + bytes_field(2, held)
