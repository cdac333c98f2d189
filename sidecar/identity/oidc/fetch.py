"""Small JSON documents from configured hosts: bounded in size and time, no redirect, the media type checked.

Neighbours: `jwks.py` fetches key sets, `introspect.py` asks about tokens. Rule: whatever goes wrong is one
`FetchError` whose message is fit for a client: what failed, and no address, credential or byte of the answer.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any

from sidecar.identity.deadline import Deadline
from sidecar.identity.oidc.issuers import url_fault
from sidecar.identity.oidc.jose import MalformedError, strict_object

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Response

MAX_BYTES = 256 * 1024

NewClient = Callable[[str | None], "AsyncClient"]
"""A client that trusts a CA file (`None`: the system's certificates)."""


class FetchError(Exception):
    """No usable answer; the message ends the sentence "its key set …"."""


def new_client(ca_file: str | None) -> AsyncClient:
    """The default `NewClient`: no proxy from the environment, no redirects, no cookies, few connections."""
    import httpx2

    client = httpx2.AsyncClient(
        verify=ssl.create_default_context(cafile=ca_file),
        trust_env=False,
        follow_redirects=False,
        timeout=None,
        limits=httpx2.Limits(max_connections=64, max_keepalive_connections=4, keepalive_expiry=30.0),
    )
    client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    return client


class Fetcher:
    """Fetches with one CA file, which is read again when it changes. The client is made by the first fetch."""

    def __init__(self, new_client: NewClient, ca_file: str | None, *, deadline_s: float) -> None:
        self._new_client = new_client
        self._ca_file = ca_file
        self._deadline = Deadline(deadline_s)
        self._client: AsyncClient | None = None
        self._old: AsyncClient | None = None
        self._stamp: tuple[int, int] | None = None
        self._lock = asyncio.Lock()

    async def get(self, url: str, *, bearer: str | None = None) -> dict[str, Any]:
        """The JSON object at a URL. Raises `FetchError`."""
        return await self._run("GET", url, {"authorization": f"Bearer {bearer}"} if bearer else {}, None)

    async def post(self, url: str, form: dict[str, str], headers: dict[str, str]) -> dict[str, Any]:
        """The JSON object that answers a form. Raises `FetchError`."""
        return await self._run("POST", url, headers, form)

    async def aclose(self) -> None:
        for client in (self._client, self._old):
            if client is not None:
                await client.aclose()
        self._client = self._old = None

    async def _run(self, method: str, url: str, headers: dict[str, str], form: dict[str, str] | None) -> dict[str, Any]:
        if url_fault(url) is not None:
            raise FetchError("has an address that may not be fetched from")
        try:
            return await self._deadline.run(self._fetch(method, url, headers, form))
        except TimeoutError:
            raise FetchError(f"did not answer within {self._deadline.seconds:g} s") from None

    async def _fetch(
        self, method: str, url: str, headers: dict[str, str], form: dict[str, str] | None
    ) -> dict[str, Any]:
        import httpx2

        try:
            client = await self._connected()
            request = client.build_request(
                method, url, data=form, headers={"accept": "application/json", "accept-encoding": "identity", **headers}
            )
            answer = await client.send(request, stream=True)
        except (httpx2.HTTPError, httpx2.InvalidURL, ssl.SSLError, OSError) as error:
            raise FetchError(f"could not be reached ({type(error).__name__})") from None
        try:
            data = await _read(answer)
        except httpx2.HTTPError as error:
            raise FetchError(f"broke off its answer ({type(error).__name__})") from None
        finally:
            await answer.aclose()
        try:
            return strict_object(data, "its answer")
        except MalformedError:
            raise FetchError("answered something that is not a JSON object") from None

    async def _connected(self) -> AsyncClient:
        async with self._lock:
            stamp = await asyncio.to_thread(_stamp, self._ca_file)
            if self._client is None or stamp != self._stamp:
                made = await asyncio.to_thread(self._new_client, self._ca_file)
                if self._old is not None:
                    await self._old.aclose()
                self._old, self._client, self._stamp = self._client, made, stamp
            return self._client


async def _read(answer: Response) -> bytes:
    if answer.status_code != 200:
        raise FetchError(f"answered HTTP {answer.status_code}")
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise FetchError("answered with a media type that is not JSON")
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise FetchError("answered compressed, which was not asked for")
    data = bytearray()
    async for piece in answer.aiter_raw():
        data += piece
        if len(data) > MAX_BYTES:
            raise FetchError(f"answered more than {MAX_BYTES // 1024} KiB")
    return bytes(data)


def read_file(path: str) -> bytes:
    """A small file. Raises `FetchError`. Blocks: call it in a thread."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise FetchError(f"could not be read from its file ({type(error).__name__})") from None
    if len(data) > MAX_BYTES:
        raise FetchError(f"is a file of more than {MAX_BYTES // 1024} KiB")
    return data


def _stamp(path: str | None) -> tuple[int, int] | None:
    if path is None:
        return None
    found = os.stat(path)
    return found.st_mtime_ns, found.st_size
