"""Frozen values every layer shares: who calls, what may be called, what it used and what it cost.

Layer 0: standard library only, no behaviour beyond small pure methods. Money is integer nano-dollars (`*_nano`) or
`Decimal` USD (`*_usd`); durations are seconds (`*_s`); instants are Unix seconds (`*_at`). `None` means unknown,
never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from typing import Any, Literal, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def value(cls: type[T]) -> type[T]:
    """A frozen dataclass to the type checker; at run time one without the frozen `__init__`, which costs three times
    as much. For the values made on every request."""
    return dataclass(slots=True, unsafe_hash=True)(cls)


NANO = 1_000_000_000

Headers = list[tuple[bytes, bytes]]


class Secret:
    """A string that never prints itself. `reveal()` gives the value; use it only where bytes leave the process."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret('***')"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __reduce__(self) -> Any:
        raise TypeError("a Secret is not pickled")


@value
class Usage:
    """Disjoint token classes as the vendor counted them; a class the vendor does not tell apart is `None`."""

    input: int | None = None
    cached_input: int | None = None
    cache_write_5m: int | None = None
    cache_write_1h: int | None = None
    output: int | None = None
    reasoning: int | None = None
    audio_input: int | None = None
    audio_output: int | None = None
    image_input: int | None = None
    image_output: int | None = None

    @property
    def is_known(self) -> bool:
        return self.input is not None or self.output is not None

    @property
    def total_input(self) -> int:
        return (
            (self.input or 0)
            + (self.cached_input or 0)
            + (self.cache_write_5m or 0)
            + (self.cache_write_1h or 0)
            + (self.audio_input or 0)
            + (self.image_input or 0)
        )

    @property
    def total_output(self) -> int:
        return (self.output or 0) + (self.reasoning or 0) + (self.audio_output or 0) + (self.image_output or 0)

    @property
    def total(self) -> int:
        return self.total_input + self.total_output

    def as_dict(self) -> dict[str, int]:
        """The known classes only, by name."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}


UNKNOWN_USAGE = Usage()


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps of one scope; `None` is no cap. `rpm`/`tpm` roll over 60 s."""

    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None

    @property
    def is_empty(self) -> bool:
        return self.rpm is None and self.tpm is None and self.concurrency is None


@dataclass(frozen=True, slots=True)
class Budget:
    """A money cap over a period. `duration` is `1h 1d 1w 1mo` (calendar), any other duration such as `30d`
    (anchored at `anchor_at`), or `None` for the lifetime of its owner. `extra_nano` is allowed on top until
    `extra_until_at`."""

    max_nano: int
    duration: str | None = None
    anchor_at: float = 0.0
    extra_nano: int = 0
    extra_until_at: float = 0.0


ALL_MODELS = frozenset({"*", "all-proxy-models", "all-team-models"})
"""Patterns that admit every model. `all-team-models` on a key: whatever its team may call, which is checked anyway."""
NO_MODELS = "no-default-models"


