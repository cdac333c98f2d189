"""Going on with a streamed answer that broke after its content began, by another attempt, marked as such. Opt-in.

Neighbours: RouteMiddleware makes one per request of a group that does it and asks its plan who goes on; Translate and
`attempts.Dispatch` raise to it instead of ending the answer. Rules: only plain text of one choice is gone on with; the
client reads who goes on before the first word of it; where nobody does, the answer ends in an error event as ever.

The request for the rest ends with the assistant's text so far and a user's message that says to go on. The other way,
an assistant's message as the last one, is refused by Anthropic's newer models
(https://platform.claude.com/docs/en/about-claude/models/migration-guide) and spelt in its own way by each vendor that
has it (`prefix`: https://docs.mistral.ai/api, `partial`: https://www.alibabacloud.com/help/en/model-studio/partial-mode);
every dialect takes a conversation that ends with its user.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

import msgspec

from sidecar.admit import charge, estimate_of
from sidecar.asgi import Message, Send, aside
from sidecar.errors import UpstreamError
from sidecar.exchange import Attempt, Exchange
from sidecar.routing.verdict import final_error
from sidecar.translate.chunks import openai_usage
from sidecar.translate.dialects import CHAT
from sidecar.translate.estimate import likely_input_tokens
from sidecar.translate.framing import SSESplitter
from sidecar.translate.pieces import BIG_BYTES
from sidecar.translate.usage import NOT_JSON
from sidecar.types import Deployment

MAX_TEXT = 1 << 20
"""Characters of an answer that is gone on with."""
CHARS_PER_TOKEN = 4
GO_ON = (
    "Your last message was cut off while it was being sent. Write the rest of it: begin exactly where it ends, within "
    "a word if it ends there. Repeat nothing of it, do not begin it anew, and say nothing about the interruption."
)
COMMENT = b": the answer broke off; what follows is another attempt's\n\n"
_THOUGHTS = ("reasoning_content", "reasoning")
_GRAMMARS = frozenset(
    {
        "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs",  # vLLM
        "grammar", "json_schema", "regex", "ebnf", "format",  # llama.cpp, SGLang, Ollama
    }
)  # fmt: skip

_encode = msgspec.json.encode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_choices = msgspec.json.Decoder(list[dict[str, msgspec.Raw]] | None).decode
_NULL = msgspec.Raw(b"null")


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    delta: dict[str, Any] | None = None
    finish_reason: Any = None
    logprobs: Any = None


class _Chunk(msgspec.Struct, gc=False):
    id: msgspec.Raw = _NULL
    created: msgspec.Raw = _NULL
    choices: list[_Choice] | None = None


_chunk = msgspec.json.Decoder(_Chunk).decode


class Continuations:
    """Which groups do it, and how often it was done. One per process."""

    def __init__(self, default: bool = False, by_group: Mapping[str, bool] | None = None) -> None:
        self._default = default
        self._by_group = dict(by_group or {})
        self.counts: dict[str, int] = {}
        """By the group that was asked for."""

    def of(self, exchange: Exchange, group: str, send: Send) -> Continuation | None:
        """For a chat stream of a group that does it, whose answer will be plain text as far as its request tells."""
        if not self._by_group.get(group, self._default) or exchange.dialect is not CHAT:
            return None
        payload = exchange.payload
        return Continuation(self, exchange, group, send) if payload is not None and _wants_text(payload) else None


def _wants_text(asked: Mapping[str, Any]) -> bool:
    """One choice of text in no form a half of it would break."""
    form = asked.get("response_format")
    messages = asked.get("messages")
    return (
        asked.get("n") in (None, 1)
        and not asked.get("logprobs")
        and not asked.get("top_logprobs")
        and asked.get("audio") is None
        and asked.get("modalities") in (None, ["text"])
        and (form is None or (isinstance(form, dict) and form.get("type") == "text"))
        and _GRAMMARS.isdisjoint(asked)
        and isinstance(messages, list)
        and bool(messages)
        and _may_follow(messages[-1])
    )


def _may_follow(last: Any) -> bool:
    """An answer's beginning that the client gave itself is gone on with as if it were of the answer."""
    if not isinstance(last, dict):
        return False
    return last.get("role") != "assistant" or (isinstance(last.get("content"), str) and not last.get("tool_calls"))


