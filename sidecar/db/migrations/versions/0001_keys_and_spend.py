"""The first schema: `keys`, and `spend` – on PostgreSQL range-partitioned by `exchange_id`, with a default one."""

from __future__ import annotations

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


def upgrade() -> None:
    op.create_table(
        "keys",
        sa.Column("key_hash", sa.Text, primary_key=True),
        sa.Column("key_name", sa.Text, nullable=False),
        sa.Column("key_alias", sa.Text, unique=True),
        sa.Column("models", sa.Text, nullable=False),
        sa.Column("max_budget_nano", sa.BigInteger),
        sa.Column("budget_duration", sa.Text),
        sa.Column("budget_anchor_at", sa.BigInteger, nullable=False),
        sa.Column("rpm_limit", sa.BigInteger),
        sa.Column("tpm_limit", sa.BigInteger),
        sa.Column("max_parallel_requests", sa.BigInteger),
        sa.Column("user_id", sa.Text),
        sa.Column("team_id", sa.Text),
        sa.Column("organization_id", sa.Text),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("blocked", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_keys_created_at", "keys", ["created_at", "key_hash"])
    op.create_index("ix_keys_user_id", "keys", ["user_id"])
    op.create_index("ix_keys_team_id", "keys", ["team_id"])
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    op.create_table(
        "spend",
        sa.Column("exchange_id", sa.Text(collation="C" if is_postgresql else None), primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("key_hash", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("cost_nano", sa.BigInteger, nullable=False),
        sa.Column("model_group", sa.Text, nullable=False),
        sa.Column("deployment_id", sa.Text, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("key_alias", sa.Text),
        sa.Column("user_id", sa.Text),
        sa.Column("team_id", sa.Text),
        sa.Column("organization_id", sa.Text),
        sa.Column("end_user_id", sa.Text),
        sa.Column("request_id", sa.Text),
        *(sa.Column(f"{name}_tokens", sa.BigInteger) for name in _TOKENS),
        sa.Column("http_status", sa.Integer, nullable=False),
        sa.Column("is_stream", sa.Boolean, nullable=False),
        sa.Column("duration_ms", sa.BigInteger, nullable=False),
        sa.Column("first_byte_ms", sa.BigInteger),
        sa.Column("dropped", sa.Text, nullable=False),
        sa.Column("budget_keys", sa.Text, nullable=False),
        postgresql_partition_by="RANGE (exchange_id)",
    )
    op.create_index("ix_spend_key_hash_at", "spend", ["key_hash", "at"])
    op.create_index("ix_spend_at", "spend", ["at"])
    op.create_index("ix_spend_request_id", "spend", ["request_id"])
    if is_postgresql:
        op.execute("CREATE TABLE spend_default PARTITION OF spend DEFAULT")


def downgrade() -> None:
    op.drop_table("spend")
    op.drop_table("keys")
