"""What RateLimit and Budget share: one estimate, one acquisition of all claims, one settlement, what an attempt cost.

Neighbours: middleware/rate_limit.py, budget.py, spend.py (none of which may import another). Rule: the first of the
two that runs acquires for both; settling is idempotent, whoever comes first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import anyio

from sidecar.asgi import SETTLE_LIMIT_S, aside, candidates_of, read_body
from sidecar.errors import BudgetExceededError, HoldUsedUpError, RateLimitedError, UnpricedModelError
from sidecar.exchange import NO_BOUND, Attempt, Exchange
from sidecar.limits.admission import Admission
from sidecar.limits.claims import Claims
from sidecar.routing.catalog import Catalog
from sidecar.spend.cost import UNPRICED, Price, affordable_output, cost_nano, worst_case_nano
from sidecar.translate.estimate import requested_choices
from sidecar.translate.media_bounds import FILE_TOKENS
from sidecar.translate.pieces import BIG_BYTES
from sidecar.types import Deployment, Usage

DEFAULT_OUTPUT_TOKENS = 4096
"""The output bound held (and sent upstream as a cap) when the client gave none and the deployment names none."""
MIN_OUTPUT_TOKENS = 16
"""The least output a capped request is still worth sending for."""
TPM_OUTPUT_GUESS = 256
"""Reserved on token windows when the client gave no bound; the surplus counts at settle."""
METER_SLACK = 8
"""Events of a stream that carry no token of output: role, finish, usage, end, the beginnings of a few tool calls."""
RUN_BY_CLIENTS = ("function", "custom", "computer", "computer_use_preview", "local_shell", "apply_patch")
"""Types of tools whose results come with the next request; https://platform.openai.com/docs/api-reference/responses."""


SEARCH_FIELDS = ("web_search_options", "search_parameters", "enable_search", "plugins", "data_sources", "mcp_servers")
"""By which vendors are told to read more than the request. https://docs.x.ai/docs/guides/live-search ·
https://openrouter.ai/docs/features/web-search · https://www.alibabacloud.com/help/en/model-studio/web-search ·
https://learn.microsoft.com/en-us/azure/ai-foundry/openai/references/on-your-data"""
LISTED_TIERS = ("auto", "default", "standard", "standard_only", "on_demand", "flex", "batch", "scale", "reserved")
"""Service tiers that cost what the price says, or less; `priority` costs about twice that.
https://platform.openai.com/docs/guides/priority-processing"""


THOUGHTS_A_SECOND = 200
"""Tokens of thinking a model may write that nobody sees, where its vendor tells of them in the end only."""
_THINKERS = re.compile(r"(?:^|[/.])(?:o\d|gpt-(?:[5-9]|\d\d)(?!\S*-chat)|grok-(?:3-mini|4)(?!\S*-non-reasoning))")
"""Models that think unasked and do not show it. https://platform.openai.com/docs/guides/reasoning ·
https://docs.x.ai/docs/guides/reasoning"""


class AdmissionPolicy:
    """How an `Admission` is used by a stack: which parts, at which prices, by which policies.

    `parts` is filled by the middlewares that enforce them ("limits", "budgets") when the stack is built.
    """

    def __init__(
        self,
        admission: Admission,
        catalog: Catalog | None = None,
        *,
        unpriced: str = "refuse",
        no_max_tokens: str = "cap",
        default_output_tokens: int = DEFAULT_OUTPUT_TOKENS,
        has_global_budget: bool = False,
        vendor_tools: str = "allow",
    ) -> None:
        self.admission = admission
        self.catalog = catalog
        self.unpriced = unpriced
        self.no_max_tokens = no_max_tokens
        self.default_output_tokens = default_output_tokens
        self.has_global_budget = has_global_budget
        self.vendor_tools = vendor_tools
        self.parts: set[str] = set()


def estimate_of(exchange: Exchange) -> tuple[int, int | None]:
    """(input tokens, never under; output tokens asked for or None), once per exchange."""
    if exchange.estimate is None:
        payload, dialect = exchange.payload or {}, exchange.dialect
        tokens_in = dialect.input_tokens(payload, len(exchange.raw or b""), exchange.candidates or ())
        exchange.estimate = (tokens_in + exchange.carried_tokens, dialect.output_tokens(payload))
    return exchange.estimate


def vendor_tool(payload: Mapping[str, Any]) -> str | None:
    """Where a request asks for a tool the provider runs by itself, such as a web search."""
    for name in SEARCH_FIELDS:
        if (value := payload.get(name)) or (value is not None and name == "web_search_options"):
            return name
    tools = payload.get("tools")
    for number, tool in enumerate(tools if isinstance(tools, list) else ()):
        if isinstance(tool, dict) and tool.get("type", "function") not in RUN_BY_CLIENTS:
            return f"tools[{number}].type"
    return None


