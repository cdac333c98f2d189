"""Rows for everything outside an entry of `model_list`. Neighbours: `names.py` (fallbacks, aliases), `shared_store.py`
(Redis)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import ValidationError

from sidecar.config.models import AuthSettings
from sidecar.importing import names
from sidecar.importing.draft import Draft, decimal_of
from sidecar.importing.report import Refuse, Verdict
from sidecar.importing.rows import Row, Table, nothing
from sidecar.importing.shared_store import REDIS_KEYS, REDIS_PLACES, redis_part
from sidecar.importing.source import Node

Handler = Callable[[Draft, Node], Verdict]
_YET = "not yet: "

# What each means there: facts of /budget reset, where 7d ends on Monday and 30d with the month.
CALENDAR = {
    "1h": "1h", "24h": "1d", "1d": "1d", "daily": "1d", "7d": "1w", "1w": "1w", "weekly": "1w", "30d": "1mo",
    "1mo": "1mo", "monthly": "1mo",
}  # fmt: skip
_PERIOD = re.compile(r"[1-9][0-9]{0,5}[smhdw]")


def _put(to: str, least: float, most: float, *, whole: bool = False, how: str = "") -> Handler:
    """A number within our bounds; outside of them the nearest one."""

    def handle(draft: Draft, node: Node) -> Verdict:
        found = decimal_of(node)
        if found is not None and found >= 0 and not Decimal(str(least)) <= found <= Decimal(str(most)):
            nearest = least if found < Decimal(str(least)) else most
            draft.put(to, int(nearest) if whole or nearest == int(nearest) else nearest, node)
            return Verdict("changed", to, f"{nearest:g}, the nearest allowed here")
        draft.put(to, draft.number(node, least=least, most=most, whole=whole), node)
        return Verdict("changed", to, how) if how else Verdict("taken", to)

    return handle


def _secret(to: str, wanted: str, kind: str = "secret", how: str = "") -> Handler:
    def handle(draft: Draft, node: Node) -> Verdict:
        reference = draft.secret(node, wanted, kind)
        draft.put(to, reference, node)
        moved = f"moved out of the file; set {reference[2:-1]}" if draft.is_moved(node) else ""
        text = "; ".join(part for part in (moved, how) if part)
        return Verdict("changed", to, text) if text else Verdict("taken", to)

    return handle


def _same(default: bool, what: str, why: str = "") -> Handler:
    """A switch that can only stand as `default` here."""

    def handle(draft: Draft, node: Node) -> Verdict:
        if draft.truth(node) is default:
            return Verdict("taken", "", what)
        raise Refuse(why or f"here {what}")

    return handle


def _drop_params(draft: Draft, node: Node) -> Verdict:
    found = draft.truth(node)
    if isinstance(found, str):
        raise Refuse("write true or false, and run the import again")
    draft.drops_params = found
    return Verdict("changed", "drop_params", "stands in each deployment") if found else Verdict("taken", "drop_params")


def _strategy(draft: Draft, node: Node) -> Verdict:
    draft.strategy = str(node.value)
    if draft.strategy == "simple-shuffle":
        draft.put("routing.strategy", "weighted", node)
        return Verdict("taken", "routing.strategy", "weighted, the same thing")
    raise Refuse(_YET + "deployments are drawn by weight")


def _timeout(draft: Draft, node: Node) -> Verdict:
    found = draft.number(node, least=0.001, most=86_400)
    if isinstance(found, str):
        raise Refuse("write the seconds, and run the import again")
    if draft.timeout_s is not None:
        return Verdict("changed", "", "not used; router_settings.timeout counts")
    draft.timeout_s = found
    return Verdict("changed", "timeouts.first_byte_s, gap_s", "stands in each deployment")


def _stream_timeout(draft: Draft, node: Node) -> Verdict:
    found = draft.number(node, least=0.001, most=86_400)
    if isinstance(found, str):
        raise Refuse("write the seconds, and run the import again")
    draft.stream_timeout_s = found
    return Verdict("changed", "timeouts.gap_s", "stands in each deployment")


def _parallel(draft: Draft, node: Node) -> Verdict:
    found = draft.number(node, least=0, most=10**12, whole=True)
    if isinstance(found, str):
        raise Refuse("write the number, and run the import again")
    if not found:
        return Verdict("changed", "", "0 means no limit there; nothing is written")
    if draft.concurrency is not None:
        return Verdict("changed", "", "not used; router_settings.default_max_parallel_requests counts")
    draft.concurrency = found
    return Verdict("changed", "limits.concurrency", "stands in each deployment that has none")


def _all_parallel(draft: Draft, node: Node) -> Verdict:
    found = draft.number(node, least=0, most=10**12, whole=True)
    if found == 0:
        return Verdict("changed", "", "0 means no limit there; nothing is written")
    draft.put("limits.concurrency", found, node)
    return Verdict("taken", "limits.concurrency")


def _max_budget(draft: Draft, node: Node) -> Verdict:
    found = decimal_of(node)
    if node.env is None and found is not None and found >= 0:
        rounded = found.quantize(Decimal("1e-9"))
        if rounded > 9_000_000:
            draft.put("budget.max_usd", 9_000_000, node)
            return Verdict("changed", "budget.max_usd", "9,000,000, the most allowed here")
        whole = rounded == rounded.to_integral_value()
        draft.put("budget.max_usd", int(rounded) if whole else float(rounded), node)
        return Verdict("taken", "budget.max_usd")
    draft.put("budget.max_usd", draft.number(node, least=0, most=9_000_000), node)
    return Verdict("taken", "budget.max_usd")


def _budget_duration(draft: Draft, node: Node) -> Verdict:
    if "max_usd" not in draft.sections.get("budget", {}):
        raise Refuse("a duration without max_budget limits nothing")
    text = node.text.strip()
    ours = CALENDAR.get(text) or (text if _PERIOD.fullmatch(text) else None)
    if ours is None:
        raise Refuse("not a duration here; write a number and s, m, h, d or w, or 1mo, as budget.duration")
    draft.put("budget.duration", ours, node)
    if ours in CALENDAR.values():
        if ours == text:
            return Verdict("taken", "budget.duration")
        return Verdict("changed", "budget.duration", f"{ours}: the calendar window it means there")
    return Verdict("changed", "budget.duration", "repeats from a fixed instant; windows are not aligned to midnight")


def _timezone(draft: Draft, node: Node) -> Verdict:
    name = draft.text(node)
    try:
        ZoneInfo(name)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        raise Refuse("not a timezone's name, such as Europe/Berlin; set budget.timezone") from None
    draft.put("budget.timezone", name, node)
    return Verdict("taken", "budget.timezone")


def _callback(draft: Draft, node: Node) -> Verdict:
    if node.value == "prometheus":
        return Verdict("changed", "", "GET /metrics is always there; the metrics have names of our own")
    raise Refuse(_YET + "add one under spend.sinks by hand: a webhook, or OpenTelemetry, which most of them take")


def _verbose(draft: Draft, node: Node) -> Verdict:
    if draft.truth(node) is False:
        return Verdict("taken", "", "the log level is info")
    draft.put("log.level", "debug", node)
    return Verdict("changed", "log.level", "debug; no message content and no key is ever logged")


def _debug_level(draft: Draft, node: Node) -> Verdict:
    level = str(node.value).lower()
    if level not in ("debug", "info", "warning", "error"):
        raise Refuse("not a level; use log.level")
    draft.put("log.level", level, node)
    return Verdict("taken", "log.level")


def _ssl_verify(draft: Draft, node: Node) -> Verdict:
    if node.value is True:
        return Verdict("taken", "", "certificates are always checked")
    if isinstance(node.value, str) and node.env is None and node.text.lower() not in ("true", "false"):
        if os.path.isfile(node.text) and os.access(node.text, os.R_OK):
            draft.put("upstream.ca_file", draft.text(node), node)
            return Verdict("taken", "upstream.ca_file")
        raise Refuse("the file is not on this machine; set upstream.ca_file where it is")
    raise Refuse("certificates are always checked; give the authority's certificate as upstream.ca_file")


def _name(to: str, how: str) -> Handler:
    def handle(draft: Draft, node: Node) -> Verdict:
        value = draft.text(node)
        if not value.startswith("${"):
            try:
                AuthSettings.model_validate({to.removeprefix("auth."): value})
            except ValidationError:
                raise Refuse(f"not a value {to} takes") from None
        draft.put(to, value, node)
        return Verdict("changed", to, how)

    return handle


def _exceeded_status(draft: Draft, node: Node) -> Verdict:
    if node.value == 429:
        return Verdict("taken", "", "a spent budget is answered with 429")
    raise Refuse(_YET + "a spent budget is answered with 429")


def _credential_name(draft: Draft, node: Node) -> Verdict:
    return Verdict("changed", "", "the credential's values stand in each deployment that names it")


def _credential_value(draft: Draft, node: Node) -> Verdict:
    """The deployments that name the credential have judged it; this one no one names."""
    return draft.verdicts.get(node) or Verdict("changed", "", "not used; no deployment names this credential")


def _variable(draft: Draft, node: Node) -> Verdict:
    name = str(node.path[-1])
    if draft.reads(name):
        other = node.env
        text = f"set {name} to what {other} holds" if other else f"set {name}; its value is not copied"
        return Verdict("changed", "", text)
    raise Refuse("nothing here reads this variable; its value is not copied")


def _rows() -> list[Row[Handler]]:
    rows: list[Row[Handler]] = []

    def row(key: str, to: str, how: str, handle: Handler, phase: int = 1) -> None:
        rank = {"router_settings": 0, "general_settings": 1}.get(key.partition(".")[0].partition("[")[0], 2)
        rows.append(Row(key, to, how, handle, phase, rank))

    row("general_settings.master_key", "auth.master_key", "a literal key is moved to a variable",
        _secret("auth.master_key", "SIDECAR_MASTER_KEY"))  # fmt: skip
    database = "give us a database of our own, without Prisma's query parameters (connection_limit, schema, …)"
    row("general_settings.database_url", "store.database_url", database,
        _secret("store.database_url", "DATABASE_URL", "postgres", database))  # fmt: skip
    row("general_settings.user_api_key_cache_ttl", "auth.key_cache_s", "seconds",
        _put("auth.key_cache_s", 0.001, 86_400))  # fmt: skip
    row("general_settings.global_max_parallel_requests", "limits.concurrency", "over the whole gateway", _all_parallel)
    row("router_settings.default_max_parallel_requests", "deployments' limits.concurrency", "where it has none",
        _parallel)  # fmt: skip
    row("general_settings.max_parallel_requests", "deployments' limits.concurrency", "where it has none", _parallel)
    row("general_settings.proxy_batch_write_at", "spend.flush_s", "seconds", _put("spend.flush_s", 0.001, 86_400))
    for section in ("router_settings", "litellm_settings"):
        row(f"{section}.num_retries", "routing.retries", "0 to 10; router_settings wins",
            _put("routing.retries", 0, 10, whole=True))  # fmt: skip
        row(f"{section}.cooldown_time", "routing.cooldown_s", "seconds", _put("routing.cooldown_s", 0.001, 86_400))
        row(f"{section}.model_group_alias.*", "routing.aliases", "", names.alias, 2)
        row(f"{section}.model_group_alias.*.model", "routing.aliases", "", names.alias, 2)
        row(f"{section}.model_group_alias.*.hidden", "", "aliases are listed", names.hidden, 2)
        for form in ("[].*[]", "[].*", ".*[]", ".*"):
            row(f"{section}.fallbacks{form}", "routing.fallbacks", "`*` is written out as default_fallbacks",
                names.fallback, 3)  # fmt: skip
        for form in ("[]", ""):
            row(f"{section}.default_fallbacks{form}", "routing.fallbacks", "for each model that has none of its own",
                names.default_fallback, 3)  # fmt: skip
        rows.extend(
            nothing(
                "fallbacks.** default_fallbacks.** model_group_alias.**",
                "not in the form we know: {model: [other]}, [other], {alias: model}",
                prefix=section + ".",
            )
        )
        rows.extend(
            nothing(
                "context_window_fallbacks.** content_policy_fallbacks.**",
                _YET + "there are fallbacks for failures, not for one kind of refusal",
                prefix=section + ".",
            )
        )
        rows.extend(
            nothing(
                "allowed_fails allowed_fails_policy.** retry_policy.** model_group_retry_policy.** max_fallbacks",
                _YET + "a deployment cools down at its first failure that shows it ill, and retries are one number",
                prefix=section + ".",
            )
        )
    row("router_settings.timeout", "deployments' timeouts", "first_byte_s and gap_s, where it has none", _timeout)
    row("litellm_settings.request_timeout", "deployments' timeouts", "router_settings.timeout wins", _timeout)
    row("router_settings.stream_timeout", "deployments' timeouts.gap_s", "where it has none", _stream_timeout)
    row("router_settings.routing_strategy", "routing.strategy", "simple-shuffle is our `weighted`", _strategy, 0)
    row("router_settings.debug_level", "log.level", "", _debug_level)
    row("router_settings.disable_cooldowns", "", "a failing deployment always cools down",
        _same(False, "a failing deployment cools down"))  # fmt: skip
    row("router_settings.enable_pre_call_checks", "", _YET + "requests are not checked against a context window",
        _same(False, "requests are not checked against a context window", _YET + "no check against a context window"),
        )  # fmt: skip
    row("litellm_settings.drop_params", "deployments' drop_params", "", _drop_params)
    row("litellm_settings.max_budget", "budget.max_usd", "USD", _max_budget)
    row("litellm_settings.budget_duration", "budget.duration", "7d is 1w and 30d is 1mo, as they mean there",
        _budget_duration, 2)  # fmt: skip
    row("litellm_settings.timezone", "budget.timezone", "windows of a day, a week, a month begin by it", _timezone)
    row("litellm_settings.set_verbose", "log.level", "true is debug", _verbose)
    row("litellm_settings.ssl_verify", "upstream.ca_file", "a readable file; never switched off", _ssl_verify)
    row("litellm_settings.budget_exceeded_status_code", "", "429 only", _exceeded_status)
    row("general_settings.user_header_name", "auth.end_user_header", "where the body has no `user`",
        _name("auth.end_user_header", "the header counts where the body's `user` is missing"))  # fmt: skip
    row("litellm_settings.max_end_user_budget_id", "auth.end_user_budget_id", "the budget comes with the database",
        _name("auth.end_user_budget_id", "the budget itself stands in the database"))  # fmt: skip
    row("litellm_settings.turn_off_message_logging", "", "messages are never logged",
        _same(True, "messages are never logged"))  # fmt: skip
    row("general_settings.store_prompts_in_spend_logs", "", "messages are never stored",
        _same(False, "messages are never stored"))  # fmt: skip
    row("general_settings.disable_spend_logs", "", "spend is always recorded", _same(False, "spend is always recorded"))
    row("general_settings.allow_requests_on_db_unavailable", "", "cached keys go on working, others are refused",
        _same(False, "an unknown key is refused while the database is away"))  # fmt: skip
    for key in ("fail_closed_rate_limit_enforcement", "fail_closed_budget_enforcement"):
        row(f"general_settings.{key}", "store.on_failure", "`closed` is the default", _same(
            True, "store.on_failure is closed", "without its store a limit refuses here; store.on_failure: open lets "
            "requests pass uncounted"))  # fmt: skip
    for key in ("callbacks", "success_callback", "failure_callback", "service_callback", "service_callbacks"):
        for form in ("[]", ""):
            row(f"litellm_settings.{key}{form}", "", "`prometheus`: GET /metrics is always there; others not yet",
                _callback)  # fmt: skip
    for where in REDIS_PLACES:
        before = "redis_" if where == ("router_settings",) else ""
        for key in REDIS_KEYS:
            row(".".join((*where, before + key)), "store.redis_url", "of the first place that has a url or a host: "
                "general_settings.coordination_redis, router_settings, cache_params", redis_part)  # fmt: skip
    row("credential_list[].credential_name", "", "see litellm_credential_name", _credential_name, 2)
    row("credential_list[].credential_values.**", "", "stand in each deployment that names it", _credential_value, 2)
    row("environment_variables.*", "", "set them yourself; no value is copied", _variable, 5)
    return rows + _without()


def _without() -> list[Row[Any]]:
    g, m, r = "general_settings.", "litellm_settings.", "router_settings."
    keys = _YET + "the defaults and bounds of new keys and users are not configured here; set them when making a key"
    return [
        *nothing("credential_list[].credential_info.**", "it only informs; nothing here reads it"),
        *nothing(
            "alerting.** alerting_threshold alert_types.** alerting_args.** alert_to_webhook_url.** "
            "spend_report_frequency",
            _YET + "watch the metrics (GET /metrics) with your own alerts",
            prefix=g,
        ),
        *nothing(
            "custom_auth custom_auth_settings.** custom_auth_run_common_checks custom_key_generate custom_sso "
            "custom_ui_sso_sign_in_handler",
            _YET + "no code is loaded by name; mount the gateway in an app of your own and authenticate there",
            prefix=g,
        ),
        *nothing(
            "enable_jwt_auth litellm_jwtauth.** enable_oauth2_auth enable_oauth2_proxy_auth "
            "oauth2_config_mappings.** service_account_settings.**",
            "name the issuer, its audience and its claims under auth.issuers or auth.introspection",
            prefix=g,
        ),
        *nothing("pass_through_endpoints.**", _YET + "there are no pass-through endpoints", prefix=g),
        *nothing(
            "store_model_in_db supported_db_objects.**", "set store.encryption_key, then POST /model/new stores models",
            prefix=g,
        ),
        *nothing(
            "database_connection_pool_limit database_connection_timeout database_connect_timeout "
            "database_socket_timeout database_extra_connection_params.** disable_prisma_schema_update "
            "use_redis_transaction_buffer",
            "the database is not on a request's way; its pool needs no setting", prefix=g,
        ),
        *nothing(
            "proxy_budget_rescheduler_min_time proxy_budget_rescheduler_max_time proxy_batch_polling_interval "
            "disable_reset_budget",
            "budgets need no job here: a new window is a new counter", prefix=g,
        ),
        *nothing(
            "background_health_checks health_check_interval health_check_details health_check_concurrency "
            "health_check_ignore_transient_errors",
            _YET + "no health checks are sent to models; failures of requests cool a deployment down", prefix=g,
        ),
        *nothing(
            "allowed_ips.** use_x_forwarded_for trusted_proxy_ranges.** max_request_size_mb max_response_size_mb",
            _YET + "do it in the proxy or the network policy in front", prefix=g,
        ),
        *nothing(
            "allowed_routes.** admin_only_routes.** public_routes.** role_permissions.** ui_access_mode "
            "disable_master_key_return disable_adding_master_key_hash_to_db default_team_disabled",
            "who may do what follows from the user's role; there is no admin page", prefix=g,
        ),
        *nothing(
            "enforce_user_param enforced_params.** reject_clientside_metadata_tags "
            "user_header_mappings.** litellm_key_header_name",
            _YET + "keys come as Authorization: Bearer; nothing is demanded of a request's fields", prefix=g,
        ),
        *nothing(
            "key_management_system key_management_settings.** use_azure_key_vault use_google_kms",
            "mount the secret, and write ${NAME} or ${file:/path} where it is needed", prefix=g,
        ),
        *nothing(
            "maximum_spend_logs_retention_period maximum_spend_logs_retention_interval",
            _YET + "spend rows are kept; delete old partitions in the database", prefix=g,
        ),
        *nothing(
            "forward_client_headers_to_llm_api forward_openai_org_id allow_client_side_credentials "
            "use_client_credentials_pass_through_routes infer_model_from_keys completion_model embedding_model "
            "image_generation_model moderation_model",
            "clients choose a model by its name only; destination, credential and headers are the deployment's",
            prefix=g,
        ),
        *nothing(
            "max_in_flight_requests_per_worker disable_retry_on_max_parallel_request_limit_error",
            _YET + "use limits.concurrency, which holds over all workers", prefix=g,
        ),
        *nothing("litellm_license", "nothing here needs a licence", prefix=g),
        *nothing(
            "cache cache_params.**", _YET + "answers are not cached; a Redis named here counts limits", prefix=m
        ),
        *nothing(
            "default_internal_user_params.** max_internal_user_budget internal_user_budget_duration "
            "default_team_params.** default_team_settings.** default_key_generate_params.** "
            "upperbound_key_generate_params.** key_generation_settings.** max_user_budget max_end_user_budget "
            "enable_key_alias_format_validation",
            keys, prefix=m,
        ),
        *nothing("tag_budget_config.**", "make the tags with POST /tag/new, each with its budget", prefix=m),
        *nothing(
            "cost_discount_config.** cost_margin_config.**", _YET + "write the price you want as the deployment's",
            prefix=m,
        ),
        *nothing("priority_reservation.** priority_reservation_settings.**", _YET + "keys have no priority", prefix=m),
        *nothing("modify_params", "requests are never rewritten beyond what a provider's form needs", prefix=m),
        *nothing("json_logs", _YET + "put your log collector in front of standard error", prefix=m),
        *nothing("force_ipv4", _YET + "the system decides", prefix=m),
        *nothing("ssl_certificate ssl_security_level", "use upstream.client_cert and upstream.client_key", prefix=m),
        *nothing("guardrails.**", _YET + "content is passed unchecked; do not rely on it", prefix=m),
        *nothing(
            "redact_user_api_key_info langfuse_default_tags.** custom_prometheus_metadata_labels.** "
            "custom_prometheus_tags.** prometheus_metrics_config.** prometheus_initialize_budget_metrics "
            "s3_callback_params.** datadog_params.** store_audit_logs require_auth_for_metrics_endpoint "
            "disable_end_user_cost_tracking disable_end_user_cost_tracking_prometheus_only",
            _YET + "the metrics and the ledger have one form", prefix=m,
        ),
        *nothing("model_alias_map.**", "use router_settings.model_group_alias, and run the import again", prefix=m),
        *nothing(
            "routing_strategy_args.** routing_groups.** provider_budget_config.** enable_tag_filtering "
            "tag_filtering_match_any optional_pre_call_checks.** default_priority polling_interval "
            "enable_health_check_routing deployment_affinity_ttl_seconds",
            _YET + "deployments are drawn by weight, order by order", prefix=r,
        ),
        *nothing(
            "default_litellm_params.**", "write them under each entry's litellm_params, and run the import again",
            prefix=r,
        ),
        *nothing("cache_responses cache_kwargs.** caching_groups.**", _YET + "answers are not cached", prefix=r),
        *nothing("client_ttl assistants_config.**", "it is not needed here", prefix=r),
        *nothing("guardrails.**", _YET + "content is passed unchecked; do not rely on it"),
        *nothing("policies.** policy_attachments.** prompts.**", _YET + "there are no policies and no stored prompts"),
        *nothing(
            "mcp_servers.** mcp_tools.** vector_store_registry.** search_tools.** sandbox_tools.** agents.** "
            "plugins.** assistant_settings.**",
            _YET + "only chat completions are served",
        ),
        *nothing(
            "files_settings.** finetune_settings.** default_vertex_config.**",
            _YET + "there are no file, fine-tuning and pass-through endpoints",
        ),
        *nothing("callback_settings.** worker_registry.**", _YET + "nothing here reads it"),
    ]  # fmt: skip


TABLE: Table[Handler] = Table(_rows())
