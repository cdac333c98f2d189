"""Prometheus metrics of the gateway, on a registry of their own. Label values come from configuration only, so the
number of series is bounded by it, whatever clients send.

Neighbours: ObserveMiddleware counts, `app.py` renders `/metrics`. Several workers: PROMETHEUS_MULTIPROC_DIR.
"""

from __future__ import annotations

import os
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """One per gateway. `observe_exchange` costs three counter updates."""

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
        self.in_flight = Gauge(
            "sidecar_in_flight_requests", "Requests being served.", registry=registry, multiprocess_mode="livesum"
        )
        self._children: dict[tuple[Any, ...], Any] = {}

    def _child(self, metric: Any, *labels: str) -> Any:
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child

    def observe_exchange(self, exchange: Any, ended_at: float) -> None:
        """Count one finished `Exchange`. The group of a request no deployment served is the empty string."""
        attempts = exchange.attempts
        group = attempts[-1].deployment.group if attempts else ""
        outcome = exchange.outcome or "ok"
        self._child(self._requests, group, outcome, str(exchange.status)).inc()
        self._child(self._duration, group).observe(max(0.0, ended_at - exchange.started_at))
        for attempt in attempts:
            deployment = attempt.deployment
            result = "ok" if attempt.is_complete else (attempt.error.code if attempt.error else outcome)
            self._child(self._attempts, deployment.deployment_id, _known(result)).inc()
            if attempt.cost_nano:
                self._child(self._cost, deployment.group, deployment.provider, attempt.cost_status).inc(
                    attempt.cost_nano / 1e9
                )
            usage = attempt.usage
            if usage.input:
                self._child(self._tokens, deployment.group, deployment.provider, "input").inc(usage.total_input)
            if usage.output:
                self._child(self._tokens, deployment.group, deployment.provider, "output").inc(usage.total_output)

    def render(self) -> bytes:
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            from prometheus_client import multiprocess

            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            return generate_latest(registry)
        return generate_latest(self.registry)


def _known(result: str) -> str:
    """Vendors choose error codes, so a code that is not ours becomes one label."""
    return result if result.startswith("upstream_") or result in ("ok", "client_left", "incomplete") else "provider"
