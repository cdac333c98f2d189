"""Columns a key and everybody above it share: models, limits, budgets, metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import tzinfo
from typing import Any

from sidecar.identity.row import BudgetCap, ModelLimit
from sidecar.importing.database.book import Taken
from sidecar.importing.database.values import cap, count, instant, mapping, nano, period, plain, texts
from sidecar.limits.windows import MAX_BUDGET_NANO
from sidecar.types import ALL_MODELS, NO_MODELS

_LIMITS = ("rpm_limit", "tpm_limit", "max_parallel_requests")
_WITH_SECRETS = frozenset({"logging", "callback_settings", "callback_vars", "secret_manager_settings"})
_ACTED_ON = frozenset(
    {"guardrails", "disable_global_guardrails", "disable_global_guardrail", "opted_out_global_guardrails",
     "enforced_params", "allowed_passthrough_routes", "priority", "throttle_on_budget_exceeded", "budget_fallbacks",
     "model_max_budget", "soft_budget_alerting_emails", "team_member_key_duration", "require_trace_id",
     "estimated_output_tokens", "rpm_limit_type", "tpm_limit_type", "secret_manager", "prompts",
     "allowed_vector_store_indexes", "passthrough_headers"}
)  # fmt: skip
WITHOUT: Mapping[str, str] = {
    "tpd_limit": "there is no limit of tokens per day",
    "model_max_budget": "a budget is over all models; the amounts per model bind no longer",
    "model_spend": "totals are carried over, not by model",
    "object_permission_id": "there are no MCP servers, agents and vector stores to permit",
    "access_group_ids": "name the models in its list of models",
    "policies": "there are no policies; content is passed unchecked",
    "allowed_cache_controls": "answers are not cached",
    "router_settings": "routing is the same for all; see routing",
    "created_by": "the audit log names the import",
    "updated_by": "the audit log names the import",
    "litellm_changed_by": "the audit log names the import",
}
"""Of every table, where it has them."""


@dataclass(slots=True)
class Common:
    """Fields of a row, and what money was spent: since the last reset (`spent`), of each further window, and ever."""

    fields: dict[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    spent: int = 0
    reset_at: float | None = None
    total: int | None = None
    members_budget: str | None = None
    window_words: tuple[str, ...] = ()
    """The durations of `budget_windows` as they stand there."""


def common(taken: Taken, zone: tzinfo, now: float, *, models: str = "models") -> Common:
    found = Common()
    made_at = instant(taken.get("created_at")) or now
    fields: dict[str, Any] = {"created_at": made_at, "updated_at": instant(taken.get("updated_at")) or made_at}
    fields["models"] = _models(taken, models)
    for name in _LIMITS:
        value = taken.take(name)
        fields[name] = count(value)
        if value is not None and fields[name] != value:
            taken.part(name, "changed", name, f"{fields[name]}, the nearest allowed here")
    _money(taken, fields, found, zone)
    fields["budget_id"] = taken.take("budget_id") or None
    fields["blocked"] = bool(taken.take("blocked"))
    found.spent = nano(taken.take("spend", "opening rows of the ledger")) or 0
    found.total = nano(taken.get("total_spend"))
    fields["metadata"] = _metadata(taken, fields, found)
    if fields.get("temp_budget_expiry_at") is None and fields.pop("temp_budget_increase_nano", None) is not None:
        taken.part("temp_budget_increase", "no equivalent", "", "an increase has to end; this one says not when")
    found.fields = fields
    return found


def _models(taken: Taken, column: str) -> tuple[str, ...]:
    found = texts(taken.take(column, "models"))
    for word in sorted(set(found) & (ALL_MODELS | {NO_MODELS})):
        taken.part(column, "taken", "models", f"'{word}' means the same here")
    return found


def _money(taken: Taken, fields: dict[str, Any], found: Common, zone: tzinfo) -> None:
    for theirs, ours in (("max_budget", "max_budget_nano"), ("soft_budget", "soft_budget_nano")):
        value = taken.get(theirs)
        fields[ours] = cap(value)
        if fields[ours] is not None:
            _told(taken, theirs, value, fields[ours])
        elif value is not None:
            taken.changed(theirs, "", "no budget: it is no number, which limits nothing there either")
    found.reset_at = instant(taken.get("budget_reset_at"))
    word = taken.get("budget_duration")
    when = period(word, found.reset_at, zone)
    fields["budget_duration"], fields["budget_anchor_at"] = when.duration, when.anchor_at
    if word:
        taken.part("budget_duration", "changed" if when.how else "taken", "budget_duration", when.how)
    if found.reset_at is not None:
        taken.part("budget_reset_at", "taken", "budget_duration", "the windows end then")
    windows = plain(taken.get("budget_limits"))
    caps: list[BudgetCap] = []
    words: list[str] = []
    for window in windows if isinstance(windows, list) else []:
        window = mapping(window)
        most = cap(window.get("max_budget"))
        if most is None:
            taken.part("budget_limits", "no equivalent", "", "a window without an amount")
            continue
        words.append(str(window.get("budget_duration") or ""))
        each = period(words[-1], instant(window.get("reset_at")), zone)
        caps.append(BudgetCap(max_budget_nano=most, budget_duration=each.duration, budget_anchor_at=each.anchor_at))
        taken.part("budget_limits", "changed" if each.how else "taken", "budget_limits", each.how)
    fields["budget_windows"], found.window_words = tuple(caps), tuple(words)
    increase = cap(taken.take("temp_budget_increase"))
    if increase is not None:
        fields["temp_budget_increase_nano"] = increase
        fields["temp_budget_expiry_at"] = instant(taken.take("temp_budget_expiry"))


def _told(taken: Taken, column: str, value: Any, ours: int) -> None:
    whole = nano(value)
    if whole is not None and whole < 0:
        taken.part(column, "changed", column, "0: there less than nothing is never left either")
    elif ours == MAX_BUDGET_NANO and whole != ours:
        taken.part(column, "changed", column, "9,000,000, the most allowed here")
    else:
        taken.part(column, "taken", column, "")


def _metadata(taken: Taken, fields: dict[str, Any], found: Common) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    limits: dict[str, dict[str, int]] = {}
    for key, value in mapping(taken.get("metadata")).items():
        if value in (None, {}, [], ""):
            continue
        if key in ("model_rpm_limit", "model_tpm_limit") and isinstance(value, dict):
            for model, number in value.items():
                if (whole := count(number)) is not None:
                    limits.setdefault(str(model), {})[key[6:9]] = whole
            taken.part("metadata", "taken", key, key)
        elif key == "tags" and isinstance(value, list):
            found.tags = texts(value)
            taken.part("metadata", "taken", "tags", key)
        elif key == "temp_budget_increase" and (more := cap(value)) is not None:
            fields["temp_budget_increase_nano"] = more
            taken.part("metadata", "taken", key, key)
        elif key == "temp_budget_expiry" and (until := instant(value)) is not None:
            fields["temp_budget_expiry_at"] = until
            taken.part("metadata", "taken", key, key)
        elif key == "scim_active":
            fields["blocked"] = fields["blocked"] or value is False
            taken.part("metadata", "changed", "blocked", f"{key}: who was deactivated is blocked")
        elif key == "team_member_budget_id":
            found.members_budget = str(value)
            taken.part("metadata", "changed", "budget_id", f"{key}: of each member that has none")
        elif key in _WITH_SECRETS:
            taken.part("metadata", "no equivalent", "", f"{key}: not copied, for it holds credentials")
        else:
            kept[key] = value
            if key in _ACTED_ON:
                taken.part("metadata", "no equivalent", "", f"{key}: kept in the metadata, but nothing here acts on it")
            else:
                taken.part("metadata", "taken", "metadata", "kept; nothing here acts on it")
    fields["model_limits"] = {model: ModelLimit(**one) for model, one in limits.items()}
    return kept
