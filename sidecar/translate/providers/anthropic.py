"""Anthropic Messages: OpenAI chat requests in, OpenAI chat answers out, streamed or not.

Neighbours: `anthropic_request` and `anthropic_content` (the way in), `anthropic_stream` (events), `anthropic_models`
(what a model can do). Here: the field table, unstreamed answers, usage, finish reasons and errors.
https://platform.claude.com/docs/en/api/messages/create · https://platform.claude.com/docs/en/api/errors
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from sidecar.errors import ErrorKind, ProviderError, UpstreamBrokenError
from sidecar.translate.chunks import call_id
from sidecar.translate.provider import Auth, Call, Head, Provider, Reply, StreamTranslator, UpstreamRequest, sayable
from sidecar.translate.provider_errors import error_fields, kind_of_status, make_error
from sidecar.translate.providers.anthropic_content import pack_blocks
from sidecar.translate.providers.anthropic_extras import betas_of, cited
from sidecar.translate.providers.anthropic_request import build, json_tool_name, original_names, uses_json_tool
from sidecar.translate.signatures import pack
from sidecar.translate.usage import NOT_JSON, count
from sidecar.types import UNKNOWN_USAGE, Usage

VERSION = b"2023-06-01"

FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "length",
    "compaction": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""https://platform.claude.com/docs/en/build-with-claude/handling-stop-reasons"""

_ERROR_KINDS: dict[str, ErrorKind] = {
    "invalid_request_error": "bad_request",
    "authentication_error": "authentication",
    "billing_error": "quota",
    "permission_error": "permission",
    "not_found_error": "not_found",
    "request_too_large": "too_large",
    "rate_limit_error": "rate_limit",
    "timeout_error": "timeout",
    "api_error": "server",
    "overloaded_error": "overloaded",
    "conflict_error": "server",
}
_STATUS_OF = {
    "bad_request": 400,
    "authentication": 401,
    "quota": 402,
    "permission": 403,
    "not_found": 404,
    "too_large": 413,
    "rate_limit": 429,
    "timeout": 504,
    "server": 500,
    "overloaded": 529,
}

_USE_TOOLS = "Use tools and tool_choice."


def finish_reason(stop_reason: Any, has_tool_calls: bool) -> str:
    """OpenAI's finish reason. Stopping for the JSON tool alone is a plain stop."""
    if stop_reason is None:
        return "tool_calls" if has_tool_calls else "stop"
    reason = FINISH_REASONS.get(stop_reason, "stop") if isinstance(stop_reason, str) else "stop"
    if reason == "tool_calls" and not has_tool_calls:
        return "stop"
    return reason


def merge_usage(source: Any, before: Usage = UNKNOWN_USAGE) -> Usage:
    """Anthropic's `usage` as disjoint classes; its counts are cumulative, so what it says replaces what was there.

    `input_tokens` excludes both cache classes; without the breakdown by lifetime all cache writes are the 5-minute
    kind, which is the API's default. `output_tokens` includes thinking.
    """
    if not isinstance(source, dict):
        return before
    given_input = count(source.get("input_tokens"))
    cached = count(source.get("cache_read_input_tokens"))
    written = count(source.get("cache_creation_input_tokens"))
    output = count(source.get("output_tokens"))
    write_5m, write_1h = before.cache_write_5m, before.cache_write_1h
    breakdown = source.get("cache_creation")
    if isinstance(breakdown, dict):
        short, long = (
            count(breakdown.get("ephemeral_5m_input_tokens")),
            count(breakdown.get("ephemeral_1h_input_tokens")),
        )
        if short is not None or long is not None:
            write_5m, write_1h = short, long
    if written is not None and written != (write_5m or 0) + (write_1h or 0):
        write_5m = max(0, written - (write_1h or 0))
    reasoning = before.reasoning
    details = source.get("output_tokens_details")
    if isinstance(details, dict) and (thinking := count(details.get("thinking_tokens"))) is not None:
        reasoning = min(thinking, output) if output is not None else thinking
    plain = before.output
    if output is not None:
        plain = max(0, output - (reasoning or 0))
    return Usage(
        input=given_input if given_input is not None else before.input,
        cached_input=cached if cached is not None else before.cached_input,
        cache_write_5m=write_5m,
        cache_write_1h=write_1h,
        output=plain,
        reasoning=reasoning,
    )


