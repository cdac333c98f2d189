"""The settings, strict: an unknown key is an error. `load.py` reads them, `build.py` turns them into ready values.

Configuration objects stop at layer 4: no middleware ever sees one. Money is USD, durations are seconds unless a key
says otherwise.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_settings import BaseSettings, SettingsConfigDict

from sidecar.limits.windows import parse_duration
from sidecar.types import Secret


def _secret(value: Any) -> Secret:
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be a non-empty string; use ${NAME} or ${file:/path} to keep it out of the file")
    if any(ord(c) < 33 or ord(c) > 126 for c in value.strip()):
        raise ValueError("holds characters that no credential has")
    return Secret(value.strip())


def _duration(value: str) -> str:
    parse_duration(value)
    return value


def _usd(value: Any) -> Any:
    # YAML floats are read as text, so that 0.1 stays 0.1.
    return Decimal(str(value)) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


SecretField = Annotated[Secret, PlainValidator(_secret), WithJsonSchema({"type": "string"})]
Duration = Annotated[str, AfterValidator(_duration)]
Usd = Annotated[Decimal, BeforeValidator(_usd), Field(ge=0, le=9_000_000, allow_inf_nan=False)]
Rate = Annotated[Decimal, BeforeValidator(_usd), Field(ge=0, le=1_000_000, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=10**12)]
Name = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[\x21-\x7e]+$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, arbitrary_types_allowed=True)


class ServerSettings(_Strict):
    host: str = "127.0.0.1"
    port: int = Field(default=4000, ge=0, le=65535)
    workers: int = Field(default=1, ge=1, le=64)
    grace_s: Seconds = 30.0


class AuthSettings(_Strict):
    master_key: SecretField | None = None
    key_cache_s: Seconds = 60.0


class StoreSettings(_Strict):
    database_url: SecretField = Secret("sqlite:///.sidecar/sidecar.db")
    redis_url: SecretField | None = None
    journal_dir: str = ".sidecar/journal"
    durability: Literal["process", "disk"] = "process"
    on_failure: Literal["closed", "open"] = "closed"
    deadline_s: Seconds = 0.5


class LimitSettings(_Strict):
    rpm: Count | None = None
    tpm: Count | None = None
    concurrency: Count | None = None


class PriceSettings(_Strict):
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


class TimeoutSettings(_Strict):
    connect_s: Seconds = 5.0
    first_byte_s: Seconds = 60.0
    gap_s: Seconds = 60.0
    total_s: Seconds = 600.0


class DeploymentSettings(_Strict):
    provider: Name
    model: Name
    api_key: SecretField | None = None
    base_url: str | None = None
    weight: float = Field(default=1.0, gt=0, le=1_000_000, allow_inf_nan=False)
    order: int = Field(default=1, ge=1, le=1000)
    limits: LimitSettings = LimitSettings()
    price: PriceSettings | Literal["free"] | None = None
    timeouts: TimeoutSettings = TimeoutSettings()
    max_output_tokens: int | None = Field(default=None, ge=1, le=10_000_000)
    params: dict[str, Any] = {}
    headers: dict[str, str] = {}
    drop_params: bool = False


class ModelSettings(_Strict):
    name: Name
    deployments: list[DeploymentSettings] = Field(min_length=1)


class RoutingSettings(_Strict):
    strategy: Literal["weighted"] = "weighted"
    retries: int = Field(default=2, ge=0, le=10)
    cooldown_s: Seconds = 5.0
    fallbacks: dict[Name, list[Name]] = {}
    aliases: dict[Name, Name] = {}


class BudgetSettings(_Strict):
    timezone: str = "UTC"
    max_usd: Usd | None = None
    duration: Duration | None = None
    unpriced: Literal["refuse", "flag"] = "refuse"
    no_max_tokens: Literal["cap", "refuse"] = "cap"
    default_output_tokens: int = Field(default=4096, ge=1, le=10_000_000)


class SpendSettings(_Strict):
    flush_s: Seconds = 1.0
    jsonl: str | None = None


class LogSettings(_Strict):
    level: Literal["debug", "info", "warning", "error"] = "info"
    access: bool = False


class UpstreamSettings(_Strict):
    ca_file: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    http2: bool = False
    proxy: SecretField | None = None
    max_idle: int = Field(default=128, ge=1, le=10_000)
    idle_s: Seconds = 30.0


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
    auth: AuthSettings | Literal["none"] = AuthSettings()
    store: StoreSettings = StoreSettings()
    models: list[ModelSettings] = []
    routing: RoutingSettings = RoutingSettings()
    limits: LimitSettings = LimitSettings()
    budget: BudgetSettings = BudgetSettings()
    spend: SpendSettings = SpendSettings()
    log: LogSettings = LogSettings()
    upstream: UpstreamSettings = UpstreamSettings()

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: Any, init_settings: Any, env_settings: Any, dotenv_settings: Any, file_secret_settings: Any
    ) -> tuple[Any, ...]:
        # The loader merges file and environment itself, so that errors can say which of them is wrong.
        return (init_settings,)
