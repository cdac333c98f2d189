"""Whose prefix of a model name is which of our providers: one row each.

A row may name a provider this version does not have yet; its deployments are then kept as a comment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from sidecar.spend.price_loader import known_models


@dataclass(frozen=True, slots=True)
class Prefix:
    """`key_env`: the variable the other gateway reads when a deployment has no key, where it differs from ours.
    `routes`: pieces it takes off the front of the model (`bedrock/converse/…`). `claude_by`: the route whose Claude is
    another provider of ours, and that one."""

    ours: str
    key_env: str | None = None
    routes: tuple[str, ...] = ()
    claude_by: tuple[str, str] | None = None


PREFIXES: Mapping[str, Prefix] = {
    "anthropic": Prefix("anthropic"),
    "azure": Prefix("azure"),
    "bedrock": Prefix("bedrock", routes=("converse/", "invoke/"), claude_by=("invoke/", "bedrock-invoke")),
    "cerebras": Prefix("cerebras"),
    "cohere": Prefix("cohere"),
    "cohere_chat": Prefix("cohere"),
    "custom_openai": Prefix("openai_compatible"),
    "dashscope": Prefix("dashscope"),
    "databricks": Prefix("databricks", key_env="DATABRICKS_API_KEY"),
    "deepinfra": Prefix("deepinfra"),
    "deepseek": Prefix("deepseek"),
    "fireworks_ai": Prefix("fireworks"),
    "friendliai": Prefix("friendli"),
    "gemini": Prefix("gemini"),
    "gradient_ai": Prefix("digitalocean"),
    "groq": Prefix("groq"),
    "hosted_vllm": Prefix("vllm"),
    "huggingface": Prefix("huggingface"),
    "hyperbolic": Prefix("hyperbolic"),
    "litellm_proxy": Prefix("openai_compatible"),
    "lm_studio": Prefix("lm_studio"),
    "mistral": Prefix("mistral"),
    "moonshot": Prefix("moonshot"),
    "nano-gpt": Prefix("nanogpt"),
    "nvidia_nim": Prefix("nvidia_nim", key_env="NVIDIA_NIM_API_KEY"),
    "ollama": Prefix("ollama"),
    "ollama_chat": Prefix("ollama"),
    "openai": Prefix("openai"),
    "openai_like": Prefix("openai_compatible"),
    "openrouter": Prefix("openrouter"),
    "sagemaker_chat": Prefix("sagemaker"),
    "sambanova": Prefix("sambanova"),
    "together_ai": Prefix("together"),
    "vercel_ai_gateway": Prefix("vercel"),
    "vertex_ai": Prefix("vertex"),
    "vertex_ai_beta": Prefix("vertex"),
    "watsonx": Prefix("watsonx"),
    "xai": Prefix("xai"),
}

_TAILS = {
    "anthropic": ("/v1/messages", "/v1"),
    "azure": ("/chat/completions", "/openai/v1", "/openai"),
    "cohere": ("/v2/chat", "/v1/chat", "/v2", "/v1"),
    "ollama": ("/api/chat", "/api/generate", "/api", "/v1"),
    "watsonx": ("/ml/v1/text/chat", "/ml/v1", "/ml"),
}
"""What a provider's own path begins with, so its `base_url` must not end in it."""
_BARE = {"openai": ("gpt-", "o1", "o3", "o4", "chatgpt-"), "anthropic": ("claude-",)}


def place(prefix: Prefix, rest: str) -> tuple[str, str]:
    """(our provider, its model) of what stands behind a prefix."""
    provider = prefix.ours
    for route in prefix.routes:
        if rest.startswith(route):
            if prefix.claude_by is not None and prefix.claude_by[0] == route and "anthropic" in rest:
                provider = prefix.claude_by[1]
            rest = rest.removeprefix(route)
    if provider == "huggingface" and rest.count("/") == 2:  # through one of the router's providers
        through, model = rest.split("/", 1)
        rest = f"{model}:{through}"
    return provider, rest


def guess(model: str) -> str | None:
    """The provider of a name without a prefix, where it is certain enough."""
    for provider, beginnings in _BARE.items():
        if model in known_models(provider) or model.startswith(beginnings):
            return provider
    return None


def is_openai(base_url: str) -> bool:
    """Whether OpenAI itself answers there; other servers are `openai_compatible`."""
    try:
        host = (urlsplit(base_url).hostname or "").lower()
    except ValueError:
        return False
    return host == "openai.com" or host.endswith(".openai.com")


def fit_base_url(provider: str, url: str) -> str:
    """What ours appends the path to: the other gateway's form of an `api_base` may hold more, or less."""
    url = url.rstrip("/")
    for tail in _TAILS.get(provider, ("/chat/completions",)):
        url = url.removesuffix(tail)
    if provider == "huggingface" and urlsplit(url).path == "":
        url += "/v1"  # a dedicated endpoint
    return url
