"""The management API: keys, users, teams, organizations, end users, budgets, tags, models, spend and audit, as
Starlette routes. `table.py` lists the endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.routing import Route

from sidecar.admin.access import ANY_KEY, READ
from sidecar.admin.audit import AuditAdmin
from sidecar.admin.endpoint import Call, CallerLookup, Endpoint, routes_of
from sidecar.admin.exchanges import ExchangeAdmin, Find
from sidecar.admin.keys import KeyAdmin
from sidecar.admin.models import ModelAdmin
from sidecar.admin.openapi import document
from sidecar.admin.requests import Nothing
from sidecar.admin.spend import FindPrompt, Resolver, SpendAdmin
from sidecar.admin.subjects import BUDGETS, CUSTOMERS, TAGS, OrganizationAdmin, SubjectAdmin, UserAdmin
from sidecar.admin.table import Handlers, endpoints
from sidecar.admin.teams import OrganizationMembers, TeamAdmin
from sidecar.admin.writes import Seeder, Writes
from sidecar.identity.keys import Keys
from sidecar.identity.tree import Tree
from sidecar.spend.ledger import Ledger

__all__ = ["admin_table", "build_admin"]


def build_admin(*, callers: CallerLookup, tree: Tree, **parts: Any) -> list[Route]:
    """The routes; `callers` tells who calls, the rest is for `admin_table`."""
    return routes_of(admin_table(tree=tree, **parts), callers, tree.principals)


def admin_table(
    *,
    keys: Keys,
    tree: Tree,
    ledger: Ledger,
    models: ModelAdmin | None = None,
    status: Callable[[], Awaitable[Mapping[str, Any]]] | None = None,
    unknown: Resolver | None = None,
    prompts: FindPrompt | None = None,
    exchanges: Find | None = None,
    admission: Seeder | None = None,
    tell: Callable[[], Awaitable[None]] | None = None,
    clock: Callable[[], float],
    random_bytes: Callable[[int], bytes],
) -> list[Endpoint]:
    """Every endpoint. `admission` learns of who gets a budget; `tell` makes this process read what was written;
    `clock` gives Unix seconds; `random_bytes(n)` has to be cryptographic (`secrets.token_bytes`)."""
    writes = Writes(tree=tree, admission=admission, tell=tell, clock=clock)
    key = KeyAdmin(keys=keys, tree=tree, spent=ledger.sum_by_keys, writes=writes, random_bytes=random_bytes)

    async def asked(call: Call, query: Nothing) -> Mapping[str, Any]:
        assert status is not None
        return await status()

    parts: dict[str, Any] = {"keys": keys, "tree": tree, "sum_of": ledger.sum_of, "writes": writes}
    table = endpoints(
        Handlers(
            key=key,
            user=UserAdmin(key, **parts),
            team=TeamAdmin(key, **parts),
            organization=OrganizationAdmin(**parts),
            organization_member=OrganizationMembers(tree, writes),
            customer=SubjectAdmin(CUSTOMERS, **parts),
            budget=SubjectAdmin(BUDGETS, **parts),
            tag=SubjectAdmin(TAGS, **parts),
            spend=SpendAdmin(ledger=ledger, tree=tree, unknown=unknown, prompts=prompts),
            audit=AuditAdmin(tree.principals.store),
            model=models,
            status=asked if status is not None else None,
            exchange=ExchangeAdmin(find=exchanges, ledger=ledger) if exchanges is not None else None,
            resolves=unknown is not None,
            shows_prompts=prompts is not None,
        )
    )

    described: dict[str, Any] = {}

    async def openapi(call: Call, query: Nothing) -> Mapping[str, Any]:
        if not described:  # a fifth of what a start costs, and most processes are never asked
            for endpoint in table:
                endpoint.model.model_rebuild()  # here, a few milliseconds each: two threads must not do so at once
                await asyncio.sleep(0)
            described.update(await asyncio.to_thread(document, table))
        return described | {"servers": [{"url": call.root_path or "/"}]}

    table.append(Endpoint("GET", "/openapi.json", Nothing, openapi, "This document.", READ | {ANY_KEY}))
    return table
