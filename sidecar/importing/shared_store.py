"""One Redis out of the many places the source may name one; `store.redis_url` counts limits and budgets."""

from __future__ import annotations

import re
from urllib.parse import quote

from sidecar.importing.draft import Draft, place
from sidecar.importing.report import Refuse, Verdict
from sidecar.importing.source import Node

REDIS_PLACES: tuple[tuple[str, ...], ...] = (
    ("general_settings", "coordination_redis"),
    ("router_settings",),
    ("litellm_settings", "cache_params"),
)
"""Best first: the first one with a URL or a host is taken."""
REDIS_KEYS = ("url", "host", "port", "username", "password", "db", "ssl")
_HOST = re.compile(r"[A-Za-z0-9_.-]+|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*")
_PENDING = Verdict("no equivalent", "", "a Redis needs a host or a url; set store.redis_url")


def redis_part(draft: Draft, node: Node) -> Verdict:
    """Only collects; `settle_redis` judges."""
    draft.redis.setdefault(node.path[:-1], {})[str(node.path[-1]).removeprefix("redis_")] = node
    return _PENDING


def settle_redis(draft: Draft) -> None:
    found: tuple[str, ...] | None = None
    for where in REDIS_PLACES:
        parts = draft.redis.get(where, {})
        if found is not None:
            for node in parts.values():
                text = f"not used; store.redis_url is that of {'.'.join(found)}"
                draft.verdicts[node] = Verdict("changed", "", text)
        elif "url" in parts or "host" in parts:
            try:
                _compose(draft, parts)
                found = where
            except (Refuse, ValueError) as error:
                for node in parts.values():
                    draft.verdicts[node] = Verdict("no equivalent", "", f"{error}; set store.redis_url")
        else:
            for node in parts.values():
                draft.verdicts[node] = _PENDING


def _compose(draft: Draft, parts: dict[str, Node]) -> None:
    whole = parts.get("url")
    if whole is not None:
        url = _url(draft, whole)
        verdict = _said(draft, whole, url)
        rest = Verdict("changed", "", f"not used; {place(whole)} gives the whole URL")
        used = [whole]
    else:
        url, used = _joined(draft, parts)
        verdict = Verdict("changed", "store.redis_url", "one URL of all parts; it counts limits and budgets")
        rest = verdict
    draft.put("store.redis_url", url, used[0])
    for node in parts.values():
        draft.verdicts[node] = verdict if node in used else rest
    password = parts.get("password")
    if password is not None and whole is None and draft.is_moved(password):
        text = "moved out of the file; write it percent-encoded into the variable"
        draft.verdicts[password] = Verdict("changed", "store.redis_url", text)


def _url(draft: Draft, node: Node) -> str:
    if node.env is None and not node.text.startswith(("redis://", "rediss://", "unix://")):
        raise Refuse("its URL must begin with redis://, rediss:// or unix://")
    if node.env is not None or "@" in node.text or "?" in node.text:
        return draft.secret(node, "REDIS_URL", "redis")
    return draft.text(node, "redis", "REDIS_URL")


def _said(draft: Draft, node: Node, url: str) -> Verdict:
    if url.startswith("${") and draft.is_moved(node):
        return Verdict("changed", "store.redis_url", f"moved out of the file; set {url[2:-1]}")
    return Verdict("taken", "store.redis_url")


def _joined(draft: Draft, parts: dict[str, Node]) -> tuple[str, list[Node]]:
    host = _text(draft, parts["host"], "host")
    port = draft.number(parts["port"], least=1, most=65535, whole=True) if "port" in parts else 6379
    scheme = "rediss" if "ssl" in parts and draft.truth(parts["ssl"]) is True else "redis"
    user = draft.secret(parts["username"], "REDIS_USERNAME") if "username" in parts else ""
    password = draft.secret(parts["password"], "REDIS_PASSWORD") if "password" in parts else ""
    login = f"{user}:{password}@" if user or password else ""
    number = draft.number(parts["db"], least=0, most=1_000_000, whole=True) if "db" in parts else 0
    return f"{scheme}://{login}{host}:{port}/{number}", [n for k, n in parts.items() if k != "url"]


def _text(draft: Draft, node: Node, kind: str) -> str:
    text = draft.text(node, kind, "REDIS_HOST")
    if text.startswith("${"):
        return text
    if not _HOST.fullmatch(text):
        raise Refuse("its host is no host name")
    return f"[{text}]" if ":" in text else quote(text, safe=".-_")
