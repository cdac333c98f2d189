"""`sidecar spend …`: reports, whether the sums agree, what an unknown cost was. They use the configured
database; no gateway has to run.

Neighbours: `spend/reports.py`, `spend/verify.py`, `spend/reconcile.py`.
"""

from __future__ import annotations

import asyncio
import csv
import json
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from sidecar.cli.printable import printable

if TYPE_CHECKING:
    from sidecar.config import Config
    from sidecar.spend.ledger import Ledger
    from sidecar.spend.reconcile import Delta, Invoice
    from sidecar.spend.reports import Report
    from sidecar.spend.verify import Counter, CounterDifference, TotalDifference
    from sidecar.types import SpendRecord

spend = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What was spent, and whether the sums agree.")

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="sidecar.yaml (else SIDECAR_CONFIG)")]
T = TypeVar("T")
_NUMBER = re.compile(r"-[0-9]+(\.[0-9]+)?")


@spend.command("report")
def report_command(
    by: Annotated[str, typer.Option(help="key, team, user, organization, member, end_user, tag, group, model, provider "
                                         "or day; several, comma-separated")] = "model",
    first: Annotated[str | None, typer.Option("--from", help="first day, YYYY-MM-DD in UTC; else 30 days ago")] = None,
    last: Annotated[str | None, typer.Option("--to", help="last day, included; else today")] = None,
    where: Annotated[list[str] | None, typer.Option(help="only these, such as team=red or model=gpt-4o")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="lines at most, the dearest")] = 1000,
    as_csv: Annotated[bool, typer.Option("--csv", help="print CSV")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    config: ConfigOption = None,
) -> None:  # fmt: skip
    """What was spent, by whom and on what."""
    from sidecar.cli import fail
    from sidecar.spend import reports

    today = datetime.now(UTC).date()
    end = _day(last, "--to") or today
    begin = _day(first, "--from") or end - timedelta(days=29)
    if begin > end:
        fail(f"--from: {begin} is after {end}", 2)
    conditions = dict(_pair(text) for text in where or [])
    names = [name.strip() for name in by.split(",") if name.strip()]

    async def ask(ledger: Ledger) -> tuple[Report, dict[str, str]]:
        found = await reports.report(
            ledger,
            by=names,
            since_at=_midnight(begin),
            until_at=_midnight(end + timedelta(days=1)),
            where=conditions,
            limit=limit,
        )
        keys = [line.names[names.index("key")] for line in found.lines] if "key" in names else []
        return found, await reports.key_aliases(ledger, keys)

    found, aliases = _with_ledger(config, ask)
    rows = list(_rows(found, aliases))
    if as_json:
        window = {"from": begin.isoformat(), "to": end.isoformat(), "by": names}
        typer.echo(json.dumps({**window, "data": rows, "total": _described(found.total)}, indent=2))
    elif as_csv:
        writer = csv.DictWriter(sys.stdout, list(rows[0]) if rows else [*names, *_described(found.total)])
        writer.writeheader()
        writer.writerows({name: _no_formula(value) for name, value in row.items()} for row in rows)
    else:
        _print_report(found, rows)


