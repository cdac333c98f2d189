"""`/model/*`: deployments made at run time. Our own field names, or those users know (`litellm_params`, `model_info`).

`config.stored` keeps them. Rule: a credential goes in and never comes out; a reference to an environment variable is
refused, for it would let an administrator of models send any secret of the process anywhere.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

from pydantic import Field

from sidecar.admin.endpoint import Call
from sidecar.admin.fields import Name, Paged, Strict
from sidecar.config.stored import SECRET_FIELDS, LiveCatalog, ModelTable, StoredModel, checked
from sidecar.errors import BadRequestError, ConflictError, NotFoundError
from sidecar.routing.catalog import Catalog
from sidecar.types import Deployment, Secret

_MILLION = 1_000_000
_RENAMED = {
    "api_key": "api_key",
    "api_base": "base_url",
    "base_url": "base_url",
    "api_version": "api_version",
    "region_name": "region",
    "aws_region_name": "region",
    "vertex_location": "region",
    "vertex_project": "project",
    "aws_access_key_id": "aws_access_key_id",
    "aws_secret_access_key": "aws_secret_access_key",
    "aws_session_token": "aws_session_token",
    "weight": "weight",
    "order": "order",
    "drop_params": "drop_params",
    "allowed_openai_params": "allowed_params",
    "extra_headers": "headers",
}
_LIMITS = {"rpm": "rpm", "tpm": "tpm", "max_parallel_requests": "concurrency"}
_PRICES = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cache_read",
    "cache_creation_input_token_cost": "cache_write",
}


class ModelInfo(Strict):
    id: Name | None = None
    access_groups: Annotated[list[Name], Field(max_length=100)] | None = None


class NewModel(Strict):
    """`POST /model/new`: either `deployment` (fields as in sidecar.yaml) or `litellm_params`."""

    model_name: Name
    model_id: Name | None = None
    access_groups: Annotated[list[Name], Field(max_length=100)] | None = None
    deployment: dict[str, Any] | None = None
    litellm_params: dict[str, Any] | None = None
    model_info: ModelInfo | None = None


class UpdateModel(Strict):
    """`POST /model/update`: the named fields change; `deployment` fields are merged, null takes one away."""

    model_id: Name | None = None
    model_name: Name | None = None
    access_groups: Annotated[list[Name], Field(max_length=100)] | None = None
    deployment: dict[str, Any] | None = None
    litellm_params: dict[str, Any] | None = None
    model_info: ModelInfo | None = None


class DeleteModel(Strict):
    """`POST /model/delete`."""

    id: Name


class ModelQuery(Paged):
    """The query of `GET /model/info`."""

    model_id: Name | None = None
    size: Annotated[int, Field(ge=1, le=1000)] = 100


class ModelAdmin:
    """The handlers of `/model/*`."""

    def __init__(self, *, table: ModelTable, catalog: Catalog, live: LiveCatalog, clock: Callable[[], float]) -> None:
        self._table = table
        self._catalog = catalog
        self._live = live
        self._clock = clock

    async def new(self, call: Call, body: NewModel) -> Mapping[str, Any]:
        given = _given(body.deployment, body.litellm_params)
        if given is None:
            raise BadRequestError("'deployment' is missing: what serves this model.", param="deployment")
        info = body.model_info or ModelInfo()
        model_id = body.model_id or info.id or uuid.uuid4().hex
        if any(d.deployment_id == model_id for d in self._catalog.deployments):
            raise ConflictError("A deployment has this id. Choose another.", param="model_id", code="already_exists")
        groups = body.access_groups or info.access_groups or []
        now = self._clock()
        model = StoredModel(model_id, body.model_name, checked(body.model_name, given), tuple(groups), now, now)
        await self._table.create(model, by=call.actor)
        await self._live.reload()
        return described(model)

    async def update(self, call: Call, body: UpdateModel) -> Mapping[str, Any]:
        info = body.model_info or ModelInfo()
        model_id = body.model_id or info.id
        if model_id is None:
            raise BadRequestError("'model_id' is missing.", param="model_id", code="missing_field")
        changes = _given(body.deployment, body.litellm_params) or {}
        groups = body.access_groups if body.access_groups is not None else info.access_groups

        def change(before: StoredModel) -> StoredModel:
            old = {name: getattr(before.settings, name) for name in before.settings.model_fields_set}
            given = {name: value for name, value in {**_plain(old), **changes}.items() if value is not None}
            name = body.model_name or before.model_name
            return replace(
                before,
                model_name=name,
                settings=checked(name, given),
                access_groups=before.access_groups if groups is None else tuple(groups),
                updated_at=self._clock(),
            )

        after = await self._table.update(model_id, change, by=call.actor)
        if after is None:
            raise _unknown()
        await self._live.reload()
        return described(after)

    async def delete(self, call: Call, body: DeleteModel) -> Mapping[str, Any]:
        model = await self._known(body.id)
        if not await self._table.delete(model, by=call.actor):
            raise _unknown()
        await self._live.reload()
        return {"deleted": model.model_id}

    async def info(self, call: Call, query: ModelQuery) -> Mapping[str, Any]:
        """Everything that can be called: the file's deployments and the stored ones."""
        stored = {model.model_id: model for model in await self._table.all()}
        found = [
            described(stored[d.deployment_id]) if d.deployment_id in stored else _described_file(d)
            for d in self._catalog.deployments
        ]
        if query.model_id is not None:
            found = [one for one in found if one["model_id"] == query.model_id]
            if not found:
                raise _unknown()
        start = (query.page - 1) * query.size
        return query.page_of("data", found[start : start + query.size], len(found))

    async def _known(self, model_id: str) -> StoredModel:
        found = await self._table.get(model_id)
        if found is None:
            raise _unknown()
        return found


