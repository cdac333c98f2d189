"""Translation between client dialects and provider dialects: sans-I/O, sync, pure.

`get_provider(name)` gives the provider; `Call` is what it translates. See DESIGN "Translation" and docs/translation.md.
"""

from sidecar.translate.provider import Call, Head, Provider, Reply, StreamTranslator, UpstreamRequest
from sidecar.translate.registry import PROVIDERS, get_provider

__all__ = ["PROVIDERS", "Call", "Head", "Provider", "Reply", "StreamTranslator", "UpstreamRequest", "get_provider"]
