"""The JSON Schema of `sidecar.yaml` for editors: what pydantic knows, and `${…}` wherever a value may stand."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from sidecar.config.models import Config

_REFERENCE = {"type": "string", "pattern": r"\$\{[^}]+\}"}


class _Generator(GenerateJsonSchema):
    ignored_warning_kinds = {"non-serializable-default", "skipped-choice"}  # noqa: RUF012 - a default may be a Secret


def json_schema() -> dict[str, Any]:
    """Draft 2020-12."""
    schema = Config.model_json_schema(mode="validation", schema_generator=_Generator)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "sidecar.yaml"
    schema["$defs"]["Reference"] = _REFERENCE
    for part in [schema, *schema["$defs"].values()]:
        for name, field in part.get("properties", {}).items():
            part["properties"][name] = _or_reference(field)
    return schema


def _or_reference(field: dict[str, Any]) -> dict[str, Any]:
    if field.get("type") not in ("integer", "number", "boolean") and "anyOf" not in field:
        return field
    outer: dict[str, Any] = {k: field[k] for k in ("title", "description", "default") if k in field}
    inner = {k: v for k, v in field.items() if k not in outer}
    options = inner["anyOf"] if set(inner) == {"anyOf"} else [inner]
    return {**outer, "anyOf": [*options, {"$ref": "#/$defs/Reference"}]}
