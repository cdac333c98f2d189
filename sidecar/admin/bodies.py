"""What the management API accepts: JSON read strictly, then models that know each field and refuse any other.

Neighbours: `endpoint.py` reads the bytes, `keys.py` acts on the models. Rule: a refusal names the field and what it
wants, and never repeats the value, which may be a secret in the wrong place.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from math import isfinite
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from sidecar.errors import BadRequestError
from sidecar.identity.keys import MASTER_KEY_HASH
from sidecar.identity.tokens import hash_key, is_hash, is_plausible
from sidecar.limits.windows import MAX_BUDGET_NANO, parse_duration
from sidecar.types import NANO

MAX_DEPTH = 32
MAX_BUDGET_USD = MAX_BUDGET_NANO // NANO
MAX_DURATION_S = 100 * 366 * 86_400
MAX_COUNT = 1_000_000_000_000
MAX_INSTANT = 253_402_300_799
MAX_METADATA_BYTES = 64 * 1024

Model = TypeVar("Model", bound=BaseModel)


class _Number(float):
    """A JSON number with a fraction or exponent that remembers how it was written, so that money stays exact."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> _Number:
        number = super().__new__(cls, text)
        number.text = text
        return number


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object. Refuses invalid UTF-8, NaN and infinities, repeated names, and nesting past `MAX_DEPTH`."""
    try:
        parsed = json.loads(
            body.decode("utf-8"), parse_float=_Number, parse_constant=_refuse_constant, object_pairs_hook=_unique
        )
    except UnicodeDecodeError:
        raise BadRequestError("The request body is not valid UTF-8.", code="invalid_json") from None
    except RecursionError:
        raise BadRequestError("The request body is nested too deeply.", code="invalid_json") from None
    except json.JSONDecodeError as error:
        raise BadRequestError(
            f"The request body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}.",
            code="invalid_json",
        ) from None
    except ValueError:
        raise BadRequestError("The request body holds a number that is too long.", code="invalid_json") from None
    if not isinstance(parsed, dict):
        raise BadRequestError("The request body has to be a JSON object.", code="invalid_json")
    check_values(parsed)
    return parsed


def _refuse_constant(name: str) -> NoReturn:
    raise BadRequestError(f"The request body is not valid JSON: {name} is no JSON number.", code="invalid_json")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadRequestError("The request body names a field twice in one object.", code="invalid_json")
    return found


def check_values(root: dict[str, Any]) -> None:
    """No text a database cannot hold, no infinite number, no bottomless nesting; the top-level field is named."""
    for name, value in root.items():
        waiting: list[tuple[Any, int]] = [(name, 1), (value, 1)]
        while waiting:
            item, depth = waiting.pop()
            if depth > MAX_DEPTH:
                raise BadRequestError(f"{_shown(name)} is nested deeper than {MAX_DEPTH} levels.", param=_shown(name))
            if isinstance(item, str):
                if not is_storable(item):
                    raise BadRequestError(
                        f"{_shown(name)} holds text that is not Unicode (a NUL or half a surrogate pair).",
                        param=_shown(name),
                    )
            elif isinstance(item, float):
                if not isfinite(item):
                    raise BadRequestError(f"{_shown(name)} holds a number that is too large.", param=_shown(name))
            elif isinstance(item, dict):
                waiting.extend((part, depth + 1) for pair in item.items() for part in pair)
            elif isinstance(item, list):
                waiting.extend((part, depth + 1) for part in item)


def is_storable(text: str) -> bool:
    """True if both databases can hold the text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _shown(name: str) -> str:
    """A field name that is safe to repeat; one that may be a key put in the wrong place is not repeated."""
    return name if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name, re.ASCII) else "(unprintable field)"


def validated(model: type[Model], data: dict[str, Any]) -> Model:
    """The model, or `BadRequestError` for the first fault, with the field in `param` and in the message."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ""
        for part in fault["loc"]:
            place += f"[{part}]" if isinstance(part, int) else ("." if place else "") + _shown(part)
        if fault["type"] == "extra_forbidden":
            names = ", ".join(sorted(model.model_fields))
            message, code = f"'{place}' is not a field here. Fields: {names}.", "unknown_field"
        elif fault["type"] == "missing":
            message, code = f"'{place}' is missing.", "missing_field"
        else:
            message, code = f"'{place}': {fault['msg'].removeprefix('Value error, ')}.", "invalid_field"
        raise BadRequestError(message, param=place or None, code=code) from None


def _money(value: object) -> Decimal | None:
    """USD as number or text → exact Decimal, at most nine decimals (nano-dollars)."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | _Number | str):
        raise ValueError("has to be an amount of USD, as a number or a text such as '12.50'")
    text = value.text if isinstance(value, _Number) else str(value) if isinstance(value, int) else value.strip()
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
    plain: dict[str, Any] = json.loads(text)  # `_Number` becomes `float` again
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


Name = Annotated[str, Field(min_length=1, max_length=255)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Money = Annotated[Decimal, BeforeValidator(_money)]
Duration = Annotated[str, Field(min_length=1, max_length=32), AfterValidator(_duration)]
Metadata = Annotated[dict[str, Any], AfterValidator(_metadata)]
KeyReference = Annotated[str, Field(max_length=256), AfterValidator(_key_reference)]
Spender = Annotated[str, Field(max_length=256), AfterValidator(_spender)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class KeyFields(Strict):
    """What a key can be given. In an update only the named fields change, and null takes a value away."""

    key_alias: Name | None = None
    models: Annotated[list[Name], Field(max_length=1000)] | None = None
    max_budget: Money | None = None
    budget_duration: Duration | None = None
    rpm_limit: Count | None = None
    tpm_limit: Count | None = None
    max_parallel_requests: Count | None = None
    duration: Duration | None = None
    user_id: Name | None = None
    team_id: Name | None = None
    organization_id: Name | None = None
    metadata: Metadata | None = None
    blocked: bool | None = None


class GenerateKey(KeyFields):
    """`POST /key/generate`."""


class UpdateKey(KeyFields):
    """`POST /key/update`."""

    key: KeyReference


class NameKey(Strict):
    """`POST /key/block`, `POST /key/unblock`; the query of `GET /key/info`."""

    key: KeyReference


class DeleteKeys(Strict):
    """`POST /key/delete`: keys, aliases or both."""

    keys: Annotated[list[KeyReference], Field(max_length=1000)] = []
    key_aliases: Annotated[list[Name], Field(max_length=1000)] = []


def _instant(value: object) -> float | None:
    """Unix seconds, or ISO 8601 (UTC unless it says otherwise), from a query string."""
    if value is None:
        return None
    text = str(value).strip()
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


Instant = Annotated[float, BeforeValidator(_instant)]


class Query(BaseModel):
    """A query string: text is read as what the field is."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class ListKeys(Query):
    """The query of `GET /key/list`."""

    page: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    size: Annotated[int, Field(ge=1, le=1000)] = 10
    key: KeyReference | None = None
    key_alias: Name | None = None
    user_id: Name | None = None
    team_id: Name | None = None
    organization_id: Name | None = None
    blocked: bool | None = None
    return_full_object: bool = True


class TotalsQuery(Query):
    """The query of `GET /spend/keys`. `since` is included, `until` is not."""

    since: Instant | None = None
    until: Instant | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class LogsQuery(TotalsQuery):
    """The query of `GET /spend/logs`."""

    key: Spender | None = None
    exchange_id: Name | None = None
    request_id: Name | None = None
    cursor: Annotated[str, Field(min_length=1, max_length=200)] | None = None
