"""What Cohere says, in OpenAI's words: usage, finish reasons, citations, logprobs. For whole answers and streams.

https://docs.cohere.com/reference/chat
"""

from __future__ import annotations

from typing import Any

from sidecar.translate.usage import count
from sidecar.types import UNKNOWN_USAGE, Usage

FINISH_REASONS = {"COMPLETE": "stop", "STOP_SEQUENCE": "stop", "MAX_TOKENS": "length", "TOOL_CALL": "tool_calls"}
"""Others are a stop, with Cohere's own word beside it; ERROR and TIMEOUT are errors."""


def ending(reason: str, has_tools: bool) -> dict[str, Any]:
    """The fields of the choice that tell how it ended."""
    found = FINISH_REASONS.get(reason, "stop")
    if has_tools and found == "stop":
        found = "tool_calls"
    fields = {"finish_reason": found}
    return fields if reason in FINISH_REASONS else {**fields, "native_finish_reason": reason[:64]}


def usage_of(given: Any) -> Usage:
    """`billed_units` is what is charged; `tokens` has Cohere's own prompt around the client's in it, and counts only
    where there is nothing better. Cached tokens are part of the input. https://docs.cohere.com/docs/rate-limits"""
    if not isinstance(given, dict):
        return UNKNOWN_USAGE
    for name in ("billed_units", "tokens"):
        units = given.get(name)
        if not isinstance(units, dict):
            continue
        read, said = count(units.get("input_tokens")), count(units.get("output_tokens"))
        if read is None and said is None:
            continue
        cached = count(given.get("cached_tokens"))
        if cached is not None:
            cached = min(cached, read or 0)
        return Usage(input=None if read is None else read - (cached or 0), cached_input=cached, output=said)
    return UNKNOWN_USAGE


def citations(given: Any) -> list[dict[str, Any]]:
    """Citations of sources with an address as OpenAI's `url_citation`; both count characters.
    https://docs.cohere.com/docs/rag-citations"""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for citation in given if isinstance(given, list) else ():
        if not isinstance(citation, dict):
            continue
        start, end = count(citation.get("start")), count(citation.get("end"))
        sources = citation.get("sources")
        for source in sources if isinstance(sources, list) else ():
            page = _page(source)
            url = page.get("url")
            if isinstance(url, str) and url and start is not None and end is not None:
                title = page.get("title")
                note = {
                    "url": url,
                    "title": title if isinstance(title, str) and title else url,
                    "start_index": start,
                    "end_index": end,
                }
                found[url, start, end] = {"type": "url_citation", "url_citation": note}
    return list(found.values())


def _page(source: Any) -> dict[str, Any]:
    if isinstance(source, dict):
        for name in ("document", "tool_output"):
            page = source.get(name)
            if isinstance(page, dict):
                return page
    return {}


def logprobs(items: Any) -> dict[str, Any] | None:
    """Cohere gives pieces of text with the log probabilities of their tokens; a piece's is their sum."""
    content = []
    for item in items if isinstance(items, list) else ():
        if not isinstance(item, dict):
            continue
        text, values = item.get("text"), item.get("logprobs")
        text = text if isinstance(text, str) else ""
        known = [value for value in values if type(value) in (int, float)] if isinstance(values, list) else []
        entry = {"token": text, "logprob": float(sum(known)), "bytes": list(text.encode("utf-8", "surrogatepass"))}
        content.append({**entry, "top_logprobs": []})
    return {"content": content, "refusal": None} if content else None
