"""OpenAI chat completions, and the base of every vendor that speaks the same dialect. Models that answer on the
Responses API alone are handed to `responses`.

Bytes pass through; what differs on the wire is a closed list: `model`, `stream_options.include_usage`, the output cap
under the name the model takes, and the deployment's own defaults. Edits replace top-level values only; every other
value keeps its bytes. Nothing to edit: the original body.
https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from sidecar.errors import BadRequestError, ErrorKind, ProviderError, UpstreamBrokenError
from sidecar.translate.framing import Event
from sidecar.translate.provider import (
    OPENAI_CHAT_FIELDS,
    Call,
    Head,
    Provider,
    Reply,
    StreamTranslator,
    UpstreamRequest,
    judge,
    refuse_smuggling,
)
from sidecar.translate.provider_errors import SHAPES, error_fields, kind_by_words, kind_of_status, make_error
from sidecar.translate.providers.responses_models import speaks_responses
from sidecar.translate.signatures import may_be_packed, strip_ids
from sidecar.translate.usage import (
    NO_CHOICES_FIELD,
    NOT_JSON,
    decode_chunk,
    has_content,
    usage_from_openai,
    usage_of,
)

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.encode

# The o-series and gpt-5 onwards refuse max_tokens. gpt-oss is not a numbered gpt.
# https://platform.openai.com/docs/api-reference/chat/create#chat-create-max_tokens
_NEW_CAP = re.compile(r"(?:^|/)(?:o\d|gpt-(?:[5-9]|\d\d))")

_NO_CHOICES = (b"[]", b"null")

_GUARDED_KEY = re.compile(rb'"(?:model|stream|max_tokens|max_completion_tokens|n)"')

_WINDOW = 262_144
"""A search holds the interpreter as long as it runs, so a big body is searched in parts."""

_CODES: dict[str, ErrorKind] = {
    "context_length_exceeded": "context_window",
    "string_above_max_length": "context_window",
    "content_policy_violation": "content_policy",
    "content_filter": "content_policy",
    "invalid_prompt": "content_policy",
    "bio_policy": "content_policy",
    "misalignment_policy_violation": "content_policy",
    "image_content_policy_violation": "content_policy",
    "vector_store_timeout": "timeout",
    "insufficient_quota": "quota",
    "billing_hard_limit_reached": "quota",
    "billing_not_active": "quota",
    "credit_balance_exhausted": "quota",
    "organization_spend_limit_exceeded": "quota",
    "organization_usage_limit_exceeded": "quota",
    "project_spend_limit_exceeded": "quota",
    "rate_limit_exceeded": "rate_limit",
    "model_not_found": "not_found",
    "invalid_api_key": "authentication",
    "server_error": "server",
    "overloaded": "overloaded",
    "overloaded_error": "overloaded",
    "model_decommissioned": "not_found",
    "exceed_context_size_error": "context_window",
    "tokens_limit_reached": "context_window",
    "data_inspection_failed": "content_policy",
    "Arrearage": "quota",
    "AccountOverdueError": "quota",
}
"""The last ones are Groq's, llama.cpp's, GitHub's, DashScope's and Volcengine's.
https://platform.openai.com/docs/guides/error-codes · https://github.com/BerriAI/litellm/issues/2743"""

_STATED_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "rate_limit_error": 429,
    "insufficient_quota": 429,
    "overloaded_error": 529,
}


_TOO_MUCH_AT_ONCE = "Request too large for"
"""More tokens than the account may send in a minute: there is room for the requests of others."""


def _kind_by_code(fields: Mapping[str, Any]) -> ErrorKind | None:
    for name in ("code", "type"):
        stated = fields.get(name)
        if isinstance(stated, str):
            if (found := _CODES.get(stated)) is not None:
                return found
            if stated.partition(".")[0].endswith("SensitiveContentDetected"):  # Volcengine
                return "content_policy"
    return None


def output_cap_name(model: str) -> str:
    """The name under which OpenAI's `model` takes an output cap."""
    return "max_completion_tokens" if _NEW_CAP.search(model) else "max_tokens"


