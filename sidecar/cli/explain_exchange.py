"""`sidecar explain --request-id ID`: what became of one request and why, asked of the running gateway.

Neighbour: `admin.exchanges`, which answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from sidecar.cli.api import Api, print_json
from sidecar.cli.printable import printable


def show_exchange(request_id: str, url: str, master_key: str | None, *, as_json: bool) -> None:
    from urllib.parse import quote

    found = Api(url, master_key).get(f"/exchanges/{quote(request_id, safe='')}")
    if as_json:
        print_json(found)
    else:
        typer.echo(text(found))


def text(shown: Mapping[str, Any]) -> str:
    """For people: what was asked, who refused, what was tried in which order, what it was counted in and cost."""
    caller = shown["caller"] or {}
    who = ", ".join(f"{name.removesuffix('_id')} {caller[name]}" for name in _WHO if caller.get(name))
    alias = f" (asked for as {shown['alias']})" if shown["alias"] else ""
    took = f" after {shown['duration_ms']} ms" if shown["duration_ms"] is not None else ""
    status = f"{shown['status']} " if shown["status"] else ""
    lines = [
        f"{shown['exchange_id']}  {shown['at']}",
        f"model {shown['model']}{alias}{', streamed' if shown['is_stream'] else ''}; by {who or 'nobody known'}",
        f"{status}{shown['outcome']}{took}; cost ${shown['money']['cost_usd']}",
    ]
    if shown["replay_of"]:
        lines.append(f"replayed: the answer of {shown['replay_of']}, by its Idempotency-Key")
    if shown["queue"]:
        lines.append(f"queue: place {shown['queue']['place']}, {shown['queue']['waited_ms']} ms")
    lines += _error(shown["error"])
    lines += [line for attempt in shown["attempts"] for line in _attempt(attempt)]
    if shown["route"]:
        lines.append(f"route: group {shown['route']['group']}, strategy {shown['route']['strategy'] or 'unknown'}")
        lines += [
            f"  {one['deployment']}: {one['not_tried'] or 'tried ' + str(one['attempts']) + '×'}"
            for one in shown["route"]["candidates"]
        ]
    if shown["limits"]:
        lines += [f"limit: {one['of']}, {one['limit']} {one['what']}" for one in shown["limits"]["scopes"]]
        lines += [f"  {name}: {value}" for name, value in shown["limits"]["tightest"].items()]
    lines += [
        f"budget: {one['of']}, ${one['max_usd']} until {one['until'] or 'ever'}" for one in shown["money"]["budgets"]
    ]
    if shown["money"]["held_usd"] not in (None, "0"):
        lines.append(f"held: ${shown['money']['held_usd']}")
    if shown["missing"]:
        lines.append(f"from the ledger; not known any more: {', '.join(shown['missing'])}")
    return "\n".join(map(printable, lines))


_WHO = ("key", "user_id", "team_id", "organization_id", "end_user_id")


def _error(error: Mapping[str, Any] | None) -> list[str]:
    if error is None:
        return []
    limit = error["limit"]
    lines = [f"refused by the {error['by']}: {error['code']}" + (f" ({error['param']})" if error["param"] else "")]
    if limit is not None:
        lines.append(f"  the limit: {limit['of']}, {_amount(limit)}")
    if error["message"]:
        lines.append(f"  {error['message']}")
    if error["retry_after_s"] is not None:
        lines.append(f"  retry after {float(error['retry_after_s']):.1f} s")
    return lines


def _amount(limit: Mapping[str, Any]) -> str:
    return f"a budget of ${limit['max_usd']}" if limit["what"] == "budget" else f"{limit['limit']} {limit['what']}"


def _attempt(attempt: Mapping[str, Any]) -> list[str]:
    parts = [f"attempt {attempt['number']}: {attempt['deployment']} ({attempt['provider']} {attempt['model']})"]
    if attempt.get("is_hedge"):
        parts.append("beside the one before")
    elif attempt.get("is_continuation"):
        parts.append("went on with the answer that broke" if attempt.get("content_started") else "was to go on with it")
    elif attempt.get("waited_ms"):
        parts.append(f"after {attempt['waited_ms']} ms")
    error = attempt.get("error")
    if error is not None:
        parts.append(f"{error['kind']}: {error['code']}")
    elif attempt.get("is_lost"):
        parts.append("lost: another began first")
    elif attempt["status"]:
        parts.append(str(attempt["status"]))
    if attempt["first_byte_ms"] is not None:
        parts.append(f"first byte {attempt['first_byte_ms']} ms")
    if attempt["duration_ms"] is not None:
        parts.append(f"{attempt['duration_ms']} ms")
    if attempt["cost_usd"] is not None:
        parts.append(f"${attempt['cost_usd']} {attempt['cost_status'] or ''}".rstrip())
    lines = [", ".join(parts)]
    if attempt["usage"]:
        lines.append("  tokens: " + ", ".join(f"{name} {count}" for name, count in attempt["usage"].items()))
    if attempt["dropped"]:
        lines.append(f"  dropped: {', '.join(attempt['dropped'])}")
    return lines
