"""Who shares a counter. A scope is one function from caller and model to what it adds, listed in SCOPES. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from sidecar.types import Budget, Identity, Limits


@dataclass(frozen=True, slots=True)
class Scope:
    """`kind` may be told to a client, `scope_id` may not."""

    kind: str
    scope_id: str
    limits: Limits = Limits()
    budgets: tuple[Budget, ...] = ()


ScopeFunction = Callable[[Identity, str], Iterable[Scope]]


def key_scope(identity: Identity, model: str) -> Iterator[Scope]:
    """The virtual key itself."""
    if identity.key_hash:
        yield Scope("key", identity.key_hash, identity.limits, identity.budgets)


def key_model_scope(identity: Identity, model: str) -> Iterator[Scope]:
    """One model on one key."""
    limits = identity.model_limits.get(model)
    if limits is not None:
        yield Scope("key_model", _pair(identity.key_hash, model), limits)


def principal_scopes(identity: Identity, model: str) -> Iterator[Scope]:
    """Team, member, user, organization, end user, tag: whoever stands above the key."""
    for principal in identity.principals:
        yield Scope(principal.kind, principal.principal_id, principal.limits, principal.budgets)


def principal_model_scopes(identity: Identity, model: str) -> Iterator[Scope]:
    """One model in one team (or of any other principal)."""
    for principal in identity.principals:
        limits = principal.model_limits.get(model)
        if limits is not None:
            yield Scope(f"{principal.kind}_model", _pair(principal.principal_id, model), limits)


def global_scope(limits: Limits, budgets: tuple[Budget, ...] = ()) -> ScopeFunction:
    """Everybody together, as configured."""
    scopes = (Scope("global", "all", limits, budgets),)
    return lambda identity, model: scopes


SCOPES: tuple[ScopeFunction, ...] = (key_scope, key_model_scope, principal_scopes, principal_model_scopes)


def limits_model(identity: Identity, model: str) -> bool:
    """True if somebody above has limits of this very model, so that its claims differ from those of other models."""
    return model in identity.model_limits or any(model in p.model_limits for p in identity.principals)


def _pair(scope_id: str, model: str) -> str:
    return f"{len(scope_id)}:{scope_id}:{model}"  # no other pair is written like this