def wants_usage(payload: Mapping[str, Any]) -> bool:
    """True if the client asked for usage in its stream."""
    options = payload.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def edit_body(raw: bytes, changes: Mapping[str, Any], removed: frozenset[str] | set[str] = frozenset()) -> bytes:
    """`raw` with top-level fields replaced, added or removed; the bytes of all other values stay as they are.

    A field given twice is sent once (the last, which is the one that was read). Raises `BadRequestError`.
    """
    try:
        fields = _decode_fields(raw)
        values: dict[str, Any] = {name: value for name, value in fields.items() if name not in removed}
        values.update(changes)
        return _encode(values)
    except (*NOT_JSON, TypeError) as error:
        raise BadRequestError("The gateway refused the request: its body is not a JSON object.") from error


def _may_repeat_fields(raw: bytes) -> bool:
    """True if a field we decide by may be in the body twice, which providers may read differently than we do."""
    found: list[bytes] = []
    for at in range(0, len(raw), _WINDOW):  # a name cut in two counts where it starts, one in both windows only once
        found += (name[0] for name in _GUARDED_KEY.finditer(raw, at, at + _WINDOW + 24) if name.start() < at + _WINDOW)
    return len(set(found)) != len(found) or b"\\u00" in raw


class OpenAIDialect(Provider, is_abstract=True):
    """What all vendors of this dialect share; `renames` maps OpenAI's field names to the vendor's."""

    is_same_dialect = True
    passes_unknown = True
    forces_usage = True
    """Whether `stream_options.include_usage` has to be sent to get usage on streams."""
    renames: Mapping[str, str] = {}
    path = "/chat/completions"

    def cap_name(self, model: str) -> str:
        return "max_tokens"

    def changes(self, call: Call) -> tuple[dict[str, Any], set[str], list[str]]:
        """(fields to set, fields to leave out, names dropped by policy). Raises `BadRequestError`."""
        payload = call.payload
        refuse_smuggling(payload)
        changes: dict[str, Any] = {}
        removed: set[str] = set()
        dropped: list[str] = []
        for name in self.unsupported.keys() & payload.keys() if self.unsupported else ():
            found = judge(self, call, name, payload[name])
            if found != "passed":
                removed.add(name)
            if found == "dropped":
                dropped.append(name)
        if may_be_packed(call.raw) and (stripped := strip_ids(payload)) is not payload:
            changes["messages"] = stripped["messages"]  # another provider's state in tool-call ids
        for name, renamed in self.renames.items():
            if payload.get(name) is not None:
                changes[renamed] = payload[name]
                removed.add(name)
        for name, value in call.params.items():
            if payload.get(name) is None:
                changes[name] = value
        model = call.edits.get("model", call.model)
        if model and payload.get("model") != model:
            changes["model"] = model
        self._usage_option(call, changes, removed)
        self._output_cap(call, changes, removed)
        return changes, removed - changes.keys(), sorted(dropped)

    def _usage_option(self, call: Call, changes: dict[str, Any], removed: set[str]) -> None:
        payload = call.payload
        if not self.forces_usage:
            if payload.get("stream_options") is not None:
                removed.add("stream_options")  # the vendor always sends usage and refuses the option
            return
        if call.is_stream and call.edits.get("include_usage", True) and not wants_usage(payload):
            options = payload.get("stream_options")
            if options is not None and not isinstance(options, dict):
                raise BadRequestError(
                    "The gateway refused the request: 'stream_options' must be an object.", param="stream_options"
                )
            changes["stream_options"] = {**(options or {}), "include_usage": True}

    def _output_cap(self, call: Call, changes: dict[str, Any], removed: set[str]) -> None:
        payload = call.payload
        cap = call.edits.get("output_cap")
        right = self.cap_of(call)
        wrong = "max_tokens" if right == "max_completion_tokens" else "max_completion_tokens"
        if cap is not None:
            changes[right] = cap
            changes.pop(wrong, None)
            removed.add(wrong)
            return
        value = payload.get(wrong)
        if value is None or (right == "max_tokens" and self.takes_both_caps):
            return
        other = payload.get(right)
        both = type(value) is int and type(other) is int
        changes[right] = min(value, other) if both else (value if other is None else other)
        removed.add(wrong)

    takes_both_caps = False

    def cap_of(self, call: Call) -> str:
        return self.cap_name(call.edits.get("model", call.model))

    def responses_at(self, options: Mapping[str, str]) -> tuple[str, str]:
        """Path and query of the Responses API, where `endpoints` says there is one."""
        return "/responses", ""

    def request(self, call: Call) -> UpstreamRequest:
        changes, removed, dropped = self.changes(call)
        if changes or removed:
            body = edit_body(call.raw, changes, removed)
        elif _may_repeat_fields(call.raw):
            body = edit_body(call.raw, {})
        else:
            body = call.raw
        return UpstreamRequest(
            path=self.path, headers=[(b"content-type", b"application/json")], body=body, dropped=tuple(dropped)
        )

    def response(self, call: Call, head: Head, body: bytes) -> Reply:
        try:
            view = decode_chunk(body)
        except NOT_JSON as error:
            raise UpstreamBrokenError(
                f"Provider {self.name} answered {head.status} with a body that is not a chat completion."
            ) from error
        if isinstance(view.error, (dict, str)) and view.error:
            raise self._stated_error(call, head, view.error)
        if not bytes(view.choices).lstrip().startswith(b"["):
            raise UpstreamBrokenError(f"Provider {self.name} answered {head.status} without choices.")
        return Reply(body=body, usage=usage_from_openai(usage_of(view)))

    def stream(self, call: Call, head: Head) -> StreamTranslator:
        return OpenAIStream(self, call, self.hides_usage(call))

    def hides_usage(self, call: Call) -> bool:
        """Whether the usage a stream ends with is there for us alone."""
        return self.forces_usage and bool(call.edits.get("include_usage", True)) and not wants_usage(call.payload)

    def error(self, call: Call, head: Head, body: bytes) -> ProviderError:
        return self._error(call, head, error_fields(body), may_be_billed=False)

    def _stated_error(self, call: Call, head: Head, error: Any) -> ProviderError:
        """An error object inside a 200 answer or a stream; its numeric code or status (Azure gives both), or else its
        type, says the status."""
        fields = error if isinstance(error, dict) else {"message": error}
        kind, meant = fields.get("type"), _kind_by_code(fields)
        status = _STATED_STATUS.get(kind, 0) if isinstance(kind, str) else 0
        if not status:
            status = 502 if meant is None else SHAPES[meant].status
        for code in (fields.get("status"), fields.get("code")):
            if isinstance(code, str) and code.isascii() and code.isdigit():
                code = int(code[:4])
            if type(code) is int and 400 <= code < 600:
                status = code
        stated = Head(status, head.headers)
        return self._error(call, stated, fields, may_be_billed=True)

    def _error(self, call: Call, head: Head, fields: dict[str, Any], *, may_be_billed: bool) -> ProviderError:
        by_status = kind_of_status(head.status)
        message = fields.get("message")
        kind = kind_by_words(by_status, message)
        keeps_names = kind == by_status
        if keeps_names and (head.status in (400, 402, 403, 413, 429) or head.status >= 500):
            kind = _kind_by_code(fields) or kind
        error = make_error(
            self.name, head, kind=kind, now=call.now, fields=fields, keeps_names=keeps_names,
            may_be_billed=may_be_billed,
        )  # fmt: skip
        if kind == "rate_limit" and isinstance(message, str) and message.startswith(_TOO_MUCH_AT_ONCE):
            error.cools_down = False
        return error


