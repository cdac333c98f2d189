"""One attempt: the app below called once, its answer held back until content began, and what it tells about the
deployment.

Neighbours: RouteMiddleware makes one `Dispatch` per try of its plan; `routing.board` and `routing.health` learn of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

from sidecar.asgi import ASGIApp, Message, Scope, Send, receive_for
from sidecar.errors import BadRequestError, UpstreamError, UpstreamStaleError, UpstreamTimeoutError
from sidecar.exchange import ATTEMPT_KEY, Attempt, Exchange
from sidecar.routing.board import Live
from sidecar.routing.candidates import Candidates
from sidecar.routing.plan import ELSEWHERE, Failure, Full, Policy
from sidecar.routing.router import Here, Router
from sidecar.translate.provider import Head
from sidecar.translate.provider_errors import kind_of_status, make_error
from sidecar.types import UNKNOWN_USAGE, Deployment, Identity

if TYPE_CHECKING:
    from sidecar.race import Race


class _Nothing:
    """To be awaited, and over at once."""

    def __await__(self) -> Generator[Any, Any, None]:
        return iter(())  # type: ignore[return-value]


_NOTHING = _Nothing()
_RETRYABLE_STATUSES = frozenset({408, 429, 500, 502, 503, 504, 529})


class Places(Protocol):
    """Counts the deployments' own limits where several processes share them."""

    def claims(self, deployment: Deployment, caller: Identity, asked: str | None) -> Any:
        """What an attempt has to `take`; `None`: nothing. `asked` is the model asked for, if this is a fallback."""

    async def take(self, name: str, claims: Any, tokens: int) -> Any:
        """What `leave` wants back, or the seconds (a float) until there is room. Raises `UnavailableError`."""

    async def leave(self, taken: Any, tokens: int | None) -> None:
        """The attempt is over; `None`: what it used is not known. Never fails."""


class Host(Protocol):
    """What a dispatch needs of RouteMiddleware."""

    app: ASGIApp
    router: Router
    policy: Policy
    places: Places | None

    def policy_of(self, exchange: Exchange, started_at: float) -> Policy: ...


