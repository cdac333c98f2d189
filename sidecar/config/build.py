"""From checked settings to the ready values of the other layers: deployments, prices, catalog, master key."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from sidecar.config.check import PLACE_KEYS
from sidecar.config.environment import provider_keys
from sidecar.config.models import Config, DeploymentSettings, HedgeSettings
from sidecar.config.read import ConfigError, Fault
from sidecar.continuation import Continuations
from sidecar.routing.catalog import Catalog
from sidecar.routing.health import Health
from sidecar.routing.hedging import Hedges, Hedging
from sidecar.routing.plan import Policy
from sidecar.routing.router import Router
from sidecar.spend.cost import UNPRICED, Price
from sidecar.spend.prices import price_from_config
from sidecar.translate.registry import PROVIDERS
from sidecar.types import Budget, Deployment, Limits, Secret, Timeouts, usd_to_nano
from sidecar.waiting import WaitingRoom

PriceResolver = Callable[[str, str], Price]


def deployments(config: Config, resolve_price: PriceResolver, env: Mapping[str, str]) -> tuple[Deployment, ...]:
    """All deployments, in the file's order. Pure: `resolve_price(provider, model)` is asked where the file has no
    price; a wildcard stays unpriced, for its models are priced by name. Without `models`, keys in `env` make wildcard
    groups."""
    if not config.models:
        return tuple(_from_key(name, key) for name, key in provider_keys(env).items())
    return tuple(
        deployment_of(model.name, i, settings, resolve_price, tuple(model.access_groups))
        for model in config.models
        for i, settings in enumerate(model.deployments)
    )


def build_catalog(config: Config, env: Mapping[str, str], more: Iterable[Deployment] = ()) -> Catalog:
    """The catalog with all prices, `more` deployments after the file's; a wildcard deployment without a price of its
    own gets its provider's table."""
    from sidecar.spend.price_loader import known_models, load_price

    made = (*deployments(config, load_price, env), *more)
    tables = {d.provider: known_models(d.provider) for d in made if "*" in d.model and d.price is UNPRICED}
    routing = config.routing
    return Catalog(
        made,
        fallbacks=routing.fallbacks,
        aliases=routing.aliases,
        prices=tables,
        default_fallbacks=routing.default_fallbacks,
        fallbacks_on={
            "context_window": routing.context_window_fallbacks,
            "content_policy": routing.content_policy_fallbacks,
        },
        default_group=routing.default_model,
    )


def build_policy(config: Config) -> Policy:
    routing = config.routing
    return Policy(
        retries=routing.retries,
        deadline_s=routing.deadline_s,
        retry_on={kind: count for kind, count in routing.retry_on.model_dump().items() if count is not None},
        max_wait_s=routing.max_wait_s,
    )


def build_router(config: Config) -> Router:
    """The strategies by group, and the health every process keeps for itself."""
    routing = config.routing
    return Router(
        strategy=routing.strategy,
        strategies={model.name: model.strategy for model in config.models if model.strategy is not None},
        affinity=routing.affinity,
        affinities={model.name: model.affinity for model in config.models if model.affinity is not None},
        health=Health(routing.cooldown_s, after=routing.cooldown_after),
        hedges=Hedges(
            _hedging(routing.hedge),
            {model.name: _hedging(model.hedge) for model in config.models if model.hedge is not None},
        ),
    )


def build_continuations(config: Config) -> Continuations | None:
    """`None`: no group goes on with broken answers."""
    by_group = {model.name: model.continuation for model in config.models if model.continuation is not None}
    default = config.routing.continuation
    return Continuations(default, by_group) if default or any(by_group.values()) else None


def build_room(config: Config) -> WaitingRoom | None:
    """Where requests wait instead of being refused, if they do."""
    queue = config.queue
    if not queue.size:
        return None
    return WaitingRoom(
        size=queue.size,
        max_wait_s=queue.max_wait_s,
        priorities=queue.priorities,
        is_header_read=queue.priority_header,
    )


def _hedging(settings: HedgeSettings | Literal["never"] | None) -> Hedging | None:
    return Hedging(**settings.model_dump()) if isinstance(settings, HedgeSettings) else None


