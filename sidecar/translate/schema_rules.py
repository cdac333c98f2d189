"""Which JSON Schema each provider takes, as data for `schema.rewrite`; every row cites the vendor's page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


@dataclass(frozen=True, slots=True, eq=False)
class SchemaRules:
    """A provider's dialect of JSON Schema. The defaults take everything."""

    vendor: str
    keywords: frozenset[str] | None = None
    """Keywords that may be sent; `None`: all but `$schema` and the like."""
    root_keywords: frozenset[str] | None = None
    """Keywords that may be sent at the root, if these are fewer."""
    keeps_refs: bool = False
    """`$ref` and `$defs` are sent; else every reference is written out. References always end up in `$defs`."""
    takes_cycles: bool = False
    """A reference may lead back to itself (with `keeps_refs`)."""
    takes_ref_siblings: bool = True
    nulls: Literal["type", "nullable", "no"] = "type"
    """`{"type": [T, "null"]}`, OpenAPI's `nullable: true`, or not at all."""
    takes_type_lists: bool = True
    has_upper_types: bool = False
    takes_any_of_siblings: bool = True
    enums: Literal["any", "scalar", "string"] = "any"
    """Which values `enum` may hold. `string`: only non-empty ones, numbers as their text."""
    formats: Mapping[str, frozenset[str]] | None = None
    """Type → values of `format`; `None`: any."""
    takes_anchors: bool = True
    """`^`, `$` and look-ahead in patterns."""
    closes_objects: bool = False
    """Every object gets `additionalProperties: false`."""
    needs_items: bool = False
    needs_required: bool = False
    """Every object with properties has to require one."""
    max_min_items: int | None = None
    orders_properties: bool = False
    """Every object gets Gemini's `propertyOrdering`."""


_STRING_FORMATS = words("date-time time date duration email hostname uri ipv4 ipv6 uuid")

GEMINI = SchemaRules(
    vendor="gemini",
    keywords=words(
        """type format title description nullable enum items minItems maxItems properties required minProperties
        maxProperties minimum maximum minLength maxLength pattern anyOf propertyOrdering default example"""
    ),
    nulls="nullable",
    takes_type_lists=False,
    has_upper_types=True,
    takes_any_of_siblings=False,
    enums="string",
    formats={
        "string": words("enum date-time"),
        "integer": words("int32 int64"),
        "number": words("float double"),
    },
    needs_items=True,
    orders_properties=True,
)
"""The `Schema` object of `parameters` and `responseSchema`, a subset of OpenAPI 3.0. https://ai.google.dev/api/caching#Schema
Known from its validator: empty enum values, arrays without items, a union with siblings and other string formats are
refused."""

GEMINI_JSON = SchemaRules(
    vendor="gemini",
    keywords=words(
        """type format title description enum items prefixItems minItems maxItems minimum maximum anyOf oneOf properties
        additionalProperties required propertyOrdering"""
    ),
    keeps_refs=True,
    takes_ref_siblings=False,
    enums="scalar",
)
"""`parametersJsonSchema` and `responseJsonSchema` (2.0 and later). Cycles are taken in properties that are not required
only, and unrolled there; so we unroll them all ourselves. `$ref` stands alone. The keywords are listed at
https://ai.google.dev/api/generate-content#FIELDS.response_json_schema"""

COHERE_TOOL = SchemaRules(vendor="cohere")
"""Tool parameters without `strict_tools`: they are put into the prompt. References are written out, which the template
does not do. https://docs.cohere.com/docs/tool-use-parameter-types"""

COHERE = SchemaRules(
    vendor="cohere",
    keywords=words("type format description title enum const items properties required pattern default"),
    nulls="no",
    takes_type_lists=False,
    formats={"string": words("date-time uuid date time")},
    takes_anchors=False,
    needs_required=True,
)
"""`response_format.json_schema`, and tools with `strict_tools`. https://docs.cohere.com/docs/structured-outputs#unsupported-schema-features"""

BEDROCK = SchemaRules(vendor="bedrock")
"""`toolSpec.inputSchema.json` of Converse: any JSON Schema, but not every model behind it follows references.
https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ToolInputSchema.html"""

BEDROCK_NOVA = SchemaRules(vendor="bedrock", root_keywords=words("type properties required"))
"""Amazon Nova takes three keywords at the root. https://docs.aws.amazon.com/nova/latest/userguide/tool-use-definition.html"""

CLAUDE_STRICT = SchemaRules(
    vendor="anthropic",
    keywords=words(
        """type format description title enum const items properties required additionalProperties anyOf allOf default
        pattern minItems"""
    ),
    keeps_refs=True,
    enums="scalar",
    formats={"string": _STRING_FORMATS},
    closes_objects=True,
    max_min_items=1,
)
"""`output_config.format` and tools with `strict`: closed objects, no cycles, no ranges or lengths.
https://platform.claude.com/docs/en/build-with-claude/structured-outputs#json-schema-limitations"""

BEDROCK_STRICT = SchemaRules(
    vendor="bedrock",
    keywords=CLAUDE_STRICT.keywords,
    enums="scalar",
    formats=CLAUDE_STRICT.formats,
    closes_objects=True,
    max_min_items=1,
)
"""`outputConfig.textFormat` (there the schema is a string) and `toolSpec.strict`.
https://docs.aws.amazon.com/bedrock/latest/userguide/structured-output.html"""

OLLAMA = SchemaRules(vendor="ollama", keeps_refs=True, takes_cycles=True)
"""`format` and tools: llama.cpp's grammar reads whole JSON Schema. https://docs.ollama.com/capabilities/structured-outputs"""
