"""Cohere by its own v2 chat API: OpenAI chat requests in, OpenAI chat answers out, streamed or not.

Neighbours: `cohere_request` (the way in), `cohere_answer` and `cohere_stream` (the way back). Here: the field table,
whole answers and errors. https://docs.cohere.com/reference/chat · https://docs.cohere.com/reference/errors
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from sidecar.errors import ErrorKind, ProviderError, UpstreamBrokenError
from sidecar.translate.chunks import call_id, completion
from sidecar.translate.provider import Call, Head, Provider, Reply, StreamTranslator, UpstreamRequest, sayable
from sidecar.translate.provider_errors import error_fields, kind_of_status, make_error
from sidecar.translate.providers.cohere_answer import citations, ending, logprobs, usage_of
from sidecar.translate.providers.cohere_request import build
from sidecar.translate.providers.cohere_stream import CohereStream
from sidecar.translate.tool_names import COHERE as NAMES
from sidecar.translate.tool_names import tool_names
from sidecar.translate.usage import NOT_JSON

_KINDS: dict[int, ErrorKind] = {498: "content_policy", 501: "bad_request"}
"""498: request or answer holds a token that is not allowed. 501: a feature asked for is not there, nor will it be when
asked again. https://docs.cohere.com/reference/chat#response"""
_TOO_LONG, _CAP_TOO_HIGH = "too many tokens", "too many tokens: max tokens"
"""It has no code of its own. https://docs.cohere.com/reference/errors"""
_MONTHLY = re.compile(r"You are using a Trial key, which is limited to \d{1,9} API calls / month")
"""With 429, as that of a minute. https://docs.cohere.com/docs/rate-limits"""
_USE_TOOLS = "Use tools and tool_choice."
_CACHES = "Remove it; Cohere caches repeated beginnings by itself."
_NO_USER = "Remove it; Cohere has no such field."


