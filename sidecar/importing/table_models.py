"""Rows for an entry of `model_list`: each takes one key of it into a deployment. Neighbour: `settle.py` finishes the
deployments when all settings are known.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from sidecar.config.check import PLACE_KEYS, is_local, notes
from sidecar.config.models import Config, DeploymentSettings
from sidecar.importing.draft import Deployment, Draft, Superseded, decimal_of, looks_secret, named
from sidecar.importing.providers import PREFIXES, Prefix, fit_base_url, guess, is_openai, place
from sidecar.importing.report import Refuse, Verdict, shown
from sidecar.importing.rows import Row, Table, nothing
from sidecar.importing.source import Node
from sidecar.translate.provider import OPENAI_CHAT_FIELDS, SMUGGLING_FIELDS
from sidecar.translate.registry import PROVIDERS

Handler = Callable[[Draft, Deployment, Node], Verdict]
_OPEN_HEADERS = frozenset(
    {"accept", "anthropic-beta", "anthropic-version", "content-type", "http-referer", "openai-beta", "user-agent",
     "x-title"}
)  # fmt: skip
"""Headers whose value is never a secret; all others are moved to variables."""
_NAME = re.compile(r"[!-~]{1,256}")
_YET = "not yet: "


def prepare(draft: Draft, entry: Node) -> Deployment:
    """A deployment with its name, provider and model (`litellm.py` has checked that they are there); the rows take the
    rest."""
    deployment = Deployment(entry)
    draft.deployments.append(deployment)
    name, model = entry.value["model_name"], entry.value["litellm_params"].value["model"]
    deployment.group = name.text.strip()
    if deployment.group.startswith("os.environ/") or not _NAME.fullmatch(deployment.group):
        deployment.drop("its name must be 1 to 256 printable ASCII characters without spaces here", name)
    elif "*" in deployment.group[:-1]:
        deployment.drop("here a '*' may stand at the end of a name only", name)
    try:
        _find_provider(deployment, model)
    except (Refuse, ValueError) as error:
        deployment.drop(str(error), model)
    return deployment


def _find_provider(deployment: Deployment, model: Node) -> None:
    text = model.text.strip()
    deployment.values = {"model": named(text, 160)}
    custom = deployment.param("custom_llm_provider")
    if model.env is not None or (custom is not None and custom.env is not None):
        raise Refuse("its model is known only when the other gateway starts; write it out")
    if text == "*":
        raise Refuse("one '*' for all providers does not exist here; write 'openai/*' with model 'openai/*' and so on")
    first, slash, rest = text.partition("/")
    if custom is not None:
        first, rest = custom.text.strip(), text.removeprefix(f"{custom.text.strip()}/")
    elif not slash:
        found = guess(text)
        if found is None:
            raise Refuse("its model has no provider prefix, and the name is not known; write 'openai/…' or the like")
        first, rest = found, text
    deployment.values = {"provider": named(first, 160), "model": named(rest, 160)}
    prefix = PREFIXES.get(first)
    if first in PROVIDERS and (prefix is None or prefix.ours not in PROVIDERS):
        prefix = Prefix(first)
    if prefix is None:
        raise Refuse(f"there is no provider '{named(first, 40)}' here{_may_be_compatible(deployment)}")
    deployment.prefix = prefix
    deployment.provider, deployment.model = place(prefix, rest)
    base = deployment.param("api_base") or deployment.param("base_url")
    is_literal = base is not None and not base.text.startswith("os.environ/")
    if first == "openai" and base is not None and is_literal and not is_openai(base.text.strip()):
        deployment.provider = "openai_compatible"
    rest = deployment.model
    deployment.values = {"provider": deployment.provider, "model": rest}
    if deployment.provider not in PROVIDERS:
        raise Refuse(f"this version has no provider '{deployment.provider}' yet{_may_be_compatible(deployment)}")
    if not _NAME.fullmatch(rest):
        raise Refuse("its model must be 1 to 256 printable ASCII characters without spaces here")
    if ("*" in rest) != deployment.group.endswith("*"):
        raise Refuse("a model with '*' needs a name that ends with '*', and the other way round")


def _may_be_compatible(deployment: Deployment) -> str:
    has_base = deployment.param("api_base") is not None
    return "; if it speaks OpenAI's dialect, take openai_compatible with its base_url" if has_base else ""


# Handlers


def _name(draft: Draft, deployment: Deployment, node: Node) -> Verdict:
    if deployment.blamed is node:
        raise Refuse(f"{deployment.out}; the deployment is kept as a comment")
    return Verdict("taken", "models.name")


def _model(draft: Draft, deployment: Deployment, node: Node) -> Verdict:
    if deployment.blamed is node:
        raise Refuse(f"{deployment.out}; the deployment is kept as a comment")
    to = "provider, model"
    if f"{deployment.provider}/{deployment.model}" == node.text.strip():
        return Verdict("taken", to)
    return Verdict("changed", to, f"provider {deployment.provider}, model {shown(deployment.model)}")


def _custom_provider(draft: Draft, deployment: Deployment, node: Node) -> Verdict:
    if deployment.provider == node.text.strip():
        return Verdict("taken", "provider")
    return Verdict("changed", "provider", f"{deployment.provider or 'none'} here")


def _secret(to: str) -> Handler:
    def handle(draft: Draft, deployment: Deployment, node: Node) -> Verdict:
        _needs_place(deployment, to)
        wanted = to
        if to == "api_key":
            wanted = f"{deployment.provider or deployment.group}_API_KEY"
            known = PROVIDERS.get(deployment.provider)
            if known is not None and known.api_key_env is not None:
                wanted = known.api_key_env
        try:
            reference = draft.secret(node, wanted)
        except Refuse as error:
            deployment.drop(f"its {to}: {error}", node)  # the provider's usual key may be another account's
            raise
        _put(deployment, to, reference)
        return _moved(draft, node, to, reference)

    return handle


def _moved(draft: Draft, node: Node, to: str, reference: str) -> Verdict:
    if draft.is_moved(node):
        return Verdict("changed", to, f"moved out of the file; set {reference[2:-1]}")
    return Verdict("taken", to)


def _put(deployment: Deployment, to: str, value: Any) -> None:
    if not deployment.put(to, value):
        raise Superseded("not used; another key of this deployment says the same")


def _needs_place(deployment: Deployment, to: str) -> None:
    users = {name for name, keys in PLACE_KEYS.items() if to in keys}
    if users and deployment.provider not in users and deployment.provider in PROVIDERS:
        raise Refuse(f"provider {deployment.provider} does not use it; remove it")


def _google_credentials(draft: Draft, deployment: Deployment, node: Node) -> Verdict:
    _needs_place(deployment, "google_credentials")
    if node.env is None and not node.text.lstrip().startswith("{"):
        raise Refuse("a path: write google_credentials: ${file:/the/path}")
    reference = draft.secret(node, "GOOGLE_CREDENTIALS")
    _put(deployment, "google_credentials", reference)
    if draft.is_moved(node):
        return _moved(draft, node, "google_credentials", reference)
    return Verdict("changed", "google_credentials", "the variable has to hold the JSON itself, not its path")


def _place_text(to: str) -> Handler:
    def handle(draft: Draft, deployment: Deployment, node: Node) -> Verdict:
        _needs_place(deployment, to)
        _put(deployment, to, draft.text(node))
        return Verdict("taken", to)

    return handle


def _base_url(draft: Draft, deployment: Deployment, node: Node) -> Verdict:
    if node.text.startswith("os.environ/"):
        try:
            reference = draft.text(node, "url")
        except Refuse as error:
            deployment.drop(f"its api_base: {error}", node)
            raise
        _put(deployment, "base_url", reference)
        return Verdict("taken", "base_url")
    given = node.text.strip()
    try:
        url = urlsplit(given)
        fitted = fit_base_url(deployment.provider, given)
    except ValueError:
        url, fitted = urlsplit(""), ""
    fault = ""
    if "@" in url.netloc or url.query or url.fragment:
        fault = "its api_base holds a credential or a query, which a base_url may not"
    elif url.scheme not in ("http", "https") or not url.hostname:
        fault = "its api_base is no http(s) URL"
    if fault:
        deployment.drop(fault, node)
        raise Refuse(f"{fault}; the deployment is kept as a comment without it")
    value = draft.secret(node, "BASE_URL", "url") if looks_secret(fitted) else fitted.replace("${", "$${")
    _put(deployment, "base_url", value)
    how = [] if fitted == given else ["fitted to where our paths begin"]
    if url.scheme == "http" and not is_local(url.hostname or ""):
        deployment.put("allow_plain_http", True)
        how.append("allow_plain_http: true was added, for the credential goes unencrypted; better use https")
    return Verdict("changed", "base_url", "; ".join(how)) if how else Verdict("taken", "base_url")


def _limit(to: str) -> Handler:
    def handle(draft: Draft, deployment: Deployment, node: Node) -> Verdict:
        _put(deployment, to, draft.number(node, least=0, most=10**12, whole=True))
        return limit_verdict(to)

    return handle


def limit_verdict(to: str) -> Verdict:
    if _limits_are_enforced():
        return Verdict("taken", to)
    return Verdict("changed", to, "kept, but this version does not enforce limits of a deployment yet")


@cache
def _limits_are_enforced() -> bool:
    one = {"provider": "openai", "model": "m", "api_key": "k", "limits": {"rpm": 1}}
    config = Config.model_validate({"models": [{"name": "m", "deployments": [one]}]})
    return not any("not enforced" in note for note in notes(config))


def _weight(draft: Draft, deployment: Deployment, node: Node) -> Verdict:
    if decimal_of(node) == 0:
        deployment.is_reserve = True
        return Verdict("changed", "order", "weight 0: comes after all others of its name")
    _put(deployment, "weight", draft.number(node, least=0.000001, most=1_000_000))
    return Verdict("taken", "weight")


def _order(draft: Draft, deployment: Deployment, node: Node) -> Verdict:
    if decimal_of(node) == 0:
        _put(deployment, "order", 1)
        return Verdict("changed", "order", "0 became 1, the first order here")
    _put(deployment, "order", draft.number(node, least=1, most=1000, whole=True))
    return Verdict("taken", "order")


def _timeout(draft: Draft, deployment: Deployment, node: Node) -> Verdict:
    deployment.timeout_s = draft.number(node, least=0.001, most=86_400)
    return Verdict("changed", "timeouts.first_byte_s, gap_s", "the wait for the first byte and between two of them")


def _stream_timeout(draft: Draft, deployment: Deployment, node: Node) -> Verdict:
    deployment.stream_timeout_s = draft.number(node, least=0.001, most=86_400)
    return Verdict("changed", "timeouts.gap_s", "the longest silence within a stream")


def _drop_params(draft: Draft, deployment: Deployment, node: Node) -> Verdict:
    _put(deployment, "drop_params", draft.truth(node))
    return Verdict("taken", "drop_params")


def _allowed_param(draft: Draft, deployment: Deployment, node: Node) -> Verdict:
    name = draft.text(node)
    if not _NAME.fullmatch(name) or name.startswith("${"):
        raise Refuse("must be the name of a field")
    if name in SMUGGLING_FIELDS:
        raise Refuse("clients never choose destination or credential here")
    deployment.values.setdefault("allowed_params", []).append(name)
    return Verdict("taken", "allowed_params")


def _price(name: str) -> Handler:
    def handle(draft: Draft, deployment: Deployment, node: Node) -> Verdict:
        found = decimal_of(node)
        if found is None or not 0 <= found <= 1:
            raise Refuse("must be a price in USD per token, 0 to 1")
        if name in deployment.prices:
            raise Superseded("not used; another key of this deployment says the same")
        deployment.prices[name] = rate = (found * 1_000_000).quantize(Decimal("1e-12"))
        return Verdict("changed", f"price.{name}", f"{_plain(rate)} USD per million tokens")

    return handle


def _plain(number: Decimal) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _header(draft: Draft, deployment: Deployment, node: Node) -> Verdict:
    name = str(node.path[-1])
    if name.lower() in _OPEN_HEADERS:
        value = draft.text(node, wanted=f"HEADER_{name}")
    else:
        value = draft.secret(node, f"HEADER_{name}")
    return _set_header(draft, deployment, node, name, value)


def _organization(draft: Draft, deployment: Deployment, node: Node) -> Verdict:
    value = draft.secret(node, "OPENAI_ORGANIZATION")
    return _set_header(draft, deployment, node, "OpenAI-Organization", value)


def _set_header(draft: Draft, deployment: Deployment, node: Node, name: str, value: str) -> Verdict:
    try:
        DeploymentSettings.model_validate({"provider": "p", "model": "m", "headers": {name: "v"}})
    except ValidationError:
        raise Refuse("not the name of a header that may be set") from None
    headers = deployment.values.setdefault("headers", {})
    if name.lower() in (other.lower() for other in headers):
        raise Superseded("not used; another key of this deployment says the same")
    headers[name] = value
    to = f"headers.{shown(name, 60)}"
    # A text that needed no variable stands there as it was.
    return _moved(draft, node, to, value) if value.startswith("${") else Verdict("taken", to)


def _param(draft: Draft, deployment: Deployment, node: Node) -> Verdict:
    """`temperature`, `stop[0]`, `response_format.type`: the default where the client says nothing."""
    keys = list(node.path[3:])  # model_list[0].litellm_params, or credential_list[0].credential_values
    if keys[0] == "extra_body":
        keys = keys[1:]
    if not keys or isinstance(keys[0], int):
        raise Refuse("must be a mapping")
    value = node.value
    if isinstance(value, str):
        value = draft.text(node, wanted=f"PARAM_{keys[0]}")
    elif isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        raise Refuse("not a finite number")
    holder: Any = deployment.values.setdefault("params", {})
    for key, following in zip(keys, [*keys[1:], None], strict=True):
        fresh: Any = value if following is None else [] if isinstance(following, int) else {}
        if isinstance(holder, list):
            holder += [None] * (int(key) + 1 - len(holder))  # `settle.py` takes holes out
            holder[int(key)] = holder[int(key)] if holder[int(key)] is not None else fresh
            holder = holder[int(key)]
        else:
            holder = holder.setdefault(str(key), fresh)
    return Verdict("taken", "params." + shown(".".join(str(k) for k in keys if not isinstance(k, int)), 80))


def _mode(draft: Draft, deployment: Deployment, node: Node) -> Verdict:
    if node.value == "chat":
        return Verdict("taken", "", "chat is what we serve")
    raise Refuse(_YET + "only chat completions are served")


def _access_group(draft: Draft, deployment: Deployment, node: Node) -> Verdict:
    name = draft.text(node)
    if name.startswith("${") or not _NAME.fullmatch(name):
        raise Refuse("must be 1 to 256 printable ASCII characters without spaces here")
    deployment.access_groups.append(name)
    return Verdict("taken", "models.access_groups")


def _team(draft: Draft, deployment: Deployment, node: Node) -> Verdict:
    deployment.drop("it belongs to one team, and here it would be open to every key", node)
    raise Refuse(
        "models of one team do not exist yet; the deployment is kept as a comment, else every key could call it"
    )


def _blocked(draft: Draft, deployment: Deployment, node: Node) -> Verdict:
    if draft.truth(node) is False:
        return Verdict("taken", "", "not blocked")
    deployment.drop("it is blocked", node)
    return Verdict("changed", "", "a blocked deployment is kept as a comment")


def _credential(draft: Draft, deployment: Deployment, node: Node) -> Verdict:
    values = draft.credentials.get(node.text)
    if values is None:
        deployment.drop("its credential is not in credential_list", node)
        raise Refuse("credential_list has no such name; the deployment is kept as a comment")
    for leaf in values:
        name = ".".join(str(part) for part in leaf.path[3:])
        if deployment.param(str(leaf.path[3])) is not None:
            draft.verdicts.setdefault(leaf, Verdict("changed", "", "the deployment has its own"))
            continue
        row = TABLE.find(("litellm_params", *leaf.path[3:]))
        try:
            if row is None:
                raise Refuse(f"this import does not know the key '{named(name, 40)}'")
            draft.verdicts[leaf] = row.handle(draft, deployment, leaf)
        except Superseded as error:
            draft.verdicts.setdefault(leaf, Verdict("changed", "", str(error)))
        except (Refuse, ValueError) as error:
            draft.verdicts.setdefault(leaf, Verdict("no equivalent", "", str(error)))
    return Verdict("changed", "", "the credential's values stand in the deployment")


def _rows() -> list[Row[Handler]]:
    p = "litellm_params."
    both = ("litellm_params.", "model_info.")
    rows: list[Row[Handler]] = [
        Row("model_name", "models.name", "entries of one name become deployments of one model", _name, rank=0),
        Row(p + "model", "provider, model", "by its prefix; see the table of prefixes", _model, rank=0),
        Row(p + "custom_llm_provider", "provider", "instead of the prefix", _custom_provider),
        Row(p + "api_key", "api_key", "a literal key is moved to a variable", _secret("api_key")),
        Row(p + "api_base", "base_url", "without the path we append", _base_url),
        Row(p + "base_url", "base_url", "as api_base", _base_url, rank=6),
        Row(p + "api_version", "api_version", "where the provider uses it", _place_text("api_version")),
        Row(p + "aws_region_name", "region", "where the provider uses it", _place_text("region")),
        Row(p + "vertex_location", "region", "where the provider uses it", _place_text("region")),
        Row(p + "region_name", "region", "where the provider uses it", _place_text("region"), rank=6),
        Row(p + "vertex_project", "project", "where the provider uses it", _place_text("project")),
        Row(p + "project_id", "project", "where the provider uses it", _place_text("project"), rank=6),
        Row(p + "space_id", "params.space_id", "of watsonx", _param),
        Row(p + "organization", "headers.OpenAI-Organization", "moved to a variable", _organization),
        Row(p + "rpm", "limits.rpm", "also the weight, if no deployment of the name has one", _limit("limits.rpm")),
        Row(p + "tpm", "limits.tpm", "also the weight, if none has weight or rpm", _limit("limits.tpm")),
        Row(p + "max_parallel_requests", "limits.concurrency", "per deployment", _limit("limits.concurrency")),
        Row(p + "weight", "weight", "0 becomes the last order", _weight),
        Row(p + "order", "order", "0 becomes 1", _order),
        Row(p + "timeout", "timeouts.first_byte_s, gap_s", "total_s too, if above 600", _timeout),
        Row(p + "request_timeout", "timeouts.first_byte_s, gap_s", "as timeout", _timeout, rank=4),
        Row(p + "stream_timeout", "timeouts.gap_s", "the longest silence within a stream", _stream_timeout),
        Row(p + "drop_params", "drop_params", "", _drop_params),
        Row(p + "allowed_openai_params[]", "allowed_params", "sent as they are", _allowed_param),
        Row(p + "litellm_credential_name", "", "the credential's values stand in the deployment", _credential, rank=9),
        Row(p + "extra_body.**", "params", "sent where the client says nothing", _param),
        Row("model_info.mode", "", "`chat` only", _mode),
        Row("model_info.team_id", "", "the deployment is kept as a comment, else every key could call it", _team),
        Row("model_info.access_groups[]", "models.access_groups", "of all entries of the name", _access_group),
        Row("model_info.blocked", "", "a blocked deployment is kept as a comment", _blocked),
        Row("model_info.max_output_tokens", "max_output_tokens", "", _limit_tokens),
    ]
    for key in ("aws_access_key_id", "aws_secret_access_key", "aws_session_token"):
        rows.append(Row(p + key, key, "where the provider uses it; literal ones are moved", _secret(key)))
    rows += [
        Row(p + "aws_profile_name", "aws_profile", "where the provider uses it", _place_text("aws_profile")),
        Row(p + "aws_role_name", "aws_role_arn", "where the provider uses it", _place_text("aws_role_arn")),
        Row(p + "tenant_id", "tenant_id", "where the provider uses it", _place_text("tenant_id")),
        Row(p + "client_id", "client_id", "where the provider uses it", _place_text("client_id")),
        Row(p + "client_secret", "client_secret", "where the provider uses it", _secret("client_secret")),
        Row(p + "vertex_credentials", "google_credentials", "the JSON, not its path", _google_credentials),
    ]
    for key in ("extra_headers", "default_headers", "headers"):
        how = "moved to variables, but for headers that are never secret (anthropic-beta, user-agent, …)"
        rows.append(Row(f"{p}{key}.*", "headers", how, _header))
    for theirs, ours in _PRICES.items():
        for i, where in enumerate(both):
            rows.append(Row(where + theirs, f"price.{ours}", "times a million", _price(ours), rank=5 + i))
    for name in sorted((OPENAI_CHAT_FIELDS | {"thinking", "top_k"}) - {"messages", "model", "stream"}):
        rows.append(Row(f"{p}{name}.**", f"params.{name}", "sent where the client says nothing", _param))
    rows += nothing(
        "num_retries max_retries retry_policy.** cooldown_time allowed_fails allowed_fails_policy.**",
        _YET + "retries and cooldowns are the same for all models; see routing.retries and routing.cooldown_s",
        prefix=p,
    )
    rows += nothing("vertex_credentials.**", "write the JSON into one variable, and name that", prefix=p)
    rows += nothing("itpm otpm", _YET + "limits count all tokens together; use tpm", prefix=p)
    rows += nothing("max_budget budget_duration", _YET + "a deployment has no budget; keys do", prefix=p)
    rows += nothing("tags.** tag_regex.**", _YET + "there is no routing by tags; use other names", prefix=p)
    rows += nothing(
        "aws_session_name aws_web_identity_token aws_sts_endpoint aws_bedrock_runtime_endpoint aws_external_id "
        "azure_ad_token azure_ad_token_provider azure_scope azure_username azure_password",
        _YET + "where it runs, the machine's own identity is found by the vendor's library",
        prefix=p,
    )
    rows += nothing("mock_response mock_response.**", "take the provider 'simulated' for tests", prefix=p)
    rows += nothing(
        "configurable_clientside_auth_params.**", "clients never choose destination or credential here", prefix=p
    )
    rows += nothing("use_in_pass_through use_litellm_proxy", _YET + "there are no pass-through endpoints", prefix=p)
    rows += nothing(
        "additional_drop_params.** modify_params merge_reasoning_content_in_choices",
        _YET + "a field is passed, dropped (drop_params) or refused by the provider's rules",
        prefix=p,
    )
    rows += nothing("cache_control_injection_points.**", _YET + "send cache_control in the request", prefix=p)
    rows += nothing("ssl_verify", "one setting for all: upstream.ca_file; certificates are always checked", prefix=p)
    rows += nothing("model_info.id", "a deployment's id is made from its name, place and provider")
    rows += nothing("model_info.base_model", _YET + "give the deployment a price of its own if it has none")
    rows += nothing(
        "model_info.supported_environments.**", "one file is one environment; remove what another one serves"
    )
    for where in both:
        rows += nothing(
            "input_cost_per_second output_cost_per_second input_cost_per_pixel output_cost_per_pixel "
            "input_cost_per_character output_cost_per_character input_cost_per_request output_cost_per_image "
            "input_cost_per_query input_cost_per_image",
            "prices are per token",
            prefix=where,
        )
    rows += nothing("model_info.health_check_model model_info.health_check_timeout", _YET + "no health checks are sent")
    rows += nothing("model_info.**", "it only informs; nothing here reads it")
    return rows


def _limit_tokens(draft: Draft, deployment: Deployment, node: Node) -> Verdict:
    _put(deployment, "max_output_tokens", draft.number(node, least=1, most=10_000_000, whole=True))
    return Verdict("taken", "max_output_tokens")


_PRICES = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cache_read",
    "cache_creation_input_token_cost": "cache_write",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h",
    "output_cost_per_reasoning_token": "reasoning",
    "input_cost_per_audio_token": "audio_input",
    "output_cost_per_audio_token": "audio_output",
    "input_cost_per_image_token": "image_input",
    "output_cost_per_image_token": "image_output",
}

TABLE: Table[Handler] = Table(_rows())

__all__ = ["TABLE", "Handler", "limit_verdict", "prepare"]
