"""A token's three parts as bytes and JSON, read strictly and not trusted yet (RFC 7515, RFC 7519).

Pure. Neighbours: `verify.py` decides whether what is read here may be believed. Rule: one text has one meaning –
unpadded canonical base64url, UTF-8, no name twice in an object, no NaN, no half surrogates, nothing after the end.
"""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from typing import Any

_PART = re.compile(rb"[A-Za-z0-9_-]+", re.ASCII)
_BEARER = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)
MAX_NAME = 256


class MalformedError(Exception):
    """Not what it should be; the message says how, in words that hold nothing of the token."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """A JWT as it was sent: nothing in it is verified."""

    algorithm: str
    key_id: str | None
    type: str | None
    claims: dict[str, Any]
    signed: bytes
    signature: bytes


def looks_like_jwt(token: str) -> bool:
    """Three parts of which the first is an object in base64url."""
    return token.startswith("ey") and token.count(".") == 2


def is_bearer_token(token: str) -> bool:
    """The characters RFC 6750 §2.1 allows."""
    return _BEARER.fullmatch(token) is not None


def parse(token: str) -> Parsed:
    """The parts of a JWT. Raises `MalformedError`; also for `crit` and `b64`, which would change what is signed.
    Header fields that say where a key could be had (`jwk`, `jku`, `x5u`, `x5c`) are not read at all."""
    try:
        head, body, tail = token.encode("ascii").split(b".")
    except ValueError:  # UnicodeEncodeError is one
        raise MalformedError("it is not three parts of base64url") from None
    header = strict_object(_decode(head), "its header")
    if "crit" in header or "b64" in header:
        raise MalformedError("its header asks for an extension ('crit', 'b64') that is not supported")
    algorithm, key_id, kind = header.get("alg"), header.get("kid"), header.get("typ")
    if not isinstance(algorithm, str):
        raise MalformedError("its header names no algorithm")
    if not (key_id is None or (isinstance(key_id, str) and 0 < len(key_id) <= MAX_NAME)):
        raise MalformedError("the 'kid' of its header is not a short text")
    if not (kind is None or isinstance(kind, str)):
        raise MalformedError("the 'typ' of its header is not a text")
    claims = strict_object(_decode(body), "its payload")
    return Parsed(algorithm, key_id, kind, claims, head + b"." + body, _decode(tail))


def strict_object(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object read without leniency. Raises `MalformedError`."""
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_constant)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # a half surrogate fails here
    except _RepeatError:
        raise MalformedError(f"{what} names something twice") from None
    except (ValueError, RecursionError):
        raise MalformedError(f"{what} is not JSON") from None
    if not isinstance(value, dict):
        raise MalformedError(f"{what} is not a JSON object")
    return value


class _RepeatError(Exception):
    pass


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _RepeatError
    return made


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _decode(part: bytes) -> bytes:
    if _PART.fullmatch(part) is None or len(part) % 4 == 1:
        raise MalformedError("it is not three parts of base64url")
    decoded = urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    if urlsafe_b64encode(decoded).rstrip(b"=") != part:  # spare bits that are not 0: a second spelling
        raise MalformedError("it is not three parts of base64url")
    return decoded