class OpenAI(OpenAIDialect):
    name = "openai"
    endpoints = ("chat", "responses")
    auth = "bearer"
    default_base_url = "https://api.openai.com/v1"
    api_key_env = "OPENAI_API_KEY"
    docs_url = "https://platform.openai.com/docs/api-reference/chat/create"
    params = dict.fromkeys(OPENAI_CHAT_FIELDS, "passed") | {
        "model": "mapped to the deployment's model",
        "stream_options": "passed, include_usage forced on streams",
        "max_tokens": "passed, or sent as max_completion_tokens (o-series, gpt-5 and later)",
    }
    takes_both_caps = True
    takes_options = ("api",)

    def __init__(self) -> None:
        from sidecar.translate.providers.responses import Responses

        self._responses = Responses(self)

    def cap_name(self, model: str) -> str:
        return output_cap_name(model)

    def request(self, call: Call) -> UpstreamRequest:
        return self._responses.request(call) if speaks_responses(call) else super().request(call)

    def response(self, call: Call, head: Head, body: bytes) -> Reply:
        if speaks_responses(call):
            return self._responses.response(call, head, body)
        return super().response(call, head, body)

    def stream(self, call: Call, head: Head) -> StreamTranslator:
        return self._responses.stream(call, head) if speaks_responses(call) else super().stream(call, head)


