"""Model group to attempts: calls the app below once per attempt, with the body replayed, and holds the answer's start
back until content began, so that fail-over is invisible.

Neighbours: `routing.plan` (pure generator: what next), `routing.router` (who is healthy, who is chosen), the exchange
(attempts are announced there). After the first content byte nothing is retried: the layer that knows the dialect ends
the answer with an error, unless another attempt may go on with it (`continuation`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from sidecar.admit import TPM_OUTPUT_GUESS, estimate_of
from sidecar.asgi import (
    Applies,
    ASGIApp,
    ClientDisconnectedError,
    Front,
    Receive,
    Scope,
    Send,
    aside,
    candidates_of,
    close_exchange,
    is_call,
    open_exchange,
    read_body,
    refuse,
)
from sidecar.attempts import Dispatch, Places
from sidecar.continuation import Continuation, Continuations
from sidecar.errors import (
    NotFoundError,
    RateLimitedError,
    RefusedError,
    UnavailableError,
    UpstreamError,
)
from sidecar.exchange import Attempt, Exchange
from sidecar.race import Race
from sidecar.routing.affinity import prefix_of
from sidecar.routing.candidates import Candidates, Try
from sidecar.routing.catalog import Catalog
from sidecar.routing.health import Health
from sidecar.routing.plan import SLOW, WAIT, Failure, Full, Plan, Policy, Said, Slow, Wait, attempts, opening
from sidecar.routing.router import Here, Router
from sidecar.routing.verdict import final_error
from sidecar.translate.pieces import BIG_BYTES
from sidecar.types import Deployment
from sidecar.waiting import WaitingRoom


class RouteMiddleware:
    """`policy` bounds attempts and time (`retries` alone: the rest by default). `router` knows the deployments' state,
    one per process (`health` alone: with the weighted strategy). Without `places` their limits hold per process. With a
    `room`, requests wait there while all deployments are full."""

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
        room: WaitingRoom | None = None,
        continuations: Continuations | None = None,
        draw: Callable[[], float] = random.random,
        applies: Applies = is_call,
    ) -> None:
        self.app = app
        self.catalog = catalog
        self.policy = policy if policy is not None else Policy(retries=retries)
        self.router = router if router is not None else Router(health=health)
        self.places = places
        self.room = room
        self.continuations = continuations
        self.draw = draw
        self.applies = applies
        self._lines: dict[str, frozenset[str]] = {}
        """Of those in which requests wait: the deployments that may serve them."""
        self._version = catalog.version
        self._plain = Here(self.router, draw, is_counting=places is None)
        """Of all requests that need no view of their own."""

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
            exchange.begin = send
            if self.room is not None and type(candidates) is Candidates and candidates.has_limits:
                await self._in_line(self.room, scope, exchange, candidates, send)
            else:
                await self._dispatch(scope, exchange, candidates, send, exchange.now())
        except RefusedError as error:
            await refuse(exchange, error, send)
        except ClientDisconnectedError:
            exchange.outcome = "client_left"
        finally:
            if is_mine:
                close_exchange(exchange)

    async def _dispatch(
        self, scope: Scope, exchange: Exchange, candidates: Sequence[Deployment], send: Send, started_at: float
    ) -> None:
        policy = self.policy if exchange.deadline_s is None else self.policy_of(exchange, started_at)
        plan: Plan | None = None
        failures: list[tuple[Deployment, UpstreamError]] = []
        here: Here | None = None
        first: Deployment | None = None
        step: Try | Wait | float | None
        if type(candidates) is Candidates and candidates.lone is not None:
            step = candidates.lone
            first = step.deployment
        else:
            here = self._here(exchange, candidates)
            if type(candidates) is Candidates:
                at = started_at
                if candidates.has_tags or candidates.has_limits:
                    candidates = await self._look(exchange, candidates, here)
                    at = exchange.now()
                first = opening(candidates, policy=policy, world=here, at=at, started_at=started_at)
            if first is not None:
                step = Try(first)  # the plan is made when it is needed
            else:
                plan = self._plan(exchange, candidates, policy, here, started_at)
                step = _advance(plan, None)
        goes_on: Continuation | None = None
        if self.continuations is not None and exchange.is_stream:
            goes_on = self.continuations.of(exchange, candidates[0].group, send)
            if goes_on is not None:
                send = exchange.continuation = goes_on
        race: Race | None = None
        if self.router.hedges.is_on and len(candidates) > 1:
            group = candidates[0].group
            if self.router.hedges.of(group) is not None:
                race = Race(exchange, group, self.router.hedges)
        refusal: RefusedError | None = None
        try:
            while type(step) is Try or step is WAIT:
                dispatch: Dispatch | None = None
                if type(step) is Try:
                    if step.wait_s and await _leaves_within(exchange, step.wait_s):
                        exchange.outcome = "client_left"
                        return
                    if goes_on is not None and goes_on.is_broken:
                        await goes_on.prepare()
                    dispatch = Dispatch(self, scope, exchange, step.deployment, send, started_at, here)
                outcome: Failure | Full | Slow | None
                if race is not None:
                    dispatch, outcome = await race.run(dispatch)
                else:
                    assert dispatch is not None
                    outcome = await dispatch.run()
                if outcome is None:
                    return
                if not isinstance(outcome, Slow):
                    if race is not None:
                        outcome.of = dispatch.deployment
                    if dispatch.error is not None:
                        failures.append((dispatch.deployment, dispatch.error))
                    refusal = refusal or dispatch.refusal
                if plan is None:
                    if here is None:
                        here = Here(self.router, self.draw)
                    plan = self._plan(exchange, candidates, policy, here, started_at, first)
                    next(plan)
                step = _advance(plan, outcome)
                if step is WAIT and outcome is SLOW and race is not None:
                    race.nobody_else()
                if goes_on is not None and goes_on.is_broken and race is not None:
                    await race.aclose()  # it is decided; what goes on runs alone
                    race = None
                    if step is WAIT:
                        step = _advance(plan, _outrun())
        except RefusedError:
            if goes_on is None or not goes_on.is_broken:
                raise
        finally:
            if race is not None:
                await race.aclose()
            if goes_on is not None:
                exchange.continuation = None
        if goes_on is not None and goes_on.is_broken:
            await goes_on.end_with(failures)
        elif failures:
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

    async def _in_line(
        self, room: WaitingRoom, scope: Scope, exchange: Exchange, candidates: Candidates, send: Send
    ) -> None:
        """While all deployments are full it waits, with what it was admitted with, behind those that the same ones may
        serve: nobody waits for others than these."""
        started_at = exchange.now()
        line: tuple[str, frozenset[str]] | None = None

        def name() -> str:
            nonlocal line
            if line is None:
                tagged = _tagged(exchange, candidates)
                ids = frozenset(d.deployment_id for d in tagged)
                line = "\0".join(("deployments", *sorted(ids))), ids
            return line[0]

        def line_of(error: RateLimitedError) -> str | None:
            if error.code != "deployments_full" or exchange.attempts:
                return None
            found = name()
            assert line is not None
            self._lines[found] = line[1]
            return found

        async def go(is_in: Callable[[], None]) -> None:
            async def begins(exchange: Exchange, attempt: Attempt) -> None:
                is_in()

            exchange.before_attempt.append(begins)
            try:
                await self._dispatch(scope, exchange, candidates, send, started_at)
            finally:
                if begins in exchange.before_attempt:
                    exchange.before_attempt.remove(begins)
                room.freed(lambda: self._lines_for(room, exchange))

        try:
            await room.through(
                scope,
                exchange,
                go,
                lines=lambda: (name(),),
                line_of=line_of,
                until_at=started_at + self.policy_of(exchange, started_at).deadline_s,
            )
        except asyncio.CancelledError:
            if not exchange.attempts:
                exchange.outcome = exchange.outcome or "client_left"  # nothing was sent: nothing is charged
            raise

    def _lines_for(self, room: WaitingRoom, exchange: Exchange) -> list[str]:
        """Those whose requests a deployment may serve that this one used."""
        used = {attempt.deployment.deployment_id for attempt in exchange.attempts}
        for name in [name for name in self._lines if name not in room.lines]:
            del self._lines[name]
        return [name for name, served_by in self._lines.items() if not used.isdisjoint(served_by)]

    def _plan(
        self,
        exchange: Exchange,
        candidates: Sequence[Deployment],
        policy: Policy,
        here: Here,
        started_at: float,
        first: Deployment | None = None,
    ) -> Plan:
        return attempts(
            candidates,
            policy=policy,
            world=here,
            now=exchange.now,
            draw=self.draw,
            started_at=started_at,
            first=first,
        )

    def policy_of(self, exchange: Exchange, started_at: float) -> Policy:
        """With the client's own deadline, if that is sooner. It began when the request came."""
        policy = self.policy
        if exchange.deadline_s is None:
            return policy
        left = exchange.deadline_s - (started_at - exchange.started_at)
        if left < 0.01:
            raise UnavailableError(
                "The gateway refused the request: its 'x-sidecar-timeout' ran out before a provider could be asked.",
                code="deadline_passed",
            )
        return replace(policy, deadline_s=left) if left < policy.deadline_s else policy

    def _here(self, exchange: Exchange, candidates: Sequence[Deployment]) -> Here:
        """What the choice depends on besides the board."""
        router = self.router
        if self._version != self.catalog.version:
            self._version = self.catalog.version
            router.keep(self.catalog.deployments)
        if not router.is_ever_sticky and type(candidates) is Candidates and not candidates.has_limits:
            return self._plain
        here = Here(router, self.draw, is_counting=self.places is None)
        if router.is_ever_sticky and router.is_sticky(candidates[0].group) and exchange.payload is not None:
            here.home = prefix_of(exchange.dialect.beginning(exchange.payload))
        return here

    async def _look(self, exchange: Exchange, candidates: Candidates, here: Here) -> Candidates:
        """Those for the request's tags, and its size for their limits."""
        if candidates.has_tags:
            candidates = _tagged(exchange, candidates)
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
            tokens_in -= exchange.carried_tokens  # a bound for money; rates learn the count when it is told
            here.tokens = tokens_in + (tokens_out if tokens_out is not None else TPM_OUTPUT_GUESS)
        return candidates


def _tagged(exchange: Exchange, candidates: Candidates) -> Candidates:
    if not candidates.has_tags:
        return candidates
    own = exchange.caller.tags
    return candidates.for_tags(exchange.tags or own, own)


def _advance(plan: Plan, outcome: Said | None) -> Try | Wait | float | None:
    """The plan's next try; at its end what it says of room."""
    try:
        return next(plan) if outcome is None else plan.send(outcome)
    except StopIteration as end:
        said: float | None = end.value
        return said


def _outrun() -> Failure:
    """Of the one that lost the race, which the plan still waits for."""
    return Failure("outrun", is_free=True)


async def _leaves_within(exchange: Exchange, seconds: float) -> bool:
    """Wait; true if the client leaves meanwhile."""
    try:
        async with asyncio.timeout(seconds):
            await exchange.inbox.wait_left()
    except TimeoutError:
        return False
    return exchange.client_left
