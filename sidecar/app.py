"""The gateway from a configuration: the whole stack in one readable place.

`build_app(config)` gives an ASGI app for all three mounts. Read `build_stack` top to bottom and you have followed a
request; everything else here ties the collaborators (`parts.py`) together, and their start and end.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sidecar.admin import build_admin
from sidecar.admin.models import ModelAdmin
from sidecar.admin.transform import transform_route
from sidecar.admit import AdmissionPolicy
from sidecar.asgi import SETTLE_LIMIT_S, ASGIApp
from sidecar.config.build import (
    build_catalog,
    build_continuations,
    build_policy,
    build_room,
    build_router,
    global_budgets,
    global_limits,
)
from sidecar.config.models import Config
from sidecar.config.stored import LiveCatalog, ModelTable
from sidecar.continuation import Continuations
from sidecar.db import Database
from sidecar.db.vault import Vault
from sidecar.errors import RefusedError, UnavailableError
from sidecar.explanation import Explainer
from sidecar.gateway import Gateway, OwnRoute, error_response
from sidecar.heartbeat import Heartbeat
from sidecar.identity.callers import Callers
from sidecar.identity.deadline import Deadline
from sidecar.identity.feed import ChangeFeed
from sidecar.identity.table import KeyTable, PrincipalTable, Store
from sidecar.identity.tree import Tree
from sidecar.jobs.build import build_jobs
from sidecar.jobs.status import Status
from sidecar.jobs.ticker import LedgerSeed, Ticker
from sidecar.limits.admission import Admission
from sidecar.limits.store import open_store
from sidecar.metrics import Metrics
from sidecar.middleware.auth import AuthMiddleware, KeyLookup, bearer_token
from sidecar.middleware.budget import BudgetMiddleware
from sidecar.middleware.idempotency import AnswerStore, IdempotencyMiddleware
from sidecar.middleware.observe import AccessLog, ObserveMiddleware
from sidecar.middleware.prompts import PromptsMiddleware
from sidecar.middleware.rate_limit import RateLimitMiddleware
from sidecar.middleware.response_ids import ResponseIdsMiddleware
from sidecar.middleware.route import RouteMiddleware
from sidecar.middleware.shed import LoopLag, ShedMiddleware
from sidecar.middleware.spend import SpendMiddleware
from sidecar.middleware.translate import FetchMedia, TranslateMiddleware
from sidecar.middleware.upstream import UpstreamProxy
from sidecar.parts import (
    LazyMedia,
    answer_store,
    id_secret,
    probes_of,
    redis_client,
    shared_pauses,
    shedding,
    sinks_of,
    transport_of,
    tune_process,
    who_calls,
    write_access_log,
    zone_of,
)
from sidecar.places import DeploymentPlaces
from sidecar.records import Records
from sidecar.records_shared import SharedRecords
from sidecar.response_ids import ResponseIds
from sidecar.routing.catalog import Catalog
from sidecar.routing.plan import Policy
from sidecar.routing.router import Router
from sidecar.spend.journal import Journal
from sidecar.spend.ledger import Ledger
from sidecar.spend.price_loader import load_price
from sidecar.spend.prompts import Prompts, find
from sidecar.spend.recorder import Recorder
from sidecar.stored_responses import stored_response_routes
from sidecar.upstream.base import Transport
from sidecar.waiting import WaitingRoom

LEASE_S = 10.0
OPEN_S = 10.0
"""For each step of opening the database."""
MIB = 1024 * 1024
_LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})


def build_stack(
    *,
    metrics: Metrics,
    access_log: AccessLog | None,
    records: Records | None,
    keys: KeyLookup | None,
    callers: Callers | None,
    end_user_header: str | None,
    response_ids: ResponseIds,
    answers: AnswerStore | None,
    max_answer_bytes: int,
    answer_wait_s: float,
    prompts: Prompts | None,
    policy: AdmissionPolicy,
    recorder: Recorder,
    catalog: Catalog,
    router: Router,
    routing: Policy,
    places: DeploymentPlaces,
    room: WaitingRoom | None,
    continuations: Continuations | None,
    shed: Callable[[ASGIApp], ShedMiddleware] | None,
    transport: Transport,
    heartbeat: Heartbeat,
    fetch_media: FetchMedia | None,
) -> ASGIApp:
    """A request's way, from the client down to the provider."""
    app: ASGIApp = UpstreamProxy(transport=transport, heartbeat=heartbeat)
    app = TranslateMiddleware(app, fetch_media=fetch_media)
    app = RouteMiddleware(
        app, catalog=catalog, policy=routing, router=router, places=places, room=room, continuations=continuations
    )
    app = SpendMiddleware(app, recorder=recorder)
    app = BudgetMiddleware(app, policy=policy)
    app = RateLimitMiddleware(app, policy=policy, room=room)
    if answers is not None:
        app = IdempotencyMiddleware(app, store=answers, max_answer_bytes=max_answer_bytes, wait_s=answer_wait_s)
    if prompts is not None:
        app = PromptsMiddleware(app, store=prompts)
    app = ResponseIdsMiddleware(app, ids=response_ids)
    if keys is not None:
        app = AuthMiddleware(
            app,
            keys=keys,
            callers=callers,
            end_user_header=end_user_header,
            access_groups=catalog.access_groups,
        )
    if shed is not None:
        app = shed(app)
    return ObserveMiddleware(app, metrics=metrics, access_log=access_log, records=records)


