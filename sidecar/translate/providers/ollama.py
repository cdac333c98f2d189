"""Ollama by its own chat API: OpenAI chat requests in, OpenAI chat answers out, streamed as JSON lines or not.

Neighbour: `ollama_request` (the way in). Its OpenAI-compatible API takes less: no `think` levels on every model, no
context length, no `keep_alive`. https://docs.ollama.com/api/chat · https://docs.ollama.com/api/errors
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from sidecar.errors import ProviderError, UpstreamBrokenError
from sidecar.translate.chunks import Chunks, call_id, completion
from sidecar.translate.content import remote_urls
from sidecar.translate.framing import Event
from sidecar.translate.json_lines import JSONLinesSplitter
from sidecar.translate.provider import Call, Head, Provider, Reply, StreamTranslator, UpstreamRequest, sayable
from sidecar.translate.provider_errors import error_fields, kind_by_words, kind_of_status, make_error
from sidecar.translate.providers.ollama_request import build
from sidecar.translate.providers.openai import wants_usage
from sidecar.translate.usage import NOT_JSON, count
from sidecar.types import UNKNOWN_USAGE, Usage

_encode = msgspec.json.encode
_FINISH = {"stop": "stop", "length": "length"}
_NO_SUCH = "Remove it; Ollama has no such field."
_USE_TOOLS = "Use tools."


class _Function(msgspec.Struct, gc=False):
    name: str = ""
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class _ToolCall(msgspec.Struct, gc=False):
    function: _Function
    id: str | None = None


class _Message(msgspec.Struct, gc=False):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Answer(msgspec.Struct, gc=False):
    """A whole answer, or a line of a stream."""

    model: str | None = None
    message: _Message | None = None
    done: bool = False
    done_reason: str | None = None
    prompt_eval_count: Any = None
    eval_count: Any = None
    logprobs: Any = None
    error: Any = None


_decode = msgspec.json.Decoder(_Answer).decode


class Ollama(Provider):
    name = "ollama"
    framing = "json-lines"
    default_base_url = "http://127.0.0.1:11434"
    docs_url = "https://docs.ollama.com/api/chat"
    params: Mapping[str, str] = {
        "model": "mapped to the deployment's model",
        "messages": "mapped; role function is refused",
        "frequency_penalty": "mapped to options",
        "logprobs": "passed",
        "max_completion_tokens": "mapped to options.num_predict",
        "max_tokens": "mapped to options.num_predict",
        "presence_penalty": "mapped to options",
        "reasoning_effort": "mapped to think",
        "response_format": "mapped to format",
        "seed": "mapped to options",
        "stop": "mapped to options",
        "stream": "passed",
        "stream_options": "mapped: include_usage is done by the gateway",
        "temperature": "mapped to options",
        "tool_choice": "auto, none and allowed_tools are mapped; to force a call is refused",
        "tools": "mapped; tools that are no functions are refused",
        "top_logprobs": "passed",
        "top_p": "mapped to options",
        # Not OpenAI's, but Ollama's own and Claude's:
        "think": "passed",
        "thinking": "mapped to think",
        "top_k": "mapped to options",
        "min_p": "mapped to options",
    }
    unsupported: Mapping[str, str] = {
        "audio": "Remove it; Ollama does not speak.",
        "function_call": _USE_TOOLS,
        "functions": _USE_TOOLS,
        "logit_bias": _NO_SUCH,
        "metadata": _NO_SUCH,
        "modalities": "Remove it; Ollama answers with text.",
        "moderation": _NO_SUCH,
        "n": "Remove it or send 1.",
        "parallel_tool_calls": "Ollama may always call several functions at once; remove it, or send true.",
        "prediction": _NO_SUCH,
        "prompt_cache_key": "Remove it; Ollama keeps repeated beginnings by itself.",
        "prompt_cache_options": "Remove it; Ollama keeps repeated beginnings by itself.",
        "prompt_cache_retention": "Remove it; the deployment's keep_alive says how long a model stays loaded.",
        "safety_identifier": _NO_SUCH,
        "service_tier": _NO_SUCH,
        "store": "Remove it or send false.",
        "user": _NO_SUCH,
        "verbosity": "Remove it or send medium; ask for the length in the prompt.",
        "web_search_options": _NO_SUCH,
    }

    def needs(self, call: Call) -> tuple[str, ...]:
        return remote_urls(call.payload)

    def request(self, call: Call) -> UpstreamRequest:
        with sayable:
            body, dropped = build(self, call, str(call.edits.get("model", call.model)))
            raw = _encode(body)
        return UpstreamRequest(
            path="/api/chat",
            headers=[(b"content-type", b"application/json")],
            body=raw,
            dropped=tuple(dict.fromkeys(dropped)),
        )

    def response(self, call: Call, head: Head, body: bytes) -> Reply:
        try:
            answer = _decode(body)
            if answer.error is not None:
                raise self.stated_error(call, answer.error)
            if answer.message is None or not answer.done:
                raise UpstreamBrokenError(f"Provider {self.name} answered without a whole message.")
            return self._reply(call, answer, answer.message)
        except NOT_JSON as error:
            raise UpstreamBrokenError(
                f"Provider {self.name} answered {head.status} with a body that is not an answer."
            ) from error

    def _reply(self, call: Call, answer: _Answer, said: _Message) -> Reply:
        tools = [_tool(call, index, tool) for index, tool in enumerate(said.tool_calls or ())]
        content = said.content or ""
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content if content or not tools else None,
            "refusal": None,
        }
        if said.thinking:
            message["reasoning_content"] = said.thinking
        if tools:
            message["tool_calls"] = tools
        choice = {
            "index": 0,
            "message": message,
            "logprobs": _logprobs(answer.logprobs),
            **_ending(answer, bool(tools)),
        }
        usage = _usage(answer)
        return Reply(body=completion(call, None, answer.model, choice, usage), usage=usage)

    def stream(self, call: Call, head: Head) -> StreamTranslator:
        return OllamaStream(self, call)

    def error(self, call: Call, head: Head, body: bytes) -> ProviderError:
        fields = error_fields(body)
        return make_error(
            self.name, head, kind=kind_by_words(kind_of_status(head.status), fields.get("message")), now=call.now,
            fields=fields, keeps_names=False,
        )  # fmt: skip

    def stated_error(self, call: Call, message: Any) -> ProviderError:
        """An error line in a stream or a 200 answer; it has no status."""
        return make_error(
            self.name,
            Head(500),
            kind=kind_by_words("server", message),
            now=call.now,
            fields={"message": message},
            keeps_names=False,
            may_be_billed=True,
        )


class OllamaStream(StreamTranslator):
    """A line is a piece; the one that is `done` carries reason and counts and is the end."""

    __slots__ = ("_call", "_chunks", "_provider", "_tools")

    def __init__(self, provider: Ollama, call: Call) -> None:
        super().__init__(provider.name, JSONLinesSplitter())
        self._provider = provider
        self._call = call
        self._chunks: Chunks | None = None
        self._tools = 0

    def on_event(self, event: Event) -> bytes:
        data = event[1]
        if data is None:
            return b""
        line = _decode(data)
        if line.error is not None:
            raise self._provider.stated_error(self._call, line.error)
        message = line.message
        if message is None:
            raise self.broken("sent a line that is neither a message nor an error")
        chunks = self._chunks
        if chunks is None:
            chunks = self._chunks = Chunks(self._call, None, line.model)
        out = b""
        if message.thinking:
            out = chunks.reasoning(message.thinking)
        if message.content:
            probs = b"null" if line.logprobs is None else _encode(_logprobs(line.logprobs))
            out += chunks.text(message.content, probs)
        for tool in message.tool_calls or ():
            out += chunks.tool(self._tools, _tool(self._call, self._tools, tool))
            self._tools += 1
        if out:
            self.content_started = True
        if line.done:
            out += self._ended(line, chunks)
        return out

    def _ended(self, line: _Answer, chunks: Chunks) -> bytes:
        self.usage = _usage(line)
        self.is_complete = True
        return chunks.end(_ending(line, self._tools > 0), self.usage if wants_usage(self._call.payload) else None)


def _tool(call: Call, index: int, tool: _ToolCall) -> dict[str, Any]:
    raw = bytes(tool.function.arguments)
    arguments = str(msgspec.json.decode(raw)) if raw[:1] == b'"' else raw.decode()
    return {
        "id": tool.id or call_id(call.exchange_id, index),
        "type": "function",
        "function": {"name": tool.function.name, "arguments": arguments if arguments not in ("", "null") else "{}"},
    }


def _ending(answer: _Answer, has_tools: bool) -> dict[str, Any]:
    reason = answer.done_reason or "stop"
    found = _FINISH.get(reason, "stop")
    fields = {"finish_reason": "tool_calls" if has_tools and found == "stop" else found}
    return fields if reason in _FINISH else {**fields, "native_finish_reason": reason[:64]}


def _usage(answer: _Answer) -> Usage:
    """Thinking is within `eval_count`. https://docs.ollama.com/api/usage"""
    read, said = count(answer.prompt_eval_count), count(answer.eval_count)
    return UNKNOWN_USAGE if read is None and said is None else Usage(input=read, output=said)


def _logprobs(items: Any) -> dict[str, Any] | None:
    """https://docs.ollama.com/api/chat: entries as OpenAI has them, some without `bytes` or `top_logprobs`."""
    entries = [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    content = []
    for item in entries:
        tops = item.get("top_logprobs")
        others = [_entry(top) for top in tops if isinstance(top, dict)] if isinstance(tops, list) else []
        content.append({**_entry(item), "top_logprobs": others})
    return {"content": content, "refusal": None} if content else None


def _entry(item: Mapping[str, Any]) -> dict[str, Any]:
    token, value = item.get("token"), item.get("logprob")
    token = token if isinstance(token, str) else ""
    number = float(value) if isinstance(value, (int, float)) else 0.0
    return {"token": token, "logprob": number, "bytes": list(token.encode("utf-8", "surrogatepass"))}
