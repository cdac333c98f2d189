"""Prometheus metrics of the gateway, on a registry of their own. Label values come from configuration only, so the
number of series is bounded by it, whatever clients send.

Neighbours: ObserveMiddleware counts, `app.py` renders `/metrics`. Several workers: PROMETHEUS_MULTIPROC_DIR.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """One per gateway. `observe_exchange` adds plain numbers; `drain` moves them into the registry."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self._requests = Counter(
            "sidecar_requests_total",
            "Client requests by model group, outcome and status.",
            ("group", "outcome", "status"),
            registry=registry,
        )
        self._duration = Histogram(
            "sidecar_request_duration_seconds",
            "From first byte in to last byte out.",
            ("group",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._tokens = Counter(
            "sidecar_tokens_total",
            "Tokens as the vendors counted them, by class.",
            ("group", "provider", "class"),
            registry=registry,
        )
        self._cost = Counter(
            "sidecar_cost_usd_total", "Cost in US dollars.", ("group", "provider", "status"), registry=registry
        )
        self._attempts = Counter(
            "sidecar_attempts_total",
            "Attempts by deployment and result.",
            ("deployment", "result"),
            registry=registry,
        )
        self._in_flight = Gauge(
            "sidecar_in_flight_requests", "Requests being served.", registry=registry, multiprocess_mode="livesum"
        )
        self._dropped = Counter(
            "sidecar_sink_dropped_total", "Spend records a sink did not get.", ("sink",), registry=registry
        )
        self._refused = Counter(
            "sidecar_journal_refused_total",
            "Spend rows the journal's disk did not take; their requests were refused.",
            registry=registry,
        )
        self.jobs = JobMetrics(registry)
        self.load = LoadMetrics(registry)
        self.dropped_by_sink: Callable[[], Mapping[str, int]] = dict
        """Set by whoever has sinks: how many records each did not get so far."""
        self._seen_dropped: dict[str, int] = {}
        self.journal_refused: Callable[[], int] = int
        self._seen_refused = 0
        self.in_flight = 0
        self._pending: dict[tuple[str, ...], list[float]] = {}

    def observe_exchange(self, exchange: Any, ended_at: float) -> None:
        """Count one finished `Exchange`. The group of a request no deployment served is the empty string."""
        attempts = exchange.attempts
        group = exchange.attempt.deployment.group if attempts else ""
        outcome = exchange.outcome or "ok"
        duration = ended_at - exchange.started_at
        key: tuple[str, ...] = (group, outcome, str(exchange.status))
        pending = self._pending
        found = pending.get(key)
        if found is None:
            found = pending[key] = [0.0] * (len(_SECONDS) + 2)
        found[bisect_left(_SECONDS, duration)] += 1
        found[-1] += duration
        for attempt in attempts:
            deployment = attempt.deployment
            result = "ok" if attempt.is_complete else _failure(attempt, outcome)
            key = (deployment.deployment_id, result, deployment.group, deployment.provider, attempt.cost_status)
            found = pending.get(key)
            if found is None:
                found = pending[key] = [0.0, 0.0, 0.0, 0.0]
            found[0] += 1
            if attempt.cost_nano:
                found[1] += attempt.cost_nano
            usage = attempt.usage
            if usage.input is not None or usage.output is not None:
                found[2] += usage.total_input
                found[3] += usage.total_output

    def drain(self) -> None:
        """Hand what was counted since the last time to the registry: before every rendering, and every few seconds
        where several workers write files for one another."""
        pending, self._pending = self._pending, {}
        for key, found in pending.items():
            if len(key) == 3:
                self._requests.labels(*key).inc(sum(found[:-1]))
                _observe(self._duration.labels(key[0]), found)
                continue
            deployment, result, group, provider, status = key
            self._attempts.labels(deployment, result).inc(found[0])
            if found[1]:
                self._cost.labels(group, provider, status).inc(found[1] / 1e9)
            if found[2]:
                self._tokens.labels(group, provider, "input").inc(found[2])
            if found[3]:
                self._tokens.labels(group, provider, "output").inc(found[3])
        for sink, dropped in self.dropped_by_sink().items():
            self._dropped.labels(sink).inc(dropped - self._seen_dropped.get(sink, 0))
            self._seen_dropped[sink] = dropped
        refused = self.journal_refused()
        self._refused.inc(refused - self._seen_refused)
        self._seen_refused = refused
        self._in_flight.set(self.in_flight)
        self.load.drain()

    def render(self) -> bytes:
        self.drain()
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            from prometheus_client import multiprocess

            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            return generate_latest(registry)
        return generate_latest(self.registry)


class JobMetrics:
    """Of background jobs: set in whichever process runs them, so across processes the maximum counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._last = Gauge(
            "sidecar_job_last_run_timestamp_seconds",
            "When a background job last ended.",
            ("job",),
            registry=registry,
            multiprocess_mode="max",
        )
        self._failures = Counter(
            "sidecar_job_failures_total", "Runs of a background job that failed.", ("job",), registry=registry
        )
        self._overdue = Gauge(
            "sidecar_keys_overdue_for_rotation",
            "Keys whose rotation is due and not done.",
            registry=registry,
            multiprocess_mode="livemax",
        )

    def ran(self, job: str, at: float | None) -> None:
        """What an earlier process left."""
        self._failures.labels(job)
        if at is not None:
            self._last.labels(job).set(at)

    def ended(self, job: str, at: float, *, is_failure: bool) -> None:
        self._last.labels(job).set(at)
        failures = self._failures.labels(job)
        if is_failure:
            failures.inc()

    def overdue(self, keys: int) -> None:
        self._overdue.set(keys)

    def lost_lead(self) -> None:
        """Another process counts now."""
        self._overdue.set(0)


class LoadMetrics:
    """Of routing and load. Whoever knows them sets the functions; `drain` asks."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._paused = Gauge(
            "sidecar_deployment_paused",
            "1 while a deployment pauses, or is on trial after a pause.",
            ("deployment",),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._hedges = Counter(
            "sidecar_hedges_total", "Second attempts beside one that was slow.", ("group",), registry=registry
        )
        self._hedges_won = Counter(
            "sidecar_hedges_won_total", "Those of them that answered.", ("group",), registry=registry
        )
        self._continued = Counter(
            "sidecar_continuations_total",
            "Broken answers that another attempt went on with.",
            ("group",),
            registry=registry,
        )
        self._waiting = Gauge(
            "sidecar_queue_waiting", "Requests waiting for a limit.", registry=registry, multiprocess_mode="livesum"
        )
        self._waits = Counter(
            "sidecar_queue_total", "Requests that had to wait for a limit, by result.", ("result",), registry=registry
        )
        self._shed = Counter(
            "sidecar_shed_total",
            "Requests refused because the process had too much to do.",
            ("reason",),
            registry=registry,
        )
        self._lag = Gauge(
            "sidecar_event_loop_lag_seconds",
            "The longest the event loop was late in the last seconds.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.paused: Callable[[], Iterable[str]] = tuple
        self.hedges: Callable[[], Mapping[str, tuple[int, int]]] = dict
        self.continued: Callable[[], Mapping[str, int]] = dict
        self.waiting: Callable[[], int] = int
        self.waits: Callable[[], Mapping[str, int]] = dict
        self.shed: Callable[[], Mapping[str, int]] = dict
        self.lag_s: Callable[[], float] = float
        self._seen_paused: set[str] = set()
        self._seen: dict[tuple[str, ...], int] = {}

    def drain(self) -> None:
        paused = set(self.paused())
        self._seen_paused |= paused
        for name in self._seen_paused:
            self._paused.labels(name).set(name in paused)
        for group, (begun, won) in self.hedges().items():
            self._count(self._hedges, (group,), begun)
            self._count(self._hedges_won, (group,), won)
        for group, count in self.continued().items():
            self._count(self._continued, (group,), count)
        self._waiting.set(self.waiting())
        for result, count in self.waits().items():
            self._count(self._waits, (result,), count)
        for reason, count in self.shed().items():
            self._count(self._shed, (reason,), count)
        self._lag.set(self.lag_s())

    def _count(self, counter: Counter, labels: tuple[str, ...], total: int) -> None:
        key = (counter._name, *labels)
        more = total - self._seen.get(key, 0)
        if more > 0:
            counter.labels(*labels).inc(more)
            self._seen[key] = total


def _observe(histogram: Any, found: list[float]) -> None:
    """Many observations at once: counts per bucket, their sum last. The library's own `observe` takes one at a time
    (1.5 µs each), so its buckets are counted up as it does it."""
    histogram._sum.inc(found[-1])
    for bucket, count in zip(histogram._buckets, found[:-1], strict=True):
        if count:
            bucket.inc(count)


def _failure(attempt: Any, outcome: str) -> str:
    if attempt.is_lost:
        return "hedge_lost"
    return _known(attempt.error.code if attempt.error else outcome)


def _known(result: str) -> str:
    """Vendors choose error codes, so a code that is not ours becomes one label."""
    return result if result.startswith("upstream_") or result in ("ok", "client_left", "incomplete") else "provider"
