"""Fetches what a client's URL points to, for providers that take bytes only.

The URL is a stranger's, so this is where a gateway is made to knock at doors inside its network. Rules: https on its
usual port; the name is resolved once, every address has to be public, and the connection goes to the very address that
was checked; a redirect starts from the beginning; nothing that identifies the gateway or the caller is sent; size, time
and number are bounded. What is refused is a 400 naming the host and the reason, never an address.
Neighbours: `Provider.needs` (which URLs), `TranslateMiddleware.fetch_media` (who calls this).
https://cheatsheetseries.owasp.org/cheatsheets/Server_Side_Request_Forgery_Prevention_Cheat_Sheet.html
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

import httpx2

from sidecar.errors import BadRequestError
from sidecar.translate.content import settle_type
from sidecar.translate.provider import Media

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], Awaitable[list[str]]]
"""(host, port) → addresses. Raises `OSError`."""

_REFUSED = tuple(
    ipaddress.ip_network(text)
    for text in (
        "168.63.129.16/32",  # Azure's host services: public by number, inside by nature
        "192.0.0.0/24",  # Oracle's metadata service is in it
        "64:ff9b::/96",  # IPv4 behind NAT64, whatever it is there
        "64:ff9b:1::/48",
        "2002::/16",  # 6to4
        "2001::/32",  # Teredo
        "fec0::/10",
        "::/96",
    )
)
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_MAX_AGE = re.compile(r"max-age\s*=\s*\"?(\d{1,9})")


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """Bytes, seconds and numbers. `total_bytes`, `urls` and `total_s` are for one request's URLs together."""

    file_bytes: int = 20 * 1024 * 1024
    total_bytes: int = 50 * 1024 * 1024
    urls: int = 64
    connect_s: float = 5.0
    total_s: float = 20.0
    redirects: int = 3
    concurrency: int = 16
    cache_bytes: int = 64 * 1024 * 1024
    cache_s: float = 300.0


