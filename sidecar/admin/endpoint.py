"""The management API's table, a line per endpoint, and its paths as pure ASGI apps: method, credential, role, body,
answer – every refusal in OpenAI's error form.

`build_admin` writes the table, `access.py` knows the roles, `openapi.py` describes the same table. Rule: who calls and
whether they may is judged before a byte of the body is read.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sidecar.admin.access import NOBODY, Reach, judge, reach_of
from sidecar.admin.bodies import parse_object, parse_query, validated
from sidecar.admin.fields import Query, Strict
from sidecar.errors import BadRequestError, BodyTooLargeError, MethodNotAllowedError, SidecarError, UnavailableError
from sidecar.identity.deadline import Deadline
from sidecar.identity.table import PrincipalTable
from sidecar.types import Headers, Identity

MAX_BODY_BYTES = 1_000_000
DEADLINE_S = 10.0
"""How long a management call may take; what its database has not answered by then is a 503."""

_encoder = msgspec.json.Encoder()
_log = logging.getLogger(__name__)


class CallerLookup(Protocol):
    """What this API needs of `identity.subjects.Credentials`."""

    def cached(self, token: str) -> Identity | None: ...

    async def lookup(self, token: str) -> Identity: ...


@dataclass(frozen=True, slots=True)
class Call:
    """Who calls, and from where the API is served (`root_path`)."""

    reach: Reach
    root_path: str = ""

    @property
    def identity(self) -> Identity:
        return self.reach.identity

    @property
    def actor(self) -> str:
        """Who is named in the audit log."""
        identity = self.reach.identity
        return identity.user_id or identity.key_alias or identity.key_name or identity.key_hash


Handler = Callable[[Call, Any], Awaitable[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A line of the table. `model`: a `Query` is read from the query string, a `Strict` from the body; what stands in
    braces in `path` is a field of it. `others`: who may call besides administrators (and, for GET, their viewers)."""

    method: str
    path: str
    model: type[Query] | type[Strict]
    handler: Handler
    says: str
    others: frozenset[str] = NOBODY

    @property
    def path_fields(self) -> list[str]:
        return re.findall(r"\{(\w+)\}", self.path)


def routes_of(table: Iterable[Endpoint], callers: CallerLookup, principals: PrincipalTable) -> list[Route]:
    """One route for each path; fixed paths before those with fields."""
    paths: dict[str, dict[str, Endpoint]] = {}
    for endpoint in table:
        paths.setdefault(endpoint.path, {})[endpoint.method] = endpoint
    return [
        # A request id is whatever its client made up, slashes too.
        Route(path.replace("{request_id}", "{request_id:path}"), AdminPath(paths[path], callers, principals))
        for path in sorted(paths, key=lambda p: ("{" in p, p))
    ]


class AdminPath:
    """Serves one path's endpoints, by method."""

    def __init__(self, endpoints: Mapping[str, Endpoint], callers: CallerLookup, principals: PrincipalTable) -> None:
        self._endpoints = endpoints
        self._callers = callers
        self._principals = principals
        self._deadline = Deadline(DEADLINE_S)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            answer = await self._deadline.run(self._answer(request))
        except ClientDisconnect:
            return
        except TimeoutError:
            await _send_error(send, _too_late())
        except SidecarError as error:
            await _send_error(send, error)
        except Exception:  # noqa: BLE001
            # Outermost layer of this API: the client gets a clean answer, the operator the trace.
            _log.exception("management call failed: %s", next(iter(self._endpoints.values())).path)
            await _send_error(send, SidecarError("The gateway failed to handle this management call; see its log."))
        else:
            await _send(send, 200, _encoder.encode(answer))

    async def _answer(self, request: Request) -> Mapping[str, Any]:
        endpoint = self._endpoints.get(request.method)
        if endpoint is None:
            methods = ", ".join(self._endpoints)
            raise MethodNotAllowedError(
                f"This path takes {methods} only.", headers=((b"allow", methods.encode("ascii")),)
            )
        token = bearer(request.scope["headers"])
        identity = self._callers.cached(token) or await self._callers.lookup(token)
        reach = await reach_of(identity, self._principals)
        judge(reach, endpoint.method, endpoint.path, endpoint.others)
        if issubclass(endpoint.model, Query):
            data = parse_query(request.scope.get("query_string", b""))
        else:
            data = parse_object(await _read(request))
        for name, value in request.path_params.items():
            if name in data:
                raise BadRequestError(f"'{name}' stands in the path already.", param=name, code="invalid_field")
            data[name] = value
        body = validated(endpoint.model, data)
        return await endpoint.handler(Call(reach, request.scope.get("root_path", "")), body)


def _too_late() -> UnavailableError:
    return UnavailableError(
        "The gateway's database did not answer in time; what was asked may have been done all the same. Look, then try "
        "again.",
        code="key_store_unavailable",
        retry_after_s=1.0,
    )


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
