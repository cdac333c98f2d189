"""The one table of OpenAI chat field × provider: passed, mapped or refused; and what a deployment's policy makes of it.

The providers declare (`Provider.params`, `Provider.unsupported`), the table is derived from that (`fate`, `cells`), and
the providers decide by the same functions (`select_params`, `judge`, `dropper`). docs/translation.md shows it
(`python -m sidecar.translate.table`), tests/translate/test_fields.py sends every field through every provider.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sidecar.errors import BadRequestError, without_credentials

if TYPE_CHECKING:
    from sidecar.translate.provider import Call, Provider


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


OPENAI_CHAT_FIELDS = _names(
    """audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens
    messages metadata modalities model moderation n parallel_tool_calls prediction presence_penalty
    prompt_cache_key prompt_cache_options prompt_cache_retention reasoning_effort response_format
    safety_identifier seed service_tier stop store stream stream_options temperature tool_choice tools
    top_logprobs top_p user verbosity web_search_options"""
)
"""Every field of OpenAI's chat completion request. https://platform.openai.com/docs/api-reference/chat/create"""

OPERATORS_FIELDS = _names("anthropic_beta base_model structured_output")
"""Words of a deployment's `params` for translators; no client says them, allowed or not."""

SMUGGLING_FIELDS = _names(
    """api_base api_key api_type api_version auth aws_access_key_id aws_bedrock_runtime_endpoint aws_external_id
    aws_profile_name aws_region_name aws_role_name aws_secret_access_key aws_session_name aws_session_token
    aws_sts_endpoint aws_web_identity_token azure_ad_token azure_ad_token_provider azure_endpoint azure_password
    azure_username base_url client client_id client_secret custom_llm_provider default_headers default_query
    deployment_id extra_body extra_headers extra_query headers http_client langfuse_host langfuse_public_key
    langfuse_secret_key litellm_credential_name litellm_params openai_api_base openai_api_key organization project
    proxies proxy ssl_verify tenant_id user_config vertex_ai_credentials vertex_ai_location vertex_ai_project
    vertex_credentials vertex_location vertex_project"""
)
"""Names by which clients try to choose destination or credential. They never have an effect here; a request that
carries one at its top level is refused, so that nobody believes it had."""


Fate = Literal["passed", "mapped", "refused", "dropped"]
Judgement = Literal["passed", "left out", "dropped"]
Drop = Callable[[str, str], None]
"""`drop(param, what to do instead)`: leaves it out by policy, or raises."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One field at one provider. `note`: how it is mapped, or what to do instead. `is_partial`: some values or models
    are refused all the same, which the note says."""

    fate: Fate
    note: str
    is_partial: bool = False


def fate(provider: Provider, name: str, *, drops: bool = False, allowed: Collection[str] = ()) -> Fate:
    """What becomes of a field; `drops` and `allowed` are the deployment's `drop_params` and `allowed_params`."""
    note = provider.params.get(name)
    if note is not None:
        return "passed" if note.startswith("passed") else "mapped"
    if name in allowed or (provider.passes_unknown and name not in provider.unsupported):
        return "passed"
    return "dropped" if drops else "refused"


def cell(provider: Provider, name: str) -> Cell:
    note = provider.params.get(name)
    if note is None:
        return Cell(fate(provider, name), provider.unsupported.get(name, ""))
    return Cell(fate(provider, name), note, "refused" in note)


def cells(providers: Iterable[Provider]) -> dict[str, dict[str, Cell]]:
    """The whole table: field → provider → cell. Fields beyond OpenAI's that a provider maps come last."""
    listed = list(providers)
    more = {name for provider in listed for name in provider.params} - OPENAI_CHAT_FIELDS
    names = [*sorted(OPENAI_CHAT_FIELDS), *sorted(more)]
    return {name: {provider.name: cell(provider, name) for provider in listed} for name in names}


def refuse_smuggling(payload: Mapping[str, Any]) -> None:
    """Raises `BadRequestError` if the request tries to choose destination or credential."""
    if not SMUGGLING_FIELDS.isdisjoint(payload):
        name = next(key for key in payload if key in SMUGGLING_FIELDS)
        raise BadRequestError(
            f"The gateway refused the request: '{name}' is not accepted in a request body. Destination and credential "
            "come from the gateway's configuration only; remove the field.",
            code="forbidden_parameter",
            param=name,
        )


_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "store": (False,),
    "modalities": (["text"], []),
    "verbosity": ("medium",),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "metadata": ({},),
    "service_tier": ("auto",),
    "parallel_tool_calls": (True,),
}


def is_neutral(name: str, value: Any) -> bool:
    """True if the value asks for what happens anyway, so leaving the field out changes nothing."""
    return value is None or any(
        value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in _NEUTRAL.get(name, ())
    )


def unsupported_field(provider: Provider, name: str, fix: str) -> BadRequestError:
    return BadRequestError(
        f"The gateway refused the request: provider {provider.name} does not support '{name}'. {fix} "
        "Or set drop_params on the deployment to leave such fields out.",
        code="unsupported_parameter",
        param=name,
    )


def judge(provider: Provider, call: Call, name: str, value: Any) -> Judgement:
    """A field of the request that the table refuses: sent all the same, without effect anyway, or dropped by policy.
    Raises `BadRequestError` where the deployment has no policy."""
    found = fate(provider, name, drops=call.drop_params, allowed=call.allowed_params)
    if value is None or (found != "passed" and is_neutral(name, value)):
        return "left out"
    if found == "refused":
        fix = provider.unsupported.get(name, "It is not a field of OpenAI's chat completions; remove it.")
        raise unsupported_field(provider, name, fix)
    return "dropped" if found == "dropped" else "passed"


def dropper(provider: Provider, call: Call, dropped: list[str], *, hints: tuple[str, ...] = ()) -> Drop:
    """For values and parts that cannot be said: noted in `dropped` if the deployment drops, else refused by name.
    `hints`: fields that change nothing in an answer but its price, so they are noted always and never refused."""

    def drop(param: str, fix: str) -> None:
        if not call.drop_params and param.rpartition(".")[2] not in hints:
            raise unsupported_field(provider, param, fix)
        dropped.append(param)

    return drop


MOST_SHOWN = 50
LONGEST_SHOWN = 80


def shown_names(names: Sequence[str]) -> tuple[str, ...]:
    """What a policy dropped, fit for a header, a row and a record: a client may have made the names up, with line ends
    in them or a megabyte long, and any number of them."""
    shown = tuple(map(_shown, names[:MOST_SHOWN]))
    return shown if len(names) <= MOST_SHOWN else (*shown, f"and {len(names) - MOST_SHOWN} more")


def _shown(name: str) -> str:
    name = without_credentials(name[: 4 * LONGEST_SHOWN])
    if not (name.isascii() and name.isprintable()):
        name = ascii(name)[1:-1]
    return name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}..."


def select_params(provider: Provider, call: Call) -> tuple[dict[str, Any], list[str]]:
    """The payload's fields this provider takes (deployment defaults under the client's), and the names dropped by
    policy. Raises `BadRequestError` for a field it cannot take."""
    refuse_smuggling(call.payload)
    fields: dict[str, Any] = {}
    dropped: list[str] = []
    for name, value in call.payload.items():
        if name in provider.params or (provider.passes_unknown and name not in provider.unsupported):
            if value is not None:
                fields[name] = value
            continue
        found = judge(provider, call, name, value)
        if found == "passed":
            fields[name] = value
        elif found == "dropped":
            dropped.append(name)
    for name, value in call.params.items():
        if fields.get(name) is None:
            fields[name] = value
    return fields, dropped