def model_matches(patterns: tuple[str, ...], model: str, access_groups: frozenset[str] = frozenset()) -> bool:
    """True if a list of allowed models admits `model`: exact, a prefix wildcard such as `openai/*`, the name of an
    access group the model is in, or one of `ALL_MODELS`. An empty list admits all, `NO_MODELS` none."""
    if not patterns or model in patterns:
        return model != NO_MODELS
    for pattern in patterns:
        if pattern in ALL_MODELS or pattern in access_groups:
            return True
        if pattern.endswith("*") and model.startswith(pattern[:-1]):
            return True
    return False


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever stands above a key and shares limits and budgets: `kind` is organization, team, member (a user in a team;
    its id is `identity.row.member_id`'s), user, end_user or tag. Every principal of a caller has to admit a request."""

    kind: str
    principal_id: str
    models: tuple[str, ...] = ()
    limits: Limits = Limits()
    model_limits: Mapping[str, Limits] = field(default_factory=dict)
    budgets: tuple[Budget, ...] = ()
    is_blocked: bool = False
    role: str | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    stores_prompts: bool = True
    """False: what it asks and is answered is never stored, whatever `spend.store_prompts` says."""


Role = Literal["proxy_admin", "proxy_admin_viewer", "internal_user", "internal_user_viewer"]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who calls. Built by `identity/` from a virtual key (or the master key), cached, shared by reference."""

    key_hash: str
    key_alias: str | None = None
    key_name: str = ""
    user_id: str | None = None
    team_id: str | None = None
    organization_id: str | None = None
    end_user_id: str | None = None
    models: tuple[str, ...] = ()
    limits: Limits = Limits()
    model_limits: Mapping[str, Limits] = field(default_factory=dict)
    budgets: tuple[Budget, ...] = ()
    principals: tuple[Principal, ...] = ()
    """Who stands above, from the team up; shared by all keys below them."""
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    expires_at: float | None = None
    is_blocked: bool = False
    role: Role | None = None
    """What the management API lets this caller do; `None`: nothing."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """What this caller calls models, its team's names included -> what they are for everybody. Followed once."""
    cache: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """Derived values of other layers (scopes, claims) that live exactly as long as this identity."""

    @property
    def is_admin(self) -> bool:
        return self.role == "proxy_admin"

    @property
    def has_budget(self) -> bool:
        """Its own, or of somebody above it."""
        return bool(self.budgets) or any(p.budgets for p in self.principals)

    def may_call(self, model: str, access_groups: frozenset[str] = frozenset()) -> bool:
        """Key and everybody above it admit `model`, which is in `access_groups`."""
        if not model_matches(self.models, model, access_groups):
            return False
        return all(model_matches(p.models, model, access_groups) for p in self.principals if p.models)


PriceStatus = Literal["priced", "free", "unpriced"]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """`first_byte_s` applies to streams only; an unstreamed answer has `total_s`."""

    connect_s: float = 5.0
    first_byte_s: float = 60.0
    gap_s: float = 60.0
    total_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Deployment:
    """One callable place: provider + upstream model + credential + base URL. Made at config load, shared, never
    picked by anything a client sends. `base_url` has no trailing slash. `price` is a `spend.cost.Price`."""

    deployment_id: str
    group: str
    provider: str
    model: str
    base_url: str
    api_key: Secret | None = None
    weight: float = 1.0
    order: int = 1
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()
    price: Any = None
    max_output_tokens: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    drop_params: bool = False
    allowed_params: frozenset[str] = frozenset()
    headers: tuple[tuple[bytes, bytes], ...] = ()
    access_groups: tuple[str, ...] = ()
    """Names by which lists of allowed models may mean this deployment's group."""
    tags: tuple[str, ...] = ()
    """If any: it serves only requests that carry one of them."""
    options: Mapping[str, str] = field(default_factory=dict)
    """What the provider's path, signature or token needs besides a key: region, project, api_version …"""
    credentials: Mapping[str, Secret] = field(default_factory=dict)
    """Where one key is not enough: aws_secret_access_key, client_secret …"""
    called: str = ""
    """By which name clients call it, if its group is a wildcard's."""


Outcome = Literal["ok", "refused", "provider_error", "incomplete", "client_left", "gateway_error"]


@value
class SpendRecord:
    """Immutable row for one attempt of one exchange; failures and abandoned ones included.

    Ledger key is (exchange_id, attempt, revision). `status`: `settled` (usage by the vendor), `estimated` (usage
    counted by us, labelled), `unknown` (the provider may have billed it: held cost), `unpriced`, `free`, `not_billed`.
    A correction is a row with revision > 0 and signed differences in the money and token fields.
    """

    exchange_id: str
    attempt: int
    revision: int
    at: float
    key_hash: str
    status: str
    outcome: str
    cost_nano: int
    group: str = ""
    deployment_id: str = ""
    provider: str = ""
    model: str = ""
    key_alias: str | None = None
    user_id: str | None = None
    team_id: str | None = None
    organization_id: str | None = None
    end_user_id: str | None = None
    request_id: str | None = None
    usage: Usage = UNKNOWN_USAGE
    http_status: int = 0
    is_stream: bool = False
    duration_ms: int = 0
    first_byte_ms: int | None = None
    dropped: tuple[str, ...] = ()
    budget_keys: tuple[str, ...] = ()
    """The budget windows this cost was settled on, so counters can be re-derived from the ledger."""
    tags: tuple[str, ...] = ()
    began_at: float = 0.0
    """When the attempt itself began, for sinks; 0 in rows read back, since the ledger has the exchange's `at` only."""


def usd_to_nano(usd: Decimal) -> int:
    """Nano-dollars, rounded once, half-even."""
    return int((usd * NANO).to_integral_value(rounding="ROUND_HALF_EVEN"))


def nano_to_usd(nano: int) -> Decimal:
    return Decimal(nano).scaleb(-9)


def format_usd(nano: int) -> str:
    """Exact, without exponent or trailing noise: `0.00123`, `0`."""
    whole, rest = divmod(abs(nano), NANO)
    text = f"{whole}.{rest:09d}".rstrip("0") if rest else str(whole)
    return "-" + text if nano < 0 else text
