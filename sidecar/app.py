"""The gateway from a configuration: the whole stack in one readable place.

`build_app(config)` gives an ASGI app for all three mounts. Read `build_stack` top to bottom and you have followed a
request; everything else here makes the collaborators and ties their start and end.
"""

from __future__ import annotations

import gc
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, tzinfo
from functools import partial
from typing import TYPE_CHECKING, Any

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
    build_policy,
    build_room,
    build_router,
    ensure_master_key,
    global_budgets,
    global_limits,
)
from sidecar.config.models import Config
from sidecar.config.oidc import build_issuers
from sidecar.config.stored import LiveCatalog, ModelTable
from sidecar.db import Database
from sidecar.db.vault import Vault
from sidecar.errors import RefusedError, UnavailableError
from sidecar.explanation import Explainer
from sidecar.gateway import Gateway, error_response
from sidecar.heartbeat import Heartbeat
from sidecar.idempotency.memory import MemoryAnswers
from sidecar.identity.callers import Callers
from sidecar.identity.feed import ChangeFeed
from sidecar.identity.keys import Keys
from sidecar.identity.shared_cache import RedisSharedCache
from sidecar.identity.subjects import Credentials, Subjects
from sidecar.identity.table import KeyTable, PrincipalTable, Store
from sidecar.identity.tree import Tree
from sidecar.jobs.build import build_jobs
from sidecar.jobs.probes import Probes
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
from sidecar.middleware.route import RouteMiddleware
from sidecar.middleware.shed import LoopLag, ShedMiddleware
from sidecar.middleware.spend import SpendMiddleware
from sidecar.middleware.translate import FetchMedia, TranslateMiddleware
from sidecar.middleware.upstream import UpstreamProxy
from sidecar.pauses import SharedPauses
from sidecar.places import DeploymentPlaces
from sidecar.records import Records
from sidecar.records_shared import SharedRecords
from sidecar.routing.catalog import Catalog
from sidecar.routing.plan import Policy
from sidecar.routing.router import Router
from sidecar.spend.journal import Journal
from sidecar.spend.ledger import Ledger
from sidecar.spend.price_loader import load_price
from sidecar.spend.prompts import Prompts, find
from sidecar.spend.recorder import Recorder
from sidecar.spend.sinks import open_sink
from sidecar.upstream.base import Transport
from sidecar.waiting import WaitingRoom

if TYPE_CHECKING:
    from sidecar.idempotency.redis import RedisAnswers
    from sidecar.translate.provider import Media
    from sidecar.upstream.media import MediaFetcher

