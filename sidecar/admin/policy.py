"""What a key and everybody above it carry, between three languages: request fields, rows, answers. Pure.

`exceeds` compares what a caller asks for with what stands above it. That is courtesy and default-deny at once: every
request is measured against everybody above anyway, whatever a key says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from datetime import UTC, datetime
from typing import Any

import msgspec

from sidecar.admin.requests import BudgetLimit
from sidecar.errors import BadRequestError
from sidecar.identity.row import BudgetCap, ModelLimit, Policy
from sidecar.types import ALL_MODELS, NO_MODELS, Identity, Limits, Principal, format_usd, model_matches, usd_to_nano

_MONEY = {
    "max_budget": "max_budget_nano",
    "soft_budget": "soft_budget_nano",
    "temp_budget_increase": "temp_budget_increase_nano",
}
_BY_MODEL = {"model_rpm_limit": "rpm", "model_tpm_limit": "tpm", "model_max_parallel_requests": "concurrency"}
_LIMITS = {"rpm_limit": "rpm", "tpm_limit": "tpm", "max_parallel_requests": "concurrency"}
MONEY_FIELDS = frozenset({"max_budget", "budget_limits", "temp_budget_increase", "budget_duration"})
EVERY_BOUND = frozenset({"models", "max_budget", *_LIMITS, *_BY_MODEL})
_EMPTY: Mapping[str, Any] = {"models": (), "metadata": {}, "blocked": False, "tags": ()}


def policy_changes(given: Mapping[str, Any], now: float, before: Policy | None = None) -> dict[str, Any]:
    """Request fields → fields of `Policy`; other fields stay as they are. `null` becomes the value of a row that was
    never given one. A window keeps its anchor as long as its duration stays."""
    changes: dict[str, Any] = {}
    by_model: dict[str, dict[str, Any]] | None = None
    for name, value in given.items():
        if name in _MONEY:
            changes[_MONEY[name]] = None if value is None else usd_to_nano(value)
        elif name == "temp_budget_expiry":
            changes["temp_budget_expiry_at"] = value
        elif name == "budget_limits":
            changes["budget_windows"] = _windows(value or (), now, before.budget_windows if before is not None else ())
        elif name in _BY_MODEL:
            if by_model is None:
                by_model = _taken_apart(before.model_limits if before is not None else {})
            for limits in by_model.values():
                limits.pop(_BY_MODEL[name], None)
            for model, count in (value or {}).items():
                by_model.setdefault(model, {})[_BY_MODEL[name]] = count
        elif name in ("aliases", "model_aliases"):
            changes["model_aliases"] = value or {}
        elif name in _EMPTY:
            changes[name] = _EMPTY[name] if value is None else tuple(value) if isinstance(value, list) else value
        else:
            changes[name] = value
    if by_model is not None:
        changes["model_limits"] = {model: ModelLimit(**limits) for model, limits in by_model.items() if limits}
    if before is None or ("budget_duration" in given and given["budget_duration"] != before.budget_duration):
        changes["budget_anchor_at"] = now
    return changes


def _windows(wanted: Iterable[BudgetLimit], now: float, before: tuple[BudgetCap, ...]) -> tuple[BudgetCap, ...]:
    anchors = {window.budget_duration: window.budget_anchor_at for window in before}
    return tuple(
        BudgetCap(
            max_budget_nano=usd_to_nano(limit.max_budget),
            budget_duration=limit.budget_duration,
            budget_anchor_at=anchors.get(limit.budget_duration, now),
        )
        for limit in wanted
    )


def _taken_apart(limits: Mapping[str, ModelLimit]) -> dict[str, dict[str, Any]]:
    return {
        model: {name: value for name in ("rpm", "tpm", "concurrency") if (value := getattr(limit, name)) is not None}
        for model, limit in limits.items()
    }


def check_whole(row: Policy) -> None:
    """Fields that only mean something together. Raises `BadRequestError`."""
    if row.temp_budget_increase_nano is not None and row.temp_budget_expiry_at is None:
        raise BadRequestError(
            "'temp_budget_increase' needs a 'temp_budget_expiry': until when it counts.",
            param="temp_budget_expiry",
            code="missing_field",
        )


def exceeds(asked: Policy, named: Set[str], above: Principal) -> str | None:
    """The named request field that asks for more than `above` may, if any."""
    if "models" in named and not all(_admits(above, model) for model in asked.models):
        return "models"
    own = asked.limits()
    for field, attribute in _LIMITS.items():
        if field in named and _is_more(getattr(own, attribute), getattr(above.limits, attribute)):
            return field
    for field, attribute in _BY_MODEL.items():
        if field not in named:
            continue
        for model, limits in asked.limits_by_model().items():
            cap = getattr(above.model_limits.get(model, Limits()), attribute) or getattr(above.limits, attribute)
            if _is_more(getattr(limits, attribute), cap):
                return field
    asks_money = named & MONEY_FIELDS
    for budget in asked.budgets() if asks_money else ():
        for window in above.budgets:
            is_same = window.duration is None or window.duration == budget.duration
            if is_same and budget.max_nano + budget.extra_nano > window.max_nano:
                return min(asks_money)
    return None


def beyond(asked: Policy, named: Set[str], caller: Identity) -> str | None:
    """The field in which a key would be wider than the key that makes or changes it, if any. Other than what stands
    above, the calling key does not bind the new one: what is not limited here is not limited."""
    own = asked.limits()
    if "models" in named and caller.models and not ALL_MODELS & set(caller.models):
        is_within = asked.models and all(
            m == NO_MODELS or m in caller.models or _within(caller.models, m) for m in asked.models
        )
        if not is_within:
            return "models"
    for field, attribute in _LIMITS.items():
        cap = getattr(caller.limits, attribute)
        if field in named and cap is not None and (getattr(own, attribute) or cap + 1) > cap:
            return field
    by_model = asked.limits_by_model()
    for field, attribute in _BY_MODEL.items():
        for model, limits in caller.model_limits.items() if field in named else ():
            cap = getattr(limits, attribute)
            if cap is not None and (getattr(by_model.get(model, Limits()), attribute) or cap + 1) > cap:
                return field
    for budget in caller.budgets if named & MONEY_FIELDS else ():
        cap = budget.max_nano + budget.extra_nano
        if not any(
            one.duration in (None, budget.duration) and one.max_nano + one.extra_nano <= cap for one in asked.budgets()
        ):
            return min(named & MONEY_FIELDS)
    return None


def _within(patterns: tuple[str, ...], model: str) -> bool:
    return model not in ALL_MODELS and model_matches(patterns, model)


def inherited(caller: Identity, named: Set[str], now: float) -> dict[str, Any]:
    """What a new key gets of the key that makes it, where the request names nothing else."""
    changes: dict[str, Any] = {}
    if "models" not in named and caller.models:
        changes["models"] = caller.models
    for field, attribute in _LIMITS.items():
        cap = getattr(caller.limits, attribute)
        if field not in named and cap is not None:
            changes[field] = cap
    by_model = {
        model: {
            attribute: cap
            for field, attribute in _BY_MODEL.items()
            if field not in named and (cap := getattr(limits, attribute)) is not None
        }
        for model, limits in caller.model_limits.items()
    }
    if any(by_model.values()):
        changes["model_limits"] = {model: ModelLimit(**limits) for model, limits in by_model.items() if limits}
    if caller.budgets and not named & MONEY_FIELDS:
        changes["budget_windows"] = tuple(
            BudgetCap(max_budget_nano=budget.max_nano, budget_duration=budget.duration, budget_anchor_at=now)
            for budget in caller.budgets
        )
    return changes


def _is_more(asked: int | None, cap: int | None) -> bool:
    return asked is not None and cap is not None and asked > cap


def _admits(above: Principal, model: str) -> bool:
    """True if whatever this pattern admits `above` admits too. `all-team-models` says no more than the team does."""
    if model in ("all-team-models", NO_MODELS) or not above.models or ALL_MODELS & set(above.models):
        return True
    return model not in ALL_MODELS and model_matches(above.models, model)


def usd(nano: int) -> msgspec.Raw:
    """An exact JSON number without an exponent."""
    return msgspec.Raw(format_usd(nano).encode("ascii"))


def _usd(nano: int | None) -> msgspec.Raw | None:
    return None if nano is None else usd(nano)


def shown_at(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def shown_policy(row: Policy, spent_nano: int | None) -> dict[str, Any]:
    """As answers show it: USD are exact JSON numbers, instants ISO 8601. `spent_nano=None`: nothing is spent on it."""
    spend = {} if spent_nano is None else {"spend": usd(spent_nano)}
    return {
        "models": list(row.models),
        **spend,
        "max_budget": _usd(row.max_budget_nano),
        "budget_duration": row.budget_duration,
        "budget_limits": [
            {"budget_duration": window.budget_duration, "max_budget": usd(window.max_budget_nano)}
            for window in row.budget_windows
        ],
        "soft_budget": _usd(row.soft_budget_nano),
        "temp_budget_increase": _usd(row.temp_budget_increase_nano),
        "temp_budget_expiry": shown_at(row.temp_budget_expiry_at),
        "rpm_limit": row.rpm_limit,
        "tpm_limit": row.tpm_limit,
        "max_parallel_requests": row.max_parallel_requests,
        **{
            field: {
                model: count for model, limit in row.model_limits.items() if (count := getattr(limit, name)) is not None
            }
            for field, name in _BY_MODEL.items()
        },
        "metadata": row.metadata,
        "created_at": shown_at(row.created_at),
        "updated_at": shown_at(row.updated_at),
    }
