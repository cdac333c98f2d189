"""What needs the whole source: a deployment with the global settings, weights within a name, whether we would accept
it. Neighbours: the tables ran before; the names of fallbacks and aliases are judged after.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from pydantic import ValidationError

from sidecar.config.check import cross_check, parts_of
from sidecar.config.interpolate import Hidden, Interpolation
from sidecar.config.models import DeploymentSettings, ModelSettings
from sidecar.config.read import Document
from sidecar.importing.draft import Deployment, Draft, place
from sidecar.importing.report import Verdict
from sidecar.importing.source import Node
from sidecar.importing.table_models import limit_verdict
from sidecar.translate.registry import PROVIDERS

_ORDER = {name: i for i, name in enumerate(DeploymentSettings.model_fields)}
COMMENTED_OUT = "its deployment is kept as a comment"
_MOST_WEIGHT = 1_000_000


def settle_deployments(draft: Draft) -> None:
    for deployment in draft.deployments:
        _defaults(draft, deployment)
        _prices(deployment)
        _params(deployment)
        if deployment.out is None:
            _needs_key(draft, deployment)
            _accepts(draft, deployment)
    for members in draft.groups.values():
        _reserves(members)
        if draft.strategy == "simple-shuffle":
            _weights(draft, members)
    for deployment in draft.deployments:
        deployment.values = dict(sorted(deployment.values.items(), key=lambda item: _ORDER.get(item[0], 99)))
        if deployment.out is not None and deployment.blamed is not None:
            _blame(draft, deployment, deployment.out, deployment.blamed)


def _defaults(draft: Draft, deployment: Deployment) -> None:
    """The settings that are global there and stand in each deployment here."""
    if draft.drops_params:
        deployment.put("drop_params", True)
    if draft.concurrency:
        deployment.put("limits.concurrency", draft.concurrency)
    waits = deployment.timeout_s if deployment.timeout_s is not None else draft.timeout_s
    stream = deployment.stream_timeout_s if deployment.stream_timeout_s is not None else draft.stream_timeout_s
    timeouts: dict[str, Any] = {}
    if waits is not None:
        timeouts = {"first_byte_s": waits, "gap_s": waits}
        if not isinstance(waits, str) and waits > 600:
            timeouts["total_s"] = waits
    if stream is not None:
        timeouts["gap_s"] = stream
    if timeouts:
        deployment.values["timeouts"] = timeouts


def _prices(deployment: Deployment) -> None:
    prices = deployment.prices
    if not prices:
        return
    if not any(prices.values()):
        deployment.values["price"] = "free"
        return
    full = {"input": Decimal(0), "output": Decimal(0), **prices}
    deployment.values["price"] = {k: int(v) if v == v.to_integral_value() else float(v) for k, v in full.items()}


def _params(deployment: Deployment) -> None:
    if "params" in deployment.values:
        deployment.values["params"] = _without_holes(deployment.values["params"])


def _without_holes(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_holes(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_holes(v) for v in value if v is not None]
    return value


def _needs_key(draft: Draft, deployment: Deployment) -> None:
    provider = PROVIDERS[deployment.provider]
    is_keyless = bool(provider.keyless) and (provider.keyless != "databricks" or "client_id" in deployment.values)
    if "api_key" in deployment.values or provider.auth == "none" or provider.api_key_env is None or is_keyless:
        return
    name = (deployment.prefix.key_env if deployment.prefix is not None else None) or provider.api_key_env
    reference = draft.reference(name, "secret", f"the key of provider {provider.name}, for models that name none")
    deployment.put("api_key", reference)


def _accepts(draft: Draft, deployment: Deployment) -> None:
    """Would `sidecar.yaml` be refused for this deployment? Then it is a comment with the reason."""
    values = Interpolation(Document(None, deployment.values), draft.placeholders, Hidden()).run()
    model = {"name": deployment.group, "deployments": [values]}
    at = deployment.node.get("litellm_params", "model") or deployment.node
    try:
        ModelSettings.model_validate(model)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("deployments", 0))
        deployment.drop(f"{where}: {first['msg'].removeprefix('Value error, ')}", at)
        return
    for path, what in cross_check(parts_of({"models": [model]})):
        if path[:1] == ("models",):
            deployment.drop(what, at)
            return


def _reserves(members: list[Deployment]) -> None:
    """Weight 0: never chosen while another is there."""
    last = max((_whole(d.values.get("order", 1)) for d in members if not d.is_reserve), default=None)
    if last is None:
        return
    for deployment in members:
        if deployment.is_reserve:
            deployment.values["order"] = min(last + 1, 1000)


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 1


def _weights(draft: Draft, members: list[Deployment]) -> None:
    """Without weights the other gateway draws by rpm, else by tpm, where every deployment of the name has it."""
    if len(members) < 2 or any("weight" in d.values or d.is_reserve for d in members):
        return
    for name in ("rpm", "tpm"):
        found = [d.values.get("limits", {}).get(name) for d in members]
        numbers = [n for n in found if isinstance(n, int) and n > 0]
        if len(numbers) < len(members):
            continue
        if len(set(numbers)) > 1:
            scale = min(1.0, _MOST_WEIGHT / max(numbers))
            for deployment, number in zip(members, numbers, strict=True):
                deployment.values["weight"] = number if scale == 1.0 else max(number * scale, 1e-6)
                leaf = deployment.param(name)
                if leaf is not None and leaf in draft.verdicts:
                    verdict = limit_verdict(f"limits.{name}")
                    text = "; ".join(part for part in (verdict.text, "also the weight, as there") if part)
                    draft.verdicts[leaf] = Verdict("changed", f"limits.{name}, weight", text)
        return


def _blame(draft: Draft, deployment: Deployment, reason: str, blamed: Node) -> None:
    """Every key of a deployment that is kept as a comment has no effect."""
    text = f"{COMMENTED_OUT}, see {place(blamed)}"
    for leaf in deployment.node.leaves():
        verdict = draft.verdicts.get(leaf)
        if leaf is blamed:
            if verdict is None or verdict.status == "taken":
                draft.verdicts[leaf] = Verdict("no equivalent", "", f"{reason}; the deployment is kept as a comment")
        elif verdict is None or verdict.status != "no equivalent":
            draft.verdicts[leaf] = Verdict("no equivalent", "", text)