class Dispatch:
    """One call of the app below. Without `here` nothing is measured: there is but one place to go to."""

    __slots__ = (
        "_exchange",
        "_had_all",
        "_here",
        "_host",
        "_is_cut",
        "_live",
        "_scope",
        "_send",
        "_started_at",
        "attempt",
        "deployment",
        "error",
        "race",
        "refusal",
    )

    def __init__(
        self,
        host: Host,
        scope: Scope,
        exchange: Exchange,
        deployment: Deployment,
        send: Send,
        started_at: float,
        here: Here | None,
    ) -> None:
        self._host = host
        self._scope = scope
        self._exchange = exchange
        self._send = send
        self._started_at = started_at
        self._here = here
        self._is_cut = self._had_all = False
        self._live: Live | None = None
        self.deployment = deployment
        self.attempt: Attempt | None = None
        self.error: UpstreamError | None = None
        self.refusal: BadRequestError | None = None
        self.race: Race | None = None

    async def run(self) -> Failure | Full | None:
        """`None`: the answer is out, or nobody wants it."""
        host, exchange, deployment = self._host, self._exchange, self.deployment
        health = host.router.health
        here = self._here
        taken: Any = None
        tokens = here.tokens if here is not None else 0
        if host.places is not None:
            own = exchange.candidates.own if type(exchange.candidates) is Candidates else deployment
            is_fallback = deployment.group != own.group or deployment.called != own.called
            asked = exchange.model if is_fallback else None
            claims = None
            if asked is not None or not deployment.limits.is_empty:
                claims = host.places.claims(deployment, exchange.caller, asked)
            if claims is not None:
                taken = await self._take(host.places, claims, tokens)
                if type(taken) is float:
                    health.unknown(deployment)
                    if asked is None:
                        host.router.board.filled(deployment, exchange.now() + taken)
                    return Full(taken)
        live: Live | None = None
        gate: Gate | None = None
        is_reported = False
        try:
            placed = deployment
            is_short = deployment.timeouts.total_s <= host.policy.deadline_s
            if not is_short or exchange.attempts or exchange.deadline_s is not None:
                placed = self._in_time()
            attempt = self.attempt = await exchange.begin_attempt(placed)
            if self.race is not None and not self._is_wanted(self.race, attempt):
                return None
            if here is not None:
                live = self._live = host.router.board.started(deployment, attempt.started_at, tokens)
            can_retry = len(exchange.attempts) <= host.policy.retries
            gate = Gate(exchange, attempt, self._send, self, can_retry=can_retry)
            error: UpstreamError | None = None
            try:
                await host.app({**self._scope, ATTEMPT_KEY: attempt}, receive_for(exchange), gate)
            except UpstreamError as raised:
                error = attempt.error = raised
            except BadRequestError as raised:
                # This dialect has no such field; another deployment's may.
                if here is None or raised.code != "unsupported_parameter":
                    raise
                self.refusal = raised
                return Failure("unsupported", is_retryable=False)
            if exchange.inbox.client_left:
                return None
            if gate.discarded is not None:
                error = attempt.error = gate.discarded
            if error is None or (
                gate.is_open and (exchange.continuation is None or not exchange.continuation.is_broken)
            ):
                is_reported = True
                if attempt.error is None:
                    health.succeeded(deployment, attempt.started_at)
                else:
                    self._report(attempt, attempt.error)
                return None
            self.error = error
            attempt.ended_at = exchange.now()
            is_reported = True
            self._report(attempt, error)
            return Failure(error.kind, error.is_retryable, isinstance(error, UpstreamStaleError), error.retry_after_s)
        finally:
            if not is_reported:
                health.unknown(deployment, self.attempt.started_at if self.attempt is not None else inf)
            if live is not None and gate is not None:
                self._measure(live, gate, gate.attempt, tokens)
            if taken is not None and host.places is not None:
                await self._leave(host.places, taken, self.attempt)
                if deployment.limits.concurrency is not None:
                    host.router.board.of(deployment).full_until = 0.0  # as far as we know, there is room now

    def _is_wanted(self, race: Race, attempt: Attempt) -> bool:
        """False: meanwhile another answers. Nothing was sent."""
        if race.winner is None and not race.is_over:
            attempt.is_running = race.is_two
            return True
        attempt.is_sent = False
        attempt.ended_at = self._exchange.now()
        return False

    def began(self, attempt: Attempt) -> float | None:
        """A stream's content began: the board learns it now, and a trial is passed. How long it took."""
        if self._live is None:
            return None
        now = self._exchange.now()
        waited_s = now - attempt.started_at
        self._live.waited(now, waited_s)
        self._host.router.health.began(self.deployment, attempt.started_at)
        return waited_s

    async def _take(self, places: Places, claims: Any, tokens: int) -> Any:
        number = 0  # a name is used once: the store remembers it
        if self._here is not None:
            number = self._here.takes = self._here.takes + 1
        try:
            return await places.take(f"{self._exchange.exchange_id}.{number}", claims, tokens)
        except BaseException:
            self._host.router.health.unknown(self.deployment)
            raise

    async def _leave(self, places: Places, taken: Any, attempt: Attempt | None) -> None:
        used: int | None = 0
        if attempt is not None and attempt.usage.is_known:
            used = attempt.usage.total
        elif attempt is not None and attempt.may_be_billed:
            used = None
        await places.leave(taken, used)

    def _in_time(self) -> Deployment:
        """The deployment, with no more time than the request's deadline leaves."""
        host, exchange, deployment = self._host, self._exchange, self.deployment
        policy = host.policy if exchange.deadline_s is None else host.policy_of(exchange, self._started_at)
        timeouts = deployment.timeouts
        if not exchange.attempts and timeouts.total_s <= policy.deadline_s:
            return deployment
        left = max(self._started_at + policy.deadline_s - self._exchange.now(), 0.001)
        if timeouts.total_s <= left:
            return deployment
        self._is_cut = True
        self._had_all = left > 0.9 * host.policy.deadline_s
        return replace(deployment, timeouts=replace(timeouts, total_s=left))

    def _report(self, attempt: Attempt, error: UpstreamError) -> None:
        health, deployment = self._host.router.health, self.deployment
        if not error.cools_down:
            # It answered; a client's own mistake is no failure of its.
            health.succeeded(deployment, attempt.started_at)
        elif self._is_our_deadline(attempt, error):
            health.unknown(deployment, attempt.started_at)
        else:
            now, wait_s, began_at = self._exchange.now(), error.retry_after_s, attempt.started_at
            health.failed(deployment, error.code, now, wait_s, kind=error.kind, started_at=began_at)

    def _is_our_deadline(self, attempt: Attempt, error: UpstreamError) -> bool:
        """The client's or the gateway's ran out, not the deployment's. One that had all of the gateway's and did not
        even begin had time enough."""
        if not (self._is_cut and isinstance(error, UpstreamTimeoutError) and error.phase == "total"):
            return False
        return attempt.content_started or not self._had_all

    def _failed(self, live: Live, attempt: Attempt, now: float) -> bool | None:
        error = attempt.error
        if not attempt.is_complete and self._exchange.client_left:
            return None
        if attempt.is_lost:
            live.outrun(now, now - attempt.started_at)
            return None
        if error is None:
            return None  # refused before anything was sent: no quick answer
        if not error.cools_down:
            # A client's own mistake is none of its, but whoever has no such model is no good choice for the next one.
            return True if error.kind in ELSEWHERE else None
        return None if self._is_our_deadline(attempt, error) else True

    def _measure(self, live: Live, gate: Gate, attempt: Attempt, tokens: int) -> None:
        now = self._exchange.now()
        took_s = now - attempt.started_at
        failed: bool | None = False
        if attempt.error is not None or attempt.is_lost or not attempt.is_complete:
            failed = self._failed(live, attempt, now)
        used, output, usage = tokens if attempt.error is None else 0, 0, attempt.usage
        if usage is not UNKNOWN_USAGE:
            output = usage.total_output
            if usage.is_known:
                used = usage.total_input + output
        self._host.router.board.ended(
            live,
            now,
            took_s=took_s,
            began_s=gate.began_s,
            used=used,
            output=output,
            reserved=tokens,
            failed=failed,
        )


