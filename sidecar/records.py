"""What became of each request and why, for whoever asks afterwards: a ring in memory, filled with plain values, which
are put into words only when asked for.

Neighbours: ObserveMiddleware (which calls `note`), `admin.exchanges` (which shows them), `records_shared` (which asks
other processes). Rules: `note` costs a microsecond or two; a record holds no body, no header, no credential, and of a
provider's error its kind only, for its words may quote the prompt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sidecar.errors import RefusedError, SidecarError, UpstreamError
from sidecar.exchange import Attempt, Exchange
from sidecar.limits.claims import Claims, Denied
from sidecar.routing.candidates import Candidates
from sidecar.routing.health import Cooldown
from sidecar.spend.cost import Price
from sidecar.types import Deployment, SpendRecord, Usage, format_usd

KEEP = 5000
_MESSAGE_CHARS = 500
_MOST_CALLERS = 100
_USAGE = tuple(Usage().__dataclass_fields__)
Record = tuple[Any, ...]
Paused = Callable[[float], Mapping[str, Cooldown]]
Shown = dict[str, Any]


class Records:
    """The newest `keep` exchanges of this process. `paused` tells the deployments that pause at an instant, `strategy`
    how a group chooses among its deployments."""

    def __init__(
        self, *, keep: int = KEEP, paused: Paused | None = None, strategy: Callable[[str], str] | None = None
    ) -> None:
        self._ring: deque[Record] = deque(maxlen=keep)
        self._paused = paused
        self._strategy = strategy

    def __len__(self) -> int:
        return len(self._ring)

    def note(self, exchange: Exchange, ended_at: float) -> None:
        """An exchange that is over."""
        caller = exchange.identity
        grant = exchange.grant
        error = exchange.error
        paused = self._paused(exchange.started_at) if self._paused is not None else None
        attempts = exchange.attempts
        self._ring.append(
            (
                exchange.exchange_id,
                exchange.request_id,
                exchange.started_at,
                ended_at,
                None
                if caller is None
                else (
                    caller.key_hash,
                    caller.key_alias or caller.key_name,
                    caller.user_id,
                    caller.team_id,
                    caller.organization_id,
                    exchange.end_user_id or caller.end_user_id,
                    exchange.tags or caller.tags,
                ),
                exchange.model,
                exchange.asked_model,
                exchange.is_stream,
                exchange.status,
                exchange.outcome,
                exchange.replay_of,
                None if error is None else _noted_error(error),
                None if grant is None else (grant.hold_nano, grant.headers, grant.claims),
                None if exchange.candidates is None else _noted_candidates(exchange.candidates),
                None if not paused else tuple((n, c.reason, c.since_at, c.until_at) for n, c in paused.items()),
                (exchange.queue_place, exchange.queue_s) if exchange.queue_place else None,
                exchange.deadline_s,
                (_noted_attempt(attempts[0]),) if len(attempts) == 1 else tuple(map(_noted_attempt, attempts)),
            )
        )

    async def found(self, name: str) -> list[Shown]:
        return self.find(name)

    def find(self, name: str) -> list[Shown]:
        """That with this exchange id, and of each caller its newest with this `x-request-id`; the newest first. A
        client may give all its requests the same: to put thousands into words would hold the loop."""
        found: list[Shown] = []
        callers: set[Any] = set()
        for record in reversed(self._ring):
            if record[0] != name:
                if record[1] != name:
                    continue
                caller = record[4][:4] if record[4] is not None else None
                if caller in callers or len(callers) == _MOST_CALLERS:
                    continue
                callers.add(caller)
            found.append(self._shown(record))
        return found

    def _shown(self, record: Record) -> Shown:
        (
            exchange_id,
            request_id,
            started_at,
            ended_at,
            caller,
            model,
            asked_model,
            is_stream,
            status,
            outcome,
            replay_of,
            error,
            grant,
            candidates,
            paused,
            queue,
            deadline_s,
            attempts,
        ) = record
        hold_nano, headers, claims = grant if grant is not None else (0, [], None)
        return {
            "exchange_id": exchange_id,
            "request_id": request_id,
            "at": shown_at(started_at),
            "duration_ms": _ms(ended_at - started_at),
            "deadline_s": deadline_s,
            "model": model or None,
            "alias": asked_model,
            "is_stream": is_stream,
            "status": status,
            "outcome": outcome,
            "replay_of": replay_of,
            "caller": _shown_caller(caller),
            "error": _shown_error(error),
            "queue": None if queue is None else {"place": queue[0], "waited_ms": _ms(queue[1])},
            "limits": _shown_limits(claims, headers),
            "money": {
                "held_usd": format_usd(hold_nano),
                "cost_usd": format_usd(sum(a[_COST] or 0 for a in attempts)),
                "budgets": _shown_budgets(claims),
            },
            "route": self._shown_route(candidates, paused, attempts, caller, started_at),
            "attempts": [
                _shown_attempt(attempt, started_at, attempts[:index]) for index, attempt in enumerate(attempts)
            ],
            "source": "memory",
            "missing": [],
        }

    def _shown_route(
        self, candidates: Any, paused: Any, attempts: Sequence[Any], caller: Any, started_at: float
    ) -> Shown | None:
        if not candidates:
            return None
        own = candidates[0][1]
        pauses = {name: more for name, *more in paused or ()}
        tried = [attempt[_DEPLOYMENT] for attempt in attempts]
        wanted = set(caller[6]) if caller is not None else set()
        is_meant = any(wanted.intersection(candidate[6]) for candidate in candidates)
        first = min(candidate[4] for candidate in candidates if candidate[1] == own)
        shown = []
        for name, group, provider, model, order, weight, tags in candidates:
            why = None
            if name not in tried:
                pause = pauses.get(name)
                if (tags or is_meant) and not wanted.intersection(tags):
                    why = "tags: the request has none of its tags"
                elif pause is not None and pause[1] <= started_at:
                    why = f"paused until {shown_at(pause[2])}: {pause[0]}"
                elif group != own:
                    why = "fallback: not needed, or not reached"
                elif order > first:
                    why = f"order {order}: only when all before it failed"
                else:
                    why = "not chosen"
            shown.append(
                {
                    "deployment": name, "group": group, "provider": provider, "model": model, "order": order,
                    "weight": weight, "attempts": tried.count(name), "not_tried": why,
                }
            )  # fmt: skip
        return {
            "group": own,
            "strategy": self._strategy(own) if self._strategy is not None else None,
            "candidates": shown,
        }


def _noted_error(error: SidecarError) -> Record:
    """Without the exception: its traceback holds everything the request had."""
    about = getattr(error, "about", None)
    return (
        error.is_from_gateway,
        error.status,
        error.type,
        error.code,
        error.param,
        error.message[:_MESSAGE_CHARS] if isinstance(error, RefusedError) else None,
        error.retry_after_s,
        getattr(error, "kind", None),
        (about.what, about.kind, about.limit) if isinstance(about, Denied) else None,
    )


def _noted_candidates(candidates: Sequence[Deployment]) -> tuple[Record, ...]:
    """Once for all requests with the same ones: the catalog keeps them."""
    if type(candidates) is not Candidates:
        return tuple(map(_noted_candidate, candidates))
    noted = candidates.noted
    if noted is None:
        noted = candidates.noted = tuple(map(_noted_candidate, candidates))
    return noted


def _noted_candidate(d: Deployment) -> Record:
    return (d.deployment_id, d.group, d.provider, d.model, d.order, d.weight, d.tags)


_DEPLOYMENT, _STARTED, _ENDED, _COST, _HAS_CONTENT, _ERROR = 1, 4, 5, 8, 14, -1


def _noted_attempt(attempt: Attempt) -> Record:
    deployment = attempt.deployment
    usage = attempt.usage
    error = attempt.error
    return (
        attempt.number,
        deployment.deployment_id,
        deployment.provider,
        deployment.model,
        attempt.started_at,
        attempt.ended_at,
        attempt.first_byte_at,
        attempt.hold_nano,
        attempt.cost_nano,
        attempt.cost_status,
        attempt.status,
        attempt.is_sent,
        attempt.is_complete,
        attempt.is_lost,
        attempt.content_started,
        attempt.dropped,
        deployment.price,
        (
            usage.input,
            usage.cached_input,
            usage.cache_write_5m,
            usage.cache_write_1h,
            usage.output,
            usage.reasoning,
            usage.audio_input,
            usage.audio_output,
            usage.image_input,
            usage.image_output,
        ),
        None if error is None else _noted_upstream_error(error),
    )


def _noted_upstream_error(error: UpstreamError) -> Record:
    return (error.kind, error.code, error.status, error.is_from_gateway, error.may_be_billed, error.retry_after_s)


def _shown_attempt(attempt: Record, began_at: float, before: Iterable[Record]) -> Shown:
    (
        number,
        deployment,
        provider,
        model,
        started_at,
        ended_at,
        first_byte_at,
        hold_nano,
        cost_nano,
        cost_status,
        status,
        is_sent,
        is_complete,
        is_lost,
        content_started,
        dropped,
        price,
        usage,
        error,
    ) = attempt
    ends = [one[_ENDED] for one in before]
    is_beside = any(end is None or end > started_at for end in ends)
    waited_s = started_at - max((end for end in ends if end is not None), default=began_at)
    return {
        "number": number,
        "deployment": deployment,
        "provider": provider,
        "model": model,
        "waited_ms": 0 if is_beside else _ms(waited_s),
        "is_hedge": is_beside,
        "is_continuation": not is_beside and any(one[_HAS_CONTENT] and one[_ERROR] is not None for one in before),
        "is_lost": is_lost,
        "first_byte_ms": None if first_byte_at is None else _ms(first_byte_at - started_at),
        "duration_ms": None if ended_at is None else _ms(ended_at - started_at),
        "status": status or None,
        "is_sent": is_sent,
        "is_complete": is_complete,
        "content_started": content_started,
        "error": None
        if error is None
        else dict(
            zip(("kind", "code", "status", "is_from_gateway", "may_be_billed", "retry_after_s"), error, strict=True)
        ),
        "held_usd": format_usd(hold_nano),
        "cost_usd": None if cost_nano is None else format_usd(cost_nano),
        "cost_status": cost_status or None,
        "usage": {name: count for name, count in zip(_USAGE, usage, strict=True) if count is not None},
        "price": _shown_price(price),
        "dropped": list(dropped),
    }


def _shown_price(price: Price | None) -> Shown | None:
    """USD per million tokens, with the tiers of a longer input."""
    if price is None or price.status != "priced":
        return {"status": price.status if price is not None else "unpriced"}
    rates = {name: str(rate) for name in price.rates.__slots__ if (rate := getattr(price.rates, name)) is not None}
    tiers = [tier.above_input_tokens for tier in price.tiers]
    return {"status": price.status, **rates, **({"dearer_above_input_tokens": tiers} if tiers else {})}


def _shown_caller(caller: Any) -> Shown | None:
    if caller is None:
        return None
    names = ("key_hash", "key", "user_id", "team_id", "organization_id", "end_user_id", "tags")
    return dict(zip(names, (*caller[:6], list(caller[6])), strict=True))


def _shown_error(error: Any) -> Shown | None:
    if error is None:
        return None
    is_ours, status, type_, code, param, message, retry_after_s, kind, about = error
    return {
        "by": "gateway" if is_ours else "provider",
        "status": status,
        "type": type_,
        "code": code,
        "kind": kind,
        "param": param,
        "message": message,
        "retry_after_s": retry_after_s,
        "limit": None if about is None else _shown_limit(*about),
    }


def _shown_limit(what: str, of: str, limit: int) -> Shown:
    return {"what": what, "of": of, **({"max_usd": format_usd(limit)} if what == "budget" else {"limit": limit})}


def _shown_limits(claims: Claims | None, headers: Sequence[tuple[bytes, bytes]]) -> Shown | None:
    """What the request was counted in; `remaining` and `reset` are of the tightest windows, right after it."""
    if claims is None:
        return None
    every = (("requests", claims.requests), ("tokens", claims.tokens), ("concurrency", claims.slots))
    scopes = [{"what": what, "of": claim.kind, "limit": claim.limit} for what, some in every for claim in some]
    return {
        "scopes": scopes,
        "tightest": {name.decode().removeprefix("x-ratelimit-"): value.decode() for name, value in headers},
    }


def _shown_budgets(claims: Claims | None) -> list[Shown]:
    return [
        {
            "of": window.kind,
            "max_usd": format_usd(window.max_nano),
            "since": shown_at(window.start_at),
            "until": shown_at(window.end_at),
        }
        for window in (claims.windows if claims is not None else ())
    ]


def from_rows(rows: Sequence[SpendRecord]) -> Shown:
    """What the ledger knows of one exchange: its attempts. Corrections are added up."""
    firsts = sorted((row for row in rows if row.revision == 0), key=lambda row: row.attempt)
    last = firsts[-1]
    attempts = []
    for row in firsts:
        revisions = [one for one in rows if one.attempt == row.attempt]
        attempts.append(
            {
                "number": row.attempt, "deployment": row.deployment_id, "provider": row.provider, "model": row.model,
                "first_byte_ms": row.first_byte_ms, "duration_ms": row.duration_ms, "status": row.http_status or None,
                "outcome": row.outcome, "cost_usd": format_usd(sum(one.cost_nano for one in revisions)),
                "cost_status": max(revisions, key=lambda one: one.revision).status, "usage": row.usage.as_dict(),
                "dropped": list(row.dropped),
            }
        )  # fmt: skip
    return {
        "exchange_id": last.exchange_id,
        "request_id": last.request_id,
        "at": shown_at(firsts[0].at),
        "duration_ms": None,
        "deadline_s": None,
        "model": firsts[0].group,
        "alias": None,
        "is_stream": last.is_stream,
        "status": None,
        "outcome": last.outcome,
        "replay_of": None,
        "caller": {
            "key_hash": last.key_hash, "key": last.key_alias, "user_id": last.user_id, "team_id": last.team_id,
            "organization_id": last.organization_id, "end_user_id": last.end_user_id, "tags": list(last.tags),
        },
        "error": None,
        "queue": None,
        "limits": None,
        "money": {"held_usd": None, "cost_usd": format_usd(sum(row.cost_nano for row in rows)), "budgets": []},
        "route": None,
        "attempts": attempts,
        "source": "ledger",
        "missing": ["status", "error", "queue", "limits", "holds", "route", "waits", "prices"],
    }  # fmt: skip


def shown_at(at: float) -> str | None:
    is_ever = at in (float("inf"), float("-inf"))
    return None if is_ever else datetime.fromtimestamp(at, UTC).isoformat("T", "milliseconds")


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))