def openai_usage(usage: Usage) -> dict[str, Any]:
    """OpenAI's `usage` object: totals that include every class, details for the classes known."""
    result: dict[str, Any] = {
        "prompt_tokens": usage.total_input,
        "completion_tokens": usage.total_output,
        "total_tokens": usage.total,
    }
    prompt: dict[str, int] = {}
    if usage.cached_input is not None:
        prompt["cached_tokens"] = usage.cached_input
    if usage.cache_write_5m is not None or usage.cache_write_1h is not None:
        prompt["cache_write_tokens"] = (usage.cache_write_5m or 0) + (usage.cache_write_1h or 0)
    result["prompt_tokens_details"] = prompt
    result["completion_tokens_details"] = {} if usage.reasoning is None else {"reasoning_tokens": usage.reasoning}
    return result


class _ToolInput(msgspec.Struct, gc=False):
    input: msgspec.Raw = msgspec.Raw(b"{}")


class _Answer(msgspec.Struct):
    content: list[msgspec.Raw]
    id: str | None = None
    model: str | None = None
    type: str | None = None
    stop_reason: str | None = None
    usage: Any = None


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_input = msgspec.json.Decoder(_ToolInput).decode


class Anthropic(Provider):
    name = "anthropic"
    auth: Auth = "x-api-key"
    default_base_url = "https://api.anthropic.com"
    api_key_env: str | None = "ANTHROPIC_API_KEY"
    docs_url = "https://platform.claude.com/docs/en/api/messages/create"
    params: Mapping[str, str] = {
        "model": "mapped to the deployment's model",
        "messages": "mapped; role function is refused",
        "max_completion_tokens": "mapped to max_tokens; default: the deployment's max_output_tokens, else 4096",
        "max_tokens": "mapped; default: the deployment's max_output_tokens, else 4096",
        "metadata": "metadata.user_id is mapped, other keys are refused",
        "parallel_tool_calls": "mapped to tool_choice.disable_parallel_tool_use",
        "reasoning_effort": "mapped to adaptive thinking with output_config.effort (4.6 on), else to a thinking budget",
        "response_format": "mapped to output_config.format (4.5 on, closed schemas), else to a forced tool",
        "safety_identifier": "mapped to metadata.user_id",
        "service_tier": "auto and default are mapped, others refused",
        "stop": "mapped to stop_sequences",
        "stream": "mapped",
        "stream_options": "include_usage is done by the gateway",
        "temperature": "mapped (before 4.7); refused above 1",
        "tool_choice": "mapped",
        "tools": "mapped (functions; Anthropic's own tools pass; custom ones are refused)",
        "top_p": "mapped (before 4.7)",
        "web_search_options": "mapped to Claude's web search tool; a search_context_size is refused",
        "user": "mapped to metadata.user_id; mail addresses and phone numbers as their hash",
        # Not OpenAI's, but what clients of Claude send:
        "thinking": "passed",
        "top_k": "passed (before 4.7)",
        "cache_control": "passed",
    }
    unsupported: Mapping[str, str] = {
        "audio": "Claude gives no audio; remove it.",
        "frequency_penalty": "Remove it or send 0.",
        "function_call": _USE_TOOLS,
        "functions": _USE_TOOLS,
        "logit_bias": "Remove it.",
        "logprobs": "Remove it or send false.",
        "modalities": "Claude gives text only; send ['text'].",
        "moderation": "Remove it.",
        "n": "Send 1, and ask several times for several answers.",
        "prediction": "Remove it.",
        "presence_penalty": "Remove it or send 0.",
        "prompt_cache_key": "Mark what to cache with cache_control.",
        "prompt_cache_options": "Mark what to cache with cache_control.",
        "prompt_cache_retention": "Mark what to cache with cache_control and its ttl.",
        "seed": "Remove it.",
        "store": "Remove it or send false.",
        "top_logprobs": "Remove it.",
        "verbosity": "Remove it or send medium; ask for the length in the prompt.",
    }

    def request(self, call: Call) -> UpstreamRequest:
        with sayable:
            plan = build(self, call)
            body = msgspec.json.encode(plan.body)
        headers = [(b"content-type", b"application/json"), (b"anthropic-version", VERSION)]
        if betas := betas_of(call, plan.body):
            headers.append((b"anthropic-beta", ",".join(betas).encode("ascii", "ignore")))
        return UpstreamRequest(
            path="/v1/messages", headers=headers, body=body, dropped=tuple(dict.fromkeys(plan.dropped))
        )

    def response(self, call: Call, head: Head, body: bytes) -> Reply:
        try:
            answer = _decode_answer(body)
            return self._reply(call, answer)
        except (*NOT_JSON, TypeError, AttributeError) as error:
            fields = error_fields(body)
            if isinstance(fields.get("type"), str) and fields["type"] in _ERROR_KINDS:
                raise self._stated_error(call, fields) from error
            raise UpstreamBrokenError(
                f"Provider {self.name} answered {head.status} with a body that is not a message."
            ) from error

    def _reply(self, call: Call, answer: _Answer) -> Reply:
        json_tool = json_tool_name(call.payload) if uses_json_tool(call) else None
        names = original_names(call.payload)
        texts: list[str] = []
        notes: list[dict[str, Any]] = []
        thoughts: list[str] = []
        thinking: list[dict[str, Any]] = []
        tool_calls: list[dict[str, Any]] = []
        json_text: str | None = None
        said = 0
        before: list[Any] = []  # since the last tool call
        for raw in answer.content:
            block = msgspec.json.decode(raw)
            kind = block.get("type")
            if kind == "text":
                texts.append(block.get("text") or "")
                if json_tool is None and block.get("citations"):
                    notes += cited(block["citations"], said, said + len(texts[-1]))
                said += len(texts[-1])
                if texts[-1] and json_tool is None:
                    before.append(said)
            elif kind == "thinking":
                thoughts.append(block.get("thinking") or "")
                thinking.append(
                    {"type": kind, "thinking": block.get("thinking") or "", "signature": block.get("signature") or ""}
                )
                before.append(thinking[-1])
            elif kind == "redacted_thinking":
                thinking.append({"type": kind, "data": block.get("data") or ""})
                before.append(thinking[-1])
            elif kind == "tool_use":
                given = bytes(_decode_input(raw).input).decode()
                arguments = given if given not in ("null", '""') else "{}"
                if block.get("name") == json_tool and json_tool is not None:
                    json_text = arguments if json_text is None else json_text
                    continue
                name = str(block.get("name") or "")
                tool_id = str(block.get("id") or call_id(call.exchange_id, len(tool_calls)))
                if thinking and before:
                    tool_id, before = pack(tool_id, pack_blocks(before)), []
                tool_calls.append(
                    {
                        "id": tool_id,
                        "type": "function",
                        "function": {"name": names.get(name, name), "arguments": arguments},
                    }
                )
        content: str | None = "".join(texts)
        if json_text is not None:
            content = json_text  # text beside the JSON would spoil it
        if not content and tool_calls:
            content = None
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if notes:
            message["annotations"] = notes
        if thoughts:
            message["reasoning_content"] = "".join(thoughts)
        if thinking:
            message["thinking_blocks"] = thinking
        if tool_calls:
            message["tool_calls"] = tool_calls
        usage = merge_usage(answer.usage)
        result: dict[str, Any] = {
            "id": answer.id or f"chatcmpl-{call.exchange_id}",
            "object": "chat.completion",
            "created": int(call.now),
            "model": answer.model or call.model,
            "choices": [
                {
                    "index": 0,
                    "message": message,
                    "logprobs": None,
                    "finish_reason": finish_reason(answer.stop_reason, bool(tool_calls)),
                }
            ],
        }
        if usage.is_known:
            result["usage"] = openai_usage(usage)
        return Reply(body=msgspec.json.encode(result), usage=usage)

    def stream(self, call: Call, head: Head) -> StreamTranslator:
        from sidecar.translate.providers.anthropic_stream import AnthropicStream

        return AnthropicStream(self, call)

    def error(self, call: Call, head: Head, body: bytes) -> ProviderError:
        return self._error(call, head, error_fields(body), may_be_billed=False)

    def _stated_error(self, call: Call, fields: dict[str, Any]) -> ProviderError:
        """An error inside a stream or a 200 answer: its type says the status it would have had."""
        stated = fields.get("type")
        kind = _ERROR_KINDS.get(stated, "server") if isinstance(stated, str) else "server"
        return self._error(call, Head(_STATUS_OF[kind]), fields, may_be_billed=True)

    def _error(self, call: Call, head: Head, fields: dict[str, Any], *, may_be_billed: bool) -> ProviderError:
        kind = kind_of_status(head.status)
        stated = fields.get("type")
        by_type = _ERROR_KINDS.get(stated) if isinstance(stated, str) else None
        if by_type is not None and (head.status < 400 or by_type != "bad_request"):
            kind = by_type
        message = fields.get("message")
        if kind == "bad_request" and isinstance(message, str):
            # No code of their own: https://platform.claude.com/docs/en/build-with-claude/context-windows
            text = message.lower()
            if text.startswith(("prompt is too long", "input length and `max_tokens` exceed context limit")):
                kind = "context_window"
            elif text.startswith("output blocked by content filtering policy"):
                kind = "content_policy"
            elif text.startswith(
                ("your credit balance is too low", "you have reached your specified api usage limits")
            ):
                kind = "quota"
            elif text.startswith("this organization has been disabled"):
                kind = "authentication"
        return make_error(
            self.name, head, kind=kind, now=call.now, fields=fields, keeps_names=False, may_be_billed=may_be_billed
        )
