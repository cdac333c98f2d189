"""The settings, strict: an unknown key is an error. `load.py` reads them, `build.py` turns them into ready values.

Neighbours: `fields.py` (what a value may be), `oidc.py` (identity providers). Configuration objects stop at layer 4: no
middleware ever sees one. Money is USD, durations are seconds unless a key says otherwise.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, Tag
from pydantic_settings import BaseSettings, SettingsConfigDict

from sidecar.config.fields import (
    Count,
    Duration,
    FilePath,
    Int,
    Name,
    Rate,
    Seconds,
    SecondsOrNone,
    SecretField,
    SecretText,
    Strict,
    Tokens,
    Usd,
    number,
    valid_base_url,
    valid_header_name,
    valid_host,
    valid_json_value,
    valid_network,
    word_or_mapping,
)
from sidecar.config.oidc import IntrospectionSettings, IssuerSettings
from sidecar.types import Secret


class ServerSettings(Strict):
    host: Annotated[str, AfterValidator(valid_host)] = "127.0.0.1"
    port: Int = Field(default=4000, ge=0, le=65535)
    workers: Int = Field(default=1, ge=1, le=64)
    max_in_flight: Annotated[int, Field(ge=1, le=1_000_000), BeforeValidator(number)] | None = None
    max_lag_s: Seconds | None = None
    drain_s: SecondsOrNone = 0.0
    grace_s: Seconds = 30.0
    heartbeat_s: SecondsOrNone = 15.0
    heartbeat_early: bool = False


class AuthSettings(Strict):
    master_key: SecretField | None = None
    key_cache_s: Seconds = 60.0
    end_user_header: Annotated[str, AfterValidator(valid_header_name)] | None = None
    end_user_budget_id: Name | None = None
    issuers: list[IssuerSettings] = []
    introspection: list[IntrospectionSettings] = []


class StoreSettings(Strict):
    database_url: SecretText = Secret("sqlite:///.sidecar/sidecar.db")
    redis_url: SecretText | None = None
    encryption_key: SecretField | None = None
    journal_dir: FilePath = ".sidecar/journal"
    durability: Literal["process", "disk"] = "process"
    on_failure: Literal["closed", "open"] = "closed"
    deadline_s: Seconds = 0.5


class LimitSettings(Strict):
    rpm: Count | None = None
    tpm: Count | None = None
    concurrency: Count | None = None


class PriceSettings(Strict):
    input: Rate
    output: Rate
    cache_read: Rate | None = None
    cache_write: Rate | None = None
    cache_write_1h: Rate | None = None
    reasoning: Rate | None = None
    audio_input: Rate | None = None
    audio_output: Rate | None = None
    image_input: Rate | None = None
    image_output: Rate | None = None


class TimeoutSettings(Strict):
    connect_s: Seconds = 5.0
    first_byte_s: Seconds = 60.0
    gap_s: Seconds = 60.0
    total_s: Seconds = 600.0


PriceField = Annotated[
    Annotated[PriceSettings, Tag("mapping")] | Annotated[Literal["free"], Tag("free")],
    *word_or_mapping("free", "{input: 3, output: 15}"),
]
AuthField = Annotated[
    Annotated[AuthSettings, Tag("mapping")] | Annotated[Literal["none"], Tag("none")],
    *word_or_mapping("none", '{master_key: "${SIDECAR_MASTER_KEY}"}'),
]


class DeploymentSettings(Strict):
    provider: Name
    model: Name
    api_key: SecretField | None = None
    base_url: Annotated[str, AfterValidator(valid_base_url)] | None = None
    allow_plain_http: bool = False
    region: Name | None = None
    project: Name | None = None
    api_version: Name | None = None
    api: Literal["chat", "responses"] | None = None
    aws_access_key_id: SecretField | None = None
    aws_secret_access_key: SecretField | None = None
    aws_session_token: SecretField | None = None
    aws_profile: Name | None = None
    aws_role_arn: Name | None = None
    google_credentials: SecretField | None = None
    tenant_id: Name | None = None
    client_id: Name | None = None
    client_secret: SecretField | None = None
    weight: Annotated[float, BeforeValidator(number)] = Field(default=1.0, gt=0, le=1_000_000, allow_inf_nan=False)
    order: Int = Field(default=1, ge=1, le=1000)
    limits: LimitSettings = LimitSettings()
    price: PriceField | None = None
    timeouts: TimeoutSettings = TimeoutSettings()
    max_output_tokens: Tokens | None = None
    params: Annotated[dict[str, Any], AfterValidator(valid_json_value)] = {}
    headers: dict[Annotated[str, AfterValidator(valid_header_name)], SecretText] = {}
    drop_params: bool = False
    allowed_params: list[Name] = []
    tags: list[Name] = []


StrategyName = Literal["weighted", "adaptive", "least_busy", "latency", "throughput", "usage", "cost"]


class HedgeSettings(Strict):
    after_s: Seconds | None = None
    share: Annotated[float, BeforeValidator(number)] = Field(default=0.1, gt=0, le=1, allow_inf_nan=False)
    samples: Int = Field(default=50, ge=1, le=10_000)


HedgeField = Annotated[
    Annotated[HedgeSettings, Tag("mapping")] | Annotated[Literal["never"], Tag("never")],
    *word_or_mapping("never", "{share: 0.1}"),
]


class ModelSettings(Strict):
    name: Name
    access_groups: list[Name] = []
    strategy: StrategyName | None = None
    affinity: bool | None = None
    hedge: HedgeField | None = None
    continuation: bool | None = None
    deployments: list[DeploymentSettings] = Field(min_length=1)


Few = Annotated[int, Field(ge=0, le=10), BeforeValidator(number)]


class RetrySettings(Strict):
    rate_limit: Few | None = None
    timeout: Few | None = None
    overloaded: Few | None = None
    server: Few | None = None
    connection: Few | None = None


class RoutingSettings(Strict):
    strategy: StrategyName = "weighted"
    affinity: bool = False
    hedge: HedgeSettings | None = None
    continuation: bool = False
    retries: Int = Field(default=2, ge=0, le=10)
    retry_on: RetrySettings = RetrySettings()
    deadline_s: Seconds = 600.0
    max_wait_s: Seconds = 10.0
    cooldown_s: Seconds = 5.0
    cooldown_after: Int = Field(default=3, ge=1, le=100)
    fallbacks: dict[Name, list[Name]] = {}
    default_fallbacks: list[Name] = []
    context_window_fallbacks: dict[Name, list[Name]] = {}
    content_policy_fallbacks: dict[Name, list[Name]] = {}
    aliases: dict[Name, Name] = {}
    default_model: Name | None = None


class QueueSettings(Strict):
    """Waiting instead of 429; without `size` there is none."""

    size: Int = Field(default=0, ge=0, le=100_000)
    max_wait_s: Seconds = 30.0
    priorities: dict[Name, Annotated[int, Field(ge=-100, le=100), BeforeValidator(number)]] = {}
    priority_header: bool = False


class BudgetSettings(Strict):
    timezone: str = "UTC"
    max_usd: Usd | None = None
    duration: Duration | None = None
    unpriced: Literal["refuse", "flag"] = "refuse"
    no_max_tokens: Literal["cap", "refuse"] = "cap"
    vendor_tools: Literal["allow", "refuse"] = "allow"
    default_output_tokens: Tokens = 4096


Megabytes = Annotated[int, Field(ge=1, le=65_536), BeforeValidator(number)]


class IdempotencySettings(Strict):
    enabled: bool = True
    keep_s: Seconds = 3600.0
    wait_s: Seconds = 60.0
    max_answer_mb: Megabytes = 1
    max_total_mb: Megabytes = 64


class SinkSettings(Strict):
    """Where finished spend records go besides the ledger; the URL's scheme says how."""

    url: SecretText
    headers: dict[Annotated[str, AfterValidator(valid_header_name)], SecretText] = {}
    secret: SecretField | None = None