LEASE_S = 10.0
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
    shed: Callable[[ASGIApp], ShedMiddleware] | None,
    transport: Transport,
    heartbeat: Heartbeat,
    fetch_media: FetchMedia | None,
) -> ASGIApp:
    """A request's way, from the client down to the provider."""
    app: ASGIApp = UpstreamProxy(transport=transport, heartbeat=heartbeat)
    app = TranslateMiddleware(app, fetch_media=fetch_media)
    app = RouteMiddleware(app, catalog=catalog, policy=routing, router=router, places=places, room=room)
    app = SpendMiddleware(app, recorder=recorder)
    app = BudgetMiddleware(app, policy=policy)
    app = RateLimitMiddleware(app, policy=policy, room=room)
    if answers is not None:
        app = IdempotencyMiddleware(app, store=answers, max_answer_bytes=max_answer_bytes, wait_s=answer_wait_s)
    if prompts is not None:
        app = PromptsMiddleware(app, store=prompts)
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
        sinks=_sinks(config),
        sink_queue=config.spend.sink_queue,
        interval_s=config.spend.flush_s,
        maintains=not config.jobs.enabled,
    )
    redis_url = config.store.redis_url.reveal() if config.store.redis_url is not None else None
    keys: Keys | None = None
    cache: RedisSharedCache | None = None
    credentials: Credentials | None = None
    callers: Callers | None = None
    subjects: Subjects | None = None
    end_user_header: str | None = None
    if config.auth != "none":
        master_key, made = ensure_master_key(config)
        if made is not None:
            print(f"A master key was made; it stands in {made}", file=sys.stderr)  # noqa: T201
        cache = _shared_cache(redis_url) if redis_url is not None else None
        keys = Keys(
            table, master_key=master_key, clock=time.time, shared_cache=cache, hard_age_s=config.auth.key_cache_s
        )
        principals = PrincipalTable(store)
        issuers = build_issuers(config.auth.issuers, config.auth.introspection, clock=time.time)
        if issuers is not None:
            subjects = Subjects(issuers, principals, clock=time.time, hard_age_s=config.auth.key_cache_s)
        credentials = Credentials(keys, subjects)
        callers = Callers(
            principals,
            clock=time.time,
            end_user_budget_id=config.auth.end_user_budget_id,
            hard_age_s=config.auth.key_cache_s,
        )
        end_user_header = config.auth.end_user_header
    seed = LedgerSeed(recorder, ledger)
    admission = Admission(
        open_store(redis_url or "memory://", deadline_s=config.store.deadline_s),
        global_limits=global_limits(config),
        global_budgets=global_budgets(config),
        timezone=_zone(config.budget.timezone),
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
        default_output_tokens=config.budget.default_output_tokens,
        has_global_budget=config.budget.max_usd is not None,
    )
    transport = _transport(config)
    router = build_router(config)
    media = _Media(config.upstream.media_networks) if config.upstream.fetch_media else None
    answers = _answers(config, redis_url)
    records = Records(keep=config.log.exchanges, paused=router.health.cooling, strategy=router.strategy_of)
    shared_records = SharedRecords(_redis(redis_url), records) if redis_url is not None else None
    room = build_room(config)
    lag = LoopLag()
    shed = _shed(config, lag, metrics)
    metrics.load.paused = lambda: router.health.cooling(time.time())
    metrics.load.hedges = router.hedges.counts
    metrics.load.lag_s = lag.worst_s
    if room is not None:
        metrics.load.waiting = lambda: room.lines.count
        metrics.load.waits = lambda: room.results
    stack = build_stack(
        metrics=metrics,
        access_log=_access_log if config.log.access else None,
        records=records if config.log.exchanges and keys is not None else None,
        keys=credentials,
        callers=callers,
        end_user_header=end_user_header,
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
        shed=shed,
        transport=transport,
        heartbeat=Heartbeat(config.server.heartbeat_s, is_early=config.server.heartbeat_early),
        fetch_media=media.fetch if media is not None else None,
    )
    routes = [Route(path, _Models(catalog, credentials), methods=["GET"]) for path in ("/v1/models", "/models")]
    routes.append(
        transform_route(
            Explainer(catalog, router, policy=policy, retries=config.routing.retries, fetches_media=media is not None),
            keys=credentials,
            callers=callers,
            end_user_header=end_user_header,
            access_groups=catalog.access_groups,
        )
    )
    feed = ChangeFeed(store, [live, *(f for f in (keys, callers, subjects) if f is not None)], clock=time.time)
    tree = Tree(table, PrincipalTable(store))
    jobs = build_jobs(
        config,
        store=store,
        ledger=ledger,
        tree=tree,
        keys=keys,
        metrics=metrics,
        redis_url=redis_url,
        zone=_zone(config.budget.timezone),
        limit_store=admission.store,
        probes=_probes(config, catalog, router, policy, recorder, transport),
        clock=time.time,
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
    recorder.settle_dead = admission.settle_dead
    pauses = _pauses(redis_url, router, catalog) if redis_url is not None else None
    ticker = Ticker(admission, recorder, metrics, every_s=LEASE_S / 3)

    async def open_database() -> None:
        if migrate:
            await database.migrate(in_child=owns_process)
        elif not await database.schema_is_current():
            raise UnavailableError(
                "The gateway is not ready: its database has another schema version. "
                "Run `sidecar serve` once, or pass migrate=True.",
                code="schema_version",
            )
        await live.reload()

    parts = (database, transport, media, admission, recorder, ticker, lag, live, feed, keys, callers, subjects, cache)
    closers = [part.aclose for part in (*parts, answers, pauses, shared_records, jobs, prompts) if part is not None]
    return Gateway(
        stack,
        routes,
        render_metrics=metrics.render,
        starters=[
            *(open_database, recorder.start, ticker.start, lag.start, feed.start, jobs.start),
            *([pauses.start] if pauses is not None else []),
            *([shared_records.start] if shared_records is not None else []),
            *([_tune_process] if owns_process else []),
        ],
        closers=closers,
        allowed_hosts=_LOOPBACK_NAMES if keys is None else None,
        # `sidecar serve` has waited for them already.
        grace_s=SETTLE_LIMIT_S if owns_process else config.server.grace_s,
    )


def _probes(
    config: Config,
    catalog: Catalog,
    router: Router,
    policy: AdmissionPolicy,
    recorder: Recorder,
    transport: Transport,
) -> Probes | None:
    settings = config.jobs.probes
    if settings.every_s is None:
        return None
    return Probes(
        catalog=catalog,
        router=router,
        places=DeploymentPlaces(policy.admission),
        policy=policy,
        recorder=recorder,
        transport=transport,
        every_s=settings.every_s,
        models=settings.models,
    )


async def _tune_process() -> None:
    """What was made so far stays for good, and finished exchanges hold no cycles: the collector has nearly nothing to
    find, so it looks rarely. With Python's defaults it took a quarter of each request's CPU, measured."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


class _Media:
    """What clients' URLs point to; the fetcher and its HTTP client are made when the first one comes."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = allowed
        self._fetcher: MediaFetcher | None = None

    async def fetch(self, urls: Iterable[str]) -> Mapping[str, Media]:
        if self._fetcher is None:
            from sidecar.upstream.media import MediaFetcher

            self._fetcher = MediaFetcher(allowed=self._allowed)
        return await self._fetcher.fetch(urls)

    async def aclose(self) -> None:
        if self._fetcher is not None:
            await self._fetcher.aclose()


def _shed(config: Config, lag: LoopLag, metrics: Metrics) -> Callable[[ASGIApp], ShedMiddleware] | None:
    server = config.server
    if server.max_in_flight is None and server.max_lag_s is None:
        return None

    def wrap(app: ASGIApp) -> ShedMiddleware:
        made = ShedMiddleware(app, max_in_flight=server.max_in_flight, max_lag_s=server.max_lag_s, lag=lag)
        metrics.load.shed = lambda: made.shed
        return made

    return wrap


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


def _transport(config: Config) -> Transport:
    settings = config.upstream
    options: dict[str, Any] = {
        "ca_file": settings.ca_file,
        "client_cert": (settings.client_cert, settings.client_key or "") if settings.client_cert is not None else None,
        "max_idle": settings.max_idle,
        "idle_s": settings.idle_s,
    }
    if settings.proxy is not None:
        from sidecar.upstream.httpx2_transport import Httpx2Transport

        return Httpx2Transport(proxy=settings.proxy.reveal(), **options)
    if settings.http2:
        from sidecar.upstream.http2_transport import Http2Transport

        return Http2Transport(**options)
    from sidecar.upstream.httptools_transport import HttptoolsTransport

    return HttptoolsTransport(**options)


def _redis(url: str) -> Any:
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    return Redis.from_url(url, retry=Retry(NoBackoff(), 0))


def _shared_cache(url: str) -> RedisSharedCache:
    return RedisSharedCache(_redis(url), clock=time.time)


def _answers(config: Config, redis_url: str | None) -> MemoryAnswers | RedisAnswers | None:
    settings = config.idempotency
    if not settings.enabled:
        return None
    if redis_url is None:
        return MemoryAnswers(keep_s=settings.keep_s, max_bytes=settings.max_total_mb * MIB)
    from sidecar.idempotency.redis import RedisAnswers

    return RedisAnswers(
        redis_url,
        keep_s=settings.keep_s,
        max_bytes=settings.max_total_mb * MIB,
        on_failure=config.store.on_failure,
        deadline_s=config.store.deadline_s,
    )


def _pauses(url: str, router: Router, catalog: Catalog) -> SharedPauses:
    client = _redis(url)
    ids = lambda: (d.deployment_id for d in catalog.deployments)  # noqa: E731
    return SharedPauses(client, router.health, ids=ids, clock=time.time)


def _sinks(config: Config) -> list[Any]:
    return [
        open_sink(settings.url.reveal(), headers=settings.headers, secret=settings.secret)
        for settings in config.spend.sinks
    ]


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    from zoneinfo import ZoneInfo

    return ZoneInfo(name)


def _access_log(line: dict[str, Any]) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()
