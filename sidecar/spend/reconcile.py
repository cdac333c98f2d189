"""A provider's own export beside the ledger: per model what it says, what the ledger says, and how sure that is.

Reads the CSV files of OpenAI's and Anthropic's consoles, told apart by their columns. The exports are described at
https://help.openai.com/en/articles/8554956-understanding-your-api-usage (days are UTC) and
https://support.anthropic.com/en/articles/9534590-cost-and-usage-reporting-in-console; the names of OpenAI's columns are
those of https://platform.openai.com/docs/api-reference/usage. Rule: nothing is guessed – a column that is missing is an
error that names it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path

from sidecar.db.schema import TOKEN_CLASSES
from sidecar.errors import BadRequestError
from sidecar.spend.cost import Price, most_tokens
from sidecar.spend.ledger import Ledger
from sidecar.spend.price_loader import load_price
from sidecar.spend.reports import INPUT, Sums, report
from sidecar.types import usd_to_nano

_DATED = re.compile(r"-20\d{6}$|-20\d\d-\d\d-\d\d$")
MAX_BYTES = 256 * 1024 * 1024
_MAX_LINES = 5_000_000
_MAX_NUMBER = 10**18


@dataclass(slots=True)
class Billed:
    """What the provider says of one model. `rounding_nano` is what the rounding of its lines may hide, `exponent` that
    of the finest of them."""

    cost_nano: int = 0
    lines: int = 0
    exponent: int = 0
    rounding_nano: int = 0
    tokens: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Invoice:
    """`kind` is `cost` (dollars) or `usage` (tokens); the days are inclusive. Without a column of models everything is
    under ""."""

    vendor: str
    kind: str
    first: date
    last: date
    models: dict[str, Billed]


@dataclass(frozen=True, slots=True)
class Delta:
    """`what` is `usd` (values are nano-dollars) or a class of tokens. `uncertain` is the error bar: what the ledger
    estimated or never learned, and what the export rounded; `unpriced` counts attempts the ledger has no cost for.
    Of tokens the error bar is those that the gateway counted, and what a cost without tokens can have paid for."""

    model: str
    what: str
    billed: int
    recorded: int
    uncertain: int
    unpriced: int

    @property
    def delta(self) -> int:
        return self.billed - self.recorded

    @property
    def is_explained(self) -> bool:
        return abs(self.delta) <= self.uncertain


def read_invoice(text: str) -> Invoice:
    """Raises `BadRequestError` for what is none of the four exports."""
    try:
        return _read(csv.DictReader(io.StringIO(text.lstrip("\ufeff"))))
    except csv.Error as error:
        raise BadRequestError(f"The file is no CSV: {error}.") from None


def _read(reader: csv.DictReader[str]) -> Invoice:
    columns = set(reader.fieldnames or ())
    form = next((form for form in _FORMS if form[2] <= columns), None)
    if form is None:
        raise BadRequestError(
            "The file is no export this can read: it needs the columns "
            + ", or ".join(", ".join(sorted(marks)) for _, _, marks, _ in _FORMS)
            + "."
        )
    vendor, kind, _, read = form
    models: dict[str, Billed] = {}
    days: list[date] = []
    for number, row in enumerate(reader, 2):
        if number > _MAX_LINES:
            raise BadRequestError("The file has too many lines; export a shorter time.")
        try:
            day = read(row, models)
        except (KeyError, ValueError, InvalidOperation, OverflowError, OSError) as error:
            raise BadRequestError(f"Line {number} of the file cannot be read: {type(error).__name__}.") from None
        if day is None:
            continue
        if day == date.max:  # its end is no instant
            raise BadRequestError(f"Line {number} of the file is of {day}: no day of a bill.")
        days.append(day)
    if not days:
        raise BadRequestError("The file has no line that says what was used.")
    # Lines are rounded alike; `3` among cents is three dollars, not something near.
    exponent = min(bill.exponent for bill in models.values())
    for bill in models.values():
        bill.rounding_nano = usd_to_nano(bill.lines * Decimal(1).scaleb(exponent) / 2) if exponent > -9 else 0
    return Invoice(vendor, kind, min(days), max(days), models)


def read_file(path: Path) -> Invoice:
    """Raises `OSError`, `BadRequestError`."""
    with path.open("rb") as file:
        found = file.read(MAX_BYTES + 1)
    if len(found) > MAX_BYTES:
        raise BadRequestError(f"The file has more than {MAX_BYTES // 1_048_576} MB; export a shorter time.")
    try:
        return read_invoice(found.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRequestError(f"The file is no text in UTF-8 (byte {error.start}).") from None


async def reconcile(
    ledger: Ledger,
    invoice: Invoice,
    where: Mapping[str, str] | None = None,
    prices: Iterable[tuple[str, Price]] = (),
) -> list[Delta]:
    """The whole first, then each model, the largest difference first. `where`: only these rows of the ledger, as for
    `report`. `prices`: the operator's own, by model; for others the price list's. Raises `UnavailableError`,
    `BadRequestError` for what a report cannot be asked."""
    since = datetime.combine(invoice.first, datetime.min.time(), UTC).timestamp()
    until = datetime.combine(invoice.last + timedelta(days=1), datetime.min.time(), UTC).timestamp()
    where = {**(where or {}), "provider": invoice.vendor}
    found = await report(ledger, by=("model",), since_at=since, until_at=until, where=where, limit=100_000)
    recorded: dict[str, list[Sums]] = {}
    for line in found.lines:
        recorded.setdefault(known_as(line.names[0]), []).append(line.sums)
    doubts: dict[str, dict[str, int]] = {}
    if invoice.kind == "usage":
        for name, doubt in await _doubts(ledger, since, until, where, prices):
            _add_all(doubts.setdefault(known_as(name), {}), doubt)
            _add_all(doubts.setdefault("", {}), doubt)
    deltas = _deltas("all", list(invoice.models.values()), [found.total], invoice, doubts.get("", {}))
    if set(invoice.models) != {""}:
        of_models = [
            delta
            for model in sorted(invoice.models.keys() | recorded.keys())
            for delta in _deltas(
                model,
                [invoice.models.get(model, Billed())],
                recorded.get(model, []),
                invoice,
                doubts.get(model, {}),
            )
        ]
        deltas += sorted(of_models, key=lambda delta: -abs(delta.delta))
    return deltas


def known_as(model: str) -> str:
    """One name for what the exports and the API call differently: `Claude Haiku 4.5`, `claude-haiku-4-5-20251001`."""
    name = re.sub(r"[\s._]+", "-", model.strip().lower())
    return _DATED.sub("", name)


async def _doubts(
    ledger: Ledger, since: float, until: float, where: Mapping[str, str], prices: Iterable[tuple[str, Price]]
) -> list[tuple[str, dict[str, int]]]:
    """Per model of the ledger: the tokens by class that its rows are not sure of."""
    own: dict[str, list[Price]] = {}
    for name, price in prices:
        own.setdefault(known_as(name), []).append(price)

    async def of_rows(only: str) -> list[tuple[str, Sums]]:
        found = await report(
            ledger, by=("model",), since_at=since, until_at=until, where=where, limit=100_000, only=only
        )
        return [(line.names[0], line.sums) for line in found.lines]

    doubts = [
        (name, {kind: abs(of(sums)) for kind, of in _CLASSES.items()})
        for name, sums in await of_rows("s.status IN ('estimated', 'unknown')")
    ]
    for kinds, columns in _SIDES.items():
        untold = f"s.status = 'unknown' OR coalesce({', '.join(f's.{name}_tokens' for name in columns)}) IS NULL"
        for name, sums in await of_rows(f"s.cost_nano <> 0 AND ({untold})"):
            rates = own.get(known_as(name)) or [load_price(where["provider"], name, at=since)]
            most = [most_tokens(price, abs(sums.cost_nano)) for price in rates]
            bound = dict(zip(_CLASSES, map(max, zip(*most, strict=True)), strict=True))
            doubts.append((name, {kind: bound[kind] for kind in kinds}))
    return doubts


def _deltas(
    model: str, billed: list[Billed], recorded: list[Sums], invoice: Invoice, doubt: Mapping[str, int]
) -> list[Delta]:
    unpriced = sum(sums.unpriced for sums in recorded)
    if invoice.kind == "cost":
        uncertain = sum(abs(sums.estimated_nano) + abs(sums.unknown_nano) for sums in recorded)
        uncertain += sum(bill.rounding_nano for bill in billed)
        cost = sum(bill.cost_nano for bill in billed)
        return [Delta(model, "usd", cost, sum(sums.cost_nano for sums in recorded), uncertain, unpriced)]
    return [
        Delta(
            model,
            name,
            sum(bill.tokens.get(name, 0) for bill in billed),
            sum(of(sums) for sums in recorded),
            doubt.get(name, 0),
            unpriced,
        )
        for name, of in _CLASSES.items()
    ]


_CLASSES: Mapping[str, Callable[[Sums], int]] = {
    "input": lambda sums: sums.input_tokens - (_cached(sums) + _written(sums)),
    "cached input": lambda sums: _cached(sums),
    "cache write": lambda sums: _written(sums),
    "output": lambda sums: sums.output_tokens,
}


_SIDES: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("input", "cached input", "cache write"): INPUT,
    ("output",): tuple(name for name in TOKEN_CLASSES if name not in INPUT),
}
"""Classes of tokens, and the fields of `Usage` of which one at least is told where the provider told that side."""


def _cached(sums: Sums) -> int:
    return sums.usage.cached_input or 0


def _written(sums: Sums) -> int:
    return (sums.usage.cache_write_5m or 0) + (sums.usage.cache_write_1h or 0)


Row = Mapping[str, str | None]


def _bill(models: dict[str, Billed], model: str | None) -> Billed:
    return models.setdefault(known_as(model or ""), Billed())


def _number(text: str) -> Decimal:
    """Of a size that something billed can have: `1e999999999` as an integer would fill the memory."""
    found = Decimal(text)
    if not found.copy_abs() < _MAX_NUMBER:
        raise ValueError("no number of anything billed")
    return found


def _count(row: Row, name: str) -> int:
    return int(_number(row.get(name) or "0"))


def _charge(bill: Billed, amount: str) -> None:
    usd = _number(amount)
    bill.cost_nano += usd_to_nano(usd)
    bill.lines += 1
    bill.exponent = min(bill.exponent, int(usd.as_tuple().exponent))


def _day(row: Row) -> date:
    return datetime.fromtimestamp(int(_number(row["start_time"] or "")), UTC).date()


def _openai_cost(row: Row, models: dict[str, Billed]) -> date | None:
    """`line_item` is `gpt-4o-2024-08-06, cached input`; a bucket without costs has no amount."""
    amount = row["amount_value"]
    if not amount:
        return None
    if (row["amount_currency"] or "usd").lower() != "usd":
        raise ValueError("another currency")
    item = (row.get("line_item") or "").rpartition("| ")[2]
    _charge(_bill(models, item.partition(",")[0]), amount)
    return _day(row)


def _openai_usage(row: Row, models: dict[str, Billed]) -> date | None:
    """`input_tokens` includes the cached ones."""
    if not row["num_model_requests"]:
        return None
    tokens = _bill(models, row.get("model")).tokens
    cached = _count(row, "input_cached_tokens")
    _add(tokens, "input", _count(row, "input_tokens") - cached)
    _add(tokens, "cached input", cached)
    _add(tokens, "output", _count(row, "output_tokens"))
    return _day(row)


def _anthropic_cost(row: Row, models: dict[str, Billed]) -> date | None:
    if not row["cost_usd"]:
        return None
    _charge(_bill(models, row["model"]), row["cost_usd"])
    return date.fromisoformat((row["usage_date_utc"] or "")[:10])


def _anthropic_usage(row: Row, models: dict[str, Billed]) -> date | None:
    tokens = _bill(models, row["model_version"]).tokens
    _add(tokens, "input", _count(row, "usage_input_tokens_no_cache"))
    _add(tokens, "cached input", _count(row, "usage_input_tokens_cache_read"))
    for name in ("5m", "1h"):
        _add(tokens, "cache write", _count(row, f"usage_input_tokens_cache_write_{name}"))
    _add(tokens, "output", _count(row, "usage_output_tokens"))
    return date.fromisoformat((row["usage_date_utc"] or "")[:10])


def _add_all(tokens: dict[str, int], more: Mapping[str, int]) -> None:
    for name, count in more.items():
        _add(tokens, name, count)


def _add(tokens: dict[str, int], name: str, count: int) -> None:
    tokens[name] = tokens.get(name, 0) + count


_FORMS: tuple[tuple[str, str, set[str], Callable[[Row, dict[str, Billed]], date | None]], ...] = (
    ("openai", "cost", {"start_time", "amount_value", "amount_currency"}, _openai_cost),
    ("openai", "usage", {"start_time", "num_model_requests", "input_tokens", "output_tokens"}, _openai_usage),
    ("anthropic", "cost", {"usage_date_utc", "model", "cost_usd"}, _anthropic_cost),
    (
        "anthropic",
        "usage",
        {"usage_date_utc", "model_version", "usage_input_tokens_no_cache", "usage_output_tokens"},
        _anthropic_usage,
    ),
)
