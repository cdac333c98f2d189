"""The `simulated` provider: OpenAI's dialect, answered by our own simulator (`sidecar.translate.simulate`).

For the demo, tests and users' CI. Model names choose the behaviour (`sim-echo`, `sim-tools`, `sim-429`, …).
"""

from __future__ import annotations

from sidecar.translate.provider import OPENAI_CHAT_FIELDS
from sidecar.translate.providers.openai import OpenAIDialect


class SimulatedProvider(OpenAIDialect):
    name = "simulated"
    auth = "none"
    default_base_url = "http://127.0.0.1:4010/v1"
    docs_url = "docs/translation.md"
    params = dict.fromkeys(OPENAI_CHAT_FIELDS, "passed")
    takes_both_caps = True
