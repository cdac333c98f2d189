"""One database, SQLite or PostgreSQL: `Database` (an engine made when first used) and `migrate`."""

from sidecar.db.database import Database, migrate

__all__ = ["Database", "migrate"]