def price_of(deployment: Deployment) -> Price:
    return deployment.price if deployment.price is not None else UNPRICED


def _output_bound(deployment: Deployment, default: int) -> int:
    return deployment.max_output_tokens or default


def cap_at(deployment: Deployment, cap: int) -> int:
    """The bound of a request's output, as it goes to this deployment: never more than it is configured to give."""
    return min(cap, deployment.max_output_tokens or cap)


def worst_case(exchange: Exchange, deployment: Deployment, default: int = DEFAULT_OUTPUT_TOKENS) -> int:
    """Nano-dollars one attempt at `deployment` may cost at most."""
    tokens_in, tokens_out = estimate_of(exchange)
    if tokens_out is None:
        cap = exchange.edits.get("output_cap")
        bound = _output_bound(deployment, default) if cap is None else cap_at(deployment, cap)
        tokens_out = bound * requested_choices(exchange.payload or {})
    return worst_case_nano(price_of(deployment), tokens_in, tokens_out)


async def admit(scope: Any, exchange: Exchange, policy: AdmissionPolicy) -> None:
    """Acquire every claim of this request in one atomic step. Raises RefusedError subclasses; then nothing is held."""
    if exchange.grant is not None:
        return
    await read_body(scope, exchange)
    caller = exchange.caller
    has_budgets = "budgets" in policy.parts
    candidates: Sequence[Deployment] = ()
    if has_budgets and policy.catalog is not None:
        candidates = candidates_of(exchange, policy.catalog)  # before the estimate, which depends on them
    size = len(exchange.raw or b"")
    if size < BIG_BYTES:
        tokens_in, tokens_out = estimate_of(exchange)
        likely_in = exchange.dialect.likely_tokens(exchange.payload or {}, size)
    else:
        tokens_in, tokens_out = await aside(estimate_of, exchange)
        likely_in = await aside(exchange.dialect.likely_tokens, exchange.payload, size)
    hold = minimum = 0
    is_capped = False
    choices = 1 if tokens_out is not None else requested_choices(exchange.payload or {})
    if has_budgets:
        under_budget = policy.has_global_budget or caller.has_budget
        if under_budget and policy.vendor_tools == "refuse" and (where := vendor_tool(exchange.payload or {})):
            raise UnpricedModelError(
                f"The gateway refused the request: what '{where}' makes the provider read is billed and cannot be "
                "bounded beforehand, and this key has a budget. Leave it out, or bring what was found yourself.",
                code="vendor_tool_unbounded",
                param=where,
            )
        tier = (exchange.payload or {}).get("service_tier")
        if tier is not None and under_budget and policy.unpriced == "refuse":
            _check_tier(tier, candidates)
        for deployment in candidates:
            price = price_of(deployment)
            if price.status == "unpriced" and under_budget and policy.unpriced == "refuse":
                raise UnpricedModelError(
                    f"The gateway refused the request: the model '{exchange.model}' has no price and this key has a "
                    "budget. Give its deployment a price, or declare it free.",
                    param="model",
                )
            bound = tokens_out
            if bound is None:
                bound = _output_bound(deployment, policy.default_output_tokens) * choices
            hold = max(hold, worst_case_nano(price, tokens_in, bound))
        minimum = hold
        is_free = hold == 0 and all(price_of(d).status != "unpriced" for d in candidates)
        is_capped = under_budget and tokens_out is None and not is_free
        if is_capped:
            if policy.no_max_tokens == "refuse":
                raise BudgetExceededError(
                    f"The gateway refused the request: under a budget it needs '{exchange.dialect.cap_field}'. Add it.",
                    code="max_tokens_required",
                    param=exchange.dialect.cap_field,
                )
            least = MIN_OUTPUT_TOKENS * choices
            minimum = min(hold, max(worst_case_nano(price_of(d), tokens_in, least) for d in candidates))
    try:
        grant = await policy.admission.acquire(
            exchange.exchange_id,
            caller,
            exchange.model,
            tokens=likely_in + (tokens_out if tokens_out is not None else TPM_OUTPUT_GUESS),
            hold_nano=hold,
            min_hold_nano=minimum,
            limits="limits" in policy.parts,
            budgets=has_budgets,
        )
    except BudgetExceededError as error:
        if tokens_in >= FILE_TOKENS:
            error.message += (
                f" Its input counts as {tokens_in:,} tokens: a file whose length cannot be told, such as a PDF, counts "
                "as much as it may hold. Its text alone may fit."
            )
        raise
    exchange.grant = grant
    if is_capped:
        # Bounded output is what makes the budget a ceiling, so the bound travels upstream.
        exchange.edits["output_cap"] = output_cap(
            candidates, tokens_in, grant.hold_nano, choices, policy.default_output_tokens
        )


