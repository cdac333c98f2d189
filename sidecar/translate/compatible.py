"""Vendors that speak OpenAI's chat dialect, made providers from their rows in `vendors`.

Adding a vendor is adding a row there. The conformance suite runs over one row of each shape, a shorter one over all.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

from sidecar.errors import ProviderError
from sidecar.translate.provider import OPENAI_CHAT_FIELDS, Call, Head, check_provider
from sidecar.translate.provider_errors import make_error
from sidecar.translate.providers.openai import OpenAIDialect
from sidecar.translate.vendors import VENDORS, Vendor

_TOO_LONG = re.compile(
    r"This model's maximum context length is|The decoder prompt \(length |You passed \d+ input tokens"  # vLLM, NIM
    r"|Requested token count exceeds the model's maximum|The input \(\d+ tokens\) is longer than"  # SGLang
    r"|[Tt]he request exceeds the available context size"  # llama.cpp
)
"""How servers of open models say it, which have no code for it; only what a message begins with counts.
https://github.com/vllm-project/vllm/issues/20409"""


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

    def _error(self, call: Call, head: Head, fields: dict[str, Any], *, may_be_billed: bool) -> ProviderError:
        message = fields.get("message")
        if head.status not in (400, 413, 422) or not isinstance(message, str) or _TOO_LONG.match(message) is None:
            return super()._error(call, head, fields, may_be_billed=may_be_billed)
        return make_error(
            self.name, head, kind="context_window", now=call.now, fields=fields, keeps_names=False,
            may_be_billed=may_be_billed,
        )  # fmt: skip


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
