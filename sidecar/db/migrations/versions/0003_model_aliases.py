"""Other names of models, for one key or one team."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("keys", "principals"):
        op.add_column(table, sa.Column("model_aliases", sa.Text, nullable=False, server_default="{}"))


def downgrade() -> None:
    for table in ("keys", "principals"):
        op.drop_column(table, "model_aliases")
