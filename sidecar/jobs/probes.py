"""Active health probes: one small real request per deployment, so that a sick one is known before a client meets it.
Off unless configured, for they cost money; `price_of_probes` says how much.

Neighbours: the runner's leader calls `run`; a stack of our own sends it, so it is held, billed and recorded like any
call, under the key `health-probe`. `routing.health` learns how it went, and through Redis the other processes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import msgspec

from sidecar.admit import AdmissionPolicy, price_of
from sidecar.asgi import ASGIApp, Message, close_exchange, open_exchange
from sidecar.attempts import Places
from sidecar.heartbeat import Heartbeat
from sidecar.jobs.leader import Leader
from sidecar.middleware.budget import BudgetMiddleware
from sidecar.middleware.route import RouteMiddleware
from sidecar.middleware.spend import Recorder, SpendMiddleware
from sidecar.middleware.translate import TranslateMiddleware
from sidecar.middleware.upstream import UpstreamProxy
from sidecar.routing.candidates import Candidates
from sidecar.routing.catalog import Catalog
from sidecar.routing.plan import Policy
from sidecar.routing.router import Router
from sidecar.spend.cost import worst_case_nano
from sidecar.types import NANO, Deployment, Identity, format_usd
from sidecar.upstream.base import Transport

PROBE_KEY = "health-probe"
LIMIT_S = 20.0
"""One that takes longer is a failed one."""
AT_ONCE = 4
INPUT_TOKENS, OUTPUT_TOKENS = 24, 16
DAY_S = 86_400
_CALLER = Identity(key_hash=PROBE_KEY, key_name=PROBE_KEY, key_alias=PROBE_KEY, tags=(PROBE_KEY,))
_log = logging.getLogger(__name__)


def probed(deployments: Iterable[Deployment], models: Iterable[str] = ()) -> list[Deployment]:
    """Those that can be: a wildcard's models are anybody's guess. `models`: of these groups only, if any."""
    wanted = set(models)
    return [d for d in deployments if "*" not in d.model and (not wanted or d.group in wanted)]


def price_of_probes(deployments: Iterable[Deployment], every_s: float, models: Iterable[str] = ()) -> str:
    """What it costs, for people."""
    found = probed(deployments, models)
    prices = [price_of(deployment) for deployment in found]
    round_nano = sum(worst_case_nano(price, INPUT_TOKENS, OUTPUT_TOKENS) for price in prices)
    day_usd = (Decimal(round_nano) / NANO * Decimal(DAY_S / every_s)).quantize(Decimal("0.01"))
    unpriced = sum(price.status == "unpriced" for price in prices)
    more = f", and what {unpriced} without a known price cost" if unpriced else ""
    return (
        f"health probes: {len(found)} deployments every {every_s:g} s, {format_usd(round_nano)} USD a round: about "
        f"{day_usd} USD a day{more}"
    )


class Probes:
    """`router` is the process' own: what is found out counts for its requests."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        router: Router,
        places: Places,
        policy: AdmissionPolicy,
        recorder: Recorder,
        transport: Transport,
        every_s: float,
        models: Iterable[str] = (),
    ) -> None:
        self._catalog = catalog
        self._every_s = every_s
        self._models = tuple(models)
        self._is_said = False
        app: ASGIApp = UpstreamProxy(transport=transport, heartbeat=Heartbeat(0))
        app = TranslateMiddleware(app)
        once = Policy(retries=0, deadline_s=LIMIT_S)
        app = RouteMiddleware(app, catalog=catalog, policy=once, router=router, places=places)
        app = SpendMiddleware(app, recorder=recorder)
        self._app: ASGIApp = BudgetMiddleware(app, policy=policy)

    async def run(self, leader: Leader) -> None:
        """All of them, a few at a time. That one fails is no failure of the job."""
        deployments = probed(self._catalog.deployments, self._models)
        if not self._is_said:
            self._is_said = True
            _log.info("%s", price_of_probes(self._catalog.deployments, self._every_s, self._models))
        for at in range(0, len(deployments), AT_ONCE):
            leader.check()
            await asyncio.gather(*(self.probe(deployment) for deployment in deployments[at : at + AT_ONCE]))

    async def probe(self, deployment: Deployment) -> int:
        """One request; the status of the answer."""
        payload = {
            "model": deployment.group,
            "messages": [{"role": "user", "content": "Answer OK."}],
            "max_tokens": OUTPUT_TOKENS,
        }
        body = msgspec.json.encode(payload)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        path = "/v1/chat/completions"
        scope: dict[str, Any] = {
            "type": "http", "method": "POST", "http_version": "1.1", "path": path, "raw_path": path.encode(),
            "root_path": "", "query_string": b"", "headers": headers,
        }  # fmt: skip
        statuses: list[int] = []
        parts = iter([{"type": "http.request", "body": body, "more_body": False}])
        never: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        async def receive() -> Message:
            return next(parts, None) or await never

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        exchange, _ = open_exchange(scope, receive)
        exchange.identify(_CALLER)
        # Whatever it serves otherwise: tags and order say nothing about its health. The time is its own, not the
        # request's: that it runs out is its fault.
        timeouts = replace(deployment.timeouts, total_s=min(deployment.timeouts.total_s, LIMIT_S))
        exchange.candidates = Candidates.of([[replace(deployment, tags=(), order=1, timeouts=timeouts)]])
        try:
            await self._app(scope, receive, send)
        finally:
            close_exchange(exchange)
        status = statuses[0] if statuses else 0
        _log.log(
            logging.DEBUG if status == 200 else logging.WARNING,
            "the health probe of %s got %s %s",
            deployment.deployment_id,
            status,
            exchange.error.code if exchange.error is not None else "",
        )
        return status
