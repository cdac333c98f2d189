"""The provider contract: what a vendor's dialect has to say, as sync functions over bytes.

Neighbours: `providers/` (one file each), `registry`, and `middleware/translate.py`, which calls them. Rule: no I/O, no
clock, no secret; a provider object has no state, a `StreamTranslator` lives for one attempt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from string import Formatter
from typing import Any, ClassVar, Literal, Protocol, get_args
from urllib.parse import quote

from sidecar.errors import BadRequestError, ProviderError, SidecarError, UpstreamBrokenError
from sidecar.translate.fields import (
    OPENAI_CHAT_FIELDS,
    SMUGGLING_FIELDS,
    is_neutral,
    judge,
    refuse_smuggling,
    select_params,
    unsupported_field,
)
from sidecar.translate.framing import Event, SSESplitter
from sidecar.translate.usage import NOT_JSON
from sidecar.types import UNKNOWN_USAGE, Headers, Usage

__all__ = [
    "CREDENTIAL_KEYS",
    "OPENAI_CHAT_FIELDS",
    "SMUGGLING_FIELDS",
    "Auth",
    "Call",
    "Framing",
    "Head",
    "Keyless",
    "Media",
    "Provider",
    "Reply",
    "Splitter",
    "StreamTranslator",
    "UpstreamRequest",
    "WireIds",
    "check_provider",
    "is_neutral",
    "judge",
    "opening",
    "refuse_smuggling",
    "sayable",
    "select_params",
    "unsupported_field",
]


Auth = Literal["bearer", "x-api-key", "api-key", "x-goog-api-key", "ibm", "none"]
"""How a deployment's `api_key` travels: as a bearer token, in the header of that name, or (`ibm`) exchanged for a
token first."""

Keyless = Literal["", "aws", "google", "azure", "databricks"]
"""Whose credentials serve a deployment without `api_key`."""

CREDENTIAL_KEYS: Mapping[str, tuple[str, ...]] = {
    "": (),
    "aws": ("aws_access_key_id", "aws_secret_access_key", "aws_session_token", "aws_profile", "aws_role_arn"),
    "google": ("google_credentials",),
    "azure": ("tenant_id", "client_id", "client_secret"),
    "databricks": ("client_id", "client_secret"),
}
"""What a deployment may give for each of them."""

Framing = Literal["sse", "aws-events", "json-lines"]
_STREAM_TYPES: Mapping[str, tuple[bytes, ...]] = {
    "sse": (b"text/event-stream",),
    "aws-events": (b"application/vnd.amazon.eventstream",),
    "json-lines": (b"application/x-ndjson", b"application/json", b"application/jsonl"),
}


@dataclass(frozen=True, slots=True)
class Media:
    """Bytes fetched for a provider that takes no URLs."""

    content_type: str
    data: bytes


class WireIds(Protocol):
    """One attempt's ids. `previous`: the id the request names, as its client knows it and as the provider does."""

    previous: tuple[str, str] | None

    def outward(self, provider_id: str, tokens: int | None) -> str:
        """As the client is to know it. `tokens`: how long what it stands for is, if that is known."""
        ...


@dataclass(slots=True)
class Call:
    """One attempt's request as the provider sees it. `payload` (the client's parsed body) is never mutated.

    `edits` is the closed list of what may differ on the wire: `model`, `include_usage` (default: forced on streams) and
    `output_cap` (tokens). `params` are the deployment's own defaults, used where the client says nothing.
    """

    payload: Mapping[str, Any]
    raw: bytes
    model: str
    edits: Mapping[str, Any] = field(default_factory=dict)
    is_stream: bool = False
    exchange_id: str = ""
    now: float = 0.0
    params: Mapping[str, Any] = field(default_factory=dict)
    drop_params: bool = False
    max_output_tokens: int | None = None
    allowed_params: frozenset[str] = frozenset()
    """Fields sent as they are though the provider's table refuses them."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Of the deployment: region, project, api_version …"""
    media: Mapping[str, Media] = field(default_factory=dict)
    """What `needs` asked for, by URL."""
    ids: WireIds | None = None
    """How ids of what the provider keeps are called on the client's side."""