class Continuation:
    """The way of one request's answer up from Route. Reads it as it goes by; from the first break on it also fits what
    comes to what the client has: one id and time for all chunks, one role, the usage of all who spoke."""

    __slots__ = (
        "_asked",
        "_cap",
        "_created",
        "_estimated",
        "_exchange",
        "_given",
        "_group",
        "_id",
        "_is_on",
        "_is_plain",
        "_lead",
        "_length",
        "_of",
        "_pieces",
        "_send",
        "_size",
        "_splitter",
        "_text",
        "_usage",
        "error",
        "is_broken",
        "payload",
        "raw",
    )

    def __init__(self, of: Continuations, exchange: Exchange, group: str, send: Send) -> None:
        self._of = of
        self._exchange = exchange
        self._group = group
        self._send = send
        self._splitter = SSESplitter()
        self._text = bytearray()  # a list of small strings takes ten times the memory
        self._size = 0
        self._pieces = self._length = 0
        """Of the attempt that speaks: deltas with text, characters in them."""
        self._is_plain = True
        self._is_on = False
        """Another attempt speaks than the one that began."""
        self._lead = b""
        self._id = self._created = _NULL
        self._asked: tuple[int, int | None] | None = None
        self._cap: int | None = None
        self._given = 0
        self._usage: dict[str, Any] = {}
        self._estimated = {"prompt_tokens": 0, "completion_tokens": 0}
        self.is_broken = False
        """The answer broke, and nobody goes on with it yet."""
        self.error: UpstreamError | None = None
        self.payload: dict[str, Any] | None = None
        self.raw: bytes | None = None
        """The request for the rest; `None`: the client's own, for there is nothing to be repeated."""

    def __call__(self, message: Message) -> Awaitable[None]:
        if self.is_broken or self._is_on:
            return self._go_on(message)
        if self._is_plain and message["type"] == "http.response.body":
            for _, data, _ in self._splitter.feed(message.get("body", b"")):
                if data is not None:
                    self._read(data)
        return self._send(message)

    def _read(self, data: bytes) -> None:
        if data == b"[DONE]":
            return
        try:
            chunk = _chunk(data)
        except NOT_JSON:
            self._is_plain = False
            return
        if chunk.choices and self._id is _NULL:
            self._id, self._created = msgspec.Raw(bytes(chunk.id)), msgspec.Raw(bytes(chunk.created))
        for choice in chunk.choices or ():
            if choice.index or choice.finish_reason or choice.logprobs:
                self._is_plain = False
            for name, value in (choice.delta or {}).items():
                if not value or name == "role":
                    continue
                if type(value) is not str or not (name == "content" or name in _THOUGHTS):
                    self._is_plain = False  # a tool call, a refusal, sound, something signed
                    continue
                self._pieces += 1
                self._length += len(value)
                if name == "content":
                    self._text += value.encode()
        if self._size + self._length > MAX_TEXT:
            self._is_plain = False
        if not self._is_plain:
            self._text.clear()

    def may_follow(self, attempt: Attempt, error: UpstreamError) -> bool:
        """The answer broke off with this: True if another attempt may go on with it. Then the error has to be raised,
        and Route ends the answer if there is none."""
        exchange = self._exchange
        if not self._is_plain or exchange.answering is not attempt or not error.is_retryable:
            return False
        if attempt.deployment.params and not _wants_text({**attempt.deployment.params, **(exchange.payload or {})}):
            return False
        if self._asked is None:
            self._asked = estimate_of(exchange)
            self._cap = exchange.edits.get("output_cap", self._asked[1])
        said = attempt.usage.total_output
        given = max(said, self._pieces, self._length // CHARS_PER_TOKEN)
        if self._cap is not None and self._given + given >= self._cap:
            return False
        self._book(attempt, given, given - said)
        self._given += given
        self._size += self._length
        self._pieces = self._length = 0
        self.is_broken = True
        self.error = error
        return True

    def _book(self, attempt: Attempt, given: int, guessed: int) -> None:
        """What this attempt used; as far as its provider did not tell, as a guess."""
        known = openai_usage(attempt.usage)
        if attempt.usage.input is None:
            raw, payload = self.raw or self._exchange.raw or b"", self.payload or self._exchange.payload or {}
            likely = likely_input_tokens(payload, len(raw))
            known["prompt_tokens"] += likely
            self._estimated["prompt_tokens"] += likely
        known["completion_tokens"] = given
        known["total_tokens"] = known["prompt_tokens"] + given
        self._estimated["completion_tokens"] += guessed
        _add(self._usage, known)

    async def prepare(self) -> None:
        """Before another attempt goes on: the request for the rest, and what it may cost at most."""
        exchange = self._exchange
        raw, payload, asked = exchange.raw, exchange.payload, self._asked
        assert raw is not None
        assert payload is not None
        assert asked is not None
        for attempt in exchange.attempts:
            charge(exchange, attempt)  # by what it was asked, before what is asked changes
        text = self._text.decode()
        if text.strip():
            given = (payload, raw, text)
            made = await aside(_rest_of, *given) if len(raw) >= BIG_BYTES else _rest_of(*given)
            self.payload, self.raw = made
        more = max(len(self.raw or raw) - len(raw), 0)
        left = asked[1] - self._given if asked[1] is not None else None
        exchange.estimate = (asked[0] + more, left)
        if self._cap is not None:
            exchange.edits["output_cap"] = self._cap - self._given

    async def _go_on(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begin()
            return
        more = message.get("more_body", False)
        body = message.get("body", b"")
        out, self._lead = self._lead, b""
        for _, data, raw in self._splitter.feed(body):
            out += raw if data is None else self._fitted(data, raw)
        if not more and (last := self._splitter.flush()) is not None:
            out += last[2]
        if out or not more:
            await self._send({"type": "http.response.body", "body": out, "more_body": more})

    def _begin(self) -> None:
        """Another attempt has content: from here on it is its answer."""
        attempt, error = self._exchange.answering, self.error
        assert attempt is not None
        assert error is not None
        self.is_broken = False
        self._is_on = True
        self._splitter = SSESplitter()
        counts = self._of.counts
        counts[self._group] = counts.get(self._group, 0) + 1
        sidecar: dict[str, Any] = {
            "continued_by": attempt.deployment.deployment_id,
            "model": attempt.deployment.model,
            "because": error.code,
        }
        if attempt.dropped:
            sidecar["dropped"] = attempt.dropped  # the header that names them is out
        marker = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": attempt.deployment.model,
            "choices": [],
            "sidecar": sidecar,
        }
        self._lead = COMMENT + b"data: " + _encode(marker) + b"\n\n"

    def _fitted(self, data: bytes, raw: bytes) -> bytes:
        """A chunk of another answer as one of the client's."""
        if data.strip() == b"[DONE]":
            return raw
        if self._is_plain:
            self._read(data)
        try:
            return self._fit(_fields(data), raw)
        except NOT_JSON:  # of a shape nobody expects; it passed the translator, so it passes here
            return raw

    def _fit(self, fields: dict[str, msgspec.Raw], raw: bytes) -> bytes:
        found = fields.get("choices")
        if found is None:
            return raw
        usage = msgspec.json.decode(fields["usage"]) if "usage" in fields else None
        choices = _choices(found) or ()
        for choice in choices:
            if b'"role"' not in bytes(choice.get("delta", _NULL)):
                continue
            delta = _fields(choice["delta"])
            delta.pop("role", None)
            if usage is None and len(choices) == 1 and _says_nothing(choice, delta):
                return b""
            choice["delta"] = msgspec.Raw(_encode(delta))
            fields["choices"] = msgspec.Raw(_encode(choices))
        fields["id"], fields["created"] = self._id, self._created
        if isinstance(usage, dict):
            _add(usage, self._usage)
            usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
            fields["usage"] = msgspec.Raw(_encode(usage))
            fields["sidecar"] = msgspec.Raw(_encode({"estimated_usage": self._estimated}))
        return b"data: " + _encode(fields) + b"\n\n"

    async def end_with(self, failures: Sequence[tuple[Deployment, UpstreamError]]) -> None:
        """Nobody goes on. A refusal of the request for the rest is not the client's to hear: it is not its own."""
        exchange = self._exchange
        if exchange.client_left:
            exchange.outcome = "client_left"
            return
        error = final_error([one for one in failures if one[1].is_retryable or one[1].cools_down])
        exchange.outcome, exchange.error = "incomplete", error
        event = b"data: " + error.body_bytes() + b"\n\n"
        await self._send({"type": "http.response.body", "body": event, "more_body": False})


def _says_nothing(choice: Mapping[str, msgspec.Raw], delta: Mapping[str, msgspec.Raw]) -> bool:
    is_end = bytes(choice.get("finish_reason", _NULL)) not in (b"null", b'""')
    return not is_end and all(bytes(value) in (b"null", b'""', b"[]") for value in delta.values())


def _add(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Counts by name, those in details too."""
    for name, value in more.items():
        if isinstance(value, dict):
            if value:
                inner = into.get(name)
                if not isinstance(inner, dict):
                    inner = into[name] = {}
                _add(inner, value)
        elif type(value) is int:
            found = into.get(name)
            into[name] = value + (found if type(found) is int else 0)


def _rest_of(payload: Mapping[str, Any], raw: bytes, text: str) -> tuple[dict[str, Any], bytes]:
    """The client's request with the answer so far and the wish for the rest; everything else keeps its bytes."""
    *before, last = payload["messages"]
    fields = _fields(raw)
    messages = _items(fields["messages"])
    if last.get("role") == "assistant":
        text = last["content"] + text
        messages.pop()
    else:
        before.append(last)
    more = [{"role": "assistant", "content": text}, {"role": "user", "content": GO_ON}]
    fields["messages"] = msgspec.Raw(_encode([*messages, *more]))
    return {**payload, "messages": [*before, *more]}, _encode(fields)
