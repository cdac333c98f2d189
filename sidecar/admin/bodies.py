"""Bytes and query strings → values, strictly: what is no plain JSON object, or no model, is a 400 that names the field.

Neighbours: `endpoint.py` reads the bytes, `fields.py` and `requests.py` have the models. Rule: a refusal says what the
field wants, and never repeats the value, which may be a secret in the wrong place.
"""

from __future__ import annotations

import json
import re
from math import isfinite
from typing import Any, NoReturn, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError

from sidecar.errors import BadRequestError

MAX_DEPTH = 32
MAX_QUERY_BYTES = 8_192

Model = TypeVar("Model", bound=BaseModel)


class Number(float):
    """A JSON number with a fraction or exponent that remembers how it was written, so that money stays exact."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> Number:
        number = super().__new__(cls, text)
        number.text = text
        return number


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object. Refuses invalid UTF-8, NaN and infinities, repeated names, and nesting past `MAX_DEPTH`."""
    try:
        parsed = json.loads(
            body.decode("utf-8"), parse_float=Number, parse_constant=_refuse_constant, object_pairs_hook=_unique
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


def parse_query(raw: bytes) -> dict[str, Any]:
    """Each parameter once."""
    if len(raw) > MAX_QUERY_BYTES:
        raise BadRequestError(f"The query string is longer than {MAX_QUERY_BYTES} bytes.", code="invalid_query")
    try:
        pairs = parse_qsl(
            raw.decode("ascii"), keep_blank_values=True, strict_parsing=bool(raw), errors="strict", max_num_fields=64
        )
    except ValueError:
        raise BadRequestError("The query string is malformed.", code="invalid_query") from None
    query = dict(pairs)
    if len(query) != len(pairs):
        raise BadRequestError("The query string names a parameter twice.", code="invalid_query")
    check_values(query)
    return query
