"""What an authorizer is, and the one that keeps a bearer token fresh.

Rule: a token is renewed before it runs out, by one task for all who wait, and not asked for again in every request
while its source fails.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from sidecar.errors import UpstreamCredentialError
from sidecar.tasks import end
from sidecar.types import Headers, Secret
from sidecar.upstream.base import HttpRequest


class Authorizer(Protocol):
    async def headers(self, request: HttpRequest) -> Headers:
        """The headers that authorise `request`, whose bytes do not change any more. Raises UpstreamCredentialError."""

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Token:
    value: Secret
    expires_at: float


class BearerAuthorizer:
    """`fetch` gives a token or raises UpstreamCredentialError. Renewed `early_s` before it runs out, while the old one
    still serves; in its last `least_s` nobody uses it any more."""

    def __init__(
        self,
        fetch: Callable[[], Awaitable[Token]],
        *,
        clock: Callable[[], float] = time.time,
        early_s: float = 300.0,
        least_s: float = 20.0,
        retry_s: float = 2.0,
        deadline_s: float = 15.0,
    ) -> None:
        self._fetch = fetch
        self._clock = clock
        self._early_s = early_s
        self._least_s = least_s
        self._retry_s = retry_s
        self._deadline_s = deadline_s
        self._headers: Headers = []
        self._renew_at = 0.0
        self._expires_at = 0.0
        self._failure: UpstreamCredentialError | None = None
        self._flight: asyncio.Task[None] | None = None

    async def headers(self, request: HttpRequest) -> Headers:
        now = self._clock()
        if now < self._renew_at:
            return self._headers
        if now < self._expires_at:
            self._start()
            return self._headers
        if self._flight is None and self._failure is not None and now < self._renew_at + self._retry_s:
            raise self._again()
        await asyncio.shield(self._start())
        if self._clock() >= self._expires_at:
            raise self._again()
        return self._headers

    def _again(self) -> UpstreamCredentialError:
        return UpstreamCredentialError(self._failure.message if self._failure else "The credential ran out at once.")

    def _start(self) -> asyncio.Task[None]:
        if self._flight is None:
            self._flight = asyncio.get_running_loop().create_task(self._renew())
        return self._flight

    async def _renew(self) -> None:
        try:
            async with asyncio.timeout(self._deadline_s):
                token = await self._fetch()
        except TimeoutError:
            self._failed(UpstreamCredentialError("The source of the provider's credential did not answer in time."))
        except UpstreamCredentialError as error:
            self._failed(error)
        except Exception as error:  # noqa: BLE001
            # A vendor's library raises what it likes; its text may hold a secret, so only the type is told.
            self._failed(UpstreamCredentialError(f"No credential for the provider ({type(error).__name__})."))
        else:
            now = self._clock()
            self._failure = None
            self._expires_at = max(now, token.expires_at - self._least_s)
            life = token.expires_at - now
            self._renew_at = now + max(life - self._early_s, life / 2, 0.0)
            self._headers = [(b"authorization", b"Bearer " + token.value.reveal().encode("latin-1"))]
        finally:
            self._flight = None

    def _failed(self, error: UpstreamCredentialError) -> None:
        self._failure = error
        now = self._clock()
        # What still serves is used on; the next try is due after `retry_s`.
        self._renew_at = now + self._retry_s if now < self._expires_at else now

    async def aclose(self) -> None:
        await end([self._flight])


def missing(extra: str, library: str) -> UpstreamCredentialError:
    return UpstreamCredentialError(
        f"The gateway needs {library} for this provider's credentials: install 'sidecar-gateway[{extra}]'."
    )