def _unknown() -> NotFoundError:
    return NotFoundError(
        "'model_id' names no model made at run time; those of the file are changed there.",
        param="model_id",
        code="model_not_found",
    )


def _given(deployment: dict[str, Any] | None, known: dict[str, Any] | None) -> dict[str, Any] | None:
    if deployment is not None and known is not None:
        raise BadRequestError("Give 'deployment' or 'litellm_params', not both.", param="litellm_params")
    given = deployment if known is None else _from_known(known)
    for name in SECRET_FIELDS if given is not None else ():
        values = given.get(name) if given is not None else None
        for value in values.values() if isinstance(values, dict) else (values,):
            if isinstance(value, str) and (value.startswith("os.environ/") or "${" in value):
                raise BadRequestError(
                    f"'{name}' has to be the credential itself; references work in sidecar.yaml only.", param=name
                )
    return given


def _from_known(params: dict[str, Any]) -> dict[str, Any]:
    """The fields users of such gateways know, in ours."""
    given: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    price: dict[str, Any] = {}
    for name, value in params.items():
        if name == "model":
            provider, _, model = str(value).partition("/")
            given |= {"provider": params.get("custom_llm_provider") or provider, "model": model or provider}
        elif name == "custom_llm_provider":
            continue
        elif name in _RENAMED:
            given[_RENAMED[name]] = value
        elif name in _LIMITS:
            limits[_LIMITS[name]] = value
        elif name in _PRICES:
            price[_PRICES[name]] = None if value is None else _per_million(name, value)
        elif name in ("timeout", "request_timeout"):
            given["timeouts"] = {"total_s": value}
        else:
            known = ", ".join(sorted((*_RENAMED, *_LIMITS, *_PRICES, "custom_llm_provider", "model", "timeout")))
            raise BadRequestError(f"'litellm_params.{name}' is not supported here. Known: {known}.", param=name)
    if limits:
        given["limits"] = limits
    if price:
        given["price"] = price
    return given


def _per_million(name: str, value: Any) -> str:
    try:
        found = Decimal(getattr(value, "text", None) or str(value))
    except ArithmeticError:
        raise BadRequestError(f"'{name}' has to be a number of USD per token.", param=name) from None
    if not found.is_finite():
        raise BadRequestError(f"'{name}' has to be a number of USD per token.", param=name)
    return f"{(found * _MILLION).normalize():f}"


def _plain(value: Any) -> Any:
    """Settings as a body would give them."""
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if hasattr(value, "model_dump"):
        return _plain(value.model_dump(mode="python", exclude_unset=True))
    return str(value) if isinstance(value, Decimal) else value


def described(model: StoredModel) -> dict[str, Any]:
    """As the answers show it; secrets as `***`."""
    return {
        "model_id": model.model_id,
        "model_name": model.model_name,
        "deployment": model.shown(),
        "access_groups": list(model.access_groups),
        "source": "database",
        "created_at": _shown_at(model.created_at),
        "updated_at": _shown_at(model.updated_at),
    }


def _described_file(deployment: Deployment) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "provider": deployment.provider,
        "model": deployment.model,
        "base_url": deployment.base_url,
        "weight": deployment.weight,
        "order": deployment.order,
    }
    return {
        "model_id": deployment.deployment_id,
        "model_name": deployment.group,
        "deployment": shown | ({"api_key": "***"} if deployment.api_key else {}),
        "access_groups": list(deployment.access_groups),
        "source": "file",
        "created_at": None,
        "updated_at": None,
    }


def _shown_at(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