def _check_tier(tier: object, candidates: Sequence[Deployment]) -> None:
    """No price says what a dearer tier costs."""
    if tier not in LISTED_TIERS and any(price_of(d).status == "priced" for d in candidates):
        raise UnpricedModelError(
            "The gateway refused the request: its 'service_tier' costs more than the model's price says, and this key "
            "has a budget. Leave it out, or have a deployment that asks for it, with the price of that tier.",
            code="service_tier_unpriced",
            param="service_tier",
        )


def output_cap(
    candidates: Sequence[Deployment], tokens_in: int, hold_nano: int, choices: int, default: int = DEFAULT_OUTPUT_TOKENS
) -> int:
    """The most output a choice may have, such that the hold pays for it whoever of them serves it."""
    cap = max(_output_bound(deployment, default) for deployment in candidates)
    for deployment in candidates:
        fits = affordable_output(price_of(deployment), tokens_in, hold_nano) // choices
        if fits < cap_at(deployment, cap):
            cap = fits
    return max(1, cap)


def lines_of(exchange: Exchange, policy: AdmissionPolicy) -> list[str]:
    """The limits this request counts on, by the names of the lines in which one waits for them."""
    claims = _claims(exchange, policy)
    return [
        f"{what}:{claim.key}"
        for what, found in (("requests", claims.requests), ("tokens", claims.tokens), ("concurrency", claims.slots))
        for claim in found
    ]


def line_of(exchange: Exchange, policy: AdmissionPolicy, error: RateLimitedError) -> str | None:
    """The line of the limit that refused."""
    if error.limit is None:
        return None
    what, kind, limit = error.limit
    claims = _claims(exchange, policy)
    found = {"requests": claims.requests, "tokens": claims.tokens, "concurrency": claims.slots}.get(what, ())
    return next((f"{what}:{claim.key}" for claim in found if claim.kind == kind and claim.limit == limit), None)


def _claims(exchange: Exchange, policy: AdmissionPolicy) -> Claims:
    return policy.admission.claims_of(
        exchange.caller, exchange.model, limits="limits" in policy.parts, budgets="budgets" in policy.parts
    )


async def settle(exchange: Exchange, policy: AdmissionPolicy) -> None:
    """Turn the reservation into what was really used; once per exchange, idempotent in the store too."""
    grant = exchange.grant
    if grant is None or exchange.is_settled:
        return
    tokens: int | None = 0
    for attempt in exchange.attempts:
        charge(exchange, attempt)  # each, also where the tokens are not known
        if attempt.usage.is_known:
            tokens = None if tokens is None else tokens + attempt.usage.total
        elif attempt.may_be_billed:
            tokens = None
    cost: int | None = exchange.cost_nano
    if not exchange.attempts and exchange.status < 400:
        # An endpoint of a host app below us: what the tap saw is all there is; nothing seen charges the hold.
        seen = exchange.seen_usage
        tokens = seen.total if seen.is_known else None
        cost = None
        if seen.is_known:
            cost = max((cost_nano(price_of(d), seen) for d in exchange.candidates or ()), default=0)
    try:
        await policy.admission.settle(grant, tokens=tokens, cost_nano=cost)
    except BaseException:
        with anyio.move_on_after(SETTLE_LIMIT_S, shield=True):
            await policy.admission.settle(grant, tokens=tokens, cost_nano=cost)
        exchange.is_settled = True
        raise
    exchange.is_settled = True


async def cancel(exchange: Exchange, policy: AdmissionPolicy) -> None:
    """We refused further in: roll everything back as if never admitted."""
    if exchange.grant is not None and not exchange.is_settled:
        exchange.is_settled = True
        with anyio.move_on_after(SETTLE_LIMIT_S, shield=True):
            await policy.admission.cancel(exchange.grant)


async def finish(exchange: Exchange, policy: AdmissionPolicy) -> None:
    """After the app below is done: what ended before any dispatch rolls back, everything else settles."""
    is_unsent = exchange.outcome == "refused" or exchange.is_routed  # Route announces whatever it sends
    if is_unsent and not exchange.attempts:
        await cancel(exchange, policy)
    else:
        await settle(exchange, policy)


