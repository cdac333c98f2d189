"""Vendors that speak OpenAI's chat dialect and differ only by data: one row each, with the page that says so.

Neighbour: `compatible`, which makes providers of them. A vendor with several sites (one for China, one for elsewhere)
is one row; another site is the deployment's `base_url`. A URL that differs by account is left out and has to be given.
Streams ask for usage, but where a row says that it comes unasked. A field a row does not refuse is passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sidecar.translate.provider import Auth, Keyless


@dataclass(frozen=True, slots=True)
class Vendor:
    """`refused`: fields the vendor answers with an error. `renames`: OpenAI's name → the vendor's. `cap_name`: the one
    name of the output cap, unless it `takes_both_caps`. `forces_usage`: streams carry usage only when asked for.
    `takes_names`: messages may have a `name`. `note`: for people, what else is particular."""

    name: str
    base_url: str | None
    api_key_env: str | None
    docs_url: str
    auth: Auth = "bearer"
    keyless: Keyless = ""
    refused: Mapping[str, str] = field(default_factory=dict)
    renames: Mapping[str, str] = field(default_factory=dict)
    cap_name: str = "max_tokens"
    takes_both_caps: bool = True
    forces_usage: bool = True
    passes_unknown: bool = True
    takes_names: bool = True
    note: str = ""


def _refuse(names: str, fix: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), fix)


_MAKERS: tuple[Vendor, ...] = (
    Vendor(
        "groq",
        "https://api.groq.com/openai/v1",
        "GROQ_API_KEY",
        "https://console.groq.com/docs/openai",
        refused=_refuse("logprobs logit_bias top_logprobs n", "Groq answers it with an error; remove the field."),
        cap_name="max_completion_tokens",
        takes_both_caps=False,
        takes_names=False,
        note="usage also in `x_groq`; names of messages are left out and named in `x-sidecar-dropped`",
    ),
    Vendor(
        "together",
        "https://api.together.ai/v1",
        "TOGETHER_API_KEY",
        "https://docs.together.ai/docs/inference/openai-compatibility",
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
        note="cache hits in `prompt_cache_hit_tokens`; thinking in `reasoning_content`",
    ),
    Vendor(
        "xai",
        "https://api.x.ai/v1",
        "XAI_API_KEY",
        "https://docs.x.ai/docs/api-reference",
        note="reasoning is counted beside the completion tokens",
    ),
    Vendor(
        "perplexity",
        "https://api.perplexity.ai",
        "PERPLEXITY_API_KEY",
        "https://docs.perplexity.ai/docs/sonar/openai-compatibility",
        takes_both_caps=False,
        forces_usage=False,
        note="usage so far in every chunk; sources in `citations` and `search_results`",
    ),
    Vendor(
        "moonshot",
        "https://api.moonshot.ai/v1",
        "MOONSHOT_API_KEY",
        "https://platform.kimi.ai/docs/overview",
        takes_both_caps=False,
        note="cache hits in `cached_tokens`",
    ),
    Vendor(
        "dashscope",
        "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
        "DASHSCOPE_API_KEY",
        "https://www.alibabacloud.com/help/en/model-studio/compatibility-of-openai-with-dashscope",
        note="`enable_thinking`, `thinking_budget` pass",
    ),
    Vendor(
        "zai",
        "https://api.z.ai/api/paas/v4",
        "ZAI_API_KEY",
        "https://docs.z.ai/api-reference/llm/chat-completion",
        takes_both_caps=False,
        note="`thinking` passes",
    ),
    Vendor(
        "zhipu",
        "https://open.bigmodel.cn/api/paas/v4",
        "ZHIPUAI_API_KEY",
        "https://docs.bigmodel.cn/cn/guide/develop/openai/introduction",
        takes_both_caps=False,
        note="`thinking` passes",
    ),
    Vendor(
        "minimax",
        "https://api.minimax.io/v1",
        "MINIMAX_API_KEY",
        "https://platform.minimax.io/docs/api-reference/text-openai-api",
    ),
    Vendor(
        "stepfun",
        "https://api.stepfun.com/v1",
        "STEPFUN_API_KEY",
        "https://platform.stepfun.com/docs/zh/api-reference/chat/chat-completion-create",
        note="thinking in `reasoning`",
    ),
    Vendor(
        "xiaomi",
        "https://api.xiaomimimo.com/v1",
        "XIAOMI_API_KEY",
        "https://platform.xiaomimimo.com/static/docs/api/chat/openai-api.md",
        note="`thinking` passes",
    ),
    Vendor(
        "volcengine",
        "https://ark.cn-beijing.volces.com/api/v3",
        "ARK_API_KEY",
        "https://www.volcengine.com/docs/82379/1494384",
        note="Doubao",
    ),
    Vendor(
        "hunyuan",
        "https://api.hunyuan.cloud.tencent.com/v1",
        "HUNYUAN_API_KEY",
        "https://cloud.tencent.com/document/product/1729/111007",
    ),
    Vendor(
        "qianfan",
        "https://qianfan.baidubce.com/v2",
        "QIANFAN_API_KEY",
        "https://cloud.baidu.com/doc/qianfan-api/s/3m7of64lb",
        note="ERNIE",
    ),
    Vendor(
        "upstage",
        "https://api.upstage.ai/v1",
        "UPSTAGE_API_KEY",
        "https://console.upstage.ai/api-keys?api=chat-reasoning",
    ),
    Vendor(
        "inception",
        "https://api.inceptionlabs.ai/v1",
        "INCEPTION_API_KEY",
        "https://docs.inceptionlabs.ai/api-reference/chat/create-a-chat-completion",
    ),
    Vendor(
        "morph",
        "https://api.morphllm.com/v1",
        "MORPH_API_KEY",
        "https://docs.morphllm.com/api-reference/introduction",
    ),
    Vendor(
        "sarvam",
        "https://api.sarvam.ai/v1",
        "SARVAM_API_KEY",
        "https://docs.sarvam.ai/api-reference-docs/chat/chat-completions",
    ),
    Vendor("typhoon", "https://api.opentyphoon.ai/v1", "TYPHOON_API_KEY", "https://docs.opentyphoon.ai/"),
    Vendor(
        "meta", "https://api.meta.ai/v1", "META_MODEL_API_KEY", "https://dev.meta.ai/docs/protocols/chat-completions"
    ),
    Vendor(
        "amazon_nova",
        "https://api.nova.amazon.com/v1",
        "NOVA_API_KEY",
        "https://nova.amazon.com/dev/documentation",
    ),
)
"""Who makes the models they serve."""

_HOSTS: tuple[Vendor, ...] = (
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
        "sambanova",
        "https://api.sambanova.ai/v1",
        "SAMBANOVA_API_KEY",
        "https://docs.sambanova.ai/docs/en/features/openai-compatibility",
    ),
    Vendor(
        "nvidia_nim",
        "https://integrate.api.nvidia.com/v1",
        "NVIDIA_API_KEY",
        "https://docs.api.nvidia.com/nim/reference/llm-apis",
        takes_both_caps=False,
        note="also your own NIM, by its `base_url`; a closed schema per model",
    ),
    Vendor(
        "deepinfra", "https://api.deepinfra.com/v1/openai", "DEEPINFRA_API_KEY", "https://deepinfra.com/docs/openai_api"
    ),
    Vendor(
        "hyperbolic", "https://api.hyperbolic.xyz/v1", "HYPERBOLIC_API_KEY", "https://docs.hyperbolic.xyz/docs/rest-api"
    ),
    Vendor(
        "nebius",
        "https://api.tokenfactory.nebius.com/v1",
        "NEBIUS_API_KEY",
        "https://docs.tokenfactory.nebius.com/api-reference/introduction",
    ),
    Vendor(
        "novita",
        "https://api.novita.ai/openai/v1",
        "NOVITA_API_KEY",
        "https://novita.ai/docs/api-reference/model-apis-llm-create-chat-completion",
        takes_both_caps=False,
        note="`enable_thinking`, `separate_reasoning` pass",
    ),
    Vendor(
        "siliconflow",
        "https://api.siliconflow.com/v1",
        "SILICONFLOW_API_KEY",
        "https://docs.siliconflow.com/en/api-reference/chat-completions/chat-completions",
        takes_both_caps=False,
        note="`enable_thinking`, `thinking_budget` pass",
    ),
    Vendor(
        "friendli",
        "https://api.friendli.ai/serverless/v1",
        "FRIENDLI_TOKEN",
        "https://friendli.ai/docs/openapi/model-apis/chat-completions",
        note="`reasoning_budget` passes; JSON output beside tools is refused there",
    ),
    Vendor(
        "baseten",
        "https://inference.baseten.co/v1",
        "BASETEN_API_KEY",
        "https://docs.baseten.co/inference/model-apis/overview",
    ),
    Vendor(
        "wandb",
        "https://api.inference.wandb.ai/v1",
        "WANDB_API_KEY",
        "https://docs.wandb.ai/guides/integrations/inference/",
        note="thinking in `reasoning`",
    ),
    Vendor("inference_net", "https://api.inference.net/v1", "INFERENCE_API_KEY", "https://docs.inference.net/"),
    Vendor(
        "io_net",
        "https://api.intelligence.io.solutions/api/v1",
        "IOINTELLIGENCE_API_KEY",
        "https://io.net/docs/guides/intelligence/io-intelligence",
    ),
    Vendor("chutes", "https://llm.chutes.ai/v1", "CHUTES_API_KEY", "https://chutes.ai/docs/guides/reasoning-models"),
    Vendor("venice", "https://api.venice.ai/api/v1", "VENICE_API_KEY", "https://docs.venice.ai"),
    Vendor(
        "parasail",
        "https://api.parasail.io/v1",
        "PARASAIL_API_KEY",
        "https://docs.parasail.io/",
    ),
    Vendor(
        "nscale",
        "https://inference.api.nscale.com/v1",
        "NSCALE_SERVICE_TOKEN",
        "https://docs.nscale.com/docs/inference/serverless-models/overview",
    ),
    Vendor(
        "gmi_cloud",
        "https://api.gmi-serving.com/v1",
        "GMI_API_KEY",
        "https://docs.gmicloud.ai/inference-engine/api-reference/llm-api-reference",
    ),
    Vendor(
        "clarifai",
        "https://api.clarifai.com/v2/ext/openai/v1",
        "CLARIFAI_PAT",
        "https://docs.clarifai.com/compute/inference/open-ai",
    ),
    Vendor(
        "synthetic",
        "https://api.synthetic.new/openai/v1",
        "SYNTHETIC_API_KEY",
        "https://dev.synthetic.new/docs/api/overview",
    ),
    Vendor("submodel", "https://llm.submodel.ai/v1", "SUBMODEL_INSTAGEN_ACCESS_KEY", "https://submodel.gitbook.io"),
    Vendor(
        "modelscope",
        "https://api-inference.modelscope.cn/v1",
        "MODELSCOPE_API_KEY",
        "https://modelscope.cn/docs/model-service/API-Inference/intro",
    ),
    Vendor(
        "publicai",
        "https://api.publicai.co/v1",
        "PUBLICAI_API_KEY",
        "https://platform.publicai.co/docs",
    ),
    Vendor(
        "ollama_cloud",
        "https://ollama.com/v1",
        "OLLAMA_API_KEY",
        "https://docs.ollama.com/cloud",
        takes_both_caps=False,
    ),
)
"""Who serves open models."""

_CLOUDS: tuple[Vendor, ...] = (
    Vendor(
        "watsonx_gateway",
        None,
        "WATSONX_GATEWAY_API_KEY",
        "https://www.ibm.com/docs/en/watsonx/saas?topic=generation-inferencing-gateway-models",
        auth="ibm",
        note="IBM's model gateway: `https://REGION.ml.cloud.ibm.com/ml/gateway/v1`; the key is exchanged for a token",
    ),
    Vendor(
        "cloudflare",
        None,
        "CLOUDFLARE_API_KEY",
        "https://developers.cloudflare.com/workers-ai/configuration/open-ai-compatibility/",
        note="`https://api.cloudflare.com/client/v4/accounts/ACCOUNT/ai/v1`",
    ),
    Vendor(
        "digitalocean",
        "https://inference.do-ai.run/v1",
        "GRADIENT_MODEL_ACCESS_KEY",
        "https://docs.digitalocean.com/products/inference/how-to/use-serverless-inference/",
    ),
    Vendor(
        "ovhcloud",
        "https://oai.endpoints.kepler.ai.cloud.ovh.net/v1",
        "OVHCLOUD_API_KEY",
        "https://www.ovhcloud.com/en/public-cloud/ai-endpoints/catalog/",
    ),
    Vendor(
        "scaleway",
        "https://api.scaleway.ai/v1",
        "SCALEWAY_API_KEY",
        "https://www.scaleway.com/en/docs/generative-apis/api-cli/using-chat-api",
    ),
    Vendor(
        "stackit",
        "https://api.openai-compat.model-serving.eu01.onstackit.cloud/v1",
        "STACKIT_API_KEY",
        "https://docs.stackit.cloud/products/data-and-ai/ai-model-serving/basics/available-shared-models",
    ),
    Vendor(
        "vultr",
        "https://api.vultrinference.com/v1",
        "VULTR_API_KEY",
        "https://docs.vultr.com/products/compute/serverless-inference/management/usage/chat",
        note="thinking in `reasoning`",
    ),
    Vendor("berget", "https://api.berget.ai/v1", "BERGET_API_KEY", "https://docs.berget.ai"),
    Vendor(
        "evroc",
        "https://models.think.evroc.com/v1",
        "EVROC_API_KEY",
        "https://docs.evroc.com/products/think/openai-compatibility.html",
    ),
    Vendor("regolo", "https://api.regolo.ai/v1", "REGOLO_API_KEY", "https://docs.regolo.ai/"),
    Vendor(
        "cloudferro",
        "https://api-sherlock.cloudferro.com/openai/v1",
        "CLOUDFERRO_SHERLOCK_API_KEY",
        "https://docs.sherlock.cloudferro.com/",
    ),
)
"""Whose main trade is computers."""

OTHER_MODELS = _refuse(
    "models fallbacks route preset providerOptions",
    "It may have another model answer than the deployment's, at another price; remove it.",
)
"""https://openrouter.ai/docs/features/model-routing · https://vercel.com/docs/ai-gateway/models-and-providers/model-fallbacks"""

