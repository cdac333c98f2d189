"""What Gemini says, in OpenAI's words: parts, tool calls with their signatures, usage, sources, finish reasons.

Shared by whole answers and streams (`gemini_stream`), which hold one `Turn` per candidate.
https://ai.google.dev/api/generate-content#v1beta.GenerateContentResponse
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from sidecar.translate.chunks import call_id
from sidecar.translate.provider import Call
from sidecar.translate.signatures import pack
from sidecar.translate.tool_names import ToolNames
from sidecar.translate.usage import count
from sidecar.types import UNKNOWN_USAGE, Usage

FINISH_REASONS = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    **dict.fromkeys(
        (
            *("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "MODEL_ARMOR"),
            *("IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION"),
        ),
        "content_filter",
    ),
}
"""https://ai.google.dev/api/generate-content#FinishReason. Others (OTHER, NO_IMAGE, MALFORMED_FUNCTION_CALL …) are a
stop with the reason beside it in `native_finish_reason`."""
_UNSET = "FINISH_REASON_UNSPECIFIED"
_NULL = msgspec.Raw(b"null")


class FunctionCall(msgspec.Struct, gc=False):
    name: str | None = None
    id: str | None = None
    args: msgspec.Raw = _NULL


class Part(msgspec.Struct, gc=False):
    text: str | None = None
    thought: bool | None = None
    thoughtSignature: str | None = None
    functionCall: FunctionCall | None = None
    inlineData: Any = None
    executableCode: Any = None
    codeExecutionResult: Any = None
    toolCall: Any = None
    toolResponse: Any = None


class Content(msgspec.Struct, gc=False):
    parts: list[Part] | None = None


class Candidate(msgspec.Struct, gc=False):
    content: Content | None = None
    finishReason: str | None = None
    index: int | None = 0
    groundingMetadata: Any = None
    citationMetadata: Any = None
    logprobsResult: Any = None


class Chunk(msgspec.Struct, gc=False):
    candidates: list[Candidate] | None = None
    usageMetadata: Any = None
    promptFeedback: Any = None
    responseId: str | None = None
    modelVersion: str | None = None
    error: Any = None


decode_chunk = msgspec.json.Decoder(Chunk).decode


def finish_reason(reason: str, has_tool_calls: bool) -> str:
    """Gemini says STOP with tool calls too; a call that was cut or filtered is none to make."""
    found = FINISH_REASONS.get(reason, "stop")
    return "tool_calls" if has_tool_calls and found == "stop" else found


def block_reason(chunk: Chunk) -> str | None:
    """Why the prompt was refused, if it was."""
    feedback = chunk.promptFeedback
    reason = feedback.get("blockReason") if isinstance(feedback, dict) else None
    return reason if isinstance(reason, str) and reason else None


class Turn:
    """One candidate as far as it has come: counts text, numbers tool calls and notes what stood before the next one."""

    __slots__ = ("_before", "_call", "_grounding", "_names", "_provider", "_texts", "finish", "index", "said", "tools")

    def __init__(self, provider: str, call: Call, names: ToolNames, index: int = 0) -> None:
        self._provider = provider
        self._call = call
        self._names = names
        self._before: list[Any] = []
        self._grounding: list[Any] = []
        self._texts: list[str] = []
        self.index = index
        self.said = 0
        self.tools = 0
        self.finish: str | None = None

    def take(self, part: Part) -> tuple[str, Any]:
        """(what it is, its value): content and reasoning are text, tool a whole call, image a part, audio base64;
        "" is nothing to show."""
        text = part.text
        if text is not None:
            if part.thought:
                return "reasoning", text
            return "content", self._said(text, part.thoughtSignature)
        if part.functionCall is not None:
            return "tool", self._tool(part.functionCall, part.thoughtSignature)
        if isinstance(part.inlineData, dict):
            return self._medium(part.inlineData)
        if isinstance(part.executableCode, dict):
            code = part.executableCode
            language = str(code.get("language") or "").lower().replace("language_unspecified", "")
            return "content", self._said(f"\n```{language}\n{code.get('code') or ''}\n```\n", None)
        if isinstance(part.codeExecutionResult, dict):
            return "content", self._said(f"\n```\n{part.codeExecutionResult.get('output') or ''}\n```\n", None)
        for name, value in (("toolCall", part.toolCall), ("toolResponse", part.toolResponse)):
            if isinstance(value, dict):  # Google's own tools, to come back with the conversation
                signed = {"thoughtSignature": part.thoughtSignature} if part.thoughtSignature else {}
                self._before.append({name: value, **signed})
        return "", None

    def _said(self, text: str, signature: str | None) -> str:
        start = self.said
        self.said += len(text)
        self._texts.append(text)
        if signature:
            self._before.append([start, self.said, signature])
        return text

    def _tool(self, given: FunctionCall, signature: str | None) -> dict[str, Any]:
        state: dict[str, Any] = {}
        if signature:
            state["sig"] = signature
        if given.id:
            state["own"] = 1
        if self._before:
            state["before"], self._before = self._before, []
        if state and self.said:
            state["at"] = self.said  # where the text had come to
        tool_id = given.id or call_id(self._call.exchange_id, self.index, self.tools)
        if state:
            tool_id = pack(tool_id, {"kind": self._provider, **state})
        self.tools += 1
        name = given.name or ""
        function = {"name": self._names.original(name), "arguments": arguments_text(given.args)}
        return {"id": tool_id, "type": "function", "function": function}

    def _medium(self, data: Mapping[str, Any]) -> tuple[str, Any]:
        kind, content = data.get("mimeType"), data.get("data")
        if not isinstance(kind, str) or not isinstance(content, str):
            return "", None
        if kind.startswith("audio/"):
            return "audio", content
        return "image", {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{content}"}}

    def note(self, candidate: Candidate) -> None:
        if candidate.finishReason is not None and candidate.finishReason != _UNSET:
            self.finish = candidate.finishReason
        for source in (candidate.groundingMetadata, candidate.citationMetadata):
            if isinstance(source, dict):
                self._grounding.append(source)

    def annotations(self) -> list[dict[str, Any]]:
        return citations(self._grounding, self._texts) if self._grounding else []

    def finished(self) -> dict[str, Any]:
        """The fields of the choice that tell how it ended."""
        reason = self.finish or "STOP"
        fields = {"finish_reason": finish_reason(reason, self.tools > 0)}
        return fields if reason in ("STOP", "MAX_TOKENS") else {**fields, "native_finish_reason": reason}


def arguments_text(args: msgspec.Raw) -> str:
    """Arguments as JSON text; a string is taken for the JSON it holds, not encoded once more."""
    raw = bytes(args)
    if raw[:1] == b'"':
        return str(msgspec.json.decode(raw)) or "{}"
    if raw in (b"null", b"", b"{}"):
        return "{}"
    return msgspec.json.format(raw, indent=-1).decode()


def _by_modality(details: Any) -> dict[str, int]:
    """Counts by modality; several entries of one are added, a missing count is none."""
    found: dict[str, int] = {}
    for entry in details if isinstance(details, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("modality"), str):
            found[entry["modality"]] = found.get(entry["modality"], 0) + (count(entry.get("tokenCount")) or 0)
    return found


def usage_of(meta: Any) -> Usage:
    """`usageMetadata` as disjoint classes. `promptTokenCount` includes what was cached, tool results are beside it, and
    so are thoughts beside the candidates unless the total says otherwise. Video and documents count as input.
    https://ai.google.dev/api/generate-content#UsageMetadata"""
    if not isinstance(meta, dict):
        return UNKNOWN_USAGE
    prompt, answer = count(meta.get("promptTokenCount")), count(meta.get("candidatesTokenCount"))
    thoughts, total = count(meta.get("thoughtsTokenCount")), count(meta.get("totalTokenCount"))
    if prompt is None and answer is None and thoughts is None:
        return UNKNOWN_USAGE
    tool = count(meta.get("toolUsePromptTokenCount")) or 0
    cached = count(meta.get("cachedContentTokenCount"))
    read = (prompt or 0) + tool
    if answer is None and prompt is not None and total is not None:
        answer = max(0, total - read - (thoughts or 0))  # left out when it is nothing
    said = answer or 0
    if thoughts and total is not None and total == read + said and said >= thoughts:
        said -= thoughts
    audio_input = image_input = audio_output = image_output = None
    if (details := meta.get("promptTokensDetails")) is not None or "toolUsePromptTokensDetails" in meta:
        found, more = _by_modality(details), _by_modality(meta.get("toolUsePromptTokensDetails"))
        held = _by_modality(meta.get("cacheTokensDetails"))
        audio_input = max(0, found.get("AUDIO", 0) + more.get("AUDIO", 0) - held.get("AUDIO", 0)) or None
        image_input = max(0, found.get("IMAGE", 0) + more.get("IMAGE", 0) - held.get("IMAGE", 0)) or None
    if (details := meta.get("candidatesTokensDetails")) is not None:
        found = _by_modality(details)
        audio_output, image_output = found.get("AUDIO") or None, found.get("IMAGE") or None
    return Usage(
        input=max(0, read - (cached or 0) - (audio_input or 0) - (image_input or 0)),
        cached_input=cached,
        output=max(0, said - (audio_output or 0) - (image_output or 0)),
        reasoning=thoughts,
        audio_input=audio_input,
        audio_output=audio_output,
        image_input=image_input,
        image_output=image_output,
    )


