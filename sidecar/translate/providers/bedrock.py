"""Amazon Bedrock through Converse: one dialect for Claude, Nova, Llama, Mistral, gpt-oss and the others.

Neighbours: `bedrock_request` and `bedrock_content` (the way in), `bedrock_stream` (events), `bedrock_models`,
`bedrock_errors`. Here: the field table, unstreamed answers, usage and finish reasons.
https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from sidecar.errors import ProviderError, UpstreamBrokenError
from sidecar.translate.chunks import call_id
from sidecar.translate.content import bad
from sidecar.translate.provider import Call, Head, Provider, Reply, StreamTranslator, UpstreamRequest, sayable
from sidecar.translate.providers.anthropic import openai_usage
from sidecar.translate.providers.anthropic_content import pack_blocks
from sidecar.translate.providers.anthropic_request import json_tool_name
from sidecar.translate.providers.bedrock_content import redacted_data
from sidecar.translate.providers.bedrock_errors import aws_error
from sidecar.translate.providers.bedrock_media import wanted_urls
from sidecar.translate.providers.bedrock_models import sent_model, shown_model
from sidecar.translate.providers.bedrock_request import build, names_for, uses_json_tool
from sidecar.translate.signatures import pack
from sidecar.translate.usage import NOT_JSON, count
from sidecar.types import UNKNOWN_USAGE, Headers, Usage

JSON_HEADERS: Headers = [(b"content-type", b"application/json")]

FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
    "malformed_model_output": "stop",
    "malformed_tool_use": "stop",
}
"""https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html#API_runtime_Converse_ResponseSyntax"""

_USE_TOOLS = "Use tools and tool_choice."
_MARK = "Mark what to cache with cache_control."


def finish_reason(stop_reason: Any, has_tool_calls: bool) -> str:
    """OpenAI's finish reason. Stopping for the JSON tool alone is a plain stop."""
    reason = FINISH_REASONS.get(stop_reason, "stop") if isinstance(stop_reason, str) else "stop"
    return "stop" if reason == "tool_calls" and not has_tool_calls else reason


def usage_of(source: Any) -> Usage:
    """`TokenUsage` as disjoint classes: `inputTokens` excludes both cache classes, `cacheDetails` tells the writes by
    lifetime; without it they are the 5-minute kind, Bedrock's default. Reasoning is within `outputTokens`, untold.
    https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_TokenUsage.html"""
    if not isinstance(source, dict):
        return UNKNOWN_USAGE
    written = count(source.get("cacheWriteInputTokens"))
    long = 0
    details = source.get("cacheDetails")
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, dict) and detail.get("ttl") == "1h":
            long += count(detail.get("inputTokens")) or 0
    return Usage(
        input=count(source.get("inputTokens")),
        cached_input=count(source.get("cacheReadInputTokens")),
        cache_write_5m=None if written is None else max(0, written - long),
        cache_write_1h=long or None,
        output=count(source.get("outputTokens")),
    )


def openai_tier(tier: Any) -> str | None:
    kind = tier.get("type") if isinstance(tier, dict) else None
    return kind if kind in ("default", "flex", "priority") else None


def annotation(citation: Any, start: int, end: int) -> dict[str, Any] | None:
    """A web citation as OpenAI says it; one of a document has no place there."""
    location = citation.get("location") if isinstance(citation, dict) else None
    web = location.get("web") if isinstance(location, dict) else None
    if not isinstance(web, dict) or not isinstance(web.get("url"), str):
        return None
    url, title = web["url"], citation.get("title")
    title = title if isinstance(title, str) else str(web.get("domain") or url)
    return {
        "type": "url_citation",
        "url_citation": {"start_index": start, "end_index": end, "title": title, "url": url},
    }


class _ToolUse(msgspec.Struct, gc=False):
    toolUseId: str = ""
    name: str = ""
    input: msgspec.Raw = msgspec.Raw(b"{}")
    type: str | None = None


class _ReasoningText(msgspec.Struct, gc=False):
    text: str = ""
    signature: str | None = None


class _Reasoning(msgspec.Struct, gc=False):
    reasoningText: _ReasoningText | None = None
    redactedContent: str | None = None


