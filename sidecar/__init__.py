"""An LLM gateway that is a stack of ASGI middlewares: auth, limits, budget, spend, routing, translation.

Public names load on first use, so `import sidecar` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sidecar.admit import AdmissionPolicy
    from sidecar.app import build_app
    from sidecar.asgi import paths
    from sidecar.exchange import Exchange
    from sidecar.gateway import Gateway
    from sidecar.idempotency.memory import MemoryAnswers
    from sidecar.inprocess import InProcess
    from sidecar.limits.admission import Admission
    from sidecar.metrics import Metrics
    from sidecar.middleware.auth import AuthMiddleware
    from sidecar.middleware.budget import BudgetMiddleware
    from sidecar.middleware.idempotency import IdempotencyMiddleware
    from sidecar.middleware.observe import ObserveMiddleware
    from sidecar.middleware.rate_limit import RateLimitMiddleware
    from sidecar.middleware.response_ids import ResponseIdsMiddleware
    from sidecar.middleware.route import RouteMiddleware
    from sidecar.middleware.shed import LoopLag, ShedMiddleware
    from sidecar.middleware.spend import SpendMiddleware
    from sidecar.middleware.translate import TranslateMiddleware
    from sidecar.middleware.upstream import UpstreamProxy
    from sidecar.response_ids import ResponseIds
    from sidecar.routing.catalog import Catalog
    from sidecar.types import Budget, Deployment, Identity, Limits, Secret, SpendRecord, Usage
    from sidecar.waiting import WaitingRoom

_WHERE = {
    "Admission": "sidecar.limits.admission",
    "AdmissionPolicy": "sidecar.admit",
    "AuthMiddleware": "sidecar.middleware.auth",
    "Budget": "sidecar.types",
    "BudgetMiddleware": "sidecar.middleware.budget",
    "Catalog": "sidecar.routing.catalog",
    "Deployment": "sidecar.types",
    "Exchange": "sidecar.exchange",
    "Gateway": "sidecar.gateway",
    "IdempotencyMiddleware": "sidecar.middleware.idempotency",
    "Identity": "sidecar.types",
    "InProcess": "sidecar.inprocess",
    "Limits": "sidecar.types",
    "LoopLag": "sidecar.middleware.shed",
    "MemoryAnswers": "sidecar.idempotency.memory",
    "Metrics": "sidecar.metrics",
    "ObserveMiddleware": "sidecar.middleware.observe",
    "RateLimitMiddleware": "sidecar.middleware.rate_limit",
    "ResponseIds": "sidecar.response_ids",
    "ResponseIdsMiddleware": "sidecar.middleware.response_ids",
    "RouteMiddleware": "sidecar.middleware.route",
    "Secret": "sidecar.types",
    "ShedMiddleware": "sidecar.middleware.shed",
    "SpendMiddleware": "sidecar.middleware.spend",
    "SpendRecord": "sidecar.types",
    "TranslateMiddleware": "sidecar.middleware.translate",
    "UpstreamProxy": "sidecar.middleware.upstream",
    "Usage": "sidecar.types",
    "WaitingRoom": "sidecar.waiting",
    "build_app": "sidecar.app",
    "paths": "sidecar.asgi",
}

__version__ = "0.1.0"

__all__ = [
    "Admission",
    "AdmissionPolicy",
    "AuthMiddleware",
    "Budget",
    "BudgetMiddleware",
    "Catalog",
    "Deployment",
    "Exchange",
    "Gateway",
    "IdempotencyMiddleware",
    "Identity",
    "InProcess",
    "Limits",
    "LoopLag",
    "MemoryAnswers",
    "Metrics",
    "ObserveMiddleware",
    "RateLimitMiddleware",
    "ResponseIds",
    "ResponseIdsMiddleware",
    "RouteMiddleware",
    "Secret",
    "ShedMiddleware",
    "SpendMiddleware",
    "SpendRecord",
    "TranslateMiddleware",
    "UpstreamProxy",
    "Usage",
    "WaitingRoom",
    "build_app",
    "paths",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        import importlib

        value = getattr(importlib.import_module(_WHERE[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'sidecar' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
