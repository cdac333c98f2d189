"""Who shares a counter. A scope is one function from caller and model to a `Scope`; add it to SCOPES. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sidecar.types import Budget, Identity, Limits


@dataclass(frozen=True, slots=True)
class Scope:
    """`kind` may be told to a client, `scope_id` may not."""

    kind: str
    scope_id: str
    limits: Limits = Limits()
    budgets: tuple[Budget, ...] = ()


ScopeFunction = Callable[[Identity, str], Scope | None]


def key_scope(identity: Identity, model: str) -> Scope | None:
    """The virtual key itself."""
    if not identity.key_hash:
        return None
    return Scope("key", identity.key_hash, identity.limits, identity.budgets)


def global_scope(limits: Limits, budgets: tuple[Budget, ...] = ()) -> ScopeFunction:
    """Everybody together, as configured."""
    scope = Scope("global", "all", limits, budgets)
    return lambda identity, model: scope


SCOPES: tuple[ScopeFunction, ...] = (key_scope,)
