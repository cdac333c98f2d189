"""Cross-references of a configuration: names that must exist, values that must fit each other.

Works on what is valid, also when other parts are not, so that all faults are told at once.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import ValidationError

from sidecar.config.models import Config, DeploymentSettings
from sidecar.config.read import KeyPath
from sidecar.spend.sinks import SCHEMES
from sidecar.translate.fields import OPERATORS_FIELDS, SMUGGLING_FIELDS
from sidecar.translate.provider import CREDENTIAL_KEYS
from sidecar.translate.registry import PROVIDERS

CrossFault = tuple[KeyPath, str]

PLACE_KEYS: Mapping[str, tuple[str, ...]] = {
    name: (*provider.needs_options, *provider.takes_options, *CREDENTIAL_KEYS[provider.keyless])
    for name, provider in PROVIDERS.items()
}
"""Which provider uses which of the keys that say where a model runs and who asks."""
OPTION_KEYS = ("region", "project", "api_version", "api")
_OPTIONAL_KEYS = (*OPTION_KEYS, *sorted({key for keys in CREDENTIAL_KEYS.values() for key in keys}))
_LOCAL_SUFFIXES = (".local", ".localhost", ".internal", ".lan", ".home.arpa", ".test", ".svc")


@dataclass(frozen=True, slots=True)
class Parts:
    """The valid sections by name, and every model and deployment that is valid by itself."""

    sections: Mapping[str, Any]
    names: tuple[tuple[int, str], ...]
    deployments: tuple[tuple[int, int, str, DeploymentSettings], ...]
    more_names: frozenset[str]
    is_complete: bool
    """False: some model name could not be read, so a name may exist though it is not here."""


def parts_of(merged: Mapping[str, Any], *, more_names: Iterable[str] = (), is_complete: bool = True) -> Parts:
    """`more_names`: groups that exist without standing in the file (provider keys of the environment)."""
    sections: dict[str, Any] = {}
    for name in Config.model_fields:
        try:
            sections[name] = getattr(Config(**({name: merged[name]} if name in merged else {})), name)
        except ValidationError:
            continue
    names: list[tuple[int, str]] = []
    deployments: list[tuple[int, int, str, DeploymentSettings]] = []
    for i, model in enumerate(_items(merged.get("models"))):
        group = model.get("name") if isinstance(model, dict) else None
        if not isinstance(group, str) or not group:
            is_complete = False
            continue
        names.append((i, group))
        for j, deployment in enumerate(_items(model.get("deployments"))):
            try:
                deployments.append((i, j, group, DeploymentSettings.model_validate(deployment)))
            except ValidationError:
                continue
    return Parts(sections, tuple(names), tuple(deployments), frozenset(more_names), is_complete)


def cross_check(parts: Parts) -> list[CrossFault]:
    """(where, what is wrong and the fix) for everything a single value cannot know."""
    return [fault for check in _CHECKS for fault in check(parts)]


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_local(host: str) -> bool:
    """Loopback, a private address, or a name only a private network resolves (`ollama`, `llm.team.svc`)."""
    name = host.rstrip(".").lower()
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return "." not in name or name.endswith(_LOCAL_SUFFIXES)
    return address.is_loopback or address.is_private or address.is_link_local


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _server(parts: Parts) -> Iterator[CrossFault]:
    server = parts.sections.get("server")
    if parts.sections.get("auth") == "none" and server is not None and not is_loopback(server.host):
        yield ("auth",), "'auth: none' needs server.host 127.0.0.1; give a master_key to listen elsewhere"


def _store(parts: Parts) -> Iterator[CrossFault]:
    store = parts.sections.get("store")
    if store is None:
        return
    if not store.database_url.reveal().startswith(("sqlite:///", "postgresql://", "postgres://")):
        yield ("store", "database_url"), "must begin with sqlite:/// or postgresql://"
    if store.encryption_key is not None and len(store.encryption_key.reveal()) < 16:
        yield ("store", "encryption_key"), "must have at least 16 characters; make a random one"
    if store.redis_url is not None and store.redis_url.reveal().partition(":")[0] not in ("redis", "rediss", "unix"):
        yield ("store", "redis_url"), "must begin with redis://, rediss:// or unix://"


def _budget(parts: Parts) -> Iterator[CrossFault]:
    budget = parts.sections.get("budget")
    if budget is None:
        return
    try:
        ZoneInfo(budget.timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        yield ("budget", "timezone"), "not a timezone this machine knows; use a name such as UTC or Europe/Berlin"
    if budget.duration is not None and budget.max_usd is None:
        yield ("budget", "duration"), "a global budget's duration needs max_usd beside it; add it"


def _upstream(parts: Parts) -> Iterator[CrossFault]:
    upstream = parts.sections.get("upstream")
    if upstream is None:
        return
    if (upstream.client_cert is None) != (upstream.client_key is None):
        yield ("upstream",), "client_cert and client_key belong together; give both"
    for name in ("ca_file", "client_cert", "client_key"):
        file = getattr(upstream, name)
        if file is not None and not (Path(file).is_file() and os.access(file, os.R_OK)):
            yield ("upstream", name), "no such readable file; mount it, or correct the path"
    if upstream.proxy is not None and not _is_http_url(upstream.proxy.reveal()):
        yield ("upstream", "proxy"), "must be the URL of an HTTP proxy, such as http://proxy.internal:3128"
    if upstream.proxy is not None and upstream.http2:
        yield ("upstream", "http2"), "is not spoken through a proxy; leave one of the two out"


def _spend(parts: Parts) -> Iterator[CrossFault]:
    spend = parts.sections.get("spend")
    for i, sink in enumerate(spend.sinks if spend is not None else ()):
        url = sink.url.reveal()
        where: KeyPath = ("spend", "sinks", i, "url")
        try:
            parts_of_url = urlsplit(url)
            _ = parts_of_url.port
        except ValueError:
            yield where, "is no URL; correct it"
            continue
        scheme = parts_of_url.scheme.lower()
        if scheme not in SCHEMES:
            yield where, f"must begin with one of {', '.join(f'{name}:' for name in SCHEMES)}"
        elif scheme == "jsonl" and not parts_of_url.path:
            yield where, "needs the path of a file, as in jsonl:///var/log/spend.jsonl"
        elif scheme not in ("jsonl", "log") and not parts_of_url.hostname:
            yield where, "needs a host, as in https://hooks.example.com/spend"
        elif scheme.endswith("http") and not is_local(parts_of_url.hostname or ""):
            yield where, "plain http would show the records to the network; use https"
        if sink.secret is not None and scheme not in ("http", "https"):
            yield ("spend", "sinks", i, "secret"), "signs the batches of a webhook; remove it, or give an https: URL"


def _queue(parts: Parts) -> Iterator[CrossFault]:
    queue = parts.sections.get("queue")
    for name in queue.priorities if queue is not None else ():
        if name.partition(":")[0] not in ("key", "user", "team", "organization") or not name.partition(":")[2]:
            yield ("queue", "priorities", name), "must be key:HASH, user:ID, team:ID or organization:ID"


def _jobs(parts: Parts) -> Iterator[CrossFault]:
    jobs = parts.sections.get("jobs")
    if jobs is None:
        return
    rotation = jobs.rotation.webhook
    for where, url in (
        (("jobs", "rotation", "webhook", "url"), rotation.url if rotation is not None else None),
        (("jobs", "alerts", "webhook"), jobs.alerts.webhook),
        (("jobs", "reports", "webhook"), jobs.reports.webhook),
    ):
        if url is None:
            continue
        if not _is_http_url(url.reveal()):
            yield where, "must be a webhook's URL, such as https://hooks.example.com/sidecar"
        elif url.reveal().lower().startswith("http:") and not is_local(urlsplit(url.reveal()).hostname or ""):
            yield where, "plain http would show it to the network; use https"
    names = {name for _, name in parts.names} | parts.more_names
    for i, name in enumerate(jobs.probes.models):
        if parts.is_complete and name not in names:
            yield ("jobs", "probes", "models", i), "no such model; name one of `models`, or none to probe all"


def _models(parts: Parts) -> Iterator[CrossFault]:
    seen: set[str] = set()
    for i, name in parts.names:
        if name in seen:
            yield ("models", i, "name"), f"the model '{name}' stands twice; put all deployments under one"
        seen.add(name)
        if "*" in name[:-1]:
            yield ("models", i, "name"), "a wildcard '*' may only stand at the end, as in 'openai/*'"
    for i, j, group, deployment in parts.deployments:
        for key, what in _deployment(deployment, group):
            yield ("models", i, "deployments", j, key), what


def _names(parts: Parts) -> Iterator[CrossFault]:
    routing = parts.sections.get("routing")
    if routing is None or not parts.is_complete:
        return
    groups = {name for _, name in parts.names} | parts.more_names
    known = groups | set(routing.aliases)
    for key in ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks"):
        for name, targets in getattr(routing, key).items():
            if not _exists(name, known):
                yield ("routing", key, name), _dangling("fallbacks name", name, known)
            for k, target in enumerate(targets):
                if target == name:
                    yield ("routing", key, name, k), f"'{name}' falls back to itself; remove it"
                elif not _exists(target, known):
                    yield ("routing", key, name, k), _dangling("fallbacks name", target, known)
    for k, target in enumerate(routing.default_fallbacks):
        if not _exists(target, known):
            yield ("routing", "default_fallbacks", k), _dangling("default_fallbacks name", target, known)
    if routing.default_model is not None and not _exists(routing.default_model, known):
        yield ("routing", "default_model"), _dangling("default_model names", routing.default_model, known)
    for name, target in routing.aliases.items():
        if not _exists(target, groups):
            yield ("routing", "aliases", name), _dangling("aliases name", target, groups)
        if name in groups:
            yield ("routing", "aliases", name), f"'{name}' is a model and an alias; rename one"


def _exists(name: str, known: Iterable[str]) -> bool:
    return any(name == k or (k.endswith("*") and name.startswith(k[:-1]) and name != k[:-1]) for k in known)


def _dangling(what: str, name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    hint = f"did you mean '{close[0]}'?" if close else "add it under models, or remove it here"
    return f"{what} the model '{name}', which does not exist; {hint}"


def _deployment(deployment: DeploymentSettings, group: str) -> Iterator[tuple[str, str]]:
    if ("*" in deployment.model) != group.endswith("*"):
        yield "model", "a wildcard model needs a wildcard group and the other way round (name 'openai/*', model '*')"
    provider = PROVIDERS.get(deployment.provider)
    if provider is None:
        close = difflib.get_close_matches(deployment.provider, PROVIDERS, 1)
        hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(PROVIDERS))}"
        yield "provider", f"unknown provider '{deployment.provider}'; {hint}"
        return
    if deployment.base_url is None:
        if provider.default_base_url is None:
            yield "provider", f"provider {provider.name} needs base_url; add it"
    elif not deployment.allow_plain_http:
        url = urlsplit(deployment.base_url)
        if url.scheme == "http" and not is_local(url.hostname or ""):
            yield (
                "base_url",
                "plain http would show the credential to the network; use https, or allow_plain_http: true",
            )
    if deployment.api_key is None and provider.auth != "none" and provider.api_key_env and not provider.keyless:
        yield "provider", f'provider {provider.name} needs api_key; add api_key: "${{{provider.api_key_env}}}"'
    for key in _OPTIONAL_KEYS:
        if key not in PLACE_KEYS[provider.name] and getattr(deployment, key) is not None:
            yield key, f"provider {provider.name} does not use {key}; remove it"
    for key in provider.needs_options:
        if getattr(deployment, key) is None:
            yield "provider", f"provider {provider.name} needs {key}; add it"
    for name in deployment.allowed_params:
        if name in SMUGGLING_FIELDS:
            yield "allowed_params", f"'{name}' chooses destination or credential, and no client may; remove it"
        elif name in OPERATORS_FIELDS:
            yield "allowed_params", f"'{name}' is the deployment's own to say; put it into params"
    for one, other in (("aws_access_key_id", "aws_secret_access_key"), ("client_secret", "client_id")):
        if getattr(deployment, one) is not None and getattr(deployment, other) is None:
            yield one, f"needs {other} beside it; add it"
    if provider.keyless == "azure" and deployment.client_secret is not None and deployment.tenant_id is None:
        yield "client_secret", "needs tenant_id beside it; add it"


def _is_http_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError:
        return False
    return url.scheme in ("http", "https") and bool(url.hostname)


_CHECKS: tuple[Callable[[Parts], Iterator[CrossFault]], ...] = (
    _server,
    _store,
    _budget,
    _queue,
    _spend,
    _jobs,
    _upstream,
    _models,
    _names,
)


def notes(config: Config) -> list[str]:
    """What is allowed but probably not meant; for people, at start and in `config check`."""
    found: list[str] = []
    if config.server.workers > 1 and config.store.redis_url is None:
        found.append(
            f"{config.server.workers} workers without store.redis_url: limits and budgets hold per process only"
        )
    limited = any(
        value is not None
        for model in config.models
        for deployment in model.deployments
        for value in (deployment.limits.rpm, deployment.limits.tpm, deployment.limits.concurrency)
    )
    if limited and config.server.workers > 1 and config.store.redis_url is None:
        found.append("limits of deployments hold per worker without store.redis_url")
    continues = config.routing.continuation or any(model.continuation for model in config.models)
    if continues and config.routing.retries == 0:
        found.append("routing.retries is 0: no attempt is left that could go on with a broken answer (continuation)")
    return found
