"""All providers by name. A provider is one file in `providers/` named here, or one row in `compatible`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sidecar.translate.compatible import COMPATIBLE
from sidecar.translate.provider import Provider, check_provider
from sidecar.translate.providers.anthropic import Anthropic
from sidecar.translate.providers.azure import Azure
from sidecar.translate.providers.bedrock import Bedrock
from sidecar.translate.providers.bedrock_invoke import BedrockInvoke
from sidecar.translate.providers.cohere import Cohere
from sidecar.translate.providers.databricks import Databricks
from sidecar.translate.providers.gemini import Gemini
from sidecar.translate.providers.huggingface import TGI, HuggingFace
from sidecar.translate.providers.mistral import Mistral
from sidecar.translate.providers.ollama import Ollama
from sidecar.translate.providers.openai import OpenAI
from sidecar.translate.providers.responses import Responses
from sidecar.translate.providers.sagemaker import SageMaker
from sidecar.translate.providers.simulated import SimulatedProvider
from sidecar.translate.providers.vertex import Vertex
from sidecar.translate.providers.watsonx import Watsonx


def _collect() -> dict[str, Provider]:
    providers: dict[str, Provider] = {}
    for provider in (
        OpenAI(),
        Responses(),
        Azure(),
        Anthropic(),
        Bedrock(),
        BedrockInvoke(),
        SageMaker(),
        Gemini(),
        Vertex(),
        Cohere(),
        Ollama(),
        Mistral(),
        Watsonx(),
        Databricks(),
        HuggingFace(),
        TGI(),
        SimulatedProvider(),
        *COMPATIBLE.values(),
    ):
        check_provider(provider)
        if provider.name in providers:
            raise TypeError(f"two providers are named {provider.name}")
        providers[provider.name] = provider
    return providers


PROVIDERS: Mapping[str, Provider] = MappingProxyType(_collect())


def get_provider(name: str) -> Provider:
    """Raises `KeyError` for an unknown name."""
    return PROVIDERS[name]
