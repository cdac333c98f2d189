"""Amazon SageMaker endpoints whose containers speak OpenAI's chat (vLLM, LMI, SGLang, TGI).

Neighbour: `openai`, whose bytes pass. Here: the endpoint's name in the path, the payload parts of AWS's event stream
put together to the container's own stream, and its errors. The deployment's `model` is the endpoint.
https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpointWithResponseStream.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sidecar.errors import ProviderError, UpstreamBrokenError
from sidecar.translate.aws_events import AWSEventSplitter
from sidecar.translate.framing import Event, SSESplitter
from sidecar.translate.provider import OPENAI_CHAT_FIELDS, Auth, Call, Head, StreamTranslator, UpstreamRequest
from sidecar.translate.providers.bedrock import segment_of
from sidecar.translate.providers.bedrock_errors import aws_error, stream_error
from sidecar.translate.providers.openai import OpenAIDialect, OpenAIStream, wants_usage

_HEADERS = {
    "inference_component": b"x-amzn-sagemaker-inference-component",
    "target_variant": b"x-amzn-sagemaker-target-variant",
    "target_model": b"x-amzn-sagemaker-target-model",
}
"""What a deployment's `params` may choose within the endpoint."""
_OURS = ("served_model", *_HEADERS)


class PayloadParts:
    """The container's events within AWS's messages, which cut them anywhere. An exception keeps its name."""

    __slots__ = ("_error", "_inner", "_outer")

    def __init__(self) -> None:
        self._outer = AWSEventSplitter()
        self._inner = SSESplitter()
        self._error: UpstreamBrokenError | None = None

    def feed(self, data: bytes) -> list[Event]:
        if self._error is not None:
            raise self._error
        events: list[Event] = []
        try:
            for name, payload, raw in self._outer.feed(data):
                if name == b"PayloadPart" and payload is not None:
                    events += self._inner.feed(payload)
                elif name.startswith(b"exception:"):
                    events.append((name, payload, raw))
        except UpstreamBrokenError as error:
            self._error = error
            if not events:
                raise
        return events

    def flush(self) -> Event | None:
        if self._error is not None:
            raise self._error
        self._outer.flush()
        return self._inner.flush()


class SageMaker(OpenAIDialect):
    name = "sagemaker"
    framing = "aws-events"
    auth: Auth = "bearer"
    keyless = "aws"
    service = "sagemaker"
    needs_options = ("region",)
    default_base_url = "https://runtime.sagemaker.{region}.amazonaws.com"
    docs_url = "https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html"
    params: Mapping[str, str] = dict.fromkeys(OPENAI_CHAT_FIELDS, "passed") | {
        "model": "the endpoint's name, or the deployment's served_model",
        "stream_options": "passed, include_usage forced on streams",
        "max_completion_tokens": "sent as max_tokens",
    }

    def base_url(self, options: Mapping[str, str]) -> str | None:
        url = super().base_url(options)
        return f"{url}.cn" if options.get("region", "").startswith("cn-") else url

    def is_stream(self, head: Head) -> bool:
        given = (head.get(b"content-type") or b"").partition(b";")[0].strip().lower()
        return super().is_stream(head) or given == b"text/event-stream"

    def changes(self, call: Call) -> tuple[dict[str, Any], set[str], list[str]]:
        changes, removed, dropped = super().changes(call)
        for name in _OURS:
            if name not in call.payload:
                changes.pop(name, None)
        changes["model"] = call.params.get("served_model", call.edits.get("model", call.model))
        return changes, removed, dropped

    def request(self, call: Call) -> UpstreamRequest:
        request = super().request(call)
        endpoint = str(call.edits.get("model", call.model))
        operation = "invocations-response-stream" if call.is_stream else "invocations"
        request.path = f"/endpoints/{segment_of(endpoint)}/{operation}"
        for name, header in _HEADERS.items():
            value = call.params.get(name)
            if isinstance(value, str):
                request.headers.append((header, value.encode("ascii", "ignore")))
        return request

    def stream(self, call: Call, head: Head) -> StreamTranslator:
        is_hidden = bool(call.edits.get("include_usage", True)) and not wants_usage(call.payload)
        translator = SageMakerStream(self, call, is_hidden)
        given = (head.get(b"content-type") or b"").partition(b";")[0].strip().lower()
        if given != b"text/event-stream":
            translator.use(PayloadParts())
        return translator

    def error(self, call: Call, head: Head, body: bytes) -> ProviderError:
        if head.get(b"x-amzn-errortype") is None and b'"error"' in body[:200]:
            return super().error(call, head, body)  # the container's own
        return aws_error(self.name, call, head, body)


class SageMakerStream(OpenAIStream):
    __slots__ = ()

    def use(self, splitter: PayloadParts) -> None:
        self._splitter = splitter

    def on_event(self, event: Event) -> bytes:
        name, data, _ = event
        if name.startswith(b"exception:"):
            raise stream_error(self.provider_name, self._call, name[10:], data or b"")
        return super().on_event(event)
