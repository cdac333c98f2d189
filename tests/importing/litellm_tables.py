"""A PostgreSQL database as LiteLLM's proxy leaves one behind, in our own words: its tables, and rows to put in.

Shapes: https://github.com/BerriAI/litellm/blob/main/schema.prisma
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

_LIMITS = "max_parallel_requests INTEGER, tpm_limit BIGINT, rpm_limit BIGINT"
_RESETS = "budget_duration TEXT, budget_reset_at TIMESTAMP(3)"
_SPEND = "spend DOUBLE PRECISION NOT NULL DEFAULT 0"
_LIST = "TEXT[] DEFAULT ARRAY[]::TEXT[]"
_MADE = "created_at TIMESTAMP(3) DEFAULT now(), updated_at TIMESTAMP(3) DEFAULT now()"
_BY = "created_by TEXT, updated_by TEXT"

COLUMNS: dict[str, str] = {
    "BudgetTable": f"budget_id TEXT PRIMARY KEY, max_budget DOUBLE PRECISION, soft_budget DOUBLE PRECISION, {_LIMITS},"
    f" tpd_limit BIGINT, model_max_budget JSONB, {_RESETS}, allowed_models {_LIST},"
    f" temp_budget_increase DOUBLE PRECISION, temp_budget_expiry TIMESTAMP(3), {_MADE}, {_BY}",
    "OrganizationTable": "organization_id TEXT PRIMARY KEY, organization_alias TEXT, budget_id TEXT,"
    f" metadata JSONB DEFAULT '{{}}', models TEXT[], {_SPEND}, model_spend JSONB DEFAULT '{{}}',"
    f" object_permission_id TEXT, {_MADE}, {_BY}",
    "OrganizationMembership": "user_id TEXT, organization_id TEXT, user_role TEXT, spend DOUBLE PRECISION DEFAULT 0,"
    f" budget_id TEXT, {_MADE}, PRIMARY KEY (user_id, organization_id)",
    "ModelTable": f"id SERIAL PRIMARY KEY, aliases JSONB, {_MADE}, {_BY}",
    "TeamTable": "team_id TEXT PRIMARY KEY, team_alias TEXT, organization_id TEXT, object_permission_id TEXT,"
    f" admins {_LIST}, members {_LIST}, members_with_roles JSONB DEFAULT '{{}}', metadata JSONB DEFAULT '{{}}',"
    f" max_budget DOUBLE PRECISION, soft_budget DOUBLE PRECISION, {_SPEND}, models TEXT[], {_LIMITS}, {_RESETS},"
    " blocked BOOLEAN NOT NULL DEFAULT false, model_spend JSONB DEFAULT '{}', model_max_budget JSONB DEFAULT '{}',"
    f" router_settings JSONB DEFAULT '{{}}', team_member_permissions {_LIST}, access_group_ids {_LIST},"
    f" policies {_LIST}, default_team_member_models {_LIST}, budget_limits JSONB, model_id INTEGER,"
    f" allow_team_guardrail_config BOOLEAN NOT NULL DEFAULT false, {_MADE}",
    "TeamMembership": f"user_id TEXT, team_id TEXT, {_SPEND}, total_spend DOUBLE PRECISION NOT NULL DEFAULT 0,"
    " budget_id TEXT, PRIMARY KEY (user_id, team_id)",
    "UserTable": "user_id TEXT PRIMARY KEY, user_alias TEXT, team_id TEXT, sso_user_id TEXT, organization_id TEXT,"
    f" object_permission_id TEXT, password TEXT, teams {_LIST}, user_role TEXT, max_budget DOUBLE PRECISION, {_SPEND},"
    f" user_email TEXT, models TEXT[], metadata JSONB DEFAULT '{{}}', {_LIMITS}, {_RESETS},"
    f" allowed_cache_controls {_LIST}, policies {_LIST}, model_spend JSONB DEFAULT '{{}}',"
    f" model_max_budget JSONB DEFAULT '{{}}', {_MADE}",
    "EndUserTable": f"user_id TEXT PRIMARY KEY, alias TEXT, {_SPEND}, allowed_model_region TEXT, default_model TEXT,"
    " budget_id TEXT, object_permission_id TEXT, blocked BOOLEAN NOT NULL DEFAULT false",
    "TagTable": f"tag_name TEXT PRIMARY KEY, description TEXT, models TEXT[], model_info JSONB, {_SPEND},"
    f" budget_id TEXT, {_MADE}, created_by TEXT",
    "VerificationToken": "token TEXT PRIMARY KEY, key_name TEXT, key_alias TEXT,"
    f" soft_budget_cooldown BOOLEAN NOT NULL DEFAULT false, {_SPEND}, total_spend DOUBLE PRECISION,"
    " expires TIMESTAMP(3), models TEXT[], aliases JSONB DEFAULT '{}', config JSONB DEFAULT '{}',"
    " router_settings JSONB DEFAULT '{}', user_id TEXT, team_id TEXT, agent_id TEXT, project_id TEXT,"
    f" permissions JSONB DEFAULT '{{}}', metadata JSONB DEFAULT '{{}}', blocked BOOLEAN, {_LIMITS}, tpd_limit BIGINT,"
    f" max_budget DOUBLE PRECISION, {_RESETS}, allowed_cache_controls {_LIST}, allowed_routes {_LIST}, key_type TEXT,"
    f" policies {_LIST}, access_group_ids {_LIST}, model_spend JSONB DEFAULT '{{}}',"
    " model_max_budget JSONB DEFAULT '{}', budget_id TEXT, organization_id TEXT, object_permission_id TEXT,"
    " last_active TIMESTAMP(3), rotation_count INTEGER DEFAULT 0, auto_rotate BOOLEAN DEFAULT false,"
    " rotation_interval TEXT, last_rotation_at TIMESTAMP(3), key_rotation_at TIMESTAMP(3), budget_limits JSONB,"
    f" budget_fallbacks JSONB, {_MADE}, {_BY}",
    "DeprecatedVerificationToken": "id TEXT PRIMARY KEY, token TEXT UNIQUE, active_token_id TEXT,"
    " revoke_at TIMESTAMP(3), created_at TIMESTAMP(3) DEFAULT now()",
    "BudgetWindowSpend": f"entity_type TEXT, entity_id TEXT, window_duration TEXT, window_start TIMESTAMP(3), {_SPEND}",
    "ProjectTable": "project_id TEXT PRIMARY KEY, team_id TEXT, budget_id TEXT, models TEXT[],"
    f" {_SPEND}, blocked BOOLEAN NOT NULL DEFAULT false",
    "ProxyModelTable": "model_id TEXT PRIMARY KEY, model_name TEXT, litellm_params JSONB, model_info JSONB",
    "SpendLogs": f"request_id TEXT PRIMARY KEY, api_key TEXT, {_SPEND}, model TEXT",
    "DailyUserSpend": f"id TEXT PRIMARY KEY, user_id TEXT, date TEXT, {_SPEND}",
    "NewerThanWeKnow": "id TEXT PRIMARY KEY",
}

NOW = datetime.now(UTC).replace(tzinfo=None)
LONG_AGO = datetime(2025, 3, 1, 9, 30)


def in_days(days: float) -> datetime:
    return NOW + timedelta(days=days)


def next_month() -> datetime:
    first = NOW.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first + timedelta(days=32)).replace(day=1)


def next_midnight() -> datetime:
    return NOW.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)


def hashed(key: str) -> str:
    return sha256(key.encode()).hexdigest()


class Company:
    """Inserts rows; columns not named keep the table's defaults."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._rows: list[tuple[str, dict[str, Any]]] = []

    def add(self, table: str, **columns: Any) -> None:
        self._rows.append((table, columns))

    def key(self, key: str, **columns: Any) -> str:
        self.add("VerificationToken", token=hashed(key), key_name=f"sk-...{key[-4:]}", **columns)
        return hashed(key)

    async def execute(self, *statements: str) -> None:
        import asyncpg

        connection = await asyncpg.connect(self.url)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def write(self) -> str:
        import asyncpg

        connection = await asyncpg.connect(self.url)
        try:
            for table, columns in COLUMNS.items():
                await connection.execute(f'CREATE TABLE IF NOT EXISTS "LiteLLM_{table}" ({columns})')
            for table, values in self._rows:
                names = ", ".join(f'"{name}"' for name in values)
                places = ", ".join(f"${i}" for i in range(1, len(values) + 1))
                given = [json.dumps(v) if isinstance(v, dict) or _is_json(v) else v for v in values.values()]
                await connection.execute(f'INSERT INTO "LiteLLM_{table}" ({names}) VALUES ({places})', *given)
        finally:
            await connection.close()
        self._rows.clear()
        return self.url


def _is_json(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)
