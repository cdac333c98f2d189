"""What routing costs, in Python instructions: they do not depend on what else the machine does."""

from __future__ import annotations

import pytest

from bench.routing_cost import ROWS, SIZES, count
from sidecar.routing.strategies import STRATEGIES

pytestmark = pytest.mark.anyio


async def test_twenty_deployments_cost_little_more_than_two() -> None:
    found = await count(ROWS)
    for row in STRATEGIES:
        one, two, twenty = (found[row, size] for size in SIZES)
        assert one < 0.7 * two, "a lone deployment needs no choice"
        assert twenty < 1.7 * two, row
        assert twenty < 2000, row
    for row in ("weighted", "adaptive", "cost", "weighted with affinity"):
        assert found[row, 20] < found[row, 2] + 300, f"{row}: nothing is done for each of them"