_ROUTERS: tuple[Vendor, ...] = (
    Vendor(
        "openrouter",
        "https://openrouter.ai/api/v1",
        "OPENROUTER_API_KEY",
        "https://openrouter.ai/docs/api-reference/overview",
        refused=OTHER_MODELS,
        note="thinking in `reasoning`",
    ),
    Vendor(
        "github",
        "https://models.github.ai/inference",
        "GITHUB_TOKEN",
        "https://docs.github.com/en/rest/models/inference",
        refused=OTHER_MODELS,
    ),
    Vendor(
        "vercel",
        "https://ai-gateway.vercel.sh/v1",
        "AI_GATEWAY_API_KEY",
        "https://vercel.com/docs/ai-gateway/sdks-and-apis/openai-chat-completions",
        refused=OTHER_MODELS,
    ),
    Vendor(
        "helicone",
        "https://ai-gateway.helicone.ai/v1",
        "HELICONE_API_KEY",
        "https://docs.helicone.ai/rest/ai-gateway/post-v1-chat-completions",
        refused=OTHER_MODELS,
    ),
    Vendor(
        "requesty",
        "https://router.requesty.ai/v1",
        "REQUESTY_API_KEY",
        "https://docs.requesty.ai",
        refused=OTHER_MODELS,
    ),
    Vendor(
        "poe",
        "https://api.poe.com/v1",
        "POE_API_KEY",
        "https://creator.poe.com/docs/external-applications/openai-compatible-api",
        refused=OTHER_MODELS,
    ),
    Vendor(
        "cortecs",
        "https://api.cortecs.ai/v1",
        "CORTECS_API_KEY",
        "https://docs.cortecs.ai/",
        refused=OTHER_MODELS,
    ),
    Vendor(
        "nanogpt",
        "https://nano-gpt.com/api/v1",
        "NANO_GPT_API_KEY",
        "https://docs.nano-gpt.com",
        refused=OTHER_MODELS,
    ),
    Vendor(
        "aihubmix",
        "https://aihubmix.com/v1",
        "AIHUBMIX_API_KEY",
        "https://docs.aihubmix.com",
        refused=OTHER_MODELS,
    ),
    Vendor(
        "fastrouter",
        "https://go.fastrouter.ai/api/v1",
        "FASTROUTER_API_KEY",
        "https://docs.fastrouter.ai/",
        refused=OTHER_MODELS,
    ),
    Vendor("zenmux", "https://zenmux.ai/api/v1", "ZENMUX_API_KEY", "https://docs.zenmux.ai", refused=OTHER_MODELS),
    Vendor(
        "abacus",
        "https://routellm.abacus.ai/v1",
        "ABACUS_API_KEY",
        "https://abacus.ai/help/api",
        refused=OTHER_MODELS,
    ),
)
"""Who passes requests on to others."""