def openai_usage(usage: Usage) -> dict[str, Any]:
    prompt = {"cached_tokens": usage.cached_input, "audio_tokens": usage.audio_input, "image_tokens": usage.image_input}
    completion = {
        "reasoning_tokens": usage.reasoning,
        "audio_tokens": usage.audio_output,
        "image_tokens": usage.image_output,
    }
    return {
        "prompt_tokens": usage.total_input,
        "completion_tokens": usage.total_output,
        "total_tokens": usage.total,
        "prompt_tokens_details": {name: value for name, value in prompt.items() if value is not None},
        "completion_tokens_details": {name: value for name, value in completion.items() if value is not None},
    }


def citations(sources: list[Any], texts: list[str]) -> list[dict[str, Any]]:
    """Sources as OpenAI's `url_citation`. Google counts UTF-8 bytes, OpenAI characters.
    https://ai.google.dev/gemini-api/docs/google-search#attributing_sources_with_inline_citations"""
    text = "".join(texts)
    data = text.encode("utf-8", "surrogatepass")
    is_ascii = len(data) == len(text)
    starts = [0]
    for piece in texts:
        starts.append(starts[-1] + len(piece.encode("utf-8", "surrogatepass")))

    def place(value: Any, default: int, part: int = 0) -> int:
        offset = count(value)
        if offset is None:
            return default
        offset = min(offset + (starts[part] if part < len(starts) else 0), len(data))
        return offset if is_ascii else len(data[:offset].decode("utf-8", "ignore"))

    found: dict[tuple[Any, ...], dict[str, Any]] = {}

    def cite(url: Any, title: Any, start: int, end: int) -> None:
        if isinstance(url, str) and url:
            title = title if isinstance(title, str) and title else url
            citation = {"url": url, "title": title, "start_index": start, "end_index": end}
            found[url, start, end] = {"type": "url_citation", "url_citation": citation}

    for source in sources:
        pages = [_page(chunk) for chunk in _list(source, "groundingChunks")]
        supports = [support for support in _list(source, "groundingSupports") if isinstance(support, dict)]
        for support in supports:
            segment = support.get("segment")
            segment = segment if isinstance(segment, dict) else {}
            part = count(segment.get("partIndex")) or 0
            start, end = place(segment.get("startIndex"), 0), place(segment.get("endIndex"), len(text))
            if part and len(texts) > part:
                start, end = place(segment.get("startIndex"), 0, part), place(segment.get("endIndex"), len(text), part)
            for index in _list(support, "groundingChunkIndices"):
                if type(index) is int and 0 <= index < len(pages):
                    cite(*pages[index], start, end)
        if not supports:
            for page in pages:
                cite(*page, 0, len(text))
        for citation in (*_list(source, "citationSources"), *_list(source, "citations")):
            if isinstance(citation, dict):
                start, end = place(citation.get("startIndex"), 0), place(citation.get("endIndex"), len(text))
                cite(citation.get("uri"), citation.get("title"), start, end)
    return list(found.values())


