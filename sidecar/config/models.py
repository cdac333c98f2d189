"""The settings, strict: an unknown key is an error. `load.py` reads them, `build.py` turns them into ready values.

Configuration objects stop at layer 4: no middleware ever sees one. Money is USD, durations are seconds unless a key
says otherwise. No message of a validator repeats the value: it may be a secret that stands in the wrong place.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    WithJsonSchema,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from sidecar.limits.windows import parse_duration
from sidecar.types import Secret

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HOST = re.compile(r"[A-Za-z0-9_.:%\[\]-]+")
_OUR_HEADERS = frozenset(
    {"connection", "content-length", "host", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding",
     "upgrade"}
)  # fmt: skip


def _credential(value: Any) -> Secret:
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be text and not empty; write ${NAME} or ${file:/path} to keep it out of the file")
    if any(not 33 <= ord(c) <= 126 for c in value.strip()):
        raise ValueError("holds a character no credential has (a space, a control or non-ASCII one); copy it again")
    return Secret(value.strip())


def _text_secret(value: Any) -> Secret:
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be text and not empty; remove the line if it is not needed")
    if any(ord(c) < 32 or ord(c) == 127 or ord(c) > 255 for c in value.strip()):
        raise ValueError("holds a control or non-Latin-1 character; write such ones percent-encoded")
    return Secret(value.strip())


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def _usd(value: Any) -> Any:
    # YAML floats are read as text, so that 0.1 stays 0.1.
    value = _number(value)
    return Decimal(str(value)) if isinstance(value, (int, float)) else value


def _duration(value: str) -> str:
    try:
        parse_duration(value)
    except ValueError:
        raise ValueError("not a duration; write a number and s, m, h, d or w (such as 30d), or 1mo") from None
    return value


def _name(value: str) -> str:
    if not 1 <= len(value) <= 256 or any(not 33 <= ord(c) <= 126 for c in value):
        raise ValueError("must be 1 to 256 printable ASCII characters without spaces")
    return value


def _host(value: str) -> str:
    if not _HOST.fullmatch(value):
        raise ValueError("must be an address or a host name, such as 127.0.0.1; the port stands in server.port")
    return value


def _header_name(value: str) -> str:
    if not _HEADER_NAME.fullmatch(value):
        raise ValueError("not a header name; use letters, digits and '-'")
    if value.lower() in _OUR_HEADERS:
        raise ValueError("this header is set by the transport; remove it")
    return value


def _base_url(value: str) -> str:
    wrong = "must be an http(s) URL without query, such as https://api.openai.com/v1"
    try:
        url = urlsplit(value)
        _ = url.port
    except ValueError:
        raise ValueError(wrong) from None
    if "@" in url.netloc:
        raise ValueError("must not hold a credential; use api_key")
    if url.scheme not in ("http", "https") or not url.hostname or "?" in value or "#" in value:
        raise ValueError(wrong)
    if any(not 33 <= ord(c) <= 126 for c in value):
        raise ValueError("holds a space, a control or a non-ASCII character; write it percent-encoded")
    return value.rstrip("/")


def _json_value(value: Any) -> Any:
    """What JSON can say; a date or a `.nan` would fail at the first request only."""
    if isinstance(value, dict):
        return {str(k): _json_value(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_json_value(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        raise ValueError("holds a number JSON does not have; write a finite one")
    if value is not None and not isinstance(value, (str, int, float, bool)):
        raise ValueError("holds a value JSON does not have; quote it")
    return value


def _word_or_mapping(word: str, example: str) -> tuple[Any, ...]:
    """For a field that is one word or a mapping: exactly one message if it is neither."""

    def check(value: Any) -> Any:
        if value != word and not isinstance(value, (dict, BaseModel)):
            raise ValueError(f"must be '{word}' or a mapping such as {example}")
        return value

    return Discriminator(lambda value: word if value == word else "mapping"), BeforeValidator(check)


SecretField = Annotated[Secret, PlainValidator(_credential), WithJsonSchema({"type": "string", "minLength": 1})]
SecretText = Annotated[Secret, PlainValidator(_text_secret), WithJsonSchema({"type": "string", "minLength": 1})]
Duration = Annotated[str, AfterValidator(_duration), Field(json_schema_extra={"examples": ["1d", "1mo", "30d"]})]
# The constraint stands before the validator, else the JSON Schema loses it.
Usd = Annotated[Decimal, Field(ge=0, le=9_000_000, decimal_places=9, allow_inf_nan=False), BeforeValidator(_usd)]
Rate = Annotated[Decimal, Field(ge=0, le=1_000_000, decimal_places=12, allow_inf_nan=False), BeforeValidator(_usd)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False), BeforeValidator(_number)]
Int = Annotated[int, BeforeValidator(_number)]
Count = Annotated[int, Field(ge=0, le=10**12), BeforeValidator(_number)]
Tokens = Annotated[int, Field(ge=1, le=10_000_000), BeforeValidator(_number)]
Name = Annotated[str, AfterValidator(_name)]
FilePath = Annotated[str, Field(min_length=1, max_length=4096)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, arbitrary_types_allowed=True)


class ServerSettings(_Strict):
    host: Annotated[str, AfterValidator(_host)] = "127.0.0.1"
    port: Int = Field(default=4000, ge=0, le=65535)
    workers: Int = Field(default=1, ge=1, le=64)
    grace_s: Seconds = 30.0


class AuthSettings(_Strict):
    master_key: SecretField | None = None
    key_cache_s: Seconds = 60.0
    end_user_header: Annotated[str, AfterValidator(_header_name)] | None = None
    end_user_budget_id: Name | None = None


class StoreSettings(_Strict):
    database_url: SecretText = Secret("sqlite:///.sidecar/sidecar.db")
    redis_url: SecretText | None = None
    journal_dir: FilePath = ".sidecar/journal"
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


PriceField = Annotated[
    Annotated[PriceSettings, Tag("mapping")] | Annotated[Literal["free"], Tag("free")],
    *_word_or_mapping("free", "{input: 3, output: 15}"),
]
AuthField = Annotated[
    Annotated[AuthSettings, Tag("mapping")] | Annotated[Literal["none"], Tag("none")],
    *_word_or_mapping("none", '{master_key: "${SIDECAR_MASTER_KEY}"}'),
]


class DeploymentSettings(_Strict):
    provider: Name
    model: Name
    api_key: SecretField | None = None
    base_url: Annotated[str, AfterValidator(_base_url)] | None = None
    allow_plain_http: bool = False
    region: Name | None = None
    project: Name | None = None
    api_version: Name | None = None
    aws_access_key_id: SecretField | None = None
    aws_secret_access_key: SecretField | None = None
    aws_session_token: SecretField | None = None
    weight: Annotated[float, BeforeValidator(_number)] = Field(default=1.0, gt=0, le=1_000_000, allow_inf_nan=False)
    order: Int = Field(default=1, ge=1, le=1000)
    limits: LimitSettings = LimitSettings()
    price: PriceField | None = None
    timeouts: TimeoutSettings = TimeoutSettings()
    max_output_tokens: Tokens | None = None
    params: Annotated[dict[str, Any], AfterValidator(_json_value)] = {}
    headers: dict[Annotated[str, AfterValidator(_header_name)], SecretText] = {}
    drop_params: bool = False


class ModelSettings(_Strict):
    name: Name
    access_groups: list[Name] = []
    deployments: list[DeploymentSettings] = Field(min_length=1)


class RoutingSettings(_Strict):
    strategy: Literal["weighted"] = "weighted"
    retries: Int = Field(default=2, ge=0, le=10)
    cooldown_s: Seconds = 5.0
    fallbacks: dict[Name, list[Name]] = {}
    aliases: dict[Name, Name] = {}


class BudgetSettings(_Strict):
    timezone: str = "UTC"
    max_usd: Usd | None = None
    duration: Duration | None = None
    unpriced: Literal["refuse", "flag"] = "refuse"
    no_max_tokens: Literal["cap", "refuse"] = "cap"
    default_output_tokens: Tokens = 4096


class SpendSettings(_Strict):
    flush_s: Seconds = 1.0
    jsonl: FilePath | None = None


class LogSettings(_Strict):
    level: Literal["debug", "info", "warning", "error"] = "info"
    access: bool = False


class UpstreamSettings(_Strict):
    ca_file: FilePath | None = None
    client_cert: FilePath | None = None
    client_key: FilePath | None = None
    http2: bool = False
    proxy: SecretText | None = None
    max_idle: Int = Field(default=128, ge=1, le=10_000)
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
    auth: AuthField = AuthSettings()
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
