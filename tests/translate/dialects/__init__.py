"""The vendors' side of the wire: for each dialect what a request must look like and how it is answered.

A provider that speaks neither OpenAI's nor Anthropic's dialect gets a module here and a line in `DIALECTS`; the
conformance suite, the fuzzer, the fault provider and the promises then find it by the provider's name.
"""

from __future__ import annotations

from collections.abc import Mapping

from sidecar.translate import PROVIDERS, Provider
from sidecar.translate.compatible import COMPATIBLE, shape_of
from tests.translate.dialects.anthropic import AnthropicMessages
from tests.translate.dialects.base import Dialect
from tests.translate.dialects.bedrock import Converse, InvokeClaude, SageMakerChat
from tests.translate.dialects.cohere import CohereChat
from tests.translate.dialects.gemini import GeminiContents, VertexContents
from tests.translate.dialects.mistral import MistralChat
from tests.translate.dialects.ollama import OllamaChat
from tests.translate.dialects.openai import OpenAIChat
from tests.translate.dialects.responses import ResponsesAPI
from tests.translate.dialects.watsonx import WatsonxChat

OPENAI = OpenAIChat()
DIALECTS: Mapping[str, Dialect] = {
    "anthropic": AnthropicMessages(),
    "openai-responses": ResponsesAPI(),
    "bedrock": Converse(),
    "bedrock-invoke": InvokeClaude(),
    "sagemaker": SageMakerChat(),
    "gemini": GeminiContents(),
    "vertex": VertexContents(),
    "cohere": CohereChat(),
    "ollama": OllamaChat(),
    "watsonx": WatsonxChat(),
}
"""Of the providers that do not speak OpenAI's dialect, or frame it otherwise, by name."""

OPENAI_LIKE: Mapping[str, Dialect] = {"mistral": MistralChat()}
"""Of those that do, but whose own schema is held to besides."""


def _distinct() -> dict[str, Provider]:
    first_of_shape = {shape_of(row.vendor): name for name, row in reversed(COMPATIBLE.items())}
    return {
        name: provider
        for name, provider in PROVIDERS.items()
        if name not in COMPATIBLE or first_of_shape[shape_of(COMPATIBLE[name].vendor)] == name
    }


DISTINCT: Mapping[str, Provider] = _distinct()
"""All providers but compatible vendors whose rows say of translating what an earlier row says too: what is true of that
one is true of them. `test_compatible` runs over all rows."""


def dialect_of(provider: Provider | str) -> Dialect:
    found = PROVIDERS[provider] if isinstance(provider, str) else provider
    if found.name not in DIALECTS and found.is_same_dialect:
        return OPENAI_LIKE.get(found.name, OPENAI)
    return DIALECTS[found.name]
