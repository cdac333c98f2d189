"""Deployments made at run time: rows of the `models` table, merged with the file's into the one catalog.

Neighbours: `build.py` (the file's), `admin/models.py` (writes rows), `identity.feed` (tells every process). Rules: a
credential is stored sealed, or not at all; a row that cannot be read is left out, named in the log, and harms no other.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from sidecar.config.build import deployment_of
from sidecar.config.check import cross_check, parts_of
from sidecar.config.models import DeploymentSettings
from sidecar.db.schema import models
from sidecar.db.vault import Vault, VaultError
from sidecar.errors import BadRequestError, ConflictError, UnavailableError
from sidecar.identity.changes import Event
from sidecar.identity.deadline import Deadline
from sidecar.identity.table import Store
from sidecar.routing.catalog import Catalog
from sidecar.tasks import end
from sidecar.types import Deployment, Secret

SECRET_FIELDS = (
    "api_key",
    "aws_access_key_id",
    "aws_secret_access_key",
    "aws_session_token",
    "client_secret",
    "google_credentials",
    "headers",
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredModel:
    """One deployment as an administrator made it. `settings` are the fields given, secrets included as `Secret`."""

    model_id: str
    model_name: str
    settings: DeploymentSettings
    access_groups: tuple[str, ...] = ()
    created_at: float = 0.0
    updated_at: float = 0.0

    def shown(self) -> dict[str, Any]:
        """Without secrets; which of them are set."""
        plain = self.settings.model_dump(mode="json", exclude_unset=True, exclude=set(SECRET_FIELDS))
        return plain | {name: "***" for name in SECRET_FIELDS if getattr(self.settings, name)}


def checked(model_name: str, given: Mapping[str, Any]) -> DeploymentSettings:
    """Settings of one deployment of this group. Raises `BadRequestError` naming the first field at fault."""
    try:
        settings = DeploymentSettings.model_validate(given)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
        name = ".".join(str(part) for part in fault["loc"])
        raise BadRequestError(f"'{name}': {fault['msg'].removeprefix('Value error, ')}.", param=name) from None
    for where, what in cross_check(parts_of({"models": [{"name": model_name, "deployments": [dict(given)]}]})):
        raise BadRequestError(f"'{where[-1]}': {what}.", param=str(where[-1]))
    return settings


class ModelTable:
    """Reads and writes rows. Raises `UnavailableError`; without a vault no credential is stored (`BadRequestError`)."""

    def __init__(self, store: Store, vault: Vault | None) -> None:
        self._store = store
        self._vault = vault

    async def all(self) -> list[StoredModel]:
        async with self._store.read() as connection:
            query = sa.select(models).order_by(models.c.created_at, models.c.model_id)
            rows = (await connection.execute(query)).mappings().all()
        return [found for row in rows if (found := self._opened(row)) is not None]

    async def get(self, model_id: str) -> StoredModel | None:
        async with self._store.read() as connection:
            query = sa.select(models).where(models.c.model_id == model_id)
            row = (await connection.execute(query)).mappings().first()
        return None if row is None else self._opened(row)

    async def create(self, model: StoredModel, *, by: str) -> None:
        conflict = ConflictError("Another model has this id. Choose another.", param="model_id", code="already_exists")
        async with self._store.write(conflict) as connection:
            await connection.execute(sa.insert(models).values(self._columns(model)))
            await self._store.note(connection, Event(by, "create", "model", model.model_id, None, _audited(model)))

    async def update(
        self, model_id: str, change: Callable[[StoredModel], StoredModel], *, by: str
    ) -> StoredModel | None:
        """From the row as it is, so that of two changes made at once neither takes the other back. `None` if there is
        no such row."""
        async with self._store.write() as connection:
            row = (await connection.execute(sa.select(models).where(models.c.model_id == model_id))).mappings().first()
            before = None if row is None else self._opened(row)
            if before is None:
                return None
            after = change(before)
            await connection.execute(
                sa.update(models).where(models.c.model_id == model_id).values(self._columns(after))
            )
            event = Event(by, "update", "model", model_id, _audited(before), _audited(after))
            await self._store.note(connection, event)
        return after

    async def delete(self, model: StoredModel, *, by: str) -> bool:
        async with self._store.write() as connection:
            gone = await connection.execute(sa.delete(models).where(models.c.model_id == model.model_id))
            if gone.rowcount != 1:
                return False
            await self._store.note(connection, Event(by, "delete", "model", model.model_id, _audited(model), None))
        return True

    def _columns(self, model: StoredModel) -> dict[str, Any]:
        given = model.settings.model_dump(mode="python", exclude_unset=True)
        secrets = {name: _revealed(given.pop(name)) for name in SECRET_FIELDS if given.get(name)}
        plain = model.settings.model_dump(mode="json", exclude_unset=True, exclude=set(SECRET_FIELDS))
        sealed = None
        if secrets:
            if self._vault is None:
                raise BadRequestError(
                    "The gateway stores no credential unencrypted: set store.encryption_key "
                    "(SIDECAR_STORE__ENCRYPTION_KEY) on every replica, then try again.",
                    param="api_key",
                    code="encryption_key_missing",
                )
            sealed = self._vault.seal(json.dumps(secrets), owner=model.model_id)
        return {
            "model_id": model.model_id,
            "model_name": model.model_name,
            "settings": json.dumps({"deployment": plain, "access_groups": list(model.access_groups)}),
            "credential": sealed,
            "created_at": round(model.created_at * 1_000_000),
            "updated_at": round(model.updated_at * 1_000_000),
        }

    def _opened(self, row: Mapping[Any, Any]) -> StoredModel | None:
        try:
            stored = json.loads(row["settings"])
            given = dict(stored["deployment"])
            if row["credential"] is not None:
                if self._vault is None:
                    raise VaultError("store.encryption_key is not set")
                given |= json.loads(self._vault.open(row["credential"], owner=row["model_id"]))
            return StoredModel(
                row["model_id"],
                row["model_name"],
                DeploymentSettings.model_validate(given),
                tuple(stored["access_groups"]),
                row["created_at"] / 1_000_000,
                row["updated_at"] / 1_000_000,
            )
        except (VaultError, ValueError, KeyError, TypeError) as error:
            why = str(error) if isinstance(error, VaultError) else type(error).__name__
            _log.error("the stored model %s cannot be used: %s", row["model_id"], why)
            return None


class LiveCatalog:
    """Keeps `catalog` the file's deployments and the stored ones together. A `feed.Follower`."""

    def __init__(
        self,
        catalog: Catalog,
        table: ModelTable,
        build: Callable[[Iterable[Deployment]], Catalog],
        resolve_price: Any,
        *,
        deadline_s: float = 10.0,
    ) -> None:
        self._catalog = catalog
        self._table = table
        self._build = build
        self._resolve_price = resolve_price
        self._deadline = Deadline(deadline_s)
        self._task: asyncio.Task[None] | None = None
        self._is_stale = False
        self._asked = self._adopted = 0

    async def reload(self) -> None:
        """Raises `UnavailableError`; then the catalog stays as it is. An answer that comes after one that was asked for
        later is too old."""
        self._asked = number = self._asked + 1
        try:
            stored = await self._deadline.run(self._table.all())
        except TimeoutError as error:
            raise UnavailableError(
                "The gateway's database does not answer. Try again shortly.",
                code="key_store_unavailable",
                retry_after_s=1.0,
            ) from error
        if number < self._adopted:
            return
        self._adopted = number
        self._catalog.adopt(self._build(self._deployments(stored)))

    def _deployments(self, stored: Sequence[StoredModel]) -> list[Deployment]:
        return [
            replace(
                deployment_of(one.model_name, 0, one.settings, self._resolve_price, one.access_groups),
                deployment_id=one.model_id,
            )
            for one in stored
        ]

    # feed.Follower

    def changed(self, seq: int, kind: str, subject_id: str) -> None:
        if kind == "model":
            self.forget_all(seq)

    def forget_all(self, seq: int) -> None:
        self._is_stale = True
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def confirm(self, at: float) -> None:
        return

    async def _run(self) -> None:
        try:
            while self._is_stale:
                self._is_stale = False
                try:
                    await self.reload()
                except UnavailableError:
                    self._is_stale = True
                    await asyncio.sleep(0.5)
        finally:
            self._task = None

    async def aclose(self) -> None:
        await end([self._task])


def _audited(model: StoredModel) -> dict[str, Any]:
    return {"model_name": model.model_name, "access_groups": list(model.access_groups), **model.shown()}


def _revealed(value: Any) -> Any:
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, dict):
        return {name: _revealed(item) for name, item in value.items()}
    return value
