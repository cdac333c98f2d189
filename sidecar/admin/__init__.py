"""The management API: `/key/*` and `/spend/*` as Starlette routes, for the master key only."""

from __future__ import annotations

from collections.abc import Callable

from starlette.routing import Route

from sidecar.admin.endpoint import AdminEndpoint, Handler
from sidecar.admin.keys import KeyAdmin, Seeder
from sidecar.admin.spend import SpendAdmin
from sidecar.identity.keys import Keys
from sidecar.identity.table import KeyTable
from sidecar.spend.ledger import Ledger

__all__ = ["build_admin"]


def build_admin(
    *,
    keys: Keys,
    table: KeyTable,
    ledger: Ledger,
    admission: Seeder | None = None,
    clock: Callable[[], float],
    random_bytes: Callable[[int], bytes],
) -> list[Route]:
    """The routes. `admission` learns of keys that get a budget; `clock` gives Unix seconds; `random_bytes(n)` has to be
    cryptographic (`secrets.token_bytes`)."""
    key = KeyAdmin(
        keys=keys, table=table, spent=ledger.sum_by_keys, admission=admission, clock=clock, random_bytes=random_bytes
    )
    spend = SpendAdmin(ledger=ledger, table=table)
    handlers: dict[str, tuple[str, Handler]] = {
        "/key/generate": ("POST", key.generate),
        "/key/update": ("POST", key.update),
        "/key/delete": ("POST", key.delete),
        "/key/block": ("POST", key.block),
        "/key/unblock": ("POST", key.unblock),
        "/key/info": ("GET", key.info),
        "/key/list": ("GET", key.list),
        "/spend/logs": ("GET", spend.logs),
        "/spend/keys": ("GET", spend.keys),
    }
    return [Route(path, AdminEndpoint(keys, method, handler)) for path, (method, handler) in handlers.items()]
