"""What Claude has beside messages and functions: web search and its citations, and the betas some of its tools need.

Neighbours: `anthropic`, `anthropic_request`, `anthropic_stream`, and the clouds' Claudes.
https://platform.claude.com/docs/en/build-with-claude/citations · …/agents-and-tools/tool-use/web-search-tool
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sidecar.translate.content import bad
from sidecar.translate.fields import Drop
from sidecar.translate.provider import Call

WEB_SEARCH = "web_search"
_PLACES = ("city", "country", "region", "timezone")
_TOOL_BETAS = {
    "computer_20241022": "computer-use-2024-10-22",
    "bash_20241022": "computer-use-2024-10-22",
    "text_editor_20241022": "computer-use-2024-10-22",
    "computer_20250124": "computer-use-2025-01-24",
    "computer_20251124": "computer-use-2025-11-24",
}
"""Those that are not in the SDK's types without beta; web fetch, memory, code execution and tool search need none.
https://platform.claude.com/docs/en/agents-and-tools/tool-use/computer-use-tool"""


def betas_of(call: Call, body: Mapping[str, Any]) -> list[str]:
    """The deployment's, and what the tools need, each once."""
    given = call.params.get("anthropic_beta")
    names = [given] if isinstance(given, str) else [str(name) for name in given or ()]
    for tool in body.get("tools", ()):
        beta = _TOOL_BETAS.get(tool.get("type", ""))
        if beta is not None:
            names.append(beta)
    return list(dict.fromkeys(names))


def search_tool(options: Any, drop: Drop) -> dict[str, Any]:
    """`web_search_options` as Claude's own tool."""
    if not isinstance(options, dict):
        raise bad("'web_search_options' must be an object.", "web_search_options")
    tool: dict[str, Any] = {"type": "web_search_20250305", "name": WEB_SEARCH}
    for name, value in options.items():
        where = f"web_search_options.{name}"
        if name == "user_location" and value is not None:
            near = value.get("approximate") if isinstance(value, dict) else None
            if not isinstance(near, dict):
                raise bad(f"'{where}.approximate' must be an object.", where)
            found = {place: near[place] for place in _PLACES if near.get(place) is not None}
            tool["user_location"] = {"type": "approximate", **found}
        elif value is not None and (name, value) != ("search_context_size", "medium"):
            drop(where, "Claude's web search has no such setting; remove it.")
    return tool


def annotation(citation: Any, start: int, end: int) -> dict[str, Any] | None:
    """A citation of something with an address as OpenAI says it; of a document sent along there is no such word."""
    if not isinstance(citation, dict):
        return None
    url = citation.get("url", citation.get("source"))
    if not isinstance(url, str) or not url.startswith(("https://", "http://")):
        return None
    title = citation.get("title")
    cited = {"start_index": start, "end_index": end, "title": title if isinstance(title, str) else url, "url": url}
    return {"type": "url_citation", "url_citation": cited}


def cited(citations: Any, start: int, end: int) -> list[dict[str, Any]]:
    """Those of one text block, each address once."""
    listed = citations if isinstance(citations, list) else ()
    found = [made for one in listed if (made := annotation(one, start, end)) is not None]
    return list({made["url_citation"]["url"]: made for made in found}.values())
