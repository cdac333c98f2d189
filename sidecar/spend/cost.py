"""What tokens cost: a rate card, and exact integer arithmetic on it.

Pure. `prices.py` builds a `Price` from configuration, `price_loader.py` from the bundled price list; admission asks
`worst_case_nano` and `affordable_output`, the end of an attempt `cost_nano`, a reconciliation `most_tokens`. Rule: the
sum is exact (integers) and rounded once, half-even; holds round up. A class without its own rate pays the rate of the
class it belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from decimal import Decimal

from sidecar.types import PriceStatus, Usage

_MAX_DECIMALS = 20
_MAX_RATE = Decimal(1_000_000)  # USD per million tokens; more is a slip, and would overflow what counters hold
UNBOUNDED = 2**53
"""What `affordable_output` says when output costs nothing."""


@dataclass(frozen=True, slots=True)
class Rates:
    """USD per million tokens of each class; `None` falls back: `cache_write_1h` to `cache_write`, every other input
    class to `input`, every other output class to `output`."""

    input: Decimal = Decimal(0)
    output: Decimal = Decimal(0)
    cache_read: Decimal | None = None
    cache_write: Decimal | None = None
    cache_write_1h: Decimal | None = None
    reasoning: Decimal | None = None
    audio_input: Decimal | None = None
    audio_output: Decimal | None = None
    image_input: Decimal | None = None
    image_output: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Tier:
    """Rates of the *whole* request once its input (all classes together) exceeds `above_input_tokens`."""

    above_input_tokens: int
    rates: Rates


class _Row:
    """A tier as integers: each class's rate in units of 10**-`decimals` USD per million tokens."""

    __slots__ = (
        "above",
        "audio_in",
        "audio_out",
        "dear_in",
        "dear_out",
        "image_in",
        "image_out",
        "input",
        "output",
        "read",
        "reasoning",
        "write",
        "write_1h",
    )  # fmt: skip

    def __init__(self, above: int, rates: Rates, decimals: int) -> None:
        def exact(rate: Decimal | None, fallback: int = 0) -> int:
            return fallback if rate is None else int(rate.scaleb(decimals))

        self.above = above
        self.input = exact(rates.input)
        self.output = exact(rates.output)
        self.read = exact(rates.cache_read, self.input)
        self.write = exact(rates.cache_write, self.input)
        self.write_1h = exact(rates.cache_write_1h, self.write)
        self.reasoning = exact(rates.reasoning, self.output)
        self.audio_in = exact(rates.audio_input, self.input)
        self.audio_out = exact(rates.audio_output, self.output)
        self.image_in = exact(rates.image_input, self.input)
        self.image_out = exact(rates.image_output, self.output)
        self.dear_in = max(self.input, self.read, self.write, self.write_1h, self.audio_in, self.image_in)
        self.dear_out = max(self.output, self.reasoning, self.audio_out, self.image_out)


def _decimals(rates: Rates) -> int:
    """How many decimals the finest rate has, 3 at least. Raises `ValueError`."""
    most = 3
    for field_ in fields(rates):
        rate = getattr(rates, field_.name)
        if rate is None:
            continue
        exponent = rate.as_tuple().exponent
        if not isinstance(exponent, int) or rate < 0 or -exponent > _MAX_DECIMALS or rate > _MAX_RATE:
            raise ValueError(
                f"a rate is a number of USD per million tokens, from 0 to {_MAX_RATE}, with at most {_MAX_DECIMALS} "
                f"decimals, not {rate}"
            )
        most = max(most, -exponent)
    return most


@dataclass(frozen=True, slots=True)
class Price:
    """A rate card. Only a `priced` one has rates; `tiers` in any order. Raises `ValueError` on a negative rate."""

    status: PriceStatus
    rates: Rates = Rates()
    tiers: tuple[Tier, ...] = ()
    _rows: tuple[_Row, ...] = field(default=(), init=False, repr=False, compare=False)
    _per_nano: int = field(default=1, init=False, repr=False, compare=False)
    _top: _Row | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.status != "priced":
            return
        tiers = sorted(self.tiers, key=lambda tier: tier.above_input_tokens, reverse=True)
        decimals = max(_decimals(rates) for rates in (self.rates, *(tier.rates for tier in tiers)))
        rows = (
            *(_Row(tier.above_input_tokens, tier.rates, decimals) for tier in tiers),
            _Row(-1, self.rates, decimals),
        )
        object.__setattr__(self, "_rows", rows)
        object.__setattr__(self, "_top", rows[-1])
        object.__setattr__(self, "_per_nano", 10 ** (decimals - 3))

    def __reduce__(self) -> tuple[object, ...]:
        return (Price, (self.status, self.rates, self.tiers))


