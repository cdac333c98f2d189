"""Vendors that speak OpenAI's chat dialect, made providers from their rows in `vendors`.

Adding a vendor is adding a row there. The conformance suite runs over one row of each shape, a shorter one over all.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import msgspec

from sidecar.errors import ProviderError
from sidecar.translate.framing import Event
from sidecar.translate.provider import OPENAI_CHAT_FIELDS, Call, Head, Reply, StreamTranslator, check_provider
from sidecar.translate.provider_errors import error_fields
from sidecar.translate.providers.openai import OpenAIDialect, OpenAIStream
from sidecar.translate.usage import decode_chunk
from sidecar.translate.vendors import VENDORS, Vendor

_LIKE_OPENROUTER = frozenset({"openrouter", "zenmux"})
_BROKE_OFF = re.compile(rb'"finish_reason"\s*:\s*"error"')
"""Theirs, when whom they asked failed half-way: beside the text so far, the error is within the choice, and a stream
ends as any other. https://openrouter.ai/docs/api-reference/overview"""


class OpenAICompatible(OpenAIDialect, is_abstract=True):
    def __init__(self, vendor: Vendor) -> None:
        self.vendor = vendor
        self.name = vendor.name
        self.auth = vendor.auth
        self.keyless = vendor.keyless
        self.default_base_url = vendor.base_url
        self.api_key_env = vendor.api_key_env
        self.docs_url = vendor.docs_url
        self.renames = vendor.renames
        self.forces_usage = vendor.forces_usage
        self.takes_both_caps = vendor.takes_both_caps
        self.passes_unknown = vendor.passes_unknown
        self.unsupported = dict(vendor.refused)
        renames = dict(vendor.renames)
        if not vendor.takes_both_caps:
            other = {"max_tokens", "max_completion_tokens"} - {vendor.cap_name}
            renames |= dict.fromkeys(other, vendor.cap_name)
        self.params = {
            name: f"sent as {renames[name]}" if name in renames else "passed"
            for name in OPENAI_CHAT_FIELDS - vendor.refused.keys()
        }
        check_provider(self)

    def cap_name(self, model: str) -> str:
        return self.vendor.cap_name

    def changes(self, call: Call) -> tuple[dict[str, Any], set[str], list[str]]:
        changes, removed, dropped = super().changes(call)
        if not self.vendor.takes_names and b'"name"' in call.raw:
            given: Any = changes.get("messages", call.payload.get("messages"))
            places = [at for at, message in enumerate(given) if _is_named(message)] if isinstance(given, list) else []
            if places:
                changes["messages"] = sent = list(given)
            for at in places:
                sent[at] = {name: value for name, value in given[at].items() if name != "name"}
                if given[at].get("role") != "tool" and given[at]["name"]:  # a result's id says what its name does
                    dropped.append(f"messages[{at}].name")  # some clients name all they say: no reason to refuse
        return changes, removed, dropped

    def response(self, call: Call, head: Head, body: bytes) -> Reply:
        reply = super().response(call, head, body)
        if self.name in _LIKE_OPENROUTER and _BROKE_OFF.search(body) is not None:
            raise self.broke_off(call, head, body)
        return reply

    def broke_off(self, call: Call, head: Head, body: bytes) -> ProviderError:
        choices = msgspec.json.decode(body)["choices"]
        found = (choice.get("error") for choice in choices if isinstance(choice, dict))
        return self._stated_error(call, head, next((error for error in found if error), {}))

    def stream(self, call: Call, head: Head) -> StreamTranslator:
        if self.name not in _LIKE_OPENROUTER:
            return super().stream(call, head)
        return _RouterStream(self, call)

    def _error(self, call: Call, head: Head, fields: dict[str, Any], *, may_be_billed: bool) -> ProviderError:
        fields = _of_the_maker(fields) if "metadata" in fields else fields
        return super()._error(call, head, fields, may_be_billed=may_be_billed)


class _RouterStream(OpenAIStream):
    __slots__ = ("_router",)

    def __init__(self, router: OpenAICompatible, call: Call) -> None:
        super().__init__(router, call, router.hides_usage(call))
        self._router = router

    def on_event(self, event: Event) -> bytes:
        data = event[1]
        if data is not None and _BROKE_OFF.search(data) is not None and decode_chunk(data).error is None:
            raise self._router.broke_off(self._call, Head(200), data)
        return super().on_event(event)


def _of_the_maker(fields: dict[str, Any]) -> dict[str, Any]:
    """What OpenRouter was told by whom it asked, and that its own filter refused.
    https://openrouter.ai/docs/api-reference/errors · https://github.com/cline/cline/issues/13194"""
    more = fields["metadata"]
    if not isinstance(more, dict):
        return fields
    if "flagged_input" in more:
        return {**fields, "code": "content_policy_violation"}
    raw = more.get("raw")
    if fields.get("message") != "Provider returned error" or not isinstance(raw, str):
        return fields
    inner = error_fields(raw.encode("utf-8", "replace"))
    said = {name: inner[name] for name in ("message", "code") if isinstance(inner.get(name), str) and inner[name]}
    return {**fields, **said} if "message" in said else fields


def _is_named(message: Any) -> bool:
    """True for a name that is not a function's, whose result says nothing without it."""
    return isinstance(message, dict) and "name" in message and message.get("role") != "function"


def shape_of(vendor: Vendor) -> Hashable:
    """All of a row that has a part in translating: rows of one shape send and answer alike."""
    return (
        frozenset(vendor.refused),
        frozenset(vendor.renames.items()),
        vendor.cap_name,
        vendor.takes_both_caps,
        vendor.forces_usage,
        vendor.passes_unknown,
        vendor.takes_names,
    )


COMPATIBLE: dict[str, OpenAICompatible] = {vendor.name: OpenAICompatible(vendor) for vendor in VENDORS}
