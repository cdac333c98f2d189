"""Vendors that speak OpenAI's chat dialect, made providers from their rows in `vendors`.

Adding a vendor is adding a row there. The conformance suite runs over one row of each shape, a shorter one over all.
"""

from __future__ import annotations

from collections.abc import Hashable

from sidecar.translate.provider import OPENAI_CHAT_FIELDS, check_provider
from sidecar.translate.providers.openai import OpenAIDialect
from sidecar.translate.vendors import VENDORS, Vendor


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


def shape_of(vendor: Vendor) -> Hashable:
    """All of a row that has a part in translating: rows of one shape send and answer alike."""
    return (
        frozenset(vendor.refused),
        frozenset(vendor.renames.items()),
        vendor.cap_name,
        vendor.takes_both_caps,
        vendor.forces_usage,
        vendor.passes_unknown,
    )


COMPATIBLE: dict[str, OpenAICompatible] = {vendor.name: OpenAICompatible(vendor) for vendor in VENDORS}