def build_app(
    config: Config, *, migrate: bool = False, owns_process: bool = False, env: Mapping[str, str] | None = None
) -> Gateway:
    """`migrate=True` brings the database to the current schema at start; without it another schema is a clear 503.
    `owns_process=True` lets it tune what belongs to the whole process (`sidecar serve`; not inside your app)."""
    environment = os.environ if env is None else env
    catalog = build_catalog(config, environment)
    metrics = Metrics()
    database = Database(config.store.database_url.reveal())
    store = Store(database)
    stored = ModelTable(store, Vault(config.store.encryption_key) if config.store.encryption_key else None)
    live = LiveCatalog(catalog, stored, lambda more: build_catalog(config, environment, more), load_price)
    table = KeyTable(store)
    settings = config.spend
    ledger = Ledger(database, retention_days=settings.retention_days, prompt_days=settings.prompt_days)
    prompts = Prompts(database, max_bytes=settings.prompt_max_bytes) if settings.store_prompts else None
    recorder = Recorder(
        Journal(config.store.journal_dir, durability=config.store.durability),
        ledger,
        sinks=sinks_of(config),
        sink_queue=config.spend.sink_queue,
        interval_s=config.spend.flush_s,
        maintains=not config.jobs.enabled,
    )
    redis_url = config.store.redis_url.reveal() if config.store.redis_url is not None else None
    who = who_calls(config, store, table, redis_url)
    keys, callers, credentials = who.keys, who.callers, who.credentials
    seed = LedgerSeed(recorder, ledger)
    admission = Admission(
        open_store(redis_url or "memory://", deadline_s=config.store.deadline_s),
        global_limits=global_limits(config),
        global_budgets=global_budgets(config),
        timezone=zone_of(config.budget.timezone),
        on_store_failure=config.store.on_failure,
        seed=seed,
        lease_s=LEASE_S,
        names_of=catalog.names_of,
    )
    policy = AdmissionPolicy(
        admission,
        catalog,
        unpriced=config.budget.unpriced,
        no_max_tokens=config.budget.no_max_tokens,
        vendor_tools=config.budget.vendor_tools,
        default_output_tokens=config.budget.default_output_tokens,
        has_global_budget=config.budget.max_usd is not None,
    )
    transport = transport_of(config)
    router = build_router(config)
    media = LazyMedia(config.upstream.media_networks) if config.upstream.fetch_media else None
    response_ids = ResponseIds(lambda: id_secret(config), catalog)
    answers = answer_store(config, redis_url)
    records = Records(keep=config.log.exchanges, paused=router.health.cooling, strategy=router.strategy_of)
    shared_records = SharedRecords(redis_client(redis_url), records) if redis_url is not None else None
    room = build_room(config)
    lag = LoopLag()
    shed = shedding(config, lag, metrics)
    metrics.load.paused = lambda: router.health.cooling(time.time())
    metrics.load.hedges = router.hedges.counts
    metrics.load.lag_s = lag.worst_s
    continuations = build_continuations(config)
    if continuations is not None:
        metrics.load.continued = lambda: continuations.counts
    if room is not None:
        metrics.load.waiting = lambda: room.lines.count
        metrics.load.waits = lambda: room.results
    stack = build_stack(
        metrics=metrics,
        access_log=write_access_log if config.log.access else None,
        records=records if config.log.exchanges and keys is not None else None,
        keys=credentials,
        callers=callers,
        end_user_header=who.end_user_header,
        response_ids=response_ids,
        answers=answers,
        max_answer_bytes=config.idempotency.max_answer_mb * MIB,
        answer_wait_s=config.idempotency.wait_s,
        prompts=prompts,
        policy=policy,
        recorder=recorder,
        catalog=catalog,
        router=router,
        routing=build_policy(config),
        places=DeploymentPlaces(admission),
        room=room,
        continuations=continuations,
        shed=shed,
        transport=transport,
        heartbeat=Heartbeat(config.server.heartbeat_s, is_early=config.server.heartbeat_early),
        fetch_media=media.fetch if media is not None else None,
    )
    routes: list[Route] = [
        OwnRoute(path, _Models(catalog, credentials), methods=["GET"]) for path in ("/v1/models", "/models")
    ]
    routes.append(
        transform_route(
            Explainer(catalog, router, policy=policy, retries=config.routing.retries, fetches_media=media is not None),
            keys=credentials,
            callers=callers,
            end_user_header=who.end_user_header,
            access_groups=catalog.access_groups,
        )
    )
    routes += stored_response_routes(
        ids=response_ids,
        proxy=UpstreamProxy(transport=transport),
        admission=admission,
        keys=credentials,
        observed=lambda app: ObserveMiddleware(
            app,
            metrics=metrics,
            access_log=write_access_log if config.log.access else None,
            records=records if config.log.exchanges and keys is not None else None,
            applies=lambda scope: True,  # the route has chosen
        ),
    )
    followers = [live, *(f for f in (keys, callers, who.subjects) if f is not None)]
    feed = ChangeFeed(store, followers, clock=time.time, deadline_s=store.database.lookup_s)
    tree = Tree(table, PrincipalTable(store))
    jobs = build_jobs(
        config,
        store=store,
        ledger=ledger,
        tree=tree,
        keys=keys,
        metrics=metrics,
        redis_url=redis_url,
        zone=zone_of(config.budget.timezone),
        limit_store=admission.store,
        probes=probes_of(config, catalog, router, policy, recorder, transport),
        clock=time.time,
        tell=recorder.tell,
    )
    if keys is not None and credentials is not None:
        routes += build_admin(
            callers=credentials,
            keys=keys,
            tree=tree,
            status=Status(jobs, recorder, admission, database, store_kind="redis" if redis_url else "memory"),
            ledger=ledger,
            models=ModelAdmin(table=stored, catalog=catalog, live=live, clock=time.time),
            unknown=jobs.unknown,
            prompts=partial(find, database),
            exchanges=shared_records.find if shared_records is not None else records.found,
            admission=admission,
            tell=feed.poll,
            clock=time.time,
            random_bytes=secrets.token_bytes,
        )
    metrics.dropped_by_sink = recorder.dropped_by_sink
    metrics.journal_refused = lambda: recorder.journal.refused
    recorder.flushed = lambda at, is_failure: metrics.jobs.ended("flush", at, is_failure=is_failure)
    recorder.settle_dead = admission.settle_dead
    recorder.uncorrect = jobs.unknown.uncorrect
    pauses = shared_pauses(redis_url, router, catalog) if redis_url is not None else None
    ticker = Ticker(admission, recorder, metrics, every_s=LEASE_S / 3)

    async def open_database() -> None:
        # A database that stands still is given up and asked anew; only migrating may take as long as it takes.
        deadline = Deadline(OPEN_S)
        is_current = await deadline.run(database.schema_is_current())
        if migrate:
            opening = database.migrate(in_child=owns_process)
            await (deadline.run(opening) if is_current else opening)
        elif not is_current:
            raise UnavailableError(
                "The gateway is not ready: its database has another schema version. "
                "Run `sidecar serve` once, or pass migrate=True.",
                code="schema_version",
            )
        await deadline.run(live.reload())

    parts = (
        database,
        transport,
        media,
        admission,
        recorder,
        ticker,
        lag,
        live,
        feed,
        keys,
        callers,
        who.subjects,
        who.cache,
    )
    closers = [part.aclose for part in (*parts, answers, pauses, shared_records, jobs, prompts) if part is not None]
    return Gateway(
        stack,
        routes,
        render_metrics=metrics.render,
        starters=[
            *(open_database, recorder.start, ticker.start, lag.start, feed.start, jobs.start),
            *([pauses.start] if pauses is not None else []),
            *([shared_records.start] if shared_records is not None else []),
            *([tune_process] if owns_process else []),
        ],
        closers=closers,
        allowed_hosts=_LOOPBACK_NAMES if keys is None else None,
        # `sidecar serve` has waited for them already.
        grace_s=SETTLE_LIMIT_S if owns_process else config.server.grace_s,
        again=partial(build_app, config, migrate=migrate, owns_process=owns_process, env=env),
    )


class _Models:
    """GET /v1/models: what the caller may use."""

    def __init__(self, catalog: Catalog, keys: KeyLookup | None) -> None:
        self._catalog = catalog
        self._keys = keys

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await (await self._answer(Request(scope, receive)))(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        names = self._catalog.names
        if self._keys is not None:
            try:
                identity = await self._keys.lookup(bearer_token(request.scope))
            except RefusedError as error:
                return error_response(error)
            groups = self._catalog.access_groups
            names = tuple(name for name in names if identity.may_call(name, groups(name)))
            meant, known = identity.aliases, self._catalog.group
            others = (alias for alias, name in meant.items() if known(name) and identity.may_call(name, groups(name)))
            names = (*(name for name in names if name not in meant), *others)
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "sidecar"} for name in names]
        return Response(msgspec.json.encode({"object": "list", "data": data}), media_type="application/json")
