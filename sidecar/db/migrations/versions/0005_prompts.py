"""What was asked and answered, for those who turn it on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    op.create_table(
        "prompts",
        sa.Column("exchange_id", sa.Text(collation="C" if is_postgresql else None), primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("key_hash", sa.Text, nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("request_cut", sa.Boolean, nullable=False),
        sa.Column("answer_cut", sa.Boolean, nullable=False),
    )
    op.create_index("ix_prompts_at", "prompts", ["at"])


def downgrade() -> None:
    op.drop_table("prompts")