@spend.command("verify")
def verify_command(
    wait: Annotated[float, typer.Option(min=0, max=600, help="seconds to look again at what is on its way")] = 10.0,
    config: ConfigOption = None,
) -> None:
    """Compare daily totals and budget counters with the ledger; exit code 1 if they differ."""
    from sidecar.cli import read_config

    settings = read_config(config)
    redis_url = settings.store.redis_url.reveal() if settings.store.redis_url is not None else None

    async def ask(ledger: Ledger) -> tuple[list[TotalDifference], list[CounterDifference], int]:
        from sidecar.spend import verify

        totals = await verify.totals_that_differ(ledger)
        if redis_url is None:
            return totals, [], 0
        until = asyncio.get_running_loop().time() + wait
        counted = 0

        async def read() -> Iterable[Counter]:
            nonlocal counted
            found = await redis_counters(redis_url, settings.budget.timezone)
            counted = max(counted, len(found))
            return found

        async def again() -> bool:
            await asyncio.sleep(min(1.0, wait))
            return asyncio.get_running_loop().time() < until

        return totals, await verify.counters_that_differ(ledger, read, again), counted

    totals, counters, counted = _with_ledger(config, ask, settings)
    for total in totals:
        what = ", ".join(f"{name} by {value}" for name, value in total.by.items())
        day = datetime.fromtimestamp(total.day_at, UTC).date()
        typer.echo(
            f"daily total differs: {day} {total.dimension} {total.name!r} {total.provider}/{total.model}: {what}"
        )
    for difference in counters:
        counter = difference.counter
        typer.echo(
            f"counter differs: {printable(counter.key)}: the ledger has {_usd(difference.ledger_nano)}, the counter"
            f" {_usd(counter.nano)} ({_usd(counter.held_nano)} of it held): {_usd(difference.nano)} apart"
        )
    if redis_url is None:
        typer.echo("note: no Redis: each gateway counts in its memory, from what the daily totals said at its start")
    typer.echo(f"daily totals: {len(totals)} differ; counters: {len(counters)} of {counted} differ")
    if totals or counters:
        raise typer.Exit(1)


