"""How a PostgreSQL URL becomes a connection: the driver reads it itself, as libpq would, but for what it does not know.

Neighbour: `database.py`. Rule: the URL, with its password, never becomes part of the engine's URL or of a message.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

_FOR_LIBPQ_ONLY = frozenset(
    {"channel_binding", "gssencmode", "keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval",
     "tcp_user_timeout"}
)  # fmt: skip
"""Taken by libpq, not known to asyncpg, which would send them to the server as settings."""

_SESSION = "; ".join(
    f"SELECT set_config('{name}', '{value}', false) WHERE current_setting('{name}') = '{default}'"
    for name, default, value in (
        ("idle_in_transaction_session_timeout", "0", "60s"),
        ("tcp_keepalives_idle", "7200", "60"),  # Linux' own
        ("tcp_keepalives_interval", "75", "10"),
        ("tcp_keepalives_count", "9", "6"),
    )
)
"""Whoever is gone without a word – its node, its network – keeps locks for a minute and its session for two, instead of
hours. What the operator set stays. https://www.postgresql.org/docs/current/runtime-config-client.html"""
RETRY_S = 0.05
_STATEMENT_CACHES = frozenset({"statement_cache_size", "prepared_statement_cache_size"})


def connect_arguments(url: str, *, timeout_s: float) -> dict[str, Any]:
    """SQLAlchemy's `connect_args` for `postgresql://user:password@host:port/name?…`. Options: libpq's `sslmode`,
    `sslrootcert`, `application_name`, `connect_timeout`, `options`, …; `statement_cache_size=0` (or `pgbouncer=true`)
    where PgBouncer pools transactions: then no statement stays prepared. Raises `ValueError`."""
    parts = urlsplit(url)
    kept: list[tuple[str, str]] = []
    is_bouncer = False
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in _STATEMENT_CACHES:
            is_bouncer = is_bouncer or _number(name, value) == 0
        elif name == "pgbouncer":
            is_bouncer = is_bouncer or value.lower() == "true"
        elif name == "connect_timeout":
            timeout_s = _number(name, value) or timeout_s
        elif name not in _FOR_LIBPQ_ONLY:
            kept.append((name, value))
    dsn = urlunsplit(parts._replace(query=urlencode(kept)))
    options: dict[str, Any] = {"timeout": timeout_s, "command_timeout": 60.0}
    if is_bouncer:
        options["statement_cache_size"] = 0

    async def connect(*_: Any, **__: Any) -> Any:
        """A server that is full or starting is asked again until the time is up."""
        import asyncpg

        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    connection = await asyncpg.connect(dsn, **options)
                    break
                except (asyncpg.TooManyConnectionsError, asyncpg.CannotConnectNowError):
                    await asyncio.sleep(RETRY_S)
            if not is_bouncer:
                try:
                    await connection.execute(_SESSION)
                except BaseException:
                    connection.terminate()
                    raise
            return connection

    arguments: dict[str, Any] = {"async_creator_fn": connect}
    if is_bouncer:
        arguments["prepared_statement_cache_size"] = 0
        arguments["prepared_statement_name_func"] = lambda: f"sidecar_{uuid.uuid4().hex}"
    return arguments


def is_pooled(url: str) -> bool:
    """Whether the URL says that a pooler hands out connections for a transaction at a time."""
    return "prepared_statement_cache_size" in connect_arguments(url, timeout_s=1.0)


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"the database URL's {name!r} has to be a number") from None
