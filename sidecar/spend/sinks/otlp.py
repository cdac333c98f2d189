"""`otlp+https://collector:4318`: each record as a span with OpenTelemetry's GenAI attributes, by OTLP over HTTP.
https://opentelemetry.io/docs/specs/otlp/#otlphttp
https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/client-inference.md

The binary form is written here (`protobuf.py`), since every receiver takes it and it needs four field types only. One
exchange is one trace: its id is the exchange's, so a retry is a second span in it. What else a product reads is in
`receivers.py`.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sidecar.spend.rows import storable
from sidecar.spend.sinks.delivery import Delivery
from sidecar.spend.sinks.protobuf import bytes_field, double_field, fields_of, fixed64_field, int_field
from sidecar.spend.sinks.receivers import RECEIVERS, Receiver
from sidecar.types import Secret, SpendRecord, format_usd, nano_to_usd

SERVICE = "sidecar"
AT_ONCE = 20
"""Spans made in one turn of the event loop: a batch takes a tenth of a second."""
_CLIENT = 3
_ERROR = 2
_FAR = 2**63 - 1024  # a float and a signed 64-bit integer
_CAUSES = {"provider_error", "incomplete", "client_left", "gateway_error", "refused"}
# https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/registry/attributes/gen-ai.md
_PROVIDERS = {
    "bedrock": "aws.bedrock",
    "bedrock-invoke": "aws.bedrock",
    "azure": "azure.ai.openai",
    "gemini": "gcp.gemini",
    "vertex": "gcp.vertex_ai",
    "mistral": "mistral_ai",
    "moonshot": "moonshot_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}


class OtlpSink:
    """`url` is the receiver's base, to which `/v1/traces` is added, or a URL that ends in `/traces`."""

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, Secret] | None = None,
        delivery: Delivery | None = None,
        receiver: Receiver = RECEIVERS["otlp"],
    ) -> None:
        target = url if url.endswith("/traces") else url.rstrip("/") + "/v1/traces"
        self._delivery = delivery if delivery is not None else Delivery(target, headers or {})
        self._receiver = receiver

    async def write(self, records: Sequence[SpendRecord]) -> None:
        """Corrections are no spans: a trace is not changed once it is sent."""
        spans = [record for record in records if record.revision == 0]
        if not spans:
            return
        made = b""
        for start in range(0, len(spans), AT_ONCE):
            made += _spans(spans[start : start + AT_ONCE], self._receiver)
            await asyncio.sleep(0)  # requests go first
        body = _request(made)
        headers = {"content-type": "application/x-protobuf"}
        if self._receiver.takes_gzip:
            body = gzip.compress(body, compresslevel=1)
            headers["content-encoding"] = "gzip"
        kind, answer = await self._delivery.send(body, headers)
        if kind.startswith("application/x-protobuf") and (lost := rejected_of(answer)):
            raise self._delivery.error("some spans were rejected", lost)

    async def aclose(self) -> None:
        await self._delivery.aclose()


def rejected_of(answer: bytes) -> int:
    """How many spans an `ExportTraceServiceResponse` says were not taken; they are not to be sent again.
    https://opentelemetry.io/docs/specs/otlp/#partial-success-1"""
    partly = fields_of(answer).get(1)
    rejected = fields_of(partly).get(1) if isinstance(partly, bytes) else None
    return rejected if isinstance(rejected, int) and rejected < 2**63 else 0


def request_of(records: Iterable[SpendRecord], receiver: Receiver = RECEIVERS["otlp"]) -> bytes:
    """An `ExportTraceServiceRequest`.
    https://github.com/open-telemetry/opentelemetry-proto/blob/main/opentelemetry/proto/trace/v1/trace.proto"""
    return _request(_spans(records, receiver))


def _spans(records: Iterable[SpendRecord], receiver: Receiver) -> bytes:
    return b"".join(bytes_field(2, span_of(storable(record), receiver)) for record in records)


def _request(spans: bytes) -> bytes:
    scope = bytes_field(1, bytes_field(1, b"sidecar.spend"))
    resource = bytes_field(1, _attribute("service.name", SERVICE))
    return bytes_field(1, bytes_field(1, resource) + bytes_field(2, scope + spans))


def span_of(record: SpendRecord, receiver: Receiver = RECEIVERS["otlp"]) -> bytes:
    """A `Span`."""
    start = _nanos(record.began_at or record.at)
    end = min(start + max(0, record.duration_ms) * 1_000_000, _FAR)
    is_failed = record.outcome in _CAUSES
    found = attributes_of(record) | {k: v for k, v in receiver.more(record).items() if v is not None}
    attributes = b"".join(bytes_field(9, _attribute(name, value)) for name, value in found.items())
    status = bytes_field(15, bytes_field(2, record.outcome.encode()) + int_field(3, _ERROR)) if is_failed else b""
    return (
        bytes_field(1, trace_id(record.exchange_id))
        + bytes_field(2, hashlib.sha256(f"{record.exchange_id}/{record.attempt}".encode()).digest()[:8])
        + bytes_field(5, f"chat {record.model}".encode())
        + int_field(6, _CLIENT)
        + fixed64_field(7, start)
        + fixed64_field(8, end)
        + attributes
        + status
    )


def _nanos(at: float) -> int:
    return round(max(0.0, min(at * 1e9, _FAR))) if at == at else 0


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
    written = _sum(usage.cache_write_5m, usage.cache_write_1h)
    is_first_byte_known = record.is_stream and record.first_byte_ms is not None
    found: dict[str, Any] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": _PROVIDERS.get(record.provider, record.provider),
        "gen_ai.request.model": record.model,
        "gen_ai.request.stream": True if record.is_stream else None,
        "gen_ai.response.time_to_first_chunk": (record.first_byte_ms or 0) / 1000 if is_first_byte_known else None,
        "gen_ai.usage.input_tokens": usage.total_input if usage.is_known else None,
        "gen_ai.usage.output_tokens": usage.total_output if usage.is_known else None,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_input,
        "gen_ai.usage.cache_write.input_tokens": written,
        "gen_ai.usage.cache_creation.input_tokens": written,  # its name until 2026, which most receivers read
        "gen_ai.usage.reasoning.output_tokens": usage.reasoning,
        "gen_ai.usage.audio.input_tokens": usage.audio_input,
        "gen_ai.usage.audio.output_tokens": usage.audio_output,
        "gen_ai.usage.image.input_tokens": usage.image_input,
        "gen_ai.usage.image.output_tokens": usage.image_output,
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


def _attribute(name: str, value: str | bool | int | float | tuple[str, ...]) -> bytes:
    """A `KeyValue`."""
    return bytes_field(1, name.encode()) + bytes_field(2, _held(value))


def _held(value: str | bool | int | float | tuple[str, ...]) -> bytes:
    """An `AnyValue`."""
    if isinstance(value, str):
        held = bytes_field(1, value.encode())
    elif isinstance(value, tuple):
        held = bytes_field(5, b"".join(bytes_field(1, _held(item)) for item in value))
    elif isinstance(value, bool):
        held = int_field(2, int(value))
    elif isinstance(value, int):
        held = int_field(3, value)
    else:
        held = double_field(4, value)
    return held