class Gate:
    """Holds an attempt's messages back until its content began or it ended. One per attempt."""

    __slots__ = (
        "_can_retry",
        "_dispatch",
        "_exchange",
        "_held",
        "_send",
        "attempt",
        "began_s",
        "discarded",
        "is_open",
    )

    def __init__(
        self,
        exchange: Exchange,
        attempt: Attempt,
        send: Send,
        dispatch: Dispatch,
        *,
        can_retry: bool,
    ) -> None:
        self._exchange = exchange
        self.attempt = attempt
        self._send = send
        self._can_retry = can_retry
        self._held: list[Message] = []
        self._dispatch = dispatch
        self.is_open = False
        self.began_s: float | None = None
        self.discarded: UpstreamError | None = None

    def __call__(self, message: Message) -> Awaitable[None]:
        if self.is_open:
            return self._send(message)
        attempt = self.attempt
        if self.discarded is not None or attempt.is_lost:
            return _NOTHING
        if message["type"] == "http.response.start":
            if message["status"] in _RETRYABLE_STATUSES and self._can_retry and not self._exchange.is_translated:
                # Without Translate below, the provider's own error answer comes by: try elsewhere instead.
                self.discarded = self._error(message)
                attempt.status = message["status"]
            else:
                self._held.append(message)
            return _NOTHING
        self._held.append(message)
        if attempt.content_started or not message.get("more_body", False) or not self._exchange.is_translated:
            return self._open(attempt)
        return _NOTHING

    async def _open(self, attempt: Attempt) -> None:
        exchange, held, race = self._exchange, self._held, self._dispatch.race
        if race is not None and not race.won(self._dispatch):
            held.clear()
            return
        self.is_open = True
        exchange.answering = attempt
        if exchange.is_stream and attempt.content_started:
            self.began_s = self._dispatch.began(attempt)
        start = held[0]
        headers = [
            *start["headers"],
            (b"x-sidecar-deployment", attempt.deployment.deployment_id.encode("latin-1", "replace")),
            (b"x-sidecar-attempts", b"%d" % len(exchange.attempts)),
        ]
        held[0] = {**start, "headers": headers}
        for message in held:
            await self._send(message)
        held.clear()

    def _error(self, message: Message) -> UpstreamError:
        head = Head(message["status"], message["headers"])
        return make_error(
            self.attempt.deployment.provider,
            head,
            kind=kind_of_status(head.status),
            now=self._exchange.now(),
            fields={},
            keeps_names=False,
        )
