"""Spans of a whole gateway at a collector: one trace an exchange, one span an attempt, each where its attempt was."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.faults.provider import Fault, FaultProvider
from tests.promises.support import body, eventually, served
from tests.spend.test_sink_recipes import spans_of, values_of
from tests.spend.test_sinks import Receiver, receiver  # noqa: F401 - a fixture

pytestmark = pytest.mark.anyio


async def test_each_attempt_is_a_span_that_stands_where_it_was(
    tmp_path: Path,
    faults: FaultProvider,
    receiver: Receiver,  # noqa: F811
) -> None:
    top = {
        "spend": {"flush_s": 0.05, "sinks": [{"url": receiver.url.replace("http", "otlp+http", 1)}]},
        "routing": {"retries": 1, "cooldown_s": 0.001},
    }
    async with served(tmp_path, faults.base_url, top=top) as gateway:
        key = await gateway.mint(key_alias="ci")
        faults.script(Fault("status", status=500))
        began_at = time.time()
        answer = await gateway.chat(key, body(stream=True))
        assert answer.status_code == 200
        ended_at = time.time()
        found = []

        def are_there() -> bool:
            found[:] = [span for got in receiver.seen for span in spans_of(got)]
            return len(found) >= 2

        await eventually(are_there)
    first, second = sorted(found, key=lambda span: int(values_of(span)["sidecar.attempt"]))
    assert first.trace_id.hex() == second.trace_id.hex() == answer.headers["x-request-id"].replace("-", "")
    assert began_at - 0.001 <= first.start_time_unix_nano / 1e9
    assert first.start_time_unix_nano <= first.end_time_unix_nano
    assert first.start_time_unix_nano < second.start_time_unix_nano
    assert second.end_time_unix_nano / 1e9 <= ended_at + 0.001
    assert (first.status.code, second.status.code) == (2, 0)
    assert values_of(second)["gen_ai.request.stream"] is True
    assert values_of(second)["gen_ai.response.time_to_first_chunk"] >= 0