@dataclass(slots=True)
class UpstreamRequest:
    """`path` is appended to the deployment's base URL. `headers` never hold a credential: the proxy authorises last.
    `dropped` names the fields left out by the `drop_params` policy."""

    path: str
    body: bytes
    headers: Headers
    query: str = ""
    dropped: tuple[str, ...] = ()


@dataclass(slots=True)
class Reply:
    body: bytes
    usage: Usage


@dataclass(slots=True)
class Head:
    """Status and lower-cased headers of the provider's answer."""

    status: int
    headers: Headers = field(default_factory=list)

    def get(self, name: bytes) -> bytes | None:
        for key, value in self.headers:
            if key == name or key.lower() == name:
                return value
        return None


class Splitter(Protocol):
    """Cuts a body into events, wherever it is cut itself. Raises `UpstreamBrokenError` for what is malformed or grows
    past its limit."""

    def feed(self, data: bytes) -> list[Event]: ...
    def flush(self) -> Event | None: ...


def opening(first: bytes) -> bytes:
    """The role's own delta, said before the first other one: OpenAI begins text with an empty string and tool calls
    with null, so that a tool-only stream folds to the null of the unstreamed answer."""
    return b'{"role":"assistant","content":%s}' % (b'""' if first.startswith(b'{"content":') else b"null")


class _Sayable:
    """`with sayable:` around building and encoding a body: what hostile input makes them raise is one clear 400."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None and isinstance(error, (*NOT_JSON, OverflowError)):
            raise BadRequestError(
                "The gateway refused the request: its body is nested too deeply or is not valid UTF-8."
            ) from error


sayable = _Sayable()


class StreamTranslator:
    """One stream: bytes in, the client's bytes out. A provider writes `on_event` and `on_end`.

    `feed` gives the bytes the client may have now; an error found after some of them sets `error` and is raised by the
    next call, so the output does not depend on how the stream is cut. After an error every call raises it again.
    `usage` is cumulative; `is_complete` means the dialect's end event has been seen.
    """

    __slots__ = ("_splitter", "content_started", "error", "is_complete", "provider_name", "usage")

    def __init__(self, provider_name: str, splitter: Splitter | None = None) -> None:
        self.provider_name = provider_name
        self.usage: Usage = UNKNOWN_USAGE
        self.content_started = False
        self.is_complete = False
        self.error: SidecarError | None = None
        self._splitter: Splitter = SSESplitter() if splitter is None else splitter

    def on_event(self, event: Event) -> bytes:
        raise NotImplementedError

    def on_end(self) -> bytes:
        """Called once at the end of a body whose end event was seen."""
        return b""

    def is_whole(self) -> bool:
        """Asked at the end of the body; a dialect without an end event says it by what it has seen."""
        return self.is_complete

    def feed(self, data: bytes) -> bytes:
        """Raises `ProviderError` (an error event) or `UpstreamBrokenError` (malformed)."""
        if self.error is not None:
            raise self.error
        was_complete = self.is_complete
        if was_complete:
            return b""  # nothing may follow the end event
        out = b""
        try:
            for event in self._splitter.feed(data):
                if self.is_complete:
                    break
                out = out + self.on_event(event) if out else self.on_event(event)
        except SidecarError as error:
            self.error = error
        except (*NOT_JSON, ValueError, TypeError, KeyError, AttributeError) as error:
            self.error = self.broken(f"sent a malformed event ({type(error).__name__})")
        if self.error is not None and not out:
            raise self.error
        return out

    def end(self) -> bytes:
        """Raises `UpstreamBrokenError` if the end event is missing: a cut answer never looks whole."""
        if self.error is not None:
            raise self.error
        out = b""
        try:
            if not self.is_complete:
                last = self._splitter.flush()
                if last is not None and (last[1] is not None or last[2].startswith((b"{", b"error:"))):
                    out = self.on_event(last)
                    if out and not out.endswith(b"\n\n"):
                        out = out.rstrip(b"\r\n") + b"\n\n"
            if not self.is_whole():
                raise self.broken("closed the stream before its end event")
            self.is_complete = True
            return out + self.on_end()
        except SidecarError as error:
            self.error = error
            raise
        except (*NOT_JSON, ValueError, TypeError, KeyError, AttributeError) as error:
            self.error = self.broken(f"ended the stream within an event ({type(error).__name__})")
            raise self.error from None

    def broken(self, what: str) -> UpstreamBrokenError:
        return UpstreamBrokenError(f"Provider {self.provider_name} {what}; the answer is incomplete.")


class Provider:
    """A vendor's dialect. Stateless; checked when the class is made (see `check_provider`).

    `params` names every OpenAI field this provider maps or passes, with a word on how; `unsupported` names the others
    with what to do instead. Together they cover `OPENAI_CHAT_FIELDS`. A field in neither is passed if
    `passes_unknown`, else refused.
    """

    name: str = ""
    endpoints: ClassVar[tuple[str, ...]] = ("chat",)
    framing: Framing = "sse"
    auth: Auth = "bearer"
    keyless: Keyless = ""
    service: str = ""
    """The service name that is signed (aws), or the scope of the token (azure)."""
    needs_options: tuple[str, ...] = ()
    """Keys a deployment must give: its path, or the `{region}` in `default_base_url`, is made of them."""
    takes_options: tuple[str, ...] = ()
    default_base_url: str | None = None
    api_key_env: str | None = None
    is_same_dialect: bool = False
    passes_unknown: bool = False
    params: Mapping[str, str] = {}
    unsupported: Mapping[str, str] = {}
    docs_url: str = ""

    def __init_subclass__(cls, *, is_abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not is_abstract:
            check_provider(cls)

    def base_url(self, options: Mapping[str, str]) -> str | None:
        """Of a deployment that gives none."""
        if self.default_base_url is None:
            return None
        return self.default_base_url.format(**{name: quote(value, safe="") for name, value in options.items()})

    def is_stream(self, head: Head) -> bool:
        """True if an answer to a stream request is one. Some vendors answer with a whole JSON error, or answer."""
        given = (head.get(b"content-type") or b"").partition(b";")[0].strip().lower()
        return given in _STREAM_TYPES[self.framing]

    def needs(self, call: Call) -> tuple[str, ...]:
        """URLs of media this provider wants inline; the caller fetches them into `call.media`."""
        return ()

    def request(self, call: Call) -> UpstreamRequest:
        """Raises `BadRequestError` naming the field; nothing is dropped silently."""
        raise NotImplementedError

    def response(self, call: Call, head: Head, body: bytes) -> Reply:
        """A 2xx unstreamed answer in the client's dialect. Raises `UpstreamBrokenError` or `ProviderError`."""
        raise NotImplementedError

    def stream(self, call: Call, head: Head) -> StreamTranslator:
        raise NotImplementedError

    def error(self, call: Call, head: Head, body: bytes) -> ProviderError:
        """Any other answer, as the OpenAI error it means."""
        raise NotImplementedError


