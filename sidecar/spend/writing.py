"""What writing to the ledger and reading from it have in common: a database that fails is `UnavailableError`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sidecar.errors import UnavailableError


@asynccontextmanager
async def translated() -> AsyncIterator[None]:
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        raise unavailable() from error


def unavailable() -> UnavailableError:
    return UnavailableError(
        "The gateway's ledger does not answer. Try again shortly.", code="ledger_unavailable", retry_after_s=1.0
    )
