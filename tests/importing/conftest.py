"""Databases here have our schema already; a test that wants an empty one asks for `bare_postgres_url`."""

from tests.servers.migrated import bare_postgres_url, migrated_name, postgres_url

__all__ = ["bare_postgres_url", "migrated_name", "postgres_url"]
