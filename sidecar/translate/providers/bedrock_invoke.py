"""Claude on Amazon Bedrock through InvokeModel: Anthropic's own bodies, AWS's paths, signatures and event streams.

Neighbours: `anthropic` and its modules, which do the work, and `bedrock_errors`. Here: what Bedrock's Claude takes
differently – the model in the path, the version and betas in the body, bytes only, tags and tier in headers.
https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-anthropic-claude-messages.html
https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_InvokeModelWithResponseStream.html
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from dataclasses import replace

import msgspec

from sidecar.errors import ProviderError
from sidecar.translate.aws_events import AWSEventSplitter
from sidecar.translate.content import bad, remote_urls
from sidecar.translate.fields import dropper
from sidecar.translate.framing import Event
from sidecar.translate.inline import inlined
from sidecar.translate.provider import (
    Auth,
    Call,
    Head,
    Reply,
    StreamTranslator,
    UpstreamRequest,
    sayable,
)
from sidecar.translate.providers.anthropic import Anthropic
from sidecar.translate.providers.anthropic_extras import betas_of
from sidecar.translate.providers.anthropic_request import RequestPlan, build
from sidecar.translate.providers.anthropic_stream import AnthropicStream
from sidecar.translate.providers.bedrock import JSON_HEADERS, model_path
from sidecar.translate.providers.bedrock_errors import aws_error, stream_error
from sidecar.translate.providers.bedrock_media import Drop
from sidecar.translate.providers.bedrock_models import known_model, model_of, sent_model
from sidecar.translate.providers.bedrock_request import request_metadata, service_tier

VERSION = "bedrock-2023-05-31"

_IN_HEADERS = ("metadata", "user", "safety_identifier", "service_tier", "requestMetadata")
_OPERATORS_HEADERS = {
    "guardrailIdentifier": b"x-amzn-bedrock-guardrailidentifier",
    "guardrailVersion": b"x-amzn-bedrock-guardrailversion",
    "trace": b"x-amzn-bedrock-trace",
}


class _Chunk(msgspec.Struct, gc=False):
    bytes: str


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class BedrockInvoke(Anthropic):
    name = "bedrock-invoke"
    framing = "aws-events"
    auth: Auth = "bearer"
    keyless = "aws"
    service = "bedrock"
    needs_options = ("region",)
    default_base_url = "https://bedrock-runtime.{region}.amazonaws.com"
    api_key_env: str | None = None
    docs_url = "https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-anthropic-claude-messages.html"
    params: Mapping[str, str] = {
        **{name: how for name, how in Anthropic.params.items() if name != "web_search_options"},
        "model": "mapped to the deployment's model, in the path",
        "metadata": "mapped to the header X-Amzn-Bedrock-Request-Metadata",
        "response_format": "mapped to output_config.format (4.5, 4.6, 5 and later), else to a forced tool",
        "safety_identifier": "mapped to the request metadata",
        "service_tier": "auto, default, flex and priority are mapped to the header X-Amzn-Bedrock-Service-Tier",
        "stream": "mapped, in the path",
        "user": "mapped to the request metadata",
        "cache_control": "mapped to the last block",
    }
    unsupported: Mapping[str, str] = {
        **Anthropic.unsupported,
        "web_search_options": "There is no web search on Bedrock.",
    }

    def needs(self, call: Call) -> tuple[str, ...]:
        return remote_urls(call.payload)

    def request(self, call: Call) -> UpstreamRequest:
        dropped: list[str] = []

        drop = dropper(self, call, dropped)
        with sayable:
            headers = [*JSON_HEADERS, *_headers(call, drop)]
            plan = build(self, _prepared(call))
            self._adapt(call, plan)
            body = msgspec.json.encode(plan.body)
        return UpstreamRequest(
            path=model_path(sent_model(call), "invoke-with-response-stream" if call.is_stream else "invoke"),
            headers=headers,
            body=body,
            dropped=tuple(dict.fromkeys([*plan.dropped, *dropped])),
        )

    def _adapt(self, call: Call, plan: RequestPlan) -> None:
        body = plan.body
        for name in ("model", "stream", *_IN_HEADERS, *_OPERATORS_HEADERS):
            body.pop(name, None)
        plan.body = body = {"anthropic_version": VERSION, **body}
        if betas := betas_of(call, body):
            body["anthropic_beta"] = betas
        cache = body.pop("cache_control", None)
        if cache is not None:
            body["messages"][-1]["content"][-1].setdefault("cache_control", cache)
        for turn in body["messages"]:
            for block in turn["content"]:
                if block["type"] == "document" and block["source"]["type"] == "file":
                    raise bad("'file_id' is not known to Bedrock; send the file's bytes.", "messages")
        if not model_of(known_model(call)).has_native_schema:
            for index, tool in enumerate(body.get("tools", ())):
                if "strict" in tool:  # the SDKs send it by themselves, so it is no reason to refuse
                    body["tools"][index] = {name: value for name, value in tool.items() if name != "strict"}
                    plan.dropped.append(f"tools[{index}].function.strict")

    def response(self, call: Call, head: Head, body: bytes) -> Reply:
        return super().response(_read_as(call), head, body)

    def stream(self, call: Call, head: Head) -> StreamTranslator:
        return BedrockInvokeStream(self, _read_as(call))

    def error(self, call: Call, head: Head, body: bytes) -> ProviderError:
        return aws_error(self.name, call, head, body)


class BedrockInvokeStream(AnthropicStream):
    """Anthropic's events in the `chunk` events of an AWS event stream, as base64."""

    __slots__ = ()

    def __init__(self, provider: BedrockInvoke, call: Call) -> None:
        super().__init__(provider, call)
        self._splitter = AWSEventSplitter()

    def on_event(self, event: Event) -> bytes:
        name, data, raw = event
        if data is None or name == b"chunk":
            inner = None if data is None else binascii.a2b_base64(_decode_chunk(data).bytes)
            return super().on_event((b"", inner, raw))
        if name.startswith(b"exception:"):
            raise stream_error(self.provider_name, self._call, name[10:], data)
        return b""


