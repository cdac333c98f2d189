"""The first schema: who calls (`keys`, `principals`), what changed, what jobs remember, and `spend` with its
daily totals; `prompts` for those who keep them. On PostgreSQL both are range-partitioned by `exchange_id`, with a
default partition."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TOKENS = (
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

_SUMS = ("cost_nano", "estimated_nano", "unknown_nano", "attempts", "failed", "unpriced")


def _policy() -> list[sa.Column[Any]]:
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
        sa.Column("budget_id", sa.Text),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("model_aliases", sa.Text, nullable=False),
        sa.Column("blocked", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
    ]


def _who() -> None:
    """Keys and everybody above them, what was changed and by whom."""
    op.create_table(
        "keys",
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
    )
    op.create_index("ix_keys_created_at", "keys", ["created_at", "key_hash"])
    for name in ("key_id", "user_id", "team_id", "organization_id", "budget_id", "rotates_at"):
        op.create_index(f"ix_keys_{name}", "keys", [name])
    op.create_table(
        "principals",
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("principal_id", sa.Text, primary_key=True),
        sa.Column("alias", sa.Text),
        sa.Column("email", sa.Text),
        sa.Column("role", sa.Text),
        sa.Column("organization_id", sa.Text),
        sa.Column("team_id", sa.Text),
        sa.Column("user_id", sa.Text),
        *_policy(),
    )
    op.create_index("ix_principals_created_at", "principals", ["kind", "created_at", "principal_id"])
    for name in ("organization_id", "team_id", "user_id", "budget_id"):
        op.create_index(f"ix_principals_{name}", "principals", [name])
    op.create_table(
        "models",
        sa.Column("model_id", sa.Text, primary_key=True),
        sa.Column("model_name", sa.Text, nullable=False),
        sa.Column("settings", sa.Text, nullable=False),
        sa.Column("credential", sa.Text),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "changes",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("subject_id", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_changes_at", "changes", ["at"])
    op.create_table(
        "audit",
        sa.Column("audit_id", sa.Text, primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("subject_id", sa.Text, nullable=False),
        sa.Column("before", sa.Text),
        sa.Column("after", sa.Text),
    )
    op.create_index("ix_audit_at", "audit", ["at", "audit_id"])
    op.create_index("ix_audit_subject", "audit", ["kind", "subject_id"])


def _jobs() -> None:
    """When each is due next, who leads, which soft budgets were told."""
    op.create_table(
        "jobs",
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
    op.create_table(
        "leases",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("since_at", sa.BigInteger, nullable=False),
        sa.Column("until_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "alerts",
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("subject_id", sa.Text, primary_key=True),
        sa.Column("window_start_at", sa.BigInteger, nullable=False),
        sa.Column("told_at", sa.BigInteger, nullable=False),
    )


def upgrade() -> None:
    _who()
    _jobs()
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    text = sa.Text(collation="C" if is_postgresql else None)
    op.create_table(
        "spend",
        sa.Column("exchange_id", text, primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("key_hash", text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("cost_nano", sa.BigInteger, nullable=False),
        sa.Column("model_group", sa.Text, nullable=False),
        sa.Column("deployment_id", sa.Text, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("key_alias", sa.Text),
        sa.Column("user_id", text),
        sa.Column("team_id", text),
        sa.Column("organization_id", sa.Text),
        sa.Column("end_user_id", text),
        sa.Column("request_id", text),
        *(sa.Column(f"{name}_tokens", sa.BigInteger) for name in _TOKENS),
        sa.Column("http_status", sa.Integer, nullable=False),
        sa.Column("is_stream", sa.Boolean, nullable=False),
        sa.Column("duration_ms", sa.BigInteger, nullable=False),
        sa.Column("first_byte_ms", sa.BigInteger),
        sa.Column("dropped", sa.Text, nullable=False),
        sa.Column("budget_keys", sa.Text, nullable=False),
        sa.Column("tags", sa.Text, nullable=False),
        postgresql_partition_by="RANGE (exchange_id)",
    )
    op.create_index("ix_spend_key_hash_at", "spend", ["key_hash", "at"])
    op.create_index("ix_spend_at", "spend", ["at"])
    op.create_index("ix_spend_request_id", "spend", ["request_id"])
    for name in ("user_id", "team_id", "end_user_id"):
        where = sa.text(f"{name} IS NOT NULL")
        op.create_index(f"ix_spend_{name}_at", "spend", [name, "at"], postgresql_where=where, sqlite_where=where)
    op.create_table(
        "spend_daily",
        sa.Column("dimension", text, primary_key=True),
        sa.Column("day_at", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("name", text, primary_key=True),
        sa.Column("provider", text, primary_key=True),
        sa.Column("model", text, primary_key=True),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _SUMS),
        *(sa.Column(f"{name}_tokens", sa.BigInteger, nullable=False) for name in _TOKENS),
    )
    op.create_table(
        "spend_daily_whole",
        sa.Column("dimension", text, primary_key=True),
        sa.Column("day_at", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("name", text, primary_key=True),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _SUMS),
        *(sa.Column(f"{name}_tokens", sa.BigInteger, nullable=False) for name in _TOKENS),
    )
    op.create_table(
        "spend_state",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "prompts",
        sa.Column("exchange_id", text, primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("key_hash", sa.Text, nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("request_cut", sa.Boolean, nullable=False),
        sa.Column("answer_cut", sa.Boolean, nullable=False),
        postgresql_partition_by="RANGE (exchange_id)",
    )
    op.create_index("ix_prompts_at", "prompts", ["at"])
    if is_postgresql:
        for table in ("spend", "prompts"):
            op.execute(f"CREATE TABLE {table}_default PARTITION OF {table} DEFAULT")
        for table in ("spend_daily", "spend_daily_whole"):
            op.execute(f"ALTER TABLE {table} SET (fillfactor = 70)")  # their rows are updated all day


def downgrade() -> None:
    for name in (
        "prompts",
        "spend_state",
        "spend_daily_whole",
        "spend_daily",
        "spend",
        "alerts",
        "leases",
        "jobs",
        "audit",
        "changes",
    ):
        op.drop_table(name)
    for name in ("models", "principals", "keys"):
        op.drop_table(name)
