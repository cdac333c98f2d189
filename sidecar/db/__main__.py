"""`python -m sidecar.db`: migrate the database whose URL comes in on stdin, never as an argument: it holds a password.

`Database.migrate(in_child=True)` runs it, so that a process that serves for weeks does not keep Alembic in memory
(12 MB, measured)."""

from __future__ import annotations

import asyncio
import sys

from sidecar.db.database import migrate

if __name__ == "__main__":
    asyncio.run(migrate(sys.stdin.read()))
