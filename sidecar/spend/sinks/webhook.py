"""`https://…`: batches of records as one JSON object, signed as Standard Webhooks has it, so that existing libraries
verify it. https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md

Each batch has an id of its own, the same in every retry; every record has one too (`id`), so a receiver can drop what
it has seen.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import time
import uuid
from collections.abc import Callable, Mapping, Sequence

from sidecar.spend.sinks.delivery import Delivery
from sidecar.spend.sinks.payload import VERSION, encoded_payload
from sidecar.types import Secret, SpendRecord


class WebhookSink:
    """`secret` is a Standard Webhooks secret (`whsec_` and base64) or any text; without one nothing is signed."""

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, Secret] | None = None,
        secret: Secret | None = None,
        clock: Callable[[], float] = time.time,
        delivery: Delivery | None = None,
    ) -> None:
        self._delivery = delivery if delivery is not None else Delivery(url, headers or {})
        self._key = key_of(secret.reveal()) if secret is not None else None
        self._clock = clock

    async def write(self, records: Sequence[SpendRecord]) -> None:
        body = b'{"version":%d,"type":"spend.records","records":[%s]}' % (
            VERSION,
            b",".join(encoded_payload(record) for record in records),
        )
        name, at = f"msg_{uuid.uuid4().hex}", str(int(self._clock()))
        headers = {"content-type": "application/json", "webhook-id": name, "webhook-timestamp": at}
        if self._key is not None:
            headers["webhook-signature"] = signature(self._key, name, at, body)
        await self._delivery.send(body, headers)

    async def aclose(self) -> None:
        await self._delivery.aclose()


def signature(key: bytes, name: str, at: str, body: bytes) -> str:
    """The `webhook-signature` header: `v1,` and base64 of HMAC-SHA256 over id, timestamp and body."""
    signed = hmac.digest(key, f"{name}.{at}.".encode() + body, "sha256")
    return "v1," + base64.b64encode(signed).decode()


def key_of(secret: str) -> bytes:
    """What signs: the bytes behind `whsec_`, else the text itself."""
    if secret.startswith("whsec_"):
        try:
            return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except binascii.Error:
            pass
    return secret.encode()
