"""Pictures and files given by URL put into the request as data, for providers that take bytes only.

The provider `needs` the URLs, the gateway fetches them (with its guards) into `call.media`, and here they take the
URLs' place; after that a provider's own code meets data URLs alone. Rule: a URL not fetched is refused by name.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from sidecar.translate.content import bad, remote_urls, settle_type
from sidecar.translate.provider import Media


def inlined(payload: Mapping[str, Any], media: Mapping[str, Media]) -> Mapping[str, Any]:
    """The request with data URLs in place of http(s) URLs; the same object if it holds none."""
    if not remote_urls(payload):
        return payload
    kept: dict[str, str] = {}

    def data_url(url: Any, where: str) -> Any:
        if not isinstance(url, str) or not url.startswith(("https://", "http://")):
            return url
        if url not in kept:
            found = media.get(url)
            if found is None:
                raise bad(f"'{where}' is a URL that the gateway could not fetch; send the bytes instead.", where)
            kind = settle_type(found.content_type.partition(";")[0].strip().lower(), found.data[:32])
            kept[url] = f"data:{kind};base64,{base64.b64encode(found.data).decode()}"
        return kept[url]

    def part_of(part: Any, where: str) -> Any:
        kind = part.get("type") if isinstance(part, dict) else None
        value = part.get(kind) if kind in ("image_url", "file") else None
        if isinstance(value, str):
            return {**part, kind: data_url(value, f"{where}.{kind}")}
        if not isinstance(value, dict):
            return part
        if kind == "image_url":
            return {**part, kind: {**value, "url": data_url(value.get("url"), f"{where}.image_url.url")}}
        changed = dict(value)
        if isinstance(given := changed.get("file_url"), str) and given.startswith(("https://", "http://")):
            changed["file_data"] = data_url(changed.pop("file_url"), f"{where}.file.file_url")
        elif "file_data" in changed:
            changed["file_data"] = data_url(changed["file_data"], f"{where}.file.file_data")
        return {**part, kind: changed}

    def message_of(message: Any, where: str) -> Any:
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, list):
            return message
        return {**message, "content": [part_of(part, f"{where}.content[{at}]") for at, part in enumerate(content)]}

    messages = [message_of(message, f"messages[{at}]") for at, message in enumerate(payload["messages"])]
    return {**payload, "messages": messages}
