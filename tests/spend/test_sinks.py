"""Sinks on real sockets and files: what arrives, signed and whole; what comes again and what is dropped."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hashlib
import hmac
import io
import json
import select
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from sidecar.spend.sinks import open_sink
from sidecar.spend.sinks.base import Outlet
from sidecar.spend.sinks.delivery import MAX_ANSWER, Delivery, DeliveryError
from sidecar.spend.sinks.jsonl import JsonlSink
from sidecar.spend.sinks.log import LogSink
from sidecar.spend.sinks.otlp import OtlpSink, rejected_of, request_of
from sidecar.spend.sinks.payload import encoded_payload, payload_of
from sidecar.spend.sinks.protobuf import bytes_field
from sidecar.spend.sinks.receivers import RECEIVERS
from sidecar.spend.sinks.webhook import WebhookSink
from sidecar.types import Secret, SpendRecord, Usage

pytestmark = pytest.mark.anyio

RECORD = SpendRecord(
    exchange_id="0197b3c1-0000-7000-8000-0123456789ab", attempt=1, revision=0, at=1_790_000_000.123456,
    key_hash="a" * 64, status="settled", outcome="ok", cost_nano=170_000, group="gpt", deployment_id="gpt#0:openai",
    provider="openai", model="gpt-4o-mini", key_alias="ci", user_id="alice", team_id="search", end_user_id="e-1",
    usage=Usage(input=7, cached_input=3, output=5, reasoning=2), http_status=200, is_stream=True, duration_ms=1500,
    first_byte_ms=300, dropped=("logit_bias",), tags=("batch", "nightly"),
)  # fmt: skip


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """An HTTP server that notes what it gets and answers what `answers` says next, else 200."""

    url: str = ""
    seen: list[Received] = field(default_factory=list)
    answers: list[tuple[int, str]] = field(default_factory=list)
    says: bytes = b""
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.seen.append(Received(head[0].split(" ")[1], headers, body))
                await self.gate.wait()
                status, more = self.answers.pop(0) if self.answers else (200, "")
                head_of_answer = f"HTTP/1.1 {status} X\r\ncontent-length: {len(self.says)}\r\n{more}\r\n"
                writer.write(head_of_answer.encode() + self.says)
                await writer.drain()
        writer.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    found = Receiver()
    found.gate.set()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield found
    found.gate.set()
    server.close()


def quick(url: str, **more: Any) -> Delivery:
    return Delivery(
        url, {"authorization": Secret("Bearer canary-credential")}, pause_s=0.001, **{"timeout_s": 60} | more
    )


def test_the_payload_is_version_1_and_money_is_exact() -> None:
    found = payload_of(RECORD)
    assert list(found)[:3] == ["version", "type", "id"]
    assert (found["version"], found["type"], found["cost_usd"], found["cost_nano"]) == (1, "spend", "0.00017", 170_000)
    assert found["at"].endswith("+00:00")
    assert found["usage"] == {"input": 7, "cached_input": 3, "output": 5, "reasoning": 2}
    assert (found["input_tokens"], found["output_tokens"]) == (10, 7)
    correction = payload_of(replace(RECORD, revision=1, cost_nano=-5, usage=Usage()))
    assert (correction["type"], correction["cost_usd"], correction["usage"]) == ("correction", "-0.000000005", None)
    assert correction["id"] != found["id"]


def test_a_name_no_json_holds_is_replaced_not_lost() -> None:
    assert json.loads(encoded_payload(replace(RECORD, end_user_id="\ud800x", tags=("a\0",))))["key_alias"] == "ci"


async def test_jsonl_appends_and_survives_rotation(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "deep" / "spend.jsonl")
    await sink.write([RECORD, replace(RECORD, attempt=2)])
    (tmp_path / "deep" / "spend.jsonl").rename(tmp_path / "old.jsonl")
    await sink.write([replace(RECORD, attempt=3)])
    old, new = ((tmp_path / name).read_text().splitlines() for name in ("old.jsonl", "deep/spend.jsonl"))
    assert [json.loads(line)["attempt"] for line in old + new] == [1, 2, 3]


async def test_the_log_gets_one_line_a_record() -> None:
    out = io.BytesIO()
    await LogSink(out).write([RECORD, RECORD])
    assert [json.loads(line)["exchange_id"] for line in out.getvalue().splitlines()] == [RECORD.exchange_id] * 2


async def test_lines_of_workers_that_share_a_pipe_do_not_mix() -> None:
    """A pipe keeps a write whole up to PIPE_BUF."""
    written: list[bytes] = []

    class Pipe(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            written.append(bytes(data))
            return len(written[-1])

    await LogSink(io.BufferedWriter(Pipe())).write([RECORD] * 100)
    assert sum(piece.count(b"\n") for piece in written) == 100
    assert all(piece.endswith(b"\n") and len(piece) <= select.PIPE_BUF for piece in written)
    assert len(written) < 50


async def test_a_webhook_batch_is_signed_and_verifies(receiver: Receiver) -> None:
    key = b"0123456789abcdef01234567"
    sink = WebhookSink(
        receiver.url + "/hook", secret=Secret("whsec_" + base64.b64encode(key).decode()), clock=lambda: 1_790_000_001.9,
        headers={"x-team": Secret("red")},
    )  # fmt: skip
    await sink.write([RECORD, replace(RECORD, attempt=2)])
    await sink.aclose()
    (got,) = receiver.seen
    assert got.path == "/hook"
    assert got.headers["x-team"] == "red"
    assert got.headers["webhook-timestamp"] == "1790000001"
    signed = got.headers["webhook-id"].encode() + b"." + b"1790000001" + b"." + got.body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert got.headers["webhook-signature"] == f"v1,{expected}"
    body = json.loads(got.body)
    assert (body["version"], body["type"]) == (1, "spend.records")
    assert [record["attempt"] for record in body["records"]] == [1, 2]


async def test_what_may_come_again_is_tried_again_as_the_same_batch(receiver: Receiver) -> None:
    receiver.answers = [(503, ""), (429, "retry-after: 0\r\n"), (503, "retry-after: ²\r\n"), (200, "")]
    sink = WebhookSink("", delivery=quick(receiver.url))
    await sink.write([RECORD])
    assert len(receiver.seen) == 4
    assert len({got.headers["webhook-id"] for got in receiver.seen}) == 1
    assert "webhook-signature" not in receiver.seen[0].headers
    await sink.aclose()


@pytest.mark.parametrize("status", [400, 401, 404, 413, 301])
async def test_another_refusal_drops_the_batch_at_once(receiver: Receiver, status: int) -> None:
    receiver.answers = [(status, "location: http://127.0.0.1:9/\r\n")]
    sink = WebhookSink("", delivery=quick(receiver.url))
    with pytest.raises(DeliveryError) as caught:
        await sink.write([RECORD])
    assert len(receiver.seen) == 1
    assert "canary" not in str(caught.value)
    assert str(status) in str(caught.value)
    await sink.aclose()


async def test_nobody_there_is_given_up_after_the_last_attempt() -> None:
    sink = WebhookSink("", delivery=quick("http://127.0.0.1:9", attempts=3))
    with pytest.raises(DeliveryError, match="ConnectError"):
        await sink.write([RECORD])
    await sink.aclose()


@pytest.mark.parametrize("pause_s", [0.0, 0.05])
async def test_an_answer_that_never_ends_is_read_no_further_than_needed(pause_s: float) -> None:
    """A hundred megabytes in a row, or a byte now and then."""
    sent = 0
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        piece = b"x" if pause_s else b"x" * 65536
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n")
            while sent < 100_000_000:
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
                sent += len(piece)
                await asyncio.sleep(pause_s)
        ended.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    delivery = quick(url, attempts=1, timeout_s=0.5 if pause_s else 60)
    async with asyncio.timeout(100):
        if pause_s:
            with pytest.raises(DeliveryError, match="TimeoutError"):
                await delivery.send(b"{}", {})
        else:
            assert await delivery.send(b"{}", {}) == ("", b"x" * MAX_ANSWER)
        await delivery.aclose()
        await ended.wait()
    assert sent < 50_000_000
    server.close()


async def test_a_sink_that_hangs_bounds_its_queue_and_counts_what_it_drops(receiver: Receiver) -> None:
    receiver.gate.clear()
    outlet = Outlet(WebhookSink("", delivery=quick(receiver.url)), size=100)
    for number in range(1000):
        outlet.offer(replace(RECORD, attempt=number))
    async with asyncio.timeout(60):
        while not receiver.seen:
            await asyncio.sleep(0.001)
    for number in range(1000):
        outlet.offer(replace(RECORD, attempt=number))
    await outlet.aclose(timeout_s=0.05)
    sent = sum(len(json.loads(got.body)["records"]) for got in receiver.seen)
    assert outlet.dropped >= 2000 - sent - 100
    assert outlet.dropped + sent >= 2000


@dataclass
class Hanging:
    """A sink that takes nothing until it is told to end, and then does what `then` says."""

    then: str
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    taken: int = 0

    async def write(self, records: Sequence[SpendRecord]) -> None:
        self.begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            if self.then == "ends":
                raise
            if self.then == "fails":
                raise OSError("gone") from None
            self.taken += len(records)

    async def aclose(self) -> None:
        pass


@pytest.mark.parametrize("then", ["ends", "fails", "takes it after all"])
async def test_a_record_is_taken_or_dropped_once_when_the_outlet_closes(then: str) -> None:
    sink = Hanging(then)
    outlet = Outlet(sink)
    for number in range(800):
        outlet.offer(replace(RECORD, attempt=number))
    await sink.begun.wait()
    async with asyncio.timeout(60):
        await outlet.aclose(timeout_s=0)
    assert outlet.dropped == 800 - sink.taken
    assert sink.taken == (800 if then == "takes it after all" else 0)


async def test_otlp_spans_are_what_opentelemetry_reads(receiver: Receiver) -> None:
    sink = OtlpSink("", delivery=quick(receiver.url + "/v1/traces"))
    failed = replace(RECORD, attempt=2, outcome="provider_error", http_status=500, usage=Usage(), first_byte_ms=None)
    await sink.write([RECORD, replace(failed, began_at=RECORD.at + 2), replace(RECORD, revision=1)])
    await sink.write([replace(RECORD, revision=1)])
    await sink.aclose()
    (got,) = receiver.seen
    assert got.headers["content-type"] == "application/x-protobuf"
    assert got.headers["authorization"] == "Bearer canary-credential"
    request = ExportTraceServiceRequest.FromString(gzip.decompress(got.body))
    assert request.SerializeToString() == gzip.decompress(got.body), "nothing unknown, all in the canonical order"
    (resource,) = request.resource_spans
    assert {a.key: a.value.string_value for a in resource.resource.attributes} == {"service.name": "sidecar"}
    (scope,) = resource.scope_spans
    ok, bad = scope.spans
    assert ok.trace_id.hex() == bad.trace_id.hex() == RECORD.exchange_id.replace("-", "")
    assert len(ok.span_id) == 8
    assert ok.span_id != bad.span_id
    assert ok.name == "chat gpt-4o-mini"
    assert ok.kind == 3
    assert ok.end_time_unix_nano - ok.start_time_unix_nano == 1_500_000_000
    assert abs(ok.start_time_unix_nano / 1e9 - RECORD.at) < 1e-5
    assert abs(bad.start_time_unix_nano / 1e9 - RECORD.at - 2) < 1e-5, "a retry begins when it begins"
    values = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in ok.attributes}
    assert values["gen_ai.operation.name"] == "chat"
    assert values["gen_ai.provider.name"] == "openai"
    assert values["gen_ai.request.model"] == "gpt-4o-mini"
    assert (values["gen_ai.usage.input_tokens"], values["gen_ai.usage.output_tokens"]) == (10, 7)
    assert values["gen_ai.usage.cache_read.input_tokens"] == 3
    assert values["gen_ai.usage.reasoning.output_tokens"] == 2
    assert values["gen_ai.usage.cost"] == pytest.approx(0.00017)
    assert values["sidecar.cost_usd"] == "0.00017"
    assert values["sidecar.tags"] == "batch,nightly"
    assert values["sidecar.is_stream"] is True
    assert values["gen_ai.request.stream"] is True
    assert values["gen_ai.response.time_to_first_chunk"] == pytest.approx(0.3)
    assert ok.status.code == 0
    broken = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in bad.attributes}
    assert (bad.status.code, broken["error.type"]) == (2, "provider_error")
    assert "gen_ai.usage.input_tokens" not in broken


@pytest.mark.parametrize(
    ("said", "kind", "lost"),
    [
        (ExportTracePartialSuccess(rejected_spans=2, error_message="too old"), "application/x-protobuf", 2),
        (ExportTracePartialSuccess(rejected_spans=9), "application/x-protobuf", 3),
        (ExportTracePartialSuccess(error_message="take care"), "application/x-protobuf", 0),
        (ExportTracePartialSuccess(rejected_spans=-1), "application/x-protobuf", 0),
        (ExportTracePartialSuccess(rejected_spans=2), "text/plain", 0),
        (None, "application/x-protobuf", 0),
    ],
)
async def test_spans_a_receiver_rejects_are_counted_and_not_sent_again(
    receiver: Receiver, said: ExportTracePartialSuccess | None, kind: str, lost: int
) -> None:
    receiver.says = ExportTraceServiceResponse(partial_success=said).SerializeToString()
    receiver.answers = [(200, f"content-type: {kind}\r\n")]
    outlet = Outlet(OtlpSink("", delivery=quick(receiver.url)))
    for number in range(3):
        outlet.offer(replace(RECORD, attempt=number))
    await outlet.aclose(timeout_s=60)
    assert (len(receiver.seen), outlet.dropped) == (1, lost)


async def test_a_batch_of_spans_does_not_hold_the_event_loop(receiver: Receiver) -> None:
    turns: list[int] = [0]

    async def count() -> None:
        while True:
            turns.append(0)
            await asyncio.sleep(0)

    def more(record: SpendRecord) -> dict[str, Any]:
        turns[-1] += 1
        return {}

    counting = asyncio.create_task(count())
    sink = OtlpSink("", delivery=quick(receiver.url), receiver=replace(RECEIVERS["otlp"], more=more))
    await sink.write([RECORD] * 500)
    counting.cancel()
    assert sum(turns) == 500
    assert max(turns) <= 20
    found = ExportTraceServiceRequest.FromString(gzip.decompress(receiver.seen[0].body))
    assert len(found.resource_spans[0].scope_spans[0].spans) == 500
    await sink.aclose()


@given(st.binary(max_size=60))
def test_any_answer_is_read_without_an_error(data: bytes) -> None:
    assert 0 <= rejected_of(data) < 2**63
    assert rejected_of(bytes_field(1, data)) >= 0


@pytest.mark.parametrize("name", sorted(RECEIVERS))
@pytest.mark.parametrize("at", [0.0, -1.0, 1e12, float("nan"), float("inf")])
def test_odd_records_still_make_readable_spans(name: str, at: float) -> None:
    odd = replace(RECORD, exchange_id="opening:key:x", at=at, duration_ms=2**62, model="m\ud800", cost_nano=-1)
    odd = replace(odd, tags=("t\udfff", ""), first_byte_ms=2**62, usage=Usage(input=2**80, output=0))
    request = ExportTraceServiceRequest.FromString(request_of([odd], RECEIVERS[name]))
    (span,) = request.resource_spans[0].scope_spans[0].spans
    assert len(span.trace_id) == 16
    assert span.start_time_unix_nano <= span.end_time_unix_nano < 2**63


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("jsonl:///var/log/spend.jsonl", "JsonlSink"),
        ("log:", "LogSink"),
        ("https://hooks.example.com/x", "WebhookSink"),
        ("otlp+https://collector:4318", "OtlpSink"),
        ("langfuse+https://cloud.langfuse.com/api/public/otel", "OtlpSink"),
        ("mlflow+http://127.0.0.1:5000", "OtlpSink"),
        ("lunary+https://api.lunary.ai/v1/otel", "OtlpSink"),
    ],
)
async def test_a_sink_is_found_by_its_scheme(url: str, kind: str) -> None:
    sink = open_sink(url)
    assert type(sink).__name__ == kind
    await sink.aclose()


@pytest.mark.parametrize(
    "url", ["", "ftp://x", "jsonl:", "https://", "otlp+https:", "lunary+https:", "mlflow://x", "kafka://x"]
)
def test_another_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        open_sink(url)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        # https://langfuse.com/integrations/native/opentelemetry
        ("otlp+{url}/api/public/otel", "/api/public/otel/v1/traces"),
        # https://mlflow.org/docs/latest/genai/tracing/opentelemetry/ingest
        ("otlp+{url}", "/v1/traces"),
        ("otlp+{url}/v1/traces", "/v1/traces"),
    ],
)
async def test_receivers_get_spans_at_the_path_they_document(receiver: Receiver, url: str, path: str) -> None:
    sink = open_sink(url.format(url=receiver.url), headers={"x-mlflow-experiment-id": Secret("1")})
    await sink.write([RECORD])
    await sink.aclose()
    assert receiver.seen[0].path == path
    assert receiver.seen[0].headers["x-mlflow-experiment-id"] == "1"
