"""Model group to attempts: calls the app below once per attempt, with the body replayed, and holds the answer's start
back until content began, so that fail-over is invisible.

Neighbours: `routing.plan` (pure generator: what next), `routing.router` (who is healthy, who is chosen), the exchange
(attempts are announced there). After the first content byte nothing is retried: the layer that knows the dialect ends
the answer with an error.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from sidecar.admit import estimate_of
from sidecar.asgi import (
    Applies,
    ASGIApp,
    ClientDisconnectedError,
    Front,
    Message,
    Receive,
    Scope,
    Send,
    aside,
    candidates_of,
    close_exchange,
    is_chat,
    open_exchange,
    read_body,
    receive_for,
    refuse,
)
from sidecar.errors import (
    BadRequestError,
    NotFoundError,
    RateLimitedError,
    RefusedError,
    UpstreamError,
    UpstreamStaleError,
    UpstreamTimeoutError,
)
from sidecar.exchange import ATTEMPT_KEY, Attempt, Exchange
from sidecar.routing.affinity import prefix_of
from sidecar.routing.board import Live
from sidecar.routing.candidates import Candidates, Try
from sidecar.routing.catalog import Catalog
from sidecar.routing.health import Health
from sidecar.routing.plan import Failure, Full, Policy, attempts
from sidecar.routing.router import Here, Router
from sidecar.routing.verdict import final_error
from sidecar.translate.pieces import BIG_BYTES
from sidecar.translate.provider import Head
from sidecar.translate.provider_errors import kind_of_status, make_error
from sidecar.types import Deployment, Identity

_RETRYABLE_STATUSES = frozenset({408, 429, 500, 502, 503, 504, 529})
TPM_OUTPUT_GUESS = 256
Plan = Generator[Try, Failure | Full, float | None]


class Places(Protocol):
    """Counts the deployments' own limits where several processes share them."""

    def claims(self, deployment: Deployment, caller: Identity, asked: str | None) -> Any:
        """What an attempt has to `take`; `None`: nothing. `asked` is the model asked for, if this is a fallback."""

    async def take(self, name: str, claims: Any, tokens: int) -> Any:
        """What `leave` wants back, or the seconds (a float) until there is room. Raises `UnavailableError`."""

    async def leave(self, taken: Any, tokens: int | None) -> None:
        """The attempt is over; `None`: what it used is not known. Never fails."""


class RouteMiddleware:
    """`policy` bounds attempts and time (`retries` alone: the rest by default). `router` knows the deployments' state,
    one per process (`health` alone: with the weighted strategy). Without `places` their limits hold per process."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        catalog: Catalog,
        retries: int = 2,
        policy: Policy | None = None,
        health: Health | None = None,
        router: Router | None = None,
        places: Places | None = None,
        draw: Callable[[], float] = random.random,
        applies: Applies = is_chat,
    ) -> None:
        self.app = app
        self.catalog = catalog
        self.policy = policy if policy is not None else Policy(retries=retries)
        self.router = router if router is not None else Router(health=health)
        self.places = places
        self.draw = draw
        self.applies = applies
        self._version = catalog.version

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.applies(scope):
            await self.app(scope, receive, send)
            return
        exchange, is_mine = open_exchange(scope, receive)
        if is_mine:
            send = Front(exchange, send)
        try:
            await read_body(scope, exchange)
            candidates = candidates_of(exchange, self.catalog)
            exchange.is_routed = True
            await self._dispatch(scope, exchange, candidates, send)
        except RefusedError as error:
            await refuse(exchange, error, send)
        except ClientDisconnectedError:
            exchange.outcome = "client_left"
        finally:
            if is_mine:
                close_exchange(exchange)

    async def _dispatch(self, scope: Scope, exchange: Exchange, candidates: Sequence[Deployment], send: Send) -> None:
        started_at = exchange.now()
        plan: Plan | None = None
        failures: list[tuple[Deployment, UpstreamError]] = []
        here: Here | None = None
        step: Try | float | None
        if type(candidates) is Candidates and candidates.lone is not None:
            step = candidates.lone  # the plan is made when it is needed
        else:
            here = self._here(exchange, candidates)
            if type(candidates) is Candidates and (candidates.has_tags or candidates.has_limits):
                candidates = await self._look(exchange, candidates, here)
            plan = self._plan(exchange, candidates, here, started_at)
            step = _advance(plan, None)
        refusal: RefusedError | None = None
        while type(step) is Try:
            if step.wait_s and await _leaves_within(exchange, step.wait_s):
                exchange.outcome = "client_left"
                return
            outcome: Failure | Full
            attempt_of = _Attempt(self, scope, exchange, step.deployment, send, started_at, here)
            try:
                outcome_or_none = await attempt_of.run()
            except BadRequestError as error:
                # This dialect has no such field; another deployment's may.
                if plan is None or error.code != "unsupported_parameter":
                    raise
                refusal = refusal or error
                outcome_or_none = Failure("unsupported", is_retryable=False)
            if outcome_or_none is None:
                return
            outcome = outcome_or_none
            if attempt_of.error is not None:
                failures.append((step.deployment, attempt_of.error))
            if plan is None:
                here = Here(self.router, self.draw)
                plan = self._plan(exchange, candidates, here, started_at)
                next(plan)
            step = _advance(plan, outcome)
        if failures:
            extra = [(b"x-sidecar-attempts", str(len(exchange.attempts)).encode())]
            await refuse(exchange, final_error(failures), send, extra)
        elif refusal is not None:
            raise refusal
        else:
            raise RateLimitedError(
                "The gateway refused the request: every deployment of this model is at its own limit. "
                "Wait as 'retry-after' says.",
                code="deployments_full",
                retry_after_s=step if type(step) is float else 1.0,
            )

    def _plan(self, exchange: Exchange, candidates: Sequence[Deployment], here: Here, started_at: float) -> Plan:
        return attempts(
            candidates, policy=self.policy, world=here, now=exchange.now, draw=self.draw, started_at=started_at
        )

    def _here(self, exchange: Exchange, candidates: Sequence[Deployment]) -> Here:
        """What the choice depends on besides the board."""
        router = self.router
        if self._version != self.catalog.version:
            self._version = self.catalog.version
            router.keep(self.catalog.deployments)
        here = Here(router, self.draw, is_counting=self.places is None)
        if router.is_sticky(candidates[0].group) and exchange.payload is not None:
            here.home = prefix_of(exchange.payload)
        return here

    async def _look(self, exchange: Exchange, candidates: Candidates, here: Here) -> Candidates:
        """Those for the request's tags, and its size for their limits."""
        if candidates.has_tags:
            candidates = candidates.for_tags(exchange.tags or exchange.caller.tags)
            if not candidates:
                raise NotFoundError(
                    f"The gateway has no deployment of '{exchange.model[:128]}' for requests with these tags. "
                    "Send the tag of one, or use a key that has it.",
                    code="no_deployment_for_tags",
                    param="x-sidecar-tags",
                )
        if candidates.has_limits:
            is_big = exchange.estimate is None and len(exchange.raw or b"") >= BIG_BYTES
            tokens_in, tokens_out = await aside(estimate_of, exchange) if is_big else estimate_of(exchange)
            here.tokens = tokens_in + (tokens_out if tokens_out is not None else TPM_OUTPUT_GUESS)
        return candidates


