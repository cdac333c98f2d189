"""A spend record as one flat row in the order of the ledger's columns: what the journal writes and the database takes,
so that shipping a row decodes, never converts. Pure.

Neighbours: `segments` (lines of rows), `ledger` (inserts them). Money is nano-dollars, instants are microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from operator import attrgetter
from typing import Any

import msgspec

from sidecar.types import UNKNOWN_USAGE, SpendRecord, Usage

Row = Sequence[Any]

_Text = str | None
_Count = int | None
# (column, field, type)
_PLAIN: tuple[tuple[str, str, Any], ...] = (
    ("exchange_id", "exchange_id", str), ("attempt", "attempt", int), ("revision", "revision", int),
    ("key_hash", "key_hash", str), ("status", "status", str), ("outcome", "outcome", str),
    ("cost_nano", "cost_nano", int), ("model_group", "group", str), ("deployment_id", "deployment_id", str),
    ("provider", "provider", str), ("model", "model", str), ("key_alias", "key_alias", _Text),
    ("user_id", "user_id", _Text), ("team_id", "team_id", _Text), ("organization_id", "organization_id", _Text),
    ("end_user_id", "end_user_id", _Text), ("request_id", "request_id", _Text), ("http_status", "http_status", int),
    ("is_stream", "is_stream", bool), ("duration_ms", "duration_ms", int), ("first_byte_ms", "first_byte_ms", _Count),
)  # fmt: skip
USAGE = tuple(f.name for f in fields(Usage))
COLUMNS = (
    *(column for column, _, _ in _PLAIN),
    "at",
    "dropped",
    "budget_keys",
    "tags",
    *(f"{name}_tokens" for name in USAGE),
)
STATUS, OUTCOME = COLUMNS.index("status"), COLUMNS.index("outcome")
_TYPES = (*(kind for _, _, kind in _PLAIN), int, str, str, str, *(_Count for _ in USAGE))

_INT64 = 2**63 - 1
_INT32 = 2**31 - 1
_SMALL = ("attempt", "revision", "http_status")
_FAR = 1e12
_NO_NAMES = "[]"
_encode = msgspec.json.Encoder().encode
_decode_row = msgspec.json.Decoder(tuple.__class_getitem__(_TYPES)).decode
_decode_names = msgspec.json.Decoder(tuple[str, ...]).decode
_plain_of = attrgetter(*(field for _, field, _ in _PLAIN))
_usage_of = attrgetter(*USAGE)
_NO_USAGE = (None,) * len(USAGE)


def row_of(record: SpendRecord) -> tuple[Any, ...]:
    """Raises `UnicodeEncodeError` for names no JSON holds; `storable` helps."""
    dropped, budget_keys, tags, usage = record.dropped, record.budget_keys, record.tags, record.usage
    rest = (
        micros(record.at),
        _names_of(dropped) if dropped else _NO_NAMES,
        _names_of(budget_keys) if budget_keys else _NO_NAMES,
        _names_of(tags) if tags else _NO_NAMES,
    )
    return _plain_of(record) + rest + (_NO_USAGE if usage is UNKNOWN_USAGE else _usage_of(usage))


@lru_cache(maxsize=4096)
def _names_of(names: tuple[str, ...]) -> str:
    """The same few again and again: a key's budget windows, a team's tags."""
    return _encode(names).decode()


def record_of(row: Row) -> SpendRecord:
    return record_of_columns(dict(zip(COLUMNS, row, strict=True)))


def record_of_columns(row: Mapping[Any, Any]) -> SpendRecord:
    """From a database row by column name."""
    return SpendRecord(
        **{name: row[column] for column, name, _ in _PLAIN},
        at=row["at"] / 1_000_000,
        dropped=_decode_names(row["dropped"]),
        budget_keys=_decode_names(row["budget_keys"]),
        tags=_decode_names(row["tags"]),
        usage=Usage(**{name: row[f"{name}_tokens"] for name in USAGE}),
    )


def encoded(record: SpendRecord) -> bytes:
    """The row as a JSON array; what JSON cannot hold (lone surrogates, huge counts) is replaced."""
    try:
        return _encode(row_of(record))
    except (UnicodeEncodeError, OverflowError):
        return _encode(row_of(storable(record)))


def decoded(data: bytes) -> Row:
    """Back from `encoded`; what no database holds (NUL) is replaced here, where no request waits. Raises
    `msgspec.MsgspecError`, `UnicodeDecodeError`."""
    row: Row = _decode_row(data)
    return row if b"\\u0000" not in data else row_of(storable(record_of(row)))


def micros(at: float) -> int:
    """The last microsecond not after `at`: an instant just before a window's end stays in the window. What is no
    instant of a calendar counts as the nearest, so that no row is refused for it."""
    if not 0.0 <= at <= _FAR:
        at = max(-_FAR, min(at, _FAR)) if at == at else 0.0
    found = round(at * 1_000_000)
    return found - 1 if found / 1_000_000 > at else found


def storable(record: SpendRecord) -> SpendRecord:
    """The same record with every text encodable, without NUL, and every integer in 64 bits."""
    changes: dict[str, object] = {}
    for name in [f.name for f in fields(SpendRecord)]:
        value = getattr(record, name)
        changes[name] = tuple(_clean(item) for item in value) if isinstance(value, tuple) else _clean(value)
    for name in _SMALL:
        changes[name] = max(-_INT32, min(getattr(record, name), _INT32))
    changes["usage"] = Usage(
        **{name: max(-_INT64, min(count, _INT64)) for name, count in record.usage.as_dict().items()}
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def _clean(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    if isinstance(value, int) and not isinstance(value, bool):
        return max(-_INT64, min(value, _INT64))
    return value
