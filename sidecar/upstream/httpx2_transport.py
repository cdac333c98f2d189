"""The general transport on httpx2, chosen for outbound proxies. Slower; the same contract.

Neighbours: `base` (the seam). Rules: cookies are refused by policy, redirects are never followed, nothing is retried,
the environment's proxies and credentials are not trusted; what a proxy refuses was never sent to the provider.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import httpx2

from sidecar.errors import BadRequestError, UpstreamBrokenError, UpstreamConnectError, UpstreamTimeoutError
from sidecar.types import Headers
from sidecar.upstream.base import HttpAnswer, HttpRequest, distrust, head_bytes, read_all, returnable, sendable
from sidecar.upstream.connection import Phase
from sidecar.upstream.parsers import ParseError, ends_with_close


class Httpx2Transport:
    """`client_cert` is (certificate file, key file) and for the provider alone; `ca_file` is for a proxy spoken to over
    TLS too. One connection pool, keyed by origin inside httpx2."""

    def __init__(
        self,
        *,
        ca_file: str | None = None,
        proxy: str | None = None,
        client_cert: tuple[str, str] | None = None,
        max_idle: int = 128,
        idle_s: float = 30.0,
    ) -> None:
        tls = ssl.create_default_context(cafile=ca_file)
        if client_cert is not None:
            tls.load_cert_chain(*client_cert)
        via: httpx2.Proxy | None = None
        if proxy is not None:
            is_tls = proxy.lower().startswith("https:")
            via = httpx2.Proxy(proxy, ssl_context=ssl.create_default_context(cafile=ca_file) if is_tls else None)
        self._has_proxy = via is not None
        self._client = httpx2.AsyncClient(
            verify=tls,
            proxy=via,
            trust_env=False,
            follow_redirects=False,
            timeout=None,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=max_idle, keepalive_expiry=idle_s),
        )
        self._client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    async def send(self, request: HttpRequest) -> HttpAnswer:
        head_bytes(request)  # the same refusals as on the hot path
        host = f"[{request.host}]" if ":" in request.host else request.host
        url = httpx2.URL(scheme=request.scheme, host=request.host, port=request.port)
        headers = sendable(request.headers)
        if request.fixed is not None:
            headers = request.fixed.headers + headers
        names = {name for name, _ in headers}
        if b"accept-encoding" not in names:
            headers.append((b"accept-encoding", b"identity"))
        default = 443 if request.scheme == "https" else 80
        headers.insert(0, (b"host", (host if request.port == default else f"{host}:{request.port}").encode("idna")))
        if request.body or request.method in ("POST", "PUT", "PATCH"):
            headers.append((b"content-length", str(len(request.body)).encode()))
        times = request.timeouts
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        first_s = min(times.first_byte_s, times.total_s) if request.is_stream else times.total_s
        connect_s = min(times.connect_s, first_s)
        connecting = asyncio.timeout_at(started_at + connect_s)
        is_sent = False
        line: Any = None

        async def trace(event: str, info: dict[str, Any]) -> None:
            nonlocal is_sent, line
            if event.endswith(".connect_tcp.complete"):
                line = info["return_value"]
            elif event.endswith(".send_request_headers.started") and info["request"].method != b"CONNECT":
                is_sent = True
                connecting.reschedule(started_at + first_s)

        outgoing = httpx2.Request(
            request.method,
            url,
            headers=headers,
            stream=httpx2.ByteStream(request.body),
            extensions={
                "target": request.target,  # as it stands: a URL's path would be quoted again
                "timeout": {"connect": times.connect_s, "read": None, "write": None, "pool": None},
                "trace": trace,
            },
        )
        try:
            async with connecting:
                try:
                    response = await self._client.send(outgoing, stream=True)
                except asyncio.CancelledError:
                    if line is not None and not is_sent:
                        await line.aclose()  # httpcore2 forgets a connection whose TLS handshake is cancelled
                    raise
        except (TimeoutError, httpx2.ConnectTimeout):
            if not is_sent:
                raise UpstreamTimeoutError(
                    f"The gateway could not reach the provider within {connect_s:g} s.",
                    phase="connect" if times.connect_s <= times.total_s else "total",
                    is_sent=False,
                ) from None
            phase: Phase = "first_byte" if request.is_stream and times.first_byte_s < times.total_s else "total"
            raise UpstreamTimeoutError(f"The provider was too slow ({phase} timeout).", phase=phase) from None
        except httpx2.ProxyError as error:
            raise UpstreamConnectError(f"The proxy refused to connect to the provider ({str(error)[:3]}).") from None
        except httpx2.ConnectError as error:
            raise UpstreamConnectError(f"The gateway could not connect to the provider ({distrust(error)}).") from None
        except (httpx2.LocalProtocolError, httpx2.InvalidURL) as error:
            raise BadRequestError(f"The gateway refused the request: it may not be sent ({error}).") from None
        except httpx2.TransportError as error:
            how = type(error).__name__
            if not is_sent:
                raise UpstreamConnectError(f"The gateway could not connect to the provider ({how}).") from None
            raise UpstreamBrokenError(
                f"The provider closed the connection before it answered ({how}); it may have done the work."
            ) from None
        if self._has_proxy and response.status_code == 407:  # RFC 9110 §15.5.8: no provider says that
            await response.aclose()
            raise UpstreamConnectError("The proxy refused to connect to the provider (407).")
        deadline = started_at + times.total_s
        try:
            return _Answer(response, request.method, times.gap_s, deadline)
        except ParseError as error:
            await response.extensions["network_stream"].aclose()
            await response.aclose()
            raise UpstreamBrokenError(f"The provider's answer is not proper HTTP ({error}).") from None

    async def aclose(self) -> None:
        await self._client.aclose()


class _Answer:
    """Raises ParseError for a head that httpx2 lets pass and we do not."""

    def __init__(self, response: httpx2.Response, method: str, gap_s: float, deadline: float) -> None:
        self._response = response
        self._pieces: AsyncIterator[bytes] = aiter(response.stream)  # type: ignore[arg-type]
        self._gap_s = gap_s
        self._deadline = deadline
        self._closing: asyncio.Task[None] | None = None
        self.status = response.status_code
        headers: Headers = [(name.lower(), value) for name, value in response.headers.raw]
        self.headers = returnable(headers)
        self.is_complete = False
        if self.status == 101:
            raise ParseError("the provider switched protocols")
        has_body = method != "HEAD" and self.status not in (204, 304)
        self.is_close_delimited = has_body and ends_with_close(headers)

    async def read(self) -> bytes:
        if self.is_complete:
            return b""
        loop = asyncio.get_running_loop()
        left = self._deadline - loop.time()
        try:
            async with asyncio.timeout(min(self._gap_s, left)):
                while True:
                    piece = await anext(self._pieces, b"")
                    if piece:
                        return piece
                    self.is_complete = True
                    if _may_have_leftovers(self._response):
                        await self._response.extensions["network_stream"].aclose()
                    await self._response.aclose()
                    return b""
        except TimeoutError:
            self.abort()
            phase = "gap" if self._gap_s < left else "total"
            raise UpstreamTimeoutError(
                f"The provider was too slow ({phase} timeout).", phase="gap" if phase == "gap" else "total"
            ) from None
        except httpx2.TransportError as error:
            self.abort()
            raise UpstreamBrokenError(
                f"The provider closed the connection after part of its answer ({type(error).__name__})."
            ) from None
        except asyncio.CancelledError:
            self.abort()
            raise

    async def read_all(self, limit: int) -> bytes:
        return await read_all(self, limit)

    def abort(self) -> None:
        if not self.is_complete and self._closing is None:
            self._closing = asyncio.ensure_future(self._response.aclose())


def _may_have_leftovers(response: httpx2.Response) -> bool:
    """httpcore2 keeps what came after a complete answer in its parser and would take it for the next one's beginning:
    someone else's answer. Nothing public tells, so we look inside; where we find nothing to look at, we assume so."""
    found: Any = response.stream
    while found is not None and not hasattr(found, "_connection"):
        found = getattr(found, "_stream", None) or getattr(found, "_httpcore_stream", None)
    state = getattr(getattr(found, "_connection", None), "_h11_state", None)
    return state is None or bool(state.trailing_data[0])