class SpendSettings(Strict):
    flush_s: Seconds = 1.0
    retention_days: Annotated[int, Field(ge=32, le=36_500), BeforeValidator(number)] | None = None
    sinks: list[SinkSettings] = []
    sink_queue: Int = Field(default=10_000, ge=1, le=1_000_000)
    write_off_unknown_h: Annotated[float, Field(gt=0, le=24 * 3660), BeforeValidator(number)] | None = None
    store_prompts: bool = False
    prompt_days: Int = Field(default=30, ge=1, le=3660)
    prompt_max_bytes: Int = Field(default=65_536, ge=256, le=4_194_304)


class WebhookSettings(Strict):
    url: SecretText
    secret: SecretField


class RotationSettings(Strict):
    webhook: WebhookSettings | None = None
    grace: Duration = "1d"
    every_s: Seconds = 300.0


class AlertSettings(Strict):
    webhook: SecretText | None = None
    every_s: Seconds = 300.0


class ReportSettings(Strict):
    webhook: SecretText | None = None
    weekly: bool = True
    monthly: bool = True


class ProbeSettings(Strict):
    every_s: Annotated[float, Field(ge=10, le=86_400, allow_inf_nan=False), BeforeValidator(number)] | None = None
    models: list[Name] = []


class JobSettings(Strict):
    """What one of all processes does beside requests; a URL for Slack is a credential."""

    enabled: bool = True
    rotation: RotationSettings = RotationSettings()
    alerts: AlertSettings = AlertSettings()
    reports: ReportSettings = ReportSettings()
    probes: ProbeSettings = ProbeSettings()


class LogSettings(Strict):
    level: Literal["debug", "info", "warning", "error"] = "info"
    access: bool = False
    exchanges: Int = Field(default=5000, ge=0, le=1_000_000)


class UpstreamSettings(Strict):
    ca_file: FilePath | None = None
    client_cert: FilePath | None = None
    client_key: FilePath | None = None
    http2: bool = False
    proxy: SecretText | None = None
    max_idle: Int = Field(default=128, ge=1, le=10_000)
    idle_s: Seconds = 30.0
    fetch_media: bool = True
    media_networks: list[Annotated[str, AfterValidator(valid_network)]] = []


class Config(BaseSettings):
    """Everything `sidecar.yaml` may say. Environment overrides: `SIDECAR_STORE__REDIS_URL=…`."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        arbitrary_types_allowed=True,
        env_prefix="SIDECAR_",
        env_nested_delimiter="__",
    )

    server: ServerSettings = ServerSettings()
    auth: AuthField = AuthSettings()
    store: StoreSettings = StoreSettings()
    models: list[ModelSettings] = []
    routing: RoutingSettings = RoutingSettings()
    limits: LimitSettings = LimitSettings()
    queue: QueueSettings = QueueSettings()
    budget: BudgetSettings = BudgetSettings()
    idempotency: IdempotencySettings = IdempotencySettings()
    spend: SpendSettings = SpendSettings()
    jobs: JobSettings = JobSettings()
    log: LogSettings = LogSettings()
    upstream: UpstreamSettings = UpstreamSettings()

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: Any, init_settings: Any, env_settings: Any, dotenv_settings: Any, file_secret_settings: Any
    ) -> tuple[Any, ...]:
        # The loader merges file and environment itself, so that errors can say which of them is wrong.
        return (init_settings,)
