"""The other gateway's PostgreSQL tables, read in one snapshot: whatever is written there meanwhile, the sums agree.

Rule: it is only read; the transaction is READ ONLY.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlencode

from sidecar.db import Database
from sidecar.importing.database.book import Book

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

Row = Mapping[str, Any]
PREFIX = "LiteLLM_"
_PRISMA = frozenset(
    {"connection_limit", "pool_timeout", "socket_timeout", "schema", "sslidentity", "sslpassword", "sslaccept",
     "sslcert", "single_use_connections"}
)  # fmt: skip
"""Prisma's own: https://www.prisma.io/docs/orm/overview/databases/postgresql#arguments"""


class Source:
    """`tables`: name → how many rows. Raises `ValueError` for a URL that is none, `UnavailableError` if it does not
    answer."""

    def __init__(self, connection: AsyncConnection, tables: Mapping[str, int], schema: str) -> None:
        self._connection = connection
        self.tables = tables
        self._schema = schema

    async def rows(self, table: str, order: str) -> AsyncIterator[Row]:
        """All rows in the order of a column, one at a time; none if there is no such table."""
        import sqlalchemy as sa

        if table not in self.tables:
            return
        query = sa.text(f'SELECT * FROM {_quoted(self._schema)}.{_quoted(table)} ORDER BY "{order}"')  # noqa: S608
        async with self._connection.stream(query) as found:
            async for row in found.mappings():
                yield dict(row)


@asynccontextmanager
async def open_source(url: str) -> AsyncIterator[Source]:
    import sqlalchemy as sa
    from sqlalchemy.exc import SQLAlchemyError

    from sidecar.errors import UnavailableError

    if not url.startswith(("postgresql://", "postgres://")):
        raise ValueError("--database-url has to begin with postgresql://, for LiteLLM knows no other database")
    url, schema = _without_prisma(url)
    database = Database(url)
    try:
        async with database.engine.connect() as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            names = await connection.execute(
                sa.text("SELECT table_name FROM information_schema.tables WHERE table_schema = :schema ORDER BY 1"),
                {"schema": schema},
            )
            tables: dict[str, int] = {}
            for name in [str(row[0]) for row in names]:
                if name.startswith(PREFIX):
                    query = f"SELECT count(*) FROM {_quoted(schema)}.{_quoted(name)}"  # noqa: S608
                    tables[name] = int((await connection.execute(sa.text(query))).scalar_one())
            yield Source(connection, tables, schema)
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        raise UnavailableError(
            f"LiteLLM's database does not answer ({type(error).__name__}); check --database-url.",
            code="database_unavailable",
        ) from error
    finally:
        await database.aclose()


def _without_prisma(url: str) -> tuple[str, str]:
    base, question, query = url.partition("?")
    given = parse_qsl(query, keep_blank_values=True)
    schema = dict(given).get("schema", "public")
    kept = [(name, value) for name, value in given if name not in _PRISMA]
    return base + question * bool(kept) + urlencode(kept, quote_via=quote), schema


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


NOT_READ: Mapping[str, str] = {
    "SpendLogs": "single requests are not copied, totals are; keep the table for reports of the past",
    "ErrorLogs": "single requests are not copied",
    "AuditLog": "keep the table; here an audit log of our own begins with the import",
    "ProxyModelTable": "their credentials are encrypted with LiteLLM's salt; make the models with POST /model/new",
    "CredentialsTable": "encrypted with LiteLLM's salt; write them into the variables sidecar.yaml names",
    "Config": "settings made in the admin page; write what you need into config.yaml and run the import again",
    "DeletedVerificationToken": "deleted keys stay deleted",
    "DeletedTeamTable": "deleted teams stay deleted",
    "JWTKeyMapping": "tokens name users and teams here (auth.issuers), not keys",
    "ProjectTable": "there are no projects; use a team for each",
    "ObjectPermissionTable": "there are no MCP servers, agents and vector stores to permit",
    "ModelAccessGroupBudgetTable": "an access group has no budget",
    "AccessGroupTable": "name models in models[].access_groups; the rest has no equivalent",
    "InvitationLink": "there is no admin page to be invited to",
    "UserNotifications": "there is no admin page",
    "MCPServerTable": "there are no MCP servers",
    "ManagedFileTable": "only chat completions are served",
    "ManagedObjectTable": "only chat completions are served",
    "GuardrailsTable": "content is passed unchecked; do not rely on it",
    "PolicyTable": "there are no policies",
    "PromptTable": "there are no stored prompts",
    "AgentsTable": "there are no agents",
    "CronJob": "state of its own jobs; nothing to take",
    "ProxyWorkerHeartbeat": "state of its own workers; nothing to take",
    "HealthCheckTable": "state of its own checks; nothing to take",
}


def report_not_read(source: Source, book: Book, read: frozenset[str]) -> None:
    for table, rows in source.tables.items():
        if table in read or not rows:
            continue
        name = table.removeprefix(PREFIX)
        why = NOT_READ.get(name, "this import does not know the table; look up what it did there")
        if name.startswith("Daily") and name.endswith("Spend"):
            why = "daily figures are not copied, totals are; keep the table for reports of the past"
        book.add(table, "", "no equivalent", text=why, rows=rows)
