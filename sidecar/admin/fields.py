"""The kinds of values fields hold, each with its rule and its JSON schema: money, counts, durations, instants, keys.

Neighbours: `requests.py` makes models of them. Money is exact: a number is read as it was written, never as a float.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from sidecar.admin.bodies import Number
from sidecar.identity.keys import MASTER_KEY_HASH
from sidecar.identity.tokens import hash_key, is_hash, is_plausible
from sidecar.limits.windows import MAX_BUDGET_NANO, parse_duration
from sidecar.types import NANO

MAX_BUDGET_USD = MAX_BUDGET_NANO // NANO
MAX_DURATION_S = 100 * 366 * 86_400
MAX_COUNT = 1_000_000_000_000
MAX_INSTANT = 253_402_300_799
MAX_METADATA_BYTES = 64 * 1024


def _money(value: object) -> Decimal | None:
    """USD as number or text → exact Decimal, at most nine decimals (nano-dollars)."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | Number | str):
        raise ValueError("has to be an amount of USD, as a number or a text such as '12.50'")
    text = value.text if isinstance(value, Number) else str(value) if isinstance(value, int) else value.strip()
    if len(text) > 64 or not re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?", text, re.ASCII):
        raise ValueError("has to be an amount of USD, as a number or a text such as '12.50'")
    try:
        amount = Decimal(text)
    except InvalidOperation:
        raise ValueError("has to be an amount of USD") from None
    if amount < 0:
        raise ValueError("has to be 0 or more")
    if amount > MAX_BUDGET_USD:
        raise ValueError(f"has to be at most {MAX_BUDGET_USD} USD")
    nano = amount * NANO
    if nano != nano.to_integral_value():
        raise ValueError("has to have at most nine decimals")
    return amount


def _metadata(value: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(value, ensure_ascii=False)
    if len(text.encode()) > MAX_METADATA_BYTES:
        raise ValueError(f"has to be at most {MAX_METADATA_BYTES} bytes of JSON")
    plain: dict[str, Any] = json.loads(text)  # `Number` becomes `float` again
    return plain


def _key_reference(value: str) -> str:
    """A raw key or its hash → the hash."""
    if is_hash(value):
        return value
    if is_plausible(value):
        return hash_key(value)
    raise ValueError("has to be a key ('sk-...') or its hash (64 hexadecimal digits)")


def _spender(value: str) -> str:
    """The same, or the name the ledger has for the master key."""
    return value if value == MASTER_KEY_HASH else _key_reference(value)


def _duration(value: str) -> str:
    try:
        seconds = parse_duration(value)
    except ValueError:
        raise ValueError("has to be a number and s, m, h, d or w, such as '30d', or '1mo'") from None
    if seconds > MAX_DURATION_S:
        raise ValueError("has to be at most 100 years")
    return value


def _instant(value: object) -> float | None:
    """Unix seconds, or ISO 8601 (UTC unless it says otherwise); from a query string too."""
    if value is None:
        return None
    text = value.text if isinstance(value, Number) else str(value).strip()
    try:
        at = float(text) if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", text, re.ASCII) else _iso(text)
    except (ValueError, OverflowError):
        at = -1.0
    if not 0 <= at <= MAX_INSTANT:
        raise ValueError("has to be Unix seconds or ISO 8601 such as '2026-01-31T12:00:00Z'")
    return at


def _iso(text: str) -> float:
    at = datetime.fromisoformat(text)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


_KEY = {"type": "string", "pattern": r"^([0-9a-f]{64}|sk-[A-Za-z0-9_-]{4,128})$"}
_SPENDER = {"type": "string", "pattern": r"^([0-9a-f]{64}|sk-[A-Za-z0-9_-]{4,128}|master)$"}
_USD = {
    "anyOf": [
        {"type": "number", "minimum": 0, "maximum": MAX_BUDGET_USD},
        {"type": "string", "pattern": r"^[0-9]{1,6}(\.[0-9]{1,9})?$"},
    ],
    "description": "USD, at most nine decimals; a text is as exact as a number.",
}
_INSTANT = {
    "anyOf": [
        {"type": "number", "minimum": 0, "maximum": MAX_INSTANT},
        {"type": "string", "minLength": 1, "maxLength": 64},
    ],
    "description": "Unix seconds, or ISO 8601 (UTC unless it says otherwise).",
}
_DURATION = {"type": "string", "pattern": r"^([1-9][0-9]{0,2}[smhdw]|1mo)$", "description": "Such as 30d, or 1mo."}

Name = Annotated[str, Field(min_length=1, max_length=255)]


def _aliases(value: dict[str, str]) -> dict[str, str]:
    for name, target in value.items():
        if "*" in name + target:
            raise ValueError(f"holds a wildcard ('{name}': '{target}'); each name stands for one model")
    return value


Names = Annotated[list[Name], Field(max_length=1000)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Aliases = Annotated[dict[Name, Name], Field(max_length=100), AfterValidator(_aliases)]
Counts = Annotated[dict[Name, Count], Field(max_length=1000)]
Money = Annotated[Decimal, BeforeValidator(_money), WithJsonSchema(_USD)]
Duration = Annotated[str, Field(min_length=1, max_length=32), AfterValidator(_duration), WithJsonSchema(_DURATION)]
Metadata = Annotated[dict[str, Any], AfterValidator(_metadata)]
KeyReference = Annotated[str, Field(max_length=256), AfterValidator(_key_reference), WithJsonSchema(_KEY)]
Spender = Annotated[str, Field(max_length=256), AfterValidator(_spender), WithJsonSchema(_SPENDER)]
Instant = Annotated[float, BeforeValidator(_instant), WithJsonSchema(_INSTANT)]


class Strict(BaseModel):
    """A JSON body: no other field, no conversion."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True, defer_build=True)


class Query(BaseModel):
    """A query string: text is read as what the field is."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, defer_build=True)


class Paged(Query):
    """Every list: `page` from 1."""

    page: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    size: Annotated[int, Field(ge=1, le=1000)] = 10

    def page_of(self, name: str, rows: list[Any], total: int) -> dict[str, Any]:
        """The answer: these rows under `name`, and where they stand."""
        return {
            name: rows,
            "total_count": total,
            "current_page": self.page,
            "total_pages": -(-total // self.size),
        }