def _list(source: Mapping[str, Any], name: str) -> list[Any]:
    value = source.get(name)
    return value if isinstance(value, list) else []


def _page(chunk: Any) -> tuple[Any, Any]:
    for kind in ("web", "maps", "retrievedContext", "image"):
        page = chunk.get(kind) if isinstance(chunk, dict) else None
        if isinstance(page, dict):
            return page.get("uri") or page.get("sourceUri"), page.get("title")
    return None, None


def logprobs(result: Any) -> dict[str, Any] | None:
    """https://ai.google.dev/api/generate-content#LogprobsResult"""
    if not isinstance(result, dict):
        return None
    tops = _list(result, "topCandidates")
    content = []
    for at, chosen in enumerate(_list(result, "chosenCandidates")):
        if not isinstance(chosen, dict):
            continue
        top = tops[at] if at < len(tops) and isinstance(tops[at], dict) else {}
        others = [_logprob(item) for item in _list(top, "candidates") if isinstance(item, dict)]
        content.append({**_logprob(chosen), "top_logprobs": others})
    return {"content": content, "refusal": None}


def _logprob(item: Mapping[str, Any]) -> dict[str, Any]:
    token, value = item.get("token"), item.get("logProbability")
    token = token if isinstance(token, str) else ""
    number = float(value) if isinstance(value, (int, float)) else 0.0
    return {"token": token, "logprob": number, "bytes": list(token.encode("utf-8", "surrogatepass"))}