class MediaFetcher:
    """`allowed` networks are let through although they are not public, on any port and with plain http: for a file
    server of one's own, and for tests. One per event loop."""

    def __init__(
        self,
        *,
        limits: MediaLimits = MediaLimits(),
        allowed: Iterable[str] = (),
        tls: ssl.SSLContext | None = None,
        resolve: Resolve | None = None,
    ) -> None:
        self._limits = limits
        self._allowed = tuple(ipaddress.ip_network(text) for text in allowed)
        self._tls = tls
        self._resolve = resolve or _resolve
        self._places = asyncio.Semaphore(limits.concurrency)
        self._client: httpx2.AsyncClient | None = None
        self._cache: OrderedDict[str, tuple[float, Media]] = OrderedDict()
        self._cached_bytes = 0

    async def fetch(self, urls: Iterable[str]) -> Mapping[str, Media]:
        """What is behind every URL. Raises `BadRequestError`; then, and when it is cancelled, nothing goes on."""
        wanted = list(dict.fromkeys(urls))
        limits = self._limits
        if len(wanted) > limits.urls:
            raise _refusal("", f"there are {len(wanted)} URLs; at most {limits.urls} are fetched")
        if self._client is None:
            self._client = await self._open()
        left = [limits.total_bytes]
        tasks = [asyncio.create_task(self._one(url, left)) for url in wanted]
        try:
            async with asyncio.timeout(limits.total_s):
                found = await asyncio.gather(*tasks)
        except TimeoutError:
            slow = next((url for url, task in zip(wanted, tasks, strict=True) if task.cancelled()), "")
            raise _refusal(slow, f"it took longer than {limits.total_s:g} s") from None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return dict(zip(wanted, found, strict=True))

    async def aclose(self) -> None:
        self._cache.clear()
        self._cached_bytes = 0
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()

    async def _open(self) -> httpx2.AsyncClient:
        tls = self._tls
        if tls is None:
            tls = await asyncio.to_thread(ssl.create_default_context)
        # No connection is kept: the pool goes by address, and two names may share one.
        pool = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        return httpx2.AsyncClient(verify=tls, trust_env=False, follow_redirects=False, limits=pool)

    async def _one(self, url: str, left: list[int]) -> Media:
        now = asyncio.get_running_loop().time()
        known = self._cache.get(url)
        if known is not None:
            if known[0] > now:
                self._cache.move_to_end(url)
                self._charge(url, left, len(known[1].data))
                return known[1]
            self._forget(url)
        async with self._places:
            return await self._follow(url, left)

    async def _follow(self, url: str, left: list[int]) -> Media:
        at = url
        for _ in range(self._limits.redirects + 1):
            target = self._parse(at)
            response = await self._ask(target)
            try:
                if response.status_code not in _REDIRECTS:
                    media = await self._read(url, target, response, left)
                    self._keep(url, media, response.headers.get("cache-control", ""))
                    return media
                location = response.headers.get("location", "")
            finally:
                await response.aclose()
            try:
                at = str(target.join(location))
            except (httpx2.InvalidURL, ValueError):
                raise _refusal(url, "it redirects to what is not a URL") from None
        raise _refusal(url, f"it redirects more than {self._limits.redirects} times")

    def _parse(self, url: str) -> httpx2.URL:
        try:
            target = httpx2.URL(url)
            host = target.host
        except (httpx2.InvalidURL, ValueError, TypeError):
            raise _refusal("", "it is not a URL") from None
        if len(url) > 8192:
            raise _refusal(url, "the URL is longer than 8192 characters")
        if not host:
            raise _refusal("", "the URL has no host")
        if target.scheme not in ("https", "http") or (target.scheme == "http" and not self._allowed):
            raise _refusal(url, "only https URLs are fetched")
        if target.userinfo:
            raise _refusal(url, "the URL holds credentials")
        return target

    async def _addresses(self, target: httpx2.URL) -> list[Address]:
        """Public addresses of the target, all of them checked."""
        url = str(target)
        port = target.port or (443 if target.scheme == "https" else 80)
        try:
            found = [_address(text) for text in await self._resolve(target.raw_host.decode("ascii"), port)]
        except (OSError, UnicodeError, ValueError):
            raise _refusal(url, "the name does not resolve") from None
        if not found:
            raise _refusal(url, "the name does not resolve")
        is_own = all(any(one in network for network in self._allowed) for one in found)
        if not is_own:
            if not all(is_public(one) for one in found):
                raise _refusal(url, "its address is not a public one")
            if target.scheme != "https":
                raise _refusal(url, "only https URLs are fetched")
            if port != 443:
                raise _refusal(url, "only port 443 is fetched from")
        return found

    async def _ask(self, target: httpx2.URL) -> httpx2.Response:
        assert self._client is not None
        url = str(target)
        host = target.raw_host.decode("ascii")
        named = f"[{host}]" if ":" in host else host
        if target.port is not None:
            named = f"{named}:{target.port}"
        times = {"connect": self._limits.connect_s, "read": None, "write": None, "pool": None}
        for address in (await self._addresses(target))[:3]:
            request = httpx2.Request(
                "GET",
                target.copy_with(host=str(address), fragment=None),
                headers=[("host", named), ("accept", "*/*"), ("accept-encoding", "identity"), ("connection", "close")],
                extensions={"sni_hostname": host, "timeout": times},
            )
            try:
                return await self._client.send(request, stream=True)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                continue
            except (httpx2.TransportError, httpx2.InvalidURL, ValueError):
                raise _refusal(url, "the server does not answer properly") from None
        raise _refusal(url, "it cannot be reached, or its certificate is not good")

    async def _read(self, url: str, target: httpx2.URL, response: httpx2.Response, left: list[int]) -> Media:
        limit = self._limits.file_bytes
        if response.status_code != 200:
            raise _refusal(str(target), f"the server answered {response.status_code}")
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise _refusal(str(target), "the server sends it compressed")
        stated = response.headers.get("content-length", "")
        if stated.isascii() and stated.isdigit() and int(stated[:18]) > limit:
            raise _refusal(url, f"it is larger than {limit} bytes")
        data = bytearray()
        try:
            async for piece in response.aiter_raw():
                data += piece
                if len(data) > limit:
                    raise _refusal(url, f"it is larger than {limit} bytes")
                self._charge(url, left, len(piece))
        except httpx2.TransportError:
            raise _refusal(str(target), "the server broke off") from None
        if not data:
            raise _refusal(url, "it is empty")
        media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        return Media(settle_type(media_type, bytes(data[:24])), bytes(data))

    def _charge(self, url: str, left: list[int], size: int) -> None:
        left[0] -= size
        if left[0] < 0:
            raise _refusal(url, f"together they are larger than {self._limits.total_bytes} bytes")

    def _keep(self, url: str, media: Media, cache_control: str) -> None:
        limits = self._limits
        said = cache_control.lower()
        age = _MAX_AGE.search(said)
        seconds = min(limits.cache_s, float(age.group(1))) if age else limits.cache_s
        is_private = any(word in said for word in ("no-store", "no-cache", "private"))
        if is_private or seconds <= 0 or len(media.data) > limits.cache_bytes // 4:
            return
        self._forget(url)
        self._cache[url] = asyncio.get_running_loop().time() + seconds, media
        self._cached_bytes += len(media.data) + len(url)
        while self._cached_bytes > limits.cache_bytes:
            self._forget(next(iter(self._cache)))

    def _forget(self, url: str) -> None:
        found = self._cache.pop(url, None)
        if found is not None:
            self._cached_bytes -= len(found[1].data) + len(url)


def is_public(address: Address) -> bool:
    """False for whatever may be inside: private, loopback, link-local (metadata services), shared, multicast, reserved,
    and IPv6 forms of such IPv4 addresses."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped
        if inner is not None:
            return is_public(inner)
    if any(address in network for network in _REFUSED):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _address(text: str) -> Address:
    return ipaddress.ip_address(text.partition("%")[0])


async def _resolve(host: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _refusal(url: str, why: str) -> BadRequestError:
    try:
        host = httpx2.URL(url).host if url else ""
    except (httpx2.InvalidURL, ValueError):
        host = ""
    named = f" from {host:.100}" if host else ""
    return BadRequestError(
        f"The gateway refused the request: it could not fetch a file{named}: {why}. Send the bytes as a data: URL.",
        code="media_not_fetched",
        param="messages",
    )