@spend.command("reconcile")
def reconcile_command(
    invoice: Annotated[Path, typer.Option(help="a CSV export of OpenAI's or Anthropic's console (costs or usage)")],
    where: Annotated[
        list[str] | None, typer.Option(help="only these rows, such as group=gpt: what this account serves")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    config: ConfigOption = None,
) -> None:
    """Compare a provider's own figures with the ledger; exit code 1 if any line differs by more than its error bar."""
    from sidecar.cli import fail, read_config
    from sidecar.config.build import deployments
    from sidecar.errors import BadRequestError
    from sidecar.spend import reconcile
    from sidecar.spend.price_loader import load_price

    try:
        read = reconcile.read_file(invoice)
    except (OSError, BadRequestError) as error:
        fail(f"{invoice}: {getattr(error, 'strerror', None) or error}", 2)

    conditions = dict(_pair(text) for text in where or [])

    settings = read_config(config)
    prices = [(d.model, d.price) for d in deployments(settings, load_price, {}) if d.provider == read.vendor]

    async def ask(ledger: Ledger) -> list[Delta]:
        return await reconcile.reconcile(ledger, read, conditions, prices)

    deltas = _with_ledger(config, ask, settings)
    if as_json:
        head = {"vendor": read.vendor, "kind": read.kind, "from": read.first.isoformat(), "to": read.last.isoformat()}
        typer.echo(json.dumps({**head, "data": [_described_delta(delta) for delta in deltas]}, indent=2))
    else:
        _print_deltas(read, deltas)
    if not all(delta.is_explained for delta in deltas):
        raise typer.Exit(1)


@spend.command("resolve")
def resolve_command(
    exchange_id: Annotated[str, typer.Argument(help="the request, as its x-request-id header named it")],
    cost: Annotated[str, typer.Option(help="what it really cost, in USD; 0 if the provider billed nothing")],
    attempt: Annotated[int | None, typer.Option(min=0, help="which attempt, if several are unknown")] = None,
    config: ConfigOption = None,
) -> None:
    """Put the real cost in place of one the ledger does not know (status `unknown`)."""
    from sidecar.cli import fail, read_config
    from sidecar.limits.windows import MAX_BUDGET_NANO
    from sidecar.types import usd_to_nano

    try:
        nano = usd_to_nano(Decimal(cost))
    except (ArithmeticError, ValueError):
        fail(f"--cost: {cost[:32]!r} is not a number of USD", 2)
    if not 0 <= nano <= MAX_BUDGET_NANO:
        fail("--cost: has to be from 0 to 9000000", 2)
    settings = read_config(config)
    redis_url = settings.store.redis_url.reveal() if settings.store.redis_url is not None else None

    async def ask(ledger: Ledger) -> list[SpendRecord]:
        from zoneinfo import ZoneInfo

        from sidecar.errors import UnavailableError
        from sidecar.jobs.unknown import Unknown
        from sidecar.limits.store import StoreDownError, open_store

        store = open_store(redis_url, deadline_s=5.0) if redis_url is not None else None
        try:
            zone = ZoneInfo(settings.budget.timezone)
            unknown = Unknown(ledger, store, zone=zone)
            return await unknown.resolve(exchange_id, nano, attempt=attempt)
        except StoreDownError as error:
            raise UnavailableError(
                "The limit store does not answer: see `sidecar spend verify`.", code="limit_store_unavailable"
            ) from error
        finally:
            if store is not None:
                await store.aclose()

    for row in _with_ledger(config, ask, settings):
        typer.echo(f"attempt {row.attempt} revision {row.revision}: {row.status} {_usd(row.cost_nano)}")
    if redis_url is None:
        typer.echo("note: no Redis: running gateways count the held cost until they start again")


async def redis_counters(url: str, timezone: str) -> list[Counter]:
    """Every budget counter in Redis, with what exchanges in flight hold of it, all at one instant. Raises
    `UnavailableError`."""
    from redis.asyncio import Redis
    from redis.exceptions import RedisError

    from sidecar.errors import UnavailableError
    from sidecar.limits.store.redis import PREFIX

    client = Redis.from_url(url)
    try:
        names = sorted({key async for key in client.scan_iter(f"{PREFIX}b:*", count=1000)})
        found: Any = await client.eval(_SNAPSHOT, 1 + len(names), f"{PREFIX}leases", *names, f"{PREFIX}x:")
    except (RedisError, OSError) as error:
        raise UnavailableError("The limit store does not answer.", code="limit_store_unavailable") from error
    finally:
        await client.aclose()
    held: dict[str, int] = {}
    for hold, keys in zip(found[1][::2], found[1][1::2], strict=True):
        for key in json.loads(keys)["bud"]:
            held[key] = held.get(key, 0) + int(hold)
    counters = []
    for name, value in zip(names, found[0], strict=True):
        text = name.decode()
        if value is not None:
            counters.append(_counter(text.removeprefix(f"{PREFIX}b:"), int(value), held.get(text, 0), timezone))
    return counters


_SNAPSHOT = """
local holds = {}
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local found = redis.call('HMGET', ARGV[1] .. id, 'hold', 'keys')
  if found[1] then holds[#holds + 1] = found[1]; holds[#holds + 1] = found[2] end
end
local values = {}
for i = 2, #KEYS do values[i - 1] = redis.call('GET', KEYS[i]) end
return {values, holds}
"""


def _counter(key: str, nano: int, held: int, timezone: str) -> Counter:
    """`kind:scope_id:duration:start`, as `limits.windows` writes it."""
    from zoneinfo import ZoneInfo

    from sidecar.limits.windows import bounds
    from sidecar.spend.verify import Counter
    from sidecar.types import Budget

    head, duration, start = key.rsplit(":", 2)
    kind, _, scope_id = head.partition(":")
    budget = Budget(0, None if duration == "life" else duration, anchor_at=float(start))
    begin, end = bounds(budget, float(start), UTC if timezone == "UTC" else ZoneInfo(timezone))
    return Counter(key, kind, scope_id, begin, end, nano, held)


def _with_ledger(config: Path | None, ask: Callable[[Ledger], Awaitable[T]], settings: Config | None = None) -> T:
    from sidecar.cli import fail, read_config
    from sidecar.errors import SidecarError

    known = settings or read_config(config)

    async def run() -> T:
        async with _ledger(known) as ledger:
            return await ask(ledger)

    try:
        return asyncio.run(run())
    except SidecarError as error:
        fail(str(error))


@asynccontextmanager
async def _ledger(settings: Config) -> AsyncIterator[Ledger]:
    from sidecar.db import Database
    from sidecar.spend.ledger import Ledger

    database = Database(settings.store.database_url.reveal())
    try:
        yield Ledger(database)
    finally:
        await database.aclose()


def _day(text: str | None, option: str) -> date | None:
    from sidecar.cli import fail

    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        fail(f"{option} is a day such as 2026-11-01", 2)


def _midnight(day: date) -> float:
    return datetime.combine(day, datetime.min.time(), UTC).timestamp()


def _pair(text: str) -> tuple[str, str]:
    from sidecar.cli import fail

    name, equals, value = text.partition("=")
    if not equals:
        fail("--where is a name and a value, such as team=red", 2)
    return name.strip(), value


def _usd(nano: int) -> str:
    from sidecar.types import format_usd

    return f"${format_usd(nano)}" if nano >= 0 else f"-${format_usd(-nano)}"


def _described(sums: Any) -> dict[str, Any]:
    from sidecar.types import format_usd

    return {
        "usd": format_usd(sums.cost_nano),
        "estimated_usd": format_usd(sums.estimated_nano),
        "unknown_usd": format_usd(sums.unknown_nano),
        "attempts": sums.attempts,
        "failed": sums.failed,
        "unpriced": sums.unpriced,
        "input_tokens": sums.input_tokens,
        "output_tokens": sums.output_tokens,
    }


def _rows(found: Report, aliases: dict[str, str]) -> Iterable[dict[str, Any]]:
    for line in found.lines:
        names: dict[str, Any] = dict(zip(found.by, line.names, strict=True))
        if "key" in names:
            names["key_alias"] = aliases.get(names["key"])
        yield names | _described(line.sums)


def _no_formula(value: Any) -> Any:
    """Clients choose names, and a spreadsheet runs what begins like a formula: a quote before it makes it text. What is
    a number stays one. https://owasp.org/www-community/attacks/CSV_Injection"""
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return value
    return value if _NUMBER.fullmatch(value) else f"'{value}"


def _print_report(found: Report, rows: Sequence[dict[str, Any]]) -> None:
    shown = [{**row, "key": row["key_alias"] or row["key"][:12]} if "key" in row else row for row in rows]
    columns = [*found.by, "usd", "attempts", "failed", "input_tokens", "output_tokens"]
    total = {**_described(found.total), found.by[0]: "total"}
    _print_table(columns, [*shown, total], left=len(found.by))
    for name in ("estimated", "unknown"):
        if nano := getattr(found.total, f"{name}_nano"):
            typer.echo(f"{name}: {_usd(nano)} of the total")
    if found.total.unpriced:
        typer.echo(f"unpriced: {found.total.unpriced} attempts have no known cost and count as $0")
    if found.next_offset is not None:
        typer.echo(f"the dearest {len(rows)} lines; --limit shows more")


def _print_deltas(invoice: Invoice, deltas: Sequence[Delta]) -> None:
    typer.echo(f"{invoice.vendor} {invoice.kind}, {invoice.first} to {invoice.last}")
    columns = ["model", "what", "provider", "ledger", "delta", "±", "explained"]
    rows = []
    for delta in deltas:
        shown = _described_delta(delta)
        rows.append({**shown, "±": shown["uncertain"], "explained": "yes" if delta.is_explained else "no"})
    _print_table(columns, rows, left=2)
    if unpriced := sum(delta.unpriced for delta in deltas[:1]):
        typer.echo(f"unpriced: the ledger has no cost for {unpriced} attempts")


def _described_delta(delta: Delta) -> dict[str, Any]:
    from sidecar.types import format_usd

    def shown(value: int) -> Any:
        return format_usd(value) if delta.what == "usd" else value

    return {
        "model": delta.model,
        "what": delta.what,
        "provider": shown(delta.billed),
        "ledger": shown(delta.recorded),
        "delta": shown(delta.delta),
        "uncertain": shown(delta.uncertain),
        "unpriced": delta.unpriced,
    }


def _print_table(columns: Sequence[str], rows: Sequence[dict[str, Any]], *, left: int) -> None:
    cells = [list(columns), *([printable(str(row.get(name, ""))) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        parts = [
            text.ljust(width) if index < left else text.rjust(width)
            for index, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        typer.echo("  ".join(parts).rstrip())
