"""Cross-references of a configuration: names that must exist, values that must fit each other."""

from __future__ import annotations

import difflib
import ipaddress
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sidecar.config.models import Config, DeploymentSettings
from sidecar.translate.registry import PROVIDERS

Where = tuple[str | int, ...]


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def cross_check(config: Config, *, has_file: bool) -> list[tuple[Where, str]]:
    """(where, what is wrong and the fix) for everything a single value cannot know."""
    faults: list[tuple[Where, str]] = []
    names: set[str] = set()
    for i, model in enumerate(config.models):
        if model.name in names:
            faults.append((("models", i, "name"), f"the model '{model.name}' stands twice; put all deployments in one"))
        names.add(model.name)
        if "*" in model.name[:-1]:
            faults.append((("models", i, "name"), "a wildcard '*' may only stand at the end, as in 'openai/*'"))
        for j, deployment in enumerate(model.deployments):
            where: Where = ("models", i, "deployments", j)
            faults += [((*where, *more), what) for more, what in _deployment(deployment, model.name)]
    known = names | set(config.routing.aliases)
    for name, targets in config.routing.fallbacks.items():
        if name not in known:
            faults.append((("routing", "fallbacks", name), _dangling("fallbacks", name, known)))
        for k, target in enumerate(targets):
            if target not in known:
                faults.append((("routing", "fallbacks", name, k), _dangling("fallbacks", target, known)))
    for name, target in config.routing.aliases.items():
        if target not in names:
            faults.append((("routing", "aliases", name), _dangling("aliases", target, names)))
        if name in names:
            faults.append((("routing", "aliases", name), f"'{name}' is a model and an alias; rename one"))
    try:
        ZoneInfo(config.budget.timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        faults.append((("budget", "timezone"), "not a timezone; use a name such as UTC or Europe/Berlin"))
    if config.auth == "none" and not is_loopback(config.server.host):
        faults.append((("auth",), "'auth: none' needs server.host 127.0.0.1; give a master_key to listen elsewhere"))
    scheme = config.store.database_url.reveal().partition(":")[0]
    if scheme not in ("sqlite", "postgresql", "postgres"):
        faults.append((("store", "database_url"), "must begin with sqlite:/// or postgresql://"))
    if config.store.redis_url is not None:
        scheme = config.store.redis_url.reveal().partition(":")[0]
        if scheme not in ("redis", "rediss", "unix"):
            faults.append((("store", "redis_url"), "must begin with redis://, rediss:// or unix://"))
    if config.budget.duration is not None and config.budget.max_usd is None:
        faults.append((("budget", "duration"), "a global budget's duration needs max_usd beside it"))
    if (config.upstream.client_cert is None) != (config.upstream.client_key is None):
        faults.append((("upstream",), "client_cert and client_key belong together; give both"))
    return faults


def _dangling(what: str, name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean '{close[0]}'?" if close else "add it under models, or remove it here"
    return f"{what} name the model '{name}', which does not exist; {hint}"


def _deployment(deployment: DeploymentSettings, group: str) -> list[tuple[Where, str]]:
    faults: list[tuple[Where, str]] = []
    provider = PROVIDERS.get(deployment.provider)
    if provider is None:
        close = difflib.get_close_matches(deployment.provider, PROVIDERS, 1)
        hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(PROVIDERS))}"
        return [(("provider",), f"unknown provider '{deployment.provider}'; {hint}")]
    if deployment.base_url is None:
        if provider.default_base_url is None:
            faults.append((("provider",), f"provider {provider.name} needs 'base_url'; add it"))
    else:
        url = urlsplit(deployment.base_url)
        if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
            faults.append((("base_url",), "must be an http(s) URL without query, such as https://api.openai.com/v1"))
        elif url.username or url.password:
            faults.append((("base_url",), "must not hold a credential; use api_key"))
        else:
            try:
                _ = url.port
            except ValueError:
                faults.append((("base_url",), "has no valid port"))
    if deployment.api_key is None and provider.auth != "none" and provider.api_key_env is not None:
        faults.append((("provider",), f"needs api_key: add api_key: ${{{provider.api_key_env}}}"))
    if ("*" in deployment.model) != group.endswith("*"):
        faults.append((("model",), "a wildcard model needs a wildcard group and the other way round ('openai/*': '*')"))
    return faults