def _read_as(call: Call) -> Call:
    """The call with the model's own name, for what is decided by it, and without the account an ARN names."""
    model = sent_model(call)
    known = known_model(call)
    takes_tool = not model_of(known).has_native_schema and "structured_output" not in call.params
    if known == model and "/" not in model and not takes_tool:
        return call
    params = {**call.params, "structured_output": "tool"} if takes_tool else call.params
    edits = {name: value for name, value in call.edits.items() if name != "model"}
    return replace(call, model=known.rpartition("/")[2], edits=edits, params=params)


def _prepared(call: Call) -> Call:
    """What Anthropic's translation is given: bytes instead of URLs, and nothing that travels in headers."""
    payload = dict(inlined(call.payload, call.media))
    for name in _IN_HEADERS[:4]:
        payload.pop(name, None)
    read = _read_as(call)
    params = {name: value for name, value in read.params.items() if name not in _IN_HEADERS}
    return replace(read, payload=payload, params=params)


def _headers(call: Call, drop: Drop) -> list[tuple[bytes, bytes]]:
    given = {name: call.payload.get(name) for name in _IN_HEADERS[:4]}
    fields = {name: value if value is not None else call.params.get(name) for name, value in given.items()}
    fields["requestMetadata"] = call.params.get("requestMetadata")
    headers = []
    metadata = request_metadata(fields, drop)
    if metadata:
        headers.append((b"x-amzn-bedrock-request-metadata", msgspec.json.encode(metadata)))
    tier = service_tier(fields, drop)
    if tier is not None:
        headers.append((b"x-amzn-bedrock-service-tier", tier.encode()))
    for name, header in _OPERATORS_HEADERS.items():
        value = call.params.get(name)
        if isinstance(value, str):
            headers.append((header, value.encode("ascii", "ignore")))
    return headers
