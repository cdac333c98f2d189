"""The OpenAPI document of the management API, made from the same table the paths are made from.

https://spec.openapis.org/oas/v3.1.0. Rule: what the document allows is taken, what it forbids is refused; the tests
send both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sidecar import __version__
from sidecar.admin.access import callers_of
from sidecar.admin.endpoint import Endpoint
from sidecar.admin.fields import Query

_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
_REFUSALS = {
    "400": "A field or the body is wrong; `param` names it.",
    "401": "No credential, or an unknown one.",
    "403": "The caller may not do this, or not so.",
    "404": "Something named does not exist, or not for this caller.",
    "409": "The name is taken, or it is in use.",
    "413": "The body is larger than 1 MB.",
    "503": "The database or the ledger does not answer.",
}


def document(table: Iterable[Endpoint]) -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Any] = {"Error": _ERROR}
    for endpoint in table:
        words = endpoint.path.translate({ord("/"): "_", ord("{"): None, ord("}"): None})
        operation = paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = {
            "operationId": endpoint.method.lower() + words,
            "tags": [endpoint.path.split("/")[1]],
            "summary": endpoint.says,
            "description": "For: " + ", ".join(callers_of(endpoint.method, endpoint.others)) + ".",
            "security": [{"key": []}],
            "responses": {
                "200": {
                    "description": "Done.",
                    "content": {"application/json": {"schema": {"type": "object"}}},
                },
                **{
                    status: {
                        "description": text,
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
                    }
                    for status, text in _REFUSALS.items()
                },
            },
        }
        schema = endpoint.model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        fields: dict[str, Any] = schema.get("properties", {})
        required = set(schema.get("required", ()))
        in_path = endpoint.path_fields
        parameters = [_parameter(name, fields.pop(name), "path", required=True) for name in in_path]
        if issubclass(endpoint.model, Query):
            parameters += [_parameter(name, fields[name], "query", required=name in required) for name in fields]
        else:
            schema["required"] = sorted(required.difference(in_path))
            name = endpoint.model.__name__ + ("InPath" if in_path else "")
            schemas[name] = schema
            operation["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}},
            }
        if parameters:
            operation["parameters"] = parameters
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Management API of the gateway",
            "version": __version__,
            "description": "Keys, users, teams, organizations, end users, budgets, tags, models, spend, audit.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The master key, a virtual key or a token of an identity provider.",
                }
            },
        },
    }


def _parameter(name: str, schema: Mapping[str, Any], place: str, *, required: bool) -> dict[str, Any]:
    return {"name": name, "in": place, "required": required, "schema": _without_null(schema)}


def _without_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter is there or not: it has no null."""
    kept = {key: value for key, value in schema.items() if key not in ("title", "default")}
    if schema.get("default") is not None:
        kept["default"] = schema["default"]
    if "anyOf" in kept:
        options = [option for option in kept.pop("anyOf") if option != {"type": "null"}]
        kept |= options[0] if len(options) == 1 else {"anyOf": options}
    return kept