def charge(exchange: Exchange, attempt: Attempt) -> None:
    """Decide what an attempt cost, once: `cost_nano` and `cost_status` as SpendRecord describes them."""
    if attempt.cost_nano is not None:
        return
    price = price_of(attempt.deployment)
    if not attempt.may_be_billed:
        attempt.cost_nano, attempt.cost_status = 0, "not_billed"
    elif price.status != "priced":
        attempt.cost_nano, attempt.cost_status = 0, price.status
    elif attempt.usage.is_known and attempt.is_complete:
        attempt.cost_status = "settled"
        if attempt.usage.input is None and not attempt.usage.total_input:
            # No request is without input: of a vendor that told the output alone it is estimated.
            attempt.usage = Usage(**attempt.usage.as_dict() | {"input": estimate_of(exchange)[0]})
            attempt.cost_status = "estimated"
        attempt.cost_nano = cost_nano(price, attempt.usage)
        if attempt.usage.output is None and not attempt.usage.total_output:
            # Of a vendor that told the input alone the output is not nothing, but at most what is held for it.
            attempt.cost_nano = max(attempt.cost_nano, _held(exchange, attempt))
            attempt.cost_status = "estimated"
    elif isinstance(attempt.error, HoldUsedUpError) or (
        (exchange.client_left or attempt.is_lost) and (attempt.events_seen or attempt.usage.is_known)
    ):
        attempt.usage = tokens_so_far(exchange, attempt)
        attempt.cost_nano, attempt.cost_status = cost_nano(price, attempt.usage), "estimated"
    elif attempt.is_complete and attempt.error is None and not attempt.usage.is_known:
        # A whole answer whose vendor told no usage: charged at the bound, labelled.
        attempt.cost_nano, attempt.cost_status = _held(exchange, attempt), "estimated"
    else:
        attempt.cost_nano, attempt.cost_status = _held(exchange, attempt), "unknown"


def _held(exchange: Exchange, attempt: Attempt) -> int:
    return attempt.hold_nano or worst_case(exchange, attempt.deployment)


def _left_of_hold(exchange: Exchange, attempt: Attempt) -> int:
    """What is held for this exchange and not charged to its earlier attempts."""
    held = exchange.grant.hold_nano if exchange.grant is not None else attempt.hold_nano
    return held - sum(a.cost_nano or 0 for a in exchange.attempts if a is not attempt)


def _thinks_unseen(exchange: Exchange, attempt: Attempt) -> bool:
    payload = exchange.payload or {}
    effort, thinking, reasoning = (payload.get(name) for name in ("reasoning_effort", "thinking", "reasoning"))
    if isinstance(reasoning, dict):
        effort = reasoning.get("effort", effort)
    if effort is not None or isinstance(thinking, dict):
        return effort not in (None, "none") or (isinstance(thinking, dict) and thinking.get("type") != "disabled")
    return _THINKERS.search(attempt.deployment.model) is not None


def tokens_so_far(exchange: Exchange, attempt: Attempt) -> Usage:
    """Usage of an answer its client left, or we ended: what the vendor told so far, the rest counted by events, and
    thinking that no event tells of by the time it took, as far as the hold pays for it."""
    usage = attempt.usage
    tokens_in, _ = estimate_of(exchange)
    known = usage.as_dict()
    if usage.input is None:
        known["input"] = tokens_in
    known["output"] = max(usage.output or 0, min(attempt.events_seen, attempt.output_max - METER_SLACK))
    if usage.reasoning is None and _thinks_unseen(exchange, attempt):
        took_s = (attempt.ended_at or exchange.now()) - attempt.started_at
        paid = affordable_output(price_of(attempt.deployment), tokens_in, _held(exchange, attempt)) - known["output"]
        known["reasoning"] = max(0, min(int(took_s * THOUGHTS_A_SECOND), paid))
    return Usage(**known)


async def extend(exchange: Exchange, attempt: Attempt, policy: AdmissionPolicy) -> None:
    """Before a dispatch: the first attempt uses the hold; one that follows a possibly billed one holds its own, and so
    does one that begins beside another, whose cost nobody knows yet."""
    attempt.hold_nano = worst_case(exchange, attempt.deployment, policy.default_output_tokens)
    grant = exchange.grant
    if grant is None or "budgets" not in policy.parts:
        return
    attempt.hold_nano = min(attempt.hold_nano, grant.hold_nano) if not exchange.attempts else attempt.hold_nano
    is_beside = exchange.beginning > 1 or any(a.is_running for a in exchange.attempts)
    billed = [a for a in exchange.attempts if a.may_be_billed]
    if is_beside:
        await policy.admission.extend_hold(grant, attempt.hold_nano)
    elif billed:
        for earlier in billed:
            charge(exchange, earlier)
        needed = sum(a.cost_nano or 0 for a in billed) + attempt.hold_nano
        if needed > grant.hold_nano:
            await policy.admission.extend_hold(grant, needed - grant.hold_nano)
    if grant.windows and exchange.is_stream:
        left = attempt.hold_nano if is_beside else _left_of_hold(exchange, attempt)
        bound = affordable_output(price_of(attempt.deployment), estimate_of(exchange)[0], left)
        attempt.output_max = min(bound + METER_SLACK, NO_BOUND)
