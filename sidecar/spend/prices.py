"""A `Price` from what an operator writes in the configuration.

Pure. Neighbours: `cost.py` (the rate card), `config` (the caller). Rule: what is not understood is an error at load,
never a price of zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Literal

from sidecar.spend.cost import FREE, Price, Rates

KEYS = (
    "input",
    "output",
    "cache_read",
    "cache_write",
    "cache_write_1h",
    "reasoning",
    "audio_input",
    "audio_output",
    "image_input",
    "image_output",
)


def price_from_config(value: Mapping[str, Decimal] | Literal["free"]) -> Price:
    """`{"input": Decimal(3), "output": Decimal(15), …}` in USD per million tokens, or `"free"`. `input` and `output`
    are needed, the others fall back to them (`cost.Rates`). Raises `ValueError` naming what is wrong and the fix."""
    if isinstance(value, str):
        if value == "free":
            return FREE
        raise ValueError(f"a price is 'free' or a mapping such as {{input: 3, output: 15}}, not {value!r}")
    unknown = sorted(set(value) - set(KEYS))
    if unknown:
        raise ValueError(f"a price has no key {unknown[0]!r}; the keys are {', '.join(KEYS)}")
    for name in ("input", "output"):
        if name not in value:
            raise ValueError(f"a price needs {name!r}, in USD per million tokens; write 0 if it costs nothing")
    rates: dict[str, Decimal] = {}
    given: Mapping[str, object] = value
    for name, number in given.items():
        if isinstance(number, bool) or not isinstance(number, (Decimal, int)):
            raise ValueError(f"the price's {name!r} is a Decimal or an int, not {type(number).__name__}")
        rate = Decimal(number)
        if not rate.is_finite() or rate < 0:
            raise ValueError(f"the price's {name!r} is 0 or more, not {rate}")
        rates[name] = rate
    return Price("priced", Rates(**rates))