FREE = Price("free")
UNPRICED = Price("unpriced")


def cost_nano(price: Price, usage: Usage) -> int:
    """Nano-dollars of `usage`, rounded once, half-even; 0 for a price that is free or unpriced. Unknown classes and
    (from a provider that lies) negative counts count as none."""
    row = price._top
    if row is None:
        return 0
    if len(price._rows) > 1:
        row = _row_at(price, usage.total_input)
    total = 0
    if (n := usage.input) is not None and n > 0:
        total = n * row.input
    if (n := usage.output) is not None and n > 0:
        total += n * row.output
    if (n := usage.cached_input) is not None and n > 0:
        total += n * row.read
    if (n := usage.cache_write_5m) is not None and n > 0:
        total += n * row.write
    if (n := usage.cache_write_1h) is not None and n > 0:
        total += n * row.write_1h
    if (n := usage.reasoning) is not None and n > 0:
        total += n * row.reasoning
    if (n := usage.audio_input) is not None and n > 0:
        total += n * row.audio_in
    if (n := usage.audio_output) is not None and n > 0:
        total += n * row.audio_out
    if (n := usage.image_input) is not None and n > 0:
        total += n * row.image_in
    if (n := usage.image_output) is not None and n > 0:
        total += n * row.image_out
    unit = price._per_nano
    nano, rest = divmod(total, unit)
    if rest and (2 * rest > unit or (2 * rest == unit and nano & 1)):
        nano += 1
    return nano


def worst_case_nano(price: Price, input_tokens: int, output_tokens: int) -> int:
    """The most a request of at most so many tokens can cost, rounded up: the dearest class of the dearest tier that
    its input can reach."""
    if price._top is None:
        return 0
    dear_in, dear_out = _dearest(price, input_tokens)
    return -(-(max(0, input_tokens) * dear_in + max(0, output_tokens) * dear_out) // price._per_nano)


def affordable_output(price: Price, input_tokens: int, nano: int) -> int:
    """The most output tokens with `worst_case_nano(price, input_tokens, n) <= nano`; 0 if not even the input is
    affordable, `UNBOUNDED` if output costs nothing."""
    if price._top is None:
        return UNBOUNDED
    dear_in, dear_out = _dearest(price, input_tokens)
    left = nano * price._per_nano - max(0, input_tokens) * dear_in
    if left < 0:
        return 0
    return left // dear_out if dear_out else UNBOUNDED


def most_tokens(price: Price, nano: int) -> tuple[int, int, int, int]:
    """The most input, cached, written and output tokens that this much can pay for, each as if nothing else were paid,
    in the cheapest tier; 0 without a price, `UNBOUNDED` of what costs nothing."""
    if price._top is None or nano <= 0:
        return 0, 0, 0, 0
    found = []
    for names in (
        ("input", "audio_in", "image_in"),
        ("read",),
        ("write", "write_1h"),
        ("output", "reasoning", "audio_out", "image_out"),
    ):
        rate = min(int(getattr(row, name)) for row in price._rows for name in names)
        found.append(-(-nano * price._per_nano // rate) if rate else UNBOUNDED)
    return found[0], found[1], found[2], found[3]


def _row_at(price: Price, input_tokens: int) -> _Row:
    for row in price._rows:
        if input_tokens > row.above:
            return row
    return price._rows[-1]


def _dearest(price: Price, input_tokens: int) -> tuple[int, int]:
    rows = price._rows
    if len(rows) == 1:
        return rows[0].dear_in, rows[0].dear_out
    reached = [row for row in rows if input_tokens > row.above] or [rows[-1]]
    return max(row.dear_in for row in reached), max(row.dear_out for row in reached)