class _Block(msgspec.Struct, gc=False):
    text: str | None = None
    toolUse: _ToolUse | None = None
    reasoningContent: _Reasoning | None = None
    citationsContent: Any = None


class _Message(msgspec.Struct):
    content: list[_Block]


class _Output(msgspec.Struct):
    message: _Message


class _Answer(msgspec.Struct):
    output: _Output
    stopReason: str | None = None
    usage: Any = None
    serviceTier: Any = None


_decode_answer = msgspec.json.Decoder(_Answer).decode


class Bedrock(Provider):
    name = "bedrock"
    framing = "aws-events"
    auth = "bearer"
    keyless = "aws"
    service = "bedrock"
    needs_options = ("region",)
    default_base_url = "https://bedrock-runtime.{region}.amazonaws.com"
    docs_url = "https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html"
    params: Mapping[str, str] = {
        "model": "mapped to the deployment's model, in the path",
        "messages": "mapped; role function is refused",
        "max_completion_tokens": "mapped to inferenceConfig.maxTokens",
        "max_tokens": "mapped to inferenceConfig.maxTokens; default: max_output_tokens, else the model's own",
        "metadata": "mapped to requestMetadata",
        "parallel_tool_calls": "Claude: disable_parallel_tool_use; false is refused for other models",
        "reasoning_effort": "Claude: thinking; Nova 2: reasoningConfig; gpt-oss: reasoning_effort; else refused",
        "response_format": "mapped to outputConfig.textFormat (closed schemas, newer models), else to a forced tool",
        "safety_identifier": "mapped to requestMetadata",
        "service_tier": "auto, default, flex and priority are mapped",
        "stop": "mapped to inferenceConfig.stopSequences",
        "stream": "mapped, in the path",
        "stream_options": "include_usage is done by the gateway",
        "temperature": "mapped; refused above 1",
        "tool_choice": "mapped",
        "tools": "mapped (functions); custom ones are refused",
        "top_p": "mapped; refused above 1",
        "user": "mapped to requestMetadata",
        "web_search_options": "Nova: its grounding tool; else refused",
        # Not OpenAI's, but what clients of Claude send:
        "thinking": "Claude: passed; else refused",
        "top_k": "mapped",
        "cache_control": "mapped to cache points",
    }
    unsupported: Mapping[str, str] = {
        "audio": "Converse gives no audio; remove it.",
        "frequency_penalty": "Remove it or send 0.",
        "function_call": _USE_TOOLS,
        "functions": _USE_TOOLS,
        "logit_bias": "Remove it.",
        "logprobs": "Remove it or send false.",
        "modalities": "Converse gives text only; send ['text'].",
        "moderation": "Give the deployment a guardrail.",
        "n": "Send 1, and ask several times for several answers.",
        "prediction": "Remove it.",
        "presence_penalty": "Remove it or send 0.",
        "prompt_cache_key": _MARK,
        "prompt_cache_options": _MARK,
        "prompt_cache_retention": "Mark what to cache with cache_control and its ttl.",
        "seed": "Remove it.",
        "store": "Remove it or send false.",
        "top_logprobs": "Remove it.",
        "verbosity": "Remove it or send medium; ask for the length in the prompt.",
    }

    def needs(self, call: Call) -> tuple[str, ...]:
        return wanted_urls(call.payload)

    def request(self, call: Call) -> UpstreamRequest:
        with sayable:
            plan = build(self, call)
            body = msgspec.json.encode(plan.body)
        return UpstreamRequest(
            path=model_path(sent_model(call), "converse-stream" if call.is_stream else "converse"),
            headers=[*JSON_HEADERS],
            body=body,
            dropped=tuple(dict.fromkeys(plan.dropped)),
        )

    def response(self, call: Call, head: Head, body: bytes) -> Reply:
        try:
            return self._reply(call, _decode_answer(body))
        except (*NOT_JSON, TypeError, AttributeError) as error:
            raise UpstreamBrokenError(
                f"Provider {self.name} answered {head.status} with a body that is not a message."
            ) from error

    def _reply(self, call: Call, answer: _Answer) -> Reply:
        json_tool = json_tool_name(call.payload) if uses_json_tool(call) else None
        names = names_for(call)
        texts: list[str] = []
        thoughts: list[str] = []
        thinking: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        tool_calls: list[dict[str, Any]] = []
        json_text: str | None = None
        said = 0
        before: list[Any] = []  # since the last tool call
        for block in answer.output.message.content:
            text = block.text
            if block.citationsContent is not None:
                text, found = _cited(block.citationsContent, said)
                annotations += found
            if text is not None:
                texts.append(text)
                said += len(text)
                if text and json_tool is None:
                    before.append(said)
            elif block.reasoningContent is not None:
                thought = block.reasoningContent.reasoningText
                if thought is not None:
                    thoughts.append(thought.text)
                    if thought.signature:
                        thinking.append({"type": "thinking", "thinking": thought.text, "signature": thought.signature})
                        before.append(thinking[-1])
                elif block.reasoningContent.redactedContent:
                    data = redacted_data(block.reasoningContent.redactedContent)
                    thinking.append({"type": "redacted_thinking", "data": data})
                    before.append(thinking[-1])
            elif block.toolUse is not None and block.toolUse.type != "server_tool_use":
                tool = block.toolUse
                given = bytes(tool.input).decode()
                arguments = given if given not in ("null", '""') else "{}"
                if json_tool is not None and tool.name == json_tool:
                    json_text = arguments if json_text is None else json_text
                    continue
                tool_id = tool.toolUseId or call_id(call.exchange_id, len(tool_calls))
                if thinking and before:
                    tool_id, before = pack(tool_id, pack_blocks(before)), []
                tool_calls.append(
                    {
                        "id": tool_id,
                        "type": "function",
                        "function": {"name": names.original(tool.name), "arguments": arguments},
                    }
                )
        content: str | None = "".join(texts)
        if json_text is not None:
            content, annotations = json_text, []  # text beside the JSON would spoil it
        if not content and tool_calls:
            content = None
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if annotations:
            message["annotations"] = annotations
        if thoughts:
            message["reasoning_content"] = "".join(thoughts)
        if thinking:
            message["thinking_blocks"] = thinking
        if tool_calls:
            message["tool_calls"] = tool_calls
        usage = usage_of(answer.usage)
        result: dict[str, Any] = {
            "id": f"chatcmpl-{call.exchange_id}",
            "object": "chat.completion",
            "created": int(call.now),
            "model": shown_model(call),
            "choices": [
                {
                    "index": 0,
                    "message": message,
                    "logprobs": None,
                    "finish_reason": finish_reason(answer.stopReason, bool(tool_calls)),
                }
            ],
        }
        if usage.is_known:
            result["usage"] = openai_usage(usage)
        tier = openai_tier(answer.serviceTier)
        if tier is not None:
            result["service_tier"] = tier
        return Reply(body=msgspec.json.encode(result), usage=usage)

    def stream(self, call: Call, head: Head) -> StreamTranslator:
        from sidecar.translate.providers.bedrock_stream import BedrockStream

        return BedrockStream(self, call)

    def error(self, call: Call, head: Head, body: bytes) -> ProviderError:
        return aws_error(self.name, call, head, body)


def model_path(model: str, operation: str) -> str:
    """An id or ARN is one segment: `:` and `/` are quoted, as AWS's own clients sign and send them."""
    return f"/model/{segment_of(model)}/{operation}"


def segment_of(model: str) -> str:
    """Raises `BadRequestError` for a name (of a wildcard group, so a client's) that would be another path."""
    try:
        quoted = quote(model, safe="")
    except UnicodeError:
        quoted = ""
    if quoted in ("", ".", ".."):
        raise bad("'model' is no model's name.", "model")
    return quoted


def _cited(source: Any, said: int) -> tuple[str, list[dict[str, Any]]]:
    """The text of a `citationsContent` block and its web citations; they are of the whole block."""
    content = source.get("content") if isinstance(source, dict) else None
    pieces = [part.get("text") for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    citations = source.get("citations") if isinstance(source, dict) else None
    found = [annotation(one, said, said + len(text)) for one in (citations if isinstance(citations, list) else ())]
    return text, [one for one in found if one is not None]
