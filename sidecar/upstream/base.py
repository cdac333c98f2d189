"""The seam between the proxy and the wire: one request out, one answer in pieces.

Neighbours: `httptools_transport` (the hot path), `http2_transport` (the same with HTTP/2) and `httpx2_transport`
(through proxies); one contract suite runs over them. Rule: path bytes go out as given, no cookie is ever kept, and the
error says whether the provider may bill.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from typing import Protocol

from sidecar.errors import BadRequestError, UpstreamBrokenError, UpstreamConnectError
from sidecar.types import Headers, Timeouts

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""RFC 9110 §7.6.1. `set-cookie` goes too: a gateway's upstreams have no business with its clients' cookies."""

_NOT_RETURNED = HOP_BY_HOP | {b"set-cookie", b"set-cookie2"}
_NOT_SENT = HOP_BY_HOP | {b"host", b"content-length", b"cookie", b"expect"}
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_BAD_NAME = re.compile(rb"[^!#$%&'*+\-.^_`|~0-9A-Za-z]")
_BAD_TARGET = re.compile(rb"[\x00-\x20\x7f-\xff]")


class FixedHeaders:
    """What goes with every request to one target, checked and rendered once. Raises BadRequestError."""

    __slots__ = ("headers", "names", "rendered")

    def __init__(self, headers: Headers) -> None:
        self.headers = sendable(headers)
        self.names = frozenset(name for name, _ in self.headers)
        self.rendered = b"".join(name + b": " + value + b"\r\n" for name, value in self.headers)

    def __repr__(self) -> str:
        return f"FixedHeaders({sorted(self.names)})"  # never the values: a credential is among them


@dataclass(slots=True)
class HttpRequest:
    """`target` is the path and query exactly as sent. The transport adds Host and Content-Length; hop-by-hop headers
    and cookies among `headers` are left out; `fixed` comes before them. `first_byte_s` applies only if `is_stream`."""

    method: str
    scheme: str
    host: str
    port: int
    target: bytes
    headers: Headers = field(default_factory=list)
    body: bytes = b""
    timeouts: Timeouts = Timeouts()
    is_stream: bool = False
    fixed: FixedHeaders | None = None


class HttpAnswer(Protocol):
    """`headers` are lower-cased, without hop-by-hop and cookies. A close-delimited answer is whole only by its
    dialect's end event."""

    status: int
    headers: Headers
    is_complete: bool
    is_close_delimited: bool

    async def read(self) -> bytes:
        """The next non-empty piece; `b""` once the answer is complete. Raises UpstreamBrokenError,
        UpstreamTimeoutError; both close the connection."""

    async def read_all(self, limit: int) -> bytes:
        """All of it. Raises UpstreamBrokenError past `limit` bytes."""

    def abort(self) -> None:
        """Close the connection if the answer is not complete. Idempotent."""


class Transport(Protocol):
    async def send(self, request: HttpRequest) -> HttpAnswer:
        """The answer's head. Raises UpstreamConnectError (nothing was sent), UpstreamStaleError (a reused connection
        was closed before the request was written), UpstreamBrokenError (may be billed), UpstreamTimeoutError.
        Cancelling closes the connection."""

    async def aclose(self) -> None: ...


def authority(scheme: str, host: str, port: int) -> bytes:
    """What stands in `Host`."""
    name = f"[{host}]" if ":" in host else host
    if port != (443 if scheme == "https" else 80):
        name = f"{name}:{port}"
    try:
        return name.encode("idna")
    except UnicodeError:
        raise UpstreamConnectError("The gateway could not connect to the provider: its host is not a name.") from None


@functools.lru_cache(maxsize=1024)
def _host_line(scheme: str, host: str, port: int) -> bytes:
    return b" HTTP/1.1\r\nhost: " + authority(scheme, host, port) + b"\r\n"


@functools.lru_cache(maxsize=64)
def _method(method: str) -> bytes:
    if not method.isascii() or _BAD_NAME.search(method.encode()) or method in ("", "CONNECT"):
        raise BadRequestError("The gateway refused the request: its method may not be sent.")
    return method.encode() + b" "


def head_bytes(request: HttpRequest) -> bytes:
    """The request's head on an HTTP/1.1 connection. Raises BadRequestError for what would smuggle a header or line."""
    target = request.target
    if not target.startswith(b"/") or _BAD_TARGET.search(target):
        raise BadRequestError("The gateway refused the request: its path has characters that may not be sent.")
    head = _method(request.method) + target + _host_line(request.scheme, request.host, request.port)
    fixed = request.fixed
    has_encoding = False
    if fixed is not None:
        head += fixed.rendered
        has_encoding = b"accept-encoding" in fixed.names
    for name, value in sendable(request.headers):
        if name == b"accept-encoding":
            has_encoding = True
        head += name + b": " + value + b"\r\n"
    if not has_encoding:
        head += b"accept-encoding: identity\r\n"
    if request.body or request.method in ("POST", "PUT", "PATCH"):
        head += b"content-length: %d\r\n" % len(request.body)
    return head + b"\r\n"


def sendable(headers: Headers) -> Headers:
    """What may go upstream. Raises BadRequestError for bytes no header may hold."""
    named: frozenset[bytes] = frozenset()
    out: Headers = []
    for name, value in headers:
        lower = name.lower()
        if lower in _NOT_SENT:
            if lower == b"connection":
                named = named_by_connection(headers)
            continue
        if _BAD_VALUE.search(value) or _BAD_NAME.search(name) or not name:
            raise BadRequestError("The gateway refused the request: a header holds characters that may not be sent.")
        out.append((lower, value.strip(b" \t")))
    return [h for h in out if h[0] not in named] if named else out


def distrust(error: BaseException) -> str:
    """Why there is no connection, for the client: which host the gateway asks is the operator's."""
    why = str(getattr(error, "verify_message", None) or error)
    return re.split(r"[,('\"]", why, maxsplit=1)[0].strip()


def is_proper(headers: Headers) -> bool:
    """No byte is in them that would begin another header or line."""
    return not any(_BAD_VALUE.search(value) or _BAD_NAME.search(name) or not name for name, value in headers)


def returnable(headers: Headers) -> Headers:
    """What of an answer's (lower-cased) headers goes back to the client."""
    named = named_by_connection(headers)
    return [h for h in headers if h[0] not in _NOT_RETURNED and h[0] not in named]


def named_by_connection(headers: Headers) -> frozenset[bytes]:
    """All that `connection` headers (there may be several) name."""
    named: frozenset[bytes] = frozenset()
    for name, value in headers:
        if name.lower() == b"connection":
            named |= {part.strip().lower() for part in value.split(b",")}
    return named


def is_kept_alive(is_http_1_0: bool, headers: Headers) -> bool:
    """RFC 9112 §9.3."""
    named = named_by_connection(headers)
    return b"close" not in named and (not is_http_1_0 or b"keep-alive" in named)


async def read_all(answer: HttpAnswer, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while piece := await answer.read():
        size += len(piece)
        if size > limit:
            answer.abort()
            raise UpstreamBrokenError(f"The provider's answer is longer than {limit} bytes.")
        parts.append(piece)
    return b"".join(parts)
