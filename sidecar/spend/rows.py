"""A spend record as one flat row in the order of the ledger's columns: what the journal writes and the database takes,
so that shipping a row decodes, never converts. Pure.

Neighbours: `segments` (lines of rows), `ledger` (inserts them). Money is nano-dollars, instants are microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from hashlib import sha256
from math import floor
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
_HEAD = (*(column for column, _, _ in _PLAIN), "at", "dropped", "budget_keys", "tags")
COLUMNS = (*_HEAD, *(f"{name}_tokens" for name in USAGE))
STATUS, OUTCOME = COLUMNS.index("status"), COLUMNS.index("outcome")
_HEAD_TYPES = (*(kind for _, _, kind in _PLAIN), int, str, str, str)
HeadColumns = tuple.__class_getitem__(_HEAD_TYPES)
RowColumns = tuple.__class_getitem__((*_HEAD_TYPES, *(_Count for _ in USAGE)))
"""What a head and a row read back must be, for a strict decoder."""

_INT64 = 2**63 - 1
_INT32 = 2**31 - 1
_SMALL = ("attempt", "revision", "http_status")
_LONG_AGO, _FAR = -62_135_596_800.0, 253_402_300_799.0  # the calendar's first and last second
MAX_TEXT_BYTES = 600
"""Of a text that the database did not take. PostgreSQL's index entries have at most 2,704 bytes, those of the daily
totals four names. https://www.postgresql.org/docs/current/btree.html"""
_NO_NAMES = "[]"
_encode = msgspec.json.Encoder().encode
_decode_names = msgspec.json.Decoder(tuple[str, ...]).decode
_NO_USAGE = (None,) * len(USAGE)


def row_of(record: SpendRecord) -> tuple[Any, ...]:
    usage = record.usage
    if usage is UNKNOWN_USAGE:
        return head_of(record) + _NO_USAGE
    counts = (
        usage.input, usage.cached_input, usage.cache_write_5m, usage.cache_write_1h, usage.output, usage.reasoning,
        usage.audio_input, usage.audio_output, usage.image_input, usage.image_output,
    )  # fmt: skip
    return head_of(record) + counts


def head_of(record: SpendRecord) -> tuple[Any, ...]:
    """The row without its usage: all there is before dispatch. Attributes by name cost half of `attrgetter`; more than
    30 would make the tuple by way of a list."""
    dropped, budget_keys, tags = record.dropped, record.budget_keys, record.tags
    at = record.at
    instant = floor(at * 1e6 + 0.5) if 0.0 <= at <= _FAR else micros(at)
    return (
        record.exchange_id, record.attempt, record.revision, record.key_hash, record.status, record.outcome,
        record.cost_nano, record.group, record.deployment_id, record.provider, record.model, record.key_alias,
        record.user_id, record.team_id, record.organization_id, record.end_user_id, record.request_id,
        record.http_status, record.is_stream, record.duration_ms, record.first_byte_ms,
        instant if instant / 1e6 <= at else micros(at),
        _texts[dropped] if dropped else _NO_NAMES,
        _texts[budget_keys] if budget_keys else _NO_NAMES,
        _texts[tags] if tags else _NO_NAMES,
    )  # fmt: skip


class _Texts(dict[tuple[str, ...], str]):
    """Names as JSON: the same few again and again, a key's budget windows, a team's tags. Found at a third of what
    `lru_cache` costs."""

    def __missing__(self, names: tuple[str, ...]) -> str:
        try:
            text = _encode(names).decode()
        except UnicodeEncodeError:
            text = _encode([_clean(name) for name in names]).decode()
        if len(self) >= 4096:
            self.clear()
        self[names] = text
        return text


_texts = _Texts()


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


def with_usage(head: Row) -> tuple[Any, ...]:
    return (*head, *_NO_USAGE)


def encoded(record: SpendRecord) -> bytes:
    """The row as a JSON array; what JSON cannot hold (lone surrogates, huge counts) is replaced."""
    row = row_of(record)
    try:
        return _encode(row)
    except (UnicodeEncodeError, OverflowError):
        return _encode(cleaned(row))


def cleaned(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """A row, head or ledger key as `storable` makes it: what neither JSON nor a database can hold is replaced."""
    if len(row) < len(_HEAD):
        return tuple(map(_clean, row))
    whole = row if len(row) == len(COLUMNS) else with_usage(row)
    return row_of(storable(record_of(whole)))[: len(row)]


def micros(at: float) -> int:
    """The last microsecond not after `at`: an instant just before a window's end stays in the window. What is no
    instant of a calendar counts as the nearest, so that no row is refused for it."""
    if not 0.0 <= at <= _FAR:
        at = max(_LONG_AGO, min(at, _FAR)) if at == at else 0.0
    found = round(at * 1e6)
    return found - 1 if found / 1e6 > at else found


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


def fitting(record: SpendRecord) -> SpendRecord:
    """`storable`, and every text short enough for the database's indexes: its beginning and a hash of the whole, so
    that two long names stay two."""
    clean = storable(record)
    changes: dict[str, object] = {}
    for name in [f.name for f in fields(SpendRecord)]:
        value = getattr(clean, name)
        changes[name] = tuple(map(_shortened, value)) if isinstance(value, tuple) else _shortened(value)
    return replace(clean, **changes)  # type: ignore[arg-type]


def _shortened(value: object) -> object:
    if not isinstance(value, str) or len(data := value.encode()) <= MAX_TEXT_BYTES:
        return value
    return f"{data[: MAX_TEXT_BYTES - 20].decode(errors='ignore')}…{sha256(data).hexdigest()[:16]}"


def _clean(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    if isinstance(value, int) and not isinstance(value, bool):
        return max(-_INT64, min(value, _INT64))
    return value
