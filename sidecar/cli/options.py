"""Commands from data: fields of the admin API as options. `keys.py` and `tree.py` name the fields; what has no
option of its own goes by `--set name=JSON`, and `--unset name` takes a value away.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal

import typer

from sidecar.cli.api import DEFAULT_URL, Api, JsonOption, KeyOption, UrlOption, fail

FieldType = Literal["text", "names", "usd", "count", "object", "flag"]
Run = Callable[[Api, dict[str, Any], dict[str, Any], bool], None]
"""`run(api, arguments, fields, as_json)`."""


@dataclass(frozen=True, slots=True)
class Field:
    """`name` as the API has it; `option` if the flag is named otherwise."""

    name: str
    type: FieldType
    help: str
    option: str | None = None

    @property
    def flag(self) -> str:
        return "--" + (self.option or self.name).replace("_", "-")


@dataclass(frozen=True, slots=True)
class Argument:
    name: str
    help: str
    is_many: bool = False
    is_optional: bool = False


POLICY = (
    Field("models", "names", "allowed models, comma-separated; none: all"),
    Field("max_budget", "usd", "USD, such as 5 or 0.25"),
    Field("budget_duration", "text", "1h, 1d, 1w, 1mo, or such as 30d; none: lifetime"),
    Field("soft_budget", "usd", "USD from which on somebody is told"),
    Field("temp_budget_increase", "usd", "USD on top of the budget, until --temp-budget-expiry"),
    Field("temp_budget_expiry", "text", "an instant, such as 2027-01-31T12:00:00Z"),
    Field("rpm_limit", "count", "requests per minute"),
    Field("tpm_limit", "count", "tokens per minute"),
    Field("max_parallel_requests", "count", "requests at a time"),
    Field("model_rpm_limit", "object", "requests per minute by model, such as '{\"gpt-4o\": 10}'"),
    Field("model_tpm_limit", "object", "tokens per minute by model"),
    Field("metadata", "object", "a JSON object"),
)
SHARED_BUDGET = Field("budget_id", "text", "the shared budget it has a part in")
_TYPES: dict[str, Any] = {"count": int | None, "flag": bool | None}


def add_command(
    app: typer.Typer,
    name: str,
    says: str,
    run: Run,
    *,
    arguments: Sequence[Argument] = (),
    fields: Sequence[Field] = (),
    can_set: bool = False,
    can_unset: bool = False,
) -> None:
    """One command of `app`: positional `arguments`, an option per field, then where the gateway is."""
    parameters: list[inspect.Parameter] = []

    def parameter(name: str, annotation: Any, default: Any) -> None:
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(name, kind, default=default, annotation=annotation))

    for argument in arguments:
        info = typer.Argument(metavar=argument.name.upper(), help=argument.help)
        if argument.is_many:
            parameter(argument.name, Annotated[list[str], info], inspect.Parameter.empty)
        elif argument.is_optional:
            parameter(argument.name, Annotated[str | None, info], None)
        else:
            parameter(argument.name, Annotated[str, info], inspect.Parameter.empty)
    for field in fields:
        flags = f"{field.flag}/--no-{field.flag[2:]}" if field.type == "flag" else field.flag
        option = typer.Option(flags, help=field.help, min=0 if field.type == "count" else None)
        parameter(field.name, Annotated[_TYPES.get(field.type, str | None), option], None)
    if can_set:
        option = typer.Option("--set", help="any other field of the API, as name=JSON; repeatable")
        parameter("set_", Annotated[list[str] | None, option], None)
    if can_unset:
        option = typer.Option("--unset", help="take a field's value away; repeatable")
        parameter("unset_", Annotated[list[str] | None, option], None)
    parameter("url", UrlOption, DEFAULT_URL)
    parameter("master_key", KeyOption, None)
    parameter("as_json", JsonOption, False)

    def command(**given: Any) -> None:
        values = {
            field.name: value
            for field in fields
            if given[field.name] is not None and (value := _value(field, given[field.name])) is not None
        }
        for text in given.get("set_") or ():
            field_name, value = _assignment(text)
            values[field_name] = value
        values |= dict.fromkeys(given.get("unset_") or ())
        api = Api(given["url"], given["master_key"])
        run(api, {a.name: given[a.name] for a in arguments}, values, given["as_json"])

    command.__doc__ = says
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    app.command(name)(command)


def _value(field: Field, given: Any) -> Any:
    if field.type == "names":
        return [name.strip() for name in given.split(",") if name.strip()]
    if field.type == "usd":
        return _usd(given, field.flag)
    if field.type == "object":
        return _json_object(given, field.flag)
    return given


def _usd(text: str, flag: str) -> str:
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        fail(f"{flag} must be an amount of USD, such as 5 or 0.25", 2)
    return f"{amount:f}"


def _json_object(text: str, flag: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        fail(f"""{flag} must be a JSON object, such as '{{"project": "x"}}'""", 2)
    return value


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        fail("--set must be name=JSON, such as soft_budget=5", 2)
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
