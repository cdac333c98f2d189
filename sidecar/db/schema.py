"""The tables, once for SQLite and PostgreSQL. `migrations/` makes them, `identity.table` and `spend.ledger` use them.

Rules: money is integer nano-dollars (`*_nano`), instants are integer microseconds since 1970 (`*_at`, `at`), lists and
objects are JSON text. A change here is a new file in `migrations/versions` and a new `HEAD`; a test compares the two.
"""

from __future__ import annotations

import sqlalchemy as sa

HEAD = "0001"
"""The newest migration: what `Database.schema_is_current` compares with."""

metadata = sa.MetaData()

keys = sa.Table(
    "keys",
    metadata,
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
    sa.Index("ix_keys_created_at", "created_at", "key_hash"),
    sa.Index("ix_keys_user_id", "user_id"),
    sa.Index("ix_keys_team_id", "team_id"),
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

# Bytewise order, so that the time order of UUIDv7 text holds on every server and partition bounds mean what they say.
ordered_text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

spend = sa.Table(
    "spend",
    metadata,
    sa.Column("exchange_id", ordered_text, primary_key=True),
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
    *(sa.Column(f"{name}_tokens", sa.BigInteger) for name in TOKEN_CLASSES),
    sa.Column("http_status", sa.Integer, nullable=False),
    sa.Column("is_stream", sa.Boolean, nullable=False),
    sa.Column("duration_ms", sa.BigInteger, nullable=False),
    sa.Column("first_byte_ms", sa.BigInteger),
    sa.Column("dropped", sa.Text, nullable=False),
    sa.Column("budget_keys", sa.Text, nullable=False),
    sa.Index("ix_spend_key_hash_at", "key_hash", "at"),
    sa.Index("ix_spend_at", "at"),
    sa.Index("ix_spend_request_id", "request_id"),
    postgresql_partition_by="RANGE (exchange_id)",
)
