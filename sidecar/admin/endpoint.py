"""One management path as a pure ASGI app: method, credential, body, answer – every refusal in OpenAI's error form.

`keys.py` and `spend.py` give the handlers. Rule: the caller's credential is judged before a byte of the body is read,
and only the master key passes.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from sidecar.admin.bodies import check_values, parse_object
from sidecar.errors import (
    BadRequestError,
    BodyTooLargeError,
    MethodNotAllowedError,
    PermissionDeniedError,
    SidecarError,
)
from sidecar.identity.keys import Keys
from sidecar.types import Headers, Identity

MAX_BODY_BYTES = 1_000_000
MAX_QUERY_BYTES = 8_192

_encoder = msgspec.json.Encoder(decimal_format="number")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """An authenticated management call. `body` is empty for GET, `query` for POST."""

    identity: Identity
    body: dict[str, Any] = field(default_factory=dict)
    query: dict[str, Any] = field(default_factory=dict)

    @property
    def actor(self) -> str:
        """Who is named in the audit log."""
        return self.identity.user_id or self.identity.key_alias or self.identity.key_name


Handler = Callable[[Call], Awaitable[Mapping[str, Any]]]


class AdminEndpoint:
    """Serves `handler` for `method` on whatever path it is mounted."""

    def __init__(self, keys: Keys, method: str, handler: Handler) -> None:
        self._keys = keys
        self._method = method
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            answer = await self._answer(request)
        except ClientDisconnect:
            return
        except SidecarError as error:
            await _send_error(send, error)
        except Exception:  # noqa: BLE001
            # Outermost layer of this API: the client gets a clean answer, the operator the trace.
            _log.exception("management call failed: %s", request.scope["path"])
            await _send_error(send, SidecarError("The gateway failed to handle this management call; see its log."))
        else:
            await _send(send, 200, _encoder.encode(answer))

    async def _answer(self, request: Request) -> Mapping[str, Any]:
        if request.method != self._method:
            raise MethodNotAllowedError(
                f"This path takes {self._method} only.", headers=((b"allow", self._method.encode("ascii")),)
            )
        identity = await self._caller(request)
        if self._method == "GET":
            return await self._handler(Call(identity, query=_query(request.scope.get("query_string", b""))))
        return await self._handler(Call(identity, body=parse_object(await _read(request))))

    async def _caller(self, request: Request) -> Identity:
        token = bearer(request.scope["headers"])
        identity = self._keys.cached(token) or await self._keys.lookup(token)
        if not identity.is_admin:
            raise PermissionDeniedError(
                "The gateway's management API takes the master key only.", code="master_key_only"
            )
        return identity


def bearer(headers: Headers) -> str:
    """The credential of `Authorization: Bearer …`; empty if there is none or more than one."""
    values = [value for name, value in headers if name.lower() == b"authorization"]
    if len(values) != 1:
        return ""
    scheme, _, token = values[0].decode("latin-1").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


async def _read(request: Request) -> bytes:
    too_large = BodyTooLargeError(f"The request body is larger than {MAX_BODY_BYTES} bytes.")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and (len(declared) > 18 or int(declared) > MAX_BODY_BYTES):
        raise too_large
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise too_large
    return bytes(body)


def _query(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_QUERY_BYTES:
        raise BadRequestError(f"The query string is longer than {MAX_QUERY_BYTES} bytes.")
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


async def _send_error(send: Send, error: SidecarError) -> None:
    headers = list(error.headers)
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, round(error.retry_after_s))).encode("ascii")))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await _send(send, error.status, error.body_bytes(), headers)


async def _send(send: Send, status: int, body: bytes, headers: Headers | None = None) -> None:
    fixed = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode("ascii")),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": fixed + (headers or [])})
    await send({"type": "http.response.body", "body": body})
