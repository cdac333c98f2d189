"""Translation between client dialects and provider dialects: sans-I/O, sync, pure; a library of its own.

`read_call(body, model=…)` makes what `get_provider(name)` translates. See examples/translate.py, docs/translation.md.
"""

from sidecar.translate.fields import Cell, cells, fate
from sidecar.translate.library import read_call
from sidecar.translate.provider import Call, Head, Media, Provider, Reply, StreamTranslator, UpstreamRequest
from sidecar.translate.registry import PROVIDERS, get_provider

__all__ = [
    "PROVIDERS",
    "Call",
    "Cell",
    "Head",
    "Media",
    "Provider",
    "Reply",
    "StreamTranslator",
    "UpstreamRequest",
    "cells",
    "fate",
    "get_provider",
    "read_call",
]
