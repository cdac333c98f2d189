"""From another gateway's configuration to ours. `litellm.py` is the way in; tables of rows say what becomes what."""

from __future__ import annotations

from sidecar.importing.litellm import Imported, import_litellm

__all__ = ["Imported", "import_litellm"]
