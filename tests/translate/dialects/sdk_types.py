"""A vendor's SDK types read strictly: every key must be one they know, every required one there, every word one of
those listed. The SDKs themselves are lenient, so that old ones live with new servers."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pydantic


def assert_fits(kind: Any, value: Any, where: str = "") -> None:
    """Fails, naming the place, if `value` is not what the annotation says."""
    problem = misfit(kind, value, where)
    assert problem is None, problem


def misfit(kind: Any, value: Any, where: str) -> str | None:
    origin = get_origin(kind)
    if origin is Annotated:
        return misfit(get_args(kind)[0], value, where)
    if kind is Any or kind is object:
        return None
    if origin in (Union, types.UnionType):
        options = get_args(kind)
        if any(get_origin(option) is Literal for option in options):  # an open list of words, closed here
            options = tuple(option for option in options if option is not Any)
        problems = [misfit(option, value, where) for option in options]
        return None if None in problems else max(map(str, problems), key=len)
    if origin is Literal:
        return None if value in get_args(kind) else f"{where}: {value!r} is none of {get_args(kind)}"
    if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
        return _model(kind, value, where)
    if origin in (list, Sequence):
        if not isinstance(value, list):
            return f"{where}: no list"
        return next(filter(None, (misfit(get_args(kind)[0], item, f"{where}[]") for item in value)), None)
    if origin in (dict, Mapping):
        return None if isinstance(value, dict) else f"{where}: no object"
    if kind is float:
        kind = (int, float)
    if kind is type(None):
        return None if value is None else f"{where}: not null"
    if isinstance(value, bool) and kind is not bool:
        return f"{where}: a boolean"
    return None if isinstance(value, kind) else f"{where}: {value!r:.40} is no {kind}"


def _model(kind: type[pydantic.BaseModel], value: Any, where: str) -> str | None:
    if not isinstance(value, dict):
        return f"{where}: no object"
    known = {field.alias or name: field for name, field in kind.model_fields.items()}
    if unknown := value.keys() - known.keys():
        return f"{where}: {kind.__name__} has no {sorted(unknown)}"
    if lacking := {name for name, field in known.items() if field.is_required()} - value.keys():
        return f"{where}: {kind.__name__} lacks {sorted(lacking)}"
    return next(
        filter(None, (misfit(known[name].annotation, item, f"{where}.{name}") for name, item in value.items())), None
    )
