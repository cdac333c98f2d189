"""Vertex AI: Gemini, Claude as a partner model, and open models behind Google's OpenAI-compatible endpoint.

Neighbours: `gemini` (same bodies, other paths), `anthropic` and `openai` (whose code speaks to the partner models). The
model's name says which: `claude-…` and `anthropic/…` are Anthropic's, another `maker/model` is an open model, all else
Gemini's, tuned ones as `endpoints/ID`.
https://cloud.google.com/vertex-ai/generative-ai/docs/model-reference/inference
https://platform.claude.com/docs/en/build-with-claude/claude-on-vertex-ai
https://cloud.google.com/vertex-ai/generative-ai/docs/maas/call-open-model-apis
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import quote

import msgspec

from sidecar.errors import ProviderError
from sidecar.translate.content import remote_urls
from sidecar.translate.inline import inlined
from sidecar.translate.provider import (
    OPENAI_CHAT_FIELDS,
    Call,
    Head,
    Provider,
    Reply,
    StreamTranslator,
    UpstreamRequest,
)
from sidecar.translate.provider_errors import error_fields
from sidecar.translate.providers.anthropic import Anthropic
from sidecar.translate.providers.gemini import PARAMS, UNSUPPORTED, Gemini
from sidecar.translate.providers.openai import OpenAIDialect

CLAUDE_VERSION = b'"vertex-2023-10-16"'
_REGIONS_OF_SEVERAL = ("us", "eu")


def _folder(call: Call) -> str:
    project, region = (quote(call.options[name], safe="") for name in ("project", "region"))
    return f"/v1/projects/{project}/locations/{region}"


def model_of(call: Call) -> tuple[str, str]:
    """(maker, model) of the call's model."""
    model = str(call.edits.get("model", call.model))
    parts = model.split("/")
    if len(parts) == 4 and (parts[0], parts[2]) == ("publishers", "models"):
        return parts[1], parts[3]
    if model.startswith(("endpoints/", "projects/")):
        return "", model
    if len(parts) == 2:
        return parts[0], parts[1]
    return ("anthropic" if model.startswith("claude") else "google"), model


class VertexClaude(Anthropic):
    """The model stands in the path, the version in the body, and pictures are sent as bytes."""

    name = "vertex"

    def needs(self, call: Call) -> tuple[str, ...]:
        return remote_urls(call.payload)

    def request(self, call: Call) -> UpstreamRequest:
        call = replace(call, payload=inlined(call.payload, call.media))
        _, model = model_of(call)
        call = replace(call, edits={**call.edits, "model": model})
        sent = super().request(call)
        body = msgspec.json.decode(sent.body, type=dict[str, msgspec.Raw])
        del body["model"]
        sent.body = msgspec.json.encode({"anthropic_version": msgspec.Raw(CLAUDE_VERSION), **body})
        method = "streamRawPredict" if call.is_stream else "rawPredict"
        sent.path = f"{_folder(call)}/publishers/anthropic/models/{quote(model, safe='@')}:{method}"
        sent.headers = [header for header in sent.headers if header[0] != b"anthropic-version"]
        return sent


class VertexOpenModel(OpenAIDialect):
    name = "vertex"
    params: Mapping[str, str] = dict.fromkeys(OPENAI_CHAT_FIELDS, "passed")

    def request(self, call: Call) -> UpstreamRequest:
        maker, model = model_of(call)
        sent = super().request(replace(call, edits={**call.edits, "model": f"{maker}/{model}"}))
        sent.path = f"{_folder(call)}/endpoints/openapi/chat/completions"
        return sent


class Vertex(Gemini):
    name = "vertex"
    keyless = "google"
    needs_options: tuple[str, ...] = ("project", "region")
    default_base_url = "https://{region}-aiplatform.googleapis.com"
    api_key_env = None
    docs_url = "https://cloud.google.com/vertex-ai/generative-ai/docs/model-reference/inference"
    params: Mapping[str, str] = {
        **PARAMS,
        "metadata": "mapped to labels; what labels cannot say as its hash",
        "safety_identifier": "mapped to a label",
        "user": "mapped to a label",
        "labels": "passed",
    }
    unsupported: Mapping[str, str] = {**UNSUPPORTED, "store": "Remove it or send false."}
    is_vertex = True

    def __init__(self) -> None:
        self._claude: Provider = VertexClaude()
        self._open: Provider = VertexOpenModel()

    def base_url(self, options: Mapping[str, str]) -> str | None:
        """https://cloud.google.com/vertex-ai/generative-ai/docs/learn/locations"""
        region = options.get("region", "")
        if region == "global":
            return "https://aiplatform.googleapis.com"
        if region in _REGIONS_OF_SEVERAL:
            return f"https://aiplatform.{region}.rep.googleapis.com"
        return super().base_url(options)

    def _partner(self, call: Call) -> Provider | None:
        maker, _ = model_of(call)
        if maker in ("google", ""):
            return None
        return self._claude if maker == "anthropic" else self._open

    def path_of(self, call: Call, model: str) -> str:
        maker, model = model_of(call)
        if model.startswith("projects/"):
            return f"/v1/{quote(model, safe='/@:-._~')}"
        folder = "publishers/google/models/" if maker else ""
        return f"{_folder(call)}/{folder}{quote(model, safe='/@:-._~')}"

    def needs(self, call: Call) -> tuple[str, ...]:
        partner = self._partner(call)
        return super().needs(call) if partner is None else partner.needs(call)

    def request(self, call: Call) -> UpstreamRequest:
        partner = self._partner(call)
        return super().request(call) if partner is None else partner.request(call)

    def response(self, call: Call, head: Head, body: bytes) -> Reply:
        partner = self._partner(call)
        return super().response(call, head, body) if partner is None else partner.response(call, head, body)

    def stream(self, call: Call, head: Head) -> StreamTranslator:
        partner = self._partner(call)
        return super().stream(call, head) if partner is None else partner.stream(call, head)

    def error(self, call: Call, head: Head, body: bytes) -> ProviderError:
        """Google's front answers for the partners too, in its own form."""
        partner = self._partner(call)
        if partner is None or isinstance(error_fields(body).get("status"), str):
            return super().error(call, head, body)
        return partner.error(call, head, body)
