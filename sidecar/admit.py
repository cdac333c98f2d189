"""What RateLimit and Budget share: one estimate, one acquisition of all claims, one settlement, what an attempt cost.

Neighbours: middleware/rate_limit.py, budget.py, spend.py (none of which may import another). Rule: the first of the
two that runs acquires for both; settling is idempotent, whoever comes first.
"""

from __future__ import annotations

from typing import Any

import anyio

from sidecar.asgi import SETTLE_LIMIT_S, aside, candidates_of, read_body
from sidecar.errors import BudgetExceededError, HoldUsedUpError, RateLimitedError, UnpricedModelError
from sidecar.exchange import NO_BOUND, Attempt, Exchange
from sidecar.limits.admission import Admission
from sidecar.limits.claims import Claims
from sidecar.routing.catalog import Catalog
from sidecar.spend.cost import UNPRICED, Price, affordable_output, cost_nano, worst_case_nano
from sidecar.translate.estimate import estimate_input_tokens, likely_input_tokens, requested_output_tokens
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
    ) -> None:
        self.admission = admission
        self.catalog = catalog
        self.unpriced = unpriced
        self.no_max_tokens = no_max_tokens
        self.default_output_tokens = default_output_tokens
        self.has_global_budget = has_global_budget
        self.parts: set[str] = set()


def estimate_of(exchange: Exchange) -> tuple[int, int | None]:
    """(input tokens, never under; output tokens asked for or None), once per exchange."""
    if exchange.estimate is None:
        payload = exchange.payload or {}
        exchange.estimate = (
            estimate_input_tokens(payload, len(exchange.raw or b"")),
            requested_output_tokens(payload),
        )
    return exchange.estimate


def price_of(deployment: Deployment) -> Price:
    return deployment.price if deployment.price is not None else UNPRICED


def _output_bound(deployment: Deployment, default: int) -> int:
    return deployment.max_output_tokens or default


def worst_case(exchange: Exchange, deployment: Deployment, default: int = DEFAULT_OUTPUT_TOKENS) -> int:
    """Nano-dollars one attempt at `deployment` may cost at most."""
    tokens_in, tokens_out = estimate_of(exchange)
    if tokens_out is None:
        tokens_out = exchange.edits.get("output_cap") or _output_bound(deployment, default)
    return worst_case_nano(price_of(deployment), tokens_in, tokens_out)


async def admit(scope: Any, exchange: Exchange, policy: AdmissionPolicy) -> None:
    """Acquire every claim of this request in one atomic step. Raises RefusedError subclasses; then nothing is held."""
    if exchange.grant is not None:
        return
    await read_body(scope, exchange)
    caller = exchange.caller
    size = len(exchange.raw or b"")
    if size < BIG_BYTES:
        tokens_in, tokens_out = estimate_of(exchange)
        likely_in = likely_input_tokens(exchange.payload or {}, size)
    else:
        tokens_in, tokens_out = await aside(estimate_of, exchange)
        likely_in = await aside(likely_input_tokens, exchange.payload, size)
    hold = minimum = 0
    has_budgets = "budgets" in policy.parts
    is_capped = False
    dearest: Deployment | None = None
    if has_budgets:
        candidates = candidates_of(exchange, policy.catalog) if policy.catalog is not None else ()
        under_budget = policy.has_global_budget or caller.has_budget
        if under_budget:
            is_capped = tokens_out is None
            if is_capped and policy.no_max_tokens == "refuse":
                raise BudgetExceededError(
                    "The gateway refused the request: under a budget it needs 'max_tokens'. Add it.",
                    code="max_tokens_required",
                    param="max_tokens",
                )
        for deployment in candidates:
            price = price_of(deployment)
            if price.status == "unpriced" and under_budget and policy.unpriced == "refuse":
                raise UnpricedModelError(
                    f"The gateway refused the request: the model '{exchange.model}' has no price and this key has a "
                    "budget. Give its deployment a price, or declare it free.",
                    param="model",
                )
            bound = tokens_out if tokens_out is not None else _output_bound(deployment, policy.default_output_tokens)
            worst = worst_case_nano(price, tokens_in, bound)
            if dearest is None or worst > hold:
                hold, dearest = worst, deployment
        minimum = hold
        if is_capped and dearest is not None:
            minimum = min(hold, worst_case_nano(price_of(dearest), tokens_in, MIN_OUTPUT_TOKENS))
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
    exchange.grant = grant
    if is_capped and dearest is not None:
        # Bounded output is what makes the budget a ceiling, so the bound travels upstream.
        bound = _output_bound(dearest, policy.default_output_tokens)
        if grant.hold_nano < hold:
            bound = min(bound, affordable_output(price_of(dearest), tokens_in, grant.hold_nano))
        exchange.edits["output_cap"] = max(1, bound)


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
        charge(exchange, attempt)
        if attempt.usage.is_known:
            tokens = (tokens or 0) + attempt.usage.total
        elif attempt.may_be_billed:
            tokens = None
            break
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
    is_unsent = exchange.outcome == "refused" or (exchange.outcome == "client_left" and exchange.is_routed)
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
        attempt.cost_nano, attempt.cost_status = cost_nano(price, attempt.usage), "settled"
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


def tokens_so_far(exchange: Exchange, attempt: Attempt) -> Usage:
    """Usage of an answer its client left, or we ended: what the vendor told so far, the rest counted by events."""
    usage = attempt.usage
    tokens_in, _ = estimate_of(exchange)
    known = usage.as_dict()
    if usage.input is None:
        known["input"] = tokens_in
    known["output"] = max(usage.output or 0, min(attempt.events_seen, attempt.output_max - METER_SLACK))
    return Usage(**known)


async def extend(exchange: Exchange, attempt: Attempt, policy: AdmissionPolicy) -> None:
    """Before a dispatch: the first attempt uses the hold; one that follows a possibly billed one holds its own, and so
    does one that begins beside another, whose cost nobody knows yet."""
    attempt.hold_nano = worst_case(exchange, attempt.deployment, policy.default_output_tokens)
    grant = exchange.grant
    if grant is None or "budgets" not in policy.parts:
        return
    attempt.hold_nano = min(attempt.hold_nano, grant.hold_nano) if not exchange.attempts else attempt.hold_nano
    is_beside = any(a.is_running for a in exchange.attempts)
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
