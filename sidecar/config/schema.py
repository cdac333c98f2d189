"""The JSON Schema of `sidecar.yaml` for editors: what pydantic knows, and `${…}` wherever a value may stand."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from sidecar.config.models import Config

_REFERENCE = {"type": "string", "pattern": r"\$\{[^}]+\}", "description": "${NAME}, ${NAME:-default}, ${file:/path}"}
_ABOUT = ("title", "description", "default", "examples")


class _Generator(GenerateJsonSchema):
    ignored_warning_kinds = {"non-serializable-default", "skipped-choice"}


def json_schema() -> dict[str, Any]:
    """Draft 2020-12."""
    schema = Config.model_json_schema(mode="validation", schema_generator=_Generator)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "sidecar.yaml"
    schema["$defs"]["Reference"] = _REFERENCE
    for part in [schema, *schema["$defs"].values()]:
        for name, field in part.get("properties", {}).items():
            part["properties"][name] = _with_reference(field)
    return schema


def _with_reference(field: dict[str, Any]) -> dict[str, Any]:
    """The same, where every scalar may also be a `${…}`. A string without conditions admits one anyway."""
    options = _options(field)
    about = {k: field[k] for k in _ABOUT if k in field}
    if any(_excludes_reference(option) for option in options):
        return {**about, "anyOf": [*options, {"$ref": "#/$defs/Reference"}]}
    return {**about, **options[0]} if len(options) == 1 else {**about, "anyOf": options}


def _options(field: dict[str, Any]) -> list[dict[str, Any]]:
    """Unions flattened, lists and mappings treated inside."""
    nested = field.get("anyOf") or field.get("oneOf")
    if nested is not None:
        return [leaf for option in nested for leaf in _options(option)]
    leaf = {k: v for k, v in field.items() if k not in _ABOUT}
    for key in ("items", "additionalProperties"):
        if isinstance(leaf.get(key), dict):
            leaf[key] = _with_reference(leaf[key])
    return [leaf]


def _excludes_reference(leaf: dict[str, Any]) -> bool:
    if leaf.get("type") == "string":
        return not set(leaf) <= {"type", "minLength", "maxLength"}
    return leaf.get("type") in ("integer", "number", "boolean")
