"""Vendors that speak OpenAI's chat dialect and differ only by data: one row each.

A row says where the vendor lives, how it is authorised, which fields it refuses or names differently, and where its
documentation says so. Adding a vendor is adding a row; the conformance tests run over it by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sidecar.translate.provider import OPENAI_CHAT_FIELDS, Auth, check_provider
from sidecar.translate.providers.openai import OpenAIDialect

_REMOVE = "Remove the field."


@dataclass(frozen=True, slots=True)
class Vendor:
    """`refused`: fields the vendor answers with an error. `renames`: OpenAI's name → the vendor's. `cap_name`: the one
    name of the output cap. `forces_usage`: streams carry usage only when asked for."""

    name: str
    base_url: str | None
    api_key_env: str | None
    docs_url: str
    auth: Auth = "bearer"
    refused: Mapping[str, str] = field(default_factory=dict)
    renames: Mapping[str, str] = field(default_factory=dict)
    cap_name: str = "max_tokens"
    takes_both_caps: bool = True
    forces_usage: bool = True
    passes_unknown: bool = True


class OpenAICompatible(OpenAIDialect, is_abstract=True):
    def __init__(self, vendor: Vendor) -> None:
        self.vendor = vendor
        self.name = vendor.name
        self.auth = vendor.auth
        self.default_base_url = vendor.base_url
        self.api_key_env = vendor.api_key_env
        self.docs_url = vendor.docs_url
        self.renames = vendor.renames
        self.forces_usage = vendor.forces_usage
        self.takes_both_caps = vendor.takes_both_caps
        self.passes_unknown = vendor.passes_unknown
        self.unsupported = dict(vendor.refused)
        self.params = {
            name: f"sent as {vendor.renames[name]}" if name in vendor.renames else "passed"
            for name in OPENAI_CHAT_FIELDS - vendor.refused.keys()
        }
        check_provider(self)

    def cap_name(self, model: str) -> str:
        return self.vendor.cap_name


def _refuse(names: str, fix: str = _REMOVE) -> dict[str, str]:
    return dict.fromkeys(names.split(), fix)


VENDORS: tuple[Vendor, ...] = (
    Vendor(
        "groq",
        "https://api.groq.com/openai/v1",
        "GROQ_API_KEY",
        "https://console.groq.com/docs/openai",
        refused=_refuse("logprobs logit_bias top_logprobs", "Groq answers it with an error; remove the field."),
        cap_name="max_completion_tokens",
        takes_both_caps=False,
    ),
    Vendor(
        "together",
        "https://api.together.xyz/v1",
        "TOGETHER_API_KEY",
        "https://docs.together.ai/docs/openai-api-compatibility",
    ),
    Vendor(
        "fireworks",
        "https://api.fireworks.ai/inference/v1",
        "FIREWORKS_API_KEY",
        "https://docs.fireworks.ai/tools-sdks/openai-compatibility",
    ),
    Vendor(
        "deepseek",
        "https://api.deepseek.com",
        "DEEPSEEK_API_KEY",
        "https://api-docs.deepseek.com/api/create-chat-completion",
        takes_both_caps=False,
    ),
    Vendor(
        "mistral",
        "https://api.mistral.ai/v1",
        "MISTRAL_API_KEY",
        "https://docs.mistral.ai/api/#tag/chat",
        # Its schema forbids extra fields (422); usage comes with every stream's last chunk.
        refused=_refuse(
            "audio function_call functions logit_bias logprobs modalities moderation prompt_cache_key "
            "prompt_cache_options prompt_cache_retention safety_identifier service_tier store top_logprobs user "
            "verbosity web_search_options",
            "Mistral's schema has no such field; remove it.",
        ),
        renames={"seed": "random_seed"},
        takes_both_caps=False,
        forces_usage=False,
    ),
    Vendor(
        "openrouter",
        "https://openrouter.ai/api/v1",
        "OPENROUTER_API_KEY",
        "https://openrouter.ai/docs/api-reference/overview",
    ),
    Vendor("xai", "https://api.x.ai/v1", "XAI_API_KEY", "https://docs.x.ai/docs/api-reference"),
    Vendor(
        "cerebras",
        "https://api.cerebras.ai/v1",
        "CEREBRAS_API_KEY",
        "https://inference-docs.cerebras.ai/resources/openai",
        refused=_refuse(
            "frequency_penalty logit_bias presence_penalty", "Cerebras answers it with an error; remove the field."
        ),
        cap_name="max_completion_tokens",
        takes_both_caps=False,
    ),
    Vendor(
        "nvidia_nim",
        "https://integrate.api.nvidia.com/v1",
        "NVIDIA_API_KEY",
        "https://docs.api.nvidia.com/nim/reference/llm-apis",
    ),
    Vendor(
        "sambanova",
        "https://api.sambanova.ai/v1",
        "SAMBANOVA_API_KEY",
        "https://docs.sambanova.ai/docs/en/features/openai-compatibility",
    ),
    Vendor(
        "deepinfra", "https://api.deepinfra.com/v1/openai", "DEEPINFRA_API_KEY", "https://deepinfra.com/docs/openai_api"
    ),
    Vendor(
        "moonshot",
        "https://api.moonshot.ai/v1",
        "MOONSHOT_API_KEY",
        "https://platform.moonshot.ai/docs/api/chat",
        takes_both_caps=False,
    ),
    Vendor(
        "hyperbolic", "https://api.hyperbolic.xyz/v1", "HYPERBOLIC_API_KEY", "https://docs.hyperbolic.xyz/docs/rest-api"
    ),
    Vendor(
        "dashscope",
        "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
        "DASHSCOPE_API_KEY",
        "https://www.alibabacloud.com/help/en/model-studio/compatibility-of-openai-with-dashscope",
    ),
    # Servers one runs oneself: the key is sent if one is configured.
    Vendor(
        "ollama",
        "http://127.0.0.1:11434/v1",
        None,
        "https://docs.ollama.com/api/openai-compatibility",
        takes_both_caps=False,
    ),
    Vendor(
        "vllm", "http://127.0.0.1:8000/v1", None, "https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html"
    ),
    Vendor(
        "lm_studio",
        "http://127.0.0.1:1234/v1",
        None,
        "https://lmstudio.ai/docs/developer/openai-compat",
        takes_both_caps=False,
    ),
    Vendor("openai_compatible", None, None, "https://platform.openai.com/docs/api-reference/chat/create"),
)

COMPATIBLE: dict[str, OpenAICompatible] = {vendor.name: OpenAICompatible(vendor) for vendor in VENDORS}
