"""From checked settings to the ready values of the other layers: deployments, prices, catalog, master key."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from sidecar.config.models import Config, DeploymentSettings
from sidecar.routing.catalog import Catalog
from sidecar.spend.cost import UNPRICED, Price
from sidecar.spend.price_loader import known_models, load_price
from sidecar.spend.prices import price_from_config
from sidecar.translate.registry import PROVIDERS
from sidecar.types import Budget, Deployment, Limits, Secret, Timeouts, usd_to_nano


def build_catalog(config: Config, env: Mapping[str, str]) -> Catalog:
    """All deployments with their prices. Without any `models`, provider keys in the environment make wildcards."""
    deployments: list[Deployment] = []
    tables: dict[str, Mapping[str, Price]] = {}
    for model in config.models:
        for i, settings in enumerate(model.deployments):
            deployment = _deployment(model.name, i, settings)
            deployments.append(deployment)
            if "*" in settings.model and settings.price is None:
                tables[settings.provider] = known_models(settings.provider)
    if not config.models:
        for provider in PROVIDERS.values():
            key = env.get(provider.api_key_env or "")
            if key and provider.default_base_url is not None:
                deployments.append(
                    Deployment(
                        deployment_id=provider.name,
                        group=f"{provider.name}/*",
                        provider=provider.name,
                        model="*",
                        base_url=provider.default_base_url,
                        api_key=Secret(key.strip()),
                        price=UNPRICED,
                    )
                )
                tables[provider.name] = known_models(provider.name)
    return Catalog(deployments, fallbacks=config.routing.fallbacks, aliases=config.routing.aliases, prices=dict(tables))


def _deployment(group: str, index: int, settings: DeploymentSettings) -> Deployment:
    provider = PROVIDERS[settings.provider]
    if settings.price is None:
        price = UNPRICED if "*" in settings.model else load_price(settings.provider, settings.model)
    elif settings.price == "free":
        price = price_from_config("free")
    else:
        price = price_from_config({k: v for k, v in settings.price.model_dump().items() if v is not None})
    return Deployment(
        deployment_id=f"{group}#{index}:{settings.provider}",
        group=group,
        provider=settings.provider,
        model=settings.model,
        base_url=(settings.base_url or provider.default_base_url or "").rstrip("/"),
        api_key=settings.api_key,
        weight=settings.weight,
        order=settings.order,
        timeouts=Timeouts(**settings.timeouts.model_dump()),
        limits=Limits(**settings.limits.model_dump()),
        price=price,
        max_output_tokens=settings.max_output_tokens,
        params=settings.params,
        drop_params=settings.drop_params,
        headers=tuple((k.lower().encode("ascii"), v.encode("latin-1")) for k, v in settings.headers.items()),
    )


def global_limits(config: Config) -> Limits:
    return Limits(**config.limits.model_dump())


def global_budgets(config: Config) -> tuple[Budget, ...]:
    if config.budget.max_usd is None:
        return ()
    return (Budget(usd_to_nano(config.budget.max_usd), config.budget.duration),)


def ensure_master_key(config: Config) -> tuple[Secret, Path | None]:
    """The configured master key; else the one of the data folder, made at first start (mode 0600). The second value is
    its file if it was made just now."""
    assert config.auth != "none"
    if config.auth.master_key is not None:
        return config.auth.master_key, None
    path = master_key_file(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = "sk-" + secrets.token_urlsafe(32)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return Secret(path.read_text().strip()), None
    with os.fdopen(handle, "w") as file:
        file.write(made + "\n")
    return Secret(made), path


def master_key_file(config: Config) -> Path:
    return Path(config.store.journal_dir).parent / "master_key"
