"""What a receiver of spans reads besides OpenTelemetry's GenAI attributes: one function per product, chosen by the
scheme of the sink's URL (`langfuse+https:`), and whether it takes compressed bodies.

Rule: each name stands on the page, or in the server's source, that is cited at the function. `otlp.py` sends them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from sidecar.types import SpendRecord, nano_to_usd

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Receiver:
    """`more`: attributes by name; `None` is left out, a tuple of text is an array."""

    more: Callable[[SpendRecord], dict[str, Any]]
    takes_gzip: bool = True


def _nothing(record: SpendRecord) -> dict[str, Any]:
    return {}


def _langfuse(record: SpendRecord) -> dict[str, Any]:
    """https://langfuse.com/integrations/native/opentelemetry#property-mapping

    Usage by disjoint classes, since Langfuse adds them up to a total, and costs even if they are zero, since it would
    else price the tokens itself. What is in no `langfuse.` attribute is not shown as metadata.
    https://langfuse.com/docs/observability/features/token-and-cost-tracking
    """
    usage = record.usage
    classes = {
        "input": usage.input,
        "input_cached_tokens": usage.cached_input,
        "input_cache_creation_5m": usage.cache_write_5m,
        "input_cache_creation_1h": usage.cache_write_1h,
        "input_audio_tokens": usage.audio_input,
        "input_image_tokens": usage.image_input,
        "output": usage.output,
        "output_reasoning_tokens": usage.reasoning,
        "output_audio_tokens": usage.audio_output,
        "output_image_tokens": usage.image_output,
    }
    shown: dict[str, Any] = {
        "langfuse.trace.metadata.key_alias": record.key_alias,
        "langfuse.trace.metadata.team_id": record.team_id,
        "langfuse.trace.metadata.organization_id": record.organization_id,
        "langfuse.trace.metadata.request_id": record.request_id,
        "langfuse.observation.metadata.attempt": record.attempt,
        "langfuse.observation.metadata.outcome": record.outcome,
        "langfuse.observation.metadata.cost_status": record.status,
        "langfuse.observation.metadata.model_group": record.group or None,
        "langfuse.observation.metadata.deployment_id": record.deployment_id or None,
        "langfuse.observation.metadata.http_status": record.http_status or None,
    }
    return shown | {
        "langfuse.observation.type": "generation",
        "langfuse.observation.model.name": record.model or None,
        "langfuse.observation.usage_details": _json(_known(classes)) if usage.is_known else None,
        "langfuse.observation.cost_details": _json({"total": float(nano_to_usd(record.cost_nano))}),
        "langfuse.observation.completion_start_time": _first_byte_at(record),
        "langfuse.trace.tags": record.tags or None,
    }


def _mlflow(record: SpendRecord) -> dict[str, Any]:
    """`mlflow.llm.cost` is the cost MLflow shows and adds up; without it, it prices the tokens by its own list.
    `mlflow.traceTag.` are the tags one searches traces by.
    https://mlflow.org/docs/latest/genai/tracing/token-usage-cost/
    https://github.com/mlflow/mlflow/blob/master/mlflow/tracing/constant.py
    """
    return {
        "mlflow.llm.cost": _json({"total_cost": float(nano_to_usd(record.cost_nano))}),
        "mlflow.traceTag.sidecar.key_alias": record.key_alias,
        "mlflow.traceTag.sidecar.team_id": record.team_id,
        "mlflow.traceTag.sidecar.organization_id": record.organization_id,
        "mlflow.traceTag.sidecar.tags": ",".join(record.tags) or None,
    }


def _lunary(record: SpendRecord) -> dict[str, Any]:
    """https://docs.lunary.ai/docs/integrations/opentelemetry/otel-python#advanced-custom-attributes
    https://github.com/lunary-ai/lunary/blob/main/packages/backend/src/api/v1/otel/utils.ts"""
    usage = record.usage
    return {
        "gen_ai.usage.prompt_tokens": usage.total_input if usage.is_known else None,
        "gen_ai.usage.completion_tokens": usage.total_output if usage.is_known else None,
        "gen_ai.usage.cache_read_input_tokens": usage.cached_input,
        "lunary.user.id": record.end_user_id or record.user_id,
        "lunary.tags": record.tags or None,
    }


def _first_byte_at(record: SpendRecord) -> str | None:
    if record.first_byte_ms is None or not record.is_stream:
        return None
    began_at = record.began_at or record.at
    at = datetime.fromtimestamp(max(0.0, min(began_at + record.first_byte_ms / 1000, 4e9)), UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _known(counts: Mapping[str, int | None]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count is not None}


def _json(value: Mapping[str, Any]) -> str:
    return _encode(value).decode()


RECEIVERS: Mapping[str, Receiver] = {
    "otlp": Receiver(_nothing),
    "langfuse": Receiver(_langfuse),
    "mlflow": Receiver(_mlflow),
    # Lunary reads the body as it comes:
    # https://github.com/lunary-ai/lunary/blob/main/packages/backend/src/utils/protobuf.ts
    "lunary": Receiver(_lunary, takes_gzip=False),
}
