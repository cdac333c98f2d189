"""Databases of this folder have the schema already."""

from tests.servers.migrated import bare_postgres_url, database_url, migrated_name, postgres_url

__all__ = ["bare_postgres_url", "database_url", "migrated_name", "postgres_url"]
