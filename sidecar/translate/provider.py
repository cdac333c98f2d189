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
from sidecar.translate.framing import Event, SSESplitter
from sidecar.translate.usage import NOT_JSON
from sidecar.types import UNKNOWN_USAGE, Headers, Usage


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


OPENAI_CHAT_FIELDS = _names(
    """audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens
    messages metadata modalities model moderation n parallel_tool_calls prediction presence_penalty
    prompt_cache_key prompt_cache_options prompt_cache_retention reasoning_effort response_format
    safety_identifier seed service_tier stop store stream stream_options temperature tool_choice tools
    top_logprobs top_p user verbosity web_search_options"""
)
"""Every field of OpenAI's chat completion request. https://platform.openai.com/docs/api-reference/chat/create"""

SMUGGLING_FIELDS = _names(
    """api_base api_key api_type api_version auth aws_access_key_id aws_bedrock_runtime_endpoint aws_external_id
    aws_profile_name aws_region_name aws_role_name aws_secret_access_key aws_session_name aws_session_token
    aws_sts_endpoint aws_web_identity_token azure_ad_token azure_ad_token_provider azure_endpoint azure_password
    azure_username base_url client client_id client_secret custom_llm_provider default_headers default_query
    deployment_id extra_body extra_headers extra_query headers http_client langfuse_host langfuse_public_key
    langfuse_secret_key litellm_credential_name litellm_params openai_api_base openai_api_key organization project
    proxies proxy ssl_verify tenant_id user_config vertex_ai_credentials vertex_ai_location vertex_ai_project
    vertex_credentials vertex_location vertex_project"""
)
"""Names by which clients try to choose destination or credential. They never have an effect here; a request that
carries one at its top level is refused, so that nobody believes it had."""

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
    options: Mapping[str, str] = field(default_factory=dict)
    """Of the deployment: region, project, api_version …"""
    media: Mapping[str, Media] = field(default_factory=dict)
    """What `needs` asked for, by URL."""


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
                if last is not None and last[1] is not None:
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


def refuse_smuggling(payload: Mapping[str, Any]) -> None:
    """Raises `BadRequestError` if the request tries to choose destination or credential."""
    if not SMUGGLING_FIELDS.isdisjoint(payload):
        name = next(key for key in payload if key in SMUGGLING_FIELDS)
        raise BadRequestError(
            f"The gateway refused the request: '{name}' is not accepted in a request body. Destination and credential "
            "come from the gateway's configuration only; remove the field.",
            code="forbidden_parameter",
            param=name,
        )


_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "store": (False,),
    "modalities": (["text"], []),
    "verbosity": ("medium",),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "metadata": ({},),
    "service_tier": ("auto",),
}


def is_neutral(name: str, value: Any) -> bool:
    """True if the value asks for what happens anyway, so leaving the field out changes nothing."""
    return value is None or any(
        value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in _NEUTRAL.get(name, ())
    )


def unsupported_field(provider: Provider, name: str, fix: str) -> BadRequestError:
    return BadRequestError(
        f"The gateway refused the request: provider {provider.name} does not support '{name}'. {fix} "
        "Or set drop_params on the deployment to leave such fields out.",
        code="unsupported_parameter",
        param=name,
    )


def select_params(provider: Provider, call: Call) -> tuple[dict[str, Any], list[str]]:
    """The payload's fields this provider takes (deployment defaults under the client's), and the names dropped by
    policy. Raises `BadRequestError` for a field it cannot take."""
    refuse_smuggling(call.payload)
    fields: dict[str, Any] = {}
    dropped: list[str] = []
    for name, value in call.payload.items():
        if name in provider.params or (provider.passes_unknown and name not in provider.unsupported):
            if value is not None:
                fields[name] = value
        elif is_neutral(name, value):
            continue
        elif call.drop_params:
            dropped.append(name)
        else:
            fix = provider.unsupported.get(name, "It is not a field of OpenAI's chat completions; remove it.")
            raise unsupported_field(provider, name, fix)
    for name, value in call.params.items():
        if fields.get(name) is None:
            fields[name] = value
    return fields, dropped