def _odd_error(data: bytes) -> dict[str, Any] | None:
    """An event that is no chunk but an error in another form: vLLM's `{"object": "error", "message": …}` (its
    ErrorResponse), FastAPI's `{"detail": …}` (https://fastapi.tiangolo.com/tutorial/handling-errors/)."""
    event = msgspec.json.decode(data)
    is_error = "error" in (event.get("object"), event.get("type")) or not event.keys().isdisjoint(("detail", "errors"))
    return error_fields(data) if is_error else None


def _unframed_error(raw: bytes) -> dict[str, Any] | None:
    """An error that is no event: the JSON body of a proxy's that said it was a stream, or llama.cpp's own field.
    https://github.com/ggml-org/llama.cpp/pull/16109"""
    text = raw.strip()
    if text.startswith(b"error:"):
        return error_fields(text[6:])
    if not text.startswith(b"{") or b'"error"' not in text:
        return None
    try:
        return error_fields(text) if "error" in msgspec.json.decode(text) else None
    except NOT_JSON:
        return None


class OpenAIStream(StreamTranslator):
    """Passes events on byte for byte, except the usage-only chunk a client did not ask for. The `"usage": null` that
    the forced option adds to the other chunks stays: OpenAI's schema allows it, and no passing byte is rewritten."""

    __slots__ = ("_call", "_has_chunk", "_is_usage_hidden", "_provider")

    def __init__(self, provider: OpenAIDialect, call: Call, is_usage_hidden: bool) -> None:
        super().__init__(provider.name)
        self._provider = provider
        self._call = call
        self._is_usage_hidden = is_usage_hidden
        self._has_chunk = False

    def on_event(self, event: Event) -> bytes:
        name, data, raw = event
        if not data and name != b"error":
            if data is not None:
                return b""  # llama.cpp's sign of life, at which the stock SDK would raise
            if (stated := _unframed_error(raw)) is not None:
                raise self._provider._stated_error(self._call, Head(200), stated)
            return raw
        if data is None:
            return raw
        if data == b"[DONE]" or data.strip() == b"[DONE]":
            if not self._has_chunk:
                raise self.broken("ended the stream without an answer")
            self.is_complete = True
            return raw
        view = decode_chunk(data)
        if view.error is not None or name == b"error":
            stated = view.error if view.error is not None else msgspec.json.decode(data)
            raise self._provider._stated_error(self._call, Head(200), stated)
        usage = view.usage if view.x_groq is None else usage_of(view)
        if usage is None and view.choices is NO_CHOICES_FIELD and (stated := _odd_error(data)) is not None:
            raise self._provider._stated_error(self._call, Head(200), stated)
        if not self._has_chunk:  # a usage, or what Azure's filter says of the prompt, is no answer
            self._has_chunk = bytes(view.choices).translate(None, b" \t\r\n") not in _NO_CHOICES
        if usage is not None:
            found = usage_from_openai(usage)
            if found.is_known:
                self.usage = found
            if self._is_usage_hidden and bytes(view.choices).translate(None, b" \t\r\n") in _NO_CHOICES:
                return b""
        if not self.content_started:
            self.content_started = has_content(bytes(view.choices))
        return raw
