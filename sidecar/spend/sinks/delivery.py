"""One batch to one URL by HTTP, with retries: what webhook and OTLP share.

Rule: what may come again (429, 5xx, no answer) is tried again with growing pauses, `retry-after` honoured; any other
refusal, or the last failure, raises and the batch is dropped and counted by its `Outlet`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping

from sidecar.types import Secret

_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
MAX_PAUSE_S = 30.0
MAX_ANSWER = 64 * 1024


class DeliveryError(Exception):
    """The batch was not taken, or `lost` records of it. Says where (host) and why, never a credential."""

    lost: int | None = None


class Delivery:
    """`headers` are sent with every batch; their values are secrets."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, Secret],
        *,
        attempts: int = 5,
        pause_s: float = 0.5,
        timeout_s: float = 10.0,
        draw: Callable[[], float] = random.random,
    ) -> None:
        import httpx2  # two megabytes that only who delivers needs

        self._url = url
        self._host = httpx2.URL(url).host
        self._headers = {name: value.reveal() for name, value in headers.items()}
        self._attempts = attempts
        self._pause_s = pause_s
        self._draw = draw
        self._timeout_s = timeout_s
        self._client = httpx2.AsyncClient(timeout=timeout_s, follow_redirects=False)

    async def send(self, body: bytes, headers: Mapping[str, str]) -> tuple[str, bytes]:
        """The answer's content type and body. Raises `DeliveryError`."""
        import httpx2

        why = ""
        for number in range(self._attempts):
            pause = self._pause_s * 2**number * (0.5 + self._draw())
            try:
                status, said, answer = await self._ask(body, headers)
            except (httpx2.HTTPError, TimeoutError) as error:
                why = type(error).__name__
            else:
                if status < 300:
                    return said.get("content-type", ""), answer
                why = f"status {status}"
                if status not in _AGAIN:
                    break
                after = said.get("retry-after", "")
                pause = max(pause, float(after)) if after.isdecimal() else pause
            if number + 1 < self._attempts:
                await asyncio.sleep(min(pause, MAX_PAUSE_S))
        raise self.error(why)

    async def _ask(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, Mapping[str, str], bytes]:
        """Of the answer's body its beginning, as long as that comes in time: whoever answers may never end."""
        sent = {"accept-encoding": "identity"} | self._headers | dict(headers)
        async with self._client.stream("POST", self._url, content=body, headers=sent) as answer:
            found = b""
            async with asyncio.timeout(self._timeout_s):
                async for piece in answer.aiter_raw():
                    found += piece
                    if len(found) >= MAX_ANSWER:
                        break
            return answer.status_code, answer.headers, found[:MAX_ANSWER]

    def error(self, why: str, lost: int | None = None) -> DeliveryError:
        found = DeliveryError(f"{self._host} did not take it ({why})")
        found.lost = lost
        return found

    async def aclose(self) -> None:
        await self._client.aclose()