def _from_key(provider: str, key: Secret) -> Deployment:
    return Deployment(
        deployment_id=provider,
        group=f"{provider}/*",
        provider=provider,
        model="*",
        base_url=PROVIDERS[provider].default_base_url or "",
        api_key=key,
        price=UNPRICED,
    )


def deployment_of(
    group: str,
    index: int,
    settings: DeploymentSettings,
    resolve_price: PriceResolver,
    access_groups: tuple[str, ...] = (),
) -> Deployment:
    if settings.price is None:
        price = UNPRICED if "*" in settings.model else resolve_price(settings.provider, settings.model)
    elif settings.price == "free":
        price = price_from_config("free")
    else:
        price = price_from_config({k: v for k, v in settings.price.model_dump().items() if v is not None})
    return Deployment(
        deployment_id=f"{group}#{index}:{settings.provider}",
        group=group,
        provider=settings.provider,
        model=settings.model,
        api_key=settings.api_key,
        weight=settings.weight,
        order=settings.order,
        timeouts=Timeouts(**settings.timeouts.model_dump()),
        limits=Limits(**settings.limits.model_dump()),
        price=price,
        max_output_tokens=settings.max_output_tokens,
        params=settings.params,
        drop_params=settings.drop_params,
        allowed_params=frozenset(settings.allowed_params),
        headers=tuple((k.lower().encode("ascii"), v.reveal().encode("latin-1")) for k, v in settings.headers.items()),
        access_groups=access_groups,
        tags=tuple(settings.tags),
        **place_of(settings),
    )


def place_of(settings: DeploymentSettings) -> dict[str, Any]:
    """`base_url`, `options` and `credentials` of a deployment."""
    provider = PROVIDERS[settings.provider]
    given = {name: value for name in PLACE_KEYS[settings.provider] if (value := getattr(settings, name)) is not None}
    options = {name: value for name, value in given.items() if isinstance(value, str)}
    return {
        "base_url": settings.base_url or provider.base_url(options) or "",
        "options": options,
        "credentials": {name: value for name, value in given.items() if isinstance(value, Secret)},
    }


def global_limits(config: Config) -> Limits:
    return Limits(**config.limits.model_dump())


def global_budgets(config: Config) -> tuple[Budget, ...]:
    if config.budget.max_usd is None:
        return ()
    return (Budget(usd_to_nano(config.budget.max_usd), config.budget.duration),)


def ensure_master_key(config: Config, data_dir: Path | None = None) -> tuple[Secret, Path | None]:
    """The configured master key; else the one of the data folder, made at first start (mode 0600). The second value is
    its file if it was made just now. Several starters at once agree on one key. Raises ConfigError if the folder is not
    writable or the file holds no key."""
    if config.auth == "none":
        raise ValueError("'auth: none' has no master key")
    if config.auth.master_key is not None:
        return config.auth.master_key, None
    path = master_key_file(config) if data_dir is None else data_dir / "master_key"
    try:
        made = _make_once(path)
        key = path.read_text("ascii").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not ASCII text"
        what = f"the master key cannot be kept here ({reason}); set SIDECAR_MASTER_KEY, or make the folder writable"
        raise ConfigError([Fault(0, 0, str(path), what)]) from None
    if len(key) < 16:
        raise ConfigError([Fault(0, 0, str(path), "holds no master key; delete the file, and start again")])
    return Secret(key), path if made else None


def ensure_secret(config: Config) -> Secret:
    """The master key; without authentication a secret of the data folder (`secret`), made when it is first needed."""
    if config.auth != "none":
        return ensure_master_key(config)[0]
    path = master_key_file(config).with_name("secret")
    try:
        _make_once(path)
        return Secret(path.read_text("ascii").strip())
    except (OSError, ValueError):
        raise ConfigError([Fault(0, 0, str(path), "cannot be made or read; make the folder writable")]) from None


def _make_once(path: Path) -> bool:
    """True if this call made the file. It appears whole or not at all: it is written aside, then linked to its name."""
    if path.exists():
        return False
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    aside = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            file.write("sk-" + secrets.token_urlsafe(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(aside, path)
        except FileExistsError:
            return False
        return True
    finally:
        aside.unlink(missing_ok=True)


def master_key_file(config: Config) -> Path:
    """`master_key` in the data folder: the one that holds `store.journal_dir`."""
    return Path(config.store.journal_dir).parent / "master_key"