class _Attempt:
    """One call of the app below, and what it tells about the deployment."""

    __slots__ = (
        "_attempt",
        "_deployment",
        "_exchange",
        "_here",
        "_is_cut",
        "_live",
        "_route",
        "_scope",
        "_send",
        "_started_at",
        "error",
    )

    def __init__(
        self,
        route: RouteMiddleware,
        scope: Scope,
        exchange: Exchange,
        deployment: Deployment,
        send: Send,
        started_at: float,
        here: Here | None,
    ) -> None:
        self._route = route
        self._scope = scope
        self._exchange = exchange
        self._deployment = deployment
        self._send = send
        self._started_at = started_at
        self._here = here
        self._is_cut = False
        self._attempt: Attempt | None = None
        self._live: Live | None = None
        self.error: UpstreamError | None = None

    async def run(self) -> Failure | Full | None:
        """`None`: the answer is out, or nobody wants it."""
        route, exchange, deployment = self._route, self._exchange, self._deployment
        health = route.router.health
        here = self._here
        taken: Any = None
        tokens = here.tokens if here is not None else 0
        if route.places is not None:
            own = exchange.candidates[0].group if exchange.candidates else deployment.group
            asked = exchange.model if deployment.group != own else None
            claims = None
            if asked is not None or not deployment.limits.is_empty:
                claims = route.places.claims(deployment, exchange.caller, asked)
            if claims is not None:
                taken = await self._take(route.places, claims, tokens)
                if type(taken) is float:
                    health.unknown(deployment)
                    if asked is None:
                        route.router.board.of(deployment).full_until = exchange.now() + taken
                    return Full(taken)
        live: Live | None = None
        gate: _Gate | None = None
        is_reported = False
        try:
            attempt = self._attempt = await exchange.begin_attempt(self._in_time())
            if here is not None:
                live = self._live = route.router.board.started(deployment, attempt.started_at, tokens)
            can_retry = len(exchange.attempts) <= route.policy.retries
            gate = _Gate(exchange, attempt, self._send, can_retry=can_retry, watcher=self if live is not None else None)
            error: UpstreamError | None = None
            try:
                await route.app({**self._scope, ATTEMPT_KEY: attempt}, receive_for(exchange), gate)
            except UpstreamError as raised:
                error = attempt.error = raised
            if exchange.client_left:
                return None
            if gate.discarded is not None:
                error = attempt.error = gate.discarded
            if error is None or gate.is_open:
                is_reported = True
                self._report(attempt, attempt.error)
                return None
            self.error = error
            attempt.ended_at = exchange.now()
            is_reported = True
            self._report(attempt, error)
            return Failure(error.kind, error.is_retryable, isinstance(error, UpstreamStaleError), error.retry_after_s)
        finally:
            if not is_reported:
                health.unknown(deployment)
            if live is not None and gate is not None:
                self._measure(live, gate, gate.attempt, tokens)
            if taken is not None and route.places is not None:
                await self._leave(route.places, taken, self._attempt)

    def began(self, attempt: Attempt) -> float:
        """A stream's content began: the board learns it now, and a trial is passed. How long it took."""
        now = self._exchange.now()
        waited_s = now - attempt.started_at
        if self._live is not None:
            self._live.waited(now, waited_s)
        self._route.router.health.began(self._deployment, attempt.started_at)
        return waited_s

    async def _take(self, places: Places, claims: Any, tokens: int) -> Any:
        exchange = self._exchange
        try:
            return await places.take(f"{exchange.exchange_id}.{len(exchange.attempts) + 1}", claims, tokens)
        except BaseException:
            self._route.router.health.unknown(self._deployment)
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
        deployment, policy = self._deployment, self._route.policy
        timeouts = deployment.timeouts
        if not self._exchange.attempts and timeouts.total_s <= policy.deadline_s:
            return deployment
        left = max(self._started_at + policy.deadline_s - self._exchange.now(), 0.001)
        if timeouts.total_s <= left:
            return deployment
        self._is_cut = True
        return replace(deployment, timeouts=replace(timeouts, total_s=left))

    def _report(self, attempt: Attempt, error: UpstreamError | None) -> None:
        health, deployment = self._route.router.health, self._deployment
        if error is None or not error.cools_down:
            # It answered; a client's own mistake is no failure of its.
            health.succeeded(deployment, attempt.started_at)
        elif self._is_cut and isinstance(error, UpstreamTimeoutError) and error.phase == "total":
            health.unknown(deployment)  # our deadline, not its
        else:
            health.failed(deployment, error.code, self._exchange.now(), error.retry_after_s, kind=error.kind)

    def _measure(self, live: Live, gate: _Gate, attempt: Attempt, tokens: int) -> None:
        exchange = self._exchange
        now = exchange.now()
        usage = attempt.usage
        error = attempt.error
        failed: bool | None = error is not None and error.cools_down
        if (error is not None and not error.cools_down) or (exchange.client_left and not attempt.is_complete):
            failed = None
        self._route.router.board.ended(
            live,
            now,
            took_s=now - attempt.started_at,
            began_s=gate.began_s,
            used=usage.total if usage.is_known else (0 if error is not None else tokens),
            output=usage.total_output,
            reserved=tokens,
            failed=failed,
        )


