"""The collaborators `app.py` puts together: each made from its section of the configuration.

Rule: what a configuration does not use is not imported; it would cost memory.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, tzinfo
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from sidecar.admit import AdmissionPolicy
from sidecar.asgi import ASGIApp
from sidecar.config.build import ensure_master_key, ensure_secret
from sidecar.config.models import Config
from sidecar.config.oidc import build_issuers
from sidecar.idempotency.memory import MemoryAnswers
from sidecar.identity.callers import Callers
from sidecar.identity.keys import Keys
from sidecar.identity.shared_cache import RedisSharedCache
from sidecar.identity.subjects import Credentials, Subjects
from sidecar.identity.table import KeyTable, PrincipalTable, Store
from sidecar.jobs.probes import Probes
from sidecar.metrics import Metrics
from sidecar.middleware.shed import LoopLag, ShedMiddleware
from sidecar.pauses import SharedPauses
from sidecar.places import DeploymentPlaces
from sidecar.routing.catalog import Catalog
from sidecar.routing.router import Router
from sidecar.spend.recorder import Recorder
from sidecar.spend.sinks import open_sink
from sidecar.upstream.base import Transport

if TYPE_CHECKING:
    from sidecar.idempotency.redis import RedisAnswers
    from sidecar.translate.provider import Media
    from sidecar.upstream.media import MediaFetcher


MIB = 1024 * 1024


class Who(NamedTuple):
    """Everything that says who calls; nothing with `auth: none`."""

    keys: Keys | None = None
    cache: RedisSharedCache | None = None
    credentials: Credentials | None = None
    callers: Callers | None = None
    subjects: Subjects | None = None
    end_user_header: str | None = None


def who_calls(config: Config, store: Store, table: KeyTable, redis_url: str | None) -> Who:
    if config.auth == "none":
        return Who()
    auth = config.auth
    master_key, made = ensure_master_key(config)
    if made is not None:
        print(f"A master key was made; it stands in {made}", file=sys.stderr)  # noqa: T201
    cache = shared_cache(redis_url) if redis_url is not None else None
    hard_age_s, deadline_s = auth.key_cache_s, store.database.lookup_s
    keys = Keys(
        table,
        master_key=master_key,
        clock=time.time,
        shared_cache=cache,
        hard_age_s=hard_age_s,
        deadline_s=deadline_s,
    )
    principals = PrincipalTable(store)
    issuers = build_issuers(auth.issuers, auth.introspection, clock=time.time)
    subjects = None
    if issuers is not None:
        subjects = Subjects(issuers, principals, clock=time.time, hard_age_s=hard_age_s, deadline_s=deadline_s)
    callers = Callers(
        principals,
        clock=time.time,
        end_user_budget_id=auth.end_user_budget_id,
        hard_age_s=hard_age_s,
        deadline_s=deadline_s,
    )
    return Who(keys, cache, Credentials(keys, subjects), callers, subjects, auth.end_user_header)


def probes_of(
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


def id_secret(config: Config) -> bytes:
    """What all replicas have: the encryption key, else the master key; without authentication one of the data folder.
    Raises ConfigError."""
    if config.store.encryption_key is not None:
        return config.store.encryption_key.reveal().encode()
    return ensure_secret(config).reveal().encode()


async def tune_process() -> None:
    """What was made so far stays for good, and finished exchanges hold no cycles: the collector has nearly nothing to
    find, so it looks rarely. With Python's defaults it took a quarter of each request's CPU, measured."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


class LazyMedia:
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


def shedding(config: Config, lag: LoopLag, metrics: Metrics) -> Callable[[ASGIApp], ShedMiddleware] | None:
    server = config.server
    if server.max_in_flight is None and server.max_lag_s is None:
        return None

    def wrap(app: ASGIApp) -> ShedMiddleware:
        made = ShedMiddleware(app, max_in_flight=server.max_in_flight, max_lag_s=server.max_lag_s, lag=lag)
        metrics.load.shed = lambda: made.shed
        return made

    return wrap


def transport_of(config: Config) -> Transport:
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


def redis_client(url: str) -> Any:
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    return Redis.from_url(url, retry=Retry(NoBackoff(), 0))


def shared_cache(url: str) -> RedisSharedCache:
    return RedisSharedCache(redis_client(url), clock=time.time)


def answer_store(config: Config, redis_url: str | None) -> MemoryAnswers | RedisAnswers | None:
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


def shared_pauses(url: str, router: Router, catalog: Catalog) -> SharedPauses:
    client = redis_client(url)
    ids = lambda: (d.deployment_id for d in catalog.deployments)  # noqa: E731
    return SharedPauses(client, router.health, ids=ids, clock=time.time)


def sinks_of(config: Config) -> list[Any]:
    return [
        open_sink(settings.url.reveal(), headers=settings.headers, secret=settings.secret)
        for settings in config.spend.sinks
    ]


def zone_of(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    from zoneinfo import ZoneInfo

    return ZoneInfo(name)


def write_access_log(line: dict[str, Any]) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()
