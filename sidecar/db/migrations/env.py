"""Alembic's entry: runs the steps on the connection `database.py` holds under its lock, in its transaction."""

from __future__ import annotations

from alembic import context

from sidecar.db.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