class _Gate:
    """Holds an attempt's messages back until its content began or it ended. One per attempt."""

    __slots__ = (
        "_can_retry",
        "_exchange",
        "_held",
        "_send",
        "_watcher",
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
        *,
        can_retry: bool,
        watcher: _Attempt | None = None,
    ) -> None:
        self._exchange = exchange
        self.attempt = attempt
        self._send = send
        self._can_retry = can_retry
        self._held: list[Message] = []
        self._watcher = watcher
        self.is_open = False
        self.began_s: float | None = None
        self.discarded: UpstreamError | None = None

    def __call__(self, message: Message) -> Awaitable[None]:
        return self._send(message) if self.is_open else self._judge(message)

    async def _judge(self, message: Message) -> None:
        if self.discarded is not None:
            return
        if message["type"] == "http.response.start":
            if message["status"] in _RETRYABLE_STATUSES and self._can_retry and not self._exchange.is_translated:
                # Without Translate below, the provider's own error answer comes by: try elsewhere instead.
                self.discarded = self._error(message)
                self.attempt.status = message["status"]
                return
            deployment = self.attempt.deployment.deployment_id.encode("latin-1", "replace")
            headers = [
                *message["headers"],
                (b"x-sidecar-deployment", deployment),
                (b"x-sidecar-attempts", str(self.attempt.number).encode()),
            ]
            self._held.append({**message, "headers": headers})
            return
        self._held.append(message)
        if self.attempt.content_started or not message.get("more_body", False) or not self._exchange.is_translated:
            self.is_open = True
            self._exchange.answering = self.attempt
            if self._watcher is not None and self._exchange.is_stream and self.attempt.content_started:
                self.began_s = self._watcher.began(self.attempt)
            for held in self._held:
                await self._send(held)
            self._held.clear()

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


def _advance(plan: Plan, outcome: Failure | Full | None) -> Try | float | None:
    """The plan's next try; at its end what it says of room."""
    try:
        return next(plan) if outcome is None else plan.send(outcome)
    except StopIteration as end:
        said: float | None = end.value
        return said


async def _leaves_within(exchange: Exchange, seconds: float) -> bool:
    """Wait; true if the client leaves meanwhile."""
    try:
        async with asyncio.timeout(seconds):
            await exchange.inbox.wait_left()
    except TimeoutError:
        return False
    return exchange.client_left
