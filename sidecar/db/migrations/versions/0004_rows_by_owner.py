"""Rows of one user, team or end user are found without reading everybody's."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_OWNERS = ("user_id", "team_id", "end_user_id")


def upgrade() -> None:
    for name in _OWNERS:
        where = sa.text(f"{name} IS NOT NULL")
        op.create_index(f"ix_spend_{name}_at", "spend", [name, "at"], postgresql_where=where, sqlite_where=where)


def downgrade() -> None:
    for name in _OWNERS:
        op.drop_index(f"ix_spend_{name}_at", "spend")
