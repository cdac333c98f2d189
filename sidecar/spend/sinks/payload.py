"""What a sink sends of a record: one flat, versioned object whose fields are never renamed nor given another meaning.

Version 1: money is USD as text (exact) and nano-dollars, instants are ISO 8601 in UTC, what is unknown is null. A new
field may come at any time; anything else is version 2.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from sidecar.spend.rows import micros, storable
from sidecar.types import SpendRecord, format_usd

VERSION = 1
_encode = msgspec.json.Encoder().encode


def payload_of(record: SpendRecord) -> dict[str, Any]:
    usage = record.usage
    return {
        "version": VERSION,
        "type": "spend" if record.revision == 0 else "correction",
        "id": f"{record.exchange_id}/{record.attempt}/{record.revision}",
        "exchange_id": record.exchange_id,
        "attempt": record.attempt,
        "revision": record.revision,
        "request_id": record.request_id,
        "at": datetime.fromtimestamp(micros(record.at) / 1e6, UTC).isoformat(timespec="microseconds"),
        "status": record.status,
        "outcome": record.outcome,
        "cost_usd": format_usd(record.cost_nano),
        "cost_nano": record.cost_nano,
        "model_group": record.group,
        "deployment_id": record.deployment_id,
        "provider": record.provider,
        "model": record.model,
        "key_hash": record.key_hash,
        "key_alias": record.key_alias,
        "user_id": record.user_id,
        "team_id": record.team_id,
        "organization_id": record.organization_id,
        "end_user_id": record.end_user_id,
        "tags": list(record.tags),
        "http_status": record.http_status,
        "is_stream": record.is_stream,
        "duration_ms": record.duration_ms,
        "first_byte_ms": record.first_byte_ms,
        "dropped_fields": list(record.dropped),
        "usage": usage.as_dict() if usage.is_known else None,
        "input_tokens": usage.total_input if usage.is_known else None,
        "output_tokens": usage.total_output if usage.is_known else None,
    }


def encoded_payload(record: SpendRecord) -> bytes:
    """As JSON; what JSON cannot hold (lone surrogates, huge counts) is replaced."""
    try:
        return _encode(payload_of(record))
    except (UnicodeEncodeError, OverflowError, ValueError):
        return _encode(payload_of(storable(record)))