def check_provider(provider: Provider | type[Provider]) -> None:
    """Raises `TypeError` if the contract is not met: names, the field table, the four functions."""
    cls = provider if isinstance(provider, type) else type(provider)
    label = cls.__qualname__
    if not isinstance(provider.name, str) or not provider.name or provider.name != provider.name.lower():
        raise TypeError(f"{label}.name must be a lower-case name")
    for name, allowed in (("auth", Auth), ("keyless", Keyless), ("framing", Framing)):
        if getattr(provider, name) not in get_args(allowed):
            raise TypeError(f"{label}.{name} must be one of {', '.join(map(repr, get_args(allowed)))}")
    if provider.default_base_url is not None:
        named = {name for _, name, _, _ in Formatter().parse(provider.default_base_url) if name is not None}
        if not named <= {*provider.needs_options}:
            raise TypeError(f"{label}.default_base_url names options that are not in needs_options")
    if provider.default_base_url is not None and provider.default_base_url.endswith("/"):
        raise TypeError(f"{label}.default_base_url must not end in a slash")
    for method in ("request", "response", "stream", "error"):
        if getattr(cls, method) is getattr(Provider, method):
            raise TypeError(f"{label} does not define {method}()")
    both = provider.params.keys() & provider.unsupported.keys()
    if both:
        raise TypeError(f"{label} lists {sorted(both)} as both supported and unsupported")
    missing = OPENAI_CHAT_FIELDS - provider.params.keys() - provider.unsupported.keys()
    if missing:
        raise TypeError(f"{label} does not say what happens to {sorted(missing)}")
