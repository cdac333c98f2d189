"""What a setting may hold: field types with their checks. `models.py` puts them together.

No message of a validator repeats the value: it may be a secret that stands in the wrong place.
"""

from __future__ import annotations

import ipaddress
import re
from decimal import Decimal
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    WithJsonSchema,
)

from sidecar.limits.windows import parse_duration
from sidecar.types import Secret

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HOST = re.compile(r"[A-Za-z0-9_.:%\[\]-]+")
_OUR_HEADERS = frozenset(
    {"connection", "content-length", "host", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding",
     "upgrade"}
)  # fmt: skip


def _credential(value: Any) -> Secret:
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be text and not empty; write ${NAME} or ${file:/path} to keep it out of the file")
    if any(not 33 <= ord(c) <= 126 for c in value.strip()):
        raise ValueError("holds a character no credential has (a space, a control or non-ASCII one); copy it again")
    return Secret(value.strip())


def _text_secret(value: Any) -> Secret:
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be text and not empty; remove the line if it is not needed")
    if any(ord(c) < 32 or ord(c) == 127 or ord(c) > 255 for c in value.strip()):
        raise ValueError("holds a control or non-Latin-1 character; write such ones percent-encoded")
    return Secret(value.strip())


def number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def _usd(value: Any) -> Any:
    # YAML floats are read as text, so that 0.1 stays 0.1.
    value = number(value)
    return Decimal(str(value)) if isinstance(value, (int, float)) else value


def _duration(value: str) -> str:
    try:
        parse_duration(value)
    except ValueError:
        raise ValueError("not a duration; write a number and s, m, h, d or w (such as 30d), or 1mo") from None
    return value


def _name(value: str) -> str:
    if not 1 <= len(value) <= 256 or any(not 33 <= ord(c) <= 126 for c in value):
        raise ValueError("must be 1 to 256 printable ASCII characters without spaces")
    return value


def valid_host(value: str) -> str:
    if not _HOST.fullmatch(value):
        raise ValueError("must be an address or a host name, such as 127.0.0.1; the port stands in server.port")
    return value


def valid_network(value: str) -> str:
    try:
        ipaddress.ip_network(value)
    except ValueError:
        raise ValueError("must be a network, such as 10.20.0.0/16") from None
    return value


def valid_header_name(value: str) -> str:
    if not _HEADER_NAME.fullmatch(value):
        raise ValueError("not a header name; use letters, digits and '-'")
    if value.lower() in _OUR_HEADERS:
        raise ValueError("this header is set by the transport; remove it")
    return value


def valid_base_url(value: str) -> str:
    wrong = "must be an http(s) URL without query, such as https://api.openai.com/v1"
    try:
        url = urlsplit(value)
        _ = url.port
    except ValueError:
        raise ValueError(wrong) from None
    if "@" in url.netloc:
        raise ValueError("must not hold a credential; use api_key")
    if url.scheme not in ("http", "https") or not url.hostname or "?" in value or "#" in value:
        raise ValueError(wrong)
    if any(not 33 <= ord(c) <= 126 for c in value):
        raise ValueError("holds a space, a control or a non-ASCII character; write it percent-encoded")
    return value.rstrip("/")


def valid_json_value(value: Any) -> Any:
    """What JSON can say; a date or a `.nan` would fail at the first request only."""
    if isinstance(value, dict):
        return {str(k): valid_json_value(v) for k, v in value.items()}
    if isinstance(value, list):
        return [valid_json_value(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        raise ValueError("holds a number JSON does not have; write a finite one")
    if value is not None and not isinstance(value, (str, int, float, bool)):
        raise ValueError("holds a value JSON does not have; quote it")
    return value


def word_or_mapping(word: str, example: str) -> tuple[Any, ...]:
    """For a field that is one word or a mapping: exactly one message if it is neither."""

    def check(value: Any) -> Any:
        if value != word and not isinstance(value, (dict, BaseModel)):
            raise ValueError(f"must be '{word}' or a mapping such as {example}")
        return value

    return Discriminator(lambda value: word if value == word else "mapping"), BeforeValidator(check)


SecretField = Annotated[Secret, PlainValidator(_credential), WithJsonSchema({"type": "string", "minLength": 1})]
SecretText = Annotated[Secret, PlainValidator(_text_secret), WithJsonSchema({"type": "string", "minLength": 1})]
Duration = Annotated[str, AfterValidator(_duration), Field(json_schema_extra={"examples": ["1d", "1mo", "30d"]})]
# The constraint stands before the validator, else the JSON Schema loses it.
Usd = Annotated[Decimal, Field(ge=0, le=9_000_000, decimal_places=9, allow_inf_nan=False), BeforeValidator(_usd)]
Rate = Annotated[Decimal, Field(ge=0, le=1_000_000, decimal_places=12, allow_inf_nan=False), BeforeValidator(_usd)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False), BeforeValidator(number)]
SecondsOrNone = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False), BeforeValidator(number)]
Int = Annotated[int, BeforeValidator(number)]
Count = Annotated[int, Field(ge=0, le=10**12), BeforeValidator(number)]
Tokens = Annotated[int, Field(ge=1, le=10_000_000), BeforeValidator(number)]
Name = Annotated[str, AfterValidator(_name)]
FilePath = Annotated[str, Field(min_length=1, max_length=4096)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, arbitrary_types_allowed=True)
