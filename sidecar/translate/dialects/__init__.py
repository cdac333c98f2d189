"""The request formats a client may speak to us, by path. A dialect is one file here, named below."""

from __future__ import annotations

from collections.abc import Mapping

from sidecar.translate.dialects.base import Dialect
from sidecar.translate.dialects.chat import CHAT
from sidecar.translate.dialects.responses import RESPONSES

__all__ = ["AT", "CHAT", "DIALECTS", "RESPONSES", "Dialect"]

DIALECTS: tuple[Dialect, ...] = (CHAT, RESPONSES)
AT: Mapping[str, Dialect] = {path: dialect for dialect in DIALECTS for path in dialect.paths}
"""Which dialect is spoken at a path below the mount point."""
