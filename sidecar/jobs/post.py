"""What jobs tell the world: a signed event to a webhook, a text to a Slack-compatible one.

The wire is that of the spend sinks (`spend/sinks/delivery.py`): retries, no redirects, no URL in a message – a Slack
webhook's URL is a credential.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from sidecar.jobs.runner import JobError
from sidecar.spend.sinks.delivery import Delivery, DeliveryError
from sidecar.spend.sinks.webhook import key_of, signature
from sidecar.types import NANO, Secret

_encode = msgspec.json.Encoder().encode
_JSON = {"content-type": "application/json"}
ATTEMPTS = 3


class Events:
    """Standard Webhooks: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md"""

    def __init__(
        self, url: Secret, secret: Secret, *, clock: Callable[[], float], delivery: Delivery | None = None
    ) -> None:
        self._delivery = delivery if delivery is not None else Delivery(url.reveal(), {}, attempts=ATTEMPTS)
        self._key = key_of(secret.reveal())
        self._clock = clock

    async def send(self, kind: str, data: Mapping[str, Any]) -> None:
        """Raises `JobError` if it is not taken."""
        now = self._clock()
        at = str(int(now))
        body = _encode({"type": kind, "timestamp": iso(now), "data": data})
        name = f"msg_{uuid.uuid4().hex}"
        signed = {"webhook-id": name, "webhook-timestamp": at}
        signed["webhook-signature"] = signature(self._key, name, at, body)
        await _sent(self._delivery, body, _JSON | signed)

    async def aclose(self) -> None:
        await self._delivery.aclose()


class Slack:
    """`{"text": …}`, as Slack, Mattermost, Rocket.Chat and others take it.
    https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks"""

    def __init__(self, url: Secret, *, delivery: Delivery | None = None) -> None:
        self._delivery = delivery if delivery is not None else Delivery(url.reveal(), {}, attempts=ATTEMPTS)

    async def say(self, text: str) -> None:
        """Raises `JobError` if it is not taken."""
        await _sent(self._delivery, _encode({"text": text}), _JSON)

    async def aclose(self) -> None:
        await self._delivery.aclose()


async def _sent(delivery: Delivery, body: bytes, headers: Mapping[str, str]) -> None:
    try:
        await delivery.send(body, headers)
    except DeliveryError as error:
        raise JobError(str(error)) from None


def plain(name: str) -> str:
    """A name as text in a message, for clients choose some: no mention, no markup, no second line; `<`, `>` and `&` are
    escaped. Mattermost, Rocket.Chat and Discord read `@all` and `[text](address)`, too.
    https://docs.slack.dev/messaging/formatting-message-text#escaping
    https://docs.mattermost.com/end-user-guide/collaborate/mention-people.html"""
    shown = "".join(c if c.isprintable() else " " for c in name[:80])
    shown = re.sub(r"[`*_~\[\]|]", " ", shown).replace("://", ":\u200b//")
    shown = re.sub(r"(?<!\w)@|@(?=everyone|here)", "@\u200b", shown)
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def dollars(nano: int) -> str:
    """Cents; below one cent, what there is."""
    if 0 < abs(nano) < NANO // 100:
        return f"${nano / NANO:.6f}"
    return f"${nano / NANO:,.2f}"


def iso(instant: float) -> str:
    return datetime.fromtimestamp(instant, UTC).isoformat(timespec="seconds")
