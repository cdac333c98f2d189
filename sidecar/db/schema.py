"""The tables, once for SQLite and PostgreSQL. `migrations/` makes them; `identity` and `spend.ledger` use them.

Rules: money is integer nano-dollars (`*_nano`), instants are integer microseconds since 1970 (`*_at`, `at`), lists and
objects are JSON text. A change here is a new file in `migrations/versions` and a new `HEAD`; a test compares the two.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

HEAD = "0001"
"""The newest migration: what `Database.schema_is_current` compares with."""

metadata = sa.MetaData()


def _policy() -> list[sa.Column[Any]]:
    """What a key and every principal may carry; the fields of `identity.row.Policy`."""
    return [
        sa.Column("models", sa.Text, nullable=False),
        sa.Column("max_budget_nano", sa.BigInteger),
        sa.Column("budget_duration", sa.Text),
        sa.Column("budget_anchor_at", sa.BigInteger, nullable=False),
        sa.Column("budget_windows", sa.Text, nullable=False),
        sa.Column("soft_budget_nano", sa.BigInteger),
        sa.Column("temp_budget_increase_nano", sa.BigInteger),
        sa.Column("temp_budget_expiry_at", sa.BigInteger),
        sa.Column("rpm_limit", sa.BigInteger),
        sa.Column("tpm_limit", sa.BigInteger),
        sa.Column("max_parallel_requests", sa.BigInteger),
        sa.Column("model_limits", sa.Text, nullable=False),
        sa.Column("model_aliases", sa.Text, nullable=False),
        sa.Column("budget_id", sa.Text),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("blocked", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
    ]


keys = sa.Table(
    "keys",
    metadata,
    sa.Column("key_hash", sa.Text, primary_key=True),
    sa.Column("key_id", sa.Text),
    sa.Column("key_name", sa.Text, nullable=False),
    sa.Column("key_alias", sa.Text, unique=True),
    sa.Column("user_id", sa.Text),
    sa.Column("team_id", sa.Text),
    sa.Column("organization_id", sa.Text),
    sa.Column("tags", sa.Text, nullable=False),
    sa.Column("expires_at", sa.BigInteger),
    sa.Column("successor_hash", sa.Text),
    sa.Column("rotation_interval", sa.Text),
    sa.Column("rotates_at", sa.BigInteger),
    sa.Column("last_used_at", sa.BigInteger),
    *_policy(),
    sa.Index("ix_keys_created_at", "created_at", "key_hash"),
    sa.Index("ix_keys_key_id", "key_id"),
    sa.Index("ix_keys_user_id", "user_id"),
    sa.Index("ix_keys_team_id", "team_id"),
    sa.Index("ix_keys_organization_id", "organization_id"),
    sa.Index("ix_keys_budget_id", "budget_id"),
    sa.Index("ix_keys_rotates_at", "rotates_at"),
)

principals = sa.Table(
    "principals",
    metadata,
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("principal_id", sa.Text, primary_key=True),
    sa.Column("alias", sa.Text),
    sa.Column("email", sa.Text),
    sa.Column("role", sa.Text),
    sa.Column("organization_id", sa.Text),
    sa.Column("team_id", sa.Text),
    sa.Column("user_id", sa.Text),
    *_policy(),
    sa.Index("ix_principals_created_at", "kind", "created_at", "principal_id"),
    sa.Index("ix_principals_organization_id", "organization_id"),
    sa.Index("ix_principals_team_id", "team_id"),
    sa.Index("ix_principals_user_id", "user_id"),
    sa.Index("ix_principals_budget_id", "budget_id"),
)
"""Organizations, teams, members (a user in a team), users, end users, tags and budgets (shared by `budget_id`)."""

models = sa.Table(
    "models",
    metadata,
    sa.Column("model_id", sa.Text, primary_key=True),
    sa.Column("model_name", sa.Text, nullable=False),
    sa.Column("settings", sa.Text, nullable=False),
    sa.Column("credential", sa.Text),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
)
"""Deployments made at run time: `settings` as in sidecar.yaml, without the credential, which is stored encrypted."""

changes = sa.Table(
    "changes",
    metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("subject_id", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Index("ix_changes_at", "at"),
    sqlite_autoincrement=True,
)
"""What was written, in the order it became visible: processes read on from the last they saw and forget it."""

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("audit_id", sa.Text, primary_key=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("subject_id", sa.Text, nullable=False),
    sa.Column("before", sa.Text),
    sa.Column("after", sa.Text),
    sa.Index("ix_audit_at", "at", "audit_id"),
    sa.Index("ix_audit_subject", "kind", "subject_id"),
)

TOKEN_CLASSES = (
    "input",
    "cached_input",
    "cache_write_5m",
    "cache_write_1h",
    "output",
    "reasoning",
    "audio_input",
    "audio_output",
    "image_input",
    "image_output",
)
"""The fields of `types.Usage`; the column of each is `<class>_tokens`."""

# Bytewise order, so that the time order of UUIDv7 text holds on every server and partition bounds mean what they say;
# indexes in the order of a language cost a flusher much, too.
ordered_text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def _rows_of(name: str) -> sa.Index:
    where = sa.text(f"{name} IS NOT NULL")
    return sa.Index(f"ix_spend_{name}_at", name, "at", postgresql_where=where, sqlite_where=where)


spend = sa.Table(
    "spend",
    metadata,
    sa.Column("exchange_id", ordered_text, primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("key_hash", ordered_text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("cost_nano", sa.BigInteger, nullable=False),
    sa.Column("model_group", sa.Text, nullable=False),
    sa.Column("deployment_id", sa.Text, nullable=False),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("key_alias", sa.Text),
    sa.Column("user_id", ordered_text),
    sa.Column("team_id", ordered_text),
    sa.Column("organization_id", sa.Text),
    sa.Column("end_user_id", ordered_text),
    sa.Column("request_id", ordered_text),
    *(sa.Column(f"{name}_tokens", sa.BigInteger) for name in TOKEN_CLASSES),
    sa.Column("http_status", sa.Integer, nullable=False),
    sa.Column("is_stream", sa.Boolean, nullable=False),
    sa.Column("duration_ms", sa.BigInteger, nullable=False),
    sa.Column("first_byte_ms", sa.BigInteger),
    sa.Column("dropped", sa.Text, nullable=False),
    sa.Column("budget_keys", sa.Text, nullable=False),
    sa.Column("tags", sa.Text, nullable=False),
    sa.Index("ix_spend_key_hash_at", "key_hash", "at"),
    sa.Index("ix_spend_at", "at"),
    sa.Index("ix_spend_request_id", "request_id"),
    *(_rows_of(name) for name in ("user_id", "team_id", "end_user_id")),
    postgresql_partition_by="RANGE (exchange_id)",
)

TOTALS = (
    "cost_nano",
    "estimated_nano",
    "unknown_nano",
    "attempts",
    "failed",
    "unpriced",
    *(f"{name}_tokens" for name in TOKEN_CLASSES),
)
"""What totals add up. `attempts`, `failed` and `unpriced` count rows that are no corrections."""

spend_daily = sa.Table(
    "spend_daily",
    metadata,
    sa.Column("dimension", ordered_text, primary_key=True),
    sa.Column("day_at", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("name", ordered_text, primary_key=True),
    sa.Column("provider", ordered_text, primary_key=True),
    sa.Column("model", ordered_text, primary_key=True),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in TOTALS),
)
"""Rows of `spend` added up by UTC day, for each dimension of `spend.rollups` and each model; kept when rows go."""

spend_daily_whole = sa.Table(
    "spend_daily_whole",
    metadata,
    sa.Column("dimension", ordered_text, primary_key=True),
    sa.Column("day_at", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("name", ordered_text, primary_key=True),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in TOTALS),
)
"""The same of all providers and models together, for the dimensions that may have many names (`rollups.WHOLE`)."""

prompts = sa.Table(
    "prompts",
    metadata,
    sa.Column("exchange_id", ordered_text, primary_key=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("key_hash", sa.Text, nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("answer", sa.Text, nullable=False),
    sa.Column("request_cut", sa.Boolean, nullable=False),
    sa.Column("answer_cut", sa.Boolean, nullable=False),
    sa.Index("ix_prompts_at", "at"),
    postgresql_partition_by="RANGE (exchange_id)",
)
"""What was asked and answered, where `spend.store_prompts` is on; never in `spend`."""

spend_state = sa.Table(
    "spend_state",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)
"""`rows_since`: rows of earlier instants may be gone; their days are whole in `spend_daily` only."""

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("next_at", sa.BigInteger, nullable=False),
    sa.Column("running_by", sa.Text),
    sa.Column("started_at", sa.BigInteger),
    sa.Column("ended_at", sa.BigInteger),
    sa.Column("ok_at", sa.BigInteger),
    sa.Column("error", sa.Text),
    sa.Column("runs", sa.BigInteger, nullable=False),
    sa.Column("failures", sa.BigInteger, nullable=False),
)
"""Background jobs: when each is due next and how its last run ended (`ok_at`: the last good one)."""

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("since_at", sa.BigInteger, nullable=False),
    sa.Column("until_at", sa.BigInteger, nullable=False),
)
"""Which process leads, and until when unless it says so again."""

alerts = sa.Table(
    "alerts",
    metadata,
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("subject_id", sa.Text, primary_key=True),
    sa.Column("window_start_at", sa.BigInteger, nullable=False),
    sa.Column("told_at", sa.BigInteger, nullable=False),
)
"""Whose soft budget was told to be passed, and in which window."""
