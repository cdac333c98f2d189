"""The per-request object under `scope["sidecar"]`, made by whichever of our middlewares runs first; one for all.

Who writes which field (one writer each):

    exchange_id, request_id, started_at, idempotency_key   open_exchange (asgi.py)
    identity                              Auth, through `identify()`
    asked_model                           Auth: the alias, where `model` is what it stands for
    end_user_id, tags                     Auth
    ids, carried_tokens                   ResponseIds
    raw, payload, model, is_stream, deadline_s, dialect   read_body (asgi.py)
    front                                 the outermost send wrapper, by itself (asgi.Front)
    begin                                 Route
    candidates                            the first who asks, through `asgi.candidates_of`
    attempts, begun, beginning            Route, else Spend(deployment=), Translate or the proxy: `begin_attempt()`
    answering, attempt.is_running, .is_lost   Route: two attempts may be under way at once
    continuation                          Route: who goes on with a broken answer, where that is configured
    attempt.usage, .content_started       Translate, else the innermost tap (asgi.Tap)
    seen_usage                            the innermost tap, for an answer nobody announced an attempt for
    attempt.status, .first_byte_at        UpstreamProxy, else the tap
    grant, edits["output_cap"]            the first of RateLimit and Budget, through admit.py; the cap: Continuation
    attempt.cost_nano, .cost_status       Spend, else Budget
    attempt.output_max                    Budget, through admit.py
    queue_place, queue_s                  waiting.WaitingRoom
    outcome, error                        asgi.refuse, else the tap
    replay_of                             Idempotency
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sidecar.errors import SidecarError, StackOrderError, UpstreamError
from sidecar.translate.dialects import CHAT, Dialect
from sidecar.types import UNKNOWN_USAGE, Deployment, Identity, Outcome, Usage

if TYPE_CHECKING:
    from sidecar.asgi import Front, Inbox, Send
    from sidecar.continuation import Continuation
    from sidecar.limits.admission import Grant
    from sidecar.response_ids import RequestIds

SCOPE_KEY = "sidecar"
ATTEMPT_KEY = "sidecar.attempt"
"""Route puts the attempt it begins under it into the scope it hands down, so that two of one exchange can run at once;
below, `attempt_in` reads it."""

ANONYMOUS = Identity(key_hash="", key_name="anonymous")
"""Who calls when no Auth is mounted: no scope of its own, only the global ones."""


class _Randomness:
    """Random hexadecimal digits by the page: one system call for some 200 ids. A forked child starts its own page."""

    __slots__ = ("_at", "_page")

    def __init__(self) -> None:
        self.forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        self._page = ""
        self._at = 0

    def take(self) -> str:
        """19 digits."""
        at = self._at
        digits = self._page[at : at + 19]
        if len(digits) < 19:
            self._page, at = os.urandom(2000).hex(), 0
            digits = self._page[:19]
        self._at = at + 19
        return digits


_randomness = _Randomness()
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


def new_exchange_id(now: float) -> str:
    """A UUIDv7 (RFC 9562 §5.7): 48 bits of milliseconds, then 74 random bits; sorts by time."""
    at = f"{int(now * 1000) & 0xFFFFFFFFFFFF:012x}"
    random = _randomness.take()
    return f"{at[:8]}-{at[8:]}-7{random[:3]}-{_VARIANT[random[3]]}{random[4:7]}-{random[7:]}"


NO_BOUND = 1 << 62


@dataclass(slots=True, eq=False)
class Attempt:
    """One try at one deployment."""

    number: int
    deployment: Deployment
    started_at: float
    hold_nano: int = 0
    usage: Usage = UNKNOWN_USAGE
    content_started: bool = False
    events_seen: int = 0
    output_max: int = NO_BOUND
    """Tokens of output its hold pays for; a stream that passes on more is ended."""
    status: int = 0
    first_byte_at: float | None = None
    ended_at: float | None = None
    is_sent: bool = True
    """False once it is certain that nothing was dispatched."""
    is_complete: bool = False
    error: UpstreamError | None = None
    dropped: tuple[str, ...] = ()
    cost_nano: int | None = None
    cost_status: str = ""
    is_recorded: bool = False
    is_running: bool = False
    """Another attempt may begin while this one is under way, so what it cost is not known yet."""
    is_lost: bool = False
    """Another attempt began content first; this one was ended."""

    @property
    def may_be_billed(self) -> bool:
        """The provider may charge for this attempt: bytes went out and it did not answer with an error."""
        if self.error is not None:
            return self.error.may_be_billed
        return self.is_sent and self.status < 400


BeforeAttempt = Callable[["Exchange", Attempt], Awaitable[None]]


@dataclass(slots=True, eq=False)
class Exchange:
    """One client request and its answer, from first byte to settled spend."""

    exchange_id: str
    started_at: float
    inbox: Inbox
    now: Callable[[], float] = time.time
    request_id: str | None = None
    idempotency_key: bytes | None = None
    identity: Identity | None = None
    end_user_id: str | None = None
    tags: tuple[str, ...] = ()
    raw: bytes | None = None
    payload: dict[str, Any] | None = None
    model: str = ""
    asked_model: str | None = None
    is_stream: bool = False
    dialect: Dialect = CHAT
    ids: RequestIds | None = None
    """Of what providers keep: the response this request goes on from, and how new ones are called."""
    carried_tokens: int = 0
    """Input that is not in the body: what that response brings along, at most. Held in money alone."""
    deadline_s: float | None = None
    """What the client gives the whole request (`x-sidecar-timeout`); it can only shorten ours."""
    edits: dict[str, Any] = field(default_factory=dict)
    estimate: tuple[int, int | None] | None = None
    candidates: tuple[Deployment, ...] | None = None
    attempts: list[Attempt] = field(default_factory=list)
    begun: int = 0
    beginning: int = 0
    queue_place: int = 0
    """Where it stood when it had to wait for a limit, 1 first; 0: it had not. `queue_s`: how long."""
    queue_s: float = 0.0
    answering: Attempt | None = None
    """The attempt whose answer goes to the client, once that is decided."""
    continuation: Continuation | None = None
    """Asked by the layer that knows the dialect before it ends a broken answer."""
    before_attempt: list[BeforeAttempt] = field(default_factory=list)
    grant: Grant | None = None
    is_settled: bool = False
    is_routed: bool = False
    is_translated: bool = False
    tap_owner: object | None = None
    front: Front | None = None
    begin: Send | None = None
    """The way up from Route, which a heartbeat begins an answer by: so that it gets the headers of the layers there."""
    seen_usage: Usage = UNKNOWN_USAGE
    status: int = 0
    answer_started: bool = False
    answer_ended: bool = False
    outcome: Outcome | None = None
    error: SidecarError | None = None
    replay_of: str | None = None
    """The exchange whose kept answer this one got."""

    def identify(self, identity: Identity) -> None:
        """Auth's write. A second, different identity means two Auth layers disagree."""
        if self.identity is not None and self.identity is not identity and self.identity != identity:
            raise StackOrderError(
                "two middlewares identified the caller differently: mount AuthMiddleware once, outermost after Observe"
            )
        self.identity = identity

    @property
    def caller(self) -> Identity:
        return self.identity if self.identity is not None else ANONYMOUS

    @property
    def attempt(self) -> Attempt | None:
        """The one that answers, until that is decided the last one. Below Route ask `attempt_in`."""
        return self.answering or (self.attempts[-1] if self.attempts else None)

    @property
    def client_left(self) -> bool:
        return self.inbox.client_left

    @property
    def cost_nano(self) -> int:
        """Of all attempts so far."""
        return sum(a.cost_nano or 0 for a in self.attempts)

    async def begin_attempt(self, deployment: Deployment) -> Attempt:
        """Announce a dispatch. What Budget and Spend must do first happens here; if one of them raises a
        `RefusedError`, nothing may be dispatched."""
        self.begun += 1  # not their number: another may begin while the hooks of this one still run
        self.beginning += 1
        attempt = Attempt(self.begun, deployment, self.now())
        try:
            for hook in self.before_attempt:
                await hook(self, attempt)
        except asyncio.CancelledError:
            attempt.is_sent = False  # its intent may be written, so it gets its row
            attempt.ended_at = self.now()
            self.attempts.append(attempt)
            raise
        finally:
            self.beginning -= 1
        self.attempts.append(attempt)
        return attempt


def attempt_in(scope: MutableMapping[str, Any], exchange: Exchange) -> Attempt | None:
    """The attempt a layer below Route works for; without Route the last one."""
    found: Attempt | None = scope.get(ATTEMPT_KEY)
    return found if found is not None else exchange.attempt
