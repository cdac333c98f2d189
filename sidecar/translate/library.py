"""The translators without a gateway: a body becomes the `Call` every provider takes. See examples/translate.py.

Neighbours: `provider.Call`, `registry`. Rule as everywhere here: no state, no I/O, no configuration, no clock.
"""

from __future__ import annotations

from typing import Any

import msgspec

from sidecar.errors import BadRequestError
from sidecar.translate.provider import Call
from sidecar.translate.usage import NOT_JSON


def read_call(body: bytes, *, model: str, **options: Any) -> Call:
    """An OpenAI chat request for the provider's `model`; `options` are the other fields of `Call`: `exchange_id` and
    `now` stand in the answer's `id` and `created`, `options` has what a provider needs (region …), `drop_params` …
    Raises `BadRequestError`."""
    try:
        payload = msgspec.json.decode(body)
    except NOT_JSON as error:
        raise BadRequestError("The request body is not JSON.") from error
    if not isinstance(payload, dict):
        raise BadRequestError("The request body is not a JSON object.")
    return Call(payload=payload, raw=body, model=model, is_stream=payload.get("stream") is True, **options)
