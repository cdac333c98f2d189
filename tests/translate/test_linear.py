"""A request's translation costs in proportion to its size, whoever it is for."""

from __future__ import annotations

import gc
import time

import pytest

from bench.translate import request_body
from sidecar.translate import Provider, read_call
from tests.translate.dialects import DISTINCT, dialect_of


def cpu_s(provider: Provider, turns: int) -> float:
    dialect = dialect_of(provider)
    call = read_call(request_body(turns), model=dialect.model, options=dict(dialect.options))
    best = float("inf")
    gc.collect()
    gc.disable()  # its passes over all that the tests made are none of the translator's work
    try:
        for _ in range(3):
            started = time.process_time()
            provider.request(call)
            best = min(best, time.process_time() - started)
    finally:
        gc.enable()
    return best


@pytest.mark.parametrize("provider", DISTINCT.values(), ids=DISTINCT)
def test_ten_times_the_history_costs_about_ten_times_as_much(provider: Provider) -> None:
    few, many = cpu_s(provider, 100), cpu_s(provider, 1000)
    for _ in range(5):
        if many >= 40 * max(few, 0.0002):  # measured again: the machine may have been busy with something else
            few, many = max(few, cpu_s(provider, 100)), min(many, cpu_s(provider, 1000))
    assert many < 40 * max(few, 0.0002)  # what grows with the square would be at a hundred
