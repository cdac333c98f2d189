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


class DeliveryError(Exception):
    """The batch was not taken. Says where (host) and why, never a credential."""


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
        self._client = httpx2.AsyncClient(timeout=timeout_s, follow_redirects=False)

    async def send(self, body: bytes, headers: Mapping[str, str]) -> None:
        """Raises `DeliveryError`."""
        import httpx2

        why = ""
        for number in range(self._attempts):
            pause = self._pause_s * 2**number * (0.5 + self._draw())
            try:
                answer = await self._client.post(self._url, content=body, headers=self._headers | dict(headers))
            except httpx2.HTTPError as error:
                why = type(error).__name__
            else:
                if answer.status_code < 300:
                    return
                why = f"status {answer.status_code}"
                if answer.status_code not in _AGAIN:
                    break
                after = answer.headers.get("retry-after", "")
                pause = max(pause, float(after)) if after.isdigit() else pause
            if number + 1 < self._attempts:
                await asyncio.sleep(min(pause, MAX_PAUSE_S))
        raise DeliveryError(f"{self._host} did not take it ({why})")

    async def aclose(self) -> None:
        await self._client.aclose()