_OWN: tuple[Vendor, ...] = (
    Vendor(
        "vllm",
        "http://127.0.0.1:8000/v1",
        None,
        "https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html",
        note="`top_k`, `chat_template_kwargs`, `structured_outputs` pass; thinking in `reasoning`",
    ),
    Vendor("sglang", "http://127.0.0.1:30000/v1", None, "https://docs.sglang.io/basic_usage/openai_api.html"),
    Vendor(
        "llama_cpp",
        "http://127.0.0.1:8080/v1",
        None,
        "https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md",
        takes_both_caps=False,
    ),
    Vendor(
        "llamafile",
        "http://127.0.0.1:8080/v1",
        None,
        "https://github.com/mozilla-ai/llamafile/blob/main/llamafile/server/doc/v1_chat_completions.md",
        takes_both_caps=False,
    ),
    Vendor(
        "localai",
        "http://127.0.0.1:8080/v1",
        None,
        "https://localai.io/docs/features/text-generation/",
        takes_both_caps=False,
    ),
    Vendor(
        "lm_studio",
        "http://127.0.0.1:1234/v1",
        None,
        "https://lmstudio.ai/docs/developer/openai-compat",
        takes_both_caps=False,
    ),
    Vendor(
        "text_generation_webui",
        "http://127.0.0.1:5000/v1",
        None,
        "https://github.com/oobabooga/text-generation-webui/wiki/12-%E2%80%90-OpenAI-API",
        takes_both_caps=False,
    ),
    Vendor(
        "docker_model_runner",
        "http://127.0.0.1:12434/engines/v1",
        None,
        "https://docs.docker.com/ai/model-runner/api-reference/",
        takes_both_caps=False,
    ),
    Vendor("openai_compatible", None, None, "https://platform.openai.com/docs/api-reference/chat/create"),
)
"""Servers one runs oneself: the key is sent if one is configured."""

VENDORS: tuple[Vendor, ...] = (*_MAKERS, *_HOSTS, *_CLOUDS, *_ROUTERS, *_OWN)
