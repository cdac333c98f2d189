"""Places that finished records go to besides the ledger: one file each, found by the scheme of a URL.

`jsonl:///path` (a file), `log:` (standard output), `https://…` (a webhook), `otlp+https://…` (OpenTelemetry), and
`langfuse+https://…`, `mlflow+https://…`, `lunary+https://…` (OpenTelemetry with what that product reads besides).
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from sidecar.spend.sinks.base import Sink
from sidecar.types import Secret

__all__ = ["SCHEMES", "Sink", "open_sink"]

_OTLP = ("otlp", "langfuse", "mlflow", "lunary")
SCHEMES = ("jsonl", "log", "http", "https", *(f"{name}+{over}" for name in _OTLP for over in ("http", "https")))


def open_sink(url: str, *, headers: Mapping[str, Secret] | None = None, secret: Secret | None = None) -> Sink:
    """Raises `ValueError` for an unknown scheme, or one without what it needs."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if scheme == "jsonl":
        if not parts.path:
            raise ValueError("a jsonl sink needs a path, as in jsonl:///var/log/spend.jsonl")
        from sidecar.spend.sinks.jsonl import JsonlSink

        return JsonlSink(unquote(parts.path if not parts.netloc else parts.netloc + parts.path))
    if scheme == "log":
        from sidecar.spend.sinks.log import LogSink

        return LogSink()
    if scheme in ("http", "https") and parts.hostname:
        from sidecar.spend.sinks.webhook import WebhookSink

        return WebhookSink(url, headers=headers, secret=secret)
    if scheme in SCHEMES and parts.hostname:
        from sidecar.spend.sinks.otlp import OtlpSink
        from sidecar.spend.sinks.receivers import RECEIVERS

        return OtlpSink(url.partition("+")[2], headers=headers, receiver=RECEIVERS[scheme.partition("+")[0]])
    raise ValueError(f"no sink for '{scheme}:': use {', '.join(f'{name}:' for name in SCHEMES)}")