class Cohere(Provider):
    name = "cohere"
    default_base_url = "https://api.cohere.com"
    api_key_env = "COHERE_API_KEY"
    docs_url = "https://docs.cohere.com/reference/chat"
    params: Mapping[str, str] = {
        "model": "mapped to the deployment's model",
        "messages": "mapped; role function is refused",
        "frequency_penalty": "passed",
        "logprobs": "passed",
        "max_completion_tokens": "mapped to max_tokens",
        "max_tokens": "passed",
        "presence_penalty": "passed",
        "reasoning_effort": "mapped to thinking",
        "response_format": "mapped; refused beside tools",
        "seed": "passed",
        "stop": "mapped to stop_sequences (at most 5)",
        "stream": "passed",
        "stream_options": "mapped: include_usage is done by the gateway",
        "temperature": "passed",
        "tool_choice": "mapped to REQUIRED or NONE; a function named is the only one sent",
        "tools": "mapped; tools that are no functions are refused",
        "top_p": "mapped to p (at most 0.99)",
        # Not OpenAI's, but Cohere's own:
        "thinking": "mapped, budget_tokens to token_budget",
        "top_k": "mapped to k",
        "k": "passed",
        "p": "passed",
        "documents": "passed",
        "citation_options": "passed",
        "safety_mode": "passed",
        "priority": "passed",
    }
    unsupported: Mapping[str, str] = {
        "audio": "Remove it; Cohere does not speak.",
        "function_call": _USE_TOOLS,
        "functions": _USE_TOOLS,
        "logit_bias": "Remove it.",
        "metadata": _NO_USER,
        "modalities": "Remove it; Cohere answers with text.",
        "moderation": "Remove it; safety_mode says what Cohere filters.",
        "n": "Remove it or send 1.",
        "parallel_tool_calls": "Cohere may always call several functions at once; remove it, or send true.",
        "prediction": "Remove it.",
        "prompt_cache_key": _CACHES,
        "prompt_cache_options": _CACHES,
        "prompt_cache_retention": _CACHES,
        "safety_identifier": _NO_USER,
        "service_tier": "Remove it; Cohere has priority, a number.",
        "store": "Remove it or send false.",
        "top_logprobs": "Remove it; Cohere gives the log probabilities of what it said.",
        "user": _NO_USER,
        "verbosity": "Remove it or send medium; ask for the length in the prompt.",
        "web_search_options": "Remove it; send what was found as documents.",
    }

    def request(self, call: Call) -> UpstreamRequest:
        with sayable:
            body, dropped = build(self, call, str(call.edits.get("model", call.model)))
            raw = msgspec.json.encode(body)
        return UpstreamRequest(
            path="/v2/chat",
            headers=[(b"content-type", b"application/json")],
            body=raw,
            dropped=tuple(dict.fromkeys(dropped)),
        )

    def response(self, call: Call, head: Head, body: bytes) -> Reply:
        try:
            return self._reply(call, msgspec.json.decode(body))
        except (*NOT_JSON, TypeError, AttributeError, ValueError, KeyError) as error:
            raise UpstreamBrokenError(
                f"Provider {self.name} answered {head.status} with a body that is not an answer."
            ) from error

    def _reply(self, call: Call, answer: dict[str, Any]) -> Reply:
        said, reason = answer.get("message"), answer.get("finish_reason")
        if reason in ("ERROR", "TIMEOUT") or isinstance(said, str):
            raise self.stated_error(call, said if isinstance(said, str) else None, reason)
        if not isinstance(said, dict) or not isinstance(reason, str):
            raise UpstreamBrokenError(f"Provider {self.name} answered without a message.")
        names = tool_names(call.payload, NAMES)
        parts = said.get("content") or ()
        texts = [part["text"] for part in parts if part.get("type") == "text"]
        thoughts = [part["thinking"] for part in parts if part.get("type") == "thinking"]
        if said.get("tool_plan"):
            texts.insert(0, said["tool_plan"])
        tools = [
            {
                "id": tool.get("id") or call_id(call.exchange_id, index),
                "type": "function",
                "function": {
                    "name": names.original(tool["function"]["name"]),
                    "arguments": tool["function"].get("arguments") or "{}",
                },
            }
            for index, tool in enumerate(said.get("tool_calls") or ())
        ]
        content: str | None = "".join(texts)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content if content or not tools else None,
            "refusal": None,
        }
        if any(thoughts):
            message["reasoning_content"] = "".join(thoughts)
        if tools:
            message["tool_calls"] = tools
        if notes := citations(said.get("citations")):
            message["annotations"] = notes
        usage = usage_of(answer.get("usage"))
        probs = logprobs(answer.get("logprobs"))
        choice = {"index": 0, "message": message, "logprobs": probs, **ending(reason, bool(tools))}
        return Reply(body=completion(call, answer.get("id"), None, choice, usage), usage=usage)

    def stream(self, call: Call, head: Head) -> StreamTranslator:
        return CohereStream(self, call)

    def error(self, call: Call, head: Head, body: bytes) -> ProviderError:
        fields = error_fields(body)
        kind = _KINDS.get(head.status) or kind_of_status(head.status)
        message = fields.get("message")
        if kind == "bad_request" and isinstance(message, str) and message.startswith(_TOO_LONG):
            kind = kind if message.startswith(_CAP_TOO_HIGH) else "context_window"
        elif kind == "rate_limit" and isinstance(message, str) and _MONTHLY.match(message) is not None:
            kind = "quota"
        return make_error(self.name, head, kind=kind, now=call.now, fields=fields, keeps_names=False)

    def stated_error(self, call: Call, message: Any, reason: str | None = None) -> ProviderError:
        """An error in a stream or a 200 answer, which has no status."""
        return make_error(
            self.name,
            Head(504 if reason == "TIMEOUT" else 500),
            kind="timeout" if reason == "TIMEOUT" else "server",
            now=call.now,
            fields={"message": message},
            keeps_names=False,
            may_be_billed=True,
        )
